"""Exact evaluation of a retriever over the whole catalogue.

Every candidate is ranked for every query; nothing is sampled. The cost is
that of the matrix product and little more:

1. scores = queries x candidates, for a chunk of queries at a time;
2. seen candidates, then the relevant ones, are masked with -inf, and the
   `max_k` best of the others are found;
3. a relevant candidate's rank is 1 + the number of those others whose score
   is at least its own + the number of relevant ones before it.

Step 3 is what settles ties: a relevant candidate stands behind everything
that scores the same and is not relevant, so a collapsed model gains nothing.

Axes: chunk (queries of a chunk), max_k (the largest cut-off).
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs.metrics import at_k, inputs, ranker
from xir_tfrs.ops import top_k


@dataclasses.dataclass(frozen=True)
class Ranking:
  """Where a ranking has placed what each query should find.

  Attributes:
    hits: [num_queries, max_k] bool, whether the candidate at that rank, the
      best first, is relevant; see `at_k`.
    num_relevant: [num_queries] relevant candidates of each query.
    shown: [number of ks, num_candidates] int64, in how many of the lists of
      that length a candidate stands.
    ks: the cut-offs.

  Examples:
    >>> ranking = xir.metrics.Ranking(
    ...   hits=np.array([[False, True]]),
    ...   num_relevant=np.array([1]),
    ...   shown=np.array([[1, 1, 0, 0]]),
    ...   ks=(2,),
    ... )
    >>> ranking.means()["mrr@2"], ranking.means()["coverage@2"]
    (0.5, 0.5)
  """

  hits: np.ndarray
  num_relevant: np.ndarray
  shown: np.ndarray
  ks: tuple[int, ...]

  @property
  def covered(self) -> np.ndarray:
    """[number of ks, num_candidates] bool, whether any list holds it."""
    return self.shown > 0

  def concentration(self) -> dict[str, float]:
    """The `gini` of how often candidates are shown, as `gini@k`."""
    return {
      f"gini@{k}": gini(row) for row, k in zip(self.shown, self.ks, strict=True)
    }

  def means(self) -> dict[str, float]:
    """Every metric at every cut-off, as `full_ranking` returns them."""
    results = self.means_of(slice(None))
    for row, k in zip(self.covered, self.ks, strict=True):
      results[f"coverage@{k}"] = float(row.mean())
    return results

  def means_of(self, rows: np.ndarray | slice) -> dict[str, float]:
    """The means over some of the queries; coverage is of all and left out."""
    return {name: float(values.mean()) for name, values in self._by_query(rows)}

  def by_query(self) -> dict[str, np.ndarray]:
    """Every metric but coverage, [num_queries]; NaN with nothing relevant."""
    results = {}
    for name, values in self._by_query(slice(None)):
      results[name] = np.full(len(self.hits), np.nan)
      results[name][self.num_relevant > 0] = values
    return results

  def _by_query(
    self, rows: np.ndarray | slice
  ) -> Iterator[tuple[str, np.ndarray]]:
    """Metrics of those of the queries that have something relevant."""
    hits, num_relevant = self.hits[rows], self.num_relevant[rows]
    evaluated = num_relevant > 0
    hits, num_relevant = hits[evaluated], num_relevant[evaluated]
    for name, function in at_k.METRICS.items():
      for k in self.ks:
        yield f"{name}@{k}", function(hits, num_relevant, min(k, hits.shape[1]))


def gini(counts: np.ndarray) -> float:
  """Gini coefficient: 0 where all counts are equal, near 1 where one has all.

    2 sum_i i x_i / (n sum_i x_i) - (n + 1) / n, with x_1 <= ... <= x_n

  Args:
    counts: [n] not negative; all zero counts as equal.
  """
  total = counts.sum()
  if not total:
    return 0.0
  n = len(counts)
  ranks = np.arange(1, n + 1)
  ascending = np.sort(counts).astype(np.float64)
  return float(2 * (ranks @ ascending) / (n * total) - (n + 1) / n)


def full_ranking(
  query_embeddings: tf.Tensor | np.ndarray,
  candidate_embeddings: tf.Tensor | np.ndarray,
  *,
  relevant: tf.RaggedTensor,
  seen: tf.RaggedTensor | None = None,
  ks: Sequence[int] = (10, 20, 50),
  query_chunk_size: int | None = None,
) -> dict[str, float]:
  """Ranks every candidate for every query by inner product.

  Args:
    query_embeddings: see `rank_all`, as for the other arguments.
    candidate_embeddings: see there.
    relevant: see there.
    seen: see there.
    ks: see there.
    query_chunk_size: see there.

  Returns:
    Every metric of `METRICS` at every cut-off, such as `recall@10`: the mean
    over the queries that have something relevant. And `coverage@k`: the share
    of the catalogue that stands in the top k of at least one query, with or
    without something relevant. Among equal scores relevant candidates come
    last, then the lower id comes first.

  Raises:
    ValueError: as there.

  Examples:
    >>> queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> candidates = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    >>> found = xir.metrics.full_ranking(
    ...   queries,
    ...   candidates,
    ...   relevant=tf.ragged.constant([[1], [2]]),
    ...   ks=[1, 2],
    ... )
    >>> found["recall@1"], found["recall@2"]
    (0.5, 1.0)
  """
  return rank_all(
    query_embeddings,
    candidate_embeddings,
    relevant=relevant,
    seen=seen,
    ks=ks,
    query_chunk_size=query_chunk_size,
  ).means()


def full_ranking_by_query(
  query_embeddings: tf.Tensor | np.ndarray,
  candidate_embeddings: tf.Tensor | np.ndarray,
  *,
  relevant: tf.RaggedTensor,
  seen: tf.RaggedTensor | None = None,
  ks: Sequence[int] = (10, 20, 50),
  query_chunk_size: int | None = None,
) -> dict[str, np.ndarray]:
  """What `full_ranking` takes the means of: two models can be paired by query.

  Args:
    query_embeddings: see `rank_all`, as for the other arguments.
    candidate_embeddings: see there.
    relevant: see there.
    seen: see there.
    ks: see there.
    query_chunk_size: see there.

  Returns:
    The same metrics but coverage, each [num_queries] float64; NaN for queries
    that have nothing relevant.

  Raises:
    ValueError: as there.

  Examples:
    >>> queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> candidates = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    >>> found = xir.metrics.full_ranking_by_query(
    ...   queries, candidates, relevant=tf.ragged.constant([[1], [2]]), ks=[1]
    ... )
    >>> found["hit@1"]
    array([0., 1.])
  """
  return rank_all(
    query_embeddings,
    candidate_embeddings,
    relevant=relevant,
    seen=seen,
    ks=ks,
    query_chunk_size=query_chunk_size,
  ).by_query()


def rank_all(
  query_embeddings: tf.Tensor | np.ndarray,
  candidate_embeddings: tf.Tensor | np.ndarray,
  *,
  relevant: tf.RaggedTensor,
  seen: tf.RaggedTensor | None = None,
  indexed: np.ndarray | None = None,
  ks: Sequence[int] = (10, 20, 50),
  query_chunk_size: int | None = None,
) -> Ranking:
  """Ranks every candidate for every query by inner product.

  On a GPU, TensorFlow rounds the embeddings to TensorFloat-32 first, unless
  `tf.config.experimental.enable_tensor_float_32_execution(False)` says not to.

  Args:
    query_embeddings: [num_queries, dim] float tensor or array; or
      [num_queries, interests, dim], where a candidate's score is the highest
      of any.
    candidate_embeddings: [num_candidates, dim] float tensor or array; row i is
      the candidate with dense id i.
    relevant: [num_queries, None] integer ragged tensor of the dense ids that
      each query should find, none of them twice.
    seen: [num_queries, None] integer ragged tensor of the dense ids that must
      not be recommended, such as the query's training interactions. A
      candidate that is both seen and relevant cannot be found: it counts as a
      miss and stays in the number of relevant ones.
    indexed: [num_candidates] bool, which candidates can be found at all; None:
      all of them. The others count as misses where they are relevant.
    ks: the cut-offs. One beyond the size of the catalogue is allowed.
    query_chunk_size: queries scored at a time; memory grows with
      `query_chunk_size * num_candidates`. None chooses it from the sizes.

  Returns:
    What means and metrics by query are taken from.

  Raises:
    ValueError: if an argument is malformed, ids are out of range or repeated,
      embeddings hold NaN or infinity, or no query has anything relevant.

  Examples:
    >>> queries = np.array([[1.0, 0.0]])
    >>> candidates = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    >>> ranking = xir.metrics.rank_all(
    ...   queries,
    ...   candidates,
    ...   relevant=tf.ragged.constant([[1]]),
    ...   seen=tf.ragged.constant([[0]]),
    ...   ks=[2],
    ... )
    >>> ranking.hits
    array([[ True, False]])
  """
  ks = inputs.check_ks(ks)
  queries, candidates = inputs.check_embeddings(
    query_embeddings, candidate_embeddings
  )
  num_queries, num_candidates = len(queries), len(candidates)
  relevant = inputs.check_ids("relevant", relevant, num_queries, num_candidates)
  inputs.check_unique("relevant", relevant, num_candidates)
  if len(relevant.values) == 0:
    raise ValueError(
      f"`relevant` is empty for each of the {num_queries} queries: there is "
      "nothing to evaluate."
    )
  if seen is None:
    seen = inputs.Ragged.empty(num_queries)
  else:
    seen = inputs.check_ids("seen", seen, num_queries, num_candidates)
  if query_chunk_size is None:
    interests = queries.shape[1] if queries.ndim == 3 else 1
    query_chunk_size = top_k.queries_per_chunk(
      num_candidates * interests, queries.dtype.itemsize
    )
  elif query_chunk_size < 1:
    raise ValueError(
      "`query_chunk_size` must be positive. Received: `query_chunk_size` = "
      f"{query_chunk_size}."
    )
  found = inputs.check_indexed(indexed, num_candidates)

  rankable = candidates[found]
  # A list longer than what can be found ends with it.
  hits, shown = _rank(
    queries,
    rankable,
    relevant.renumbered(found, num_candidates),
    seen.renumbered(found, num_candidates),
    [min(k, len(rankable)) for k in ks],
    query_chunk_size,
  )
  shown_of_all = np.zeros([len(ks), num_candidates], dtype=np.int64)
  shown_of_all[:, found] = shown
  # Metrics go by the size of the catalogue.
  missing = min(max(ks), num_candidates) - hits.shape[1]
  hits = np.pad(hits, [(0, 0), (0, missing)])
  return Ranking(hits, relevant.lengths, shown_of_all, ks)


def _rank(
  queries: np.ndarray,
  candidates: np.ndarray,
  relevant: inputs.Ragged,
  seen: inputs.Ragged,
  cuts: Sequence[int],
  chunk: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Ranks everything, `chunk` queries at a time.

  Returns:
    hits: [num_queries, max_k] bool, as `at_k` takes it.
    shown: [number of cuts, num_candidates] int64, in how many of the lists of
      that length a candidate stands.
  """
  num_queries, max_k = len(queries), max(cuts)
  hits = np.zeros([num_queries, max_k], dtype=bool)
  shown = np.zeros([len(cuts), len(candidates)], dtype=np.int64)
  rank_chunk = ranker.make_ranker(candidates, max_k)
  for start in range(0, num_queries, chunk):
    stop = min(start + chunk, num_queries)
    rows, ids = relevant.chunk(start, stop)
    others, scores, num_before = rank_chunk(
      queries[start:stop], rows, ids, *seen.chunk(start, stop)
    )
    ranks = _relevant_ranks(rows, ids, scores, num_before)
    # A masked one has num_before = max_k, as nothing scores below -inf.
    hit = ranks < max_k
    hits[start + rows[hit], ranks[hit]] = True
    other_ranks = _other_ranks(rows, num_before, others.shape)
    for row, cut in zip(shown, cuts, strict=True):
      relevant_ones = ids[hit & (ranks < cut)]
      rest = others[(others >= 0) & (other_ranks < cut)]
      for placed in (relevant_ones, rest):
        row += np.bincount(placed, minlength=len(row))
  return hits, shown


def _relevant_ranks(
  rows: np.ndarray, ids: np.ndarray, scores: np.ndarray, num_before: np.ndarray
) -> np.ndarray:
  """[n] rank from 0 of each relevant candidate: others and peers before it."""
  order = np.lexsort((ids, -scores, rows))
  ranks = np.empty_like(rows)
  # `rows` ascends, so the first place of a row in `order` is that in `rows`.
  ranks[order] = np.arange(len(rows)) - np.searchsorted(rows, rows)
  return ranks + num_before


def _other_ranks(
  rows: np.ndarray, num_before: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
  """[chunk, k] rank from 0 of the others, once the relevant are merged in."""
  chunk, k = shape
  inside = num_before < k
  before = np.zeros([chunk, k], dtype=np.int64)
  # A relevant candidate with n others before it pushes others n, n + 1, ...
  np.add.at(before, (rows[inside], num_before[inside]), 1)
  return before.cumsum(axis=1) + np.arange(k)
