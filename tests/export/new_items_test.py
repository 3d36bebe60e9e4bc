"""Items from files: ids, features, and errors.

tests/data/files/side_tables_test.py tests the formats.
"""

import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from export.bundle import new_items
from xir_tfrs.data import errors
from xir_tfrs.data.files import side_tables
from xir_tfrs.serving import manifest

FEATURES = (
  manifest.Feature("tag", "tag", "token"),
  manifest.Feature("words", "words", "token_seq"),
  manifest.Feature("price", "price", "float"),
  manifest.Feature("place", "place", "float_seq", 2),
)


def test_items_of_a_file(tmp_path):
  path = tmp_path / "rows.csv"
  path.write_text(
    "id,colour,price,words,tag,place\nÄ,red,1.5,a|bc,t1,1|-2.5\n7,blue,NA,,,\n"
  )
  found = new_items.read_items(path, FEATURES, separator="|")
  assert found.ids == ["Ä", "7"]
  assert (found.ignored, found.missing) == (("colour",), ())
  assert found.columns["tag"].tolist() == ["t1", ""]
  assert found.columns["words"] == [["a", "bc"], []]
  price, place = found.columns["price"], found.columns["place"]
  assert price.dtype == place.dtype == np.float32
  np.testing.assert_array_equal(price, [1.5, np.nan])
  np.testing.assert_array_equal(place, [[1, -2.5], [np.nan] * 2])


def test_sequences_are_split_as_when_they_were_prepared(tmp_path):
  path = tmp_path / "rows.csv"
  path.write_text("id,words,tags,genre_a,genre_b,x\n1,a b|c,d;e,0,1,2\n")
  features = (
    manifest.Feature("words", "words", "token_seq", separator="|"),
    manifest.Feature("tags", "tags", "token_seq"),
    manifest.Feature("genre", "genre", "token_seq"),
  )
  found = new_items.read_items(path, features)
  assert found.columns["words"] == [["a b", "c"]]
  assert found.columns["tags"] == [["d;e"]]
  assert found.columns["genre"] == [["b"]]
  assert (found.ignored, found.missing) == (("x",), ())
  found = new_items.read_items(path, features, separator=";")
  assert found.columns["tags"] == [["d", "e"]]
  assert found.columns["words"] == [["a b|c"]]


def _side_rows(text, suffix, tmp_path):
  """The rows that `pipelines.prepare` reads from the same file."""
  path = tmp_path / f"a{suffix}"
  path.write_text(text)
  wanted = [f"{x.name}:{x.kind}" for x in FEATURES]
  return side_tables.read(path, "id", tuple(wanted), "--item_features", " ")


@pytest.mark.parametrize(
  "row",
  [
    "a,x,y z,inf,1 2",
    "a,x,y z,1e39,1 2",
    "a,x,y z,1,1 -inf",
    "a,x,y z,1,1 1e400",
    "a,x,y z,1,1 two",
    'a,"x"x,y z,1,1 2',
    'a,x,y z,1,"1 2',
  ],
)
def test_prepare_refuses_the_same_values_with_the_same_message(tmp_path, row):
  text = f"id,tag,words,price,place\n{row}\n"
  with pytest.raises(errors.DataError, match="line 2.*: .*(inf|num|quot)") as a:
    _side_rows(text, ".csv", tmp_path)
  with pytest.raises(errors.DataError) as b:
    new_items.read_items(tmp_path / "a.csv", FEATURES)
  assert str(a.value) == str(b.value)


def test_preparing_reads_missing_markers_alike(tmp_path):
  markers = ("", "nan", "NaN", "NA", "null", "NULL", "None")
  rows = [f"{i},{x},{x},{x},1 {x or 'NA'}" for i, x in enumerate(markers)]
  text = "\n".join(["id,tag,words,price,place", *rows])
  prepared = _side_rows(text, ".csv", tmp_path)
  found = new_items.read_items(tmp_path / "a.csv", FEATURES)
  assert np.isnan(found.columns["price"]).all()
  np.testing.assert_array_equal(
    found.columns["place"], [[1, np.nan]] * len(markers)
  )
  # Tokens have no markers but the empty one.
  assert found.columns["tag"].tolist() == list(markers)
  assert found.columns["words"] == [[x] if x else [] for x in markers]
  for name in ("price", "place"):
    np.testing.assert_array_equal(prepared.columns[name], found.columns[name])
  for name in ("tag", "words"):
    assert prepared.columns[name].to_pylist() == list(found.columns[name])


def test_features_that_the_file_lacks_are_not_given(tmp_path):
  path = tmp_path / "ids.csv"
  path.write_text("id,tag\n5,x\n-9,y\n")
  found = new_items.read_items(path, FEATURES, id_type="int64")
  assert found.ids == [5, -9]
  assert found.missing == ("words", "price", "place")
  assert found.columns["words"] == [[], []]
  assert np.isnan(found.columns["price"]).tolist() == [True, True]
  assert np.isnan(found.columns["place"]).shape == (2, 2)
  named = new_items.read_items(path, FEATURES, id_column="tag")
  assert (named.ids, named.ignored) == (["x", "y"], ("id",))
  assert named.columns["tag"].tolist() == ["x", "y"]


def test_the_id_column_of_the_data_is_used(tmp_path):
  path = tmp_path / "ids.csv"
  path.write_text("id,Artikel,tag\n1,x,a\n2,y,b\n")
  found = new_items.read_items(path, FEATURES, item_column="artikel")
  assert (found.ids, found.ignored) == (["x", "y"], ("id",))
  found = new_items.read_items(path, FEATURES, item_column="sku")
  assert found.ids == ["1", "2"]
  found = new_items.read_items(path, FEATURES, "tag", item_column="Artikel")
  assert found.ids == ["a", "b"]


def test_integers_of_parquet_are_tokens_and_ids(tmp_path):
  path = tmp_path / "numbers.parquet"
  table = {"item_id": [7, 8], "tag": [3, None], "words": [[1, 2], [3]]}
  parquet.write_table(pa.table(table), path)
  found = new_items.read_items(path, FEATURES)
  assert found.ids == ["7", "8"]
  assert found.columns["tag"].tolist() == ["3", ""]
  assert found.columns["words"] == [["1", "2"], ["3"]]
  assert new_items.read_items(path, FEATURES, id_type="int64").ids == [7, 8]


@pytest.mark.parametrize(
  ("name", "text", "expected"),
  [
    ("a.csv", "id,price\na,1\nb,cheap\n", "line 3, column 'price': 'cheap' is"),
    ("a.csv", "id,price\na,inf\n", "line 2, column 'price': inf is infinite"),
    ("a.csv", "id,price\na,1e39\n", "line 2, column 'price': 1e+39 is in"),
    ("a.csv", "id,place\na,1 2\nb,1 2 3\n", "line 3, column 'place': 3 num"),
    ("a.csv", "id,place\na,1 z\n", "line 2, column 'place': 'z' is not"),
    ("a.csv", "id,tag\na,x\n\n,y\n", "line 4, column 'id': empty id"),
    ("a.csv", "id,tag\na,x\nb,y\na,z\n", "line 4, column 'id': 'a' appears tw"),
    ("a.csv", "name,tag\na,x\n", "the file has 'name', 'tag'; name it with"),
    ("a.csv", "id,item_id\na,x\n", "name it with --id_column"),
    ("a.csv", "id,tag,tag\na,x,y\n", "line 1, column 'tag': appears twice"),
    ("a.csv", "id,tag\na\n", "line 2, column 'tag': 1 fields where"),
    ("a.csv", 'id,tag\na,"x\n', "line 2: broken quoting"),
    ("a.csv", "", "empty; expected"),
    ("a.csv", "id,tag\n", "no rows below the header"),
    ("a.item", "item_id\tprice:float\n", "column 'item_id': no kind"),
    ("a.item", "price:float\n1\n", "name it with --id_column"),
    ("a.json", "{}", "empty; expected rows with named columns"),
    ("a.parquet", "", "empty, truncated or not a Parquet"),
    ("a.tfrecord", "", "empty; expected"),
    ("a.tfrecord", "no record at all", "record 1 or a later one is truncated"),
  ],
)
def test_broken_file_is_named(tmp_path, name, text, expected):
  path = tmp_path / name
  path.write_text(text)
  with pytest.raises(errors.DataError) as caught:
    new_items.read_items(path, FEATURES)
  assert str(caught.value).startswith(f"{path}")
  assert expected in str(caught.value)


@pytest.mark.parametrize("value", ["x", "1.5", "9223372036854775808", "-1"])
def test_integer_ids_are_checked(tmp_path, value):
  path = tmp_path / "a.csv"
  path.write_text(f"id\n4\n{value}\n")
  with pytest.raises(errors.DataError, match="line 3, column 'id'"):
    new_items.read_items(path, (), id_type="int64")


def test_missing_file_encoding_column_and_library_are_named(
  tmp_path, monkeypatch
):
  with pytest.raises(errors.DataError, match="none.csv: cannot be read"):
    new_items.read_items(tmp_path / "none.csv", FEATURES)
  path = tmp_path / "latin.csv"
  path.write_bytes(b"id,tag\na,b\nc,\xff\n")
  with pytest.raises(errors.DataError, match="line 3, column 'tag': not UTF-8"):
    new_items.read_items(path, FEATURES)
  path.write_text("id,tag\na,b\n")
  with pytest.raises(errors.DataError, match="no column 'x' for --id_column"):
    new_items.read_items(path, FEATURES, id_column="x")

  module = "xir_tfrs.data.files.side_tables"
  monkeypatch.setitem(sys.modules, module, None)
  monkeypatch.delattr(module)
  with pytest.raises(errors.DataError, match=r"xir-tfrs\[data\]"):
    new_items.read_items(path, FEATURES)


def test_ids_of_a_text_file(tmp_path):
  path = tmp_path / "ids.txt"
  path.write_bytes("a b\r\n\nü\na b\n7".encode())
  assert new_items.read_ids(path) == ["a b", "ü", "7"]
  path.write_text("7\n\n8\n7\n")
  assert new_items.read_ids(path, "int64") == [7, 8]
  path.write_text("7\n\nx\n")
  with pytest.raises(errors.DataError, match="line 3: 'x'"):
    new_items.read_ids(path, "int64")
