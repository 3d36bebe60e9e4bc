"""Tests of xir_tfrs.ops.corr."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import corr


def _problem(seed=0, batch=4, n=6):
  rng = np.random.default_rng(seed)
  return {
    "ranker": rng.normal(size=[batch, n]),
    "retriever": 2 * rng.normal(size=[batch, n]),
    "positive": rng.normal(size=[batch]),
    "log_q": rng.normal(size=[batch, n]) - 3,
    "positive_log_q": rng.normal(size=[batch]) - 3,
    "keep": rng.random([batch, n]) < 0.7,
  }


class SoftmaxTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_reference(self, masked):
    p = _problem()
    keep = p["keep"] if masked else None
    arguments = p["ranker"], p["positive"], p["log_q"], p["positive_log_q"]
    self.assertAllClose(
      corr.sampled_softmax(*map(tf.constant, arguments), keep),
      reference.corr_softmax(*arguments, keep),
    )

  def test_gradient(self):
    p = _problem()
    inputs = [
      tf.constant(p[name])
      for name in ("ranker", "positive", "log_q", "positive_log_q")
    ]
    theoretical, numerical = tf.test.compute_gradient(
      lambda s, s_p: corr.sampled_softmax(s, s_p, *inputs[2:], p["keep"]),
      inputs[:2],
    )
    self.assertAllClose(theoretical, numerical, atol=1e-6)
    with tf.GradientTape() as tape:
      tape.watch(inputs)
      loss = corr.sampled_softmax(*inputs)
    by_log_q = tape.gradient(loss, inputs)[2:]
    self.assertEqual(by_log_q, [None, None])


class KlTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_reference(self, masked):
    p = _problem()
    keep = p["keep"] if masked else None
    arguments = p["ranker"], p["retriever"], p["log_q"]
    divergence = corr.sampled_kl(*map(tf.constant, arguments), keep)
    self.assertAllClose(divergence, reference.corr_kl(*arguments, keep))
    if not masked:
      self.assertAllInRange(divergence, 1e-3, 10.0)

  @parameterized.parameters(-5.0, 0.0, 300.0)
  def test_zero_where_the_scores_differ_by_a_constant(self, shift):
    p = _problem()
    rows = shift + np.arange(4.0)[:, np.newaxis]
    ranker = tf.constant(p["retriever"] + rows, tf.float32)
    retriever = tf.constant(p["retriever"], tf.float32)
    log_q = tf.constant(p["log_q"], tf.float32)
    with tf.GradientTape() as tape:
      tape.watch(retriever)
      divergence = corr.sampled_kl(ranker, retriever, log_q)
    self.assertAllClose(divergence, np.zeros(4), atol=1e-5)
    self.assertAllClose(
      tape.gradient(divergence, retriever), np.zeros([4, 6]), atol=1e-4
    )
    one_off = ranker + tf.one_hot([0], 6)
    self.assertAllGreater(corr.sampled_kl(one_off, retriever, log_q), 1e-5)

  def test_gradient_goes_to_the_retriever_alone(self):
    p = _problem()
    ranker, retriever, log_q = (
      tf.constant(p[name]) for name in ("ranker", "retriever", "log_q")
    )
    theoretical, numerical = tf.test.compute_gradient(
      lambda m: corr.sampled_kl(ranker, m, log_q, p["keep"]), [retriever]
    )
    self.assertAllClose(theoretical, numerical, atol=1e-6)
    with tf.GradientTape() as tape:
      tape.watch([ranker, log_q])
      divergence = corr.sampled_kl(ranker, retriever, log_q)
    self.assertEqual(tape.gradient(divergence, [ranker, log_q]), [None, None])

  @parameterized.parameters(1e4, -1e4)
  def test_extreme_and_masked(self, size):
    p = _problem()
    keep = p["keep"].copy()
    keep[1] = False
    keep[2] = np.arange(6) == 3
    ranker = tf.constant(size * p["ranker"], tf.float32)
    retriever = tf.constant(-size * p["retriever"], tf.float32)
    log_q = tf.constant(p["log_q"], tf.float32)
    with tf.GradientTape() as tape:
      tape.watch(retriever)
      divergence = corr.sampled_kl(ranker, retriever, log_q, keep)
    gradient = tape.gradient(divergence, retriever).numpy()
    self.assertTrue(np.isfinite(divergence).all())
    self.assertTrue(np.isfinite(gradient).all())
    # With no or one column kept, the models cannot differ.
    self.assertAllEqual(divergence[1:3], [0.0, 0.0])
    self.assertAllEqual(gradient[~keep], np.zeros(np.sum(~keep)))
    self.assertAllEqual(gradient[1:3], np.zeros([2, 6]))


if __name__ == "__main__":
  tf.test.main()
