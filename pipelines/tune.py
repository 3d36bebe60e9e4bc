r"""Searches for the best method and settings, by validation.

    xir-tfrs tune --data DATA --output TUNED --trials 40 --epochs 20

trains runs with settings that Optuna chooses and stops poor ones early. It
writes to TUNED: best.json (settings for xir-tfrs train --config), trials.csv
(all trials), importance.png (the effect of each setting), search.json, study.db
(the study, for optuna-dashboard), and trials/NNNN, the run of each trial; the
best one keeps its checkpoints. The first trials use the defaults, so the result
is never worse.

Run the same command again to continue an interrupted search, or to add
--trials. A given setting applies to all trials; --space narrows the search over
another setting, or adds one:

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
  """The flags: settings of the search and of all trials."""

  common = (
    *("data", "output", "trials", "epochs", "jobs", "space", "task"),
    *("metric", "overwrite"),
  )

  output: str = settings.setting(
    "Directory for the search.", "", section="The search"
  )
  trials: int = settings.setting(
    "Number of trials, including those of earlier sessions.", 40, above=0
  )
  jobs: int = settings.setting("Parallel trials, one process each.", 1, above=0)
  space: tuple[str, ...] = settings.setting(
    "Values to try for a setting: NAME=LOW..HIGH or NAME=VALUE,VALUE,... Not "
    "given: values that suit most data.",
    (),
    multi=True,
  )
  overwrite: bool = settings.setting(
    "Replace an existing search in --output.", False
  )
  model_dir: str = settings.setting(
    "Not supported: the runs are in --output.", ""
  )


@dataclasses.dataclass(frozen=True)
class _Order:
  """A request for a search.

  Attributes:
    flags: Settings of the search.
    given: Settings of all trials, by name.
  """

  flags: TuneFlags
  given: Mapping[str, Any]


# The settings that a search does not pass to its trials.
_OURS = ("data", "model_dir", "output", "trials", "jobs", "space", "overwrite")


def _order(given: Mapping[str, Any]) -> _Order:
  flags = TuneFlags(**given)
  for name, what in (
    ("data", "a directory written by xir-tfrs prepare"),
    ("output", "a directory for the search"),
  ):
    if not getattr(flags, name):
      raise settings.SettingsError(f"--{name} is required: {what}")
  if given.get("model_dir"):
    raise settings.SettingsError(
      "--model_dir is not supported: the runs are in --output."
    )
  if flags.strategy == "multi_worker":
    raise settings.SettingsError(
      "--strategy multi_worker is not supported: a trial is one process."
    )
  if flags.rows == "all":
    raise settings.SettingsError(
      "--rows all is not supported: the search needs held-out rows. Train on "
      "all rows afterwards with xir-tfrs train --refit."
    )
  of_trials = {k: v for k, v in given.items() if k not in _OURS}
  return _Order(flags, of_trials)


def _search(order: _Order) -> search.Order:
  """Builds the search; prints its rows and settings."""
  try:
    from pipelines.tuning import search
  except ImportError as error:
    raise main.ProgramError(
      f"tune needs Optuna ({error}): pip install 'xir-tfrs[tune]'"
    ) from error

  flags, data = order.flags, order.flags.data
  schema, sha256 = schema_lib.Schema.load_hashed(data)
  if not schema.rows["validation"]:
    raise errors.DataError(
      "has no validation split, which the search needs. Prepare the data "
      "again: with --validation_fraction 0.1, with --split leave_last, or "
      "with --validation FILE and --train FILE",
      path=data,
    )
  space, notes = spaces.of(order.given, flags.space, schema)
  defaults = space.config({})
  last = min(defaults.epochs, defaults.stop_epoch or defaults.epochs)
  if defaults.eval_epochs > last:
    raise settings.SettingsError(
      f"--eval_epochs {defaults.eval_epochs} is more than the {last} epoch(s) "
      "of a trial, which would have no validation."
    )
  print(
    f"{data}: {schema.rows['train']:,} rows to train, "
    f"{schema.rows['validation']:,} to validate"
  )
  for note in notes:
    print(note)
  for name, tried in space.searched.items():
    print(f"  {name}: {spaces.shown(tried)}")
  return search.Order(
    output=pathlib.Path(flags.output),
    data=data,
    schema_sha256=sha256,
    space=space,
    num_trials=flags.trials,
    jobs=flags.jobs,
    overwrite=flags.overwrite,
  )


def tune(order: _Order) -> None:
  """Runs the search and prints its results."""
  wanted = _search(order)
  from pipelines.tuning import report, search

  try:
    study = search.run(wanted)
  except (KeyboardInterrupt, SystemExit):
    print("Run the same command to continue.", file=sys.stderr)
    raise
  print("\n".join(report.write(study, wanted)))


if __name__ == "__main__":
  sys.exit(main.run(TuneFlags, tune, make=_order))
