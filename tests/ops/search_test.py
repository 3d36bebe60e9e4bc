"""Looks up values, plain and compiled."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs.ops import search, xla


class SearchTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(size=(1, 2, 7, 8, 9, 33), jit=(False, True))
  def test_bounds_are_numpys(self, size, jit):
    rng = np.random.default_rng(size)
    ordered = np.sort(rng.integers(0, 2 * size, size))
    values = rng.integers(-1, 2 * size + 2, (4, 9))
    for bound, side in (
      (search.lower_bound, "left"),
      (search.upper_bound, "right"),
    ):
      found = tf.function(bound, jit_compile=jit)(
        tf.constant(ordered), tf.constant(values)
      )
      self.assertEqual(found.dtype, tf.int32)
      self.assertAllEqual(found, np.searchsorted(ordered, values, side))

  @parameterized.product(
    ids=([], [7], [3, 3], [5, -1, 5, 2**40, 5, 2**40 + 1]), jit=(False, True)
  )
  def test_numbers_and_multiplicities(self, ids, jit):
    @tf.function(jit_compile=jit)
    def both(x):
      self.assertEqual(xla.compiling(), jit)
      return search.numbers(x), search.multiplicities(x)

    numbers, sizes = both(tf.constant(ids, tf.int64))
    self.assertAllInSet(numbers, range(len(ids)))
    self.assertAllEqual(
      np.equal.outer(numbers, numbers), np.equal.outer(ids, ids)
    )
    self.assertAllEqual(sizes, [ids.count(i) for i in ids])


if __name__ == "__main__":
  tf.test.main()
