"""Delimited text (atomic, CSV, TSV) as typed columns with line numbers.

The fast path parses a chunk with pyarrow. Where that refuses a chunk, or a
value is out of order, `_Scan` goes through the same lines in plain Python: it
raises an error that names the line and the column, or drops blank lines.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from xir_tfrs.data import errors
from xir_tfrs.data.files import columns, text

# Format -> delimiter, and whether fields may be quoted.
DIALECTS = {"atomic": ("\t", False), "csv": (",", True), "tsv": ("\t", True)}
# What a value must be. "id": not empty; "string": anything; "int": a whole
# number; "float": a finite number; "float?": a number or nothing.
_ARROW_TYPES = {
  "id": pa.string(),
  "string": pa.string(),
  "int": pa.int64(),
  "float": pa.float64(),
  "float?": pa.float64(),
}
MISSING = ("", "nan", "NaN", "NA", "null", "NULL", "None")


@dataclasses.dataclass(frozen=True)
class Rows:
  """Typed columns of consecutive lines.

  Attributes:
    columns: name -> pa string array, int64 array or float64 array.
    lines: as in `base.Block`.
    end: position in the file behind these rows.
  """

  columns: dict[str, pa.Array | np.ndarray]
  lines: int | np.ndarray
  end: int

  def line(self, row: int) -> int:
    if isinstance(self.lines, int):
      return self.lines + row
    return int(self.lines[row])


class DelimitedFile:
  """A delimited file with a header line.

  Attributes:
    path: the file, as errors name it.
    header: the fields of the first line.
    blank_lines: how many lines were skipped because they were blank.
  """

  def __init__(self, path: pathlib.Path, delimiter: str, quoted: bool):
    self.file = text.TextFile(path)
    self.path = self.file.path
    self.blank_lines = 0
    self._delimiter, self._quoted = delimiter, quoted
    # Integers are tried first; "12.0" for an integer turns the file to floats.
    self._types = dict(_ARROW_TYPES)
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
    self, names: list[str], kinds: dict[str, str], chunk_bytes: int
  ) -> Iterator[Rows]:
    """Yields the columns in `kinds`; `names` are the names of all columns."""
    for chunk in self.file.chunks(chunk_bytes, skip_lines=1):
      yield from self._chunk_rows(chunk, names, kinds)

  def piece(
    self,
    names: list[str],
    kinds: dict[str, str],
    start: int,
    stop: int,
    count_lines: bool,
  ) -> Iterator[Rows]:
    """The same for the lines that begin in [start, stop); no state is kept."""
    self.blank_lines = 0
    self._types = dict(_ARROW_TYPES)
    for chunk in self.file.piece(
      start, stop, count_lines=count_lines, skip_lines=1
    ):
      yield from self._chunk_rows(chunk, names, kinds)

  def _chunk_rows(
    self, chunk: text.Chunk, names: list[str], kinds: dict[str, str]
  ) -> Iterator[Rows]:
    """Yields the rows of a chunk, unless all its lines are blank."""
    # pyarrow lets a quote that nothing closes run to the end of the chunk.
    open_quote = self._quoted and chunk.data.count(b'"') % 2 == 1
    columns = None if open_quote else self._parse(chunk.data, names, kinds)
    lines: int | np.ndarray = chunk.first_line
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
    yield Rows(columns, lines, chunk.end)

  def _parse(
    self, data: bytes, names: list[str], kinds: dict[str, str]
  ) -> dict[str, pa.Array | np.ndarray] | None:
    """The columns, or None if any line has anything wrong with it."""
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
          column_types={n: self._types[k] for n, k in kinds.items()},
          include_columns=list(kinds),
          null_values=list(MISSING),
          strings_can_be_null=False,
        ),
      )
    except pa.ArrowInvalid:
      if "int" in kinds.values() and self._types["int"] == pa.int64():
        self._types["int"] = pa.float64()
        columns = self._parse(data, names, kinds)
        if columns is None:
          self._types["int"] = pa.int64()
        return columns
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


def _checked(
  column: pa.ChunkedArray, kind: str
) -> pa.Array | np.ndarray | None:
  """The column as an array, or None if a value is not of the kind."""
  array = column.combine_chunks()
  if isinstance(array, pa.ChunkedArray):  # pyarrow < 18, zero chunks
    array = pa.concat_arrays(array.chunks)
  if (
    kind == "id" and len(array) and not pc.min(pc.binary_length(array)).as_py()
  ):
    return None
  if kind in ("id", "string"):
    return array
  if array.null_count and kind != "float?":
    return None
  values = array.to_numpy(zero_copy_only=False)
  if kind == "int":
    return columns.checked_times(values)
  if kind == "float" and not np.isfinite(values).all():
    return None
  return values


def parse_number(value: str) -> float | None:
  """The number that a field holds, or None."""
  try:
    # Python takes 1_000 for a number; no other program does.
    return None if "_" in value else float(value)
  except ValueError:
    return None


def _problem(value: str, kind: str) -> str | None:
  """What is wrong with the value of a field, or None."""
  if kind == "id":
    return None if value else "empty id"
  if kind == "string" or (kind == "float?" and value in MISSING):
    return None
  number = parse_number(value)
  if number is None:
    return f"{value!r} is not a number"
  if kind == "int":
    try:
      fits = abs(int(value)) < 2**63
    except ValueError:
      fits = abs(number) <= 2**53 and number % 1 == 0
    if not fits:
      return (
        f"{value!r} is not a whole number of 64 bits; write times as"
        " integers, e.g. Unix seconds or milliseconds"
      )
  if kind == "float" and not np.isfinite(number):
    return f"{value!r} is not a finite number"
  return None
