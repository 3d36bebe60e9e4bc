"""Confidence intervals and paired tests of means over queries.

Rows of one user are correlated. If each held-out row is a query of its own,
queries are not independent, so errors are clustered by user.

Axes: n = queries.
"""

from __future__ import annotations

import math
import statistics

import msgspec
import numpy as np

LEVEL = 0.95
_Z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)


class PairedTest(msgspec.Struct, frozen=True):
  """See `paired_test`."""

  difference: float
  standard_error: float
  p: float

  @property
  def p_text(self) -> str:
    """The p-value as text."""
    return "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"


def mean_and_error(
  values: np.ndarray, users: np.ndarray | None = None
) -> tuple[float, float]:
  """Computes a mean and its standard error.

    error^2 = G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2 / n^2

  over the G users g, the cluster-robust error of Liang and Zeger (1986). If
  each user has one value, this is the usual s / sqrt(n).

  Args:
    values: [n] values.
    users: [n] user of each value; None if all users differ.

  Returns:
    The mean and the error; the error is NaN if there is only one user.
  """
  values = np.asarray(values, np.float64)
  mean = float(values.mean())
  deviations = values - mean
  if users is not None:
    _, place = np.unique(users, return_inverse=True)
    deviations = np.bincount(place, deviations)
  groups = len(deviations)
  if groups < 2:
    return mean, math.nan
  total = float((deviations**2).sum())
  return mean, math.sqrt(total * groups / (groups - 1)) / len(values)


def interval(
  values: np.ndarray, users: np.ndarray | None = None
) -> tuple[float, float] | None:
  """Computes the 95 % confidence interval of a mean of values in [0, 1].

  Uses the normal approximation, which is good for about thirty users or more.
  If all values are 0 or all are 1, its interval would have no width. Then the
  share of users with another value has the exact upper bound
  1 - 0.025^(1 / G), which bounds the mean (Clopper and Pearson, 1934).

  Args:
    values: [n] values of a metric.
    users: See `mean_and_error`.

  Returns:
    Lower and upper end; None if the error is unknown.
  """
  mean, error = mean_and_error(values, users)
  if math.isnan(error):
    return None
  if error == 0.0 and mean in (0.0, 1.0):
    groups = len(values) if users is None else len(np.unique(users))
    rest = 1 - ((1 - LEVEL) / 2) ** (1 / groups)
    return (0.0, rest) if mean == 0.0 else (1 - rest, 1.0)
  return max(mean - _Z * error, 0.0), min(mean + _Z * error, 1.0)


def paired_test(
  differences: np.ndarray, users: np.ndarray | None = None
) -> PairedTest:
  """Tests whether a mean over queries is 0.

  Args:
    differences: [n] differences of a metric between two methods.
    users: See `mean_and_error`.

  Returns:
    The mean, its standard error, and the two-sided p-value of the paired
    t-test in the normal approximation, as there are thousands of queries.
  """
  difference, error = mean_and_error(differences, users)
  p = 1.0
  if error > 0:
    p = math.erfc(abs(difference) / error / math.sqrt(2.0))
  return PairedTest(difference, error, p)
