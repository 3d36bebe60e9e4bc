"""Inputs of interactions, and what they share."""

from __future__ import annotations

import abc
import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

from pipelines.readers import blocks, inputs
from xir_tfrs.data import errors
from xir_tfrs.data.files import side_tables, text

Fingerprint = dict[str, str | int]
SideTables = tuple[side_tables.SideTable | None, side_tables.SideTable | None]


class Source(abc.ABC):
  """An input of interactions; each call of `blocks` reads it from the start.

  Attributes:
    kind: name of the format.
    name: short name of the data set.
    num_files: how many files of interactions there are.
    size: about how many bytes the rows take as text.
    splits: the split of each file, where the user gave them; else empty.
    has_times: whether blocks carry times.
    ignored: columns that are there but are not read.
    warnings: what was skipped -> how often, complete after `blocks` or `read`.
  """

  num_files = 1
  size: int
  has_times: bool
  ignored: tuple[str, ...] = ()
  splits: tuple[str, ...] = ()

  def __init__(self, kind: str, name: str):
    self.kind, self.name = kind, name
    self.warnings: collections.Counter[str] = collections.Counter()

  def split_of(self, file: int) -> str | None:
    """The split of a file, if the user gave them."""
    return self.splits[file] if self.splits else None

  def blocks(self) -> Iterator[tuple[int, blocks.Block]]:
    """Yields the rows of one file after the other, each of which has some.

    A block comes with the number of its file.
    """
    self.warnings.clear()
    for file in range(self.num_files):
      rows = 0
      for _, block in self._read(self._whole(file), count_lines=False):
        rows += len(block.users)
        yield file, block
      if not rows:
        raise self.no_rows(file)

  def read(
    self, piece: blocks.Piece, count_lines: bool = False
  ) -> Iterator[tuple[int, blocks.Block]]:
    """Yields the blocks of a piece, each with the position of its first row.

    Its other rows stand at the integers after that. All positions differ, and
    by position the rows are in the order of `blocks`. `warnings` are then
    those of the piece.

    Args:
      piece: one of `pieces`.
      count_lines: give blocks their true lines, which takes reading what is
        before the piece; else lines count from the start of the piece.
    """
    self.warnings.clear()
    yield from self._read(piece, count_lines)

  def pieces(self) -> list[blocks.Piece]:
    """The input in parts for different workers to `read`."""
    return [self._whole(file) for file in range(self.num_files)]

  @abc.abstractmethod
  def _whole(self, file: int) -> blocks.Piece:
    """A file as one piece."""

  @abc.abstractmethod
  def _read(
    self, piece: blocks.Piece, count_lines: bool
  ) -> Iterator[tuple[int, blocks.Block]]:
    """`read`, which adds to `warnings`."""

  @abc.abstractmethod
  def no_rows(self, file: int) -> errors.DataError:
    """The error of a file of interactions without rows."""

  @abc.abstractmethod
  def fingerprint(self, file: int) -> Fingerprint:
    """Path, bytes and sha256 of a file; reads it unless `blocks` has."""

  def side_fingerprints(self) -> tuple[Fingerprint, ...]:
    """The same for the files of side features."""
    return ()

  def files(self) -> tuple[Fingerprint, ...]:
    """All of these fingerprints."""
    interactions = map(self.fingerprint, range(self.num_files))
    return (*interactions, *self.side_fingerprints())

  @abc.abstractmethod
  def side_tables(self) -> SideTables:
    """Side features of users and of items."""

  def write_extras(
    self, directory: pathlib.Path, users: list[str], items: list[str]
  ) -> None:
    """Writes what only this source knows; ids are in dense order."""
    del directory, users, items  # Most sources hold no more than was read.


@dataclasses.dataclass(frozen=True)
class SideFiles:
  """The files of side features; None where there is none."""

  user: pathlib.Path | None = None
  item: pathlib.Path | None = None

  def read(self, roles: inputs.Columns) -> SideTables:
    """The side tables of users and of items."""
    users = self.user and side_tables.read(
      self.user,
      roles.user,
      roles.user_features,
      "--user_features",
      roles.separator,
    )
    items = self.item and side_tables.read(
      self.item,
      roles.item,
      roles.item_features,
      "--item_features",
      roles.separator,
    )
    return users, items

  def fingerprints(self) -> tuple[Fingerprint, ...]:
    return tuple(
      text.fingerprint(path) for path in (self.user, self.item) if path
    )


class FileSource(Source):
  """A source that names its columns and may have files of side features."""

  def __init__(
    self, kind: str, name: str, roles: inputs.Columns, side_files: SideFiles
  ):
    super().__init__(kind, name)
    self.roles, self._side_files = roles, side_files

  def side_fingerprints(self) -> tuple[Fingerprint, ...]:
    return self._side_files.fingerprints()

  def side_tables(self) -> SideTables:
    return self._side_files.read(self.roles)


class TextSource(FileSource):
  """A source of text files, cut into pieces at line ends.

  A position is a byte of all files together. A row takes at least a byte, so
  rows that count from the byte where their chunk begins never reach the next
  chunk.
  """

  def __init__(
    self,
    kind: str,
    files: Sequence[text.TextFile],
    roles: inputs.Columns,
    side_files: SideFiles,
    chunk_bytes: int,
  ):
    name = pathlib.Path(files[0].path).stem
    super().__init__(kind, name, roles, side_files)
    self._texts, self._chunk_bytes = files, chunk_bytes
    self._bytes = [file.num_bytes for file in files]
    self.num_files, self.size = len(files), sum(self._bytes)

  def pieces(self) -> list[blocks.Piece]:
    pieces = []
    for file, size in enumerate(self._bytes):
      before = self._before(file)
      for start in range(0, size, self._chunk_bytes):
        stop = min(start + self._chunk_bytes, size)
        pieces.append(blocks.Piece(file, start, stop, before + start))
    return pieces

  def fingerprint(self, file: int) -> Fingerprint:
    return self._texts[file].fingerprint()

  def _before(self, file: int) -> int:
    """Bytes of the files before it."""
    return sum(self._bytes[:file])

  def _whole(self, file: int) -> blocks.Piece:
    return blocks.Piece(file, 0, self._bytes[file], self._before(file))
