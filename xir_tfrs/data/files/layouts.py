"""Detects the layout of a file of rows from its first bytes and user flags."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections.abc import Sequence

from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses, names, streams, times

SAMPLE_BYTES = 1 << 20
# Text formats, and formats that libraries read.
FORMATS = ("atomic", "csv", "tsv", "json", "parquet", "arrow", "orc")
QUOTINGS = ("double", "backslash", "none")
_SAMPLE_RECORDS = 1000
_DELIMITERS = ("\t", "::", ";", "|", ",")
_DELIMITER_NAMES = {"\t": "tab", " ": "space"}
_SUFFIXES = {
  ".inter": "atomic",
  ".user": "atomic",
  ".item": "atomic",
  ".csv": "csv",
  ".tsv": "tsv",
  ".json": "json",
  ".jsonl": "json",
  ".ndjson": "json",
  ".txt": "adjacency",
  ".adj": "adjacency",
  ".parquet": "parquet",
  ".pq": "parquet",
  ".feather": "arrow",
  ".arrow": "arrow",
  ".ipc": "arrow",
  ".orc": "orc",
  ".tfrecord": "tfrecord",
}
_PACKED = (".gz", ".bz2", ".zip", ".zst", ".xz")
_MAGIC = {
  b"PAR1": "parquet",
  b"ARROW1": "arrow",
  b"ORC": "orc",
}
# Replaces `::` and the like, because the parsers only take single bytes.
FIELD_MARK = "\x1f"


@dataclasses.dataclass(frozen=True)
class Wish:
  """User settings for a file; None or empty fields are detected.

  Attributes:
    format: One of `FORMATS`, or "adjacency".
    compression: One of `streams.COMPRESSIONS`, or "none".
    encoding: Python name of the encoding.
    delimiter: The delimiter of fields; "tab" and "space" are accepted.
    quoting: One of `QUOTINGS`.
    header: Whether the first line has the column names.
    names: The columns of a file without a header, or instead of its header.
    columns: Names that the file should have, used to detect a header.
    expects_header: Whether to assume a header if detection is unclear.
  """

  format: str | None = None
  compression: str | None = None
  encoding: str | None = None
  delimiter: str | None = None
  quoting: str | None = None
  header: bool | None = None
  names: tuple[str, ...] = ()
  columns: tuple[str, ...] = ()
  expects_header: bool = False

  @property
  def field_delimiter(self) -> str | None:
    words = {word: mark for mark, word in _DELIMITER_NAMES.items()}
    words |= {"\\t": "\t"}
    return words.get(self.delimiter or "", self.delimiter) or None


@dataclasses.dataclass(frozen=True)
class Layout:
  """The layout of a file of rows.

  Attributes:
    format: One of `FORMATS`, "adjacency" or "tfrecord".
    compression: As for `streams.Stream`.
    encoding: Python name of the encoding.
    delimiter: The delimiter of fields in delimited text.
    quoting: How quotes inside quoted fields are escaped; with "none", quotes
      are data.
    header: Whether the first line has the column names.
    names: The columns; empty if the format itself names them.
    skip_lines: Number of lines before the rows.
    has_comments: Whether lines that start with # are comments.
    spaced: Whether a space follows each delimiter.
    multiline: Whether a quoted field of the first rows has a line break.
  """

  format: str
  compression: str | None = None
  encoding: str = streams.UTF8
  delimiter: str = ","
  quoting: str = "double"
  header: bool = False
  names: tuple[str, ...] = ()
  skip_lines: int = 0
  has_comments: bool = False
  spaced: bool = False
  multiline: bool = False

  @property
  def is_delimited(self) -> bool:
    return self.format in ("csv", "tsv", "atomic")

  def __str__(self) -> str:
    parts = [
      self.format.upper() if self.format in ("csv", "tsv") else self.format
    ]
    if self.is_delimited:
      if self.delimiter not in (",", "\t") or self.format == "atomic":
        parts.append(_shown(self.delimiter))
      if self.quoting != "double" and self.format != "atomic":
        parts.append(f"quoting {self.quoting}")
    if self.encoding != streams.UTF8:
      parts.append(self.encoding)
    if self.compression:
      parts.append(self.compression)
    if self.is_delimited:
      parts.append("header" if self.header else "no header")
    if self.has_comments:
      parts.append("# comments")
    return ", ".join(parts)


def suffix(address: addresses.Address) -> str:
  """The extension of a name, ignoring .gz and the like."""
  name = addresses.name(address).lower()
  for packed in _PACKED:
    name = name.removesuffix(packed)
  return os.path.splitext(name)[1]


def is_empty(address: addresses.Address) -> bool:
  """Whether a file is empty, also after decompression."""
  if not addresses.num_bytes(address):
    return True
  with addresses.open_binary(address) as file:
    compression = streams.compression_of(file.read(16))
  if compression is None:
    return False
  with streams.Stream(address, compression) as stream:
    return not stream.read(1)


def detect(address: addresses.Address, wish: Wish | None = None) -> Layout:
  """Detects the layout of a file from its first megabyte and user settings.

  Raises:
    DataError: The layout is unclear; the message shows the first lines and the
      flags that would read them.
  """
  wish = wish or Wish()
  with addresses.open_binary(address) as file:
    first = file.read(16)
  by_name = _SUFFIXES.get(suffix(address))
  format_ = wish.format or _binary_format(first) or by_name
  if first.startswith(b"FEA1"):
    raise errors.DataError(
      "is a Feather version 1 file, which cannot be read safely; write it again"
      " with a newer program, or as Parquet",
      path=address,
    )
  if first.startswith(b"SQLite format 3"):
    raise errors.DataError(
      "is an SQLite database; write its table to a CSV file", path=address
    )
  if format_ in ("parquet", "arrow", "orc", "tfrecord"):
    return Layout(format_)
  compression = wish.compression or streams.compression_of(first)
  compression = None if compression == "none" else compression
  encoding, text, is_whole = _head(address, compression, wish.encoding)
  layout = Layout("csv", compression, encoding)
  lines = text.splitlines() if is_whole else text.splitlines()[:-1]
  lines = lines or text.splitlines()
  return _Text(address, wish, by_name, lines, text, is_whole, layout).detect()


def _binary_format(first: bytes) -> str | None:
  for magic, name in _MAGIC.items():
    if first.startswith(magic):
      return name
  return None


def _head(
  address: addresses.Address, compression: str | None, encoding: str | None
) -> tuple[str, str, bool]:
  """Encoding, first characters, and whether these are the whole file."""
  with streams.Stream(address, compression) as stream:
    data = stream.read(SAMPLE_BYTES)
  is_whole = len(data) < SAMPLE_BYTES
  try:
    encoding = encoding or _encoding(data, is_whole)
    text = data.decode(encoding, "strict" if is_whole else "ignore")
  except UnicodeDecodeError:
    # The reader reports the line of the invalid byte.
    return str(encoding), data.decode(str(encoding), "replace"), is_whole
  except LookupError:
    raise errors.DataError(
      f"there is no encoding {encoding!r}; utf-8, latin-1, utf-16 and"
      " windows-1252 are common",
      path=address,
    ) from None
  normal = {"utf8": "utf-8", "utf_8": "utf-8", "utf-8-sig": "utf-8"}
  encoding = normal.get(encoding.lower(), encoding.lower())
  return encoding, text.removeprefix("\ufeff"), is_whole


def _encoding(data: bytes, is_whole: bool) -> str:
  if data.startswith((b"\xff\xfe", b"\xfe\xff")):
    return "utf-16"
  if data[1::2][:64].count(0) > 16:
    return "utf-16-le"
  if data[::2][:64].count(0) > 16:
    return "utf-16-be"
  try:
    data.decode("utf-8")
  except UnicodeDecodeError as error:
    if not is_whole and error.start >= len(data) - 3:
      return streams.UTF8  # The sample ends within a character.
    return _single_byte_encoding(data)
  return streams.UTF8


def _single_byte_encoding(data: bytes) -> str:
  """latin-1 or windows-1252, unless the bytes are those of damaged UTF-8."""
  if re.search(rb"[\xc3-\xf4][\x80-\xbf]", data):
    sequences = len(re.findall(rb"[\xc3-\xf4][\x80-\xbf]+", data))
    alone = len(re.findall(rb"[\x80-\xff]+", data)) - sequences
    if sequences > alone:
      return streams.UTF8
  high = set(re.findall(rb"[\x80-\xff]", data))
  if b"\xff" in high:
    return streams.UTF8
  return "latin-1" if min(high) >= b"\xa0" else "windows-1252"


@dataclasses.dataclass(frozen=True)
class _Text:
  """The first lines of a text file and its known properties.

  Attributes:
    address: The file.
    wish: The settings of the user.
    by_name: The format by the file's extension, or None.
    lines: The first lines, all complete.
    text: The same text, including the incomplete last line.
    is_whole: Whether `text` is the whole file.
    layout: The layout so far, with compression and encoding.
  """

  address: addresses.Address
  wish: Wish
  by_name: str | None
  lines: list[str]
  text: str
  is_whole: bool
  layout: Layout

  def detect(self) -> Layout:
    format_ = self.wish.format
    start = self.text.lstrip()[:1]
    is_table = format_ in ("csv", "tsv", "atomic") or bool(
      self.wish.delimiter or self.wish.names or self.wish.header is not None
    )
    if format_ == "json" or (
      not format_
      and not is_table
      and (self.by_name == "json" or self._is_json(start))
    ):
      return dataclasses.replace(self.layout, format="json")
    if format_ == "adjacency" or (
      not format_ and not is_table and self._is_adjacency()
    ):
      return dataclasses.replace(self.layout, format="adjacency")
    return self._delimited()

  def _is_json(self, start: str) -> bool:
    if self.by_name in ("csv", "tsv", "atomic"):
      return False
    second = self.text.lstrip()[1:].lstrip()[:1]
    return (start == "{" and second in "\"'u}") or (
      start == "[" and second == "{"
    )

  def _is_adjacency(self) -> bool:
    """Whether lines are words whose number varies."""
    if self.by_name not in ("adjacency", None):
      return False
    if not self.text.strip():
      return self.by_name == "adjacency"
    found = self._consistent()
    if any(mark != "\t" for mark in found):
      return False
    lines = self._body()
    fields = [len(line.split()) for line in lines if line.strip()]
    if "\t" in found:
      if self._means_something(self._first_fields("\t")):
        return False
      if found["\t"] > 2 and len(lines) > 1:
        if self._has_times("\t") or self.by_name is None:
          return False
        raise self._unsure("these lines of words may or may not be a table")
      return self.by_name == "adjacency"
    if self.by_name is None and len(set(fields)) == 1:
      raise self._unsure("the delimiter of the fields is not clear")
    return True

  def _has_times(self, mark: str) -> bool:
    rows = self._split(self._body()[:50], mark, "double")
    return any(
      all(times.looks_like_one(row[k]) for row in rows)
      for k in range(len(rows[0]))
    )

  def _delimited(self) -> Layout:
    by_format = {"tsv": "\t", "atomic": "\t"}
    kind = self.wish.format or (
      self.by_name if self.by_name in ("csv", "tsv") else None
    )
    if not self.wish.format and self._is_atomic():
      kind = "atomic"
    lines, comment = self._body(), ""
    skipped = len(self.lines) - len(lines)
    if not lines or not lines[0].strip():
      raise errors.DataError(
        "blank; expected the column names"
        if self.text
        else "empty; expected a line of column names, then one row per line",
        path=self.address,
        line=skipped + 1,
      )
    if skipped:
      comment = self.lines[skipped - 1]
    mark = self.wish.field_delimiter or (
      "\t" if kind == "atomic" else self._delimiter(kind)
    )
    if mark is None:
      raise self._unsure("the delimiter of the fields is not clear")
    quoting = self.wish.quoting or (
      "none" if kind == "atomic" else self._quoting(mark)
    )
    rows = self._split(lines, mark, quoting)
    first = [field.strip() for field in rows[0]] if rows else []
    header = self._header(kind, first, rows)
    if header and any("\ufffd" in name for name in first):
      raise errors.DataError(
        f"the header is not {self.layout.encoding}; {streams.SET_ENCODING}",
        path=self.address,
        line=skipped + 1,
      )
    names_ = self.wish.names
    if names_ and first and len(names_) != len(first):
      raise errors.DataError(
        f"{len(names_)} names were given for the {len(first)} columns of"
        f" {_quoted(lines[:1])}",
        path=self.address,
        line=skipped + 1,
      )
    if not names_ and header:
      names_ = tuple(first)
    if not names_ and comment.startswith("#"):
      said = self._split([comment.lstrip("# ")], mark, quoting)[0]
      if len(said) == len(first) and self._means_something(said):
        names_ = tuple(field.strip() for field in said)
    if not names_:
      names_ = tuple(str(k + 1) for k in range(len(first)))
    body = rows[1:] if header else rows
    kinds = {by_format.get(k, k): k for k in ("csv", "tsv")}
    return dataclasses.replace(
      self.layout,
      format="atomic" if kind == "atomic" else kinds.get(mark, "csv"),
      delimiter=mark,
      quoting=quoting,
      header=header,
      names=names_,
      skip_lines=skipped + header,
      has_comments=comment.startswith("#"),
      spaced=bool(body)
      and len(names_) > 1
      and mark != " "
      and all(f[:1] == " " for row in body for f in row[1:] if f),
      multiline=quoting != "none"
      and any("\n" in field for row in rows for field in row),
    )

  def _is_atomic(self) -> bool:
    """Whether an extension such as .item has its RecBole meaning."""
    wish = self.wish
    if self.by_name != "atomic" or wish.names or wish.header is False:
      return False
    first = self._body()[:1]
    is_table = any("\t" in line or ":" in line for line in first)
    return wish.field_delimiter in (None, "\t") and (is_table or not first)

  def _body(self) -> list[str]:
    """The lines after comments and Excel's `sep=` line."""
    skip = 0
    while skip < len(self.lines) and (
      self.lines[skip].startswith("#")
      or (not skip and re.fullmatch('"?sep=.*', self.lines[skip]))
    ):
      skip += 1
    return self.lines[skip:]

  def _split(
    self, lines: Sequence[str], mark: str, quoting: str
  ) -> list[list[str]]:
    """The fields of the first non-blank records."""
    if len(mark) > 1:
      lines = [line.replace(mark, FIELD_MARK) for line in lines]
      mark = FIELD_MARK
    if quoting == "none":
      return [
        line.split(mark) for line in lines[:_SAMPLE_RECORDS] if line.strip()
      ]
    rows: list[list[str]] = []
    reader = csv.reader(
      (f"{line}\n" for line in lines), **dialect(mark, quoting)
    )
    try:
      for row in reader:
        if row and any(field.strip() for field in row):
          rows.append(row)
        if len(rows) >= _SAMPLE_RECORDS:
          break
    except csv.Error:  # The reader reports the line.
      pass
    if not self.is_whole and reader.line_num >= len(lines) and len(rows) > 1:
      rows.pop()  # It may continue after the sample.
    return rows

  def _consistent(self) -> dict[str, int]:
    """Delimiter -> number of fields, if all first records have the same."""
    found: dict[str, int] = {}
    for mark in _DELIMITERS:
      for quoting in ("double", "backslash", "none"):
        rows = self._split(self._body(), mark, quoting)
        counts = {len(row) for row in rows}
        if len(counts) == 1 and counts != {1}:
          found.setdefault(mark, counts.pop())
    return found

  def _delimiter(self, kind: str | None) -> str | None:
    if self.lines and (said := re.fullmatch('"?sep=(.)"?', self.lines[0])):
      return said[1]
    usual = {"csv": ",", "tsv": "\t"}.get(kind or "")
    found = self._consistent()
    if not found:
      return usual or self._mostly()
    telling = [
      mark
      for mark in found
      if self._means_something(self._first_fields(mark))
      or set(self._first_fields(mark)) & set(self.wish.columns)
    ]
    if len(telling) == 1:
      return telling[0]
    if usual in found and len(found) == 1:
      return usual
    if len(found) > 1 and "::" not in found and "\t" not in found:
      raise self._unsure(
        " and ".join(map(_shown, found)) + " may both be the delimiter"
      )
    return next(iter(found))

  def _first_fields(self, mark: str) -> list[str]:
    rows = self._split(self._body(), mark, "double")
    return [field.strip() for field in rows[0]] if rows else []

  def _mostly(self) -> str | None:
    """The delimiter with which most records match the first one."""
    for mark in _DELIMITERS:
      rows = self._split(self._body(), mark, "none")
      if rows and len(rows[0]) > 1:
        alike = sum(len(row) == len(rows[0]) for row in rows)
        if alike >= 0.9 * len(rows):
          return mark
    return None

  def _quoting(self, mark: str) -> str:
    """The first kind of quoting that reads the whole sample."""
    lines = self._body()
    if not any('"' in line for line in lines):
      return "double"
    if len(mark) > 1:
      lines = [line.replace(mark, FIELD_MARK) for line in lines]
      mark = FIELD_MARK
    for quoting in ("double", "backslash"):
      reader = csv.reader(
        (f"{line}\n" for line in lines), strict=True, **dialect(mark, quoting)
      )
      try:
        counts = {len(row) for row in reader if row}
      except csv.Error:
        if self.is_whole or reader.line_num < len(lines):
          continue
        counts = set()  # The last field continues after the sample.
      if len(counts) < 2:
        return quoting
    plain = {len(line.split(mark)) for line in lines if line.strip()}
    if mark not in ",;" and len(plain) == 1:
      return "none"
    return "double"

  def _header(
    self, kind: str | None, first: list[str], rows: list[list[str]]
  ) -> bool:
    if self.wish.header is not None:
      return self.wish.header
    if self.wish.names:
      return False
    if kind == "atomic" or not first:
      return True
    if self._means_something(first) or set(first) & set(self.wish.columns):
      return True
    below = rows[1:51]
    for k, field in enumerate(first):
      if _is_value(field):
        return False
      if below and all(_is_value(row[k]) for row in below if k < len(row)):
        return True
    if self.wish.expects_header or (not below and self.by_name):
      return True
    raise self._unsure("whether the first line is a header is not clear")

  def _means_something(self, fields: Sequence[str]) -> bool:
    """Whether fields are names of columns, some with kinds."""
    return any(
      names.is_known(field) or re.fullmatch(r"\w+:(token|float)(_seq)?", field)
      for field in fields
    )

  def _unsure(self, problem: str) -> errors.DataError:
    lines = [line for line in self.lines if line.strip()][:3]
    marks = [m for m in _DELIMITERS if any(m in line for line in lines)]
    mark = marks[0] if marks else " "
    return errors.DataError(
      f"{problem}. The first lines are {_quoted(lines)}. Use --delimiter"
      f" {_shown(mark)} --header, or --delimiter {_shown(mark)} --noheader"
      " for a table (for side features --item_layout"
      f" delimiter={_shown(mark)}), or --format adjacency for lines of a user"
      " and its items",
      path=self.address,
    )


def dialect(mark: str, quoting: str) -> dict:
  """Arguments of `csv.reader`."""
  return {
    "delimiter": mark,
    "quoting": csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
    "escapechar": "\\" if quoting == "backslash" else None,
  }


def _is_value(field: str) -> bool:
  """Whether a field is a number or a time, and so no column name."""
  try:
    float(field)
  except ValueError:
    return times.looks_like_one(field)
  return True


def _shown(mark: str) -> str:
  return _DELIMITER_NAMES.get(mark, f"'{mark}'")


def _quoted(lines: Sequence[str]) -> str:
  return ", ".join(repr(line[:80]) for line in lines)
