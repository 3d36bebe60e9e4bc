"""The base classes of inputs of interactions."""

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

# Why rows were left out, by the name of their count in `Source.warnings`.
_LEFT_OUT = {
  "rows_of_other_events": "events that --events does not name",
  "rows_without_user": "no user",
}


class Source(abc.ABC):
  """An input of interactions; each call of `blocks` reads it from the start.

  Attributes:
    kind: Name of the format.
    name: Short name of the data set.
    num_files: Number of files of interactions.
    size: Approximate size of the rows as text, in bytes.
    splits: The split of each file, if the user gave them; else empty.
    has_times, has_weights: Whether blocks have them.
    roles: Roles of the columns; None if there are no files.
    read_as: Description of the format and the columns.
    ignored: Columns that are not read.
    empty_files: Files without any content; they are not among the others.
    warnings: What was skipped -> how often; complete after `blocks` or `read`.
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
    """Returns the split of a file, if the user gave the splits."""
    return self.splits[file] if self.splits else None

  def blocks(self) -> Iterator[tuple[int, blocks.Block]]:
    """Yields the blocks of all files, each with the number of its file."""
    self.warnings.clear()
    rows: collections.Counter[int] = collections.Counter()
    for file in range(self.num_files):
      for _, block in self._read(self._whole(file), count_lines=False):
        rows[file] += len(block.users)
        yield file, block
    if error := self.missing_rows(rows, self.warnings):
      raise error
    if empty := self.count_empty(rows):
      self.warnings["empty_files"] = empty

  def count_empty(self, rows: Mapping[int, int]) -> int:
    """Returns the number of files without rows, given the rows of each."""
    files = range(self.num_files)
    return self.empty_files + sum(not rows.get(file) for file in files)

  def missing_rows(
    self, rows: Mapping[int, int], warnings: Mapping[str, int]
  ) -> errors.DataError | None:
    """Returns an error if all files, or all of a split, have no rows.

    Args:
      rows: Number of a file -> its rows.
      warnings: What was skipped -> how often.
    """
    files: dict[str | None, list[int]] = {}
    for file in range(self.num_files):
      files.setdefault(self.split_of(file), []).append(file)
    for of_split in files.values():
      if not any(rows.get(file) for file in of_split):
        return self._none_of(of_split[0], warnings)
    return None

  def _none_of(
    self, file: int, warnings: Mapping[str, int]
  ) -> errors.DataError:
    """The error for a file, or a split that begins with it, without rows."""
    left_out = [
      f"{warnings[name]:,} rows have {reason}"
      for name, reason in _LEFT_OUT.items()
      if warnings.get(name)
    ]
    if not left_out:
      return self.no_rows(file)
    split = self.split_of(file)
    which = "no rows are left" + (f" in --{split}" if split else "")
    return errors.DataError(
      f"{which}: {' and '.join(left_out)}", path=self.no_rows(file).path
    )

  def read(
    self, piece: blocks.Piece, count_lines: bool = False
  ) -> Iterator[tuple[int, blocks.Block]]:
    """Yields the blocks of a piece, each with the position of its first row.

    The positions of the other rows follow. All positions are distinct and have
    the order of `blocks`. Afterwards, `warnings` are those of the piece.

    Args:
      piece: One of `pieces`.
      count_lines: Whether to give blocks their true lines, which requires
        reading the file before the piece; otherwise lines count from the start
        of the piece.
    """
    self.warnings.clear()
    yield from self._read(piece, count_lines)

  def pieces(self) -> list[blocks.Piece]:
    """Returns parts of the input for different workers to `read`."""
    return [self._whole(file) for file in range(self.num_files)]

  @abc.abstractmethod
  def _whole(self, file: int) -> blocks.Piece:
    """A file as one piece."""

  @abc.abstractmethod
  def _read(
    self, piece: blocks.Piece, count_lines: bool
  ) -> Iterator[tuple[int, blocks.Block]]:
    """Does the work of `read` and adds to `warnings`."""

  @abc.abstractmethod
  def no_rows(self, file: int) -> errors.DataError:
    """Returns the error for a file of interactions without rows."""

  @abc.abstractmethod
  def fingerprint(self, file: int) -> Fingerprint:
    """Path, size and hash of a file; reads it unless `blocks` already did."""

  def side_fingerprints(self) -> tuple[Fingerprint, ...]:
    """Returns the fingerprints of the files of side features."""
    return ()

  def files(self) -> tuple[Fingerprint, ...]:
    """Returns the fingerprints of all files."""
    interactions = map(self.fingerprint, range(self.num_files))
    return (*interactions, *self.side_fingerprints())

  @abc.abstractmethod
  def side_tables(self) -> SideTables:
    """Reads the side features of users and items."""

  def write_extras(
    self, directory: pathlib.Path, users: list[str], items: list[str]
  ) -> None:
    """Writes additional files of this source; ids are in dense order."""
    del directory, users, items  # Most sources have no additional files.


@dataclasses.dataclass(frozen=True)
class SideFiles:
  """The files of side features; None for a missing file.

  Attributes:
    user, item: Addresses of the files.
    user_wish, item_wish: Settings of the user for the files.
  """

  user: str | None = None
  item: str | None = None
  user_wish: layouts.Wish = layouts.Wish()
  item_wish: layouts.Wish = layouts.Wish()

  def read(
    self, config: inputs.Columns, user_column: str, item_column: str
  ) -> SideTables:
    """Reads the side tables of users and items.

    Args:
      config: Settings of the columns.
      user_column: Column of user ids in the interactions.
      item_column: Column of item ids in the interactions.
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
    """The settings for the interactions, without titles in the item file."""
    return dataclasses.replace(config, item_title=None) if self.item else config

  def _separators(
    self, config: inputs.Columns, features: Sequence[str]
  ) -> dict[str, str]:
    """The separators of the features of a side; without features, all."""
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
    # A column number refers to one file, so it does not apply to side files.
    user, item = (
      role if role and not role.isdigit() else f"{side}_id"
      for side, role in (("user", self.roles.user), ("item", self.roles.item))
    )
    return self._side_files.read(self._config, user, item)
