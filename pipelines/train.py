r"""Trains a two-tower model.

    xir-tfrs train --data DATA --model_dir MODEL --task xir

writes to MODEL: config.json, metrics.jsonl, checkpoints/, best/ (the best
checkpoint by --metric on the validation split), events/ (TensorBoard). To
continue a run that was interrupted or killed:

    xir-tfrs train --model_dir MODEL --resume

The preset sets the default of each flag; the defaults below are those of
`default`. To repeat another run with some flags changed:

    xir-tfrs train --config OTHER/config.json --model_dir MODEL

Before deployment, train the model again on all rows, including the validation
and the test split, for the number of epochs at which validation was best:

    xir-tfrs train --refit MODEL --model_dir LIVE
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.training import config as configs
from xir_tfrs.data import errors
from xir_tfrs.programs import main, settings

if TYPE_CHECKING:
  from pipelines.training import loop


@dataclasses.dataclass(frozen=True)
class TrainFlags(configs.TrainConfig):
  """The flags: settings of a run, and how to start it."""

  common = (*configs.TrainConfig.common, "resume", "overwrite")

  resume: bool = settings.setting(
    "Continue the run in --model_dir.", False, section="The run"
  )
  overwrite: bool = settings.setting(
    "Replace an existing run in --model_dir.", False
  )
  refit: str | None = settings.setting(
    "Directory of a run to train again on all rows, with its settings, up to "
    "the epoch at which its validation was best.",
    None,
  )


@dataclasses.dataclass(frozen=True)
class _Order:
  """A run and how to start it."""

  config: configs.TrainConfig
  resume: bool
  overwrite: bool


def _order(given: Mapping[str, Any]) -> _Order:
  given = dict(given)
  resume = given.pop("resume", False)
  overwrite = given.pop("overwrite", False)
  refit = given.pop("refit", None)
  if not given.get("model_dir"):
    raise settings.SettingsError(
      "--model_dir is required: a directory for the run"
    )
  if resume and overwrite:
    raise settings.SettingsError(
      "--resume and --overwrite exclude each other: give one of them."
    )
  if refit:
    if resume:
      raise settings.SettingsError(
        "--refit starts a run and --resume continues one: leave out --refit to "
        "continue."
      )
    from pipelines.training import refitting  # Imports TensorFlow.

    return _Order(refitting.config_of(refit, given), False, overwrite)
  if resume:
    from xir_tfrs.data import runs  # Imports TensorFlow.

    directory = runs.RunDir(given["model_dir"])
    if directory.exists():
      run = directory.read_config()
      path = directory.path / runs.CONFIG
      old = configs.of_run(run.train, path, run.data)
      return _Order(configs.resumed(old, given), resume, overwrite)
  if not given.get("data"):
    raise settings.SettingsError(
      "--data is required: a directory written by xir-tfrs prepare"
    )
  return _Order(configs.from_preset(**given), resume, overwrite)


def train(order: _Order) -> int:
  from pipelines.training import loop, strategies

  try:
    result = loop.train(
      order.config, resume=order.resume, overwrite=order.overwrite
    )
  except strategies.WorkerLost as error:
    print(f"train: Error: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # A normal exit would wait for the lost worker.
    os._exit(1)
  _report(order.config, result)
  return 130 if result.outcome == "interrupted" else 0


def _report(config: configs.TrainConfig, result: loop.TrainResult) -> None:
  print(
    f"{config.task}: {result.outcome} at step {result.step:,}, "
    f"{result.examples_per_second:,.0f} examples/s, "
    f"{result.step_milliseconds:.1f} ms/step, "
    f"peak memory {result.peak_memory_bytes / 2**30:.2f} GiB"
  )
  if result.validation:
    print(
      f"best {config.metric} {result.validation[config.metric]:.4f} "
      f"at step {result.validation['step']:,}"
    )
  print(f"Next: {_following(config, result.outcome)}")


def _following(config: configs.TrainConfig, outcome: str) -> str:
  """The command to run next."""
  from xir_tfrs.data import schema  # Imports TensorFlow.

  run = {"model_dir": config.model_dir}
  if outcome == "interrupted":
    return errors.command("train", **run, resume=True)
  if config.rows == "all" or not schema.Schema.load(config.data).rows["test"]:
    bundle = f"bundles/{pathlib.Path(config.model_dir).name}"
    return errors.command("export", data=config.data, **run, output=bundle)
  return errors.command("evaluate", data=config.data, **run)


if __name__ == "__main__":
  sys.exit(main.run(TrainFlags, train, make=_order))
