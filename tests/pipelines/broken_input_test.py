"""Errors of broken input name file, line and column; no output remains."""

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from pipelines import prepare
from pipelines.readers import inputs
from xir_tfrs.data import errors
from xir_tfrs.data.files import text
from xir_tfrs.programs import main as main_lib

_INTER = "user_id:token\titem_id:token\ttimestamp:float\n"
_CSV = "user_id,item_id,timestamp\n"
_GOOD = "1\ta\t5\n"


def _prepare(folder, name, *, chunk_bytes=text.CHUNK_BYTES, **kwargs):
  options = {
    key: kwargs.pop(key)
    for key in ("format", "columns", "user_file", "item_file")
    if key in kwargs
  }
  return prepare.prepare(
    prepare.PrepareConfig(
      input=inputs.Input(
        paths=(str(folder / name),), chunk_bytes=chunk_bytes, **options
      ),
      output=folder / "out",
      **kwargs,
    )
  )


# File name, content, where the error is, and a part of its message.
_BROKEN = [
  ("a.inter", b"", "line 1", "empty; expected a line of column names"),
  ("a.inter", b"\n1\ta\n", "line 1", "blank; expected the column names"),
  ("a.inter", _INTER.encode(), "line 1", "no rows below the header"),
  (
    "a.inter",
    b"user_id\titem_id\n1\t2\n",
    "line 1, column 'user_id'",
    "no kind",
  ),
  (
    "a.inter",
    b"user_id:token\titem_id:word\n1\t2\n",
    "line 1, column 'item_id:word'",
    "unknown kind in the header",
  ),
  (
    "a.inter",
    b"user_id:token\tthing:token\n1\t2\n",
    "line 1",
    "no column has a name like item; the file has 'user_id', 'thing'",
  ),
  (
    "a.csv",
    b"user_id,asin,isbn\n1,2,3\n",
    "line 1",
    "'asin' and 'isbn' may both be the item; choose with --item_column asin",
  ),
  (
    "a.csv",
    b"user_id,user_id,item_id\n1,2,3\n",
    "line 1, column 'user_id'",
    "appears twice in the header",
  ),
  (
    "a.inter",
    (_INTER + _GOOD * 3 + "2\tb\n" + _GOOD).encode(),
    "line 5, column 'timestamp'",
    "2 fields where the header has 3 (a truncated line?)",
  ),
  (
    "a.inter",
    (_INTER + _GOOD * 3 + "2\tb").encode(),
    "line 5, column 'timestamp'",
    "truncated line?",
  ),
  ("a.inter", (_INTER + _GOOD + "1\tb\t4\t4\n").encode(), "line 3", "4 fields"),
  (
    "a.inter",
    (_INTER + _GOOD * 2).encode() + b"1\t\xff\t5\n",
    "line 4, column 'item_id'",
    "not UTF-8 (byte 0xff at position 2); write it as UTF-8, or set --encoding",
  ),
  (
    "a.inter",
    (_INTER + _GOOD + "1\tb\tyesterday\n").encode(),
    "line 3, column 'timestamp'",
    "'yesterday' is not a number",
  ),
  (
    "a.inter",
    (_INTER + _GOOD * 200_000 + "1\tb\t5.5\n").encode(),
    "line 200002, column 'timestamp'",
    "'5.5' is not a whole number of units, but the first times",
  ),
  (
    "a.inter",
    (_INTER + _GOOD + "1\tb\t99999999999999999999\n").encode(),
    "line 3, column 'timestamp'",
    "is not a 64-bit integer",
  ),
  (
    "a.inter",
    (_INTER + _GOOD + "1\tb\t\n").encode(),
    "line 3, column 'timestamp'",
    "'' is not a number",
  ),
  (
    "a.inter",
    (_INTER + _GOOD + "\tb\t5\n").encode(),
    "line 3, column 'user_id'",
    "empty id",
  ),
  (
    "a.csv",
    (_CSV + '1,a,5\n1,"b\nc"d,6\n').encode(),
    "line 3",
    "broken quoting",
  ),
  ("a.csv", (_CSV + '1,"a,5\n').encode(), "line 2", "broken quoting"),
  ("a.txt", b"", "line 1", "no interactions; expected lines of"),
  ("a.txt", b"1\n2\n", "line 1", "no interactions; expected lines of"),
  ("a.txt", b"1 a\n2 b \xff c\n", "line 2, column 'word 3'", "not UTF-8"),
  ("a.parquet", b"PAR1", None, "empty, truncated or not a Parquet file"),
  ("a.dat", b"1 2\n", None, "The first lines are '1 2'. Use --delimiter space"),
]


@pytest.mark.parametrize("chunk_bytes", [7, text.CHUNK_BYTES])
@pytest.mark.parametrize(
  ("name", "content", "where", "message"),
  _BROKEN,
  ids=[f"{n}-{m[:20]}" for n, _, _, m in _BROKEN],
)
def test_broken_file(tmp_path, name, content, where, message, chunk_bytes):
  (tmp_path / name).write_bytes(content)
  # Small chunks, but at most a thousand.
  chunk_bytes = max(chunk_bytes, len(content) // 1000)
  with pytest.raises(errors.DataError) as caught:
    _prepare(tmp_path, name, chunk_bytes=chunk_bytes)
  text = str(caught.value)
  assert text.startswith(str(tmp_path / name))
  if where is not None:
    assert text.removeprefix(str(tmp_path / name)).startswith(f", {where}")
  assert message in text and "\n" not in text
  assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
  ("columns", "where", "message"),
  [
    ({"user_id": [1, None], "item_id": [1, 2]}, "row 2, column 'user_id'", ""),
    ({"user_id": [1, 2], "item_id": ["a", ""]}, "row 2, column 'item_id'", ""),
    (
      {"user_id": [1.5], "item_id": [1]},
      "row 1, column 'user_id'",
      "not an id",
    ),
    ({"user_id": [1], "thing": [1]}, "", "no column has a name like item"),
    (
      {"user_id": [1], "item_id": [b"\xff"]},
      "row 1, column 'item_id'",
      "is not UTF-8",
    ),
    (
      {"user_id": [1], "item_id": [1], "timestamp": ["x"]},
      "row 1, column 'timestamp'",
      "'x' is neither a number nor a time",
    ),
    (
      {"user_id": [1], "item_id": [1], "timestamp": [float("inf")]},
      "row 1, column 'timestamp'",
      "not a 64-bit integer",
    ),
    (
      {
        "user_id": pa.array([], pa.int64()),
        "item_id": pa.array([], pa.int64()),
      },
      "",
      "no rows",
    ),
  ],
)
def test_broken_parquet(tmp_path, columns, where, message):
  pq.write_table(pa.table(columns), tmp_path / "a.parquet")
  with pytest.raises(errors.DataError) as caught:
    _prepare(tmp_path, "a.parquet")
  assert str(caught.value).startswith(str(tmp_path / "a.parquet"))
  assert where in str(caught.value) and message in str(caught.value)
  assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize(
  ("value", "message"),
  [("-1", "-1.0 is not a weight"), ("nan", "not a"), ("x", "not a number")],
)
def test_weights(tmp_path, value, message):
  (tmp_path / "a.csv").write_text(f"user_id,item_id,w\n1,a,1\n1,b,{value}\n")
  with pytest.raises(errors.DataError, match="line 3, column 'w'") as caught:
    _prepare(tmp_path, "a.csv", columns=inputs.Columns(weight="w"))
  assert message in str(caught.value)


_SIDE = [
  ("item_id:token\tp:float\na\t1\na\t2\n", "line 3, column 'item_id'", "twice"),
  ("item_id:token\tp:float\na\tcheap\n", "line 2, column 'p'", "not a number"),
  ("item_id:token\tp:float\na\n", "line 2, column 'p'", "1 fields"),
  ("item_id:token\tp\na\t1\n", "line 1, column 'p'", "no kind"),
  ("code:token\tp:float\na\t1\n", "line 1, column 'item_id'", "--item_key"),
  ("item_id:token\n", "line 1", "no column has a kind"),
  ("item_id:token\tp:float\n", "line 1", "no rows below the header"),
  (
    "item_id:token\tcount:float\na\t1\n",
    "line 1, column 'count'",
    "are reserved",
  ),
  (
    "item_id:token\tv:float_seq\na\t1 2\nb\t1 2 3\n",
    "line 2, column 'v'",
    "2 numbers, expected 3",
  ),
  (
    "item_id:token\tv:float_seq\na\t1 2\nb\t1 x\n",
    "line 3, column 'v'",
    "'x' is not a number",
  ),
]


@pytest.mark.parametrize(("content", "where", "message"), _SIDE)
def test_broken_side_file(tmp_path, content, where, message):
  (tmp_path / "a.inter").write_text(_INTER + _GOOD)
  (tmp_path / "a.item").write_text(content)
  with pytest.raises(errors.DataError) as caught:
    _prepare(tmp_path, "a.inter")
  assert str(caught.value).startswith(f"{tmp_path / 'a.item'}, {where}: ")
  assert message in str(caught.value)
  assert {p.name for p in tmp_path.iterdir()} == {"a.inter", "a.item"}


def test_no_rows_are_left_by_the_flags(tmp_path):
  (tmp_path / "a.csv").write_text("user_id,item_id,event\n1,a,view\n,b,buy\n")
  for options, message in (
    ({"events": ("cart",)}, "no rows are left: 2 rows have events that --ev"),
    (
      {"events": ("buy",), "missing_user": "drop"},
      "1 rows have events .* and 1 rows have no user",
    ),
  ):
    with pytest.raises(errors.DataError, match=message):
      _prepare(tmp_path, "a.csv", columns=inputs.Columns(**options))


def test_missing_side_features_are_named(tmp_path):
  (tmp_path / "a.csv").write_text(_CSV + "1,a,5\n")
  (tmp_path / "i.csv").write_text("item_id,price\na,3\n")
  with pytest.raises(errors.DataError, match="needs a --item_file"):
    _prepare(tmp_path, "a.csv", columns=inputs.Columns(item_features=("p",)))
  for features, message in (
    ((), "no column has a kind; name the features with --item_features"),
    (("price",), "column 'price': has no kind"),
    (("cost:float",), "column 'cost': no such feature"),
    (("price:float", "price:token"), "--item_features names it twice"),
  ):
    with pytest.raises(errors.DataError, match=message):
      _prepare(
        tmp_path,
        "a.csv",
        item_file=str(tmp_path / "i.csv"),
        columns=inputs.Columns(item_features=features),
      )


@pytest.mark.parametrize(
  ("content", "where", "message"),
  [
    ("0 0 1\n1 x\n", "line 2, column 'item_id'", "'x' is not a dense id"),
    ("0 0 1\n1 01\n", "line 2, column 'item_id'", "'01' is not a dense id"),
    (
      "0 0 1\n3 0\n1 0\n",
      "line 2, column 'user_id'",
      "id 2 is missing among 3",
    ),
    ("0 0 1\n1 2 7\n", "line 2, column 'item_id'", "id 3 is missing among 4"),
  ],
)
@pytest.mark.parametrize("chunk_bytes", [3, 1000])
def test_non_dense_ids_are_named(
  tmp_path, content, where, message, chunk_bytes
):
  (tmp_path / "a.txt").write_text(content)
  with pytest.raises(errors.DataError) as caught:
    _prepare(tmp_path, "a.txt", dense_ids=True, chunk_bytes=chunk_bytes)
  assert str(caught.value).startswith(f"{tmp_path / 'a.txt'}, {where}: ")
  assert message in str(caught.value)


def test_missing_inputs_are_named(tmp_path):
  with pytest.raises(errors.DataError, match="gone.csv: no such file"):
    _prepare(tmp_path, "gone.csv")
  (tmp_path / "d").mkdir()
  with pytest.raises(errors.DataError, match="holds no file; name a file"):
    _prepare(tmp_path, "d")
  (tmp_path / "a.csv").write_text("user_id,item_id\n1,a\n")
  with pytest.raises(errors.DataError, match="needs times; name the column"):
    _prepare(tmp_path, "a.csv", split="temporal")
  with pytest.raises(errors.DataError, match="None of|none of the 1 rows"):
    _prepare(tmp_path, "a.csv", test_fraction=0.9)


def test_one_line_and_a_status_from_main(tmp_path, capsys):
  (tmp_path / "a.csv").write_text("user_id,item_id\n1\n")
  command = [
    "prepare",
    f"--input={tmp_path / 'a.csv'}",
    f"--output={tmp_path / 'out'}",
  ]

  def run(*more):
    status = main_lib.run(
      prepare.PrepareConfig, prepare.main, argv=[*command, *more]
    )
    return status, capsys.readouterr().err

  status, err = run()
  assert status == 1 and err.startswith("prepare: ") and err.count("\n") == 1
  assert "line 2" in err
  for more, expected in (
    (["x"], "Not a flag: x"),
    (["--split=leave_last", "--test_fraction=.1"], "--test_fraction belongs"),
    (["--split=leave_last", "--validation_fraction=0"], "--validation_fractio"),
    (["--tfds_split=train"], "--tfds_split belongs to --format tfds"),
    (["--synthetic_users=9"], "--synthetic_users belongs to --format synth"),
    (["--split=given"], "--split given needs --train"),
    (["--train=b.csv"], "replace --input. Received: --input "),
    (["--num_buckets=0"], "--num_buckets must be at least 1"),
  ):
    status, err = run(*more)
    assert status == 2 and expected in err and err.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_config_is_checked():
  for kwargs in (
    {"split": "half"},
    {"test_fraction": 1.0},
    {"validation_fraction": -0.1},
    {"min_token_count": 0},
  ):
    with pytest.raises(ValueError, match="Received"):
      prepare.PrepareConfig(
        input=inputs.Input(format="synthetic"), output="x", **kwargs
      )
  for split in ("random", "leave_last"):
    with pytest.raises(ValueError, match="define the split; omit --split"):
      prepare.PrepareConfig(
        input=inputs.Input(train=("a",)), output="x", split=split
      )
  with pytest.raises(ValueError, match="--test needs --train"):
    inputs.Input(test=("a",))
  with pytest.raises(ValueError, match="omit --tfds_split"):
    inputs.Input(paths=("a",), train=("b",), format="tfds", tfds_split="train")
  with pytest.raises(ValueError, match="--input names the file"):
    inputs.Input()
  with pytest.raises(ValueError, match="Received: 'excel'"):
    inputs.Input(paths=("a",), format="excel")
  with pytest.raises(ValueError, match="need each other"):
    inputs.Columns(rating="r")
  with pytest.raises(ValueError, match="`separator` must not be empty"):
    inputs.Columns(separator="")
  for kwargs, flag in (
    ({"columns": inputs.Columns(user="u")}, "--user_column"),
    ({"item_file": "items.csv"}, "--item_file"),
    ({"paths": ("a.csv",)}, "--input"),
    ({"train": ("a.csv",)}, "--train"),
  ):
    with pytest.raises(ValueError, match=f"has no {flag}"):
      inputs.Input(format="synthetic", **kwargs)
