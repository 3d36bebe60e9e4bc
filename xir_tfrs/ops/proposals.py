"""Proposals: the distributions by which a pool's candidates arrive."""

import numpy as np
import tensorflow as tf


def log_popularity(counts: tf.Tensor) -> tf.Tensor:
  """Log of `pop`, the share of the training interactions of each candidate.

  In-batch candidates arrive by popularity, so this is the log-Q of a batch
  (Chen et al. 2022, `pop(i)` of equation 3). A candidate without training
  interactions counts as one interaction: nothing is ever `log(0)`.

  Args:
    counts: [num_candidates] training interactions per candidate, >= 0.

  Returns:
    [num_candidates] float32 `log(max(counts, 1) / sum(max(counts, 1)))`.
  """
  counts = tf.maximum(tf.cast(counts, tf.float64), 1.0)
  return tf.cast(
    tf.math.log(counts) - tf.math.log(tf.reduce_sum(counts)), tf.float32
  )


def log_mixture(
  log_q: tf.Tensor,
  num_rows: int | tf.Tensor,
  num_uniform: int | tf.Tensor,
  num_candidates: int,
) -> tf.Tensor:
  """Log of the proposal of batch candidates mixed with uniform ones.

      Q*_j = B / (B + B') q_j + B' / (B + B') 1 / N

  Equation 5 of Yang et al. 2020 (MNS).

  Args:
    log_q: [n] log proposal of the batch's candidates, q.
    num_rows: Candidates from the batch, B.
    num_uniform: Candidates drawn uniformly, B'.
    num_candidates: Size of the catalogue, N.

  Returns:
    [n] log Q*, of the type of `log_q`.
  """
  num_rows = tf.cast(num_rows, log_q.dtype)
  num_uniform = tf.cast(num_uniform, log_q.dtype)
  log_total = tf.math.log(num_rows + num_uniform)
  from_batch = log_q + tf.math.log(num_rows) - log_total
  from_all = (
    tf.math.log(num_uniform)
    - log_total
    - tf.math.log(tf.cast(num_candidates, log_q.dtype))
  )
  parts = tf.stack([from_batch, tf.fill(tf.shape(log_q), from_all)])
  return tf.reduce_logsumexp(parts, axis=0)


def log_complement(log_q: tf.Tensor) -> tf.Tensor:
  """log(1 - q): how likely a draw is another candidate.

  Args:
    log_q: Tensor of log probabilities. One that rounding cannot tell from 1
      is taken for the highest that can be.

  Returns:
    Tensor of the same shape and type; finite.
  """
  log_q = tf.convert_to_tensor(log_q)
  resolution = np.finfo(log_q.dtype.as_numpy_dtype).eps
  return tf.math.log(tf.maximum(-tf.math.expm1(log_q), resolution))
