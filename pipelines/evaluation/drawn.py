"""Who is drawn: which part of the catalogue a run's cache comes from."""

from __future__ import annotations

import msgspec
import numpy as np
import tensorflow as tf

_CACHE = "model/task/cache/{}/.ATTRIBUTES/VARIABLE_VALUE"


class Occurrence(msgspec.Struct, frozen=True):
  """Shares of the tenths of the catalogue, the most popular one first.

  Attributes:
    interactions: Of the training rows.
    draws: Of all draws so far.
    cache: Of the entries of the cache.
    distinct: Share of the cache's entries that are not copies of another.
  """

  interactions: tuple[float, ...]
  draws: tuple[float, ...]
  cache: tuple[float, ...]
  distinct: float


def in_checkpoint(checkpoint: str, counts: np.ndarray) -> Occurrence | None:
  """Who is drawn and cached; None if the method has no cache.

  Args:
    checkpoint: Path of a run's checkpoint.
    counts: [num_candidates] training rows.
  """
  # The restored model is for inference: it has no task, and so no cache.
  saved = tf.train.load_checkpoint(checkpoint)
  if not saved.has_tensor(_CACHE.format("occurrence_counts")):
    return None
  draws = saved.get_tensor(_CACHE.format("occurrence_counts"))
  ids = saved.get_tensor(_CACHE.format("ids"))
  return _occurrence(counts, draws, np.bincount(ids, minlength=len(draws)))


def _occurrence(
  counts: np.ndarray, draws: np.ndarray, cached: np.ndarray
) -> Occurrence:
  """Shares of tenths of the catalogue, the most popular first.

  Args:
    counts: [num_candidates] training rows.
    draws: [num_candidates] how often each was drawn so far.
    cached: [num_candidates] how often each is in the cache now.
  """
  tenths = np.array_split(np.argsort(-counts, kind="stable"), 10)

  def shares(values):
    total = max(float(values.sum()), 1.0)
    return tuple(round(float(values[t].sum()) / total, 5) for t in tenths)

  return Occurrence(
    interactions=shares(counts),
    draws=shares(draws),
    cache=shares(cached),
    distinct=round(float((cached > 0).sum() / cached.sum()), 4),
  )
