"""Proposals: the distributions by which a pool's candidates arrive."""

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
