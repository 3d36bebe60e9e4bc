"""Tests of xir_tfrs.ops.losses."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import losses

_TOLERANCE = {tf.float32: 1e-5, tf.float64: 1e-12}


def _problem(batch, pool, seed=0):
  """Random logits, positives, counts (a third zero) and a mask."""
  rng = np.random.default_rng(seed)
  counts = rng.integers(0, 3, [batch, pool]).astype(np.float64)
  return (
    rng.normal(scale=3, size=[batch, pool]),
    rng.normal(scale=3, size=[batch]),
    counts,
    rng.random([batch, pool]) < 0.7,
  )


def _value_and_gradients(function, *arguments):
  arguments = [tf.convert_to_tensor(a) for a in arguments]
  with tf.GradientTape() as tape:
    tape.watch(arguments)
    value = function(*arguments)
  return value, tape.gradient(value, arguments)


class ResampledSoftmaxTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # Row 0: e^0 + 2 e^0 + 0 e^5 + 1 e^{log 3} = 1 + 2 + 3 = 6; s_p = 0.
    # Row 1: e^{log 2} + 1 + 1 + 0 = 4; s_p = log 2: log 4 - log 2 = log 2.
    logits = [[0.0, 5.0, np.log(3.0)], [0.0, 0.0, 8.0]]
    counts = [[2.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    self.assertAllClose(
      losses.resampled_softmax(
        tf.constant(logits, tf.float32),
        tf.constant([0.0, np.log(2.0)], tf.float32),
        tf.constant(counts),
      ),
      [np.log(6.0), np.log(2.0)],
    )

  @parameterized.product(
    batch=(1, 5),
    pool=(1, 8, 33),
    dtype=(tf.float32, tf.float64),
    graph=(False, True),
  )
  def test_reference(self, batch, pool, dtype, graph):
    logits, positive_logits, counts, _ = _problem(batch, pool)
    function = losses.resampled_softmax
    loss = (tf.function(function) if graph else function)(
      tf.constant(logits, dtype),
      tf.constant(positive_logits, dtype),
      tf.constant(counts, dtype),
    )
    self.assertEqual(loss.dtype, dtype)
    self.assertAllClose(
      loss,
      reference.resampled_softmax(logits, positive_logits, counts),
      rtol=_TOLERANCE[dtype],
      atol=_TOLERANCE[dtype],
    )

  def test_fractional_counts(self):
    logits, positive_logits, counts, _ = _problem(4, 6)
    counts = counts * 0.37 + 0.01
    self.assertAllClose(
      losses.resampled_softmax(logits, positive_logits, counts),
      reference.resampled_softmax(logits, positive_logits, counts),
      rtol=1e-12,
    )

  def test_gradient_is_the_closed_form(self):
    logits, positive_logits, counts, _ = _problem(5, 8)
    _, (by_logit, by_positive) = _value_and_gradients(
      lambda s, p: losses.resampled_softmax(s, p, tf.constant(counts)),
      logits,
      positive_logits,
    )
    expected = reference.resampled_softmax_gradient(
      logits, positive_logits, counts
    )
    self.assertAllClose(by_logit, expected[0], rtol=1e-10, atol=1e-12)
    self.assertAllClose(by_positive, expected[1], rtol=1e-10, atol=1e-12)

  def test_gradient_is_the_numeric_one(self):
    logits, positive_logits, counts, _ = _problem(3, 4)
    analytic, numeric = tf.test.compute_gradient(
      lambda s, p: losses.resampled_softmax(s, p, tf.constant(counts)),
      [tf.constant(logits), tf.constant(positive_logits)],
    )
    self.assertAllClose(analytic, numeric, atol=1e-6)

  def test_no_gradient_through_counts(self):
    logits, positive_logits, counts, _ = _problem(3, 4)
    _, gradients = _value_and_gradients(
      losses.resampled_softmax, logits, positive_logits, counts
    )
    if gradients[2] is not None:
      self.assertAllEqual(gradients[2], np.zeros_like(counts))

  @parameterized.parameters(
    # The positive far above everything: nothing to learn, loss 0.
    dict(positive=1e4, others=-1e4, expected=0.0),
    # Far below: log(2 e^{1e4}) + 1e4.
    dict(positive=-1e4, others=1e4, expected=2e4),
    # All equal: log(1 + 2), at any level.
    dict(positive=1e4, others=1e4, expected=np.log(3.0)),
    dict(positive=-1e4, others=-1e4, expected=np.log(3.0)),
  )
  def test_extreme_logits(self, positive, others, expected):
    counts = tf.constant([[1.0, 1.0, 0.0]])
    loss, gradients = _value_and_gradients(
      lambda s, p: losses.resampled_softmax(s, p, counts),
      np.full([1, 3], others, np.float32),
      np.array([positive], np.float32),
    )
    # 1e4 + log 3 in float32 is accurate to 5e-4.
    self.assertAllClose(loss, [expected], rtol=1e-3, atol=1e-5)
    for gradient in gradients:
      self.assertAllInRange(gradient, -1.0, 1.0)

  def test_counts_of_a_large_draw_do_not_overflow(self):
    # n e^s with n = 2^30 and s = 1e4.
    loss, gradients = _value_and_gradients(
      lambda s, p: losses.resampled_softmax(s, p, tf.constant([[2.0**30]])),
      np.array([[1e4]], np.float32),
      np.array([1e4], np.float32),
    )
    self.assertAllClose(loss, [np.log1p(2.0**30)], rtol=1e-3)
    self.assertAllClose(gradients[0], [[1.0]])

  @parameterized.parameters(-np.inf, np.inf, 1e4, -1e4, 3.0)
  def test_columns_without_draws_do_not_count(self, undrawn):
    # Also when it was masked (-inf: 0 * e^{-inf}) or would overflow.
    loss, gradients = _value_and_gradients(
      lambda s, p: losses.resampled_softmax(s, p, tf.constant([[0.0, 2.0]])),
      np.array([[undrawn, 1.0]], np.float32),
      np.array([1.0], np.float32),
    )
    self.assertAllClose(loss, [np.log(3.0)])
    self.assertAllClose(gradients[0], [[0.0, 2 / 3]])
    self.assertAllClose(gradients[1], [-2 / 3])

  @parameterized.parameters(-np.inf, 0.0, 1e4)
  def test_a_row_without_draws_has_zero_loss(self, logit):
    loss, gradients = _value_and_gradients(
      lambda s, p: losses.resampled_softmax(s, p, tf.zeros([1, 2])),
      np.full([1, 2], logit, np.float32),
      np.array([3.0], np.float32),
    )
    self.assertAllClose(loss, [0.0])
    self.assertAllClose(gradients[0], [[0.0, 0.0]])
    self.assertAllClose(gradients[1], [0.0])

  def test_all_scores_shifted_leave_the_loss(self):
    logits, positive_logits, counts, _ = _problem(4, 6)
    self.assertAllClose(
      losses.resampled_softmax(logits + 300, positive_logits + 300, counts),
      losses.resampled_softmax(logits, positive_logits, counts),
      rtol=1e-10,
    )

  def test_every_candidate_once_is_the_softmax_with_the_positive_twice(self):
    logits, _, _, _ = _problem(4, 6)
    positive_logits = logits[:, 0]
    # ALGORITHMS 7.2: the difference is log(1 + softmax_p) in the partition.
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    self.assertAllClose(
      losses.resampled_softmax(logits, positive_logits, np.ones([4, 6])),
      -np.log(softmax[:, 0]) + np.log1p(softmax[:, 0]),
      rtol=1e-10,
    )


class SampledSoftmaxTest(tf.test.TestCase, parameterized.TestCase):
  def test_hand_value(self):
    # Row 0: e^0 + e^{log 2} + e^{log 3} = 6, of which the positive is 1.
    # Row 1: e^{log 4} + 1 + (masked) = 5, of which the positive is 4.
    self.assertAllClose(
      losses.sampled_softmax(
        tf.constant([[np.log(2.0), np.log(3.0)], [0.0, 7.0]], tf.float64),
        tf.constant([0.0, np.log(4.0)], tf.float64),
        keep=tf.constant([[True, True], [True, False]]),
      ),
      [np.log(6.0), np.log(5.0 / 4.0)],
    )

  @parameterized.product(
    batch=(1, 5),
    pool=(1, 8, 33),
    dtype=(tf.float32, tf.float64),
    masked=(False, True),
    graph=(False, True),
  )
  def test_reference(self, batch, pool, dtype, masked, graph):
    logits, positive_logits, _, keep = _problem(batch, pool)
    keep = keep if masked else None
    function = losses.sampled_softmax
    loss = (tf.function(function) if graph else function)(
      tf.constant(logits, dtype),
      tf.constant(positive_logits, dtype),
      keep=None if keep is None else tf.constant(keep),
    )
    self.assertEqual(loss.dtype, dtype)
    self.assertAllClose(
      loss,
      reference.sampled_softmax(logits, positive_logits, keep),
      rtol=_TOLERANCE[dtype],
      atol=_TOLERANCE[dtype],
    )

  @parameterized.parameters(True, False)
  def test_gradient_is_the_numeric_one(self, masked):
    logits, positive_logits, _, keep = _problem(3, 4)
    keep = tf.constant(keep) if masked else None
    analytic, numeric = tf.test.compute_gradient(
      lambda s, p: losses.sampled_softmax(s, p, keep=keep),
      [tf.constant(logits), tf.constant(positive_logits)],
    )
    self.assertAllClose(analytic, numeric, atol=1e-6)

  def test_own_column_masked_is_the_cross_entropy_of_the_diagonal(self):
    logits = tf.constant(_problem(5, 5)[0])
    self.assertAllClose(
      losses.sampled_softmax(
        logits,
        tf.linalg.diag_part(logits),
        keep=~np.eye(5, dtype=bool),
      ),
      tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(5), logits),
      rtol=1e-10,
    )

  @parameterized.parameters(
    (1e4, -1e4, 0.0), (-1e4, 1e4, 2e4), (1e4, 1e4, None)
  )
  def test_extreme_logits(self, positive, others, expected):
    expected = np.log(4.0) if expected is None else expected
    loss, gradients = _value_and_gradients(
      losses.sampled_softmax,
      np.full([1, 3], others, np.float32),
      np.array([positive], np.float32),
    )
    self.assertAllClose(loss, [expected], rtol=1e-3, atol=1e-5)
    for gradient in gradients:
      self.assertAllInRange(gradient, -1.0, 1.0)

  @parameterized.parameters(0.0, 1e4, -np.inf, np.inf)
  def test_a_fully_masked_row_has_no_loss(self, masked):
    loss, gradients = _value_and_gradients(
      lambda s, p: losses.sampled_softmax(s, p, keep=tf.zeros([1, 2], tf.bool)),
      np.full([1, 2], masked, np.float32),
      np.array([3.0], np.float32),
    )
    self.assertAllClose(loss, [0.0])
    self.assertAllClose(gradients[0], [[0.0, 0.0]])
    self.assertAllClose(gradients[1], [0.0])


if __name__ == "__main__":
  tf.test.main()
