"""What every reader yields, and what it is asked for."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from xir_tfrs.data import errors
from xir_tfrs.data.files import columns as arrow
from xir_tfrs.data.files import headers, side_tables, text

# Of these columns it is enough that they are there; any other must be named.
DEFAULT_TIME = "timestamp"


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns of the input mean what.

  Attributes:
    user, item: id columns, in the interactions and in the side tables.
    time: integer time column; None takes `timestamp` if there is one.
    weight: column kept as `sample_weight`, or None.
    rating: column that `min_rating` is compared with, or None.
    min_rating: rows rated below it are left out.
    user_features, item_features: columns of the side tables to keep, as NAME
      or NAME:KIND; empty takes every column that has a kind.
    separator: between the values of a sequence in a text file.
  """

  user: str = "user_id"
  item: str = "item_id"
  time: str | None = None
  weight: str | None = None
  rating: str | None = None
  min_rating: float | None = None
  user_features: tuple[str, ...] = ()
  item_features: tuple[str, ...] = ()
  separator: str = " "

  def interaction_kinds(
    self, available: list[str], path: str, line: int | None = 1
  ) -> dict[str, str]:
    """Column -> kind of value, of the interaction columns to read."""
    if self.user == self.item:
      raise errors.DataError(
        "cannot be both the user and the item", path=path, column=self.user
      )
    kinds = {self.user: "id", self.item: "id"}
    time = self.time_column(available)
    if time is not None:
      kinds[time] = "int"
    for name in (self.weight, self.rating):
      if name is not None:
        kinds.setdefault(name, "float")
    for name in kinds:
      headers.require_column(name, available, path, line)
    return kinds

  def time_column(self, available: list[str]) -> str | None:
    if self.time is None and DEFAULT_TIME in available:
      return DEFAULT_TIME
    return self.time


@dataclasses.dataclass(frozen=True)
class Block:
  """Consecutive interactions of one file.

  Attributes:
    path: the file, as errors name it.
    lines: the 1-based line of the first row when every row is a line, or an
      int array with the line of each row.
    users, items: [n] string arrays of original ids, never empty or null.
    times: [n] int64 or None.
    weights: [n] float32, finite and not negative, or None.
    ratings: [n] float64 or None.
    progress: how far this block reaches, in units of `Source.size`.
    unit: what `lines` counts: "line", or "row" where a file has no lines.
  """

  path: str
  lines: int | np.ndarray
  users: pa.Array
  items: pa.Array
  progress: int
  times: np.ndarray | None = None
  weights: np.ndarray | None = None
  ratings: np.ndarray | None = None
  unit: str = "line"

  def error(self, row: int, column: str, message: str) -> errors.DataError:
    """An error about the value of `column` in a row of this block."""
    line = (
      self.lines + row if isinstance(self.lines, int) else int(self.lines[row])
    )
    return errors.DataError(
      message, path=self.path, column=column, **{self.unit: line}
    )


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of the input that can be read by itself.

  Attributes:
    file: number of the file.
    start, stop: the lines that begin at these bytes of the file, without
      `stop`; Parquet: these row groups.
    position: of its first row or before; see `Source.read`.
  """

  file: int
  start: int
  stop: int
  position: int


class Source(Protocol):
  """An input of interactions; each call of `blocks` reads it from the start.

  Attributes:
    kind: name of the format.
    name: short name of the data set.
    num_files: how many files of interactions there are.
    size: total progress units (bytes, or rows where there are no bytes).
    has_times: whether blocks carry times.
    ignored: columns that are there but are not read.
    warnings: what was skipped -> how often, complete after `blocks`.
  """

  kind: str
  name: str
  num_files: int
  size: int
  has_times: bool
  ignored: tuple[str, ...]
  warnings: collections.Counter[str]

  def blocks(self) -> Iterator[Block]: ...

  def pieces(self) -> list[Piece]:
    """The input in parts for different workers to `read`."""

  def read(
    self, piece: Piece, count_lines: bool = False
  ) -> Iterator[tuple[int, Block]]:
    """Yields the blocks of a piece, each with the position of its first row.

    Its other rows stand at the integers after that. All positions differ, and
    by position the rows are in the order of `blocks`. `warnings` are then
    those of the piece.

    Args:
      piece: one of `pieces`.
      count_lines: give blocks their true lines, which takes reading what is
        before the piece; else lines count from the start of the piece.
    """

  def no_rows(self, file: int) -> errors.DataError:
    """The error of a file of interactions without rows."""

  def fingerprint(self, file: int) -> dict[str, str | int]:
    """Path, bytes and sha256 of a file; reads it unless `blocks` has."""

  def side_fingerprints(self) -> tuple[dict[str, str | int], ...]:
    """The same for the files of side features."""

  def files(self) -> tuple[dict[str, str | int], ...]:
    """All of these fingerprints."""

  def side_tables(
    self,
  ) -> tuple[side_tables.SideTable | None, side_tables.SideTable | None]:
    """Side features of users and of items."""

  def write_extras(
    self, directory: pathlib.Path, users: list[str], items: list[str]
  ) -> None:
    """Writes what only this source knows; ids are in dense order."""


class OnePiece:
  """`pieces` and `read` of a source that can only be read as a whole."""

  def pieces(self) -> list[Piece]:
    return [Piece(file=0, start=0, stop=self.size, position=0)]

  def read(
    self, piece: Piece, count_lines: bool = False
  ) -> Iterator[tuple[int, Block]]:
    del piece, count_lines  # Blocks always know their rows.
    position = 0
    for block in self.blocks():
      yield position, block
      position += len(block.users)


def byte_pieces(sizes: Sequence[int], chunk_bytes: int) -> list[Piece]:
  """Text files of so many bytes in pieces; a position is a byte of them all.

  A row takes at least a byte, so rows that count from the byte where their
  chunk begins never reach the next chunk.
  """
  pieces, before = [], 0
  for file, size in enumerate(sizes):
    for start in range(0, size, chunk_bytes):
      stop = min(start + chunk_bytes, size)
      pieces.append(Piece(file, start, stop, before + start))
    before += size
  return pieces


def check_weights(block: Block, column: str | None) -> None:
  """Raises for a weight that is negative or not finite."""
  if block.weights is None:
    return
  wrong = np.flatnonzero(~(np.isfinite(block.weights) & (block.weights >= 0)))
  if wrong.size:
    raise block.error(
      int(wrong[0]),
      column,
      f"{block.weights[wrong[0]]} is not a weight; a weight is a finite"
      " number and not negative",
    )


def arrow_block(
  batch: pa.RecordBatch,
  roles: Columns,
  path: str,
  first_row: int,
  progress: int,
) -> Block:
  """The interactions of a record batch."""

  def optional_floats(name: str | None) -> np.ndarray | None:
    if name is None:
      return None
    return arrow.required_floats(batch.column(name), path, name, first_row)

  time = roles.time_column(batch.schema.names)
  result = Block(
    path=path,
    lines=first_row + 1,
    unit="row",
    users=arrow.id_strings(
      batch.column(roles.user), path, roles.user, first_row
    ),
    items=arrow.id_strings(
      batch.column(roles.item), path, roles.item, first_row
    ),
    progress=progress,
    times=None
    if time is None
    else arrow.times(batch.column(time), path, time, first_row),
    weights=optional_floats(roles.weight),
    ratings=optional_floats(roles.rating),
  )
  check_weights(result, roles.weight)
  return result


@dataclasses.dataclass(frozen=True)
class SideFiles:
  """The files of side features; None where there is none."""

  user: pathlib.Path | None = None
  item: pathlib.Path | None = None

  def read(
    self, roles: Columns
  ) -> tuple[side_tables.SideTable | None, side_tables.SideTable | None]:
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

  def fingerprints(self) -> tuple[dict[str, str | int], ...]:
    return tuple(
      text.fingerprint(path) for path in (self.user, self.item) if path
    )


class FileSource:
  """What sources that read files share; see `Source`."""

  num_files: int

  def __init__(
    self, kind: str, name: str, roles: Columns, side_files: SideFiles
  ):
    self.kind, self.name, self.roles = kind, name, roles
    self.warnings: collections.Counter[str] = collections.Counter()
    self._side_files = side_files

  def fingerprint(self, file: int) -> dict[str, str | int]:
    raise NotImplementedError

  def side_fingerprints(self) -> tuple[dict[str, str | int], ...]:
    return self._side_files.fingerprints()

  def files(self) -> tuple[dict[str, str | int], ...]:
    interactions = map(self.fingerprint, range(self.num_files))
    return (*interactions, *self.side_fingerprints())

  def side_tables(
    self,
  ) -> tuple[side_tables.SideTable | None, side_tables.SideTable | None]:
    return self._side_files.read(self.roles)

  def write_extras(
    self, directory: pathlib.Path, users: list[str], items: list[str]
  ) -> None:
    del directory, users, items  # A file holds no more than was read.
