"""Converts columns of a file to ids, tokens, times and numbers.

All functions take a `column`, its `name`, and the `places` of its rows. They
raise a `DataError` that names the first bad value and its row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xir_tfrs.data.files import places as places_lib

ArrowColumn: TypeAlias = pa.Array | pa.ChunkedArray
# Texts that mean a missing number.
MISSING = ("", "nan", "NaN", "NA", "null", "NULL", "None")
_DECIMAL_COMMA = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?$"
_THOUSANDS = r"^[+-]?\d{1,3}(,\d{3})+$"
_FLOAT32_MAX = float(np.finfo(np.float32).max)


def plain(column: ArrowColumn) -> pa.Array:
  """Returns one array without chunks, dictionaries or string views."""
  if isinstance(column, pa.ChunkedArray):
    column = column.combine_chunks()
  if isinstance(column, pa.ChunkedArray):  # Some versions: empty columns.
    column = pa.concat_arrays(column.chunks)
  if pa.types.is_dictionary(column.type):
    column = column.dictionary_decode()
  return column


def is_list(column: pa.Array | np.ndarray) -> bool:
  return not isinstance(column, np.ndarray) and is_list_type(column.type)


def is_list_type(kind: pa.DataType) -> bool:
  return (
    pa.types.is_list(kind)
    or pa.types.is_large_list(kind)
    or pa.types.is_fixed_size_list(kind)
  )


def is_number(kind: pa.DataType) -> bool:
  return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def ids(column: ArrowColumn, name: str, places: places_lib.Places) -> pa.Array:
  """Ids as strings, or as int64, which are faster and stand for their digits.

  Accepts strings, bytes, integers and whole doubles.
  """
  column = plain(column)
  require_no_null(column, name, places, "empty id")
  if pa.types.is_floating(column.type):
    column = _whole_ids(column, name, places)
  is_integer = pa.types.is_integer(column.type)
  if is_integer and not pa.types.is_uint64(column.type):
    return column.cast(pa.int64())
  if not (is_integer or is_text(column.type)):
    raise places.error(
      None, name, f"ids of type {column.type}; expected strings or integers"
    )
  text = strings(column, name, places)
  empty = np.flatnonzero(pc.binary_length(text).to_numpy() == 0)
  if empty.size:
    raise places.error(int(empty[0]), name, "empty id")
  return text


def id_strings(
  column: ArrowColumn, name: str, places: places_lib.Places
) -> pa.Array:
  """Like `ids`, all as strings."""
  return ids(column, name, places).cast(pa.string())


def _whole_ids(
  column: pa.Array, name: str, places: places_lib.Places
) -> pa.Array:
  """Doubles as integers: pandas turns 12 into 12.0 if any id is missing."""
  values = column.to_numpy(zero_copy_only=False)
  whole = whole_numbers(values)
  if whole is not None:
    return pa.array(whole)
  wrong = ~((values == np.trunc(values)) & (np.abs(values) < 2**53))
  row = int(np.flatnonzero(wrong)[0])
  raise places.error(
    row, name, f"{values[row]} is not an id: expected a whole number or text"
  )


def strings(
  column: ArrowColumn, name: str, places: places_lib.Places
) -> pa.Array:
  """Values of any simple type as strings; null becomes ""."""
  column = plain(column)
  try:
    column = column.cast(pa.string())
    column.validate(full=True)  # Typed files may hold invalid UTF-8.
  except pa.ArrowException:
    if is_text(column.type):
      raise _first_error(column, name, places, _utf8) from None
    raise places.error(
      None, name, f"type {column.type}, expected ids or tokens"
    ) from None
  return pc.fill_null(column, "")


def titles(
  column: ArrowColumn, name: str, places: places_lib.Places
) -> pa.Array:
  """Titles of one line each; null becomes ""."""
  column = plain(column)
  if is_list(column):
    raise places.error(None, name, "holds lists, expected the text of a title")
  text = strings(column, name, places)
  # Removes line breaks and control characters of terminals.
  text = pc.replace_substring_regex(text, r"[\s\pC]+", " ")
  return pc.utf8_trim_whitespace(text)


def whole_numbers(values: np.ndarray) -> np.ndarray | None:
  """int64 values, or None if one is not exactly a whole number."""
  if values.dtype.kind == "u" and values.max(initial=0) >= 2**63:
    return None
  if values.dtype.kind in "iu":
    return values.astype(np.int64, copy=False)
  # From 2^53 on, float64 cannot represent all integers.
  if not np.all((values == np.trunc(values)) & (np.abs(values) < 2**53)):
    return None
  return values.astype(np.int64)


def numbers(
  column: ArrowColumn, name: str, places: places_lib.Places
) -> np.ndarray:
  """float64 values of numbers or text; null and `MISSING` become NaN."""
  column = plain(column)
  if pa.types.is_boolean(column.type):
    column = column.cast(pa.int8())
  if is_text(column.type):
    column = pc.utf8_trim_whitespace(strings(column, name, places))
    missing = pc.is_in(column, value_set=pa.array(MISSING))
    column = pc.if_else(missing, pa.scalar(None, pa.string()), column)
    try:
      column = column.cast(pa.float64())
    except pa.ArrowInvalid:
      raise _first_error(column, name, places, _number) from None
  elif not (pa.types.is_null(column.type) or pa.types.is_decimal(column.type)):
    _require_number(column, name, places, "numbers")
  return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def decimal_points(column: ArrowColumn) -> ArrowColumn:
  """Text with decimal commas (9,50 and 1.234,50) with points in their place.

  Takes a whole column, as a part may not show how the rest is meant. Other
  columns, and those whose commas may all be of thousands (1,234), stay as they
  are.
  """
  column = plain(column)
  if not is_text(column.type):
    return column
  values = pc.utf8_trim_whitespace(column.cast(pa.string()))
  missing = pc.is_in(values, value_set=pa.array(MISSING))
  there = values.filter(pc.invert(missing)).drop_null()
  commas = there.filter(pc.match_substring(there, ","))
  thousands = pc.match_substring_regex(commas, _THOUSANDS)
  if pc.all(thousands, min_count=0).as_py():  # True where no comma is.
    return column
  if not pc.all(pc.match_substring_regex(there, _DECIMAL_COMMA)).as_py():
    return column
  values = pc.replace_substring(values, ".", "")
  return pc.replace_substring(values, ",", ".")


def finite(
  column: ArrowColumn, name: str, places: places_lib.Places
) -> np.ndarray:
  """float64 values; raises if one is missing or not finite."""
  values = numbers(column, name, places)
  wrong = np.flatnonzero(~np.isfinite(values))
  if wrong.size:
    raise places.error(int(wrong[0]), name, "missing or not a finite number")
  return values


def float32(
  values: np.ndarray, name: str, places: places_lib.Places
) -> np.ndarray:
  """Numbers as float32; keeps NaN, raises if a value overflows."""
  wrong = np.flatnonzero(np.abs(values) > _FLOAT32_MAX)
  if wrong.size:
    raise places.error(
      int(wrong[0]),
      name,
      f"{values[wrong[0]]:g} is infinite or too large; a number is at most"
      f" {_FLOAT32_MAX:.2e}, leave the field empty if there is none",
    )
  return values.astype(np.float32)


def weights(
  values: np.ndarray, name: str, places: places_lib.Places
) -> np.ndarray:
  """Weights of rows as float32; raises unless finite and not negative."""
  wrong = np.flatnonzero(~((values >= 0) & (values <= _FLOAT32_MAX)))
  if wrong.size:
    raise places.error(
      int(wrong[0]),
      name,
      f"{values[wrong[0]]} is not a weight; a weight lies between 0 and"
      f" {_FLOAT32_MAX:.2e}",
    )
  return values.astype(np.float32)


def parse_number(value: str) -> float | None:
  """Parses a number; None if it is none."""
  try:
    # Python parses 1_000 as a number; no other program does.
    return None if "_" in value else float(value)
  except ValueError:
    return None


def is_text(kind: pa.DataType) -> bool:
  return (
    pa.types.is_string(kind)
    or pa.types.is_large_string(kind)
    or pa.types.is_string_view(kind)
    or pa.types.is_binary(kind)
    or pa.types.is_large_binary(kind)
  )


def _require_number(
  column: pa.Array, name: str, places: places_lib.Places, what: str
) -> None:
  if not is_number(column.type):
    raise places.error(None, name, f"type {column.type}, expected {what}")


def require_no_null(
  column: pa.Array, name: str, places: places_lib.Places, message: str
) -> None:
  if column.null_count:
    row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
    raise places.error(row, name, message)


def _utf8(value: bytes) -> None:
  try:
    value.decode("utf-8")
  except UnicodeDecodeError:
    raise ValueError(f"{value!r} is not UTF-8") from None


def _number(value: str) -> None:
  if parse_number(value) is None:
    point = "; write the decimal point as a point" if "," in value else ""
    raise ValueError(f"{value!r} is not a number{point}")


def _first_error(
  column: pa.Array,
  name: str,
  places: places_lib.Places,
  check: Callable[[Any], None],
) -> Exception:
  """The error for the first value that `check` refuses."""
  if check is _utf8:
    column = column.cast(pa.large_binary())
  for row, value in enumerate(column.to_pylist()):
    try:
      if value is not None:
        check(value)
    except ValueError as e:
      return places.error(row, name, str(e))
  return places.error(None, name, f"a value of type {column.type} is invalid")
