"""What a search may choose: what settings declare, narrowed by the user.

Nothing here knows a setting by name but for those that the data decides. What
is tried of each stands where the setting is declared (`search`), and so does
with which others it is used at all (`only`).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.training import config as configs
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import settings

Span = settings.Span
# What may be tried of a setting: a span of numbers, or a list of values.
Search = Span | tuple[Any, ...]
Suggest = Callable[[settings.Setting, Search], Any]

_SETTINGS = {one.name: one for one in settings.settings_of(configs.TrainConfig)}
# No search chooses these: where and how long a run goes on, by what runs are
# compared, and luck.
_NOT_SEARCHED = configs.CHANGEABLE | {
  *("preset", "seed", "rows", "metric", "history_ties")
}
# A search begins with the defaults of these, as far as it may choose them.
_FIRST = {"query_tower": ("id", "history"), "task": ("ssl_pop", "xir")}
# The softmax over more candidates costs too much to be tried unasked.
MOST_CANDIDATES = 10_000


@dataclasses.dataclass(frozen=True)
class Space:
  """The runs that a search may try.

  Attributes:
    fixed: Settings of all of them.
    searched: What is tried of others, by name, in the order of their
      declaration: those that decide whether others are used come first.
  """

  fixed: Mapping[str, Any]
  searched: Mapping[str, Search]

  def choose(self, suggest: Suggest) -> dict[str, Any]:
    """Chooses a value for each searched setting that the run then uses.

    Args:
      suggest: Chooses one.
    """
    chosen: dict[str, Any] = {}
    for name, search in self.searched.items():
      if _SETTINGS[name].is_used(self.values(chosen)):
        chosen[name] = suggest(_SETTINGS[name], search)
    return chosen

  def settings(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run is given; those it would not use are left out."""
    values = self.values(chosen)
    return {
      name: value
      for name, value in {**self.fixed, **_rounded(chosen)}.items()
      if _SETTINGS[name].is_used(values)
    }

  def config(
    self, chosen: Mapping[str, Any], **where: Any
  ) -> configs.TrainConfig:
    """The run of what was chosen; `where`: its `data` and `model_dir`."""
    return configs.from_preset(**self.settings(chosen), **where)

  def first(self) -> list[dict[str, Any]]:
    """What to try first: the defaults, so that the best is no worse."""
    starts: list[dict[str, Any]] = [{}]
    for name, preferred in _FIRST.items():
      search = self.searched.get(name)
      if isinstance(search, tuple):
        tried = [x for x in preferred if x in search] or search[:1]
        starts = [start | {name: x} for start in starts for x in tried]
    return [self._defaults(start) for start in starts]

  def _defaults(self, start: Mapping[str, Any]) -> dict[str, Any]:
    """`start`, and the defaults that belong to it, as far as they are tried."""
    defaults = settings.values_of(self.config(start).resolved)
    chosen = self.choose(lambda one, _: defaults[one.name])
    return {
      name: value
      for name, value in chosen.items()
      if _holds(self.searched[name], value)
    }

  def values(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all settings, used and unused ones, by name."""
    given = {**self.fixed, **chosen}
    return settings.values_of(
      configs.TrainConfig(**(configs.preset_settings(given) | given))
    )


def of(
  given: Mapping[str, Any], narrowed: Sequence[str], data: schema_lib.Schema
) -> tuple[Space, list[str]]:
  """The space of what was given.

  Args:
    given: Settings that were given: all runs have them.
    narrowed: What is to be tried of others, as `--space` takes it.
    data: What is to be trained on.

  Returns:
    The space, and sentences on what the data leaves out of it.

  Raises:
    SettingsError: Something given cannot be as it is, or is used by no run.
  """
  asked = dict(_parsed(text) for text in narrowed)
  for name in asked.keys() & given.keys():
    raise settings.SettingsError(
      f"--{name} and --space {name} both say what it may be: give one of them."
    )
  searched = {
    name: asked.get(name, one.about.search)
    for name, one in _SETTINGS.items()
    if name not in given
  }
  notes = _fit(searched, asked, data)
  fixed = dict(given)
  towers = searched.get("query_tower") or ()
  if "id" in towers and len(towers) > 1:
    # Or runs of ids and of histories would not be measured by the same.
    fixed.setdefault("history_ties", "strict")
    notes.append(
      "Models of ids and of histories are compared row by row: each held-out "
      "row is a query of its own."
    )
  for name, search in list(searched.items()):
    if isinstance(search, tuple) and len(search) == 1:
      fixed[name] = search[0]
  space = Space(
    fixed, {n: s for n, s in searched.items() if s and n not in fixed}
  )
  for name in {**given, **asked}:
    if not _may_be_used(name, space):
      raise settings.SettingsError(
        f"--{name} belongs to {_SETTINGS[name].belongs_to}, which no trial has."
      )
  used = {n: s for n, s in space.searched.items() if _may_be_used(n, space)}
  return dataclasses.replace(space, searched=used), notes


def _parsed(text: str) -> tuple[str, Search]:
  """`NAME=LOW..HIGH` or `NAME=VALUE,VALUE,...`."""
  name, equals, values = text.partition("=")
  one = _SETTINGS.get(name)
  if not equals or not values:
    raise settings.SettingsError(
      "--space must be NAME=LOW..HIGH or NAME=VALUE,VALUE,... "
      f"Received: {text!r}."
    )
  if one is None:
    near = difflib.get_close_matches(name, _SETTINGS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise settings.SettingsError(f"--space: there is no setting {name!r}{hint}")
  if name in _NOT_SEARCHED or one.type not in (bool, int, float, str):
    raise settings.SettingsError(
      f"--space: {name} is nothing that a search can choose; set it by "
      f"--{name}, for all trials."
    )
  flag = f"--space {name}"
  low, dots, high = values.partition("..")
  if not dots:
    parts = [one.convert(part, flag) for part in values.split(",")]
    return name, tuple(dict.fromkeys(parts))
  if one.type not in (int, float):
    raise settings.SettingsError(
      f"{flag} takes values, not a range: {name} is no number. "
      f"Received: {text!r}."
    )
  first, last = one.convert(low, flag), one.convert(high, flag)
  if not first < last:
    raise settings.SettingsError(
      f"{flag} must be LOW..HIGH, the lower first. Received: {values!r}."
    )
  declared = one.about.search
  log = declared.log if isinstance(declared, Span) else first * 10 <= last
  return name, Span(first, last, log=log and first > 0)


def _fit(
  searched: dict[str, Search],
  asked: Mapping[str, Search],
  data: schema_lib.Schema,
) -> list[str]:
  """Leaves out what the data has no use for; sentences that say so."""
  notes = []
  columns = {column.name for column in data.interaction_features}
  of_no_use = {
    "query_tower": "timestamp" not in columns,
    "use_features": not (data.query_features or data.candidate_features),
  }
  for name, is_so in of_no_use.items():
    if is_so and name not in asked:
      searched.pop(name, None)
  tasks = searched.get("task", ())
  many = data.num_candidates > MOST_CANDIDATES
  if many and "task" not in asked and "full_softmax" in tasks:
    searched["task"] = tuple(x for x in tasks if x != "full_softmax")
    notes.append(
      f"full_softmax is not tried: {data.num_candidates:,} candidates are many "
      f"(--space task={','.join(tasks)} tries it all the same)."
    )
  return notes


def _may_be_used(name: str, space: Space) -> bool:
  """Whether some run of a space uses a setting."""
  about = _SETTINGS[name].about
  values = space.values({})
  return not about.only or any(
    all(
      set(wanted if isinstance(wanted, tuple) else (wanted,))
      & {*(space.searched.get(other) or (values[other],))}
      for other, wanted in only.items()
    )
    for only in about.only
  )


def _rounded(chosen: Mapping[str, Any]) -> dict[str, Any]:
  """Numbers as one would write them."""
  return {
    name: float(f"{value:.4g}") if isinstance(value, float) else value
    for name, value in chosen.items()
  }


def _holds(search: Search, value: Any) -> bool:
  if isinstance(search, Span):
    return value is not None and search.low <= value <= search.high
  return value in search


def shown(search: Search) -> str:
  """What is tried, as `--space` takes it."""
  if isinstance(search, Span):
    return f"{search.low:g}..{search.high:g}"
  return ",".join(str(value) for value in search)
