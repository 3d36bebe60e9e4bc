"""Tests of xir_tfrs.ops.frequency."""

import math

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import frequency

_EXTREME = (0, 1, -1, 2**21, 2**42, 2**62, 2**63 - 1, -(2**63), 41, 12345678901)


def _cells(keys, num_buckets=1000, num_hashes=3, seed=5):
  coefficients = frequency.hash_coefficients(num_hashes, seed=seed)
  return frequency.cells(tf.constant(keys, tf.int64), coefficients, num_buckets)


def _float(*values):
  return tf.constant(values, tf.float32)


class KeysTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(
    ([2**62, -5],),
    (np.array([2**62, -5]),),
    (tf.constant([2**62, -5], tf.int64),),
  )
  def test_integers_are_their_own_keys(self, ids):
    keys = frequency.as_keys(ids)
    self.assertEqual(keys.dtype, tf.int64)
    self.assertAllEqual(keys, [2**62, -5])

  def test_int32(self):
    keys = frequency.as_keys(tf.constant([7, -7], tf.int32))
    self.assertEqual(keys.dtype, tf.int64)
    self.assertAllEqual(keys, [7, -7])

  def test_strings_have_keys_of_their_own(self):
    ids = ["", "a", "b", "A", "ä", "日本", "a" * 1000, "1", "01"]
    keys = frequency.as_keys(ids)
    self.assertEqual(keys.dtype, tf.int64)
    self.assertLen(set(keys.numpy()), len(ids))
    self.assertAllEqual(keys, frequency.as_keys(np.array(ids, object)))
    self.assertAllEqual(keys, frequency.as_keys(tf.constant(ids)))

  def test_keys_of_strings_stay_as_they_are(self):
    # Checkpoints depend on these values.
    self.assertAllEqual(
      frequency.as_keys(["a", "é", "日本"]),
      [3694432073954588132, 693143013273849025, 5676833963740711883],
    )

  def test_no_ids(self):
    for ids in ([], tf.zeros([0], tf.int64), tf.constant([], tf.string)):
      self.assertAllEqual(frequency.as_keys(ids), np.zeros([0], np.int64))


class CellsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(1, 2, 1000, 2**31 - 2)
  def test_reference(self, num_buckets):
    rng = np.random.default_rng(0)
    keys = [
      *_EXTREME,
      *rng.integers(-(2**63), 2**63 - 1, 50, dtype=np.int64).tolist(),
      *range(30),
    ]
    coefficients = frequency.hash_coefficients(3, seed=9)
    self.assertAllEqual(
      frequency.cells(tf.constant(keys, tf.int64), coefficients, num_buckets),
      [
        [reference.hash_cell(key, row, num_buckets) for key in keys]
        for row in coefficients.numpy()
      ],
    )

  def test_largest_coefficients_do_not_overflow(self):
    coefficients = np.full([1, 7], 2**31 - 2)
    self.assertAllEqual(
      frequency.cells(
        tf.constant(_EXTREME, tf.int64), tf.constant(coefficients), 10**6
      ),
      [[reference.hash_cell(key, coefficients[0], 10**6) for key in _EXTREME]],
    )

  def test_extreme_ids_are_told_apart(self):
    for row in _cells(_EXTREME, num_buckets=2**31 - 2).numpy():
      self.assertLen(set(row), len(_EXTREME))

  def test_seeds_and_tables_differ(self):
    first, again, other = (_cells(range(50), seed=seed) for seed in (1, 1, 2))
    self.assertAllEqual(first, again)
    self.assertNotAllEqual(first, other)
    self.assertNotAllEqual(first[0], first[1])
    self.assertNotAllEqual(first[1], first[2])

  def test_a_table_does_not_depend_on_the_number_of_keys(self):
    self.assertAllEqual(_cells(range(20))[:, 7:9], _cells([7, 8]))
    self.assertEqual(_cells([]).shape, [3, 0])


class UpdateTest(tf.test.TestCase, parameterized.TestCase):
  def test_rate_of_one_appearance_is_the_learning_rate(self):
    for rate in (1e-4, 0.01, 0.5, 1.0):
      self.assertAllClose(
        frequency.update_rate(rate, _float(1.0)), [rate], rtol=1e-6
      )

  def test_rate_of_several_is_that_of_as_many_updates(self):
    rates = frequency.update_rate(0.1, _float(2.0, 3.0, 1000.0))
    self.assertAllClose(rates, [0.19, 0.271, 1.0], rtol=1e-6)
    self.assertAllEqual(frequency.update_rate(1.0, _float(5.0)), [1.0])

  def test_rate_of_a_running_mean(self):
    self.assertAllClose(
      frequency.update_rate(
        0.1, _float(1.0, 1.0, 1.0, 2.0), _float(1.0, 4.0, 400.0, 5.0)
      ),
      [1.0, 0.25, 0.1, 0.4],
      rtol=1e-6,
    )

  def test_next_gap_hand_values(self):
    # 3/4 * 8 + 1/4 * (10 - 6) = 7; and half that gap for two appearances.
    gaps = frequency.next_gap(
      _float(8.0, 8.0),
      tf.constant([6, 6], tf.int64),
      _float(1.0, 2.0),
      tf.constant([0.25, 0.25], tf.float64),
      step=tf.constant(10, tf.int64),
    )
    self.assertEqual(gaps.dtype, tf.float32)
    self.assertAllClose(gaps, [7.0, 6.5])

  def test_gaps_of_a_very_long_stream(self):
    # float32 cannot distinguish these steps.
    gap = frequency.next_gap(
      _float(0.0),
      tf.constant([2**60], tf.int64),
      _float(1.0),
      tf.constant([1.0], tf.float64),
      step=tf.constant(2**60 + 3, tf.int64),
    )
    self.assertAllEqual(gap, [3.0])

  def test_longest_gap(self):
    gaps = tf.constant([[3.0, 0.0, 0.0], [5.0, 2.0, 0.0]])
    step = tf.constant(40, tf.int64)
    self.assertAllEqual(
      frequency.longest_gap(gaps, step=step), [5.0, 40.0, 40.0]
    )
    step = tf.constant(0, tf.int64)
    self.assertAllEqual(frequency.longest_gap(gaps, step=step), [5.0, 2.0, 1.0])

  def test_gap_of_share_hand_values(self):
    shares = tf.constant([0.5, 1.0, 0.1], tf.float64)
    self.assertAllClose(
      frequency.gap_of_share(shares, 2, count_appearances=False),
      [1 / 0.75, 1.0, 1 / 0.19],
    )
    self.assertAllClose(
      frequency.gap_of_share(shares, 2, count_appearances=True),
      [1.0, 0.5, 5.0],
    )

  def test_gap_of_a_tiny_share(self):
    shares = tf.constant([1e-15], tf.float64)
    self.assertAllClose(
      frequency.gap_of_share(shares, 100, count_appearances=False),
      [1e13],
      rtol=1e-9,
    )


class LogErrorTest(tf.test.TestCase):
  def error(self, estimate, counts):
    error = frequency.log_error(
      tf.math.log(tf.constant(estimate, tf.float32)), tf.constant(counts)
    )
    return {name: float(value) for name, value in error.items()}

  def test_a_constant_factor_is_no_error(self):
    error = self.error([0.1, 0.3, 0.9], [10, 30, 90])
    self.assertAllClose(error["log_correlation"], 1.0)
    self.assertAllClose(error["candidate_log_error"], 0.0, atol=1e-6)
    self.assertAllClose(error["row_log_error"], 0.0, atol=1e-6)

  def test_hand_value(self):
    # log estimate - log count: 0, 0, log 8. With equal weights: mean log 2,
    # distances log 2, log 2, log 4. Weighted by rows (6, 1, 1): mean log 8 / 8.
    error = self.error([6.0, 1.0, 8.0], [6, 1, 1])
    self.assertAllClose(error["candidate_log_error"], 4 * math.log(2) / 3)
    unit = math.log(8) / 8
    self.assertAllClose(error["row_log_error"], (7 * unit + 7 * unit) / 8)
    expected = np.corrcoef(np.log([6, 1, 8]), np.log([6, 1, 1]))[0, 1]
    self.assertAllClose(error["log_correlation"], expected, rtol=1e-5)

  def test_candidates_that_never_came_are_left_out(self):
    self.assertEqual(
      self.error([6.0, 0.7, 1.0, 8.0], [6, 0, 1, 1]),
      self.error([6.0, 1.0, 8.0], [6, 1, 1]),
    )

  def test_nothing_to_compare(self):
    for counts in ([], [0, 0], [3, 0], [2, 2]):
      for value in self.error([1.0] * len(counts), counts).values():
        self.assertAllClose(value, 0.0)


if __name__ == "__main__":
  tf.test.main()
