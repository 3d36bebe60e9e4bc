"""The exact softmax over all candidates for a few rows.

    P_j = e^{k s_j} / sum_i e^{k s_i},   g = sum_j P_j grad s_j - grad s_p

with s the scores after temperature, p the row's positive, and k a sharpness:
k = 1 is the softmax at the temperature of the task, k = 2 the one at half of
it. Known candidates of the query, other than p, are left out if the loss leaves
them out.

Axes: rows (query, positive), candidates, dim.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_SCORES_PER_CALL = 1 << 22


@dataclasses.dataclass(frozen=True)
class FullSoftmax:
  """Scores, partitions and gradients of some rows.

  Attributes:
    queries: [rows, dim] vectors whose inner products with `candidates` are
      scores after temperature.
    candidates: [candidates, dim] vectors.
    positive_ids: [rows] ids of the positives.
    log_partition: k -> [rows] log sum_j e^{k s_j}.
    gradients: k -> [rows, dim] the gradient g for the queries before they are
      normalised and divided by the temperature.
    left_out: For each row, ids of the candidates to leave out; None for none.
  """

  queries: np.ndarray
  candidates: np.ndarray
  positive_ids: np.ndarray
  log_partition: dict[float, np.ndarray]
  gradients: dict[float, np.ndarray]
  left_out: list[np.ndarray] | None = None

  def log_probabilities(
    self,
    ids: np.ndarray,
    rows: np.ndarray | None = None,
    sharpness: float = 1.0,
  ) -> np.ndarray:
    """Returns [n, rows] log P of n candidates; by default for all rows."""
    if rows is None:
      rows = np.arange(len(self.queries))
    scores = self.candidates[ids] @ self.queries[rows].T
    log_p = (
      sharpness * scores.astype(np.float64)
      - self.log_partition[sharpness][rows]
    )
    if self.left_out is not None:
      out = [np.isin(ids, self.left_out[row]) for row in rows]
      log_p[np.stack(out, axis=1)] = -np.inf
    return log_p

  def mass(self, ids: np.ndarray) -> np.ndarray:
    """Returns [rows] share of the softmax on distinct candidates."""
    return np.exp(self.log_probabilities(ids)).sum(axis=0)

  def positive_weights(self) -> np.ndarray:
    """Returns [rows] probabilities of the positives."""
    positives = self.candidates[self.positive_ids]
    scores = np.sum(self.queries * positives, axis=1, dtype=np.float64)
    return np.exp(scores - self.log_partition[1.0])


def full_softmax(
  queries: tf.Tensor,
  candidates: np.ndarray,
  positive_ids: np.ndarray,
  *,
  temperature: float,
  normalize: bool,
  sharpnesses: Sequence[float],
  known: tf.RaggedTensor | None = None,
) -> FullSoftmax:
  """Computes the full softmax, a few rows at a time.

  Args:
    queries: [rows, dim] embeddings from the query tower.
    candidates: [candidates, dim] float32 embeddings, normalised if scores are
      cosines.
    positive_ids: [rows] ids of the positives.
    temperature: Divisor of the scores.
    normalize: Whether scores are cosines.
    sharpnesses: The values of k, including 1.
    known: [rows, None] ids of the known candidates of each row's query; all but
      the row's positive are left out. None for none.

  Returns:
    The `FullSoftmax`.
  """
  raw_queries = tf.cast(queries, tf.float32)
  table = tf.constant(candidates)
  chunk = max(_SCORES_PER_CALL // len(candidates), 1)
  left_out = None if known is None else _others(known, positive_ids)
  scored: list[tf.Tensor] = []
  partitions: list[list[tf.Tensor]] = []
  gradients: list[list[tf.Tensor]] = []
  for first in range(0, len(positive_ids), chunk):
    raw = raw_queries[first : first + chunk]
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(raw)
      q = tf.math.l2_normalize(raw, axis=1) if normalize else raw
      q = q / temperature
    scores = tf.cast(tf.matmul(q, table, transpose_b=True), tf.float64)
    if left_out is not None:
      scores = _masked(scores, left_out[first : first + chunk])
    positives = tf.gather(table, positive_ids[first : first + chunk])
    scored.append(q)
    partitions.append([])
    gradients.append([])
    for k in sharpnesses:
      by_score = _gradient_of_scores(k * scores, table, positives)
      gradients[-1].append(tape.gradient(q, raw, output_gradients=by_score))
      partitions[-1].append(tf.reduce_logsumexp(k * scores, axis=1))
  return FullSoftmax(
    queries=np.concatenate(scored),
    candidates=candidates,
    positive_ids=positive_ids,
    log_partition={
      k: np.concatenate(parts)
      for k, *parts in zip(sharpnesses, *partitions, strict=True)
    },
    gradients={
      k: np.concatenate(parts).astype(np.float64)
      for k, *parts in zip(sharpnesses, *gradients, strict=True)
    },
    left_out=left_out,
  )


def _others(
  known: tf.RaggedTensor, positive_ids: np.ndarray
) -> list[np.ndarray]:
  """The known ids of each row without its positive."""
  rows = np.split(known.values.numpy(), known.row_splits.numpy()[1:-1])
  return [ids[ids != own] for ids, own in zip(rows, positive_ids, strict=True)]


def _masked(scores: tf.Tensor, left_out: list[np.ndarray]) -> tf.Tensor:
  """[rows, candidates] scores; -inf for candidates to leave out."""
  masked = scores.numpy().copy()
  for row, ids in zip(masked, left_out, strict=True):
    row[ids] = -np.inf
  return tf.constant(masked)


def _gradient_of_scores(
  scores: tf.Tensor, table: tf.Tensor, positives: tf.Tensor
) -> tf.Tensor:
  """[rows, dim] sum_j P_j v_j - v_p.

  Summed in float64: if the model is sure of the positive, this is a small
  difference of large numbers.
  """
  expected = tf.matmul(tf.nn.softmax(scores), tf.cast(table, tf.float64))
  return tf.cast(expected - tf.cast(positives, tf.float64), table.dtype)
