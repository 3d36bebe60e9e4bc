"""Typed arrow columns (Parquet, TFDS) as ids, times and numbers, checked.

Positions are rows: `first_row` is the 0-based row of the column's first value.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xir_tfrs.data import errors

ArrowColumn = pa.Array | pa.ChunkedArray


def combined(column: ArrowColumn) -> pa.Array:
  """One plain array, dictionaries decoded, long offsets made short."""
  if isinstance(column, pa.ChunkedArray):
    column = column.combine_chunks()
  if isinstance(column, pa.ChunkedArray):  # Some versions: zero chunks.
    column = pa.concat_arrays(column.chunks)
  if pa.types.is_dictionary(column.type):
    column = column.dictionary_decode()
  return column


def id_strings(
  column: ArrowColumn, path: str, name: str, first_row: int
) -> pa.Array:
  """Ids as strings; strings, bytes and integers are ids."""
  column = combined(column)
  _require_no_null(column, path, name, first_row, "empty id")
  kind = column.type
  if not (
    pa.types.is_integer(kind)
    or pa.types.is_string(kind)
    or pa.types.is_large_string(kind)
    or pa.types.is_binary(kind)
    or pa.types.is_large_binary(kind)
  ):
    raise errors.DataError(
      f"ids of type {kind}; expected strings or integers",
      path=path,
      column=name,
    )
  try:
    ids = column.cast(pa.string())
  except pa.ArrowInvalid:
    raise _not_utf8(column, path, name, first_row) from None
  empty = np.flatnonzero(pc.binary_length(ids).to_numpy() == 0)
  if empty.size:
    raise errors.DataError(
      "empty id", path=path, row=first_row + int(empty[0]) + 1, column=name
    )
  return ids


def times(
  column: ArrowColumn, path: str, name: str, first_row: int
) -> np.ndarray:
  """Times as int64; dates and timestamps become Unix seconds."""
  column = combined(column)
  _require_no_null(column, path, name, first_row, "no time")
  if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
    column = pc.floor_temporal(column.cast(pa.timestamp("us")), unit="second")
    return column.cast(pa.int64()).to_numpy() // 1_000_000
  _require_number(column, path, name, "times")
  values = checked_times(column.to_numpy(zero_copy_only=False))
  if values is None:
    raise errors.DataError(
      "a time is not a whole number; store times as integers or timestamps",
      path=path,
      column=name,
    )
  return values


def floats(column: ArrowColumn, path: str, name: str) -> np.ndarray:
  """float64 values; null becomes NaN."""
  column = combined(column)
  if pa.types.is_boolean(column.type):
    column = column.cast(pa.int8())
  _require_number(column, path, name, "numbers")
  return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def required_floats(
  column: ArrowColumn, path: str, name: str, first_row: int
) -> np.ndarray:
  """float64 values, all finite."""
  values = floats(column, path, name)
  wrong = np.flatnonzero(~np.isfinite(values))
  if wrong.size:
    raise errors.DataError(
      "missing or not a finite number",
      path=path,
      row=first_row + int(wrong[0]) + 1,
      column=name,
    )
  return values


def _require_number(column: pa.Array, path: str, name: str, what: str) -> None:
  if not (
    pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
  ):
    raise errors.DataError(
      f"type {column.type}, expected {what}", path=path, column=name
    )


def _require_no_null(
  column: pa.Array, path: str, name: str, first_row: int, message: str
) -> None:
  if column.null_count:
    row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
    raise errors.DataError(
      message, path=path, row=first_row + row + 1, column=name
    )


def _not_utf8(
  column: pa.Array, path: str, name: str, first_row: int
) -> errors.DataError:
  for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
    try:
      value.decode("utf-8")
    except UnicodeDecodeError:
      return errors.DataError(
        f"{value!r} is not UTF-8",
        path=path,
        row=first_row + row + 1,
        column=name,
      )
  return errors.DataError("not UTF-8", path=path, column=name)


def checked_times(values: np.ndarray) -> np.ndarray | None:
  """int64 times, or None if a value is not a whole number held exactly."""
  if values.dtype.kind in "iu":
    return values.astype(np.int64, copy=False)
  whole = values == np.trunc(values)
  # Above 2^53 a float64 no longer tells neighbouring integers apart.
  if not np.all(whole & (np.abs(values) <= 2**53)):
    return None
  return values.astype(np.int64)
