"""Proposals: the distributions by which a pool's candidates arrive."""

import numpy as np
import tensorflow as tf


def log_popularity(counts: tf.Tensor) -> tf.Tensor:
  """Log of `pop`, the share of the training interactions of each candidate.

  In-batch candidates arrive by popularity, so this is the log-Q of a batch
  (Chen et al. 2022, `pop(i)` of equation 3). A candidate without training
  interactions counts as one interaction, so `log(0)` never occurs.

  Args:
    counts: [num_candidates] training interactions per candidate, >= 0.

  Returns:
    [num_candidates] float32 `log(max(counts, 1) / sum(max(counts, 1)))`.

  Examples:
    >>> log_q = xir.ops.proposals.log_popularity(tf.constant([3, 0]))
    >>> tf.exp(log_q).numpy()  # No interaction counts as one.
    array([0.75, 0.25], dtype=float32)
  """
  counts = tf.maximum(tf.cast(counts, tf.float64), 1.0)
  return tf.cast(
    tf.math.log(counts) - tf.math.log(tf.reduce_sum(counts)), tf.float32
  )


def log_mixture(
  log_q: tf.Tensor,
  num_rows: int | tf.Tensor,
  log_q_others: float | tf.Tensor,
  num_others: int | tf.Tensor,
) -> tf.Tensor:
  """Log of the proposal of a pool of batch candidates and others.

      Q*_j = B / (B + B') q_j + B' / (B + B') q'_j

  Equation 5 of Yang et al. 2020 (MNS), where q' is uniform; the balance
  heuristic of multiple importance sampling (Veach and Guibas 1995).

  Args:
    log_q: [n] log proposal of the batch's candidates, q.
    num_rows: Candidates from the batch, B.
    log_q_others: [n] or scalar log proposal of the others, q'; may be -inf
      where q is not.
    num_others: Candidates drawn from it, B'.

  Returns:
    [n] log Q*, of the type of `log_q`.

  Examples:
    >>> log_q = tf.math.log([0.5, 0.1])
    >>> log_uniform = float(np.log(0.2))
    >>> log_q = xir.ops.proposals.log_mixture(log_q, 8, log_uniform, 8)
    >>> tf.exp(log_q).numpy().round(3)
    array([0.35, 0.15], dtype=float32)
  """
  num_rows = tf.cast(num_rows, log_q.dtype)
  num_others = tf.cast(num_others, log_q.dtype)
  log_q_others = tf.cast(log_q_others, log_q.dtype)
  log_total = tf.math.log(num_rows + num_others)
  from_batch = log_q + tf.math.log(num_rows) - log_total
  from_others = log_q_others + tf.math.log(num_others) - log_total
  parts = tf.stack([from_batch, tf.broadcast_to(from_others, tf.shape(log_q))])
  return tf.reduce_logsumexp(parts, axis=0)


def log_complement(log_q: tf.Tensor) -> tf.Tensor:
  """log(1 - q): the log probability that a draw is another candidate.

  Args:
    log_q: Tensor of log probabilities. Those that round to 1 are replaced by
      the highest number below 1.

  Returns:
    Tensor of the same shape and type; finite.

  Examples:
    >>> log_q = tf.math.log([0.25])
    >>> tf.exp(xir.ops.proposals.log_complement(log_q)).numpy()
    array([0.75], dtype=float32)
  """
  log_q = tf.convert_to_tensor(log_q)
  resolution = np.finfo(log_q.dtype.as_numpy_dtype).eps
  return tf.math.log(tf.maximum(-tf.math.expm1(log_q), resolution))
