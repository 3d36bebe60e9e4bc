"""Slow NumPy twins of the numeric core, in loops and float64.

Written from the formulas, for comparison with `xir_tfrs`; this module must not
import it. Inefficient on purpose: one loop per sum of the equation.

Axes: `batch` rows (queries), `pool` columns (candidates that may be drawn).
"""

import math
import unicodedata

import numpy as np


def _log_sum_exp(values) -> float:
  values = np.asarray(values, np.float64)
  top = max(values, default=-np.inf)
  if top == -np.inf:
    return -np.inf
  return top + np.log(sum(np.exp(v - top) for v in values))


# Proposals ------------------------------------------------------------------


def popularity(candidate_counts) -> np.ndarray:
  r"""pop_j = count_j / \sum count; a count of 0 counts as 1."""
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
  r"""log w_ij = (s_ij - \log q_j) - \log \sum_{kept k} e^{s_ik - \log q_k}."""
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


# Forms of the loss ----------------------------------------------------------
# (loss, weight) of a row. `columns`: [(s_j, log a_j)] of the columns in the
# loss; `positive`: s_p; `correction`: log q_p if the positive is corrected,
# else 0; `log_q`: log q_p; `num_terms`: n; `pool`: [(s_j, 1 / (n q_j))] of all
# columns that could be drawn. If `weight` is given, it is used, because no
# gradient flows through it.


def _partition(row, with_positive) -> float:
  total = sum(math.exp(s + a) for s, a in row["columns"])
  if with_positive:
    total += math.exp(row["positive"] - row["correction"])
  return total


def cross_entropy_form(row):
  t_p = row["positive"] - row["correction"]
  return math.log(_partition(row, True)) - t_p, None


def decoupled_form(row):
  t_p = row["positive"] - row["correction"]
  return math.log(_partition(row, False)) - t_p, None


def generalized_cross_entropy_form(row, power, positive_in_partition):
  mean = _partition(row, positive_in_partition) / row["num_terms"]
  p = math.exp(row["positive"]) / mean
  return (1 - p**power) / power, None


def logq_corrected_form(row, weight=None):
  """Of `columns` with log a_j = -log Q_j."""
  others = 1 - math.exp(row["log_q"])
  total = others * _partition(row, False)
  mean = total / len(row["columns"])
  if weight is None:
    weight = mean / (math.exp(row["positive"]) + mean)
  return -weight * (row["positive"] - math.log(total)), weight


def bsl_form(row, temperature_ratio, negative_weight, positive_in_partition):
  log_z = math.log(_partition(row, positive_in_partition))
  t_p = row["positive"] - row["correction"]
  return negative_weight * log_z - temperature_ratio * t_p, None


def psl_form(row, activation, tau_star, positive_in_partition):
  sigma = {
    "tanh": lambda d: math.tanh(d) + 1,
    "atan": lambda d: max(math.atan(d) + 1, 0.0),
    "relu": lambda d: max(d + 1, 0.0),
  }[activation]
  total = sum(
    math.exp(a) * sigma(tau_star * (s - row["positive"])) ** (1 / tau_star)
    for s, a in row["columns"]
  )
  if positive_in_partition:
    total += math.exp(-row["correction"])
  return math.log(total) + row["correction"], None


def kth_best(pool, k) -> float:
  """Of [(score, candidates it stands for)], best first, where K is reached."""
  reached = 0.0
  for score, number in sorted(pool, reverse=True):
    reached += number
    if reached >= k - 1e-4:
      return score
  return -math.inf


def sl_at_k_form(
  row, k, weight_temperature, positive_in_partition, weight=None
):
  log_z = math.log(_partition(row, positive_in_partition))
  if weight is None:
    beta = kth_best(row["pool"], k)
    weight = 1 / (1 + math.exp((beta - row["positive"]) / weight_temperature))
  return weight * (log_z - row["positive"] + row["correction"]), weight


FORMS = {
  "cross_entropy": cross_entropy_form,
  "decoupled": decoupled_form,
  "generalized_cross_entropy": generalized_cross_entropy_form,
  "logq_corrected": logq_corrected_form,
  "bsl": bsl_form,
  "psl": psl_form,
  "sl_at_k": sl_at_k_form,
}


# Tasks ----------------------------------------------------------------------


def logits(query, candidates, temperature=1.0, normalize=False) -> np.ndarray:
  """s_ij = <u_i, v_j> / temperature, with unit vectors if `normalize`."""
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


def resampled_task(
  query,
  candidates,
  ids,
  pool,
  pool_ids,
  log_q,
  num_resampled,
  own,
  *,
  temperature=1.0,
  normalize=False,
  remove_accidental_hits=False,
  sample_weight=None,
  draws=None,
):
  """Softmax against a resample of a pool: (loss, expected draws).

  Row i's positive is candidate i; its `own` columns cannot be drawn. If `draws`
  are given, they are used: the derivative of this form is the gradient of BIR
  and XIR, because no gradient flows through the weights.
  """
  positive_logits = np.diag(logits(query, candidates, temperature, normalize))
  pool_logits = logits(query, pool, temperature, normalize)
  keep = ~own
  if remove_accidental_hits:
    keep = keep & ~accidental_hits(ids, pool_ids)
  if draws is None:
    draws = expected_counts(
      log_importance_weights(pool_logits, log_q, keep), num_resampled
    )
  losses = resampled_softmax(pool_logits, positive_logits, draws)
  return weighted_mean(losses, sample_weight), draws


def bir_task(
  query,
  candidates,
  ids,
  candidate_counts,
  *,
  num_resampled=None,
  positive_in_pool=True,
  **shared,
):
  """BIR with expected counts: (loss, draws [batch, batch])."""
  batch = len(query)
  return resampled_task(
    query,
    candidates,
    ids,
    candidates,
    ids,
    np.log(popularity(candidate_counts))[np.asarray(ids, int)],
    batch if num_resampled is None else num_resampled,
    own_columns(batch, batch) & (not positive_in_pool),
    **shared,
  )


def xir_task(
  query,
  candidates,
  ids,
  cache_candidates,
  cache_ids,
  candidate_counts,
  *,
  cache_weight=0.2,
  num_resampled=None,
  positive_in_pool=True,
  draws=None,
  cache_draws=None,
  **shared,
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
    positive_in_pool=positive_in_pool,
    draws=draws,
    **shared,
  )
  cache_part, cache_draws = resampled_task(
    query,
    candidates,
    ids,
    cache_candidates,
    cache_ids,
    np.log(popularity(candidate_counts))[np.asarray(cache_ids, int)],
    num_resampled,
    np.zeros([len(query), len(cache_ids)], bool),
    draws=cache_draws,
    **shared,
  )
  loss = cache_weight * cache_part + (1 - cache_weight) * batch_part
  return loss, draws, cache_draws


def xir_joint_task(
  query,
  candidates,
  ids,
  cache_candidates,
  cache_ids,
  candidate_counts,
  cache_share,
  *,
  num_resampled,
  **shared,
):
  """XIR with one pool and expected counts: (loss, draws [batch, pool]).

  `cache_share` is the probability that a candidate is in the cache.
  """
  pool_ids = np.concatenate([ids, cache_ids])
  with np.errstate(divide="ignore"):
    log_q = log_mixture(
      np.log(popularity(candidate_counts))[pool_ids],
      len(ids),
      np.log(np.asarray(cache_share, float))[pool_ids],
      len(cache_ids),
    )
  return resampled_task(
    query,
    candidates,
    ids,
    np.concatenate([candidates, cache_candidates]),
    pool_ids,
    log_q,
    num_resampled,
    np.zeros([len(query), len(pool_ids)], bool),
    **shared,
  )


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


def entry_steps(caches) -> list[int]:
  """Step since which each id of the last cache has been in all caches.

  `caches` are those of steps 0, 1, ...
  """
  result = []
  for candidate in caches[-1]:
    step = len(caches) - 1
    while step > 0 and candidate in caches[step - 1]:
      step -= 1
    result.append(step)
  return result


# Streaming frequencies ------------------------------------------------------


def hash_cell(key, coefficients, num_buckets) -> int:
  """Cell of one key in one table, in exact arithmetic."""
  prime = 2147483647
  bits = int(key) % 2**64
  parts = bits % 2**21, bits // 2**21 % 2**21, bits // 2**42
  a_0, a_1, a_2, b_3, b_2, b_1, b_0 = (int(c) for c in coefficients)
  x = (a_0 * parts[0] + a_1 * parts[1] + a_2 * parts[2]) % prime
  return (b_3 * x**3 + b_2 * x**2 + b_1 * x + b_0) % prime % num_buckets


def frequency_tables(
  batches,
  coefficients,
  num_buckets,
  *,
  learning_rate,
  initial_gap=None,
  count_appearances=False,
):
  """Algorithm 3 of Yi et al. over a stream: (B, A), each [tables][cells].

  `batches` are lists of int64 keys, step 1 first. A cell learns once per step,
  for any number of keys; if appearances count, c times, each 1/c of the gap.
  Without an initial gap, a cell holds the running mean of its gaps while that
  adapts faster than the learning rate.
  """
  gaps, last_seen = [], []
  for hashes in coefficients:
    b = [0.0 if initial_gap is None else float(initial_gap)] * num_buckets
    a = [0] * num_buckets
    hits = [0] * num_buckets
    for step, keys in enumerate(batches, start=1):
      in_batch = [hash_cell(key, hashes, num_buckets) for key in keys]
      for cell in set(in_batch):
        c = in_batch.count(cell) if count_appearances else 1
        gap = (step - a[cell]) / c
        followed = b[cell]
        for _ in range(c):
          followed = (1 - learning_rate) * followed + learning_rate * gap
        hits[cell] += c
        mean = ((hits[cell] - c) * b[cell] + c * gap) / hits[cell]
        rate = 1 - (1 - learning_rate) ** c
        if initial_gap is None and c / hits[cell] > rate:
          followed = mean
        b[cell] = followed
        a[cell] = step
    gaps.append(b)
    last_seen.append(a)
  return gaps, last_seen


# Estimators -----------------------------------------------------------------


def full_softmax_gradient(query, candidates, positive, sharpness=1.0):
  r"""\sum_j P_j v_j - v_p with P_j = e^{k s_j} / \sum_i e^{k s_i}; s = q v."""
  query = np.asarray(query, np.float64)
  candidates = np.asarray(candidates, np.float64)
  scores = [sharpness * float(query @ v) for v in candidates]
  log_z = _log_sum_exp(scores)
  gradient = -candidates[positive]
  for score, v in zip(scores, candidates, strict=True):
    gradient = gradient + np.exp(score - log_z) * v
  return gradient


def gradient_error(samples, exact) -> dict[str, float]:
  """Sums squares one by one; see `metrics.divergence.gradient_error`."""
  repetitions, rows, dim = np.shape(samples)
  scale = error = noise = squared = 0.0
  for i in range(rows):
    for d in range(dim):
      values = [float(samples[r][i][d]) for r in range(repetitions)]
      mean = sum(values) / repetitions
      variance = sum((x - mean) ** 2 for x in values) / (repetitions - 1)
      scale += float(exact[i][d]) ** 2
      error += (mean - float(exact[i][d])) ** 2
      squared += mean**2
      noise += variance / repetitions
  return {
    "bias": max((error - noise) / scale, 0.0) ** 0.5,
    "deviation": (noise * repetitions / scale) ** 0.5,
    "length": max((squared - noise) / scale, 0.0) ** 0.5,
  }


def kl_divergence(weights, log_full) -> float:
  r"""\sum_j P_j \log (P_j / Q_j) of one row, with P normalized."""
  total = sum(float(w) for w in weights)
  result = 0.0
  for w, log_q in zip(weights, log_full, strict=True):
    if w > 0:
      result += w / total * (np.log(w / total) - float(log_q))
  return result


# Pools beyond the batch ------------------------------------------------------


def log_mixture(log_q, num_rows, log_q_others, num_others) -> np.ndarray:
  r"""\log( B/(B+B') q_j + B'/(B+B') q'_j )."""
  total = num_rows + num_others
  return np.array(
    [
      np.log(
        num_rows / total * np.exp(float(x))
        + num_others / total * np.exp(float(y))
      )
      for x, y in zip(log_q, log_q_others, strict=True)
    ]
  )


def logq_corrected_softmax(
  logits, positive_logits, log_q, positive_log_q, keep, confidence=None
):
  r"""(losses, P): -(1 - P) \log( e^{s_p} / \sum_j e^{s_j} / Q'_j ).

  Q'_j = Q_j / (1 - Q_p), and P = e^{s_p} / (e^{s_p} + mean_j e^{s_j} / Q'_j),
  over the kept j. If `confidence` is given, it is used as P: the derivative of
  this form is the gradient, because no gradient flows through P.
  """
  losses, confidences = [], []
  for i, positive in enumerate(positive_logits):
    kept = [j for j in range(len(log_q)) if keep[i][j]]
    if not kept:
      losses.append(0.0)
      confidences.append(1.0)
      continue
    others = 1 - np.exp(float(positive_log_q[i]))
    log_sum = _log_sum_exp(
      [float(logits[i][j]) - log_q[j] + np.log(others) for j in kept]
    )
    log_mean = log_sum - np.log(len(kept))
    p = np.exp(positive - _log_sum_exp([positive, log_mean]))
    if confidence is not None:
      p = confidence[i]
    losses.append(-(1 - p) * (positive - log_sum))
    confidences.append(p)
  return np.array(losses), np.array(confidences)


def pool_task(
  query,
  candidates,
  ids,
  others,
  other_ids,
  log_q,
  *,
  loss="cross_entropy",
  correct_positive=True,
  temperature=1.0,
  normalize=False,
  remove_accidental_hits=True,
  positive_in_pool=False,
  sample_weight=None,
  confidence=None,
):
  """(loss, P) of a batch with itself and `others` as pool, by columns.

  `log_q` has the batch's candidates first, then the others.
  """
  batch = len(query)
  pool_ids = [*ids, *other_ids]
  s = np.concatenate(
    [
      logits(query, candidates, temperature, normalize),
      logits(query, others, temperature, normalize),
    ],
    axis=1,
  )
  positives = [s[i, i] for i in range(batch)]
  keep = np.ones(s.shape, bool)
  for i in range(batch):
    for j, j_id in enumerate(pool_ids):
      if i == j and (not positive_in_pool or loss == "logq_corrected"):
        keep[i, j] = False
      if int(ids[i]) == int(j_id) and (
        remove_accidental_hits or loss == "logq_corrected"
      ):
        keep[i, j] = False
  if loss == "logq_corrected":
    losses, confidence = logq_corrected_softmax(
      s, positives, log_q, log_q[:batch], keep, confidence
    )
  else:
    if correct_positive:
      positives = [positives[i] - log_q[i] for i in range(batch)]
    losses = sampled_softmax(s - np.asarray(log_q), positives, keep)
  return weighted_mean(losses, sample_weight), confidence


def mns_task(
  query,
  candidates,
  ids,
  uniform_candidates,
  uniform_ids,
  candidate_counts,
  *,
  logq_positive="none",
  **options,
):
  """(loss, P) of MNS for given uniform candidates."""
  pop = np.log(popularity(candidate_counts))
  log_q = log_mixture(
    [pop[i] for i in [*ids, *uniform_ids]],
    len(ids),
    [-np.log(len(candidate_counts))] * (len(ids) + len(uniform_ids)),
    len(uniform_ids),
  )
  return pool_task(
    query,
    candidates,
    ids,
    uniform_candidates,
    uniform_ids,
    log_q,
    correct_positive=logq_positive == "mixture",
    **options,
  )


def cbns_task(query, candidates, ids, bank, candidate_counts, **options):
  """(loss, P) of CBNS; `bank` holds (embedding, id, log_q) tuples."""
  pop = np.log(popularity(candidate_counts))
  log_q = [pop[i] for i in ids] + [entry[2] for entry in bank]
  others = np.array([entry[0] for entry in bank]).reshape(
    len(bank), np.shape(query)[1]
  )
  return pool_task(
    query,
    candidates,
    ids,
    others,
    [entry[1] for entry in bank],
    log_q,
    **options,
  )


def memory_bank(bank_size, batches) -> list:
  """Rows of the batches that are in the bank, oldest first."""
  queue = []
  for batch in batches:
    for row in batch:
      queue.append(row)
      if len(queue) > bank_size:
        queue.pop(0)
  return queue


def full_softmax_task(
  query,
  catalogue,
  ids,
  *,
  temperature=1.0,
  normalize=False,
  sample_weight=None,
  known=None,
) -> float:
  r"""-\log( e^{s_p} / \sum_j e^{s_j} ), j over all rows of `catalogue`.

  Without the ids `known[i]` of row i, but for its positive.
  """
  s = logits(query, catalogue, temperature, normalize)
  losses = []
  for i, (row, positive) in enumerate(zip(s, ids, strict=True)):
    left_out = set() if known is None else set(known[i]) - {int(positive)}
    counted = [x for j, x in enumerate(row) if j not in left_out]
    losses.append(_log_sum_exp(counted) - row[positive])
  return weighted_mean(losses, sample_weight)


# CoRR -----------------------------------------------------------------------


def midx_probabilities(query, codebooks, codes, weights=None) -> np.ndarray:
  """Q(i | q) = w_i e^{q c(i)} / sum over the catalogue, one query."""
  query = [float(x) for x in query]
  half = len(codebooks[0][0])
  query = query + [0.0] * (2 * half - len(query))
  logs = []
  for i, (first, second) in enumerate(codes):
    reproduced = [*codebooks[0][first], *codebooks[1][second]]
    weight = 1.0 if weights is None else float(weights[i])
    logs.append(
      np.log(weight)
      + sum(a * float(b) for a, b in zip(query, reproduced, strict=True))
    )
  total = _log_sum_exp(logs)
  return np.array([np.exp(x - total) for x in logs])


def lloyd(points, codewords, max_iterations):
  """k-means by loops: (codewords, codes)."""
  points = np.asarray(points, np.float64)
  codewords = [np.array(c, np.float64) for c in codewords]

  def nearest():
    return [
      min(
        range(len(codewords)), key=lambda k: (sum((x - codewords[k]) ** 2), k)
      )
      for x in points
    ]

  codes = nearest()
  for _ in range(max_iterations):
    for k in range(len(codewords)):
      members = [x for x, code in zip(points, codes, strict=True) if code == k]
      if members:
        codewords[k] = sum(members) / len(members)
    before, codes = codes, nearest()
    if codes == before:
      break
  return np.array(codewords), codes


def corr_softmax(scores, positive_scores, log_q, positive_log_q, keep=None):
  """Softmax loss of the positive and the sample, with logits minus log Q."""
  return sampled_softmax(
    np.asarray(scores, np.float64) - log_q,
    np.asarray(positive_scores, np.float64) - positive_log_q,
    keep,
  )


def corr_kl(ranker_scores, retriever_scores, log_q, keep=None) -> np.ndarray:
  """KL(P_ra || P_re) over the kept sample of each row."""
  batch, n = np.shape(log_q)
  result = np.zeros(batch)
  for i in range(batch):
    kept = [j for j in range(n) if keep is None or keep[i][j]]
    logs = [
      [float(s[i][j]) - float(log_q[i][j]) for j in kept]
      for s in (ranker_scores, retriever_scores)
    ]
    totals = [_log_sum_exp(row) for row in logs]
    for ranker, retriever in zip(*logs, strict=True):
      log_ra, log_re = ranker - totals[0], retriever - totals[1]
      result[i] += np.exp(log_ra) * (log_ra - log_re)
  return result


def corr_task(
  retriever,
  positive_retriever,
  ranker,
  positive_ranker,
  log_q,
  positive_log_q,
  *,
  kl_weight=1.0,
  keep=None,
  sample_weight=None,
) -> float:
  """The loss of CoRR, from both models' scores of the sample."""
  losses = (
    corr_softmax(ranker, positive_ranker, log_q, positive_log_q, keep)
    + corr_softmax(retriever, positive_retriever, log_q, positive_log_q, keep)
    + kl_weight * corr_kl(ranker, retriever, log_q, keep)
  )
  return weighted_mean(losses, sample_weight)


def factorisation_machine(fields) -> float:
  """Sum of the inner products of all pairs of fields."""
  return sum(
    sum(a * b for a, b in zip(fields[i], fields[j], strict=True))
    for i in range(len(fields))
    for j in range(i + 1, len(fields))
  )


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


def known_positives(known_ids, positive_ids, pool_ids):
  """[batch, pool], whether a column is another known positive of the row."""
  known = known_ids.to_list() if hasattr(known_ids, "to_list") else known_ids
  return np.array(
    [
      [int(c) in row and int(c) != int(own) for c in np.asarray(pool_ids)]
      for row, own in zip(known, np.asarray(positive_ids), strict=True)
    ],
    bool,
  ).reshape(len(known), len(pool_ids))


# Histories ------------------------------------------------------------------


def newest(history, length, num_ids) -> tuple[list, int]:
  """The window of one history, and its number of events."""
  known = [event for event in history if 0 <= event < num_ids][-length:]
  return known + [-1] * (length - len(known)), len(known)


def age_bucket(event, request, num_buckets) -> int:
  """Class of an event's age at a request."""
  bucket, edge = 0, math.exp(0.301)
  while edge <= max(request - event, 1) and bucket < num_buckets - 1:
    bucket, edge = bucket + 1, edge * math.exp(0.301)
  return bucket


def aged_mean(vectors, log_weights, column) -> np.ndarray:
  """Mean of columns 0 ... column, weighted by exp(log weight of their age)."""
  weights = [math.exp(log_weights[column - j]) for j in range(column + 1)]
  total = sum(w * np.asarray(v) for w, v in zip(weights, vectors, strict=False))
  return total / sum(weights)


def local_activation(events, candidate, score) -> np.ndarray:
  """DIN's sum of events, weighted by their scores with the candidate."""
  total = np.zeros(len(candidate))
  for event in np.asarray(events, np.float64).reshape(-1, len(candidate)):
    total += score(event, np.asarray(candidate, np.float64)) * event
  return total


def routed_interests(
  events, initial_logits, num_rounds, log_weights=None
) -> np.ndarray:
  """MIND's interests of one history; logits are by age, 0 for the newest."""
  events = np.asarray(events, np.float64)
  interests = len(initial_logits[0])
  logits = [
    list(initial_logits[len(events) - 1 - j]) for j in range(len(events))
  ]
  if log_weights is None:
    log_weights = np.zeros(len(events))
  weights = [math.exp(w) for w in log_weights[: len(events)]][::-1]
  for _ in range(num_rounds):
    capsules = []
    for k in range(interests):
      total = np.zeros(events.shape[1])
      for event, row, weight in zip(events, logits, weights, strict=True):
        total += weight * math.exp(row[k] - _log_sum_exp(row)) * event
      length = np.linalg.norm(total)
      capsules.append(length**2 / (1 + length**2) * total / max(length, 1e-9))
    for event, row in zip(events, logits, strict=True):
      for k in range(interests):
        row[k] += float(np.dot(event, capsules[k]))
  return np.array(capsules)


def label_aware_attention(interests, label, power) -> np.ndarray:
  """MIND's query of a training row; the best interest without a power."""
  scores = [float(np.dot(interest, label)) for interest in interests]
  if power is None:
    return np.asarray(interests)[scores.index(max(scores))]
  powers = [score**power for score in scores]
  total = _log_sum_exp(powers)
  return sum(
    math.exp(power_ - total) * np.asarray(interest)
    for power_, interest in zip(powers, interests, strict=True)
  )


def attention(query, keys, values) -> np.ndarray:
  """Scaled dot-product attention of one query to some columns."""
  scores = [float(np.dot(query, key)) / len(query) ** 0.5 for key in keys]
  exponentials = [math.exp(score - max(scores)) for score in scores]
  total = sum(exponentials)
  return sum(
    e / total * np.asarray(value)
    for e, value in zip(exponentials, values, strict=True)
  )


def fold_in(history, vectors, ridge, power) -> np.ndarray:
  """The unit vector of a history, rows of `vectors`, the newest last.

  The limit of weighted least squares with an intercept b: the target of
  q . v + b is 0 for all items, with weight 1, and 1 for those of the history,
  with a tiny weight that falls with their age.
  """
  vectors = np.asarray(vectors, np.float64)
  spread = (vectors - vectors.mean(axis=0)).var(axis=0).sum() * len(vectors)
  dim, tiny = vectors.shape[1], 1e-6
  rows = [np.append(v, 1.0) for v in vectors]
  wanted = [0.0] * len(vectors)
  for age, item in enumerate(reversed(history), start=1):
    root = (tiny * age**-power) ** 0.5
    rows.append(root * np.append(vectors[item], 1.0))
    wanted.append(root)
  penalty = (ridge * spread / dim) ** 0.5
  rows += list(penalty * np.eye(dim, dim + 1))
  wanted += [0.0] * dim
  fitted = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
  return fitted[:-1] / np.linalg.norm(fitted[:-1])


def words_and_pairs(text):
  """Words of letters, marks and digits, then pairs of neighbours."""
  spaced = ""
  for character in text.lower():
    if character in "'’":
      continue
    name = unicodedata.name(character, "")
    kind = unicodedata.category(character)[0]
    if name.startswith(("CJK UNIFIED", "HIRAGANA", "KATAKANA")):
      spaced += f" {character} "
    else:
      spaced += character if kind in "LMN" else " "
  words = spaced.split()
  return words + [
    f"{a} {b}" for a, b in zip(words[:-1], words[1:], strict=True)
  ]
