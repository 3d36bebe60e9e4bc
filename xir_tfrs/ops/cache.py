"""Cache transition: which candidates the next step's cache holds.

Chen et al. 2022, Algorithm 2: `o_i` counts how often candidate i has been
drawn; the next cache is a sample with probability in proportion to `o_i`.
"""

import tensorflow as tf

from xir_tfrs.ops import seeds


def next_cache(
  candidate_ids: tf.Tensor,
  weights: tf.Tensor,
  cache_size: int,
  *,
  seed: int | tf.Tensor,
) -> tf.Tensor:
  """Draws the next cache, with replacement, in proportion to the weights.

  Args:
    candidate_ids: [n] integer ids to draw from. An id that stands here several
      times is not likelier for it.
    weights: [n] weights >= 0, the same for the same id; the paper's `o`. If
      all are zero, every distinct id is equally likely.
    cache_size: How many ids to draw.
    seed: [2] integer seed, or a scalar.

  Returns:
    [cache_size] ids, of the type of `candidate_ids`.
  """
  _, position, multiplicity = tf.unique_with_counts(candidate_ids)
  weights = tf.cast(weights, tf.float64)
  weights = tf.where(tf.reduce_any(weights > 0), weights, 1.0)
  weights /= tf.cast(tf.gather(multiplicity, position), tf.float64)
  cumulative = tf.cumsum(weights)
  # float64: with 2^24 candidates float32 could no longer reach each of them.
  points = cumulative[-1] * tf.random.stateless_uniform(
    [cache_size], seed=seeds.as_pair(seed), dtype=tf.float64
  )
  drawn = tf.searchsorted(cumulative, points, side="right")
  return tf.gather(
    candidate_ids, tf.minimum(drawn, tf.shape(candidate_ids)[0] - 1)
  )
