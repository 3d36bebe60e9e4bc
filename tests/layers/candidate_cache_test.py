"""Tests of xir_tfrs.layers.CandidateCache."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs import layers


def _cache(num_candidates=50, cache_size=8, **kwargs):
  return layers.CandidateCache(
    num_candidates=num_candidates, cache_size=cache_size, **kwargs
  )


def _update(cache, pool_ids, draws):
  cache.update(tf.constant(pool_ids, tf.int64), tf.constant(draws, tf.float32))


def _state(cache):
  return {
    "ids": cache.ids.numpy(),
    "occurrence_counts": cache.occurrence_counts.numpy(),
    "entered": cache.entered.numpy(),
    "step": cache.step.numpy(),
  }


class CandidateCacheTest(tf.test.TestCase, parameterized.TestCase):
  def test_starts_with_uniform_candidates_and_no_draws(self):
    cache = _cache(num_candidates=10, cache_size=20000)
    self.assertEqual(cache.ids.dtype, tf.int64)
    self.assertEqual(cache.ids.shape, [20000])
    self.assertEqual(cache.occurrence_counts.dtype, tf.float64)
    self.assertAllEqual(cache.occurrence_counts, np.zeros(10))
    self.assertEqual(cache.step.dtype, tf.int64)
    self.assertEqual(int(cache.step), 0)
    observed = np.bincount(cache.ids.numpy(), minlength=10)
    self.assertLen(observed, 10)
    # Chi-square, 9 degrees of freedom, 0.9999 quantile.
    self.assertLess(np.sum((observed - 2000) ** 2 / 2000), 33.72)

  def test_variables_are_named_untrained_and_aggregated(self):
    cache = _cache()
    for variable in (
      cache.ids,
      cache.occurrence_counts,
      cache.entered,
      cache.step,
    ):
      self.assertFalse(variable.trainable)
      self.assertNotIn("Variable", variable.name)
      self.assertEqual(
        variable.aggregation, tf.VariableAggregation.ONLY_FIRST_REPLICA
      )

  def test_update_counts_the_draws(self):
    cache = _cache(num_candidates=6, cache_size=4)
    # Candidate 3 appears twice in the pool: its draws add up.
    _update(cache, [3, 1, 3, 5], [2.0, 1.5, 4.0, 0.0])
    self.assertAllEqual(cache.occurrence_counts, [0.0, 1.5, 0.0, 6.0, 0.0, 0.0])
    self.assertEqual(int(cache.step), 1)
    _update(cache, [0, 3], [1.0, 1.0])
    self.assertAllEqual(cache.occurrence_counts, [1.0, 1.5, 0.0, 7.0, 0.0, 0.0])
    self.assertEqual(int(cache.step), 2)

  def test_next_ids_are_drawn_by_accumulated_occurrence(self):
    cache = _cache(num_candidates=6, cache_size=20000)
    _update(cache, [1, 2], [30.0, 10.0])
    # Accumulated: 1 has 30, 2 has 10 + 5 + 5, 4 has 10; 3 was not drawn.
    _update(cache, [2, 4, 2, 3, 1], [5.0, 10.0, 5.0, 0.0, 0.0])
    self.assertAllClose(
      np.bincount(cache.ids, minlength=6) / 20000,
      [0, 30 / 60, 20 / 60, 0, 10 / 60, 0],
      atol=5 * 0.5 / np.sqrt(20000),
    )
    self.assertAllEqual(np.bincount(cache.ids, minlength=6)[[0, 3, 5]], [0] * 3)

  def test_scope_step_forgets_what_is_not_in_the_pools(self):
    cache = _cache(num_candidates=6, cache_size=500)
    _update(cache, [1], [1e6])
    _update(cache, [4, 2], [1.0, 1.0])
    self.assertContainsSubset(set(cache.ids.numpy()), {2, 4})

  def test_scope_all_draws_from_every_candidate_ever_drawn(self):
    cache = _cache(num_candidates=6, cache_size=20000, cache_scope="all")
    _update(cache, [1], [3.0])
    _update(cache, [4, 2], [1.0, 0.0])
    self.assertAllClose(
      np.bincount(cache.ids, minlength=6) / 20000,
      [0, 0.75, 0, 0, 0.25, 0],
      atol=5 * 0.5 / np.sqrt(20000),
    )

  @parameterized.parameters("step", "all")
  def test_nothing_drawn_at_all_is_uniform(self, scope):
    cache = _cache(num_candidates=4, cache_size=20000, cache_scope=scope)
    _update(cache, [0, 1, 1], [0.0, 0.0, 0.0])
    observed = np.bincount(cache.ids, minlength=4) / 20000
    expected = [0.5, 0.5, 0, 0] if scope == "step" else [0.25] * 4
    self.assertAllClose(observed, expected, atol=5 * 0.5 / np.sqrt(20000))

  @parameterized.parameters("step", "all")
  def test_decay_ages_older_draws(self, scope):
    cache = _cache(num_candidates=4, cache_scope=scope, occurrence_decay=0.5)
    _update(cache, [0, 1], [8.0, 2.0])
    self.assertAllEqual(cache.occurrence_counts, [8.0, 2.0, 0.0, 0.0])
    # This step's draws count in full: 8/2 + 1, 2/2 + 0, 0 + 3.
    _update(cache, [0, 2], [1.0, 3.0])
    # With scope "step", the cost must not grow with the catalogue, so the layer
    # may store a scale instead of decayed values; only ratios are tested.
    counts = cache.occurrence_counts.numpy()
    self.assertAllClose(counts / counts[1], [5.0, 1.0, 3.0, 0.0])

  def test_recency_keeps_the_last_candidates(self):
    cache = _cache(num_candidates=9, cache_size=5, cache_policy="recency")
    first = cache.ids.numpy()
    for arrived, expected in (
      ([1, 2], [1, 2, *first[:3]]),
      ([3, 3, 4], [3, 3, 4, 1, 2]),
      ([5, 6, 7, 8, 0, 1], [5, 6, 7, 8, 0]),
    ):
      # Draws are counted, but not used.
      cache.update(
        tf.constant([8], tf.int64),
        tf.constant([100.0]),
        arrived=tf.constant(arrived, tf.int64),
      )
      self.assertAllEqual(cache.ids, expected)
    self.assertEqual(float(cache.occurrence_counts[8]), 300.0)

  def test_proposal_is_what_the_cache_was_drawn_by(self):
    cache = _cache(
      num_candidates=4,
      cache_size=20000,
      cache_scope="all",
      occurrence_decay=0.5,
    )
    ids = tf.range(4, dtype=tf.int64)
    self.assertAllClose(cache.log_proposal(ids), np.log([0.25] * 4))
    _update(cache, [0, 1], [8.0, 2.0])
    _update(cache, [0, 2], [1.0, 3.0])
    share = np.exp(cache.log_proposal(ids))
    self.assertAllClose(share, np.array([5.0, 1.0, 3.0, 0.0]) / 9)
    self.assertAllClose(
      np.bincount(cache.ids, minlength=4) / 20000,
      share,
      atol=5 * 0.5 / np.sqrt(20000),
    )

  def test_counts_do_not_stall_at_the_end_of_float32(self):
    cache = _cache(num_candidates=3)
    cache.occurrence_counts.assign([2.0**24, 2.0**40, 0.0])
    _update(cache, [0, 1], [1.0, 1.0])
    self.assertAllEqual(
      cache.occurrence_counts, [2.0**24 + 1, 2.0**40 + 1, 0.0]
    )

  def test_seeds(self):
    first, same, other = _cache(seed=1), _cache(seed=1), _cache(seed=2)
    self.assertAllEqual(first.ids, same.ids)
    self.assertNotAllEqual(first.ids, other.ids)
    for cache in (first, same, other):
      _update(cache, range(50), [1.0] * 50)
    self.assertAllEqual(first.ids, same.ids)
    self.assertNotAllEqual(first.ids, other.ids)

  def test_every_step_draws_a_new_cache(self):
    cache = _cache()
    caches = []
    for _ in range(4):
      _update(cache, range(50), [1.0] * 50)
      caches.append(tuple(cache.ids.numpy()))
    self.assertLen(set(caches), 4)

  def test_reset_is_a_new_cache(self):
    cache, new = _cache(seed=3), _cache(seed=3)
    _update(cache, [1, 2], [3.0, 4.0])
    cache.reset()
    for name, value in _state(new).items():
      self.assertAllEqual(_state(cache)[name], value)

  def test_under_tf_function_with_unknown_pool_size(self):
    eager, traced = _cache(), _cache()
    update = tf.function(
      traced.update,
      input_signature=[
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None], tf.float32),
      ],
    )
    for pool_ids in ([3, 1, 3], [9, 8, 7, 6, 5]):
      draws = [float(i) for i in pool_ids]
      update(tf.constant(pool_ids, tf.int64), tf.constant(draws))
      _update(eager, pool_ids, draws)
    for name, value in _state(eager).items():
      self.assertAllEqual(_state(traced)[name], value)

  def test_checkpoint_continues_as_if_never_stopped(self):
    cache = _cache()
    _update(cache, [1, 2, 3], [1.0, 2.0, 3.0])
    path = tf.train.Checkpoint(cache=cache).save(self.get_temp_dir() + "/ckpt")
    restored = _cache()
    tf.train.Checkpoint(cache=restored).restore(path).assert_consumed()
    for c in (cache, restored):
      _update(c, [7, 2, 9, 11], [1.0, 1.0, 5.0, 2.0])
    for name, value in _state(cache).items():
      self.assertAllEqual(_state(restored)[name], value)

  def test_entries_remember_when_they_came(self):
    cache = _cache(num_candidates=12, cache_size=6)
    caches = [cache.ids.numpy().tolist()]
    for step in range(8):
      pool = [step, step + 1, *caches[-1][:2]]
      _update(cache, pool, [1.0, 1.0, 2.0, 2.0])
      caches.append(cache.ids.numpy().tolist())
      self.assertAllEqual(cache.entered, reference.entry_steps(caches))

  def test_readout_by_hand(self):
    cache = _cache(num_candidates=10, cache_size=4)
    cache.ids.assign([7, 2, 2, 5])
    cache.entered.assign([9, 6, 6, 1])
    cache.step.assign(9)
    self.assertAllClose(
      cache.readout(),
      {
        "distinct": 3 / 4,
        "coverage": 3 / 10,
        "turnover": 1 / 4,
        "age": (0 + 3 + 3 + 8) / 4,
      },
    )

  def test_readout_of_a_cache_that_is_always_the_same(self):
    cache = _cache(num_candidates=3, cache_size=5)
    for _ in range(4):
      _update(cache, [1], [1.0])
    readout = {k: float(v) for k, v in cache.readout().items()}
    self.assertEqual(readout["turnover"], 0.0)
    # It holds candidate 1 from the first update on, or earlier by chance.
    self.assertIn(readout["age"], (3.0, 4.0))
    self.assertAllClose(readout["distinct"], 1 / 5)

  @parameterized.parameters(
    ("num_candidates", 0),
    ("cache_size", 0),
    ("cache_size", -5),
    ("cache_scope", "epoch"),
    ("occurrence_decay", 0.0),
    ("occurrence_decay", 1.5),
    ("cache_policy", "age"),
  )
  def test_bad_arguments(self, name, value):
    with self.assertRaisesRegex(ValueError, f"{name}.*{value}"):
      _cache(**{name: value})


if __name__ == "__main__":
  tf.test.main()
