"""Side features of users and items from atomic, CSV, TSV or Parquet files.

These tables are held in memory; the size of a data set's tables, not of its
interactions, is what bounds the memory of `pipelines.prepare`.
"""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet as pq

from xir_tfrs.data import errors
from xir_tfrs.data.files import columns, delimited, headers, text

_TEXT_KINDS = {
  "token": "string",
  "token_seq": "string",
  "float": "float?",
  "float_seq": "string",
}
PARQUET = (".parquet", ".pq")
_FORMATS = {".user": "atomic", ".item": "atomic", ".csv": "csv", ".tsv": "tsv"}


@dataclasses.dataclass(frozen=True)
class SideTable:
  """Side features of users or items as they stand in the input.

  Attributes:
    ids: [rows] original ids, each once.
    kinds: feature -> kind.
    columns: feature -> token: string array; token_seq: list array of strings;
      float: float32 [rows]; float_seq: float32 [rows, length]; NaN missing.
  """

  ids: list[str]
  kinds: dict[str, str]
  columns: dict[str, pa.Array | np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Raw:
  """A side file as read: columns and where each row stands.

  Attributes:
    ids: string array.
    columns: feature -> string array, float64 array or list array.
    path, lines: the file and the line (Parquet: the row) of each row.
    unit: "line" or "row".
  """

  ids: pa.Array
  columns: dict[str, pa.Array | np.ndarray]
  path: str
  lines: np.ndarray
  unit: str

  def error(self, row: int, column: str, message: str) -> errors.DataError:
    where = {self.unit: int(self.lines[row])}
    return errors.DataError(message, path=self.path, column=column, **where)


def read(
  path: pathlib.Path,
  id_column: str,
  wanted: tuple[str, ...],
  flag: str,
  separator: str,
) -> SideTable:
  if path.suffix in PARQUET:
    header = dict.fromkeys(_parquet_schema(path).names)
    read = _read_parquet
  elif path.suffix in _FORMATS:
    file = delimited.DelimitedFile(
      path, *delimited.DIALECTS[_FORMATS[path.suffix]]
    )
    header = headers.typed(
      file.header, file.path, required=_FORMATS[path.suffix] == "atomic"
    )
    read = _read_text
  else:
    raise errors.DataError(
      "not a side file: its name must end in"
      f" {', '.join([*_FORMATS, *PARQUET])}",
      path=path,
    )
  headers.require_column(id_column, list(header), str(path))
  kinds = headers.side_kinds(header, id_column, wanted, str(path), flag)
  raw = read(path, id_column, kinds, list(header))
  _require_distinct(raw, id_column)
  return SideTable(
    ids=raw.ids.to_pylist(),
    kinds=kinds,
    columns={
      name: _convert(raw, name, kind, separator) for name, kind in kinds.items()
    },
  )


def _read_text(
  path: pathlib.Path, id_column: str, kinds: dict[str, str], names: list[str]
) -> _Raw:
  suffix = _FORMATS[path.suffix]
  file = delimited.DelimitedFile(path, *delimited.DIALECTS[suffix])
  wanted = {id_column: "id", **{n: _TEXT_KINDS[k] for n, k in kinds.items()}}
  parts = list(file.rows(names, wanted, text.CHUNK_BYTES))
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
  ids = values.pop(id_column)
  return _Raw(ids, values, str(path), np.concatenate(lines), "line")


def _read_parquet(
  path: pathlib.Path, id_column: str, kinds: dict[str, str], names: list[str]
) -> _Raw:
  del names
  table = pq.read_table(path, columns=[id_column, *kinds])
  ids = columns.id_strings(table.column(id_column), str(path), id_column, 0)
  if not len(ids):
    raise errors.DataError("no rows", path=path)
  values = {}
  for name, kind in kinds.items():
    column = columns.combined(table.column(name))
    if kind == "float":
      column = columns.floats(column, str(path), name)
    elif not _is_list(column):
      column = pc.fill_null(column.cast(pa.string()), "")
    values[name] = column
  return _Raw(ids, values, str(path), np.arange(1, len(ids) + 1), "row")


def _parquet_schema(path: pathlib.Path) -> pa.Schema:
  try:
    return pq.read_schema(path)
  except pa.ArrowInvalid as e:
    raise errors.DataError(
      f"empty, truncated or not a Parquet file ({e})", path=path
    ) from None


def _is_list(column: pa.Array | np.ndarray) -> bool:
  return not isinstance(column, np.ndarray) and (
    pa.types.is_list(column.type)
    or pa.types.is_large_list(column.type)
    or pa.types.is_fixed_size_list(column.type)
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
      raise raw.error(
        row,
        id_column,
        f"{value!r} stands twice, first in {raw.unit}"
        f" {raw.lines[first[value]]}; keep one row per id",
      )
    first[value] = row


def _convert(
  raw: _Raw, name: str, kind: str, separator: str
) -> pa.Array | np.ndarray:
  """The column as `SideTable` wants it."""
  column = raw.columns[name]
  is_list = _is_list(column)
  if kind in ("token", "float") and is_list:
    raise raw.error(0, name, f"holds lists, which kind {kind!r} cannot be")
  if kind == "token":
    return column
  if kind == "float":
    return column.astype(np.float32)
  lists = _without_empty(
    _as_string_lists(column) if is_list else pc.split_pattern(column, separator)
  )
  return lists if kind == "token_seq" else _vectors(raw, name, lists)


def _as_string_lists(column: pa.Array) -> pa.ListArray:
  """Any list array as lists of strings; null lists become empty."""
  lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  return pa.ListArray.from_arrays(offsets, column.flatten().cast(pa.string()))


def _without_empty(lists: pa.ListArray) -> pa.ListArray:
  values = pc.fill_null(lists.flatten(), "")
  keep = pc.not_equal(values, "").to_numpy(zero_copy_only=False)
  rows = pc.list_parent_indices(lists).to_numpy()[keep]
  lengths = np.bincount(rows, minlength=len(lists))
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  return pa.ListArray.from_arrays(offsets, values.filter(pa.array(keep)))


def _vectors(raw: _Raw, name: str, lists: pa.ListArray) -> np.ndarray:
  """Lists of numbers as float32 [rows, length]; an empty list is missing."""
  lengths = np.diff(lists.offsets.to_numpy())
  length = int(lengths.max(initial=0))
  wrong = np.flatnonzero((lengths != length) & (lengths != 0))
  if not length:
    raise raw.error(0, name, "no row of this float_seq column has a value")
  if wrong.size:
    raise raw.error(
      int(wrong[0]),
      name,
      f"{lengths[wrong[0]]} numbers where other rows have {length}; a"
      " float_seq has the same length in every row",
    )
  out = np.full([len(lists), length], np.nan, np.float32)
  try:
    values = lists.flatten().cast(pa.float32()).to_numpy()
  except pa.ArrowInvalid:
    raise _not_numbers(raw, name, lists) from None
  out[lengths > 0] = values.reshape(-1, length)
  return out


def _not_numbers(raw: _Raw, name: str, lists: pa.ListArray) -> errors.DataError:
  for row, values in enumerate(lists.to_pylist()):
    for value in values:
      try:
        float(value)
      except ValueError:
        return raw.error(row, name, f"{value!r} is not a number")
  return raw.error(0, name, "a value of this column is not a number")
