"""Reads text files as chunks of whole lines with line numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses, streams

CHUNK_BYTES = 16 << 20
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Whole lines of a file.

  Attributes:
    data: The lines as UTF-8; only the last line of the file may lack its
      newline.
    first_line: 1-based number of the first line.
    begin, end: Start and end of the chunk in the text.
    progress: Number of bytes of the file read so far.
  """

  data: bytes
  first_line: int
  begin: int
  end: int
  progress: int


class TextFile:
  """Reads lines of a file and computes its fingerprint at the same time.

  Attributes:
    path: The file, as errors name it.
    can_be_cut: Whether parts can be read independently.
    ends_in_newline: False if the last line read has no newline, so that it may
      be truncated.
  """

  def __init__(
    self,
    path: addresses.Address,
    compression: str | None = None,
    encoding: str = streams.UTF8,
    skip_lines: int = 0,
  ):
    """Takes a file and its layout from `layouts`.

    Args:
      path: The file.
      compression: As for `streams.Stream`.
      encoding: As for `streams.Stream`.
      skip_lines: Number of lines to skip at the start of the file.
    """
    self.path = str(path)
    self.can_be_cut = compression is None and encoding == streams.UTF8
    self.ends_in_newline = True
    self._compression, self._encoding = compression, encoding
    self._skip_lines = skip_lines
    self._sha256: str | None = None

  @property
  def num_bytes(self) -> int:
    return addresses.num_bytes(self.path)

  def fingerprint(self) -> dict[str, str | int]:
    """Name, size and hash; reads the file unless `chunks` already did."""
    if self._sha256 is None:
      return addresses.fingerprint(self.path)
    return {
      "path": addresses.name(self.path),
      "bytes": self.num_bytes,
      "sha256": self._sha256,
    }

  def decode(
    self,
    line: bytes,
    number: int,
    column: str | None = None,
    remedy: str = streams.SET_ENCODING,
  ) -> str:
    try:
      return line.decode("utf-8")
    except UnicodeDecodeError as e:
      raise errors.DataError(
        f"not UTF-8 (byte 0x{line[e.start]:02x} at position {e.start}); "
        f"{remedy}",
        path=self.path,
        line=number,
        column=column,
      ) from None

  def chunks(
    self,
    chunk_bytes: int,
    *,
    start: int = 0,
    stop: int | None = None,
    count_lines: bool = False,
  ) -> Iterator[Chunk]:
    """Yields the lines that start in [start, stop).

    Args:
      chunk_bytes: Approximate size of a chunk.
      start: First position, if the file can be cut.
      stop: End position; None for the end of the file.
      count_lines: Whether to read the file before `start` too, for the true
        line numbers; otherwise lines count from `start`.
    """
    if not self.can_be_cut:
      yield from self._stream(chunk_bytes)
      return
    size = self.num_bytes
    stop = size if stop is None else stop
    digest = hashlib.sha256()
    whole = start == 0 and stop >= size
    with addresses.open_binary(self.path) as f:
      if start:
        self._seek(f, start)
      begin = place = f.tell()
      lines = _Lines(
        begin,
        1 + (self._newlines_before(begin) if count_lines else 0),
        0 if begin else self._skip_lines,
      )
      while place < stop and (block := f.read(min(chunk_bytes, stop - place))):
        place += len(block)
        if place >= stop and not block.endswith(b"\n"):
          block += f.readline()
          place = f.tell()
        digest.update(block)
        yield from lines.add(block, place)
    if whole:
      self._sha256 = digest.hexdigest()
    self.ends_in_newline = not lines.rest
    yield from lines.last(place)

  def _stream(self, chunk_bytes: int) -> Iterator[Chunk]:
    with streams.Stream(self.path, self._compression, self._encoding) as stream:
      lines = _Lines(0, 1, self._skip_lines)
      while block := stream.read(chunk_bytes):
        yield from lines.add(block, stream.raw.tell())
      self.ends_in_newline = not lines.rest
      yield from lines.last(self.num_bytes)

  def _seek(self, f: BinaryIO, start: int) -> None:
    """Moves to the first line that starts at `start` or later."""
    for _ in range(self._skip_lines):
      f.readline()
    if f.tell() < start:
      f.seek(start - 1)
      f.readline()  # The line that starts before `start`, or its newline.

  def _newlines_before(self, position: int) -> int:
    count = 0
    with addresses.open_binary(self.path) as f:
      while position and (block := f.read(min(position, 1 << 20))):
        count += block.count(b"\n")
        position -= len(block)
    return count


class _Lines:
  """Turns blocks of bytes into chunks of whole lines."""

  def __init__(self, begin: int, first_line: int, skip_lines: int):
    self.rest = b""
    self._begin, self._first_line = begin, first_line
    self._skip_lines = skip_lines

  def add(self, block: bytes, progress: int) -> Iterator[Chunk]:
    head, newline, tail = block.rpartition(b"\n")
    if not newline:
      self.rest += block
      return
    data, self.rest = self.rest + head + newline, tail
    yield from self._chunk(data, progress)

  def last(self, progress: int) -> Iterator[Chunk]:
    yield from self._chunk(self.rest, progress)

  def _chunk(self, data: bytes, progress: int) -> Iterator[Chunk]:
    """Yields a chunk, unless all of its lines are to be skipped."""
    begin, first_line = self._begin, self._first_line
    self._begin += len(data)
    self._first_line += data.count(b"\n")
    if begin == 0:
      data = data.removeprefix(_BOM)
    while data and first_line <= self._skip_lines:
      data = data.partition(b"\n")[2]
      first_line += 1
    if data:
      yield Chunk(data, first_line, begin, self._begin, progress)


def read_lines(path: pathlib.Path) -> list[str]:
  """The lines of a file; only \\n and \\r\\n end a line.

  Ids may contain the other line separators of Unicode.
  """
  try:
    lines = path.read_bytes().removeprefix(_BOM).split(b"\n")
  except OSError as error:
    raise errors.DataError(
      f"cannot be read ({error.strerror})", path=path
    ) from None
  if not lines[-1]:
    lines.pop()
  file = TextFile(path)
  return [
    # The programs that read lists of ids have no --encoding.
    file.decode(line.removesuffix(b"\r"), number, remedy="write it as UTF-8")
    for number, line in enumerate(lines, start=1)
  ]
