"""Inputs of interactions, and what they share."""

from __future__ import annotations

import abc
import collections
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from pipelines.readers import blocks, inputs
from pipelines.readers import roles as roles_lib
from xir_tfrs.data import errors
from xir_tfrs.data.files import addresses, layouts, side_tables

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
    has_times, has_weights: whether blocks carry them.
    roles: which columns are what; None where there are no files.
    read_as: how the input is written and what its columns mean, to be shown.
    ignored: columns that are there but are not read.
    empty_files: files that hold nothing at all and are no part of the others.
    warnings: what was skipped -> how often, complete after `blocks` or `read`.
  """

  num_files = 1
  size: int
  has_times: bool
  has_weights = False
  roles: roles_lib.Roles | None = None
  read_as = ""
  ignored: tuple[str, ...] = ()
  empty_files = 0
  splits: tuple[str, ...] = ()

  def __init__(self, kind: str, name: str):
    self.kind, self.name = kind, name
    self.warnings: collections.Counter[str] = collections.Counter()

  def split_of(self, file: int) -> str | None:
    """The split of a file, if the user gave them."""
    return self.splits[file] if self.splits else None

  def blocks(self) -> Iterator[tuple[int, blocks.Block]]:
    """Yields the rows of one file after the other, each with its number."""
    self.warnings.clear()
    rows: collections.Counter[int] = collections.Counter()
    for file in range(self.num_files):
      for _, block in self._read(self._whole(file), count_lines=False):
        rows[file] += len(block.users)
        yield file, block
    if error := self.missing_rows(rows):
      raise error
    if empty := self.count_empty(rows):
      self.warnings["empty_files"] = empty

  def count_empty(self, rows: Mapping[int, int]) -> int:
    """How many files hold no rows, given how many each holds."""
    files = range(self.num_files)
    return self.empty_files + sum(not rows.get(file) for file in files)

  def missing_rows(self, rows: Mapping[int, int]) -> errors.DataError | None:
    """The error if all files, or all of a split, hold no rows."""
    files: dict[str | None, list[int]] = {}
    for file in range(self.num_files):
      files.setdefault(self.split_of(file), []).append(file)
    for of_split in files.values():
      if not any(rows.get(file) for file in of_split):
        return self.no_rows(of_split[0])
    return None

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
  """The files of side features; None where there is none.

  Attributes:
    user, item: their addresses.
    user_wish, item_wish: what the user says of them.
  """

  user: str | None = None
  item: str | None = None
  user_wish: layouts.Wish = layouts.Wish()
  item_wish: layouts.Wish = layouts.Wish()

  def read(
    self, config: inputs.Columns, user_column: str, item_column: str
  ) -> SideTables:
    """The side tables of users and of items.

    Args:
      config: what the user says of columns.
      user_column, item_column: ids of the interactions.
    """
    users = self.user and side_tables.read(
      self.user,
      config.user_key or user_column,
      config.user_features,
      "--user_features",
      config.separator,
      separators=self._separators(config, config.user_features),
      wish=self.user_wish,
    )
    items = self.item and side_tables.read(
      self.item,
      config.item_key or item_column,
      config.item_features,
      "--item_features",
      config.separator,
      separators=self._separators(config, config.item_features),
      wish=self.item_wish,
      title=config.item_title,
    )
    return users or None, items or None

  def of_rows(self, config: inputs.Columns) -> inputs.Columns:
    """What is said of the interactions: titles stand in the item file."""
    return dataclasses.replace(config, item_title=None) if self.item else config

  def _separators(
    self, config: inputs.Columns, features: Sequence[str]
  ) -> dict[str, str]:
    """Those of the features of a side; without features, all."""
    if not (self.user and self.item):
      return dict(config.separators)
    named = {feature.partition(":")[0] for feature in features}
    return {
      name: mark for name, mark in config.separators.items() if name in named
    }

  def fingerprints(self) -> tuple[Fingerprint, ...]:
    return tuple(
      addresses.fingerprint(path) for path in (self.user, self.item) if path
    )


class FileSource(Source):
  """A source that names its columns and may have files of side features."""

  roles: roles_lib.Roles

  def __init__(
    self, kind: str, name: str, config: inputs.Columns, side_files: SideFiles
  ):
    super().__init__(kind, name)
    self._config, self._side_files = config, side_files

  def side_fingerprints(self) -> tuple[Fingerprint, ...]:
    return self._side_files.fingerprints()

  def side_tables(self) -> SideTables:
    # A number is a place in one file, and says nothing of another.
    user, item = (
      role if role and not role.isdigit() else f"{side}_id"
      for side, role in (("user", self.roles.user), ("item", self.roles.item))
    )
    return self._side_files.read(self._config, user, item)
