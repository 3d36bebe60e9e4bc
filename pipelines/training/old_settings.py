"""Converts the settings of runs of earlier versions."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from xir_tfrs.data import errors
from xir_tfrs.programs import settings

# Values of settings for runs that are older than the setting.
_BEFORE_THERE_WAS = {
  # The loss was the cross entropy.
  "mask_known_positives": False,
  "popularity_weight": 0.0,
  "balance_gradients": False,
}
_STREAMING = ("ssl", "ssl_pop", "g_tower", "mns", "cbns")
# Former flags that are now arguments of the task: their default, and the tasks
# that used them (None for all).
_NOW_TASK_ARGUMENTS: dict[str, tuple[Any, Collection[str] | None]] = {
  "popularity": (
    "rows",
    ("ssl", "ssl_pop", "g_tower", "mns", "cbns", "bir", "xir", "corr"),
  ),
  "cache_policy": ("occurrence", ("xir",)),
  "cache_scope": ("step", ("xir", "corr")),
  "joint_partition": (False, ("xir",)),
  "logq_positive": ("none", ("mns",)),
  "num_hashes": (4, _STREAMING),
  "frequency_learning_rate": (0.01, _STREAMING),
  "num_codewords": (8, ("corr",)),
  "kl_weight": (1.0, ("corr",)),
  "warmup_drift": (None, ("cbns",)),
  "row_chunk_size": (None, None),
}


def upgrade(
  train: Mapping[str, Any], known: Collection[str], path: str | os.PathLike[str]
) -> dict[str, Any]:
  """Converts the settings of a run to this version.

  Args:
    train: The entry `train` of config.json.
    known: Names of the settings of this version.
    path: config.json, for errors.

  Raises:
    DataError: The run has a setting that is unknown to this version.
  """
  train = _BEFORE_THERE_WAS | dict(train)
  if "loss_arguments" not in train:
    train |= _loss_before_there_were_forms(train)
  arguments = settings.name_values(train.get("task_arguments", ()))
  for name, (default, tasks) in _NOW_TASK_ARGUMENTS.items():
    value = train.pop(name, default)
    used = tasks is None or train.get("task") in tasks
    if name in ("num_hashes", "frequency_learning_rate"):
      streams = train.get("log_q") == "streaming"
      used &= streams or train.get("task") == "g_tower"
    if used and value != default:
      arguments.setdefault(name, value)
  for name in ("robustness", "positive_in_partition"):
    train.pop(name, None)
  unknown = [name for name in train if name not in known]
  if unknown:
    raise errors.DataError(
      f"this version of xir_tfrs does not know the run's setting {unknown[0]!r}"
      " (another version made the run): use that version, or train again",
      path=path,
    )
  return train | {"task_arguments": arguments}


def _loss_before_there_were_forms(train: Mapping[str, Any]) -> dict[str, Any]:
  """Converts the former `loss`, `robustness` and `positive_in_partition`.

  Runs without the last two used the cross entropy.
  """
  if train.get("loss") == "logq_corrected":
    return {"loss": "logq_corrected", "loss_arguments": {}}
  power = train.get("robustness", 0.0)
  with_positive = train.get("positive_in_partition", True)
  if power is None and with_positive is None:
    return {"loss": None, "loss_arguments": {}}
  plain = train.get("task") in ("full_softmax", "corr")
  if power is None:
    power = 0.0 if plain else 0.07
  if with_positive is None:
    with_positive = plain
  if not power:
    name = "cross_entropy" if with_positive else "decoupled"
    return {"loss": name, "loss_arguments": {}}
  return {
    "loss": "generalized_cross_entropy",
    "loss_arguments": {"power": power, "positive_in_partition": with_positive},
  }
