"""Places of scores among all candidates, estimated from a pool.

Axes: batch = rows, one per query; pool = candidates a row is scored against.
"""

import math

import tensorflow as tf

# Halvings of the range of a row's scores: the resolution of float32.
_HALVINGS = 24


def kth_best(
  scores: tf.Tensor,
  keep: tf.Tensor | None,
  log_q: tf.Tensor,
  k: int,
  num_columns: int | tf.Tensor | None = None,
) -> tf.Tensor:
  """Score of the K-th best candidate, as the pool estimates it.

      the highest x for which sum_{j kept, s_j >= x} 1 / (n q_j) >= K

  over a pool of n columns that were drawn by q: each stands for 1 / (n q_j)
  candidates. For a pool that holds every candidate once, q_j = 1 / n, it is
  the K-th best kept. Found by halving, without sorting the rows.

  Args:
    scores: [batch, pool] float tensor.
    keep: [batch, pool] bool, which columns count; None: all.
    log_q: [pool] log of the proposal, normalised over the catalogue.
    k: K, at least 1.
    num_columns: n; None: the number of columns of `scores`.

  Returns:
    [batch] scores, without gradient; -inf where there are fewer than K.

  Examples:
    >>> scores = tf.constant([[5.0, 1.0, 3.0]])
    >>> log_q = tf.math.log([1 / 3] * 3)  # Every candidate once.
    >>> xir.ops.ranks.kth_best(scores, None, log_q, k=2).numpy()
    array([3.], dtype=float32)
  """
  scores = tf.stop_gradient(scores)
  kept = scores
  if keep is not None:
    kept = tf.where(keep, scores, -math.inf)
  if num_columns is None:
    num_columns = tf.shape(scores)[1]
  num_columns = tf.cast(num_columns, scores.dtype)
  # More than K is as good as K, and does not overflow.
  log_weights = tf.minimum(-log_q - tf.math.log(num_columns), math.log(k))
  # A sum that equals K up to rounding counts as K.
  enough = k * (1.0 - 1e-5)

  def has_enough(threshold: tf.Tensor) -> tf.Tensor:
    above = kept >= threshold[:, tf.newaxis]
    return (
      tf.linalg.matvec(tf.cast(above, scores.dtype), tf.exp(log_weights))
      >= enough
    )

  high = tf.reduce_max(kept, axis=1)
  low = tf.reduce_min(tf.where(kept > -math.inf, kept, math.inf), axis=1)
  none = ~tf.math.is_finite(high)
  low, high = (tf.where(none, tf.zeros_like(x), x) for x in (low, high))
  found = has_enough(low)
  low = tf.where(has_enough(high), high, low)
  for _ in range(_HALVINGS):
    middle = low + 0.5 * (high - low)
    inside = has_enough(middle)
    low, high = tf.where(inside, middle, low), tf.where(inside, high, middle)
  best = tf.reduce_min(
    tf.where(kept >= low[:, tf.newaxis], kept, math.inf), axis=1
  )
  return tf.where(found & ~none, best, -math.inf)


def merge_best(best: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
  """The K best of the scores so far and those of another chunk.

  Args:
    best: [batch, K] scores, -inf where there are fewer.
    scores: [batch, chunk] scores, -inf where a candidate does not count.

  Returns:
    [batch, K], without gradient, best first.

  Examples:
    >>> best, scores = tf.constant([[5.0, 3.0]]), tf.constant([[4.0, 1.0, 9.0]])
    >>> xir.ops.ranks.merge_best(best, scores).numpy()
    array([[9., 5.]], dtype=float32)
  """
  scores = tf.stop_gradient(tf.concat([best, scores], axis=1))
  return tf.math.top_k(scores, best.shape[1]).values
