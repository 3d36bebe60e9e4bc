"""The space of a search: declared by the settings, narrowed by the user.

Each setting declares the values to try (`search`) and the settings it depends
on (`only`). This module only names settings that depend on the data.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.training import config as configs
from pipelines.training import methods
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import settings

Span = settings.Span
# The values to try for a setting: a span of numbers, or a list.
Search = Span | tuple[Any, ...]
Suggest = Callable[[settings.Setting, Search], Any]

_SETTINGS = {one.name: one for one in settings.settings_of(configs.TrainConfig)}
# A search never chooses these: place and length of a run, the metric, and
# random seeds.
_NOT_SEARCHED = configs.CHANGEABLE | {
  *("preset", "seed", "rows", "metric", "history_ties")
}
# The first trials use the defaults of these, if the search includes them.
_FIRST = {"query_tower": ("id", "history"), "task": ("ssl_pop", "xir")}
# Each of them is also tried with these. They win where the held-out rows are no
# random draw (docs/results.md).
_BILATERAL = {
  "loss": "bsl",
  "popularity_weight": 0.0,
  "learning_rate_schedule": "cosine",
}
# With more candidates, the full softmax is too expensive to try by default.
MOST_CANDIDATES = 10_000


@dataclasses.dataclass(frozen=True)
class Space:
  """The runs that a search may try.

  Attributes:
    fixed: Settings of all runs.
    searched: Values to try for other settings, by name, in the order of
      declaration: settings that others depend on come first.
    data: Schema of the training data.
  """

  fixed: Mapping[str, Any]
  searched: Mapping[str, Search]
  data: schema_lib.Schema

  def choose(self, suggest: Suggest) -> dict[str, Any]:
    """Chooses a value for each searched setting that has an effect.

    Args:
      suggest: Chooses a value.
    """
    chosen: dict[str, Any] = {}
    for name, search in self.searched.items():
      if _SETTINGS[name].is_used(self.values(chosen)):
        chosen[name] = suggest(_SETTINGS[name], search)
    return chosen

  def settings(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run, without those that have no effect."""
    values = self.values(chosen)
    return {
      name: value
      for name, value in {**self.fixed, **_rounded(chosen)}.items()
      if _SETTINGS[name].is_used(values)
    }

  def config(
    self, chosen: Mapping[str, Any], **where: Any
  ) -> configs.TrainConfig:
    """Returns the config of a choice; `where` has `data` and `model_dir`."""
    return configs.from_preset(**self.settings(chosen), **where)

  def first(self) -> list[dict[str, Any]]:
    """Returns the first choices: the defaults, so the best is no worse.

    After them come the defaults with the bilateral loss, if it is searched.
    """
    starts: list[dict[str, Any]] = [{}]
    for name, preferred in _FIRST.items():
      search = self.searched.get(name)
      if isinstance(search, tuple):
        tried = [x for x in preferred if x in search] or search[:1]
        starts = [start | {name: x} for start in starts for x in tried]
    if self._may_try(_BILATERAL):
      starts += [
        start | _BILATERAL
        for start in starts
        # Methods with a plain softmax by default may have no other.
        if methods.TASKS[self.config(start).task].loss != "cross_entropy"
      ]
    return [self._defaults(start) for start in starts]

  def _may_try(self, chosen: Mapping[str, Any]) -> bool:
    return all(
      name in self.searched and _holds(self.searched[name], value)
      for name, value in chosen.items()
    )

  def _defaults(self, start: Mapping[str, Any]) -> dict[str, Any]:
    """`start`, and the defaults of other searched settings for it."""
    defaults = settings.values_of(
      self.config(start).for_data(self.data).resolved
    )
    chosen = self.choose(lambda one, _: defaults[one.name])
    return {
      name: value
      for name, value in chosen.items()
      if _holds(self.searched[name], value)
    }

  def values(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of all settings, by name."""
    given = {**self.fixed, **chosen}
    return settings.values_of(
      configs.TrainConfig(**(configs.preset_settings(given) | given))
    )


def of(
  given: Mapping[str, Any], narrowed: Sequence[str], data: schema_lib.Schema
) -> tuple[Space, list[str]]:
  """Builds the space.

  Args:
    given: Given settings, which all runs have.
    narrowed: Values to try for other settings, as in `--space`.
    data: Schema of the training data.

  Returns:
    The space, and sentences about settings that do not suit the data.

  Raises:
    SettingsError: A given setting or value is invalid, or has no effect in any
      run.
  """
  asked: dict[str, Search] = {}
  for name, values in map(_parsed, narrowed):
    if name in asked:
      raise settings.SettingsError(
        f"--space {name} is given twice: give all of its values at once."
      )
    asked[name] = values
  for name in asked.keys() & given.keys():
    raise settings.SettingsError(
      f"--{name} and --space {name} exclude each other: give one of them."
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
    # Otherwise, runs of ids and of histories would have different metrics.
    fixed.setdefault("history_ties", "strict")
    notes.append(
      "Models of ids and of histories are compared row by row: each held-out "
      "row is a query of its own."
    )
  for name, search in list(searched.items()):
    if isinstance(search, tuple) and len(search) == 1:
      fixed[name] = search[0]
  space = Space(
    fixed, {n: s for n, s in searched.items() if s and n not in fixed}, data
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
      f"--space: a search cannot choose {name}; set it for all trials with "
      f"--{name}."
    )
  flag = f"--space {name}"
  low, dots, high = values.partition("..")
  if not dots:
    parts = [one.convert(part, flag) for part in values.split(",")]
    return name, tuple(dict.fromkeys(parts))
  if one.type not in (int, float):
    raise settings.SettingsError(
      f"{flag} takes values, not a range: {name} is not a number. "
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
  """Leaves out settings that do not suit the data; returns sentences."""
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
      f"full_softmax is not tried: there are many candidates, "
      f"{data.num_candidates:,} (--space task={','.join(tasks)} includes it)."
    )
  return notes


def _may_be_used(name: str, space: Space) -> bool:
  """Whether a setting has an effect in any run of a space."""
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
  """Rounds numbers to a few digits."""
  return {
    name: float(f"{value:.4g}") if isinstance(value, float) else value
    for name, value in chosen.items()
  }


def _holds(search: Search, value: Any) -> bool:
  if isinstance(search, Span):
    return value is not None and search.low <= value <= search.high
  return value in search


def shown(search: Search) -> str:
  """Formats values to try, as in `--space`."""
  if isinstance(search, Span):
    return f"{search.low:g}..{search.high:g}"
  return ",".join(str(value) for value in search)
