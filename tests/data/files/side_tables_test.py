"""Side tables: all formats give the same values; errors name the fault."""

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from pyarrow import parquet as pq

from xir_tfrs.data import errors
from xir_tfrs.data.files import side_tables

_KINDS = {
  "tag": "token",
  "words": "token_seq",
  "price": "float",
  "place": "float_seq",
}
# id, colour (not read), price, words, tag, place
_ROWS = (
  ("Äpfel, 1", "red", 1.5, ["a", "bc"], "t1", [1.0, -2.5]),
  ('a "b"', "", None, [], "", []),
  ("77", "blue", -2e3, ["ü"], "12", [0.0, 4.0]),
)
_ATOMIC = """\
colour:token_seq\tid:token\tprice:float\twords:token_seq\ttag:token\
\tplace:float_seq
red\tÄpfel, 1\t1.5\ta bc\tt1\t1 -2.5

\ta "b"\t\t\t\t
blue\t77\t-2e3\tü\t12\t0  4.0
"""
_CSV = """\
\ufeffid,colour,price,words,tag,place\r
"Äpfel, 1",red,1.5,a|bc,t1,1|-2.5\r
"a ""b""\",,NA,,,\r
77,blue,-2e3,ü,12,0|4.0\r
"""


def _feature(values):
  values = [x.encode() if isinstance(x, str) else x for x in values]
  if not values:
    return tf.train.Feature()
  kind, name = {
    bytes: (tf.train.BytesList, "bytes_list"),
    float: (tf.train.FloatList, "float_list"),
    int: (tf.train.Int64List, "int64_list"),
  }[type(values[0])]
  return tf.train.Feature(**{name: kind(value=values)})


def _write_records(path, *records):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for columns in records:
      features = {name: _feature(values) for name, values in columns.items()}
      example = tf.train.Example(features=tf.train.Features(feature=features))
      writer.write(example.SerializeToString())


def _row_record(row):
  name, colour, price, words, tag, place = row
  return {
    "id": [name],
    "colour": [colour],
    "price": [] if price is None else [price],
    "words": words,
    "tag": [tag] if tag else [],
    "place": place,
  }


def _write_packed(path):
  first = {
    "id": [row[0] for row in _ROWS[:2]],
    "colour": [row[1] for row in _ROWS[:2]],
    "price": [1.5, np.nan],
    "words/values": ["a", "bc"],
    "words/lengths": [2, 0],
    "tag": ["t1", ""],
    "place": [1.0, -2.5, np.nan, np.nan],
  }
  second = _row_record(_ROWS[2])
  del second["words"]
  second |= {"words/values": ["ü"], "words/lengths": [1]}
  _write_records(path, first, second)


def _write_parquet(path):
  names = ("id", "colour", "price", "words", "tag", "place")
  columns = dict(zip(names, map(list, zip(*_ROWS, strict=True)), strict=True))
  columns["tag"] = pa.array(columns["tag"]).dictionary_encode()
  columns["words"] = pa.array(columns["words"], pa.large_list(pa.string()))
  columns["place"] = pa.array([[1.0, -2.5], None, [0.0, 4.0]])
  pq.write_table(pa.table(columns), path, row_group_size=2)


_WRITERS = {
  "rows.item": lambda path: path.write_text(_ATOMIC, encoding="utf-8"),
  "rows.csv": lambda path: path.write_bytes(_CSV.encode()),
  "rows.tsv": lambda path: path.write_bytes(_CSV.replace(",", "\t").encode()),
  "rows.parquet": _write_parquet,
  "rows.tfrecord": lambda path: _write_records(path, *map(_row_record, _ROWS)),
  "packed.tfrecord": _write_packed,
}


@pytest.mark.parametrize("name", _WRITERS)
def test_formats_agree(tmp_path, name):
  path = tmp_path / name
  _WRITERS[name](path)
  separator = "|" if path.suffix in (".csv", ".tsv") else " "
  file = side_tables.open_file(path)
  assert set(file.header) == {"id", "colour", *_KINDS}
  table = file.read("id", _KINDS, separator=separator)
  ids = [row[0] for row in _ROWS]
  if path.suffix == ".tsv":
    ids[0] = "Äpfel\t 1"
  assert table.ids == ids and table.kinds == _KINDS
  assert table.columns["tag"].to_pylist() == ["t1", "", "12"]
  assert table.columns["words"].to_pylist() == [["a", "bc"], [], ["ü"]]
  price, place = table.columns["price"], table.columns["place"]
  assert price.dtype == place.dtype == np.float32
  np.testing.assert_array_equal(price, [1.5, np.nan, -2000])
  np.testing.assert_array_equal(place, [[1, -2.5], [np.nan] * 2, [0, 4]])
  text = path.suffix in (".item", ".csv", ".tsv")
  numbers = [table.places.number(row) for row in range(3)]
  assert numbers == {".item": [2, 4, 5], ".csv": [2, 3, 4]}.get(
    path.suffix, [2, 3, 4] if text else [1, 2, 3]
  )


def test_the_id_may_be_a_token_and_numbers_may_be_ids(tmp_path):
  pq.write_table(
    pa.table({"id": [7, 8], "tag": [3, None], "words": [[1, 2], [3]]}),
    tmp_path / "a.parquet",
  )
  file = side_tables.open_file(tmp_path / "a.parquet")
  table = file.read("id", {"id": "token", "tag": "token", "words": "token_seq"})
  assert table.ids == table.columns["id"].to_pylist() == ["7", "8"]
  assert table.columns["tag"].to_pylist() == ["3", ""]
  assert table.columns["words"].to_pylist() == [["1", "2"], ["3"]]


def test_requested_lengths_are_used(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text("id,v\na,\nb,1 2\n")
  file = side_tables.open_file(path)
  with pytest.raises(errors.DataError, match=r"line 3.*2 numbers, expected 3"):
    file.read("id", {"v": "float_seq"}, lengths={"v": 3})
  path.write_text("id,v\na,\n")
  read = side_tables.open_file(path).read
  table = read("id", {"v": "float_seq"}, lengths={"v": 3})
  assert np.isnan(table.columns["v"]).tolist() == [[True] * 3]


@pytest.mark.parametrize(
  ("name", "text", "expected"),
  [
    ("a.csv", "id,price\na,1\nb,cheap\n", "line 3, column 'price': 'cheap' is"),
    ("a.csv", "id,place\na,1 2\nb,1 2 3\n", "line 2, column 'place': 2 num"),
    ("a.csv", "id,place\na,1 z\n", "line 2, column 'place': 'z' is not"),
    ("a.csv", "id,tag\na,x\n\n,y\n", "line 4, column 'id': empty id"),
    ("a.csv", "id,tag\na,x\nb,y\na,z\n", "line 4, column 'id': 'a' appears tw"),
    ("a.csv", "id,tag,tag\na,x,y\n", "line 1, column 'tag': appears twice"),
    ("a.csv", "id,tag\na\n", "line 2, column 'tag': 1 fields"),
    ("a.csv", 'id,tag\na,"x\n', "line 2: broken quoting"),
    ("a.csv", "", "line 1: empty"),
    ("a.csv", "id,tag\n", "line 1: no rows below the header"),
    ("a.item", "id\tprice:float\n", "line 1, column 'id': no kind"),
    ("a.json", "{}", "empty; expected rows with named columns"),
    ("a.json", '{"id": 1}\n{"id"', "line 2: is not a JSON object"),
    ("a.parquet", "", "empty, truncated or not a Parquet file"),
    ("a.tfrecord", "no record at all", "record 1 or a later one"),
  ],
)
def test_broken_text_is_named(tmp_path, name, text, expected):
  path = tmp_path / name
  path.write_text(text)
  with pytest.raises(errors.DataError) as caught:
    file = side_tables.open_file(path)
    file.read("id", {k: v for k, v in _KINDS.items() if k in file.header})
  assert str(caught.value).startswith(f"{path}")
  assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.tfrecord"])
def test_truncated_file_is_named(tmp_path, name):
  path = tmp_path / name
  _WRITERS[name](path)
  path.write_bytes(path.read_bytes()[:-7])
  with pytest.raises(errors.DataError, match=f"{name}.*truncated"):
    side_tables.open_file(path)


def test_a_title_of_a_typed_header_is_a_feature_if_it_is_named(tmp_path):
  path = tmp_path / "a.item"
  path.write_text("item_id:token\ttitle:token\ttag:token\na\tHeat\tx\n")
  for wanted, kinds in (([], {"tag"}), (["title"], {"title"})):
    table = side_tables.read(
      str(path), "item_id", wanted, "--item_features", title="title"
    )
    assert table.kinds.keys() == kinds
    assert table.titles.to_pylist() == ["Heat"]


def test_decimal_commas(tmp_path):
  path = tmp_path / "artikel.csv"
  path.write_text("id;Preis\na;9,50\nb;1.234,00\nc;\n")
  table = side_tables.open_file(path).read("id", {"Preis": "float"})
  np.testing.assert_array_equal(table.columns["Preis"], [9.5, 1234, np.nan])


@pytest.mark.parametrize("value", ["inf", "-inf", "1e39", "-1e308", "1e400"])
@pytest.mark.parametrize("kind", ["float", "float_seq"])
@pytest.mark.parametrize("form", ["csv", "item", "parquet", "tfrecord"])
def test_numbers_that_float32_cannot_hold(tmp_path, value, kind, form):
  path = tmp_path / f"a.{form}"
  rows = [1.0, float(value)]
  if kind == "float_seq":
    rows = [[1.0, 2.0], [3.0, float(value)]]
  if form == "parquet":
    pq.write_table(pa.table({"id": ["a", "b"], "x": rows}), path)
  elif form == "tfrecord":
    # A float_list itself rounds to float32, which gives infinity.
    with np.errstate(over="ignore"):
      flat = np.float32(np.ravel(rows)).tolist()
    half = len(flat) // 2
    _write_records(
      path, {"id": ["a"], "x": flat[:half]}, {"id": ["b"], "x": flat[half:]}
    )
  else:
    name, tab = (f":{kind}", "\t") if form == "item" else ("", ",")
    fields = ["1", value] if kind == "float" else ["1 2", f"3 {value}"]
    lines = [f"id{':token' if name else ''}{tab}x{name}"]
    lines += [f"{i}{tab}{x}" for i, x in zip("ab", fields, strict=True)]
    path.write_text("\n".join(lines))
  where = "row 2" if form in ("parquet", "tfrecord") else "line 3"
  with pytest.raises(
    errors.DataError, match=f"{where}, column 'x': .* is infinite or too large"
  ):
    side_tables.open_file(path).read("id", {"x": kind})


@pytest.mark.parametrize(
  ("values", "kind", "expected"),
  [
    (pa.array(["1", "x"]), "float", "row 2, column 'x': 'x' is not a number"),
    (pa.array([b"r", b"\xff"]), "token", r"row 2, column 'x'.* is not UTF-8"),
    (pa.array([[b"r"], [b"\xff"]]), "token_seq", "row 2.* is not UTF-8"),
    (pa.array([{"n": 1}, None]), "token", "column 'x': type struct"),
    (pa.array([{"n": 1}, None]), "float", "column 'x': type struct"),
    (pa.array([[{"n": 1}], []]), "token_seq", "column 'x': type struct"),
    (pa.array([[1], []]), "token", "column 'x': holds lists"),
    (
      pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
      "token_seq",
      "column 'x': type map",
    ),
    # pyarrow cannot read the file that it writes here.
    (
      pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
      "float_seq",
      "cannot be read as Parquet",
    ),
  ],
)
def test_unsupported_parquet_types(tmp_path, values, kind, expected):
  path = tmp_path / "a.parquet"
  pq.write_table(pa.table({"id": ["a", "b"], "x": values}), path)
  with pytest.raises(errors.DataError, match=expected) as caught:
    side_tables.open_file(path).read("id", {"x": kind})
  assert str(caught.value).startswith(str(path))
  assert "\n" not in str(caught.value)


def test_vectors_of_fixed_length(tmp_path):
  path = tmp_path / "a.parquet"
  values = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))
  pq.write_table(pa.table({"id": ["a", "b"], "x": values}), path)
  table = side_tables.open_file(path).read("id", {"x": "float_seq"})
  assert table.columns["x"].tolist() == [[1, 2], [3, 4]]


def test_numeric_parquet_types(tmp_path):
  path = tmp_path / "a.parquet"
  for values in (
    pa.array(["5", "NA"]),
    pa.array([5, None]).cast(pa.decimal128(25, 2)),
    pa.array([5, None], pa.uint8()),
    pa.array([5.0, float("nan")], pa.float16()),
  ):
    pq.write_table(pa.table({"id": ["a", "b"], "x": values}), path)
    table = side_tables.open_file(path).read("id", {"x": "float"})
    np.testing.assert_array_equal(table.columns["x"], np.float32([5, np.nan]))
  pq.write_table(pa.table({"id": ["a"], "x": [2**60 + 1]}), path)
  table = side_tables.open_file(path).read("id", {"x": "float"})
  assert table.columns["x"].tolist() == [2.0**60]


def test_records_that_do_not_fit(tmp_path):
  path = tmp_path / "a.tfrecord"
  _write_records(path, {"id": ["a"]}, {"id": ["b", "c"], "price": [1.0]})
  with pytest.raises(errors.DataError, match="row 2, column 'price'.* 2 ids"):
    side_tables.open_file(path).read("id", {"price": "float"})
  _write_records(path, {"id": ["a", "b"], "words": ["x", "y"]})
  with pytest.raises(errors.DataError, match="row 1, column 'words'"):
    side_tables.open_file(path).read("id", {"words": "token_seq"})
  _write_records(path, {"id": ["a"], "x": [1]}, {"id": ["b"], "x": ["y"]})
  with pytest.raises(errors.DataError, match="column 'x'.*different types"):
    side_tables.open_file(path).read("id", {"x": "token"})


def test_a_missing_file(tmp_path):
  with pytest.raises(errors.DataError, match=r"none\.csv: cannot be read"):
    side_tables.open_file(tmp_path / "none.csv")
