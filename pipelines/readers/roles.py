"""Assigns roles to columns, by user settings or by name."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.readers import inputs
from xir_tfrs.data import errors
from xir_tfrs.data.files import columns as columns_lib
from xir_tfrs.data.files import headers, names, rows, times

_FLAGS = {
  "user": "--user_column",
  "item": "--item_column",
  "time": "--time_column",
  "rating": "--rating_column",
  "event": "--event_column",
}
_LABELLED = r"-[01]$"
_SHOWN = 24  # Characters of a value, in errors.


@dataclasses.dataclass(frozen=True)
class ItemList:
  """The format of a text that lists items.

  Attributes:
    separator: Separator of items.
    labelled: Whether items end in -1, or in -0 if they do not count.
  """

  separator: str
  labelled: bool


@dataclasses.dataclass(frozen=True)
class Roles:
  """The columns of an input by role; None for roles without a column.

  Attributes:
    user, item, time, weight, rating, event, title: Names of columns.
    times: The format of times.
    item_list: How `item` lists items in text.
    weights_of_events: Event -> weight, for the events to keep; None if all have
      the same weight.
    missing_user: How to treat rows without a user, as in the setting.
    guessed: Roles that the user did not name.
  """

  user: str | None
  item: str
  time: str | None = None
  weight: str | None = None
  rating: str | None = None
  event: str | None = None
  times: times.Times | None = None
  item_list: ItemList | None = None
  weights_of_events: dict[str, float | None] = dataclasses.field(
    default_factory=dict
  )
  missing_user: str | None = None
  guessed: tuple[str, ...] = ()
  title: str | None = None

  @property
  def has_weights(self) -> bool:
    return self.weight is not None or any(
      weight is not None for weight in self.weights_of_events.values()
    )

  @property
  def columns(self) -> dict[str, pa.DataType | None]:
    """Column -> the type to read it as, or None."""
    wanted: dict[str, pa.DataType | None] = {}
    for name in (self.user, self.item, self.event, self.title):
      if name is not None:
        wanted[name] = None
    if self.time is not None:
      is_number = self.times is None or self.times.form == "number"
      wanted.setdefault(self.time, pa.int64() if is_number else None)
    for name in (self.weight, self.rating):
      if name is not None:
        wanted.setdefault(name, pa.float64())
    return wanted

  def __str__(self) -> str:
    parts = [
      f"{role} {name!r}"
      for role in ("user", "item", "time", "weight", "rating", "event", "title")
      if (name := getattr(self, role)) is not None
    ]
    if self.user is None:
      parts.insert(0, "user: a new one for each line")
    if self.item_list:
      form = f"lists split at {self.item_list.separator!r}"
      labels = ", those with -1" if self.item_list.labelled else ""
      parts.append(f"{form}{labels}")
    text = f"columns: {', '.join(parts)}"
    if self.guessed:
      flags = ", ".join(_FLAGS[role] for role in self.guessed)
      text += f" (guessed; {flags} choose others)"
    return text


def resolve(
  config: inputs.Columns,
  available: Sequence[str],
  path: str,
  line: int | None = None,
  sample: rows.Rows | None = None,
  has_header: bool = True,
) -> Roles:
  """Finds the roles of the columns of a file.

  Args:
    config: Settings of the user.
    available: The columns of the file.
    path: The file, for errors.
    line: The line of its header, for errors.
    sample: The first rows, if they are known.
    has_header: Whether the file names its columns.

  Raises:
    DataError: A column is missing, ambiguous, or has the wrong content.
  """
  return _Resolver(
    config, list(available), path, line, sample, has_header
  ).roles()


@dataclasses.dataclass
class _Resolver:
  """See `resolve`."""

  config: inputs.Columns
  available: list[str]
  path: str
  line: int | None
  sample: rows.Rows | None
  has_header: bool

  def __post_init__(self):
    self._guessed: list[str] = []

  def roles(self) -> Roles:
    config = self.config
    item_given = config.item or config.item_list
    if not self.has_header and not (config.user and item_given):
      user, item, time = self._by_place()
    else:
      user = self._column("user", config.user)
      item = self._column("item", item_given)
      time = self._column("time", config.time)
    needs_user = user is None and config.missing_user != "new"
    if needs_user or item is None:
      unknown = {"user": needs_user, "item": item is None}
      raise self._unknown(*(role for role, is_so in unknown.items() if is_so))
    if user == item:
      raise errors.DataError(
        "cannot be both the user and the item", path=self.path, column=user
      )
    weights = config.event_weights
    rating = event = None
    if config.min_rating is not None:
      rating = self._column("rating", config.rating) or self._required("rating")
    if weights:
      event = self._column("event", config.event) or self._required("event")
    return Roles(
      user,
      item,
      time,
      self._named(config.weight),
      rating,
      event,
      self._times(time),
      self._item_list(item),
      weights,
      config.missing_user,
      tuple(self._guessed),
      self._named(config.item_title),
    )

  def _named(self, name: str | None) -> str | None:
    """The column that the user's name refers to."""
    if name is None:
      return None
    found = names.matching(name, self.available)
    if found is None:
      headers.require_column(name, self.available, self.path, self.line)
    return found

  def _column(self, role: str, given: str | None) -> str | None:
    if role == "time" and given in inputs.NO_TIMES:
      return None
    if given is not None:
      return self._named(given)
    taken = {self.config.user, self.config.item, self.config.item_list}
    taken |= {self.config.weight, self.config.rating}
    found = [
      column
      for column in names.guesses(role, self.available)
      if column not in taken
    ]
    # With records in lists, the columns of the outer records come first.
    outermost = [column for column in found if "." not in column]
    found = outermost or found
    if len(found) > 1:
      raise errors.DataError(
        f"{' and '.join(map(repr, found))} may both be the {role}; choose"
        f" with {_FLAGS[role]} {found[0]}. The file has {self._there}",
        path=self.path,
        line=self.line,
      )
    if found:
      self._guessed.append(role)
      return found[0]
    return None

  @property
  def _there(self) -> str:
    return ", ".join(map(repr, self.available))

  def _required(self, role: str) -> str:
    raise self._unknown(role)

  def _unknown(self, *roles: str) -> errors.DataError:
    more = ", or give --missing_user new" if "user" in roles else ""
    flags = " ".join(f"{_FLAGS[role]} NAME" for role in roles)
    return errors.DataError(
      f"no column has a name like {' or '.join(roles)}; the file has"
      f" {self._there}{self._first_row}: use {flags}{more}",
      path=self.path,
      line=self.line,
    )

  @property
  def _first_row(self) -> str:
    """The values of the first row, for messages."""
    if self.sample is None:
      return ""
    values = (self.sample.columns[name][0].as_py() for name in self.available)
    shown = ", ".join(textwrap.shorten(str(v), _SHOWN) or "''" for v in values)
    return f" (first row: {shown})"

  def _by_place(self) -> tuple[str | None, str | None, str | None]:
    """Finds user, item and time in a file without a header.

    The first two columns are the user and the item, the time is the column with
    times; there may be one more column.
    """
    time = None
    if self.config.time not in inputs.NO_TIMES:
      time = self._named(self.config.time) or self._timely()
    left = [name for name in self.available if name != time]
    named = (self.config.user, self.config.item or self.config.item_list)
    if any(named) or not self._is_rated(left):
      first = []
      if self.sample:
        columns = self.sample.columns
        first = [str(columns[n][0].as_py()) for n in self.available]
      raise errors.DataError(
        "the file has no header, and the meaning of its columns is not clear:"
        f" the first row is {', '.join(map(repr, first))}; use"
        " --user_column 1 --item_column 2, by number, or name all with --names",
        path=self.path,
        line=1,
      )
    self._guessed += ["user", "item", *(["time"] if time else [])]
    return left[0], left[1], time

  def _is_rated(self, left: list[str]) -> bool:
    """Whether only a user, an item and at most one number are left."""
    if len(left) != 3 or self.sample is None:
      return len(left) == 2
    values = columns_lib.plain(self.sample.columns[left[2]])[:50].to_pylist()
    return all(columns_lib.parse_number(str(v)) is not None for v in values)

  def _timely(self) -> str | None:
    if self.sample is None:
      return None
    found = []
    for name, column in self.sample.columns.items():
      values = columns_lib.plain(column)[:50].to_pylist()
      if all(times.looks_like_one(str(value)) for value in values):
        found.append(name)
    # Ids may be large numbers too; ascending ones are times.
    return found[-1] if found and len(self.available) > 2 else None

  def _times(self, name: str | None) -> times.Times | None:
    config = self.config
    if name is None or self.sample is None:
      return None
    column = self.sample.columns[name]
    where = self.sample.places
    if columns_lib.is_list(column):
      lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
      column, where = column.flatten(), where.of_values(lengths)
    return times.detect(
      column, name, where, config.time_format, config.time_unit
    )

  def _item_list(self, name: str) -> ItemList | None:
    if self.config.item_list is None:
      return None
    if self.sample is None:
      return ItemList(self.config.list_separator or " ", False)
    column = self.sample.columns[name]
    if columns_lib.is_list(column):
      return None
    text = columns_lib.strings(column, name, self.sample.places)
    mark = self.config.list_separator or next(
      (
        mark
        for mark in ("|", ";", ",", " ")
        if pc.any(pc.match_substring(text, mark)).as_py()
      ),
      " ",
    )
    items = pc.split_pattern(text, mark).flatten()
    items = pc.utf8_trim_whitespace(items)
    items = items.filter(pc.not_equal(items, ""))
    labelled = (
      len(items) and pc.all(pc.match_substring_regex(items, _LABELLED)).as_py()
    )
    return ItemList(mark, bool(labelled))
