"""The metrics of `full_ranking` for given lists of candidates.

Use it to evaluate a second stage, which ranks the candidates that a first stage
retrieved. Relevant candidates outside the list count as misses.

Axes: num_queries, depth (length of the lists).
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs.metrics import inputs
from xir_tfrs.metrics.full_ranking import Ranking


def list_ranking(
  candidate_ids: tf.Tensor | np.ndarray,
  scores: tf.Tensor | np.ndarray,
  *,
  relevant: tf.RaggedTensor,
  num_candidates: int,
  ks: Sequence[int] = (10, 20, 50),
) -> dict[str, float]:
  """Returns the means of `rank_lists`; see there for arguments and errors.

  Returns:
    The metrics of `full_ranking`, with its rule for ties: among equal scores,
    relevant candidates come last, and otherwise the lower id comes first.

  Examples:
    >>> found = xir.metrics.list_ranking(
    ...   candidate_ids=[[4, 2, -1]],
    ...   scores=[[0.9, 0.8, 0.0]],
    ...   relevant=tf.ragged.constant([[2, 3]]),
    ...   num_candidates=5,
    ...   ks=[2],
    ... )
    >>> found["recall@2"]
    0.5
  """
  return rank_lists(
    candidate_ids,
    scores,
    relevant=relevant,
    num_candidates=num_candidates,
    ks=ks,
  ).means()


def rank_lists(
  candidate_ids: tf.Tensor | np.ndarray,
  scores: tf.Tensor | np.ndarray,
  *,
  relevant: tf.RaggedTensor,
  num_candidates: int,
  ks: Sequence[int] = (10, 20, 50),
) -> Ranking:
  """Ranks the candidates of each list by score.

  Args:
    candidate_ids: [num_queries, depth] distinct dense ids in any order, padded
      with -1.
    scores: [num_queries, depth] scores of the candidates.
    relevant: [num_queries, None] integer ragged tensor of the distinct dense
      ids that each query should find.
    num_candidates: Size of the catalogue.
    ks: The cut-offs; they may exceed `depth`.

  Returns:
    A `Ranking`; among equal scores, relevant candidates come last.

  Raises:
    ValueError: An argument is malformed, ids are out of range or repeated, a
      score is NaN, or no query has anything relevant.

  Examples:
    >>> ranking = xir.metrics.rank_lists(
    ...   candidate_ids=[[4, 2, -1]],
    ...   scores=[[0.9, 0.8, 0.0]],
    ...   relevant=tf.ragged.constant([[2]]),
    ...   num_candidates=5,
    ...   ks=[2],
    ... )
    >>> ranking.hits
    array([[False,  True]])
  """
  ks = inputs.check_ks(ks)
  ids, scores = _check_lists(candidate_ids, scores, num_candidates)
  relevant, _ = inputs.check_lists(relevant, None, len(ids), num_candidates)
  rows, wanted = relevant.chunk(0, len(ids))
  keys = np.arange(len(ids))[:, np.newaxis] * num_candidates + ids
  found = np.isin(keys, rows * num_candidates + wanted) & (ids >= 0)

  # The last key is the primary one; padding sorts last.
  order = np.lexsort((ids, found, -scores, ids < 0), axis=1)
  ids, found = (np.take_along_axis(x, order, axis=1) for x in (ids, found))
  cuts = [min(k, num_candidates) for k in ks]
  hits = np.zeros([len(ids), max(cuts)], bool)
  depth = min(hits.shape[1], ids.shape[1])
  hits[:, :depth] = found[:, :depth]
  tops = [ids[:, :cut] for cut in cuts]
  shown = np.stack(
    [np.bincount(top[top >= 0], minlength=num_candidates) for top in tops]
  )
  return Ranking(hits, relevant.lengths, shown, ks)


def _check_lists(
  candidate_ids: tf.Tensor | np.ndarray,
  scores: tf.Tensor | np.ndarray,
  num_candidates: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns both as arrays, int64 and float64."""
  ids, scores = np.asarray(candidate_ids), np.asarray(scores)
  if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.shape != scores.shape:
    raise ValueError(
      "`candidate_ids` must be integers [num_queries, depth], and `scores` of "
      f"the same shape. Received: {ids.dtype} {list(ids.shape)} and "
      f"{list(scores.shape)}."
    )
  ids, scores = ids.astype(np.int64), scores.astype(np.float64)
  outside = (ids < -1) | (ids >= num_candidates)
  if outside.any():
    raise ValueError(
      f"`candidate_ids` must hold ids in [0, {num_candidates}), or -1. "
      f"Received: {ids[outside][0]}."
    )
  ascending = np.sort(ids, axis=1)
  repeated = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)
  if repeated.any():
    row, place = np.argwhere(repeated)[0]
    raise ValueError(
      "`candidate_ids` must not repeat an id in a row. Received: candidate "
      f"{ascending[row, place]} twice in row {row}."
    )
  broken = np.isnan(scores) & (ids >= 0)
  if broken.any():
    raise ValueError(
      f"`scores` has NaN in row {np.argwhere(broken)[0][0]}: the model has "
      "diverged."
    )
  return ids, scores
