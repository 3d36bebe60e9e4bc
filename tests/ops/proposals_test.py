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
    # Up to the constant that a softmax over the pool does not see.
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
    # TFRS clamps probabilities at 1e-6, which makes 1e-9 and 1e-7 the same.
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


if __name__ == "__main__":
  tf.test.main()
