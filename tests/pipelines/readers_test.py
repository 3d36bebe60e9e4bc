"""Each input kind as blocks: values, positions, block sizes, side tables."""

import csv

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from pipelines.readers import inputs, sources
from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses, text

_ROWS = [("u1", "é", 5), ("u2", "i 1", 3), ("u1", "7", 2**40), ("3", "7", 0)]


def _read(path, chunk_bytes=text.CHUNK_BYTES, **kwargs):
  source = sources.open_source(
    inputs.Input(paths=(str(path),), chunk_bytes=chunk_bytes, **kwargs)
  )
  return source, [block for _, block in source.blocks()]


def _rows(blocks):
  rows = []
  for block in blocks:
    times = [None] * len(block.users) if block.times is None else block.times
    rows += zip(*block.strings(), times, strict=True)
  return rows


def _write(path, kind):
  if kind == "parquet":
    users, items, times = (list(c) for c in zip(*_ROWS, strict=True))
    table = pa.table({"user_id": users, "item_id": items, "timestamp": times})
    pq.write_table(table, path, row_group_size=2)
  elif kind == "inter":
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += ["\t".join(map(str, row)) for row in _ROWS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  else:
    with open(path, "w", encoding="utf-8", newline="") as f:
      writer = csv.writer(f, delimiter="," if kind == "csv" else "\t")
      writer.writerow(["user_id", "item_id", "timestamp"])
      writer.writerows(_ROWS)


@pytest.mark.parametrize("kind", ["inter", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("chunk_bytes", [1, 9, 1 << 20])
def test_rows_of_every_kind(tmp_path, kind, chunk_bytes):
  path = tmp_path / f"r.{kind}"
  _write(path, kind)
  source, blocks = _read(path, chunk_bytes)
  assert _rows(blocks) == _ROWS
  assert source.has_times and source.name == "r"
  assert blocks[-1].progress == source.size
  first = 1 if kind == "parquet" else 2
  positions = []
  for block in blocks:
    unit = "row" if kind == "parquet" else "line"
    positions += [
      getattr(block.error(row, "c", ""), unit)
      for row in range(len(block.users))
    ]
  assert positions == list(range(first, first + 4))


def test_times_as_float_text_and_dates(tmp_path):
  path = tmp_path / "r.inter"
  path.write_text(
    "user_id:token\titem_id:token\ttimestamp:float\n"
    "1\t2\t1006243943.0\n1\t3\t1e3\n1\t4\t7\n"
  )
  for chunk_bytes in (1, 1000):
    assert [t for _, _, t in _rows(_read(path, chunk_bytes)[1])] == [
      1006243943,
      1000,
      7,
    ]
  moment = np.array(["2001-11-20T08:12:23.9"], "datetime64[ns]")
  table = pa.table({"user_id": [1], "item_id": [2], "timestamp": moment})
  pq.write_table(table, tmp_path / "r.parquet")
  ((user, item, time),) = _rows(_read(tmp_path / "r.parquet")[1])
  assert (user, item, time) == ("1", "2", 1006243943900)


def test_quotes_byte_order_mark_and_crlf(tmp_path):
  path = tmp_path / "r.csv"
  path.write_bytes(
    b'\xef\xbb\xbf"user_id",item_id,note\r\n"a,b","say ""x""",1\r\n'
    b"c,d,2\r\n\r\ne,f,3"
  )
  for chunk_bytes in (1, 5, 1000):
    source, blocks = _read(path, chunk_bytes)
    assert _rows(blocks) == [
      ("a,b", 'say "x"', None),
      ("c", "d", None),
      ("e", "f", None),
    ]
    assert source.warnings["blank_lines"] == 1
    assert source.warnings["last_line_without_newline"] == 1
    assert blocks[-1].error(len(blocks[-1].users) - 1, "c", "").line == 5
    assert source.ignored == ("note",)


def test_columns_by_name_weights_and_ratings(tmp_path):
  path = tmp_path / "r.csv"
  path.write_text("w,who,what,when,stars\n.5,a,x,7,3\n2,b,y,8,4.5\n")
  _, (block,) = _read(
    path,
    columns=inputs.Columns(
      user="who",
      item="what",
      time="when",
      weight="w",
      rating="stars",
      min_rating=4,
    ),
  )
  assert _rows([block]) == [("a", "x", 7), ("b", "y", 8)]
  assert block.weights.tolist() == [0.5, 2]
  assert block.ratings.tolist() == [3, 4.5]


@pytest.mark.parametrize("chunk_bytes", [1, 6, 1000])
def test_adjacency(tmp_path, chunk_bytes):
  path = tmp_path / "r.txt"
  path.write_text("u1 a b\n\nu2\t c \nu3\n u1 é d")
  source, blocks = _read(path, chunk_bytes)
  assert _rows(blocks) == [
    ("u1", "a", None),
    ("u1", "b", None),
    ("u2", "c", None),
    ("u1", "é", None),
    ("u1", "d", None),
  ]
  lines = [
    b.error(row, "c", "").line for b in blocks for row in range(len(b.users))
  ]
  assert lines == [1, 1, 3, 5, 5]
  assert +source.warnings == {
    "blank_lines": 1,
    "users_without_items": 1,
    "last_line_without_newline": 1,
  }


def test_several_files_folders_and_patterns(tmp_path):
  for name, user in (("b", "2"), ("a", "1")):
    (tmp_path / f"{name}.csv").write_text(f"user_id,item_id\n{user},x\n")
  both = (str(tmp_path / "b.csv"), str(tmp_path / "a.csv"))
  source = sources.open_source(inputs.Input(paths=both))
  blocks = [block for _, block in source.blocks()]
  assert [r[0] for r in _rows(blocks)] == ["2", "1"]
  assert blocks[-1].progress == source.size
  assert [r[0] for r in _rows(_read(tmp_path / "*.csv")[1])] == ["1", "2"]
  assert [r[0] for r in _rows(_read(tmp_path)[1])] == ["1", "2"]
  (tmp_path / "b.csv").rename(tmp_path / "b.tsv")
  with pytest.raises(errors.DataError, match=r"several kinds \(a.csv, b.tsv"):
    _read(tmp_path)
  (tmp_path / "b.tsv").unlink()
  assert [r[0] for r in _rows(_read(tmp_path)[1])] == ["1"]
  fingerprint = addresses.fingerprint(tmp_path / "a.csv")
  source, _ = _read(tmp_path)
  assert source.files() == (fingerprint,)


def test_atomic_side_files_are_found(tmp_path):
  (tmp_path / "r.inter").write_text("user_id:token\titem_id:token\n1\tx\n")
  (tmp_path / "r.user").write_text("user_id:token\tage:float\n1\t30\n2\t\n")
  (tmp_path / "r.item").write_text(
    "tags:token_seq\titem_id:token\tbrand:token\timage:float_seq\n"
    "a  b\tx\tacme\t1 2\n\ty\t\t\nb\tz\t\t3 4.5\n"
  )
  source, _ = _read(tmp_path / "r.inter")
  users, items = source.side_tables()
  assert (users.ids, users.kinds) == (["1", "2"], {"age": "float"})
  np.testing.assert_array_equal(users.columns["age"], [30, np.nan])
  assert items.ids == ["x", "y", "z"]
  assert items.columns["tags"].to_pylist() == [["a", "b"], [], ["b"]]
  assert items.columns["brand"].to_pylist() == ["acme", "", ""]
  np.testing.assert_array_equal(
    items.columns["image"], [[1, 2], [np.nan, np.nan], [3, 4.5]]
  )
  assert len(source.files()) == 3


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_side_features_by_flag(tmp_path, kind):
  (tmp_path / "r.csv").write_text("user_id,item_id\n1,x\n")
  side = tmp_path / f"items.{kind}"
  if kind == "csv":
    side.write_text(
      "item_id,price,tags:token_seq,image,n\nx,1.5,a|b,1|2,4\ny,,,,5\n"
    )
  else:
    table = pa.table(
      {
        "item_id": ["x", "y"],
        "price": [1.5, None],
        "tags": [["a", "b"], None],
        "image": [[1.0, 2.0], []],
        "n": [4, 5],
      }
    )
    pq.write_table(table, side)
  source, _ = _read(
    tmp_path / "r.csv",
    item_file=str(side),
    columns=inputs.Columns(
      item_features=(
        "price:float",
        "tags:token_seq",
        "image:float_seq",
        "n:token",
      ),
      separator="|",
    ),
  )
  users, items = source.side_tables()
  assert users is None
  np.testing.assert_array_equal(
    items.columns["price"], np.float32([1.5, np.nan])
  )
  assert items.columns["tags"].to_pylist() == [["a", "b"], []]
  np.testing.assert_array_equal(
    items.columns["image"], [[1, 2], [np.nan, np.nan]]
  )
  assert items.columns["n"].to_pylist() == ["4", "5"]


@pytest.mark.parametrize("has_header", [False, True])
def test_ids_of_side_files_are_found(tmp_path, has_header):
  """Ids by name, or in the first column of a file without a header."""
  header = "user_id,item_id,rating\n" if has_header else ""
  (tmp_path / "r.csv").write_text(header + "1,10,5\n2,11,4\n")
  (tmp_path / "named.csv").write_text("title,movie id,price\nx,11,3\n")
  (tmp_path / "plain.dat").write_text("10::Heat (1995)::2.5\n11::Tea::3\n")
  for name, feature, ids, prices in (
    ("named.csv", "price:float", ["11"], [3]),
    ("plain.dat", "3:float", ["10", "11"], [2.5, 3]),
  ):
    source, _ = _read(
      tmp_path / "r.csv",
      item_file=str(tmp_path / name),
      columns=inputs.Columns(item_features=(feature,)),
    )
    _, items = source.side_tables()
    assert items.ids == ids
    assert items.columns[feature[:-6]].tolist() == prices
  (tmp_path / "odd.csv").write_text("title,price\nx,3\n")
  source, _ = _read(
    tmp_path / "r.csv",
    item_file=str(tmp_path / "odd.csv"),
    columns=inputs.Columns(item_features=("price:float",)),
  )
  with pytest.raises(errors.DataError, match="column of ids with --item_key"):
    source.side_tables()
