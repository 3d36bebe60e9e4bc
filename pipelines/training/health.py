"""Whether a run is sound, and if not, what is wrong with it."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from xir_tfrs.programs import main


class TrainingDiverged(main.ProgramError):
  """The loss, or a weight, is no longer a finite number."""


def first_bad_loss(losses: np.ndarray) -> int | None:
  """Index of the first loss that is not finite."""
  bad = np.flatnonzero(~np.isfinite(losses))
  return int(bad[0]) if bad.size else None


def not_finite(variables: list[tf.Variable]) -> list[str]:
  """Names of the variables that hold a number that is not finite."""
  return [
    variable.name
    for variable in variables
    if variable.dtype.is_floating
    and not bool(tf.reduce_all(tf.math.is_finite(variable)))
  ]


def advice(model: xir.models.TwoTower, learning_rate: float) -> str:
  """What a diverged run shows, and what to do: only what was looked at.

  Args:
    model: The model as it is now.
    learning_rate: The learning rate at the last step.
  """
  if not math.isfinite(learning_rate):
    return f"The learning rate is {learning_rate}."
  infinite = _infinite_features(model)
  if infinite:
    return (
      f"The side features {', '.join(infinite)} hold infinite numbers: prepare "
      "the data again without them."
    )
  weights = not_finite(model.trainable_variables)
  state = (
    f"Not finite by now: {', '.join(weights)}"
    if weights
    else "All weights are finite"
  )
  return (
    f"{state}; all side features are. The learning rate is "
    f"{learning_rate:.3g}: try a tenth of it."
  )


def _infinite_features(model: xir.models.TwoTower) -> list[str]:
  """Names of side features with infinite numbers; NaN is a missing one."""
  found = []
  for tower in (model.query_tower, model.candidate_tower):
    for variable in tower.table.variables if tower.table else ():
      if variable.dtype.is_floating and bool(
        tf.reduce_any(tf.math.is_inf(variable))
      ):
        found.append(variable.name.partition(":")[0])
  return found
