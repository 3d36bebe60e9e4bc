"""Blocks of interactions, which every reader yields."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.readers import roles as roles_lib
from xir_tfrs.data import errors
from xir_tfrs.data.files import columnar, columns
from xir_tfrs.data.files import places as places_lib
from xir_tfrs.data.files import times as times_lib

# Bytes of `size` per row, for a source that is not text.
ROW_BYTES = columnar.ROW_BYTES


@dataclasses.dataclass(frozen=True)
class Block:
  """Consecutive interactions of one file.

  Attributes:
    places: Positions of the rows.
    users, items: [n] arrays of original ids, as `columns.ids` returns them.
    progress: End of this block, in units of `Source.size`.
    times: [n] int64 or None.
    weights: [n] float32, finite and not negative, or None.
    ratings: [n] float64 or None.
    titles: [n] string array of the titles of the items, or None.
  """

  places: places_lib.Places
  users: pa.Array
  items: pa.Array
  progress: int
  times: np.ndarray | None = None
  weights: np.ndarray | None = None
  ratings: np.ndarray | None = None
  titles: pa.Array | None = None

  def strings(self) -> tuple[list[str], list[str]]:
    """Returns the users and the items as strings."""
    users, items = (ids.cast("string") for ids in (self.users, self.items))
    return users.to_pylist(), items.to_pylist()

  def error(self, row: int, column: str, message: str) -> errors.DataError:
    """Returns an error about the value of `column` in a row of this block."""
    return self.places.error(row, column, message)


@dataclasses.dataclass(frozen=True)
class Piece:
  """A part of the input that can be read independently.

  Attributes:
    file: Number of the file.
    start, stop: The lines that start at these bytes of the file, without
      `stop`; for Parquet, these row groups.
    position: Position of the first row or below; see `Source.read`.
  """

  file: int
  start: int
  stop: int
  position: int


def from_columns(
  found: Mapping[str, pa.Array],
  roles: roles_lib.Roles,
  where: places_lib.Places,
  progress: int,
  warnings: collections.Counter[str],
  file: int = 0,
) -> Block:
  """Builds a block from columns.

  Args:
    found: The columns that `roles` names.
    roles: The roles of the columns.
    where: The places of the rows.
    progress: End of the rows, in units of `Source.size`.
    warnings: Collects what is left out -> how often.
    file: Number of the file, which distinguishes new users of two files.
  """
  table = _Table(dict(found), where)
  if roles.item_list is not None:
    split = _split(table.columns[roles.item], roles, where)
    table.columns[roles.item] = split
  table = _exploded(table, roles, warnings)
  if roles.user is None or roles.missing_user is not None:
    table = _with_users(table, roles, warnings, file)
  weights = None
  if roles.event is not None:
    table, weights = _chosen(table, roles, warnings)
  where = table.places

  def of(
    name: str | None, read: Callable[[Any, str, places_lib.Places], Any]
  ) -> Any:
    return None if name is None else read(table.columns[name], name, where)

  times = roles.times or times_lib.Times("number", None)
  if roles.weight is not None:
    numbers = of(roles.weight, columns.finite)
    weights = columns.weights(numbers, roles.weight, where)
  return Block(
    places=where,
    users=_ids(table.columns[roles.user or _NEW], roles.user or _NEW, where),
    items=_ids(table.columns[roles.item], roles.item, where),
    progress=progress,
    times=of(roles.time, times.convert),
    weights=weights,
    ratings=of(roles.rating, columns.finite),
    titles=of(roles.title, columns.titles),
  )


# The name of the user column if the input has none.
_NEW = "user"


@dataclasses.dataclass
class _Table:
  """Columns and the places of their rows."""

  columns: dict[str, pa.Array]
  places: places_lib.Places

  @property
  def rows(self) -> int:
    return len(next(iter(self.columns.values())))

  def filtered(self, keep: np.ndarray) -> _Table:
    if keep.all():
      return self
    return self.taken(np.flatnonzero(keep))

  def taken(self, rows: np.ndarray) -> _Table:
    index = pa.array(rows)
    return _Table(
      {name: column.take(index) for name, column in self.columns.items()},
      self.places.take(rows),
    )


def _ids(column: pa.Array, name: str, where: places_lib.Places) -> pa.Array:
  try:
    return columns.ids(column, name, where)
  except errors.DataError as error:
    if not str(error).endswith("empty id"):
      raise
    missing = int(_is_missing(column, ("",)).sum())
    more = f", and in {missing - 1} more of these {len(column)} rows"
    raise errors.DataError(
      f"empty id{more if missing > 1 else ''}; fill it in or drop the row; for"
      " users, --missing_user drop leaves these rows out, and new gives each a"
      " new user",
      path=error.path,
      line=error.line,
      row=error.row,
      column=error.column,
    ) from None


def _split(
  column: pa.Array, roles: roles_lib.Roles, where: places_lib.Places
) -> pa.ListArray:
  """Splits texts into lists of items."""
  form = roles.item_list
  assert form is not None
  text = columns.strings(column, roles.item, where)
  lists = pc.split_pattern(text, form.separator)
  items = pc.utf8_trim_whitespace(lists.flatten())
  keep = pc.not_equal(items, "")
  if form.labelled:
    keep = pc.and_(keep, pc.ends_with(items, "-1"))
    items = pc.utf8_slice_codeunits(items, 0, -2)
  mask = keep.to_numpy(zero_copy_only=False)
  before = np.concatenate([[0], np.cumsum(mask)])
  offsets = before[lists.offsets.to_numpy() - lists.offsets[0].as_py()]
  return pa.ListArray.from_arrays(offsets.astype(np.int32), items.filter(keep))


def _exploded(
  table: _Table, roles: roles_lib.Roles, warnings: collections.Counter[str]
) -> _Table:
  """Makes one row per item of a list, with the other values of its row."""
  items = table.columns[roles.item]
  if not columns.is_list(items):
    return table
  lengths = _lengths(items)
  warnings["users_without_items"] += int((lengths == 0).sum())
  rows = np.repeat(np.arange(len(lengths)), lengths)
  index = pa.array(rows)
  found = {}
  for name, column in table.columns.items():
    if not columns.is_list(column):
      found[name] = column.take(index)
      continue
    wrong = np.flatnonzero(_lengths(column) != lengths)
    if wrong.size:
      row = int(wrong[0])
      raise table.places.error(
        row,
        name,
        f"{_lengths(column)[row]} values, but {lengths[row]} of"
        f" {roles.item!r}; expected one, or the same number",
      )
    found[name] = column.flatten()
  return _Table(found, table.places.take(rows))


def _lengths(column: pa.Array) -> np.ndarray:
  return pc.fill_null(pc.list_value_length(column), 0).to_numpy()


def _with_users(
  table: _Table,
  roles: roles_lib.Roles,
  warnings: collections.Counter[str],
  file: int,
) -> _Table:
  """Drops rows without a user, or gives each line a new user."""
  missing = np.ones(table.rows, bool)
  if roles.user is not None:
    missing = _is_missing(table.columns[roles.user], columns.MISSING)
    warnings["rows_without_user"] += int(missing.sum())
  if roles.missing_user == "drop":
    return table.filtered(~missing)
  if not missing.any():
    return table
  rows = np.flatnonzero(missing)
  numbers = table.places.take(rows).all(len(rows))
  new = np.full(table.rows, None, object)
  new[rows] = [f"new user {file}:{number}" for number in numbers.tolist()]
  users = pa.array(new, pa.string())
  if roles.user is not None:
    given = table.columns[roles.user]
    if pa.types.is_floating(given.type):
      given = pc.cast(given, pa.int64(), safe=False)
    known = columns.strings(given, roles.user, table.places)
    users = pc.if_else(pa.array(missing), users, known)
  table.columns[roles.user or _NEW] = users
  return table


def _is_missing(column: pa.Array, words: tuple[str, ...]) -> np.ndarray:
  """Whether values are null, NaN, or a text that means missing."""
  if pa.types.is_floating(column.type):
    missing = pc.is_null(column, nan_is_null=True)
  elif columns.is_text(column.type):
    found = column.cast(pa.binary())  # The values may not be valid text.
    is_word = pc.is_in(found, value_set=pa.array(words).cast(pa.binary()))
    missing = pc.or_(pc.is_null(column), is_word)
  else:
    missing = pc.is_null(column)
  return missing.to_numpy(zero_copy_only=False)


def _chosen(
  table: _Table, roles: roles_lib.Roles, warnings: collections.Counter[str]
) -> tuple[_Table, np.ndarray | None]:
  """Keeps the rows of the chosen events, with their weights."""
  assert roles.event is not None
  text = columns.strings(table.columns[roles.event], roles.event, table.places)
  events = list(roles.weights_of_events)
  codes = pc.fill_null(
    pc.index_in(pc.utf8_trim_whitespace(text), value_set=pa.array(events)), -1
  ).to_numpy()
  keep = codes >= 0
  warnings["rows_of_other_events"] += int((~keep).sum())
  weights = list(roles.weights_of_events.values())
  of_rows = None
  if weights and weights[0] is not None:
    of_rows = np.array(weights, np.float32)[codes[keep]]
  return table.filtered(keep), of_rows
