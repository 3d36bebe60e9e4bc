"""Tests of xir_tfrs.ops.kmeans."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import kmeans


def _points(seed=0, n=60, dim=3):
  return np.random.default_rng(seed).normal(size=[n, dim]).astype(np.float32)


class KMeansTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(iterations=(0, 1, 3, 30), num_codewords=(1, 4, 7))
  def test_reference(self, iterations, num_codewords):
    points = _points()
    start = points[:num_codewords]
    codewords, codes = kmeans.lloyd(
      tf.constant(points), tf.constant(start), iterations
    )
    expected, expected_codes = reference.lloyd(points, start, iterations)
    self.assertAllClose(codewords, expected, rtol=1e-4, atol=1e-5)
    self.assertAllEqual(codes, expected_codes)

  def test_going_on_from_the_end_changes_nothing(self):
    points = tf.constant(_points())
    codewords, codes = kmeans.lloyd(points, points[:5], 100)
    again, codes_again = kmeans.lloyd(points, codewords, 100)
    self.assertAllEqual(codewords, again)
    self.assertAllEqual(codes, codes_again)

  def test_codewords_without_points_stay(self):
    points = tf.constant([[0.0, 0.0], [1.0, 0.0]])
    far = tf.constant([[0.0, 0.0], [100.0, 100.0]])
    codewords, codes = kmeans.lloyd(points, far, 10)
    self.assertAllClose(codewords, [[0.5, 0.0], [100.0, 100.0]])
    self.assertAllEqual(codes, [0, 0])

  @parameterized.parameters(1, 2, 9)
  def test_equal_points(self, num_codewords):
    points = tf.ones([6, 2])
    start = kmeans.initial_codewords(points, num_codewords, seed=1)
    self.assertAllEqual(start, np.ones([num_codewords, 2]))
    codewords, codes = kmeans.lloyd(points, start, 10)
    self.assertAllEqual(codewords, np.ones([num_codewords, 2]))
    self.assertAllEqual(codes, np.zeros(6))

  def test_first_codewords_are_distinct_points_far_apart(self):
    # Three tight groups: one codeword each, for any seed.
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    points = centres[np.arange(30) % 3] + 1e-3 * rng.normal(size=[30, 2])
    points = points.astype(np.float32)
    starts = []
    for seed in range(10):
      start = kmeans.initial_codewords(tf.constant(points), 3, seed=seed)
      starts.append(start.numpy())
      for row in start.numpy():
        self.assertIn(row.tolist(), points.tolist())
      _, codes = kmeans.lloyd(tf.constant(points), start, 30)
      self.assertLen(np.unique(codes[:3]), 3)
      self.assertAllEqual(codes, np.tile(codes[:3], 10))
    self.assertAllEqual(
      starts[3], kmeans.initial_codewords(tf.constant(points), 3, seed=3)
    )
    self.assertGreater(len({s.tobytes() for s in starts}), 1)


if __name__ == "__main__":
  tf.test.main()
