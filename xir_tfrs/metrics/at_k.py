"""Metrics of a list of k recommendations, one function per metric.

Every function takes the hits in each query's list and returns one value per
query; `full_ranking` averages them.

  hits:         [num_queries, max_k] bool. hits[q, r] is True if the candidate
                at rank r + 1 of query q is relevant.
  num_relevant: [num_queries] number of relevant candidates of the query, found
                or not; at least 1.
  k:            the cut-off, at most max_k.
"""

import numpy as np


def _discounts(k: int) -> np.ndarray:
  """1 / log2(rank + 1) for the ranks 1 .. k."""
  return 1.0 / np.log2(np.arange(2, k + 2))


def _ideal_dcg(num_relevant: np.ndarray, k: int) -> np.ndarray:
  """The DCG of a list that starts with all relevant candidates."""
  return np.cumsum(_discounts(k))[np.minimum(num_relevant, k) - 1]


def recall(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
  """Share of the relevant candidates that are in the list."""
  return hits[:, :k].sum(axis=1) / num_relevant


def hit(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
  """1 if the list holds any relevant candidate, else 0."""
  del num_relevant
  return np.asarray(hits[:, :k].any(axis=1), np.float64)


def mrr(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
  """1 / rank of the first relevant candidate; 0 if the list has none."""
  first = hits[:, :k].argmax(axis=1)  # Also 0 if there is no hit.
  return hit(hits, num_relevant, k) / (first + 1)


def average_precision(
  hits: np.ndarray, num_relevant: np.ndarray, k: int
) -> np.ndarray:
  """Sum of the precision at each hit, divided by min(k, num_relevant)."""
  hits = hits[:, :k]
  precision = hits.cumsum(axis=1) / np.arange(1, k + 1)
  return (precision * hits).sum(axis=1) / np.minimum(num_relevant, k)


def ndcg(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
  """DCG divided by the DCG of the best possible list of k."""
  return (hits[:, :k] @ _discounts(k)) / _ideal_dcg(num_relevant, k)


def ndcg_xir_compat(
  hits: np.ndarray, num_relevant: np.ndarray, k: int
) -> np.ndarray:
  """NDCG as the released code of XIR computes it; use it for comparison only.

  That code builds the discounts from a boolean tensor: rank 1 counts 1 and
  every later rank 1 / log2(3), while the ideal DCG is correct. A single hit at
  rank 10 counts 0.631 instead of 0.289, and the value can exceed 1.
  """
  later = hits[:, 1:k].sum(axis=1) / np.log2(3.0)
  return (hits[:, 0] + later) / _ideal_dcg(num_relevant, k)


# All metrics, by the name before the @; `full_ranking` and `list_ranking`
# compute them all.
METRICS = {
  "recall": recall,
  "ndcg": ndcg,
  "ndcg_xir_compat": ndcg_xir_compat,
  "mrr": mrr,
  "map": average_precision,
  "hit": hit,
}
# All names that they return; coverage is a property of all lists together.
NAMES = (*METRICS, "coverage")
