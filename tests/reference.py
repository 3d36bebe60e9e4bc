"""Slow NumPy twins of the numeric core: loops, float64, no TensorFlow.

Written from the formulas, to be compared with `xir_tfrs`; nothing here may
import it. Inefficient on purpose: one loop per sum of the equation.

Axes: `batch` rows (queries), `pool` columns (candidates that may be drawn).
"""

import numpy as np


def _log_sum_exp(values) -> float:
  values = np.asarray(values, np.float64)
  top = max(values, default=-np.inf)
  if top == -np.inf:
    return -np.inf
  return top + np.log(sum(np.exp(v - top) for v in values))


# Proposals ------------------------------------------------------------------


def popularity(candidate_counts) -> np.ndarray:
  r"""pop_j = count_j / \sum count; a candidate never trained on takes 1."""
  counts = [max(int(c), 1) for c in candidate_counts]
  return np.array([c / sum(counts) for c in counts])


# Masks ----------------------------------------------------------------------


def accidental_hits(positive_ids, pool_ids) -> np.ndarray:
  return np.array(
    [[int(j) == int(p) for j in pool_ids] for p in positive_ids], bool
  ).reshape(len(positive_ids), len(pool_ids))


def own_columns(batch, pool, offset=0) -> np.ndarray:
  return np.array(
    [[j == i + offset for j in range(pool)] for i in range(batch)], bool
  ).reshape(batch, pool)


# Resampling -----------------------------------------------------------------


def log_importance_weights(logits, log_q, keep=None) -> np.ndarray:
  r"""log w_ij = (s_ij - \log q_j) - \log \sum_k e^{s_ik - \log q_k}, kept k."""
  logits = np.asarray(logits, np.float64)
  log_q = np.asarray(log_q, np.float64)
  batch, pool = logits.shape
  if keep is None:
    keep = np.ones([batch, pool], bool)
  result = np.full([batch, pool], -np.inf)
  for i in range(batch):
    kept = [j for j in range(pool) if keep[i][j]]
    total = _log_sum_exp([logits[i, j] - log_q[j] for j in kept])
    for j in kept:
      if total > -np.inf:
        result[i, j] = logits[i, j] - log_q[j] - total
  return result


def expected_counts(log_weights, num_resampled) -> np.ndarray:
  """n_ij = m softmax_j(log w_ij); zeros where nothing can be drawn."""
  log_weights = np.asarray(log_weights, np.float64)
  result = np.zeros(log_weights.shape)
  for i, row in enumerate(log_weights):
    total = _log_sum_exp(row)
    for j, value in enumerate(row):
      if value > -np.inf:
        result[i, j] = num_resampled * np.exp(value - total)
  return result


def effective_sample_size(log_weights) -> np.ndarray:
  r"""1 / \sum_j w_j^2."""
  weights = expected_counts(log_weights, 1)
  return np.array([1.0 / sum(w * w for w in row) for row in weights])


# Losses ---------------------------------------------------------------------


def resampled_softmax(logits, positive_logits, counts) -> np.ndarray:
  r"""log(e^{s_p} + \sum_j n_j e^{s_j}) - s_p."""
  losses = []
  for row, positive, n in zip(logits, positive_logits, counts, strict=True):
    terms = [float(positive)]
    terms += [np.log(k) + float(s) for s, k in zip(row, n, strict=True) if k]
    losses.append(_log_sum_exp(terms) - float(positive))
  return np.array(losses)


def resampled_softmax_gradient(logits, positive_logits, counts):
  """d loss_i / d s_ij = n_j e^{s_j} / Z, and d loss_i / d s_p = e^{s_p}/Z - 1.

  Z is the partition e^{s_p} + sum_j n_j e^{s_j}.
  """
  logits = np.asarray(logits, np.float64)
  by_logit = np.zeros(logits.shape)
  by_positive = np.zeros(len(logits))
  losses = resampled_softmax(logits, positive_logits, counts)
  for i, loss in enumerate(losses):
    log_z = loss + float(positive_logits[i])
    by_positive[i] = np.exp(float(positive_logits[i]) - log_z) - 1
    for j, n in enumerate(counts[i]):
      if n:
        by_logit[i, j] = n * np.exp(logits[i, j] - log_z)
  return by_logit, by_positive


def sampled_softmax(logits, positive_logits, keep=None) -> np.ndarray:
  r"""-log( e^{s_p} / (e^{s_p} + \sum_{kept j} e^{s_j}) )."""
  logits = np.asarray(logits, np.float64)
  if keep is None:
    keep = np.ones(logits.shape, bool)
  return resampled_softmax(
    logits, positive_logits, np.asarray(keep, np.float64)
  )


# Tasks ----------------------------------------------------------------------


def logits(query, candidates, temperature=1.0, normalize=False) -> np.ndarray:
  """s_ij = <u_i, v_j> / temperature, of unit vectors when `normalize`."""
  query = np.asarray(query, np.float64)
  candidates = np.asarray(candidates, np.float64)
  if normalize:
    query = np.array([u / np.sqrt(sum(u * u)) for u in query])
    candidates = np.array([v / np.sqrt(sum(v * v)) for v in candidates])
  return np.array(
    [[sum(u * v) / temperature for v in candidates] for u in query]
  ).reshape(len(query), len(candidates))


def weighted_mean(losses, sample_weight=None) -> float:
  """Weighted sum over the rows divided by the number of rows."""
  if sample_weight is None:
    sample_weight = np.ones(len(losses))
  total = sum(
    float(w) * loss for w, loss in zip(sample_weight, losses, strict=True)
  )
  return total / len(losses)


def sampled_softmax_task(
  query,
  candidates,
  ids,
  candidate_counts=None,
  *,
  temperature=1.0,
  normalize=False,
  remove_accidental_hits=False,
  positive_in_pool=False,
  sample_weight=None,
) -> float:
  """SSL (no counts) and SSL-Pop; row i's positive is column i."""
  batch = len(query)
  corrected = logits(query, candidates, temperature, normalize)
  if candidate_counts is not None:
    pop = popularity(candidate_counts)
    for j, candidate in enumerate(ids):
      corrected[:, j] -= np.log(pop[candidate])
  keep = np.ones([batch, batch], bool)
  for i in range(batch):
    for j in range(batch):
      if i == j and not positive_in_pool:
        keep[i, j] = False
      if remove_accidental_hits and ids[i] == ids[j]:
        keep[i, j] = False
  positives = [corrected[i, i] for i in range(batch)]
  return weighted_mean(
    sampled_softmax(corrected, positives, keep), sample_weight
  )


def _pool_part(
  positive_logits,
  pool_logits,
  positive_ids,
  pool_ids,
  candidate_counts,
  num_resampled,
  remove_accidental_hits,
  own,
  draws,
):
  """Losses and expected draws of one pool; `own` columns may not be drawn."""
  keep = ~own
  if remove_accidental_hits:
    keep = keep & ~accidental_hits(positive_ids, pool_ids)
  if draws is None:
    log_q = np.log(popularity(candidate_counts))[np.asarray(pool_ids, int)]
    draws = expected_counts(
      log_importance_weights(pool_logits, log_q, keep), num_resampled
    )
  return resampled_softmax(pool_logits, positive_logits, draws), draws


def bir_task(
  query,
  candidates,
  ids,
  candidate_counts,
  *,
  num_resampled=None,
  temperature=1.0,
  normalize=False,
  remove_accidental_hits=False,
  positive_in_pool=True,
  sample_weight=None,
  draws=None,
):
  """BIR with expected counts: (loss, draws [batch, batch]).

  Given `draws` are used as they are: the form whose derivative is the
  gradient of BIR, since none flows through the weights.
  """
  batch = len(query)
  s = logits(query, candidates, temperature, normalize)
  losses, draws = _pool_part(
    [s[i, i] for i in range(batch)],
    s,
    ids,
    ids,
    candidate_counts,
    batch if num_resampled is None else num_resampled,
    remove_accidental_hits,
    own_columns(batch, batch) & (not positive_in_pool),
    draws,
  )
  return weighted_mean(losses, sample_weight), draws


def xir_task(
  query,
  candidates,
  ids,
  cache_candidates,
  cache_ids,
  candidate_counts,
  *,
  cache_weight=0.5,
  num_resampled=None,
  temperature=1.0,
  normalize=False,
  remove_accidental_hits=False,
  positive_in_pool=True,
  sample_weight=None,
  draws=None,
  cache_draws=None,
):
  """XIR with expected counts: (loss, batch draws, cache draws)."""
  if num_resampled is None:
    num_resampled = len(cache_ids) // 2
  batch_part, draws = bir_task(
    query,
    candidates,
    ids,
    candidate_counts,
    num_resampled=num_resampled,
    temperature=temperature,
    normalize=normalize,
    remove_accidental_hits=remove_accidental_hits,
    positive_in_pool=positive_in_pool,
    sample_weight=sample_weight,
    draws=draws,
  )
  s = logits(query, candidates, temperature, normalize)
  losses, cache_draws = _pool_part(
    [s[i, i] for i in range(len(query))],
    logits(query, cache_candidates, temperature, normalize),
    ids,
    cache_ids,
    candidate_counts,
    num_resampled,
    remove_accidental_hits,
    np.zeros([len(query), len(cache_ids)], bool),
    cache_draws,
  )
  cache_part = weighted_mean(losses, sample_weight)
  loss = cache_weight * cache_part + (1 - cache_weight) * batch_part
  return loss, draws, cache_draws


# Cache ----------------------------------------------------------------------


def occurrence_counts(num_candidates, pools) -> np.ndarray:
  """How often each candidate was drawn; `pools`: (ids, draws [batch, pool])."""
  result = np.zeros(num_candidates)
  for ids, draws in pools:
    for row in draws:
      for candidate, n in zip(ids, row, strict=True):
        result[candidate] += n
  return result


def next_cache_probabilities(candidate_ids, weights) -> dict[int, float]:
  """Probability of each distinct id in one draw of the next cache."""
  by_id = {
    int(i): float(w) for i, w in zip(candidate_ids, weights, strict=True)
  }
  total = sum(by_id.values())
  if total == 0:
    return {i: 1 / len(by_id) for i in by_id}
  return {i: w / total for i, w in by_id.items()}


# Derivatives ----------------------------------------------------------------


def numeric_gradient(function, x, step=1e-6) -> np.ndarray:
  """Central differences of a scalar function, one coordinate at a time."""
  x = np.array(x, np.float64)
  gradient = np.zeros(x.shape)
  for index in np.ndindex(*x.shape):
    value = x[index]
    x[index] = value + step
    above = function(x)
    x[index] = value - step
    below = function(x)
    x[index] = value
    gradient[index] = (above - below) / (2 * step)
  return gradient
