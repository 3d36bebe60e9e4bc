"""Tests of xir_tfrs.ops.cache."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import cache

_SEED = (3, 17)


def _next_cache(candidate_ids, weights, cache_size, seed=_SEED):
  return cache.next_cache(
    tf.constant(candidate_ids, tf.int64),
    tf.constant(weights, tf.float64),
    cache_size,
    seed=seed,
  ).numpy()


class NextCacheTest(tf.test.TestCase, parameterized.TestCase):
  def assert_frequencies(self, ids, probabilities, num_sigmas=5.0):
    """Frequencies of draws match the probabilities, to 5 sigma."""
    self.assertContainsSubset(set(ids.tolist()), probabilities)
    for candidate, p in probabilities.items():
      sigma = np.sqrt(p * (1 - p) / len(ids))
      self.assertNear(np.mean(ids == candidate), p, num_sigmas * sigma + 1e-12)

  def test_shape_and_type(self):
    ids = _next_cache([4, 9], [1.0, 2.0], 5)
    self.assertEqual(ids.dtype, np.int64)
    self.assertEqual(ids.shape, (5,))

  def test_draws_in_proportion_to_the_weights(self):
    candidate_ids, weights = [7, 3, 11, 20], [1.0, 2.0, 5.0, 12.0]
    self.assert_frequencies(
      _next_cache(candidate_ids, weights, 20000),
      reference.next_cache_probabilities(candidate_ids, weights),
    )

  def test_duplicates_in_the_pool_count_once(self):
    # A popular candidate is in the pool many times, each time with its total
    # count. If the cache summed these, its weight would be squared.
    candidate_ids, weights = [7, 3, 7, 7, 7], [1.0, 1.0, 1.0, 1.0, 1.0]
    self.assert_frequencies(
      _next_cache(candidate_ids, weights, 20000), {7: 0.5, 3: 0.5}
    )

  def test_duplicates_anywhere_in_a_long_pool(self):
    rng = np.random.default_rng(0)
    candidate_ids = rng.integers(0, 12, 300) * 1000
    weights = (candidate_ids / 1000) ** 2
    self.assert_frequencies(
      _next_cache(candidate_ids, weights, 20000),
      reference.next_cache_probabilities(candidate_ids, weights),
    )

  def test_zero_weight_is_never_drawn(self):
    self.assertAllEqual(_next_cache([4, 9, 2], [0.0, 3.0, 0.0], 50), [9] * 50)

  def test_all_zero_weights_draw_uniformly(self):
    self.assert_frequencies(
      _next_cache([4, 9, 4, 4], [0.0] * 4, 20000), {4: 0.5, 9: 0.5}
    )

  def test_one_candidate(self):
    self.assertAllEqual(_next_cache([5], [0.0], 3), [5, 5, 5])

  def test_rare_candidates_beside_a_very_frequent_one(self):
    # 2^25 draws of one candidate and one each of 2^16 others: in float32
    # 2^25 + 1 is 2^25, and the others would never be drawn.
    ids = _next_cache(range(2**16 + 1), [2.0**25] + [1.0] * 2**16, 20000)
    self.assert_frequencies(np.minimum(ids, 1), {0: 512 / 513, 1: 1 / 513})
    self.assertGreater(len(set(ids.tolist())), 10)

  def test_is_deterministic_in_the_seed(self):
    arguments = ([4, 9, 2, 1], [1.0, 2.0, 3.0, 4.0], 100)
    first = _next_cache(*arguments)
    self.assertAllEqual(first, _next_cache(*arguments))
    self.assertNotAllEqual(first, _next_cache(*arguments, seed=(3, 18)))

  def test_under_tf_function_with_unknown_pool_size(self):
    @tf.function(
      input_signature=[
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None], tf.float64),
      ]
    )
    def traced(candidate_ids, weights):
      return cache.next_cache(candidate_ids, weights, 9, seed=_SEED)

    for candidate_ids in ([4, 9, 9], [1, 2, 3, 4, 5]):
      weights = [float(i) for i in candidate_ids]
      ids = traced(candidate_ids, weights)
      self.assertEqual(ids.shape, [9])
      self.assertAllEqual(ids, _next_cache(candidate_ids, weights, 9))


class EntryStepsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(1, 2, 7)
  def test_reference(self, cache_size):
    rng = np.random.default_rng(cache_size)
    caches = [rng.integers(0, 9, cache_size).tolist()]
    entered = tf.zeros([cache_size], tf.int64)
    for step in range(1, 12):
      caches.append(rng.integers(0, 9, cache_size).tolist())
      entered = cache.entry_steps(
        tf.constant(caches[-2], tf.int64),
        entered,
        tf.constant(caches[-1], tf.int64),
        step,
      )
      self.assertEqual(entered.dtype, tf.int64)
      self.assertAllEqual(entered, reference.entry_steps(caches))

  def test_by_hand(self):
    # 4 came at step 3 and stays, twice now; 5 has gone; 8 is new.
    self.assertAllEqual(
      cache.entry_steps([4, 5], tf.constant([3, 0], tf.int64), [4, 8, 4], 6),
      [3, 6, 3],
    )


if __name__ == "__main__":
  tf.test.main()
