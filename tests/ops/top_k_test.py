"""Top-k by blocks, compared with TensorFlow's."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs.ops import top_k


class TopKTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters((1, 1), (5, 3), (997, 1), (997, 7), (5000, 40))
  def test_is_that_of_tensorflow(self, n, k):
    """Also for equal scores, and if fewer than k are left."""
    rng = np.random.default_rng(n)
    scores = rng.integers(0, 50, [6, n]).astype(np.float32)
    scores[1] = 7.0
    scores[2, k // 2 :] = -np.inf
    scores[3, : n - k // 2] = -np.inf
    values, columns = top_k.top_k(tf.constant(scores), tf.constant(min(k, n)))
    expected = tf.math.top_k(scores, min(k, n))
    self.assertAllEqual(values, expected.values)
    real = np.isfinite(values)
    self.assertAllEqual(columns[real], expected.indices[real])

  @parameterized.product(
    k=(1, 2, 5, 20), n=(80, 280, 1600), values=(2, 50, 10**6)
  )
  def test_ties_of_whole_and_partial_blocks(self, k, n, values):
    rng = np.random.default_rng(k)
    for width in (n, top_k.whole_blocks(n, k)):
      scores = rng.integers(0, values, [30, width]).astype(np.float64)
      best, columns = top_k.top_k(tf.constant(scores), k)
      expected = tf.math.top_k(scores, k)
      self.assertAllEqual(best, expected.values)
      self.assertAllEqual(columns, expected.indices)

  def test_whole_blocks(self):
    # sqrt(2000 / 10) = 14.1, and 143 blocks of 14 are 2002.
    self.assertEqual(top_k.whole_blocks(2000, 10), 2002)
    # Blocks of 2 columns are not worth it.
    self.assertEqual(top_k.whole_blocks(41, 10), 41)
    for n in range(1, 500, 7):
      whole = top_k.whole_blocks(n, 3)
      block = max(1, int((whole / 3) ** 0.5))
      self.assertTrue(n <= whole < n + 2 * block)
      self.assertTrue(block < 4 or whole % block == 0)

  def test_chunks_bound_memory(self):
    # 10,000 candidates in float32: 40 kB of scores per query.
    self.assertBetween(top_k.queries_per_chunk(10_000), 100, 1000)
    self.assertGreaterEqual(top_k.queries_per_chunk(10**9, 8), 1)
