"""Query vectors fitted to histories."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import fold_in


def items(num_items=30, dim=4, scale=1.0):
  rng = np.random.default_rng(0)
  return (scale * rng.normal(0.3, 1.0, [num_items, dim])).astype(np.float32)


def fold(vectors, histories, ridge=2.0, power=0.5, length=5):
  """Of lists of rows, the newest last."""
  window = np.zeros([len(histories), length], int)
  for row, history in zip(window, histories, strict=True):
    row[: len(history)] = history
  return fold_in.fold_in(
    tf.gather(vectors, window),
    tf.constant(list(map(len, histories)), tf.int32),
    *fold_in.catalogue(tf.constant(vectors), ridge),
    power=power,
  ).numpy()


class FoldInTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(ridge=[0.01, 3.0], power=[0.0, 0.5, 1.0])
  def test_is_the_least_squares_fit(self, ridge, power):
    vectors = items()
    histories = [[3, 7, 12, 3], [9]]
    found = fold(vectors, histories, ridge, power)
    for vector, history in zip(found, histories, strict=True):
      expected = reference.fold_in(history, vectors, ridge, power)
      self.assertAllClose(vector, expected, atol=1e-4)

  @parameterized.parameters(1e-7, 1e-3, 1e3, 1e7)
  def test_does_not_depend_on_the_scale(self, scale):
    expected = fold(items(), [[3, 7]])
    self.assertAllClose(fold(items(scale=scale), [[3, 7]]), expected, atol=1e-4)

  def test_a_large_ridge_gives_the_mean_above_that_of_all(self):
    vectors = items()
    expected = vectors[[3, 7]].mean(axis=0) - vectors.mean(axis=0)
    found = fold(vectors, [[3, 7]], ridge=1e5, power=0.0)
    self.assertAllClose(
      found[0], expected / np.linalg.norm(expected), atol=1e-4
    )

  def test_nothing_to_fit(self):
    self.assertAllEqual(fold(items(), [[], []]), np.zeros([2, 4]))
    equal = np.ones([5, 4], np.float32)
    self.assertAllEqual(fold(equal, [[2]]), np.zeros([1, 4]))
    self.assertEqual(fold(items(), []).shape, (0, 4))


if __name__ == "__main__":
  tf.test.main()
