"""Text files as newline-aligned chunks that know their first line."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator

from xir_tfrs.data import errors, hashes

CHUNK_BYTES = 16 << 20
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Whole lines of a file.

  Attributes:
    data: the lines; only the last line of the file may lack its newline.
    first_line: 1-based number of the first line.
    begin, end: positions in the file of the chunk and behind it.
  """

  data: bytes
  first_line: int
  begin: int
  end: int


class TextFile:
  """Reads lines of a file, and takes its fingerprint on the way.

  Attributes:
    path: the file, as errors name it.
    ends_in_newline: False if the last line that was read has no end and so
      may have been cut off.
  """

  def __init__(self, path: pathlib.Path):
    self.path = str(path)
    self.ends_in_newline = True
    self._sha256: str | None = None

  @property
  def num_bytes(self) -> int:
    return pathlib.Path(self.path).stat().st_size

  def fingerprint(self) -> dict[str, str | int]:
    """Name, size and hash; reads the file unless `chunks` has."""
    if self._sha256 is None:
      return fingerprint(pathlib.Path(self.path))
    return {
      "path": pathlib.Path(self.path).name,
      "bytes": self.num_bytes,
      "sha256": self._sha256,
    }

  def header_line(self) -> str:
    """The first line without its newline."""
    with open(self.path, "rb") as f:
      line = f.readline()
    if not line.strip():
      raise errors.DataError(
        "empty; expected a line of column names and then one row per line"
        if not self.num_bytes
        else "blank; expected the column names",
        path=self.path,
        line=1,
      )
    return self.decode(line.removeprefix(_BOM), 1).rstrip("\r\n")

  def decode(self, line: bytes, number: int, column: str | None = None) -> str:
    try:
      return line.decode("utf-8")
    except UnicodeDecodeError as e:
      raise errors.DataError(
        f"not UTF-8 (byte 0x{line[e.start]:02x} at position {e.start});"
        " convert the file, e.g. iconv -f LATIN1 -t UTF-8",
        path=self.path,
        line=number,
        column=column,
      ) from None

  def chunks(
    self,
    chunk_bytes: int,
    *,
    skip_lines: int,
    start: int = 0,
    stop: int | None = None,
    count_lines: bool = False,
  ) -> Iterator[Chunk]:
    """Yields the lines that begin in [start, stop), about so many bytes each.

    Args:
      chunk_bytes: how much is read at a time.
      skip_lines: lines to leave out at the start of the file.
      start, stop: positions in the file; None is its end.
      count_lines: read what is before `start`, too, for the true numbers of
        the lines; else they count from there.
    """
    stop = self.num_bytes if stop is None else stop
    digest = hashlib.sha256()
    whole = start == 0 and stop >= self.num_bytes
    with open(self.path, "rb") as f:
      if start:
        f.seek(start - 1)
        f.readline()  # The line that began before `start`, or its newline.
      begin = place = f.tell()
      skip_lines = 0 if begin else skip_lines
      first_line = 1 + (self._newlines_before(begin) if count_lines else 0)
      rest = b""
      while place < stop and (block := f.read(min(chunk_bytes, stop - place))):
        place += len(block)
        if place >= stop and not block.endswith(b"\n"):
          block += f.readline()
        digest.update(block)
        head, newline, tail = block.rpartition(b"\n")
        if not newline:
          rest += block
          continue
        data, rest = rest + head + newline, tail
        yield from _chunk(data, first_line, begin, skip_lines)
        first_line += data.count(b"\n")
        begin += len(data)
    if whole:
      self._sha256 = digest.hexdigest()
    self.ends_in_newline = not rest
    yield from _chunk(rest, first_line, begin, skip_lines)

  def _newlines_before(self, position: int) -> int:
    count = 0
    with open(self.path, "rb") as f:
      while position and (block := f.read(min(position, 1 << 20))):
        count += block.count(b"\n")
        position -= len(block)
    return count


def read_lines(path: pathlib.Path) -> list[str]:
  """The lines of a file without their ends, which are \\n or \\r\\n alone.

  An id may hold any other of Unicode's line separators.
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
    file.decode(line.removesuffix(b"\r"), number)
    for number, line in enumerate(lines, start=1)
  ]


def fingerprint(path: pathlib.Path) -> dict[str, str | int]:
  """Name, size and hash of a file."""
  return {
    "path": path.name,
    "bytes": path.stat().st_size,
    "sha256": hashes.sha256(path),
  }


def _chunk(
  data: bytes, first_line: int, begin: int, skip_lines: int
) -> Iterator[Chunk]:
  """Yields lines as a chunk unless none are left without those to skip."""
  end = begin + len(data)
  if begin == 0:
    data = data.removeprefix(_BOM)
  while data and first_line <= skip_lines:
    data = data.partition(b"\n")[2]
    first_line += 1
  if data:
    yield Chunk(data, first_line, begin, end)
