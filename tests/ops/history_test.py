"""Tests of xir_tfrs.ops.history."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import history


class NewestTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    length=(1, 3, 8), width=(0, 1, 5), ragged=(False, True), jit=(False, True)
  )
  def test_reference(self, length, width, ragged, jit):
    rng = np.random.default_rng(length + 10 * width)
    # Padding is anywhere, and some ids are unknown.
    ids = rng.integers(-1, 12, [7, width])
    given = tf.constant(ids, tf.int64)
    if ragged:
      given = tf.RaggedTensor.from_tensor(given)
    function = history.newest
    if jit and not ragged:
      function = tf.function(function, jit_compile=True)
    window, lengths = function(given, length, 10)
    expected = [reference.newest(row, length, 10) for row in ids.tolist()]
    self.assertAllEqual(window, [row for row, _ in expected])
    self.assertAllEqual(lengths, [n for _, n in expected])
    self.assertEqual(window.dtype, tf.int64)
    self.assertEqual(lengths.dtype, tf.int32)

  def test_rows_of_different_lengths(self):
    window, lengths = history.newest(
      tf.ragged.constant([[4, 5, 6], [], [7]], dtype=tf.int32), 2, 10
    )
    self.assertAllEqual(window, [[5, 6], [-1, -1], [7, -1]])
    self.assertAllEqual(lengths, [2, 0, 1])

  def test_large_ids_are_exact(self):
    big = 2**40
    window, _ = history.newest(tf.constant([[big, big + 1]]), 2, big + 1)
    self.assertAllEqual(window, [[big, -1]])


class AgesTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_reference(self, jit):
    rng = np.random.default_rng(0)
    # Times up to milliseconds since 1970, ties, and an unknown one.
    steps = np.exp(rng.uniform(0, 28, [5, 7])).astype(np.int64)
    times = np.cumsum(steps * rng.integers(0, 2, [5, 7]), axis=1)
    times[2, 3] = -1

    def buckets(times):
      return history.age_buckets(times, 60)

    function = tf.function(buckets, jit_compile=True) if jit else buckets
    found = function(tf.constant(times)).numpy()
    self.assertAllEqual(found[2], tf.zeros([6, 6]))
    for row, own in enumerate(times.tolist()):
      for t in range(6) if row != 2 else ():
        self.assertEqual(
          found[row, t, : t + 1].tolist(),
          [reference.age_bucket(e, own[t + 1], 60) for e in own[: t + 1]],
        )

  def test_times_of_a_window(self):
    # Of events 7, unknown, 8, 9 and a request at 50: the newest two.
    columns, lengths = history.newest_columns(
      tf.constant([[7, -1, 8, 9], [-1, 7, -1, -1], [-1, -1, -1, -1]]), 2, 10
    )
    times = tf.constant([[10, 20, 30, 40, 50]] * 3)
    found = history.window_times(times, columns, lengths)
    self.assertAllEqual(found, [[30, 40, 50], [20, 50, 50], [50, 50, 50]])
    nothing = tf.fill([3, 2], -1), tf.zeros([3], tf.int32)
    found = history.window_times(times[:, 4:], *nothing)
    self.assertAllEqual(found, [[50, 50, 50]] * 3)


class LastTest(tf.test.TestCase):
  def test_is_the_column_of_the_newest_event(self):
    states = tf.reshape(tf.range(12.0), [2, 3, 2])
    self.assertAllEqual(
      history.last(states, tf.constant([3, 1])), [[4, 5], [6, 7]]
    )

  def test_an_empty_history_has_its_first_column(self):
    states = tf.ones([1, 3, 2])
    self.assertAllEqual(history.last(states, tf.constant([0])), [[1, 1]])


class AgedMeansTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(1, 4)
  def test_reference(self, length):
    rng = np.random.default_rng(length)
    vectors = rng.normal(size=[3, length, 2])
    log_weights = rng.normal(size=length)
    expected = [
      [reference.aged_mean(row, log_weights, t) for t in range(length)]
      for row in vectors
    ]
    means = history.aged_means(tf.constant(vectors), tf.constant(log_weights))
    self.assertAllClose(means, expected)

  def test_extreme_weights_are_finite(self):
    with tf.GradientTape() as tape:
      log_weights = tf.constant([-1e4, 1e4, 0.0])
      tape.watch(log_weights)
      means = history.aged_means(tf.ones([1, 3, 2]), log_weights)
    self.assertAllClose(means, tf.ones([1, 3, 2]))
    gradient = tape.gradient(means, log_weights)
    self.assertTrue(np.isfinite(tf.convert_to_tensor(gradient)).all())

  def test_gradient(self):
    rng = np.random.default_rng(0)
    given = [
      tf.constant(rng.normal(size=[2, 3, 2])),
      tf.constant(rng.normal(size=3)),
    ]
    analytic, numeric = tf.test.compute_gradient(history.aged_means, given)
    self.assertAllClose(analytic, numeric, atol=1e-6)


class CausalAttentionTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(heads=(1, 2), jit=(False, True))
  def test_reference(self, heads, jit):
    rng = np.random.default_rng(heads)
    queries, keys, values = rng.normal(size=[3, 2, heads, 4, 3])
    function = history.causal_attention
    if jit:
      function = tf.function(function, jit_compile=True)
    found = function(
      *map(tf.constant, (queries, keys, values)), tf.constant([[0, 1, 2, 3]])
    )
    for row in range(2):
      for head in range(heads):
        for t in range(4):
          own = (row, head)
          self.assertAllClose(
            found[own][t],
            reference.attention(
              queries[own][t], keys[own][: t + 1], values[own][: t + 1]
            ),
          )

  def test_some_columns_alone(self):
    rng = np.random.default_rng(0)
    q, k, v = (tf.constant(x) for x in rng.normal(size=[3, 2, 1, 4, 3]))
    every = history.causal_attention(q, k, v, tf.range(4)[tf.newaxis])
    columns = tf.constant([[2], [0]])
    own = tf.gather(q, columns, axis=2, batch_dims=0)
    own = tf.stack([own[0, :, 0], own[1, :, 1]])
    found = history.causal_attention(own, k, v, columns)
    self.assertAllClose(found[0, 0, 0], every[0, 0, 2])
    self.assertAllClose(found[1, 0, 0], every[1, 0, 0])

  def test_a_bias_is_added_to_the_logits(self):
    rng = np.random.default_rng(1)
    q, k, v = rng.normal(size=[3, 1, 1, 4, 1])
    bias = rng.normal(size=[1, 1, 4, 4])
    columns = tf.range(4)[tf.newaxis]
    found = history.causal_attention(q, k, v, columns, tf.constant(bias))
    for t in range(4):
      logits = [
        q[0, 0, t, 0] * k[0, 0, j, 0] + bias[0, 0, t, j] for j in range(4)
      ]
      weights = np.exp(logits[: t + 1])
      expected = weights @ v[0, 0, : t + 1] / weights.sum()
      self.assertAllClose(found[0, 0, t], expected)
    analytic, numeric = tf.test.compute_gradient(
      lambda bias: history.causal_attention(q, k, v, columns, bias),
      [tf.constant(bias)],
    )
    self.assertAllClose(analytic, numeric, atol=1e-6)

  def test_large_logits_are_finite(self):
    big = tf.fill([1, 1, 2, 2], 1e4)
    found = history.causal_attention(big, big, big, tf.constant([[0, 1]]))
    self.assertAllClose(found, big)


class InterestsTest(tf.test.TestCase, parameterized.TestCase):
  def problem(self):
    rng = np.random.default_rng(0)
    return rng.normal(size=[3, 5, 4]), rng.normal(size=[5, 3])

  @parameterized.product(
    num_rounds=(1, 3), weighted=(False, True), jit=(False, True)
  )
  def test_reference(self, num_rounds, weighted, jit):
    events, logits = self.problem()
    log_weights = np.linspace(0.5, -2.0, 5) if weighted else None
    found = tf.function(history.routed_interests, jit_compile=jit)(
      tf.constant(events),
      tf.constant(logits),
      tf.range(5)[None],
      num_rounds,
      log_weights,
    )
    self.assertEqual(found.shape, (3, 5, 3, 4))
    for row in range(3):
      for t in range(5):
        expected = reference.routed_interests(
          events[row, : t + 1], logits, num_rounds, log_weights
        )
        self.assertAllClose(found[row, t], expected, rtol=1e-6)
    # For one column of each history.
    own = history.routed_interests(
      tf.constant(events),
      tf.constant(logits),
      tf.constant([[2], [4], [0]]),
      num_rounds,
      log_weights,
    )
    for row, t in enumerate((2, 4, 0)):
      self.assertAllClose(own[row, 0], found[row, t], rtol=1e-6)

  def test_no_gradient_through_the_weights(self):
    events, logits = (tf.constant(x) for x in self.problem())
    with tf.GradientTape() as tape:
      tape.watch([events, logits])
      found = history.routed_interests(events, logits, tf.constant([[4]]), 1)
      loss = tf.reduce_sum(tf.sin(found))
    by_events, by_logits = tape.gradient(loss, [events, logits])
    self.assertIsNone(by_logits)

    def of_events(value):
      found = history.routed_interests(
        tf.constant(value), logits, tf.constant([[4]]), 1
      )
      return float(tf.reduce_sum(tf.sin(found)))

    # With one round, weights do not depend on the events.
    numeric = reference.numeric_gradient(of_events, events.numpy())
    self.assertAllClose(by_events, numeric, atol=1e-6)

  def test_gradient_of_the_weights_of_ages(self):
    events, logits = (tf.constant(x) for x in self.problem())
    log_weights = tf.constant(np.linspace(0.5, -2.0, 5))

    def loss(log_weights):
      found = history.routed_interests(
        events, logits, tf.constant([[4]]), 1, log_weights
      )
      return tf.reduce_sum(tf.sin(found))

    with tf.GradientTape() as tape:
      tape.watch(log_weights)
      value = loss(log_weights)
    numeric = reference.numeric_gradient(
      lambda x: float(loss(tf.constant(x))), log_weights.numpy()
    )
    self.assertAllClose(tape.gradient(value, log_weights), numeric, atol=1e-6)

  @parameterized.parameters(0.0, 1e-30, 1e18)
  def test_extreme_events(self, scale):
    events, logits = self.problem()
    events = tf.constant(events * scale, tf.float32)
    with tf.GradientTape() as tape:
      tape.watch(events)
      found = history.routed_interests(
        events, tf.constant(logits, tf.float32), tf.range(5)[None], 3
      )
      loss = tf.reduce_sum(found)
    self.assertTrue(np.isfinite(found).all())
    self.assertTrue(np.isfinite(tape.gradient(loss, events)).all())
    self.assertAllInRange(tf.norm(found, axis=-1), 0.0, 1.0 + 1e-5)

  @parameterized.parameters(1, 2, None)
  def test_label_aware_attention(self, power):
    rng = np.random.default_rng(1)
    interests, labels = rng.normal(size=[4, 3, 5]), rng.normal(size=[4, 5])
    found = history.label_aware_attention(
      tf.constant(interests), tf.constant(labels), power
    )
    for row in range(4):
      expected = reference.label_aware_attention(
        interests[row], labels[row], power
      )
      self.assertAllClose(found[row], expected)


class PrefixesTest(tf.test.TestCase):
  def test_histories_that_windows_begin_with(self):
    window = tf.constant([[4, 5, 6], [7, 8, -1]], tf.int64)
    found = history.prefixes(
      window, tf.constant([1, 0, 0, 1]), tf.constant([1, 3, 0, 2])
    )
    self.assertAllEqual(
      found, [[7, -1, -1], [4, 5, 6], [-1, -1, -1], [7, 8, -1]]
    )


class DropoutTest(tf.test.TestCase):
  def test_share_and_scale(self):
    x = tf.ones([500, 4, 10])
    keep = history.kept(500, [4, 10], 0.25, seed=tf.constant([3, 4]))
    found = history.only_kept(x, keep, 0.25).numpy()
    self.assertAllClose(
      found[found != 0], np.full((found != 0).sum(), 1 / 0.75)
    )
    # 20,000 draws: 5 standard deviations are .0153.
    self.assertAllClose((found == 0).mean(), 0.25, atol=0.0153)

  def test_rows_are_those_of_the_global_batch(self):
    seed = tf.constant([1, 2])
    whole = history.kept(6, [3], 0.5, seed=seed)
    parts = [
      history.kept(high - low, [3], 0.5, seed=seed, first_row=low)
      for low, high in ((0, 2), (2, 6))
    ]
    self.assertAllEqual(whole, tf.concat(parts, 0))
