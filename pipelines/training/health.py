"""Checks whether a run has diverged, and finds the cause."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from xir_tfrs.programs import main


class TrainingDiverged(main.ProgramError):
  """The loss or a weight is no longer finite."""


def first_bad_loss(losses: np.ndarray) -> int | None:
  """Index of the first loss that is not finite, or None."""
  bad = np.flatnonzero(~np.isfinite(losses))
  return int(bad[0]) if bad.size else None


def not_finite(variables: list[tf.Variable]) -> list[str]:
  """Names of the variables with values that are not finite."""
  return [
    variable.name
    for variable in variables
    if variable.dtype.is_floating
    and not bool(tf.reduce_all(tf.math.is_finite(variable)))
  ]


def advice(model: xir.models.TwoTower, learning_rate: float) -> str:
  """Returns findings about a diverged run, and what to do.

  Args:
    model: The current model.
    learning_rate: The learning rate at the last step.
  """
  if not math.isfinite(learning_rate):
    return f"The learning rate is {learning_rate}."
  infinite = _infinite_features(model)
  if infinite:
    return (
      f"The side features {', '.join(infinite)} have infinite values: prepare "
      "the data again without them."
    )
  weights = not_finite(model.trainable_variables)
  state = (
    f"These weights are not finite: {', '.join(weights)}"
    if weights
    else "All weights are finite"
  )
  return (
    f"{state}; all side features are finite. The learning rate is "
    f"{learning_rate:.3g}: try a tenth of it."
  )


def _infinite_features(model: xir.models.TwoTower) -> list[str]:
  """Names of side features with infinite values; NaN means missing."""
  found = []
  for tower in (model.query_tower, model.candidate_tower):
    for variable in tower.table.variables if tower.table else ():
      if variable.dtype.is_floating and bool(
        tf.reduce_any(tf.math.is_inf(variable))
      ):
        found.append(variable.name.partition(":")[0])
  return found
