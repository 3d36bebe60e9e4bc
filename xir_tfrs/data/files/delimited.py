"""Reads delimited text (atomic, CSV, TSV etc.) as columns with line numbers.

pyarrow parses chunks. If it refuses one, or if the quoting is irregular,
`_Sieve` reads the same records in plain Python: it drops blank lines and
comments, or raises an error that names the line and the column.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from xir_tfrs.data import errors
from xir_tfrs.data.files import (
  headers,
  layouts,
  places,
  rows,
  streams,
  text,
)

# A longer quoted field counts as a quote that is never closed.
_MAX_RECORD = 1 << 20
csv.field_size_limit(max(csv.field_size_limit(), 2 * _MAX_RECORD))


class DelimitedFile(rows.TextRowFile):
  """A file of delimited text."""

  def __init__(self, path: str, layout: layouts.Layout):
    self.header_line = layout.skip_lines if layout.header else None
    self._kinds = headers.typed(
      layout.names, path, layout.format == "atomic", self.header_line
    )
    super().__init__(path, layout, list(self._kinds))
    self._text = text.TextFile(
      path, layout.compression, layout.encoding, layout.skip_lines
    )
    # A part could start inside a quoted field.
    self.can_be_cut = self._text.can_be_cut and not layout.multiline
    self._mark = layout.delimiter.encode()
    if len(self._mark) > 1:
      self._mark = layouts.FIELD_MARK.encode()

  @property
  def header(self) -> dict[str, str | None]:
    return dict(self._kinds)

  def _read(
    self, chunks: Iterator[text.Chunk], wanted: rows.Wanted
  ) -> Iterator[rows.Rows]:
    types = {name: kind or pa.string() for name, kind in wanted.items()}
    open_record, first_line = b"", 0
    for chunk, is_last in _with_last(chunks):
      data, begin = self._one_byte_marks(chunk.data), chunk.begin
      if open_record:
        data, begin = open_record + data, begin - len(open_record)
      else:
        first_line = chunk.first_line
      head, open_record = (
        (data, b"") if is_last else self._complete(data, first_line)
      )
      if head:
        parsed, where, error = self._parsed(head, first_line, types)
        if where is not None:
          yield rows.Rows(parsed, where, begin, chunk.progress)
        if error is not None:
          raise error
      first_line += head.count(b"\n")

  def _one_byte_marks(self, data: bytes) -> bytes:
    mark = self.layout.delimiter.encode()
    return data if mark == self._mark else data.replace(mark, self._mark)

  @property
  def _quoted(self) -> bool:
    return self.layout.quoting != "none"

  def _complete(self, data: bytes, first_line: int) -> tuple[bytes, bytes]:
    """Splits off the last record if it continues in the next chunk."""
    if not self._quoted or b'"' not in data:
      return data, b""
    quotes = self._quotes(data)
    if quotes.regular:
      end = quotes.end_of_records()
    else:
      end = self._sieve(first_line).end_of_records(data)
    if len(data) - end > _MAX_RECORD:
      line = first_line + data.count(b"\n", 0, end)
      raise self._broken_quoting("a quote is never closed", line)
    return data[:end], data[end:]

  def _quotes(self, data: bytes) -> _Quotes:
    if self.layout.quoting == "backslash":
      # The replacement has the same length, so positions stay valid.
      data = data.replace(b"\\\\", b"..").replace(b'\\"', b"..")
    return _Quotes(data, self._mark, self._quoted)

  def _parsed(
    self, data: bytes, first_line: int, types: dict[str, pa.DataType]
  ) -> tuple[
    dict[str, pa.Array], places.Places | None, errors.DataError | None
  ]:
    """Columns and places of whole records, and the error that follows them.

    The places are None if all lines are blank.
    """
    where: int | np.ndarray = first_line
    expected, multiline = data.count(b"\n") + (not data.endswith(b"\n")), False
    regular, num_blank = True, 0
    has_quotes = self._quoted and b'"' in data
    if has_quotes or _has_blank_lines(data):
      quotes = self._quotes(data)
      regular = quotes.regular and quotes.closed
      if regular:
        lines, blank = quotes.records()
        multiline = len(lines) != expected
        if multiline or blank.any():
          num_blank = int(blank.sum())
          expected = len(lines) - num_blank
          where = first_line + lines[~blank]
    columns = error = None
    if regular and expected:
      columns = self._parse(data, types, expected, multiline)
    if columns is not None:
      self.warnings["blank_lines"] += num_blank
    else:
      data, numbers, error = self._sieve(first_line).sift(data)
      if not data:
        return {}, None, error
      where = numbers
      multiline = data.count(b"\n") + (not data.endswith(b"\n")) != len(numbers)
      columns = self._parse(data, types, len(numbers), multiline)
    if columns is None:
      raise errors.DataError(
        f"this line or one of the {expected - 1} after it cannot be read",
        path=self.path,
        line=first_line,
      )
    return columns, places.Places(self.path, where), error

  def _parse(
    self,
    data: bytes,
    types: dict[str, pa.DataType],
    expected: int,
    multiline: bool,
  ) -> dict[str, pa.Array] | None:
    """The columns, as text if not all values have the wanted type.

    Returns None if any line is malformed.
    """
    table = self._parse_as(data, types, multiline)
    if table is None and any(not pa.types.is_string(t) for t in types.values()):
      types = dict.fromkeys(types, pa.string())
      table = self._parse_as(data, types, multiline)
    if table is None or table.num_rows != expected:
      return None
    found = {name: rows.field(table, name) for name in types}
    if self.layout.spaced:
      found = {
        name: pc.utf8_ltrim(column, " ")
        if pa.types.is_string(column.type)
        else column
        for name, column in found.items()
      }
    return found

  def _parse_as(
    self, data: bytes, types: dict[str, pa.DataType], multiline: bool
  ) -> pa.Table | None:
    try:
      return arrow_csv.read_csv(
        streams.in_arrow(data),
        read_options=arrow_csv.ReadOptions(
          column_names=self.names, block_size=4 << 20
        ),
        parse_options=arrow_csv.ParseOptions(
          delimiter=self._mark.decode(),
          quote_char='"' if self._quoted else False,
          double_quote=self._quoted,
          escape_char="\\" if self.layout.quoting == "backslash" else False,
          newlines_in_values=multiline,
          ignore_empty_lines=True,
        ),
        convert_options=arrow_csv.ConvertOptions(
          column_types=types,
          include_columns=list(types),
          null_values=[],
          strings_can_be_null=False,
        ),
      )
    except pa.ArrowInvalid:
      return None

  def _sieve(self, first_line: int) -> _Sieve:
    return _Sieve(self, self._text, first_line, self._mark.decode())

  def _broken_quoting(self, reason: str, line: int) -> errors.DataError:
    return errors.DataError(
      f"broken quoting ({reason}); quote whole fields and double the quotes"
      " inside them, or use --quoting backslash or none",
      path=self.path,
      line=line,
    )


class _Quotes:
  """The positions where quotes open and close in whole lines.

  Attributes:
    regular: Whether all quotes open and close whole fields; pyarrow reads other
      quotes inconsistently.
    closed: Whether the last field is closed.
  """

  def __init__(self, data: bytes, mark: bytes, quoted: bool):
    chars = np.frombuffer(b"\n" + data + b"\n", np.uint8)
    quotes = np.flatnonzero(chars == ord('"')) if quoted else np.zeros(0, int)
    self._chars, self._positions = chars[1:-1], quotes - 1
    self.closed = len(quotes) % 2 == 0
    # Adjacent quotes form a run. An even run inside a field is all escaped.
    first = np.flatnonzero(np.diff(quotes, prepend=-1) > 1)
    lengths = np.diff(first, append=len(quotes))
    before = chars[quotes[first] - 1]
    after = chars[quotes[first] + lengths]
    opens = np.isin(before, [mark[0], ord("\n")])
    closes = np.isin(after, [mark[0], ord("\n"), ord("\r")])
    inside = (np.cumsum(lengths) - lengths) % 2 == 1
    odd = lengths % 2 == 1
    right = np.where(inside, ~odd | closes, opens & (odd | closes))
    self.regular = bool(right.all())

  def _ends(self) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all newlines, and a mask of those that end a record."""
    newlines = np.flatnonzero(self._chars == ord("\n"))
    before = np.searchsorted(self._positions, newlines)
    return newlines, before % 2 == 0

  def end_of_records(self) -> int:
    """End of the last complete record."""
    newlines, ends = self._ends()
    there = newlines[ends]
    return int(there[-1]) + 1 if len(there) else 0

  def records(self) -> tuple[np.ndarray, np.ndarray]:
    """[records] number of lines before each record, and whether it is blank."""
    newlines, ends = self._ends()
    lines = np.concatenate([[0], np.flatnonzero(ends) + 1])
    starts = np.concatenate([[0], newlines[ends] + 1])
    stops = np.append(newlines[ends], len(self._chars))
    if starts[-1] == len(self._chars):
      lines, starts, stops = lines[:-1], starts[:-1], stops[:-1]
    sizes = stops - starts
    is_return = self._chars[np.minimum(starts, len(self._chars) - 1)] == 13
    return lines, (sizes == 0) | ((sizes == 1) & is_return)


class _Sieve:
  """Reads records in plain Python."""

  def __init__(
    self,
    file: DelimitedFile,
    lines: text.TextFile,
    first_line: int,
    mark: str,
  ):
    self._file, self._text, self._first_line = file, lines, first_line
    self._layout = file.layout
    self._dialect = layouts.dialect(mark, self._layout.quoting)
    self._mark = mark

  def end_of_records(self, data: bytes) -> int:
    """End of the last complete record; an incomplete one may follow."""
    end = 0
    try:
      for _, stop, _, fields in self._records(data):
        if fields is None:
          break
        end = stop
    except errors.DataError:
      return len(data)  # Reading the rows raises the error.
    return end

  def sift(
    self, data: bytes
  ) -> tuple[bytes, np.ndarray, errors.DataError | None]:
    """Returns the non-blank records up to the first bad one.

    Returns:
      The records, the lines on which they start, and the error of the bad one.
    """
    kept: list[bytes] = []
    numbers: list[int] = []
    error = None
    try:
      for start, stop, number, fields in self._records(data):
        record = data[start:stop]
        if not record.strip(b" \r\t\n"):
          self._file.warnings["blank_lines"] += 1
          continue
        if self._layout.has_comments and record.startswith(b"#"):
          self._file.warnings["comment_lines"] += 1
          continue
        if fields is None:
          raise self._file._broken_quoting("a quote is never closed", number)
        self._check(fields, number)
        kept.append(record if record.endswith(b"\n") else record + b"\n")
        numbers.append(number)
    except errors.DataError as found:
      error = found
    return b"".join(kept), np.array(numbers, np.int64), error

  def _records(
    self, data: bytes
  ) -> Iterator[tuple[int, int, int, list[str] | None]]:
    """Yields start, stop, line and fields, or None for an unclosed record."""
    lines = data.split(b"\n")
    if not lines[-1]:
      lines.pop()
    stop = i = 0
    while i < len(lines):
      start, number, first = stop, self._first_line + i, i
      taken: list[int] = []
      fields = self._fields(lines, i, taken)
      i += max(len(taken), 1)
      stop = min(start + sum(len(x) + 1 for x in lines[first:i]), len(data))
      yield start, stop, number, fields

  def _fields(
    self, lines: list[bytes], first: int, taken: list[int]
  ) -> list[str] | None:
    """The fields of the record that starts on a line; fills `taken`."""

    def decoded() -> Iterator[str]:
      for i in range(first, len(lines)):
        taken.append(i)
        yield self._decoded(lines[i], self._first_line + i) + "\n"

    if not self._file._quoted:
      return next(decoded()).removesuffix("\n").split(self._mark)
    reader = csv.reader(decoded(), strict=True, **self._dialect)
    try:
      return next(reader)
    except csv.Error as e:
      if "unexpected end of data" in str(e):
        return None
      raise self._file._broken_quoting(
        str(e), self._first_line + first
      ) from None

  def _decoded(self, line: bytes, number: int) -> str:
    line = line.removesuffix(b"\r")
    try:
      return line.decode("utf-8")
    except UnicodeDecodeError as e:
      names = self._file.names
      before = line[: e.start].count(self._mark.encode())
      return self._text.decode(line, number, names[min(before, len(names) - 1)])

  def _check(self, fields: list[str], number: int) -> None:
    names = self._file.names
    if len(fields) == len(names):
      return
    # Names the first missing column, or the last one if there are too many.
    column = names[min(len(fields), len(names) - 1)]
    there = "header" if self._layout.header else "first line"
    raise errors.DataError(
      f"{len(fields)} fields where the {there} has {len(names)} (a truncated"
      " line?)",
      path=self._file.path,
      line=number,
      column=column,
    )


def _has_blank_lines(data: bytes) -> bool:
  # A regular expression would take eight times as long.
  return (
    b"\n\n" in data or b"\n\r\n" in data or data.startswith((b"\n", b"\r\n"))
  )


def _with_last(
  chunks: Iterator[text.Chunk],
) -> Iterator[tuple[text.Chunk, bool]]:
  """Yields each chunk and whether it is the last."""
  before = next(chunks, None)
  for chunk in chunks:
    assert before is not None
    yield before, False
    before = chunk
  if before is not None:
    yield before, True
