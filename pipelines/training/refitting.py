"""Trains a run again on all rows, for deployment."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pipelines.training import config as configs
from xir_tfrs.data import errors, runs
from xir_tfrs.programs import settings


def config_of(
  run_dir: str | os.PathLike[str], given: Mapping[str, Any]
) -> configs.TrainConfig:
  """Returns the config for training an evaluated run again on all rows.

  Args:
    run_dir: Directory of the evaluated run.
    given: Settings that override those of the run, such as `model_dir`.

  Raises:
    DataError: `run_dir` holds no run, no epoch is finished, or the run was
      trained on all rows.
    SettingsError: A given setting is invalid.
  """
  directory = runs.RunDir(run_dir)
  found = directory.read_config()
  if pathlib.Path(given["model_dir"]).resolve() == directory.path.resolve():
    raise settings.SettingsError(
      "--refit is the evaluated run and --model_dir the directory of the new "
      f"one: give two directories. Received: {run_dir} twice."
    )
  old = configs.of_run(found.train, directory.path / runs.CONFIG, found.data)
  if old.rows == "all":
    raise errors.DataError(
      "was trained on all rows itself, so its validation is not meaningful; "
      "give --refit the run that it was refitted from",
      path=run_dir,
    )
  epoch = best_epoch(directory.read_metrics(), old.metric)
  if epoch is None:
    raise errors.DataError(
      "has not finished an epoch yet; continue it with --resume and refit then",
      path=run_dir,
    )
  chosen = {"rows": "all", "stop_epoch": epoch}
  config = configs.resumed(old, chosen | dict(given))
  used = (found.defaults or {}).get("temperature")
  if used is None or config.temperature is not None:
    return config
  if config.resolved.temperature != old.resolved.temperature:
    return config  # For other towers or scores.
  # The default depends on the number of rows, and all rows are more.
  return dataclasses.replace(config, temperature=used)


def best_epoch(rows: list[runs.Metrics], metric: str) -> int | None:
  """Returns the epoch after which a run was best.

  Args:
    rows: The rows of its metrics.jsonl.
    metric: Its validation metric.

  Returns:
    The epoch, from 1; the last one if the run had no validation; None if there
    is none.
  """
  validations = [row for row in rows if row["kind"] == "validation"]
  if validations:
    # Of several equal ones the first, as the run itself does.
    row = max(validations, key=lambda row: row[metric])
  elif rows:
    row = rows[-1]
  else:
    return None
  # Batches span epochs, so an epoch may end at 3.002, for example.
  return int(row["epoch"]) or None
