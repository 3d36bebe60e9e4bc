"""A run once more, on all rows: for service, when its settings are found."""

from __future__ import annotations

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
  """The config of the run that takes the place of an evaluated one.

  Args:
    run_dir: Directory of the evaluated run.
    given: Settings over those of the run, such as `model_dir`.

  Raises:
    DataError: This is no run, nothing was trained, or it has seen all rows.
    SettingsError: A setting cannot be as it is given.
  """
  directory = runs.RunDir(run_dir)
  found = directory.read_config()
  if pathlib.Path(given["model_dir"]).resolve() == directory.path.resolve():
    raise settings.SettingsError(
      "--refit is the run to learn the settings from, and --model_dir is where "
      f"the new one is kept: give two directories. Received: {run_dir} twice."
    )
  old = configs.of_run(found.train, directory.path / runs.CONFIG, found.data)
  if old.rows == "all":
    raise errors.DataError(
      "was trained on all rows itself, so its validation says nothing; give "
      "--refit the run that it was refitted from",
      path=run_dir,
    )
  epoch = best_epoch(directory.read_metrics(), old.metric)
  if epoch is None:
    raise errors.DataError(
      "has not trained an epoch yet; go on with it by --resume, and refit then",
      path=run_dir,
    )
  chosen = {"rows": "all", "stop_epoch": epoch}
  return configs.resumed(old, chosen | dict(given))


def best_epoch(rows: list[runs.Metrics], metric: str) -> int | None:
  """The epoch after which a run was best.

  Args:
    rows: Those of its metrics.jsonl.
    metric: What it was validated by.

  Returns:
    The epoch, from 1; the last one, where nothing was validated; None: there
    is none.
  """
  validations = [row for row in rows if row["kind"] == "validation"]
  if validations:
    # As the run itself: the first of several.
    row = max(validations, key=lambda row: row[metric])
  elif rows:
    row = rows[-1]
  else:
    return None
  # Batches run on into the next epoch, so an end of one is at 3.002, say.
  return int(row["epoch"]) or None
