"""Tests of xir_tfrs.metrics.divergence."""

import numpy as np
import pytest

from tests import reference
from xir_tfrs.diagnostics import divergence


def _samples(repetitions=6, rows=3, dim=4, seed=0):
  rng = np.random.default_rng(seed)
  exact = rng.normal(size=[rows, dim])
  return exact + rng.normal(1.0, 2.0, [repetitions, rows, dim]), exact


def _distribution(candidates, rows, seed=0):
  weights = np.random.default_rng(seed).gamma(0.5, size=[candidates, rows])
  return weights / weights.sum(axis=0)


# Gradients -------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 1, 1), (6, 3, 4), (40, 2, 5)])
def test_gradient_error_reference(sizes):
  samples, exact = _samples(*sizes)
  found = divergence.gradient_error(samples, exact)
  expected = reference.gradient_error(samples, exact)
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-9), name


def test_gradient_error_by_hand():
  # Exact (3, 4), length 5. Estimates (3, 4) + (1, 0) +- (2, 0): mean error 1,
  # variance 8, of which a half is noise in the square of the mean's error.
  samples = np.array([[[6.0, 4.0]], [[2.0, 4.0]]])
  found = divergence.gradient_error(samples, np.array([[3.0, 4.0]]))
  assert found["deviation"] == pytest.approx(np.sqrt(8 / 25))
  assert found["length"] == pytest.approx(np.sqrt((16 + 16 - 4) / 25))
  # 1 - 4 < 0: noise explains all of the error.
  assert found["bias"] == 0.0


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_noise_is_not_bias(bias):
  # 16 estimates with deviation 4: their mean alone is off by 1.
  rng = np.random.default_rng(1)
  exact = rng.normal(size=[2000, 8])
  offset = bias * np.linalg.norm(exact) / np.sqrt(exact.size)
  noise = rng.normal(size=[16, 2000, 8]) * 4.0
  found = divergence.gradient_error(exact + offset + noise, exact)
  # The squared bias has a standard error of about 0.011.
  assert found["bias"] ** 2 == pytest.approx(bias**2, abs=0.05)
  assert found["deviation"] == pytest.approx(4.0, rel=0.05)
  assert found["length"] ** 2 == pytest.approx(
    np.sum((exact + offset) ** 2) / np.sum(exact**2), abs=0.1
  )


def test_exact_gradients_have_no_error():
  _, exact = _samples()
  samples = np.stack([exact] * 4)
  found = divergence.gradient_error(samples, exact)
  assert found == pytest.approx({"bias": 0, "deviation": 0, "length": 1})
  assert divergence.mean_cosine(samples, exact) == pytest.approx(1.0)
  assert divergence.mean_cosine(-samples, exact) == pytest.approx(-1.0)
  assert divergence.mean_cosine(7.0 * samples, exact) == pytest.approx(1.0)


def test_cosine_with_noise_taken_out():
  rng = np.random.default_rng(2)
  exact = rng.normal(size=[500, 8])
  # At 60 degrees to the exact gradient.
  other = rng.normal(size=[500, 8])
  other -= (
    exact
    * np.sum(exact * other, 1, keepdims=True)
    / np.sum(exact**2, 1, keepdims=True)
  )
  other *= np.linalg.norm(exact, axis=1, keepdims=True) / np.linalg.norm(
    other, axis=1, keepdims=True
  )
  mean = 0.5 * exact + np.sqrt(0.75) * other
  samples = mean + 2.0 * rng.normal(size=[32, 500, 8])
  assert divergence.mean_cosine(samples, exact) == pytest.approx(0.5, abs=0.02)


def test_cosine_of_nothing_but_noise_stays_small():
  rng = np.random.default_rng(3)
  exact = rng.normal(size=[500, 8])
  samples = rng.normal(size=[8, 500, 8])
  assert abs(divergence.mean_cosine(samples, exact)) < 0.1


def test_gradients_of_length_zero():
  zeros = np.zeros([4, 3, 2])
  found = divergence.gradient_error(zeros, zeros[0])
  assert found == {"bias": 0.0, "deviation": 0.0, "length": 0.0}
  assert divergence.mean_cosine(zeros, zeros[0]) == 0.0
  # An error relative to 0 is large, but finite.
  assert np.isfinite(divergence.gradient_error(zeros + 1, zeros[0])["bias"])


@pytest.mark.parametrize("sharpness", [0.9, 1.0, 1.3, 2.0])
def test_best_sharpness(sharpness):
  rng = np.random.default_rng(4)
  queries, candidates = rng.normal(size=[5, 8]), rng.normal(size=[40, 8])

  def gradients(k):
    return np.stack(
      [reference.full_softmax_gradient(q, candidates, 0, k) for q in queries]
    )

  exact = {k: gradients(k) for k in 2.0 ** np.arange(-1, 2.5, 0.5)}
  samples = np.stack([gradients(sharpness)] * 2)
  found = divergence.best_sharpness(samples, exact)
  assert found == pytest.approx(sharpness, rel=0.05)
  # Its length does not matter: only the weight of the positive changes it.
  assert divergence.best_sharpness(0.3 * samples, exact) == pytest.approx(found)


def test_best_sharpness_at_the_ends():
  _, exact = _samples()
  targets = {1.0: exact, 2.0: -exact, 4.0: -2 * exact[:, ::-1]}
  assert divergence.best_sharpness(np.stack([exact] * 2), targets) == 1.0
  flat = dict.fromkeys((1.0, 2.0, 4.0), exact)
  assert divergence.best_sharpness(np.stack([exact] * 2), flat) == 1.0


# Distributions ---------------------------------------------------------------


def test_kl_divergence_reference():
  weights = 3.0 * _distribution(20, 4)
  weights[:7, 2] = 0.0
  log_full = np.log(_distribution(20, 4, seed=1))
  found = divergence.kl_divergence(weights, log_full)
  for row in range(4):
    expected = reference.kl_divergence(weights[:, row], log_full[:, row])
    assert found[row] == pytest.approx(expected)
    assert expected > 0.1


def test_kl_divergence_by_hand():
  weights = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
  # A weight of 0 may be rounded to less than 0.
  weights[2, 0] = -1e-9
  log_full = np.log(np.full([3, 2], 0.25))
  assert divergence.kl_divergence(weights, log_full) == pytest.approx(
    [0.25 * np.log(1.0) + 0.75 * np.log(3.0), 0.0]
  )


def test_kl_of_the_distribution_itself_is_zero():
  full = _distribution(30, 3)
  assert divergence.kl_divergence(full, np.log(full)) == pytest.approx([0] * 3)
  assert divergence.kl_of_mean(full, full, np.log(full)) == pytest.approx(0.0)


@pytest.mark.parametrize("far", [False, True])
def test_kl_of_mean_corrects_for_noise(far):
  # Weights that are correct in expectation, on a few candidates at a time.
  full = _distribution(50, 20) * 0.9 + 0.1 / 50
  expected = _distribution(50, 20, seed=5) * 0.9 + 0.1 / 50 if far else full
  rng = np.random.default_rng(6)
  halves = np.stack(
    [
      [rng.multinomial(400, expected[:, row]) for row in range(20)]
      for _ in range(2)
    ]
  ).transpose([0, 2, 1])
  log_full = np.log(full)
  exact = np.mean(divergence.kl_divergence(expected, log_full))
  plain = np.mean(divergence.kl_divergence(halves.sum(0), log_full))
  found = divergence.kl_of_mean(*halves, log_full)
  assert plain - exact > 0.02
  assert abs(found - exact) < 0.01
