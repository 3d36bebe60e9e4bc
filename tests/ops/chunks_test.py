"""Loops over chunks."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs.ops import chunks


class FoldTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(
    total=(0, 1, 4, 5, 8, 9, 11), chunk=(1, 4, 20), static=(False, True)
  )
  def test_every_row_once_and_in_order(self, total, chunk, static):
    values = np.arange(2.0 * total).reshape(total, 2)
    lengths = []

    def step(carry, start, length):
      lengths.append(length)
      rows = chunks.part(x, start, length)
      return carry + tf.reduce_sum(rows), (rows * 10.0, rows[:, 0])

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64)])
    def unknown_size(x):
      self.assertIsNone(x.shape[0])
      return fold(x)

    def fold(given):
      nonlocal x
      x = given
      zero = tf.zeros([], tf.float64)
      like = x, x[:, 0]
      return chunks.fold(step, chunks.size(x), chunk, zero, like)

    x = None
    total_, (tens, first) = (fold if static else unknown_size)(
      tf.constant(values)
    )
    self.assertAllClose(total_, values.sum())
    self.assertAllEqual(tens, values * 10)
    self.assertAllEqual(first, values[:, 0])
    if static:
      # Chunks of equal size, of which a loop handles the first separately, and
      # the rest.
      self.assertContainsSubset(lengths, {chunk, total % chunk})

  def test_without_rows_of_its_own(self):
    last, rows = chunks.fold(
      lambda carry, start, length: (carry * 3 + start + length, ()),
      5,
      2,
      tf.constant(1),
    )
    # Chunks [0, 2), [2, 4), [4, 5): ((1 * 3 + 2) * 3 + 4) * 3 + 5.
    self.assertEqual(int(last), 62)
    self.assertEqual(rows, ())


if __name__ == "__main__":
  tf.test.main()
