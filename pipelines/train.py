r"""Trains two towers.

    python -m pipelines.train --data DATA --model_dir MODEL --task xir

leaves in MODEL: config.json, metrics.jsonl, checkpoints/, best/ (the best
checkpoint by --metric on the validation split), events/ (TensorBoard). A run
that was interrupted, by Ctrl-C or by force, goes on with

    python -m pipelines.train --model_dir MODEL --resume
"""

import dataclasses
import os
import sys
from typing import Any

from absl import app, flags, logging

from pipelines.training import build as model
from pipelines.training import checkpoints, strategies
from pipelines.training import config as configs
from pipelines.training import loop as training
from xir_tfrs.data import runs
from xir_tfrs.ops import forms


def _config_from_flags() -> configs.TrainConfig:
  given = _given_flags()
  if not given.get("model_dir"):
    raise ValueError("--model_dir is needed: where should the run be kept?")
  run = runs.RunDir(given["model_dir"])
  if flags.FLAGS.resume and run.exists():
    old = run.read_config()
    train = configs.of_run(old.train)
    return configs.TrainConfig(**(train | {"data": old.data} | given))
  if not given.get("data"):
    raise ValueError(
      "--data is needed: a directory made by python -m pipelines.prepare"
    )
  return configs.from_preset(**given)


def _report(config: configs.TrainConfig, result: training.TrainResult) -> None:
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
  if result.outcome == "interrupted":
    following = f"pipelines.train --model_dir {config.model_dir} --resume"
  else:
    following = (
      f"pipelines.evaluate --data {config.data} --model_dir {config.model_dir}"
    )
  print(f"Next: python -m {following}")


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    print(f"Not a flag: {argv[1]!r}; see --help.", file=sys.stderr)
    return 2
  logging.set_verbosity(logging.WARNING)
  try:
    config = _config_from_flags()
    result = training.train(
      config, resume=flags.FLAGS.resume, overwrite=flags.FLAGS.overwrite
    )
  except (
    ValueError,
    OSError,
    training.TrainingDiverged,
    checkpoints.CheckpointNotSaved,
  ) as error:
    print(f"Error: {error}", file=sys.stderr)
    return 1
  except strategies.WorkerLost as error:
    print(f"Error: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # An orderly exit would wait for the worker that has gone.
    os._exit(1)
  _report(config, result)
  return 130 if result.outcome == "interrupted" else 0


def _define_flags() -> None:
  """A flag for each setting; not given, it is what the preset says."""
  choices = {
    "task": tuple(model.TASKS),
    "preset": tuple(configs.PRESETS),
    "loss": tuple(forms.FORMS),
  }
  definers = (
    ("bool", flags.DEFINE_bool),
    ("tuple", flags.DEFINE_list),
    ("float", flags.DEFINE_float),
    ("int", flags.DEFINE_integer),
    ("str", flags.DEFINE_string),
  )
  for field in dataclasses.fields(configs.TrainConfig):
    text = field.metadata["help"]
    if field.default != "":
      text += f" Preset `default`: {field.default}."
    allowed = choices.get(field.name) or field.metadata.get("choices")
    if allowed:
      flags.DEFINE_enum(field.name, None, allowed, text)
    else:
      define = next(d for kind, d in definers if kind in str(field.type))
      define(field.name, None, text)
  flags.DEFINE_bool("resume", False, "Go on with the run in --model_dir.")
  flags.DEFINE_bool("overwrite", False, "Begin anew where a run was before.")


def _given_flags() -> dict[str, Any]:
  """The settings whose flags stand on the command line."""
  names = [field.name for field in dataclasses.fields(configs.TrainConfig)]
  return {
    name: flags.FLAGS[name].value for name in names if flags.FLAGS[name].present
  }


if __name__ == "__main__":
  _define_flags()
  app.run(main)
