"""Statistics of the resampling methods, at fixed seeds.

Tolerances are five standard deviations of the estimate under test, or the
0.9999 quantile of a chi-square: a correct sampler passes with almost any seed,
and an error of a few percent fails.
"""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import reference
from xir_tfrs.ops import losses, resampling

_SAMPLED = ("multinomial", "systematic", "lattice")
# Spread over three orders of magnitude.
_LOG_WEIGHTS = np.log(
  np.array([0.3, 0.2, 0.15, 0.12, 0.1, 0.07, 0.04, 0.015, 0.0047, 0.0003])
)
_POOL = len(_LOG_WEIGHTS)
_CHI_SQUARE_9 = 33.72  # 0.9999 quantile, 9 degrees of freedom


def _draw(log_weights, num_resampled, method, seed, **kwargs):
  return resampling.resample_counts(
    tf.convert_to_tensor(log_weights),
    num_resampled,
    seed=seed,
    method=method,
    **kwargs,
  )


def _equal_rows(num_rows):
  return np.tile(_LOG_WEIGHTS.astype(np.float32), [num_rows, 1])


def _draws_over_seeds(log_weights, num_resampled, method, num_seeds):
  """[num_seeds, batch, pool] counts."""
  log_weights = tf.constant(log_weights)

  @tf.function
  def draw(k):
    seed = tf.stack([k, 7 * k + 1])
    return _draw(log_weights, num_resampled, method, seed)

  return np.stack([draw(tf.constant(k)).numpy() for k in range(num_seeds)])


class MultinomialTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(1, 12, 60)
  def test_frequencies_by_chi_square(self, num_resampled):
    num_rows = 48000 // num_resampled
    counts = _draw(_equal_rows(num_rows), num_resampled, "multinomial", (1, 2))
    observed = np.sum(counts, 0)
    expected = num_rows * reference.expected_counts(
      [_LOG_WEIGHTS], num_resampled
    )
    self.assertLess(
      np.sum((observed - expected[0]) ** 2 / expected[0]), _CHI_SQUARE_9
    )

  def test_draws_within_a_row_are_independent(self):
    # The chi-square of one row has mean pool - 1 for independent draws, far
    # less for stratified draws, and far more if one draw is repeated.
    num_rows, num_resampled = 4000, 200
    counts = _draw(_equal_rows(num_rows), num_resampled, "multinomial", (3, 4))
    expected = reference.expected_counts([_LOG_WEIGHTS], num_resampled)
    chi_square = np.sum((counts - expected) ** 2 / expected, -1)
    # Its variance is 2 (pool - 1) + (sum 1/w - pool^2 - 2 pool + 2) / m.
    variance = (
      2 * (_POOL - 1)
      + (np.sum(num_resampled / expected) - _POOL**2 - 2 * _POOL + 2)
      / num_resampled
    )
    self.assertNear(
      chi_square.mean(), _POOL - 1, 5 * np.sqrt(variance / num_rows)
    )

  def test_covariance(self):
    # Cov(n_j, n_k) = -m w_j w_k for j != k, m w_j (1 - w_j) for j = k.
    num_rows, num_resampled = 20000, 20
    counts = _draw(_equal_rows(num_rows), num_resampled, "multinomial", (5, 6))
    w = reference.expected_counts([_LOG_WEIGHTS], 1)[0]
    self.assertAllClose(
      np.cov(counts.numpy().T),
      num_resampled * (np.diag(w) - np.outer(w, w)),
      atol=0.22,
    )

  def test_rows_are_independent(self):
    counts = _draws_over_seeds(_equal_rows(2), 10, "multinomial", 1000)
    correlation = np.corrcoef(counts[:, 0, 0], counts[:, 1, 0])[0, 1]
    self.assertLess(abs(correlation), 5 / np.sqrt(1000))


class UnbiasednessTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.product(method=_SAMPLED, num_resampled=(1, 7, 32))
  def test_over_seeds_for_every_row(self, method, num_resampled):
    # Rows of different weights; each row's own mean over the seeds.
    rng = np.random.default_rng(2)
    log_weights = rng.normal(scale=1.5, size=[4, 9])
    log_weights[2, 4:7] = -np.inf
    num_seeds = 1000
    counts = _draws_over_seeds(log_weights, num_resampled, method, num_seeds)
    expected = reference.expected_counts(log_weights, num_resampled)
    # The multinomial variance is the largest of the three.
    sigma = np.sqrt(expected * (1 - expected / num_resampled) / num_seeds)
    self.assertAllLessEqual(
      np.abs(counts.mean(0) - expected) - 5 * sigma, 3 / num_seeds
    )

  @parameterized.parameters(*_SAMPLED)
  def test_over_rows_of_one_draw(self, method):
    num_rows, num_resampled = 20000, 16
    counts = _draw(_equal_rows(num_rows), num_resampled, method, (9, 1))
    expected = reference.expected_counts([_LOG_WEIGHTS], num_resampled)[0]
    sigma = np.sqrt(expected * (1 - expected / num_resampled) / num_rows)
    self.assertAllLessEqual(
      np.abs(np.mean(counts, 0) - expected) - 5 * sigma, 0.0
    )

  @parameterized.parameters(*_SAMPLED)
  def test_rare_candidates_of_a_large_pool(self, method):
    # 2,000 equal candidates and 8 draws: the end of the pool is drawn too.
    pool, num_rows, num_resampled = 2000, 2000, 8
    counts = self.evaluate(
      _draw(
        np.zeros([num_rows, pool], np.float32), num_resampled, method, (4, 4)
      )
    )
    by_block = counts.reshape(num_rows, 10, pool // 10).sum((0, 2))
    share = num_rows * num_resampled / 10
    self.assertAllLessEqual(np.abs(by_block - share), 5 * np.sqrt(share))


class VarianceTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters("systematic", "lattice")
  def test_no_more_than_multinomial(self, method):
    num_rows = 20000
    for num_resampled in (4, 16, 64):
      expected = reference.expected_counts([_LOG_WEIGHTS], num_resampled)[0]
      multinomial = expected * (1 - expected / num_resampled)
      counts = _draw(_equal_rows(num_rows), num_resampled, method, (6, 6))
      variance = np.var(counts, 0)
      # A count within one of its mean has variance frac (1 - frac) <= 1/4;
      # 5 sigma of a sample variance of a bounded variable.
      fraction = expected - np.floor(expected)
      self.assertAllClose(
        variance, fraction * (1 - fraction), atol=5 * 0.5 / np.sqrt(num_rows)
      )
      self.assertAllLessEqual(variance - multinomial, 0.02)

  def test_systematic_loss_varies_less_than_multinomial_loss(self):
    logits = np.tile(np.linspace(-1, 2, _POOL), [4000, 1])
    spread = {
      method: np.std(
        losses.resampled_softmax(
          logits,
          logits[:, 0],
          tf.cast(_draw(_equal_rows(4000), 16, method, (2, 8)), tf.float64),
        )
      )
      for method in ("systematic", "multinomial")
    }
    self.assertLess(spread["systematic"], 0.7 * spread["multinomial"])

  def test_equal_rows_of_a_systematic_draw_are_independent(self):
    counts = _draws_over_seeds(_equal_rows(2), 10, "systematic", 1000)
    # Column 2 expects 1.5 draws: one or two, by the row's own uniform number.
    correlation = np.corrcoef(counts[:, 0, 2], counts[:, 1, 2])[0, 1]
    self.assertLess(abs(correlation), 5 / np.sqrt(1000))


class MonteCarloLossTest(tf.test.TestCase, parameterized.TestCase):
  def _errors(self, method, num_resampled, num_rows=4000):
    """Loss of each drawn row minus the loss of the expected counts."""
    logits = np.tile(np.linspace(-1, 2, _POOL), [num_rows, 1])
    counts = _draw(_equal_rows(num_rows), num_resampled, method, (8, 3))
    expected = reference.expected_counts([_LOG_WEIGHTS], num_resampled)
    loss = losses.resampled_softmax(
      logits, logits[:, 0], tf.cast(counts, tf.float64)
    )
    exact = reference.resampled_softmax(logits[:1], logits[:1, 0], expected)
    return loss.numpy() - exact

  def test_multinomial_error_shrinks_as_one_over_root_m(self):
    # ALGORITHMS 5.4 (a): with 16 times the draws, a quarter of the error.
    few = np.sqrt(np.mean(self._errors("multinomial", 64) ** 2))
    many = np.sqrt(np.mean(self._errors("multinomial", 1024) ** 2))
    self.assertBetween(few / many, 3.6, 4.4)

  def test_systematic_error_shrinks_as_one_over_m(self):
    few = np.sqrt(np.mean(self._errors("systematic", 64) ** 2))
    many = np.sqrt(np.mean(self._errors("systematic", 1024) ** 2))
    self.assertGreater(few / many, 6.0)

  @parameterized.parameters(*_SAMPLED)
  def test_mean_form_gradient_is_that_of_ssl_pop(self, method):
    # ALGORITHMS 5.4 (b): E (1/m) sum_{j drawn} grad s_j = sum_j w_j grad s_j,
    # the gradient of the log partition of softmax(s - log pop).
    rng = np.random.default_rng(4)
    logits = rng.normal(size=[1, 6])
    log_q = np.log(rng.dirichlet(np.ones(6)))
    rows = tf.constant(np.tile(logits, [20000, 1]))
    log_weights = resampling.log_importance_weights(rows, log_q)
    frequencies = np.mean(_draw(log_weights, 12, method, (5, 5)), 0) / 12
    corrected = tf.constant(logits - log_q)
    with tf.GradientTape() as tape:
      tape.watch(corrected)
      log_partition = tf.reduce_logsumexp(corrected)
    self.assertAllClose(
      frequencies, tape.gradient(log_partition, corrected)[0], atol=5e-3
    )


class EffectiveSampleSizeTest(tf.test.TestCase, parameterized.TestCase):
  @parameterized.parameters(tf.float32, tf.float64)
  def test_reference(self, dtype):
    log_weights = np.log(np.random.default_rng(0).dirichlet(np.ones(7), 5))
    self.assertAllClose(
      resampling.effective_sample_size(tf.constant(log_weights, dtype)),
      reference.effective_sample_size(log_weights),
      rtol=1e-5,
    )

  def test_from_one_to_the_pool_size(self):
    log_weights = np.log([[0.25] * 4, [0.5, 0.5, 1e-300, 1e-300]])
    log_weights[1, 2:] = -np.inf
    self.assertAllClose(
      resampling.effective_sample_size(log_weights), [4.0, 2.0]
    )


if __name__ == "__main__":
  tf.test.main()
