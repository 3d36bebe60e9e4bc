"""Parses times: numbers, ISO 8601 and other date formats.

All times of an input become int64 in one unit: the unit of its numbers, or
seconds, or the coarsest unit that holds the fractions of the first rows. A time
that does not fit this unit raises an error and is never rounded silently.
"""

from __future__ import annotations

import dataclasses
import decimal
import re
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from xir_tfrs.data import errors
from xir_tfrs.data.files import columns, places

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Upper limits of times in each unit: the year 2300 in seconds is before 1973 in
# milliseconds. Numbers below the first limit are not Unix times.
_LARGEST = {"s": 10**10, "ms": 10**13, "us": 10**16, "ns": 2**63}
_SMALLEST_UNIX = 10**8
_WORDS = {
  "s": "seconds",
  "ms": "milliseconds",
  "us": "microseconds",
  "ns": "nanoseconds",
}
_ISO = re.compile(
  r"\s*[12]\d{3}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,](?P<fraction>\d+))?)?"
  r"\s*(?P<zone>Z|UTC|[+-]\d\d(:?\d\d)?)?)?\s*"
)
_NUMBER = re.compile(r"\s*[+-]?\d+(\.(?P<fraction>\d*))?([eE][+-]?\d+)?\s*")
_DAYS = (
  "%m/%d/%Y",
  "%d/%m/%Y",
  "%m/%d/%y",
  "%d/%m/%y",
  "%Y/%m/%d",
  "%d-%m-%Y",
  "%m-%d-%Y",
  "%d.%m.%Y",
  "%d.%m.%y",
  "%d-%b-%Y",
  "%d %b %Y",
  "%d %B %Y",
  "%b %d, %Y",
  "%B %d, %Y",
  "%m %d, %Y",
)
_CLOCKS = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p")
_FORMS = (
  # With twelve-hour clocks, months come before days.
  *(
    day + clock
    for day in _DAYS
    for clock in _CLOCKS
    if not ("%p" in clock and day in ("%d/%m/%Y", "%d/%m/%y"))
  ),
  "%Y-%m-%d %I:%M:%S %p",
  "%a %b %d %H:%M:%S %z %Y",
  "%a, %d %b %Y %H:%M:%S %z",
)
# Formats of digits alone, which are also numbers.
_COMPACT = {8: "%Y%m%d", 14: "%Y%m%d%H%M%S"}
_SAMPLE = 2000


def looks_like_one(text: str) -> bool:
  """Whether a field looks like a time: a date or a large number."""
  text = text.strip()
  if _ISO.fullmatch(text):
    return True
  if _NUMBER.fullmatch(text):
    return abs(float(text)) >= _SMALLEST_UNIX
  return bool(re.search(r"\d", text)) and any(_fitting([text]))


@dataclasses.dataclass(frozen=True)
class Times:
  """The format of the times of an input, and their unit after conversion.

  Attributes:
    form: "number"; "fraction" for Unix seconds with fractions, which are stored
      in a finer unit; "iso"; "typed" if the column has a time type; or a
      `strptime` format.
    unit: Unit of the int64 values; None for numbers that are not Unix times.
    example: An example from the input.
    has_zone: Whether the sampled times have a time zone.
    is_guessed: Whether the first times gave the unit, and not the user.
  """

  form: str
  unit: str | None
  example: str = ""
  has_zone: bool = False
  is_guessed: bool = False

  def __str__(self) -> str:
    if self.unit is None:
      return f"times {self.example} (numbers of no known unit)"
    if self.form == "number":
      return f"times {self.example} (Unix {_WORDS[self.unit]})"
    if self.form == "fraction":
      return f"times {self.example} (Unix seconds, kept in {_WORDS[self.unit]})"
    zone = "" if self.has_zone else " UTC"
    kept = "" if self.unit == "s" else f", kept in {_WORDS[self.unit]}"
    form = "" if self.form in ("iso", "typed") else f" ({self.form})"
    return f"times {self.example}{zone}{form}{kept}"

  def convert(
    self, column: columns.ArrowColumn, name: str, where: places.Places
  ) -> np.ndarray:
    """Converts times to [n] int64.

    Raises:
      DataError: A time is missing, has another format or unit, or has a
        fraction that the unit cannot hold.
    """
    column = columns.plain(column)
    columns.require_no_null(column, name, where, "no time")
    kind = column.type
    if pa.types.is_date(kind):
      column = column.cast(pa.timestamp("s"))
    if pa.types.is_timestamp(column.type):
      return self._typed(column, name, where)
    if columns.is_number(kind):
      return self._of_unit(self._number(column, name, where), name, where)
    if not columns.is_text(kind):
      raise where.error(None, name, f"type {kind}, expected times")
    text = columns.strings(column, name, where)
    if self.form in ("number", "fraction", "typed"):
      return self._of_unit(self._number_text(text, name, where), name, where)
    return self._dates(text, name, where)

  def _of_unit(
    self, values: np.ndarray, name: str, where: places.Places
  ) -> np.ndarray:
    """Returns the values; raises if one looks like another unit.

    Such rows would be before or after all others of their user.
    """
    if not self.is_guessed or self.unit is None:
      return values
    unit = "s" if self.form == "fraction" else self.unit
    written = values // self._scale
    limits = [_SMALLEST_UNIX - 1, *_LARGEST.values()]
    place = list(UNITS).index(unit)
    low, high = limits[place : place + 2]
    wrong = (written > high) | ((written > limits[0]) & (written <= low))
    if not wrong.any():
      return values
    row = int(np.flatnonzero(wrong)[0])
    other = _unit_of(written[row : row + 1])
    assert other is not None
    raise where.error(
      row,
      name,
      f"{written[row]} looks like Unix {_WORDS[other]}, but the first times are"
      f" {_WORDS[unit]}: write all times in one unit, or keep this one"
      f" with --time_unit {self.unit}",
    )

  def _typed(
    self, column: pa.Array, name: str, where: places.Places
  ) -> np.ndarray:
    values = column.cast(pa.int64()).to_numpy()
    have, want = UNITS[column.type.unit], UNITS[self.unit or "s"]
    if have <= want:
      return values * (want // have)
    cut = np.flatnonzero(values % (have // want))
    if cut.size:
      text = column.cast(pa.string())[int(cut[0])].as_py()
      raise self._fraction(int(cut[0]), text, name, where)
    return values // (have // want)

  @property
  def _scale(self) -> int:
    """The factor for numbers of the file."""
    return UNITS[self.unit or "s"] if self.form == "fraction" else 1

  def _number(
    self, column: pa.Array, name: str, where: places.Places
  ) -> np.ndarray:
    values = column.to_numpy(zero_copy_only=False)
    whole = columns.whole_numbers(values)
    if whole is not None:
      return whole * self._scale
    wrong = ~_is_whole(values)
    if self._scale > 1 and values.dtype.kind == "f":
      scaled = values.astype(np.float64) * self._scale
      # Ignores the rounding error of the double itself.
      slack = np.maximum(np.abs(scaled) * 2**-51, 1e-3)
      wrong = ~(np.abs(scaled - np.rint(scaled)) <= slack)
      wrong |= ~(np.abs(scaled) < 2**63)
      if not wrong.any():
        return np.rint(scaled).astype(np.int64)
    row = int(np.flatnonzero(wrong)[0])
    if np.isfinite(values[row]) and np.abs(values[row]) < 2**53:
      raise self._fraction(row, str(values[row]), name, where)
    raise self._not_whole(row, str(values[row]), name, where)

  def _number_text(
    self, text: pa.Array, name: str, where: places.Places
  ) -> np.ndarray:
    text = pc.utf8_trim_whitespace(text)
    try:
      return text.cast(pa.int64()).to_numpy() * self._scale
    except pa.ArrowInvalid:
      pass
    try:
      values = text.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
      values = np.full(len(text), np.nan)
    whole = columns.whole_numbers(values)
    if whole is not None:
      return whole * self._scale
    return np.array(
      [
        self._exact(value, row, name, where)
        for row, value in enumerate(text.to_pylist())
      ],
      np.int64,
    )

  def _exact(
    self, value: str, row: int, name: str, where: places.Places
  ) -> int:
    """The exact value of a number in text."""
    try:
      number = decimal.Decimal(value)
      if not _NUMBER.fullmatch(value) and number.is_finite():
        raise decimal.InvalidOperation
    except decimal.InvalidOperation:
      raise where.error(
        row,
        name,
        f"{value!r} is not a number, but the first times are; give the format"
        " with --time_format, or ignore times with --time_column none",
      ) from None
    if number.is_finite() and number.copy_abs() < 2**63:
      number *= self._scale
      if number.copy_abs() < 2**63 and not number % 1:
        return int(number)
      if number.copy_abs() < 2**63:
        raise self._fraction(row, value, name, where)
    raise self._not_whole(row, value, name, where)

  def _dates(
    self, text: pa.Array, name: str, where: places.Places
  ) -> np.ndarray:
    unit = self.unit or "s"
    try:
      moments = self._parsed(text, unit)
    except pa.ArrowInvalid:
      raise self._first_wrong(text, name, where) from None
    if moments.null_count:
      raise self._first_wrong(text, name, where)
    return moments.cast(pa.int64()).to_numpy()

  def _parsed(self, text: pa.Array, unit: str) -> pa.Array:
    text = pc.utf8_trim_whitespace(text)
    if self.form != "iso":
      return _strptime(text, self.form, unit)
    if not self.has_zone:
      try:
        return text.cast(pa.timestamp(unit))
      except pa.ArrowInvalid:
        pass
    # The zone is optional; a space or a comma may precede it.
    text = pc.replace_substring_regex(text, r"\s*UTC$", "Z")
    text = pc.replace_substring_regex(text, r"\s+([+-]\d\d)", r"\1")
    text = pc.replace_substring(text, ",", ".")
    zoned = pc.match_substring_regex(text, r"(Z|:\d\d.*[+-]\d\d(:?\d\d)?)$")
    text = pc.if_else(zoned, text, pc.binary_join_element_wise(text, "Z", ""))
    days = pc.match_substring_regex(text, r"^\d{4}-\d\d-\d\dZ$")
    text = pc.if_else(days, pc.replace_substring(text, "Z", "T00:00Z"), text)
    return text.cast(pa.timestamp(unit, "UTC"))

  def _first_wrong(
    self, text: pa.Array, name: str, where: places.Places
  ) -> errors.DataError:
    for row, value in enumerate(text.to_pylist()):
      try:
        moment = self._parsed(pa.array([value]), self.unit or "s")
        wrong = moment.null_count > 0
      except pa.ArrowInvalid:
        wrong = True
      if not wrong:
        continue
      found = _ISO.fullmatch(value)
      if self.form == "iso" and found and found["fraction"]:
        return self._fraction(row, value, name, where)
      return where.error(
        row,
        name,
        f"{value!r} is not a time such as {self.example!r}; give the format"
        " with --time_format, or ignore times with --time_column none",
      )
    return where.error(None, name, "a time cannot be read")

  def _fraction(
    self, row: int, value: str, name: str, where: places.Places
  ) -> errors.DataError:
    return where.error(
      row,
      name,
      f"{value!r} is not a whole number of {self.unit or 'units'}, but the"
      " first times are; keep its fraction with --time_unit ms, us or ns",
    )

  def _not_whole(
    self, row: int, value: str, name: str, where: places.Places
  ) -> errors.DataError:
    return where.error(
      row,
      name,
      f"{value!r} is not a 64-bit integer; write times as integers, e.g. Unix"
      " seconds or milliseconds",
    )


def detect(
  column: columns.ArrowColumn,
  name: str,
  where: places.Places,
  form: str | None = None,
  unit: str | None = None,
) -> Times:
  """Detects the format of times from the first values.

  Args:
    column: The first values.
    name: Name of the column.
    where: Positions of the values.
    form: The user's format: "iso", "number" or a `strptime` format.
    unit: The user's unit, one of `UNITS`.

  Raises:
    DataError: The format is ambiguous or unknown.
  """
  found = _detected(columns.plain(column), name, where, form, unit)
  return dataclasses.replace(found, is_guessed=unit is None)


def _detected(
  column: pa.Array,
  name: str,
  where: places.Places,
  form: str | None,
  unit: str | None,
) -> Times:
  kind = column.type
  if pa.types.is_date(kind):
    return Times("typed", unit or "s", str(next(_some(column), "")))
  if pa.types.is_timestamp(kind):
    # Python's datetime has no nanoseconds.
    text = column.drop_null()[:1].cast(pa.string()).to_pylist()
    example = text[0].removesuffix("Z") if text else ""
    return Times(
      "typed", unit or _coarsest(column), example, kind.tz is not None
    )
  if columns.is_number(kind):
    return _numbers(column, unit)
  if not columns.is_text(kind) and not pa.types.is_null(kind):
    raise where.error(None, name, f"type {kind}, expected times")
  values = [v.strip() for v in _some(columns.strings(column, name, where)) if v]
  return _written(values, name, where, form, unit)


def _some(column: pa.Array) -> Iterator:
  return iter([v for v in column[:_SAMPLE].to_pylist() if v is not None])


def _coarsest(column: pa.Array) -> str:
  values = column.drop_null().cast(pa.int64()).to_numpy()
  have = UNITS[column.type.unit]
  for unit, parts in UNITS.items():
    if parts >= have or not np.any(values % (have // parts)):
      return unit
  return column.type.unit


def _numbers(column: pa.Array, unit: str | None) -> Times:
  values = column.drop_null().to_numpy(zero_copy_only=False)
  example = str(values[0]) if len(values) else ""
  exact = values[np.abs(values) < 2**53].astype(np.float64)
  if values.dtype.kind != "f" or np.all(exact == np.trunc(exact)):
    return Times("number", unit or _unit_of(values), example.removesuffix(".0"))
  rest = np.abs(exact * 1e3 - np.rint(exact * 1e3))
  fine = "ms" if np.all(rest <= 1e-3) else "us"
  return Times("fraction", unit or fine, example)


def _unit_of(values: np.ndarray) -> str | None:
  size = (
    float(np.median(np.abs(values.astype(np.float64)))) if len(values) else 0
  )
  if size < _SMALLEST_UNIX:
    return None
  return next((u for u, largest in _LARGEST.items() if size <= largest), None)


def _is_whole(values: np.ndarray) -> np.ndarray:
  if values.dtype.kind in "iu":
    return values < 2**63
  return (values == np.trunc(values)) & (np.abs(values) < 2**53)


def _written(
  values: list[str],
  name: str,
  where: places.Places,
  form: str | None,
  unit: str | None,
) -> Times:
  first = values[0] if values else ""
  if form not in (None, "iso", "number"):
    return Times(str(form), unit or "s", first, "%z" in str(form))
  if form == "iso" or (form is None and _ISO.fullmatch(first)):
    found = [m for m in map(_ISO.fullmatch, values) if m]
    digits = max(
      (len((m["fraction"] or "").rstrip("0")) for m in found), default=0
    )
    zoned = bool(found) and all(m["zone"] for m in found)
    return Times("iso", unit or _for_digits(digits), first, zoned)
  if form == "number" or _NUMBER.fullmatch(first) or not values:
    return _number_forms(values, first, form, unit)
  forms = list(_fitting(values))
  if not forms:
    forms = list(_fitting(values[:1]))
  if not forms:
    raise where.error(
      0,
      name,
      f"{first!r} is neither a number nor a time in a known format; give the"
      " format, e.g. --time_format '%d/%m/%Y %H:%M', or ignore times with"
      " --time_column none",
    )
  if len(forms) > 1:
    raise where.error(
      0,
      name,
      f"{first!r} may be {' or '.join(map(repr, forms))}: choose one with"
      " --time_format",
    )
  return Times(forms[0], unit or "s", first, "%z" in forms[0])


def _number_forms(
  values: list[str], first: str, form: str | None, unit: str | None
) -> Times:
  found = [m for m in map(_NUMBER.fullmatch, values) if m]
  compact = _COMPACT.get(len(first))
  if form is None and compact and first.isdigit() and first[0] in "12":
    days = pc.strptime(pa.array(values), compact, "s", error_is_null=True)
    if not days.null_count:
      return Times(compact, unit or "s", first)
  numbers = [decimal.Decimal(m[0].strip()) for m in found]
  if all(number % 1 == 0 for number in numbers if number.copy_abs() < 2**63):
    unit = unit or _unit_of(np.array(numbers, np.float64))
    return Times("number", unit, first)
  digits = max(
    -int(number.normalize().as_tuple().exponent) for number in numbers
  )
  return Times("fraction", unit or _for_digits(digits), first)


def _for_digits(digits: int) -> str:
  """The coarsest unit that holds `digits` decimal places."""
  return ("s", "ms", "us", "ns")[min(-(-max(digits, 0) // 3), 3)]


def _strptime(text: pa.Array, form: str, unit: str) -> pa.Array:
  """Timestamps; null if the text has another format."""
  moments = pc.strptime(text, form, unit, error_is_null=True)
  if "%Y" in form:  # %Y reads two digits as a year before 100.
    antique = pc.less(pc.year(moments), 1000)
    moments = pc.if_else(antique, pa.scalar(None, moments.type), moments)
  return moments


def _fitting(values: list[str]) -> Iterable[str]:
  """The formats that fit all values, without equivalent ones."""
  array = pa.array(sorted(set(values)), pa.string())
  seen: list[pa.Array] = []
  for form in _FORMS:
    moments = _strptime(array, form, "s")
    if moments.null_count:
      continue
    moments = moments.cast(pa.int64())
    if not any(moments.equals(other) for other in seen):
      seen.append(moments)
      yield form
