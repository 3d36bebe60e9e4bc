r"""Chooses the method and its settings, by the validation split.

    xir-tfrs tune --data DATA --output TUNED --trials 40 --epochs 20

trains runs with settings that Optuna chooses, gives up early on those that fall
behind, and leaves in TUNED: best.json (settings for xir-tfrs train --config),
trials.csv (all trials), importance.png (which settings matter), search.json,
study.db (the study, as optuna-dashboard shows it), and trials/NNNN, the run of
each trial; that of the best one has its checkpoints. The first trials are the
defaults, so that the result is no worse.

The same command goes on with a search that was interrupted, or that is to have
more --trials. A setting that is given is that of all trials; --space narrows
what is tried of the others, or adds one:

    --task xir --space temperature=0.05..0.3 --space dim=32,64
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.training import config as configs
from pipelines.tuning import space as spaces
from xir_tfrs.data import errors
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import main, settings

if TYPE_CHECKING:
  from pipelines.tuning import search


@dataclasses.dataclass(frozen=True)
class TuneFlags(configs.TrainConfig):
  """What the program takes: how to search, and settings of all trials."""

  common = (
    *("data", "output", "trials", "epochs", "jobs", "space", "task"),
    *("metric", "overwrite"),
  )

  output: str = settings.setting(
    "Directory for the search.", "", section="The search"
  )
  trials: int = settings.setting(
    "Trials, those of earlier sessions included.", 40, above=0
  )
  jobs: int = settings.setting("Trials at a time, a process each.", 1, above=0)
  space: tuple[str, ...] = settings.setting(
    "What is tried of a setting: NAME=LOW..HIGH or NAME=VALUE,VALUE,... Not "
    "given: what suits most data.",
    (),
    multi=True,
  )
  overwrite: bool = settings.setting(
    "Begin anew where a search was before.", False
  )
  model_dir: str = settings.setting(
    "Not taken: the runs are kept in --output.", ""
  )


@dataclasses.dataclass(frozen=True)
class _Order:
  """What was asked for.

  Attributes:
    ours: The settings of the search itself, by name.
    given: Those of all trials.
  """

  ours: Mapping[str, Any]
  given: Mapping[str, Any]


_OURS = ("data", "output", "trials", "jobs", "space", "overwrite")


def _order(given: Mapping[str, Any]) -> _Order:
  flags = TuneFlags(**given)
  for name, what in (
    ("data", "a directory made by xir-tfrs prepare"),
    ("output", "where should the search be kept?"),
  ):
    if not getattr(flags, name):
      raise settings.SettingsError(f"--{name} is needed: {what}")
  if given.get("model_dir"):
    raise settings.SettingsError(
      "--model_dir is not taken: the runs are kept in --output."
    )
  if flags.strategy == "multi_worker":
    raise settings.SettingsError(
      "--strategy multi_worker is not taken: a trial is a single process."
    )
  if flags.rows == "all":
    raise settings.SettingsError(
      "--rows all is not taken: settings are chosen by rows that are held out. "
      "Then train on all rows by xir-tfrs train --refit."
    )
  return _Order(
    {name: getattr(flags, name) for name in _OURS},
    {k: v for k, v in given.items() if k not in (*_OURS, "model_dir")},
  )


def _search(order: _Order) -> search.Order:
  """The search of what was asked for; says what the data leaves out."""
  try:
    from pipelines.tuning import search
  except ImportError as error:
    raise main.ProgramError(
      f"it needs Optuna ({error}): pip install 'xir-tfrs[tune]'"
    ) from error

  data = order.ours["data"]
  schema, sha256 = schema_lib.Schema.load_hashed(data)
  if not schema.rows["validation"]:
    raise errors.DataError(
      "has no validation split, and settings are chosen by one. Prepare the "
      "data again: with --validation_fraction 0.1, with --split leave_last, "
      "or with --validation FILE beside --train FILE",
      path=data,
    )
  space, notes = spaces.of(order.given, order.ours["space"], schema)
  print(
    f"{data}: {schema.rows['train']:,} rows to train, "
    f"{schema.rows['validation']:,} to choose by"
  )
  for note in notes:
    print(note)
  for name, tried in space.searched.items():
    print(f"  {name}: {spaces.shown(tried)}")
  return search.Order(
    output=pathlib.Path(order.ours["output"]),
    data=data,
    schema_sha256=sha256,
    space=space,
    num_trials=order.ours["trials"],
    jobs=order.ours["jobs"],
    overwrite=order.ours["overwrite"],
  )


def tune(order: _Order) -> None:
  """Searches, and says what was found."""
  wanted = _search(order)
  from pipelines.tuning import report, search

  try:
    study = search.run(wanted)
  except (KeyboardInterrupt, SystemExit):
    print("The same command goes on from here.", file=sys.stderr)
    raise
  print("\n".join(report.write(study, wanted)))


if __name__ == "__main__":
  sys.exit(main.run(TuneFlags, tune, make=_order))
