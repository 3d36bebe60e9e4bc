"""Delimited text (atomic, CSV, TSV) as typed columns with line numbers.

The fast path parses a chunk with pyarrow. Where that refuses a chunk, or a
value is out of order, `_Scan` goes through the same lines in plain Python: it
raises an error that names the line and the column, or drops blank lines.
"""

from __future__ import annotations

import csv
import dataclasses
import decimal
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from xir_tfrs.data import errors
from xir_tfrs.data.files import columns as columns_lib
from xir_tfrs.data.files import places, text

# Format -> delimiter, and whether fields may be quoted.
_DIALECTS = {"atomic": ("\t", False), "csv": (",", True), "tsv": ("\t", True)}
# What a value must be. "id": not empty; "string": anything; "int": a whole
# number; "float": a finite number; "float?": a number or nothing.
_ARROW_TYPES = {
  "id": pa.string(),
  "string": pa.string(),
  "float": pa.float64(),
  "float?": pa.float64(),
}
# Read as the first that holds all values of a file so far: "12.0" is no int64,
# and a float64 does not hold all that int64 does.
_INT_TYPES = (pa.int64(), pa.float64(), pa.string())


@dataclasses.dataclass(frozen=True)
class Rows:
  """Typed columns of consecutive lines.

  Attributes:
    columns: name -> pa string array, int64 array or float64 array.
    places: the lines of the rows.
    begin, end: positions in the file of these rows and behind them.
  """

  columns: dict[str, pa.Array | np.ndarray]
  places: places.Places
  begin: int
  end: int


class DelimitedFile:
  """A delimited file with a header line.

  Attributes:
    path: the file, as errors name it.
    header: the fields of the first line.
    blank_lines: how many lines were skipped because they were blank.
  """

  def __init__(self, path: pathlib.Path, kind: str):
    """Reads the header of a file of a kind: "atomic", "csv" or "tsv"."""
    self.file = text.TextFile(path)
    self.path = self.file.path
    self.blank_lines = 0
    self._delimiter, self._quoted = _DIALECTS[kind]
    self._int_type = 0
    self.header = self.split(self.file.header_line(), 1)

  def split(self, line: str, number: int) -> list[str]:
    """The fields of a line."""
    if not self._quoted:
      return line.split(self._delimiter)
    try:
      return next(csv.reader([line], delimiter=self._delimiter, strict=True))
    except csv.Error as e:
      raise errors.DataError(
        f"broken quoting ({e}); a quoted field must end on its own line, and"
        " a quote inside it is written twice",
        path=self.path,
        line=number,
      ) from None

  def rows(
    self,
    names: list[str],
    kinds: dict[str, str],
    chunk_bytes: int = text.CHUNK_BYTES,
    **part: Any,
  ) -> Iterator[Rows]:
    """Yields the columns in `kinds`.

    Args:
      names: the names of all columns.
      kinds: name -> what its values must be, of the columns to read.
      chunk_bytes: how much is parsed at a time.
      **part: which lines, as for `text.TextFile.chunks`; else all.
    """
    self.blank_lines, self._int_type = 0, 0
    for chunk in self.file.chunks(chunk_bytes, skip_lines=1, **part):
      yield from self._chunk_rows(chunk, names, kinds)

  def _chunk_rows(
    self, chunk: text.Chunk, names: list[str], kinds: dict[str, str]
  ) -> Iterator[Rows]:
    """Yields the rows of a chunk, unless all its lines are blank."""
    columns = None
    lines: int | np.ndarray = chunk.first_line
    if not self._quoted or _quotes_are_regular(chunk.data, self._delimiter):
      columns = self._parse(chunk.data, names, kinds)
    if columns is None:
      data, lines = self._scan(chunk, names, kinds)
      if not data:
        return
      columns = self._parse(data, names, kinds)
      if columns is None:
        raise errors.DataError(
          f"this line or one of the {len(lines) - 1} after it cannot be read",
          path=self.path,
          line=int(lines[0]),
        )
    where = places.Places(self.path, lines)
    yield Rows(columns, where, chunk.begin, chunk.end)

  def _parse(
    self, data: bytes, names: list[str], kinds: dict[str, str]
  ) -> dict[str, pa.Array | np.ndarray] | None:
    """The columns, or None if any line has anything wrong with it."""
    has_ints = "int" in kinds.values()
    while True:
      int_type = _INT_TYPES[self._int_type]
      columns = self._parse_as(data, names, kinds, int_type)
      if columns is not None or not has_ints:
        return columns
      if self._int_type + 1 == len(_INT_TYPES):
        self._int_type = 0
        return None
      self._int_type += 1

  def _parse_as(
    self,
    data: bytes,
    names: list[str],
    kinds: dict[str, str],
    int_type: pa.DataType,
  ) -> dict[str, pa.Array | np.ndarray] | None:
    types = {**_ARROW_TYPES, "int": int_type}
    try:
      table = arrow_csv.read_csv(
        pa.BufferReader(data),
        read_options=arrow_csv.ReadOptions(
          column_names=names, block_size=4 << 20
        ),
        parse_options=arrow_csv.ParseOptions(
          delimiter=self._delimiter,
          quote_char='"' if self._quoted else False,
          double_quote=self._quoted,
          ignore_empty_lines=False,
        ),
        convert_options=arrow_csv.ConvertOptions(
          column_types={n: types[k] for n, k in kinds.items()},
          include_columns=list(kinds),
          null_values=list(columns_lib.MISSING),
          strings_can_be_null=False,
        ),
      )
    except pa.ArrowInvalid:
      return None
    # A newline inside quotes joins lines, which would shift line numbers and
    # fail wherever a chunk happens to end.
    if table.num_rows != data.count(b"\n") + (not data.endswith(b"\n")):
      return None
    columns = {}
    for name, kind in kinds.items():
      column = _checked(table.column(name), kind)
      if column is None:
        return None
      columns[name] = column
    return columns

  def _scan(
    self, chunk: text.Chunk, names: list[str], kinds: dict[str, str]
  ) -> tuple[bytes, np.ndarray]:
    """Raises for the first bad line; else the lines that are not blank."""
    kept, numbers = [], []
    lines = chunk.data.split(b"\n")
    if not lines[-1]:
      lines.pop()
    for number, line in enumerate(lines, chunk.first_line):
      if not line.strip(b" \r\t"):
        self.blank_lines += 1
        continue
      self._check_line(line.rstrip(b"\r"), number, names, kinds)
      kept.append(line)
      numbers.append(number)
    return b"\n".join(kept), np.array(numbers, np.int64)

  def _check_line(
    self, line: bytes, number: int, names: list[str], kinds: dict[str, str]
  ) -> None:
    try:
      decoded = line.decode("utf-8")
    except UnicodeDecodeError as e:
      before = line[: e.start].count(self._delimiter.encode())
      column = names[min(before, len(names) - 1)]
      self.file.decode(line, number, column)
      raise
    fields = self.split(decoded, number)
    if len(fields) != len(names):
      # The first column that is not there, or the last that should be.
      column = names[min(len(fields), len(names) - 1)]
      raise errors.DataError(
        f"{len(fields)} fields where the header has {len(names)} (a"
        " truncated line?)",
        path=self.path,
        line=number,
        column=column,
      )
    for name, value in zip(names, fields, strict=True):
      problem = _problem(value, kinds.get(name, "string"))
      if problem:
        raise errors.DataError(
          problem, path=self.path, line=number, column=name
        )


def _quotes_are_regular(data: bytes, delimiter: str) -> bool:
  """Whether quotes open and close whole fields; pyarrow takes any others.

  Args:
    data: whole lines.
    delimiter: between fields.
  """
  chars = np.frombuffer(b"\n" + data + b"\n", np.uint8)
  quotes = np.flatnonzero(chars == ord('"'))
  if not quotes.size:
    return True
  # Quotes side by side are a run. Of an even number, inside, all are escaped.
  first = np.flatnonzero(np.diff(quotes, prepend=-1) > 1)
  lengths = np.diff(first, append=len(quotes))
  before = chars[quotes[first] - 1]
  after = chars[quotes[first] + lengths]
  opens = np.isin(before, [ord(delimiter), ord("\n")])
  closes = np.isin(after, [ord(delimiter), ord("\n"), ord("\r")])
  inside = (np.cumsum(lengths) - lengths) % 2 == 1
  odd = lengths % 2 == 1
  regular = np.where(inside, ~odd | closes, opens & (odd | closes))
  return bool(regular.all()) and len(quotes) % 2 == 0


def _checked(
  column: pa.ChunkedArray, kind: str
) -> pa.Array | np.ndarray | None:
  """The column as an array, or None if a value is not of the kind."""
  array = columns_lib.plain(column)
  if (
    kind == "id" and len(array) and not pc.min(pc.binary_length(array)).as_py()
  ):
    return None
  if kind in ("id", "string"):
    return array
  if array.null_count and kind != "float?":
    return None
  if kind == "int" and pa.types.is_string(array.type):
    whole = [_whole_number(value) for value in array.to_pylist()]
    return None if None in whole else np.array(whole, np.int64)
  values = array.to_numpy(zero_copy_only=False)
  if kind == "int":
    return columns_lib.whole_numbers(values)
  if kind == "float" and not np.isfinite(values).all():
    return None
  return values


def _whole_number(value: str) -> int | None:
  """The integer of 64 bits that is written, exactly; None if there is none."""
  try:
    number = decimal.Decimal(value)
  except decimal.InvalidOperation:
    return None
  fits = number.is_finite() and number.copy_abs() < 2**63 and "_" not in value
  return int(number) if fits and not number % 1 else None


def _problem(value: str, kind: str) -> str | None:
  """What is wrong with the value of a field, or None."""
  if kind == "id":
    return None if value else "empty id"
  if kind == "string" or (kind == "float?" and value in columns_lib.MISSING):
    return None
  number = columns_lib.parse_number(value)
  if number is None:
    return f"{value!r} is not a number"
  if kind == "int" and _whole_number(value) is None:
    return (
      f"{value!r} is not a whole number of 64 bits; write times as integers,"
      " e.g. Unix seconds or milliseconds"
    )
  if kind == "float" and not np.isfinite(number):
    return f"{value!r} is not a finite number"
  return None
