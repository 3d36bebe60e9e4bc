"""Tests of xir_tfrs.ops.midx; its draws are in tests/statistical."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import midx


def _problem(seed=0, num_candidates=30, dim=4, num_codewords=3, weighted=False):
  """Codebooks, codes and weights, of which some buckets are empty."""
  rng = np.random.default_rng(seed)
  half = (dim + 1) // 2
  codes = rng.integers(0, num_codewords, [num_candidates, 2])
  codes[codes[:, 0] == 1, 1] = 0
  weights = rng.random(num_candidates) + 0.1 if weighted else None
  codebooks = rng.normal(size=[2, num_codewords, half])
  if dim % 2:
    codebooks[1, :, -1] = 0
  return rng.normal(size=[5, dim]), codebooks, codes, weights


def _lists(codes, weights, num_codewords):
  if weights is None:
    weights = np.ones(len(codes))
  return midx.invert(tf.constant(codes), tf.constant(weights), num_codewords)


class MidxTest(tf.test.TestCase, parameterized.TestCase):
  def test_lists_hold_each_candidate_in_its_bucket(self):
    codes = np.array([[1, 0], [0, 1], [1, 0], [2, 2], [0, 0]])
    weights = [1.0, 2.0, 4.0, 8.0, 16.0]
    lists = _lists(codes, weights, 3)
    self.assertAllEqual(lists.order, [4, 1, 0, 2, 3])
    self.assertAllEqual(lists.offsets, [0, 1, 2, 2, 4, 4, 4, 4, 4, 5])
    self.assertAllEqual(lists.cumulative_weights, [0, 16, 18, 19, 23, 31])
    self.assertAllClose(
      np.exp(midx.log_bucket_weights(lists, 3)),
      [[16, 2, 0], [5, 0, 0], [0, 0, 8]],
    )

  def test_halves_of_an_odd_vector(self):
    self.assertAllEqual(
      midx.halves(tf.constant([[1.0, 2.0, 3.0]])), [[[1, 2], [3, 0]]]
    )

  @parameterized.product(
    dim=(1, 4, 5), num_codewords=(1, 3, 8), weighted=(False, True)
  )
  def test_probabilities_are_those_of_brute_force(
    self, dim, num_codewords, weighted
  ):
    queries, codebooks, codes, weights = _problem(
      dim=dim, num_codewords=num_codewords, weighted=weighted
    )
    expected = [
      reference.midx_probabilities(q, codebooks, codes, weights)
      for q in queries
    ]
    lists = _lists(codes, weights, num_codewords)
    log_omega = tf.cast(
      midx.log_bucket_weights(lists, num_codewords), tf.float64
    )
    scores = midx.codeword_scores(tf.constant(queries), tf.constant(codebooks))
    everyone = np.tile(codes, [len(queries), 1, 1])
    log_weights = 0.0 if weights is None else tf.math.log(weights)
    log_q = midx.log_prob(scores, log_omega, everyone, log_weights)
    self.assertAllClose(np.exp(log_q), expected, rtol=1e-5)

    # The same in steps: P(k0 | q) P(k1 | k0, q) P(i | k0, k1).
    first = np.exp(midx.log_first(scores, log_omega))
    second = np.exp(midx.log_second(scores, log_omega))
    omega = np.exp(log_omega)
    weights = np.ones(len(codes)) if weights is None else weights
    for row in range(len(queries)):
      product = [
        first[row, a] * second[row, a, b] * weights[i] / omega[a, b]
        for i, (a, b) in enumerate(codes)
      ]
      self.assertAllClose(product, expected[row], rtol=1e-5)
    self.assertAllClose(np.sum(first, 1), np.ones(len(queries)))

  def test_extreme_scores(self):
    queries, codebooks, codes, _ = _problem()
    lists = _lists(codes, None, 3)
    scores = midx.codeword_scores(
      tf.constant(1e4 * queries, tf.float32), tf.constant(codebooks)
    )
    log_omega = midx.log_bucket_weights(lists, 3)
    everyone = np.tile(codes, [len(queries), 1, 1])
    log_q = midx.log_prob(scores, log_omega, everyone, 0.0)
    self.assertTrue(np.isfinite(log_q).all())
    self.assertAllClose(np.sum(np.exp(log_q), 1), np.ones(5), rtol=1e-2)
    uniform = np.random.default_rng(0).random([5, 40, 4], np.float32)
    drawn = midx.draw(scores, lists, tf.constant(uniform))
    best = np.argmax(log_q, axis=1)
    for row in range(5):
      for i in drawn[row]:
        self.assertAllEqual(codes[i], codes[best[row]])

  @parameterized.parameters(0.0, 1 - 2.0**-23)
  def test_the_ends_of_the_uniform_interval(self, u):
    queries, codebooks, codes, _ = _problem()
    # The first and the last bucket are empty.
    codes = codes[(codes.sum(1) > 0) & (codes.sum(1) < 4)]
    lists = _lists(codes, None, 3)
    scores = midx.codeword_scores(tf.constant(queries), tf.constant(codebooks))
    drawn = midx.draw(scores, lists, tf.fill([5, 2, 4], tf.constant(u)))
    place = 0 if u == 0 else len(codes) - 1
    self.assertAllEqual(drawn, np.full([5, 2], lists.order[place]))

  def test_places_in_buckets_of_many_millions(self):
    # 23 bits would only reach every 16th of 2^27 places.
    place = 2**27 - 7
    target = (place + 0.5) / 2**27
    high = np.floor(target * 2**23) / 2**23
    low = (target - high) * 2**23
    lists = midx.InvertedLists(
      order=tf.range(4, dtype=tf.int64),
      offsets=tf.constant([0, 4], tf.int64),
      cumulative_weights=tf.constant(
        [0.0, 2.0**27 - 8, 2.0**27 - 7, 2.0**27 - 6, 2.0**27], tf.float64
      ),
    )
    drawn = midx.draw(
      tf.zeros([2, 1, 1]), lists, tf.constant([[[0, 0, high, low]]], tf.float32)
    )
    self.assertAllEqual(drawn, [[2]])


class DrawColumnsTest(tf.test.TestCase, parameterized.TestCase):
  def test_thresholds(self):
    log_weights = np.log([[1.0, 1.0, 2.0]]).astype(np.float32)
    uniform = tf.constant([[0.0, 0.24, 0.26, 0.49, 0.51, 0.99]])
    self.assertAllEqual(
      midx.draw_columns(log_weights, uniform), [[0, 0, 1, 1, 2, 2]]
    )

  def test_masked_columns_are_never_drawn(self):
    rng = np.random.default_rng(0)
    log_weights = rng.normal(size=[200, 9]).astype(np.float32)
    log_weights[:, [0, 4, 8]] = -np.inf
    uniform = rng.random([200, 50], np.float32)
    uniform[:, 0], uniform[:, 1] = 0.0, 1 - 2.0**-23
    drawn = midx.draw_columns(tf.constant(log_weights), tf.constant(uniform))
    self.assertEmpty(set(np.unique(drawn)) & {0, 4, 8})

  def test_rows_with_nothing_and_no_rows(self):
    drawn = midx.draw_columns(tf.fill([2, 3], -np.inf), tf.zeros([2, 4]))
    self.assertAllEqual(drawn, np.full([2, 4], 2))
    self.assertEqual(
      midx.draw_columns(tf.zeros([0, 0]), tf.zeros([0, 4])).shape, [0, 4]
    )

  def test_weights_of_any_size(self):
    for shift in (-1e4, 0.0, 1e4):
      drawn = midx.draw_columns(
        tf.constant([[shift, shift + 1.0]]), tf.constant([[0.2, 0.3]])
      )
      self.assertAllEqual(drawn, [[0, 1]])


if __name__ == "__main__":
  tf.test.main()
