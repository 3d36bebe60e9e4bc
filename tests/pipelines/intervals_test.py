"""Tests of pipelines.evaluation.intervals, including their coverage."""

import math

import numpy as np
import pytest

from pipelines.evaluation import intervals


def test_a_mean_and_its_error_by_hand():
  # Deviations of -0.5, -0.5, 0.5, 0.5; of two users: -1 and 1.
  values = np.array([0.0, 0.0, 1.0, 1.0])
  mean, error = intervals.mean_and_error(values)
  assert (mean, error) == (0.5, pytest.approx(math.sqrt(1 / 3) / 2))
  users = np.array([7, 7, 9, 9])
  mean, error = intervals.mean_and_error(values, users)
  assert (mean, error) == (0.5, pytest.approx(math.sqrt(2 * 2) / 4))
  assert intervals.interval(values, np.zeros(4)) is None


def test_intervals_stay_between_0_and_1():
  low, high = intervals.interval(np.array([1.0] * 99 + [0.0]))
  assert 0.9 < low < 0.99 and high == 1.0


def test_without_any_hit_the_mean_may_still_be_above_0():
  """At the end of the interval, no hit by any user has probability 2.5 %."""
  users = np.repeat(np.arange(20), 3)
  low, high = intervals.interval(np.zeros(60), users)
  assert low == 0.0 and (1 - high) ** 20 == pytest.approx(0.025)
  assert intervals.interval(np.ones(60), users) == (1 - high, 1.0)
  # If all values are equal, the interval is that value.
  assert intervals.interval(np.full(9, 0.5)) == (0.5, 0.5)


def test_intervals_cover_the_mean_as_often_as_they_say():
  """Hits of users with different tastes and several rows each."""
  rng = np.random.default_rng(0)
  users = np.repeat(np.arange(80), 5)
  covered = {"by users": 0, "by rows": 0}
  times = 1500
  for _ in range(times):
    tastes = rng.beta(0.6, 1.4, 80)  # Their mean is 0.3.
    hits = (rng.random(400) < tastes[users]).astype(float)
    for name, of in (("by users", users), ("by rows", None)):
      low, high = intervals.interval(hits, of)
      covered[name] += low <= 0.3 <= high
  assert covered["by users"] / times == pytest.approx(0.95, abs=0.02)
  # Rows of a user are correlated; intervals that ignore it are too narrow.
  assert covered["by rows"] / times < 0.85


def test_paired_test_against_its_distribution():
  """Without an effect, a fraction p of many tests has a p-value below p."""
  rng = np.random.default_rng(0)
  found = [intervals.paired_test(rng.normal(size=400)).p for _ in range(2000)]
  for p in (0.05, 0.5):
    assert np.mean(np.array(found) < p) == pytest.approx(p, abs=0.04)
  assert intervals.paired_test(rng.normal(0.5, 1.0, 400)).p < 1e-6
  assert intervals.paired_test(np.zeros(10)).p == 1.0
