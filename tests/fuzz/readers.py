"""Broken files of interactions, compared with other parsers."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st
from pyarrow import feather, orc
from pyarrow import parquet as pq

from pipelines import prepare
from pipelines.readers import inputs, sources
from tests.fuzz import mutants
from tests.fuzz import targets as targets_lib
from xir_tfrs.data import directory, errors, schema
from xir_tfrs.data.files import side_tables

# User, item and time; None for values that the other parser does not know, such
# as the column `User-Id`, which we read as `user_id`.
Row = tuple[str | None, str | None, int | None]

_HEADER = ("user_id", "item_id", "timestamp")
_ROWS = (
  *(("u1", "é", 5), ("u2", "i 1", 3), ("u1", "7", 2**40), ("3", "7", 0)),
  *(("u,1", 'a "b"', 12), ("ü", "x;y|z", 13), ("-1", "1e5", 1_700_000_000)),
)
_COLUMNS = {"user": "user_id", "item": "item_id", "time": "timestamp"}
_CHUNKS = (1, 7, 64, 1 << 20)
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)
_ID = st.text(
  st.characters(codec="utf-8", exclude_characters="\0\r"),
  min_size=1,
  max_size=8,
)
_TIME = st.integers(0, 2**62)


def targets(folder: pathlib.Path) -> list[targets_lib.Target]:
  """Targets of mutated files and of generated valid files, by format."""
  folder.mkdir(parents=True)
  found = [
    _Text(folder / "csv.csv", _csv(","), _read_csv(","), delimiter=","),
    _Text(folder / "tsv.tsv", _csv("\t"), _read_csv("\t"), delimiter="tab"),
    _Text(folder / "json.jsonl", _json(), _read_json),
    _Text(folder / "inter.inter", _inter(), None),
    _Text(folder / "adjacency.txt", _adjacency(), _read_adjacency),
    _Text(
      folder / "gzip.csv.gz",
      gzip.compress(_csv(","), mtime=0),
      lambda content: _read_csv(",")(gzip.decompress(content)),
      delimiter=",",
    ),
    _Text(folder / "parquet.parquet", _table(pq.write_table), _read_parquet),
    _Text(folder / "arrow.arrow", _table(feather.write_feather), _read_arrow),
    _Text(folder / "orc.orc", _table(orc.write_table), _read_orc),
  ]
  return [
    *(one.target() for one in found),
    _made_csv(folder / "made.csv"),
    _made_json(folder / "made.jsonl"),
    _made_table(folder / "made.parquet"),
    _detected(folder),
    _side(folder),
    _prepared(folder / "prepared"),
  ]


class _Text:
  """Mutants of a file, read with the layout of the original."""

  def __init__(
    self,
    path: pathlib.Path,
    content: bytes,
    parse: Callable[[bytes], Iterable[Row]] | None,
    delimiter: str | None = None,
  ):
    self._path, self._content, self._parse = path, content, parse
    table = {"delimiter": delimiter, "quoting": "double", "header": True}
    self._layout = inputs.FileLayout(
      encoding="utf-8", **(table if delimiter else {})
    )
    self._format = {".gz": "csv", ".txt": "adjacency", ".jsonl": "json"}.get(
      path.suffix, path.suffix[1:].replace("inter", "atomic")
    )

  def target(self) -> targets_lib.Target:
    name = self._path.name.split(".")[0]
    of_bytes = mutants.of_bytes([self._content])
    return targets_lib.Target(
      name,
      st.tuples(of_bytes, st.sampled_from(_CHUNKS)),
      self.check,
      str(self._path),
    )

  def check(self, given: tuple[bytes, int]) -> None:
    content, chunk_bytes = given
    self._path.write_bytes(content)
    names = {} if self._format == "adjacency" else _COLUMNS
    found = _read(
      self._path,
      format=self._format,
      layout=self._layout,
      columns=inputs.Columns(
        **names,
        **({"time_format": "number", "time_unit": "s"} if names else {}),
      ),
      chunk_bytes=chunk_bytes,
    )
    if self._parse is not None:
      _assert_same(found, list(self._parse(content)))


def _read(path: pathlib.Path, **options: Any) -> list[Row]:
  source = sources.open_source(inputs.Input(paths=(str(path),), **options))
  rows: list[Row] = []
  for _, block in source.blocks():
    times = [None] * len(block.users) if block.times is None else block.times
    rows += zip(*block.strings(), times, strict=True)
  return rows


def _assert_same(found: Sequence[Row], expected: Sequence[Row]) -> None:
  """Compares rows; ignores values that the other parser does not know."""
  assert len(found) == len(expected), f"{found} instead of {expected}"
  for one, other in zip(found, expected, strict=True):
    for value, wanted in zip(one, other, strict=True):
      same = wanted is None or value == wanted
      assert same, f"{one} instead of {other}"


def _csv(delimiter: str) -> bytes:
  text = io.StringIO()
  writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
  writer.writerows([_HEADER, *_ROWS])
  return text.getvalue().encode()


def _read_csv(delimiter: str) -> Callable[[bytes], list[Row]]:
  def parse(content: bytes) -> list[Row]:
    text = content.decode("utf-8-sig")
    reader = csv.reader(
      io.StringIO(text, newline=""), delimiter=delimiter, strict=True
    )
    # A line with only white space is blank.
    header, *rows = [row for row in reader if delimiter.join(row).strip()]
    users, items, times = (
      [row[header.index(name)] if name in header else None for row in rows]
      for name in _HEADER
    )
    return list(zip(users, items, map(_time, times), strict=True))

  return parse


def _time(text: str | None) -> int | None:
  return int(text) if text and _WHOLE.fullmatch(text) else None


def _json() -> bytes:
  rows = (dict(zip(_HEADER, row, strict=True)) for row in _ROWS)
  return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _read_json(content: bytes) -> list[Row]:
  text = content.decode("utf-8-sig")
  rows = [json.loads(line) for line in text.split("\n") if line.strip()]
  return [
    (
      _id_of(row["user_id"]),
      _id_of(row["item_id"]),
      row["timestamp"] if type(row["timestamp"]) is int else None,
    )
    for row in rows
  ]


def _id_of(value: Any) -> str | None:
  if type(value) is int:
    return str(value)
  return value if isinstance(value, str) else None


def _inter() -> bytes:
  kinds = ("token", "token", "float")
  header = "\t".join(
    f"{name}:{kind}" for name, kind in zip(_HEADER, kinds, strict=True)
  )
  lines = ["\t".join(map(str, row)) for row in _ROWS]
  return "\n".join([header, *lines, ""]).encode()


def _adjacency() -> bytes:
  return "u1 a b\n\nu2\t c \nu3\n u1 é d\nu4 1 2 3\n".encode()


def _read_adjacency(content: bytes) -> list[Row]:
  lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
  words = [line.split() for line in lines]
  return [
    (row[0].decode(), item.decode(), None) for row in words for item in row[1:]
  ]


def _table(write: Callable[[pa.Table, Any], None]) -> bytes:
  users, items, times = (list(column) for column in zip(*_ROWS, strict=True))
  table = pa.table({"user_id": users, "item_id": items, "timestamp": times})
  sink = io.BytesIO()
  write(table, sink)
  return sink.getvalue()


def _read_parquet(content: bytes) -> list[Row]:
  return _of_table(pq.ParquetFile(io.BytesIO(content)).read())


def _read_arrow(content: bytes) -> list[Row]:
  return _of_table(pa.ipc.open_file(pa.BufferReader(content)).read_all())


def _read_orc(content: bytes) -> list[Row]:
  return _of_table(orc.ORCFile(pa.BufferReader(content)).read())


def _of_table(table: pa.Table) -> list[Row]:
  users, items, times = (
    table[name].to_pylist()
    if table.column_names.count(name) == 1
    else [None] * len(table)
    for name in _HEADER
  )
  return [
    (_id_of(user), _id_of(item), time if type(time) is int else None)
    for user, item, time in zip(users, items, times, strict=True)
  ]


def _made_csv(path: pathlib.Path) -> targets_lib.Target:
  """Valid files of any content and dialect; none may be refused."""

  def check(given) -> None:
    rows, delimiter, quoting, end, mark, chunk_bytes = given
    text = io.StringIO()
    writer = csv.writer(
      text, delimiter=delimiter, quoting=quoting, lineterminator=end
    )
    writer.writerows([_HEADER, *rows])
    path.write_bytes(mark + text.getvalue().encode())
    found = _read(
      path,
      format="csv",
      layout=inputs.FileLayout(
        delimiter=delimiter, encoding="utf-8", quoting="double", header=True
      ),
      columns=inputs.Columns(**_COLUMNS, time_format="number", time_unit="s"),
      chunk_bytes=chunk_bytes,
    )
    assert found == rows, f"{found} instead of {rows}"

  return targets_lib.Target(
    "made csv",
    st.tuples(
      st.lists(st.tuples(_ID, _ID, _TIME), min_size=1, max_size=6),
      st.sampled_from(",;|\t"),
      st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
      st.sampled_from(("\n", "\r\n")),
      st.sampled_from((b"", b"\xef\xbb\xbf")),
      st.sampled_from(_CHUNKS),
    ),
    _never_refused(check),
  )


def _made_json(path: pathlib.Path) -> targets_lib.Target:
  def check(given) -> None:
    rows, ascii_only, chunk_bytes = given
    lines = [
      json.dumps(dict(zip(_HEADER, row, strict=True)), ensure_ascii=ascii_only)
      for row in rows
    ]
    path.write_bytes("\n".join(lines).encode())
    found = _read(
      path,
      format="json",
      columns=inputs.Columns(**_COLUMNS, time_format="number", time_unit="s"),
      chunk_bytes=chunk_bytes,
    )
    assert found == rows, f"{found} instead of {rows}"

  return targets_lib.Target(
    "made json",
    st.tuples(
      st.lists(st.tuples(_ID, _ID, _TIME), min_size=1, max_size=6),
      st.booleans(),
      st.sampled_from(_CHUNKS),
    ),
    _never_refused(check),
  )


# Types of columns, and their values.
_TYPES: dict[pa.DataType, st.SearchStrategy[Any]] = {
  pa.string(): _ID,
  pa.large_string(): _ID,
  pa.binary(): st.binary(max_size=4),
  pa.int8(): st.integers(-(2**7), 2**7 - 1),
  pa.int64(): st.integers(-(2**63), 2**63 - 1),
  pa.uint64(): st.integers(0, 2**64 - 1),
  pa.float64(): st.floats(),
  pa.bool_(): st.booleans(),
  pa.decimal128(12, 2): st.decimals(-1000, 1000, places=2),
  pa.timestamp("ns"): st.integers(-(2**63), 2**63 - 1),
  pa.date32(): st.dates(),
  pa.duration("ms"): st.integers(-(2**40), 2**40),
  pa.list_(pa.string()): st.lists(_ID, max_size=3),
  pa.struct([("a", pa.int32())]): st.just({"a": 1}),
  pa.null(): st.none(),
}


def _made_table(path: pathlib.Path) -> targets_lib.Target:
  """Parquet files with columns of any type, and missing values."""

  @st.composite
  def table(draw) -> pa.Table:
    rows = draw(st.integers(0, 5))
    names = draw(
      st.lists(
        st.sampled_from((*_HEADER, "rating", "x", "user_id", "item_id")),
        min_size=1,
        max_size=5,
      )
    )
    arrays = []
    for name in names:
      simple = name in _HEADER and draw(st.booleans())
      kinds = [pa.string(), pa.int64()] if simple else list(_TYPES)
      kind = draw(st.sampled_from(kinds))
      value = st.none() | _TYPES[kind] if not simple else _TYPES[kind]
      values = draw(st.lists(value, min_size=rows, max_size=rows))
      arrays.append(pa.array(values, kind))
    return pa.Table.from_arrays(arrays, names)

  def check(table: pa.Table) -> None:
    pq.write_table(table, path, row_group_size=2)
    found = _read(path, format="parquet")
    names = table.column_names
    assert names.count("user_id") <= 1 and names.count("item_id") <= 1
    for place, name in enumerate(("user_id", "item_id")):
      if names.count(name) and not pa.types.is_list(table[name].type):
        expected = [_id_of(value) for value in table[name].to_pylist()]
        if len(expected) == len(found):  # Lists of items give more rows.
          for row, value in zip(found, expected, strict=True):
            assert value is None or row[place] == value, (row, value)

  return targets_lib.Target("made parquet", table(), check, str(path))


def _detected(folder: pathlib.Path) -> targets_lib.Target:
  """Mutants whose layout is detected; errors must name the file."""
  kinds = {
    "a.csv": _csv(","),
    "b.tsv": _csv("\t"),
    "c.txt": _adjacency(),
    "d.jsonl": _json(),
    "e.inter": _inter(),
    "f.dat": _csv(";"),
    "g.parquet": _table(pq.write_table),
    "h.csv": _csv(",").decode().encode("utf-16"),
    "i": _csv("|"),
  }

  def check(given: tuple[str, bytes]) -> None:
    name, content = given
    path = folder / name
    path.write_bytes(content)
    try:
      for user, item, _ in _read(path):
        assert user and item
    except errors.DataError as error:
      assert str(path) in str(error), str(error)
      raise

  return targets_lib.Target(
    "detected",
    st.sampled_from(sorted(kinds)).flatmap(
      lambda name: st.tuples(st.just(name), mutants.of_bytes([kinds[name]]))
    ),
    check,
  )


def _side(folder: pathlib.Path) -> targets_lib.Target:
  """Mutants of a file with side features."""
  path = folder / "side.item"
  content = (
    "item_id:token\tprice:float\ttags:token_seq\tplace:float_seq\tname:token\n"
    "1\t1.5\ta b\t1 2\tx\n2\t\t\t\t\n3\t-1e3\tc\t0 -1\té\n"
  ).encode()

  def check(content: bytes) -> None:
    path.write_bytes(content)
    table = side_tables.read(str(path), "item_id", (), "--item_features")
    for column in table.columns.values():
      del column

  return targets_lib.Target(
    "side features", mutants.of_bytes([content]), check, str(path)
  )


def _prepared(folder: pathlib.Path) -> targets_lib.Target:
  """Mutants as input of `prepare`, which must not leave partial output."""
  folder.mkdir()
  path, output = folder / "in.csv", folder / "out"
  rows = "".join(f"u{n % 7},i{n % 5},{n}\n" for n in range(35))
  content = f"user_id,item_id,timestamp\n{rows}".encode()

  def check(content: bytes) -> None:
    path.write_bytes(content)
    try:
      with contextlib.redirect_stdout(io.StringIO()):
        prepare.prepare(
          prepare.PrepareConfig(
            input=inputs.Input(paths=(str(path),)), output=str(output)
          )
        )
      data = directory.DataDir(output)
      found = sum(len(data.rows(split)["query_id"]) for split in schema.SPLITS)
      assert 0 < found <= content.count(b"\n") + content.count(b"\r") + 1
      shutil.rmtree(output)
    finally:
      assert [file.name for file in folder.iterdir()] == [path.name]

  return targets_lib.Target(
    "prepared", mutants.of_bytes([content]), check, str(path)
  )


def _never_refused(check: Callable[[Any], None]) -> Callable[[Any], None]:
  def wrapped(given: Any) -> None:
    try:
      check(given)
    except errors.DataError as error:
      raise AssertionError(f"refused: {error}") from error

  return wrapped
