"""Distances between the softmax and its estimates: gradients, distributions.

Rows are (query, positive) pairs. A loss of a row has, for its query, the
gradient

    g = sum_j P_j grad s_j - grad s_p

with a weight P_j for each candidate j and the positive p. The full softmax
has P_j = e^{s_j} / sum_k e^{s_k}; an estimate has weights, and so a gradient,
that differ from batch to batch.

Axes: repetitions (batches), rows, dim (of a query), candidates.
"""

import numpy as np

# Gradients with a squared length below this count as zero.
_NOTHING = 1e-30


def gradient_error(samples: np.ndarray, exact: np.ndarray) -> dict[str, float]:
  """Bias and deviation of a gradient, from repeated estimates.

  All values are relative to the length of the exact gradient, as root mean
  squares over the rows. With m the mean over the repetitions and V the summed
  variance of a single estimate:

      deviation^2 = V / |exact|^2
      bias^2      = (|m - exact|^2 - V / repetitions) / |exact|^2
      length^2    = (|m|^2 - V / repetitions) / |exact|^2

  V / repetitions is the contribution of noise to a squared length, so a bias of
  0 is reported as about 0 for any number of repetitions. Negative squares are
  set to 0.

  Args:
    samples: [repetitions, rows, dim] estimated gradients.
    exact: [rows, dim] exact gradients.

  Returns:
    `bias`, `deviation` and `length`.
  """
  mean, noise = _mean_and_noise(samples)
  scale = max(np.sum(exact**2), _NOTHING)
  squares = {
    "bias": np.sum((mean - exact) ** 2) - np.sum(noise),
    "deviation": np.sum(noise) * len(samples),
    "length": np.sum(mean**2) - np.sum(noise),
  }
  return {
    name: float(np.sqrt(max(square, 0.0) / scale))
    for name, square in squares.items()
  }


def mean_cosine(samples: np.ndarray, exact: np.ndarray) -> float:
  """Cosine of the mean estimate and the exact gradient, mean over the rows.

  The cosine ignores the length of the estimate, which depends on the weight of
  the positive, and an in-batch softmax overestimates that weight. The direction
  depends on the weights of the other candidates alone. As in `gradient_error`,
  noise is subtracted from the length of the mean; rows that are mostly noise
  may appear less aligned than they are.

  Args:
    samples: [repetitions, rows, dim] estimated gradients.
    exact: [rows, dim] exact gradients.

  Returns:
    A number in [-1, 1]; rows without a gradient are left out.
  """
  mean, noise = _mean_and_noise(samples)
  squared = np.sum(mean**2, axis=1)
  squared = np.maximum(squared - noise, np.minimum(noise, squared))
  lengths = np.sqrt(squared * np.sum(exact**2, axis=1))
  some = lengths > _NOTHING
  if not some.any():
    return 0.0
  products = np.sum(mean * exact, axis=1)[some] / lengths[some]
  return float(np.mean(np.clip(products, -1.0, 1.0)))


def kl_divergence(weights: np.ndarray, log_full: np.ndarray) -> np.ndarray:
  """KL(weights || full) of each row, in nats.

      sum_j P_j (log P_j - log Q_j)

  Args:
    weights: [candidates, rows] weights >= 0; normalised to sum to 1 per row.
    log_full: [candidates, rows] log probabilities of the full softmax; it may
      have further candidates.

  Returns:
    [rows] divergences, 0 for a row without weights.
  """
  weights = np.maximum(weights, 0.0)
  total = weights.sum(axis=0)
  share = weights / np.where(total > 0.0, total, 1.0)
  some = share > 0.0
  log_share = np.log(np.where(some, share, 1.0))
  # Where the weight is 0, the full softmax may be 0 too.
  log_full = np.where(some, log_full, 0.0)
  return np.sum(np.where(some, share * (log_share - log_full), 0.0), 0)


def kl_of_mean(
  first_half: np.ndarray, second_half: np.ndarray, log_full: np.ndarray
) -> float:
  """KL of the mean weights to the full softmax, mean over the rows.

  The mean of few repetitions is noisier than the expectation. The noise adds to
  the KL in proportion to 1 / repetitions, as long as most of the weight is on
  candidates that appear several times. Half of the repetitions have twice the
  noise, so it cancels in

      2 KL(all) - (KL(first half) + KL(second half)) / 2

  Args:
    first_half: [candidates, rows] summed weights of half of the repetitions.
    second_half: The same of the other half.
    log_full: [candidates, rows] log probabilities of the full softmax.

  Returns:
    The KL in nats, at least 0.
  """
  whole = kl_divergence(first_half + second_half, log_full)
  halves = kl_divergence(first_half, log_full)
  halves = halves + kl_divergence(second_half, log_full)
  return float(max(np.mean(2.0 * whole - halves / 2.0), 0.0))


def best_sharpness(
  samples: np.ndarray, exact: dict[float, np.ndarray]
) -> float:
  """The sharpness k at which the full softmax best matches the estimate.

  Args:
    samples: [repetitions, rows, dim] estimated gradients.
    exact: k -> [rows, dim] gradient of the full softmax of scores k s, for
      ascending k in equal ratios.

  Returns:
    The k of the highest `mean_cosine`, interpolated with a parabola in log k.
  """
  logs = np.log(list(exact))
  cosines = np.array([mean_cosine(samples, g) for g in exact.values()])
  best = int(np.argmax(cosines))
  if not 0 < best < len(logs) - 1:
    return float(np.exp(logs[best]))
  before, top, after = cosines[best - 1 : best + 2]
  bend = before - 2.0 * top + after
  offset = 0.5 * (before - after) / bend if bend < 0.0 else 0.0
  return float(np.exp(logs[best] + offset * (logs[best + 1] - logs[best])))


def _mean_and_noise(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[rows, dim] mean, and [rows] expected squared error of the mean."""
  samples = np.asarray(samples, np.float64)
  variance = samples.var(axis=0, ddof=1).sum(axis=-1)
  return samples.mean(axis=0), variance / len(samples)
