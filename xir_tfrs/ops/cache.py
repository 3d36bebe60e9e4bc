"""Cache transition: which candidates the next step's cache holds.

Chen et al. 2022, Algorithm 2: `o_i` counts how often candidate i has been
drawn; the next cache is a sample with probability in proportion to `o_i`.
"""

import tensorflow as tf

from xir_tfrs.ops import search, seeds


def next_cache(
  candidate_ids: tf.Tensor,
  weights: tf.Tensor,
  cache_size: int,
  *,
  seed: int | tf.Tensor,
  distinct: bool = False,
) -> tf.Tensor:
  """Draws the next cache, with replacement, in proportion to the weights.

  Args:
    candidate_ids: [n] integer ids to draw from. Repeating an id does not make
      it more likely.
    weights: [n] weights >= 0, the same for the same id; the paper's `o`. If
      all are zero, every distinct id is equally likely.
    cache_size: How many ids to draw.
    seed: [2] integer seed, or a scalar.
    distinct: Whether the caller knows that no id is repeated, which saves the
      search for repeats.

  Returns:
    [cache_size] ids, of the type of `candidate_ids`.

  Examples:
    >>> ids, weights = tf.constant([5, 6, 7]), tf.constant([1.0, 0.0, 3.0])
    >>> cache = xir.ops.cache.next_cache(ids, weights, 8, seed=0)
    >>> sorted(set(cache.numpy().tolist()))
    [5, 7]
  """
  weights = tf.cast(weights, tf.float64)
  weights = tf.where(tf.reduce_any(weights > 0), weights, 1.0)
  if not distinct:
    multiplicity = search.multiplicities(candidate_ids)
    weights /= tf.cast(multiplicity, tf.float64)
  cumulative = tf.cumsum(weights)
  # float64: with 2^24 candidates float32 could no longer reach each of them.
  points = cumulative[-1] * seeds.uniform(seed, cache_size)
  drawn = search.upper_bound(cumulative, points)
  return tf.gather(
    candidate_ids, tf.minimum(drawn, tf.shape(candidate_ids)[0] - 1)
  )


def entry_steps(
  ids: tf.Tensor,
  entered: tf.Tensor,
  next_ids: tf.Tensor,
  step: int | tf.Tensor,
) -> tf.Tensor:
  """The step since which each id of the next cache has been there.

  Args:
    ids: [cache_size] ids of the cache before.
    entered: [cache_size] int64 >= 0, the steps at which they entered; the same
      for the same id.
    next_ids: [n] ids of the next cache.
    step: The step for ids that were not there before.

  Returns:
    [n] int64 steps, the same for the same id.

  Examples:
    >>> ids, entered = tf.constant([5, 6]), tf.constant([1, 2], tf.int64)
    >>> xir.ops.cache.entry_steps(ids, entered, tf.constant([6, 7]), 3).numpy()
    array([2, 3])
  """
  numbers = search.numbers(tf.concat([ids, next_ids], 0))
  before, after = tf.split(numbers, [tf.size(ids), tf.size(next_ids)])
  # An id that was not there has an empty segment, whose maximum is negative.
  since = tf.math.unsorted_segment_max(entered, before, tf.size(numbers))
  since = tf.gather(since, after)
  return tf.where(since >= 0, since, tf.cast(step, tf.int64))
