"""Side features of users and items, from files of rows.

    FILE.item, FILE.user   RecBole's atomic format, `item_id:token  price:float`
    FILE.csv, FILE.tsv     delimited text with a header line
    FILE.parquet, FILE.pq  lists for sequences
    FILE.tfrecord          `tf.train.Example`s, see `example_files`

These tables are held in memory; the size of a data set's tables, not of its
interactions, is what bounds the memory of `pipelines.prepare`.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet as pq

from xir_tfrs.data import errors
from xir_tfrs.data.files import (
  columns,
  delimited,
  example_files,
  headers,
  text,
)

_TEXT_KINDS = {
  "token": "string",
  "token_seq": "string",
  "float": "float?",
  "float_seq": "string",
}
PARQUET = (".parquet", ".pq")
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Places:
  """Where the rows of a table stand in their file.

  Attributes:
    path: the file.
    unit: what `numbers` count, "line" or "row".
    numbers: [rows], from 1.
  """

  path: str
  unit: str
  numbers: np.ndarray

  def error(self, row: int, column: str, message: str) -> errors.DataError:
    where = {self.unit: int(self.numbers[row])}
    return errors.DataError(message, path=self.path, column=column, **where)


@dataclasses.dataclass(frozen=True)
class SideTable:
  """Side features of users or items as they stand in the input.

  Attributes:
    ids: [rows] original ids, each once.
    kinds: feature -> kind.
    columns: feature -> token: string array; token_seq: list array of strings;
      float: float32 [rows]; float_seq: float32 [rows, length]; NaN missing.
    places: of the rows, if the table is from a file.
  """

  ids: list[str]
  kinds: dict[str, str]
  columns: dict[str, pa.Array | np.ndarray]
  places: Places | None = None


@dataclasses.dataclass(frozen=True)
class _Raw:
  """A side file as read.

  Attributes:
    ids: string array.
    columns: feature -> any array; float64 may be NumPy's.
    places: of the rows.
  """

  ids: pa.Array
  columns: dict[str, pa.Array | np.ndarray]
  places: Places


@dataclasses.dataclass(frozen=True)
class SideFile:
  """A side file whose columns are known and whose rows are not read yet.

  Attributes:
    path: the file.
    header: column -> the kind that the file gives it, or None; in file order.
  """

  path: pathlib.Path
  header: dict[str, str | None]
  _load: Callable[[str, dict[str, str]], _Raw]

  def read(
    self,
    id_column: str,
    kinds: dict[str, str],
    separator: str,
    lengths: Mapping[str, int] | None = None,
  ) -> SideTable:
    """Reads and checks the rows.

    Args:
      id_column: the column of ids.
      kinds: feature -> kind, all of them columns of the file.
      separator: between the values of a sequence in text.
      lengths: float_seq feature -> the length that it must have; without one,
        all rows must agree.

    Raises:
      DataError: a value is not of the kind of its column, an id is empty or
        stands twice, or there are no rows.
    """
    raw = self._load(id_column, kinds)
    if not len(raw.ids):
      raise errors.DataError("no rows", path=self.path)
    _require_distinct(raw, id_column)
    return SideTable(
      ids=raw.ids.to_pylist(),
      kinds=kinds,
      columns={
        name: _convert(raw, name, kind, separator, (lengths or {}).get(name))
        for name, kind in kinds.items()
      },
      places=raw.places,
    )


def read(
  path: pathlib.Path,
  id_column: str,
  wanted: tuple[str, ...],
  flag: str,
  separator: str,
) -> SideTable:
  """Reads the features named in `wanted`, or all that have a kind.

  Args:
    path: the file.
    id_column: the column of ids.
    wanted: as in `headers.side_kinds`.
    flag: the flag that `wanted` came from, for errors.
    separator: between the values of a sequence in text.
  """
  file = open_file(path)
  headers.require_column(id_column, list(file.header), str(path))
  kinds = headers.side_kinds(file.header, id_column, wanted, str(path), flag)
  return file.read(id_column, kinds, separator)


def open_file(path: pathlib.Path) -> SideFile:
  """Reads the header of a side file; its name says the format."""
  if path.suffix not in _OPENERS:
    raise errors.DataError(
      "not a file of side features: its name must end in"
      f" {', '.join(_OPENERS)}",
      path=path,
    )
  try:
    with path.open("rb"):
      pass
  except OSError as error:
    raise errors.DataError(
      f"cannot be read ({error.strerror})", path=path
    ) from None
  header, load = _OPENERS[path.suffix](path)
  if not header:
    raise errors.DataError("empty; expected rows with named columns", path=path)
  return SideFile(path, header, load)


_Opened = tuple[dict[str, str | None], Callable[[str, dict[str, str]], _Raw]]


def _open_text(path: pathlib.Path, dialect: str) -> _Opened:
  file = delimited.DelimitedFile(path, *delimited.DIALECTS[dialect])
  header = headers.typed(file.header, file.path, required=dialect == "atomic")

  def load(id_column: str, kinds: dict[str, str]) -> _Raw:
    # Last, as the ids may be a feature too.
    wanted = {n: _TEXT_KINDS[k] for n, k in kinds.items()} | {id_column: "id"}
    parts = list(file.rows(list(header), wanted, text.CHUNK_BYTES))
    if not parts:
      raise errors.DataError("no rows below the header", path=path, line=1)
    values = {
      name: _concatenate([part.columns[name] for part in parts])
      for name in wanted
    }
    lines = [
      part.lines
      if isinstance(part.lines, np.ndarray)
      else np.arange(part.lines, part.lines + len(part.columns[id_column]))
      for part in parts
    ]
    places = Places(str(path), "line", np.concatenate(lines))
    return _Raw(values[id_column], values, places)

  return header, load


def _open_parquet(path: pathlib.Path) -> _Opened:
  def load(id_column: str, kinds: dict[str, str]) -> _Raw:
    names = list(dict.fromkeys([id_column, *kinds]))
    table = _checked(path, lambda: pq.read_table(path, columns=names))
    return _of_rows(
      path, id_column, {name: table.column(name) for name in names}
    )

  names = _checked(path, lambda: pq.read_schema(path)).names
  return headers.untyped(names, str(path)), load


def _checked(path: pathlib.Path, read: Callable):
  """What a function of pyarrow's returns, its errors with the file's name."""
  try:
    return read()
  except (pa.ArrowException, OSError) as error:
    raise errors.DataError(
      f"empty, truncated or not a Parquet file ({error})", path=path
    ) from None


def _open_examples(path: pathlib.Path) -> _Opened:
  file = example_files.ExampleFile(path)

  def load(id_column: str, kinds: dict[str, str]) -> _Raw:
    return _of_rows(path, id_column, file.read(id_column, kinds))

  return dict.fromkeys(file.names), load


def _of_rows(
  path: pathlib.Path, id_column: str, values: dict[str, columns.ArrowColumn]
) -> _Raw:
  """A table whose places are its rows."""
  ids = columns.id_strings(values[id_column], str(path), id_column, 0)
  return _Raw(
    ids,
    {name: columns.combined(column) for name, column in values.items()},
    Places(str(path), "row", np.arange(1, len(ids) + 1)),
  )


_OPENERS: dict[str, Callable[[pathlib.Path], _Opened]] = {
  ".user": functools.partial(_open_text, dialect="atomic"),
  ".item": functools.partial(_open_text, dialect="atomic"),
  ".csv": functools.partial(_open_text, dialect="csv"),
  ".tsv": functools.partial(_open_text, dialect="tsv"),
  **dict.fromkeys(PARQUET, _open_parquet),
  ".tfrecord": _open_examples,
}


def _is_list(column: pa.Array | np.ndarray) -> bool:
  return not isinstance(column, np.ndarray) and (
    pa.types.is_list(column.type)
    or pa.types.is_large_list(column.type)
    or pa.types.is_fixed_size_list(column.type)
  )


def _is_text(column: pa.Array) -> bool:
  return (
    pa.types.is_string(column.type)
    or pa.types.is_large_string(column.type)
    or pa.types.is_binary(column.type)
    or pa.types.is_large_binary(column.type)
  )


def _concatenate(
  parts: list[pa.Array | np.ndarray],
) -> pa.Array | np.ndarray:
  if isinstance(parts[0], np.ndarray):
    return np.concatenate(parts)
  return pa.concat_arrays(parts)


def _require_distinct(raw: _Raw, id_column: str) -> None:
  if pc.count_distinct(raw.ids).as_py() == len(raw.ids):
    return
  first: dict[str, int] = {}
  for row, value in enumerate(raw.ids.to_pylist()):
    if value in first:
      raise raw.places.error(
        row,
        id_column,
        f"{value!r} stands twice, first in {raw.places.unit}"
        f" {raw.places.numbers[first[value]]}; keep one row per id",
      )
    first[value] = row


def _convert(
  raw: _Raw, name: str, kind: str, separator: str, length: int | None
) -> pa.Array | np.ndarray:
  """The column as `SideTable` wants it."""
  column, places = raw.columns[name], raw.places
  is_list = _is_list(column)
  if kind in ("token", "float") and is_list:
    raise places.error(0, name, f"holds lists, which kind {kind!r} cannot be")
  if kind == "token":
    return _strings(column, places, name)
  if kind == "float":
    return _numbers(column, places, name)
  if not is_list:
    column = pc.split_pattern(_strings(column, places, name), separator)
    column = _without_empty(column)
  if kind == "float_seq":
    return _vectors(column, places, name, length)
  offsets = _offsets(column)
  rows = np.repeat(np.arange(len(column)), np.diff(offsets.to_numpy()))
  tokens = _strings(column.flatten(), places, name, rows)
  return _without_empty(pa.ListArray.from_arrays(offsets, tokens))


def _strings(
  column: pa.Array,
  places: Places,
  name: str,
  rows: np.ndarray | None = None,
) -> pa.Array:
  """A column as strings; null becomes "". `rows` as in `_numbers`."""
  try:
    return pc.fill_null(column.cast(pa.string()), "")
  except pa.ArrowException as error:
    problem, place = f"cannot be read as tokens ({error})", 0
    for i, value in enumerate(column.to_pylist()):
      if isinstance(value, bytes) and not _is_utf8(value):
        problem, place = f"{value!r} is not UTF-8", i
        break
  row = place if rows is None else int(rows[place])
  raise places.error(row, name, problem)


def _is_utf8(value: bytes) -> bool:
  try:
    value.decode()
  except UnicodeDecodeError:
    return False
  return True


def _numbers(
  column: pa.Array | np.ndarray,
  places: Places,
  name: str,
  rows: np.ndarray | None = None,
) -> np.ndarray:
  """A column as float32; what is missing becomes NaN.

  Args:
    column: numbers, or text that holds them.
    places: of the rows.
    name: of the column.
    rows: `[values]` the row of each value; None if they are the rows.
  """

  def error(place: int, message: str) -> errors.DataError:
    row = place if rows is None else int(rows[place])
    return places.error(row, name, message)

  if isinstance(column, np.ndarray):
    values = column
  elif pa.types.is_null(column.type):
    values = np.full(len(column), np.nan)
  elif _is_text(column):
    values = np.full(len(column), np.nan)
    texts = _strings(column, places, name, rows).to_pylist()
    for place, value in enumerate(texts):
      if value in delimited.MISSING:
        continue
      number = delimited.parse_number(value)
      if number is None:
        raise error(place, f"{value!r} is not a number")
      values[place] = number
  else:
    values = columns.floats(column, places.path, name)
  # One such value would make the statistics of its feature infinite, and all
  # that is computed with them.
  wrong = np.flatnonzero(np.abs(values) > _FLOAT32_MAX)
  if wrong.size:
    raise error(
      int(wrong[0]),
      f"{values[wrong[0]]} is infinite or too large for a float32; leave the"
      " value empty where it is not known",
    )
  return values.astype(np.float32)


def _offsets(lists: pa.Array) -> pa.Array:
  """Offsets of `lists.flatten()`; null lists are empty."""
  lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
  return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _without_empty(lists: pa.ListArray) -> pa.ListArray:
  """Lists of strings without those that are ""."""
  values = lists.flatten()
  keep = pc.not_equal(values, "").to_numpy(zero_copy_only=False)
  rows = pc.list_parent_indices(lists).to_numpy()[keep]
  lengths = np.bincount(rows, minlength=len(lists))
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  return pa.ListArray.from_arrays(offsets, values.filter(pa.array(keep)))


def _vectors(
  lists: pa.Array, places: Places, name: str, length: int | None
) -> np.ndarray:
  """Lists of numbers as float32 [rows, length]; an empty list is missing."""
  lengths = np.diff(_offsets(lists).to_numpy())
  expected = "the feature has"
  if length is None:
    length, expected = int(lengths.max(initial=0)), "other rows have"
  if not length:
    raise places.error(0, name, "no row of this float_seq column has a value")
  wrong = np.flatnonzero((lengths != length) & (lengths != 0))
  if wrong.size:
    raise places.error(
      int(wrong[0]),
      name,
      f"{lengths[wrong[0]]} numbers where {expected} {length}; a"
      " float_seq has the same length in every row",
    )
  out = np.full([len(lists), length], np.nan, np.float32)
  rows = np.repeat(np.arange(len(lists)), lengths)
  values = _numbers(lists.flatten(), places, name, rows)
  out[lengths > 0] = values.reshape(-1, length)
  return out
