"""Tests of xir_tfrs.ops.proposals."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import proposals


class LogPopularityTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # Counts 6, 3, 1 of 10 in all.
    log_q = proposals.log_popularity([6, 3, 1])
    self.assertEqual(log_q.dtype, tf.float32)
    self.assertAllClose(log_q, np.log([0.6, 0.3, 0.1]), rtol=1e-6)

  def test_an_unseen_candidate_counts_as_seen_once(self):
    log_q = self.evaluate(proposals.log_popularity([0, 1, 8, 0]))
    self.assertAllEqual(np.isfinite(log_q), [True] * 4)
    # Up to a constant, which a softmax over the pool ignores.
    self.assertAllClose(
      log_q - log_q[1], np.log([1.0, 1.0, 8.0, 1.0]), rtol=1e-6
    )

  @parameterized.product(
    dtype=(np.int32, np.int64, np.float32, np.float64), size=(1, 2, 50)
  )
  def test_reference(self, dtype, size):
    counts = np.random.default_rng(3).integers(0, 9, size).astype(dtype)
    log_q = self.evaluate(proposals.log_popularity(counts))
    self.assertEqual(log_q.shape, (size,))
    expected = np.log(reference.popularity(counts))
    self.assertAllClose(
      log_q - log_q[0], expected - expected[0], rtol=1e-5, atol=1e-6
    )

  def test_no_count_at_all_is_uniform(self):
    log_q = self.evaluate(proposals.log_popularity([0, 0, 0]))
    self.assertAllEqual(log_q, np.full(3, log_q[0]))
    self.assertAllEqual(np.isfinite(log_q), [True] * 3)

  def test_rare_candidates_of_a_large_catalogue_are_not_clamped(self):
    # TFRS clips probabilities at 1e-6, so 1e-9 and 1e-7 are the same.
    log_q = self.evaluate(
      proposals.log_popularity(np.array([1, 100, 10**9], np.int64))
    )
    self.assertAllClose(log_q[1] - log_q[0], np.log(100.0), rtol=1e-5)

  def test_counts_above_what_float32_holds(self):
    counts = np.array([2**31 + 7, 2**33, 2**40], np.int64)
    log_q = self.evaluate(proposals.log_popularity(counts))
    self.assertAllClose(log_q, np.log(counts / counts.sum()), rtol=1e-5)

  def test_under_tf_function(self):
    counts = tf.constant([4, 0, 4], tf.int64)
    self.assertAllClose(
      tf.function(proposals.log_popularity)(counts),
      proposals.log_popularity(counts),
    )


class LogMixtureTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # 3 rows and 1 uniform candidate of 5: 3/4 q + 1/4 * 1/5.
    self.assertAllClose(
      proposals.log_mixture(tf.math.log([0.6, 0.2]), 3, -np.log(5), 1),
      np.log([0.75 * 0.6 + 0.05, 0.75 * 0.2 + 0.05]),
    )

  def test_candidates_that_only_the_batch_brings(self):
    self.assertAllClose(
      proposals.log_mixture(
        tf.math.log([0.6, 0.4]), 3, tf.math.log([0.0, 1.0]), 1
      ),
      np.log([0.75 * 0.6, 0.75 * 0.4 + 0.25]),
    )

  @parameterized.product(sizes=((8, 3), (8, 0), (1, 8192)), graph=(True, False))
  def test_reference(self, sizes, graph):
    pop = reference.popularity([5, 1, 0, 40, 7])
    function = tf.function(proposals.log_mixture, autograph=False)
    others = np.log([0.1, 0.2, 0.3, 0.15, 0.25])
    num_rows, num_others = sizes
    log_q = (function if graph else proposals.log_mixture)(
      tf.constant(np.log(pop)),
      tf.constant(num_rows),
      tf.constant(others),
      tf.constant(num_others),
    )
    self.assertAllClose(
      log_q,
      reference.log_mixture(np.log(pop), num_rows, others, num_others),
      rtol=1e-12,
    )
    self.assertAllClose(tf.reduce_sum(tf.exp(log_q)), 1.0)

  def test_without_rows_it_is_that_of_the_others(self):
    self.assertAllClose(
      proposals.log_mixture(tf.math.log([0.9, 0.1]), 0, -np.log(10), 4),
      np.log([0.1, 0.1]),
    )

  def test_rare_candidates_keep_their_odds(self):
    # q of e^-100 would be 0 in float32.
    log_q = tf.constant([-100.0, -90.0])
    self.assertAllClose(proposals.log_mixture(log_q, 4, -np.log(10), 0), log_q)


class LogComplementTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(tf.float32, tf.float64)
  def test_is_the_log_of_the_rest(self, dtype):
    q = np.array([1e-12, 1e-3, 0.5, 0.999])
    self.assertAllClose(
      proposals.log_complement(tf.constant(np.log(q), dtype)),
      np.log1p(-q),
      rtol=1e-4 if dtype == tf.float32 else 1e-12,
      atol=1e-7 if dtype == tf.float32 else 1e-15,
    )

  @parameterized.parameters(0.0, 1e-3)
  def test_is_finite_where_there_is_no_rest(self, log_q):
    self.assertAllInRange(
      proposals.log_complement(tf.constant([log_q])), -16.0, -15.0
    )


if __name__ == "__main__":
  tf.test.main()
