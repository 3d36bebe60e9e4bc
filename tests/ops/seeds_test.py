"""Tests of xir_tfrs.ops.seeds."""

import itertools

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from xir_tfrs.ops import seeds


class StepSeedTest(tf.test.TestCase, parameterized.TestCase):
  def test_is_a_stateless_seed(self):
    seed = seeds.step_seed(7, 3, 1)
    self.assertEqual(seed.shape, [2])
    self.assertIn(seed.dtype, (tf.int32, tf.int64))
    draw = tf.random.stateless_uniform([4], seed)
    self.assertAllEqual(
      draw, tf.random.stateless_uniform([4], seeds.step_seed(7, 3, 1))
    )

  def test_no_two_places_share_a_seed(self):
    places = list(itertools.product((0, 1, 17), range(6), range(4), range(3)))
    found = {
      tuple(self.evaluate(seeds.step_seed(s, step, stream, replica=replica)))
      for s, step, stream, replica in places
    }
    self.assertLen(found, len(places))

  def test_streams_of_neighbouring_steps_are_unrelated(self):
    # seed + step + stream would make (step 0, stream 1) equal (step 1, 0).
    draws = [
      tf.random.stateless_uniform([2000], seeds.step_seed(0, step, stream))
      for step, stream in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    for first, second in itertools.combinations(draws, 2):
      correlation = tf.reduce_mean((first - 0.5) * (second - 0.5)) * 12
      # Standard deviation 1/sqrt(2000) = 0.022; five of them.
      self.assertLess(abs(float(correlation)), 0.112)

  def test_replica_zero_is_the_default(self):
    self.assertAllEqual(
      seeds.step_seed(1, 2, 3), seeds.step_seed(1, 2, 3, replica=0)
    )

  def test_traced_steps_give_the_seeds_of_eager_ones(self):
    @tf.function
    def traced(step):
      return seeds.step_seed(5, step, 2)

    for step in (0, 1, 2**31 + 5, 2**40):
      step = tf.constant(step, tf.int64)
      self.assertAllEqual(traced(step), seeds.step_seed(5, step, 2))

  def test_steps_beyond_32_bits_stay_different(self):
    # The step counter is int64: folding it to 32 bits would repeat draws.
    low = seeds.step_seed(5, tf.constant(3, tf.int64), 0)
    high = seeds.step_seed(5, tf.constant(3 + 2**32, tf.int64), 0)
    self.assertNotAllEqual(low, high)


class BitsTest(tf.test.TestCase, parameterized.TestCase):
  """The numbers are those of TensorFlow, also in a compiled step."""

  @parameterized.parameters(False, True)
  def test_are_those_of_tensorflow(self, jit):
    @tf.function(jit_compile=jit)
    def ours(seed, number):
      return (
        seeds.fold_in(seed, number),
        seeds.uniform(seed, 7),
        seeds.uniform_ids(seed, 9, 12_345),
        seeds.uniform_rows(seed, 3, 8),
      )

    rng = np.random.default_rng(0)
    for _ in range(5):
      # Beyond 32 bits, of which TensorFlow's compiled functions only use the
      # last 32.
      seed = tf.constant(rng.integers(-(2**62), 2**62, 2))
      number = tf.constant(rng.integers(2**40))
      draw = tf.random.stateless_uniform
      expected = (
        tf.random.experimental.stateless_fold_in(seed, number),
        draw([7], seed, dtype=tf.float64),
        draw([9], seed, maxval=12_345, dtype=tf.int64),
        draw([3, 8], seed),
      )
      for e, g in zip(expected, ours(seed, number), strict=True):
        self.assertEqual(e.dtype, g.dtype)
        self.assertAllEqual(e, g)


class UniformRowsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(width=(1, 3, 4, 5, 1025), in_graph=(False, True))
  def test_any_part_of_the_rows_is_that_part(self, width, in_graph):
    draw = tf.function(seeds.uniform_rows) if in_graph else seeds.uniform_rows
    seed = tf.constant([7, -3], tf.int64)
    whole = seeds.uniform_rows(seed, 40, width)
    self.assertEqual(whole.shape, [40, width])
    for first, rows in ((0, 1), (1, 7), (33, 7), (40, 0)):
      part = draw(
        seed, tf.constant(rows), tf.constant(width), tf.constant(first)
      )
      self.assertAllEqual(part, whole[first : first + rows])

  def test_rows_far_out_can_be_reached(self):
    seed = tf.constant([7, 8])
    far = 2**40
    self.assertAllEqual(
      seeds.uniform_rows(seed, 3, 5, far)[1:],
      seeds.uniform_rows(seed, 2, 5, far + 1),
    )

  def test_numbers_are_uniform_and_rows_independent(self):
    u = seeds.uniform_rows(tf.constant([1, 2]), 4000, 6).numpy()
    self.assertAllInRange(u, 0.0, 1.0 - 2.0**-24)
    # 24,000 numbers in 20 bins: chi-square of 19 degrees, 43.8 at p = 0.001.
    observed = np.histogram(u, bins=20, range=(0, 1))[0]
    self.assertLess(((observed - 1200) ** 2 / 1200).sum(), 43.8)
    neighbours = np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]
    self.assertLess(abs(neighbours), 4 / np.sqrt(u.size))

  def test_a_scalar_is_a_seed_of_its_own(self):
    a, b, c = (seeds.uniform_rows(s, 5, 5) for s in (3, 4, tf.constant([3, 0])))
    self.assertNotAllClose(a, b)
    self.assertAllEqual(a, c)


class BernoulliRowsTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(1, 2, 9, 16)
  def test_any_part_of_the_rows_is_that_part(self, width):
    whole = seeds.bernoulli_rows(5, 9, width, 0.5)
    self.assertEqual(whole.shape, (9, width))
    part = seeds.bernoulli_rows(5, 4, width, 0.5, first_row=3)
    self.assertAllEqual(part, whole[3:7])

  @parameterized.parameters(0.0, 0.2, 0.5, 1.0)
  def test_the_share_is_the_probability(self, probability):
    rows = seeds.bernoulli_rows(5, 400, 250, probability).numpy()
    # 100,000 bools: 5 standard deviations are at most .0079.
    self.assertAllClose(rows.mean(), probability, atol=0.0079)
    self.assertAllClose(rows.mean(axis=0), [probability] * 250, atol=0.125)
    self.assertAllClose(rows.mean(axis=1), [probability] * 400, atol=0.159)

  def test_bools_are_independent(self):
    rows = seeds.bernoulli_rows(5, 200, 100, 0.5).numpy() - 0.5
    for first, second in (
      (rows[:, 1:], rows[:, :-1]),
      (rows[:, 2:], rows[:, :-2]),
      (rows[1:], rows[:-1]),
    ):
      # Means of 19,600 or more products of +-.25: 5 standard deviations.
      self.assertLess(abs((first * second).mean()), 0.009)

  def test_compiled_bools_are_those_of_a_plain_step(self):
    def rows():
      return seeds.bernoulli_rows(5, 6, 11, 0.3, first_row=tf.constant(2))

    self.assertAllEqual(rows(), tf.function(rows, jit_compile=True)())


if __name__ == "__main__":
  tf.test.main()
