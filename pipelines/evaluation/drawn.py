"""The popularity of the candidates that a run draws and caches."""

from __future__ import annotations

import msgspec
import numpy as np
import tensorflow as tf

from xir_tfrs.data import paths

_CACHE = "model/task/cache/{}/.ATTRIBUTES/VARIABLE_VALUE"


class Occurrence(msgspec.Struct, frozen=True):
  """Shares of each tenth of the catalogue, most popular first.

  Attributes:
    interactions: Shares of the training rows.
    draws: Shares of all draws so far.
    cache: Shares of the entries of the cache.
    distinct: Share of distinct entries in the cache.
  """

  interactions: tuple[float, ...]
  draws: tuple[float, ...]
  cache: tuple[float, ...]
  distinct: float


def in_checkpoint(checkpoint: str, counts: np.ndarray) -> Occurrence | None:
  """Returns the shares of draws and cache; None if there is no cache.

  Args:
    checkpoint: Path of a run's checkpoint.
    counts: [num_candidates] training rows of each candidate.
  """
  # Reads the checkpoint: a restored model has no task, and so no cache.
  saved = tf.train.load_checkpoint(paths.literal_file(checkpoint))
  if not saved.has_tensor(_CACHE.format("occurrence_counts")):
    return None
  draws = saved.get_tensor(_CACHE.format("occurrence_counts"))
  ids = saved.get_tensor(_CACHE.format("ids"))
  return _occurrence(counts, draws, np.bincount(ids, minlength=len(draws)))


def _occurrence(
  counts: np.ndarray, draws: np.ndarray, cached: np.ndarray
) -> Occurrence:
  """Computes shares of each tenth of the catalogue, most popular first.

  Args:
    counts: [num_candidates] training rows of each candidate.
    draws: [num_candidates] number of draws so far.
    cached: [num_candidates] number of entries in the cache.
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
