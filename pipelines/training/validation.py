"""Validation of a run: metrics, the best checkpoint, early stopping."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import xir_tfrs as xir
from pipelines.evaluation import past, split
from pipelines.training import config as configs
from xir_tfrs.data import directory, errors, runs
from xir_tfrs.programs import settings

_KS = (10, 20, 50)


def load(
  config: configs.TrainConfig, data: directory.DataDir
) -> split.EvaluationData | None:
  """Loads the validation split; prints a note and returns None if missing.

  Raises:
    SettingsError: The metric does not exist.
    DataError: The split cannot be read.
  """
  name, _, k = config.metric.partition("@")
  if name not in xir.metrics.NAMES or not k.isdigit() or int(k) < 1:
    raise settings.SettingsError(
      f"--metric must be one of {', '.join(xir.metrics.NAMES)}, with @k: "
      f"ndcg@20. Received: {config.metric!r}."
    )
  if data.schema.rows["validation"]:
    rule = past.Rule.of_training(settings.values_of(config))
    return split.load_evaluation_data(data, "validation", rule)
  if config.rows == "all":
    print("Training on all rows: no rows are left to validate or test.")
    return None
  print(
    "There is no validation split (xir-tfrs prepare --validation_fraction): "
    "no validation metrics, no best checkpoint, no early stopping.",
    file=sys.stderr,
  )
  return None


class Validations:
  """The validations of a run so far.

  Attributes:
    rows: Their rows of metrics.jsonl.
    ks: The cut-offs.
  """

  def __init__(
    self, config: configs.TrainConfig, rows: list[dict[str, Any]]
  ) -> None:
    """Takes the rows of earlier sessions from metrics.jsonl.

    Raises:
      DataError: A row lacks the metric of the best checkpoint.
    """
    for row in rows:
      if not isinstance(row.get(config.metric), int | float):
        raise errors.DataError(
          f"the validation of step {row['step']} has no {config.metric};"
          " remove its line, or start again with --overwrite",
          path=pathlib.Path(config.model_dir) / runs.METRICS,
        )
    self._metric, self._patience = config.metric, config.patience
    self.rows = rows
    k = int(config.metric.partition("@")[2])
    self.ks = tuple(sorted({*_KS, k}))

  @property
  def best(self) -> dict[str, Any] | None:
    """The row of the best validation."""
    return max(self.rows, key=lambda row: row[self._metric], default=None)

  @property
  def should_stop(self) -> bool:
    """Whether the best validation is too long ago."""
    if not self._patience or self.best is None:
      return False
    step = self.best["step"]
    since = [row for row in self.rows if row["step"] > step]
    return len(since) >= self._patience

  @property
  def why_stopped(self) -> str:
    """Why there are no more of them, and what may help."""
    best = self.best
    assert best is not None, "nothing was measured"
    text = (
      f"stopped early: {self._patience} validations without a better "
      f"{self._metric} than that of epoch {best['epoch']:.1f} (--patience)"
    )
    if best is self.rows[0]:
      text += "; the first was the best, so try a lower --learning_rate"
    return text

  def is_best(self, row: dict[str, Any]) -> bool:
    """Whether a new row is better than all before it."""
    return self.best is None or row[self._metric] > self.best[self._metric]

  def add(self, row: dict[str, Any]) -> None:
    self.rows.append(row)

  def line(self, row: dict[str, Any], is_best: bool) -> str:
    """Formats a validation as a line."""
    shown = dict.fromkeys([self._metric, "recall@20", "ndcg@20"])
    # Present if some queries have no training rows.
    parts = [f"{part}/{self._metric}" for part in ("warm", "cold")]
    names = [*shown, *(name for name in parts if name in row)]
    return (
      f"epoch {row['epoch']:.1f}  step {row['step']}  "
      + "  ".join(f"{name} {row[name]:.4f}" for name in names)
      + ("  best so far" if is_best else "")
    )
