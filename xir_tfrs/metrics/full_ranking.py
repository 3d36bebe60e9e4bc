"""Exact evaluation of a retriever over the whole catalogue.

Every candidate is ranked for every query; nothing is sampled. The cost is
little more than that of the matrix product:

1. scores = queries x candidates, for a chunk of queries at a time;
2. seen candidates, then the relevant ones, are masked with -inf, and the
   `max_k` best of the others are found;
3. a relevant candidate's rank is 1 + the number of those others whose score
   is at least its own + the number of relevant ones before it.

Step 3 breaks ties: a relevant candidate ranks after all irrelevant ones with
the same score, so a collapsed model gains nothing.

Axes: chunk (queries of a chunk), max_k (the largest cut-off).
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.metrics import at_k, inputs, ranker
from xir_tfrs.ops import top_k


@dataclasses.dataclass(frozen=True)
class Ranking:
  """The result of ranking candidates for queries.

  Attributes:
    hits: [num_queries, max_k] bool, whether the candidate at that rank, best
      first, is relevant; see `at_k`.
    num_relevant: [num_queries] number of relevant candidates of each query.
    shown: [number of ks, num_candidates] int64, number of lists of that length
      that contain a candidate.
    ks: The cut-offs.

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
    """[number of ks, num_candidates] bool, whether any list contains it."""
    return self.shown > 0

  def concentration(self) -> dict[str, float]:
    """Returns the `gini` coefficient of `shown` for each k, as `gini@k`."""
    return {
      f"gini@{k}": gini(row) for row, k in zip(self.shown, self.ks, strict=True)
    }

  def means(self) -> dict[str, float]:
    """Returns every metric at every cut-off, as `full_ranking` does."""
    results = self.means_of(slice(None))
    for row, k in zip(self.covered, self.ks, strict=True):
      results[f"coverage@{k}"] = float(row.mean())
    return results

  def means_of(self, rows: np.ndarray | slice) -> dict[str, float]:
    """Returns the means over some queries, without coverage."""
    return {name: float(values.mean()) for name, values in self._by_query(rows)}

  def by_query(self) -> dict[str, np.ndarray]:
    """Returns every metric except coverage, by query.

    Returns:
      name -> [num_queries] float64; NaN for queries with nothing relevant.
    """
    results = {}
    for name, values in self._by_query(slice(None)):
      results[name] = np.full(len(self.hits), np.nan)
      results[name][self.num_relevant > 0] = values
    return results

  def _by_query(
    self, rows: np.ndarray | slice
  ) -> Iterator[tuple[str, np.ndarray]]:
    """Metrics of the given queries that have something relevant."""
    hits, num_relevant = self.hits[rows], self.num_relevant[rows]
    evaluated = num_relevant > 0
    hits, num_relevant = hits[evaluated], num_relevant[evaluated]
    for name, function in at_k.METRICS.items():
      for k in self.ks:
        yield f"{name}@{k}", function(hits, num_relevant, min(k, hits.shape[1]))


def gini(counts: np.ndarray) -> float:
  """Gini coefficient: 0 if all counts are equal, near 1 if one has all.

    2 sum_i i x_i / (n sum_i x_i) - (n + 1) / n, with x_1 <= ... <= x_n

  Args:
    counts: [n] non-negative counts; if all are zero, they count as equal.
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
    query_embeddings: See `rank_all`, as for the other arguments.
    candidate_embeddings: See `rank_all`.
    relevant: See `rank_all`.
    seen: See `rank_all`.
    ks: See `rank_all`.
    query_chunk_size: See `rank_all`.

  Returns:
    Every metric of `METRICS` at every cut-off, such as `recall@10`, as the mean
    over the queries with something relevant; and `coverage@k`, the share of the
    catalogue in the top k of at least one query, including queries with nothing
    relevant. Among equal scores, relevant candidates come last, and otherwise
    the lower id comes first.

  Raises:
    ValueError: As for `rank_all`.

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
  """Computes the metrics of `full_ranking` for each query.

  Use it to compare two models query by query.

  Args:
    query_embeddings: See `rank_all`, as for the other arguments.
    candidate_embeddings: See `rank_all`.
    relevant: See `rank_all`.
    seen: See `rank_all`.
    ks: See `rank_all`.
    query_chunk_size: See `rank_all`.

  Returns:
    The metrics of `full_ranking` except coverage, each [num_queries] float64;
    NaN for queries with nothing relevant.

  Raises:
    ValueError: As for `rank_all`.

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
  report: Callable[[int], None] | None = None,
) -> Ranking:
  """Ranks every candidate for every query by inner product.

  On a GPU, TensorFlow first rounds the embeddings to TensorFloat-32, unless
  `tf.config.experimental.enable_tensor_float_32_execution(False)` disables it.

  Args:
    query_embeddings: [num_queries, dim] float tensor or array; or
      [num_queries, interests, dim], where the score of a candidate is the
      highest over the interests.
    candidate_embeddings: [num_candidates, dim] float tensor or array; row i is
      the candidate with dense id i.
    relevant: [num_queries, None] integer ragged tensor of the distinct dense
      ids that each query should find.
    seen: [num_queries, None] integer ragged tensor of the dense ids that must
      not be recommended, such as the query's training interactions. A
      candidate that is both seen and relevant counts as a miss.
    indexed: [num_candidates] bool, the candidates that can be found; None for
      all. If the others are relevant, they count as misses.
    ks: The cut-offs; they may exceed the size of the catalogue.
    query_chunk_size: Queries scored at a time; memory grows with
      `query_chunk_size * num_candidates`. None chooses it from the sizes.
    report: Called with the number of queries ranked so far.

  Returns:
    A `Ranking`, from which means and metrics by query are computed.

  Raises:
    ValueError: An argument is malformed, ids are out of range or repeated,
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
  relevant, seen = inputs.check_lists(
    relevant, seen, num_queries, num_candidates
  )
  if query_chunk_size is None:
    interests = queries.shape[1] if queries.ndim == 3 else 1
    query_chunk_size = top_k.queries_per_chunk(
      num_candidates * interests, queries.dtype.itemsize
    )
  checks.require_sizes(query_chunk_size=query_chunk_size)
  found = inputs.check_indexed(indexed, num_candidates)

  rankable = candidates[found]
  # A list cannot be longer than the number of candidates that can be found.
  hits, shown = _rank(
    queries,
    rankable,
    relevant.renumbered(found, num_candidates),
    seen.renumbered(found, num_candidates),
    [min(k, len(rankable)) for k in ks],
    query_chunk_size,
    report,
  )
  shown_of_all = np.zeros([len(ks), num_candidates], dtype=np.int64)
  shown_of_all[:, found] = shown
  # Metrics refer to the size of the whole catalogue.
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
  report: Callable[[int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
  """Ranks all candidates, `chunk` queries at a time.

  Returns:
    hits: [num_queries, max_k] bool, as `at_k` takes it.
    shown: [number of cuts, num_candidates] int64, number of lists of that
      length that contain a candidate.
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
    # A masked candidate has num_before = max_k: nothing scores below -inf.
    hit = ranks < max_k
    hits[start + rows[hit], ranks[hit]] = True
    other_ranks = _other_ranks(rows, num_before, others.shape)
    for row, cut in zip(shown, cuts, strict=True):
      relevant_ones = ids[hit & (ranks < cut)]
      rest = others[(others >= 0) & (other_ranks < cut)]
      for placed in (relevant_ones, rest):
        row += np.bincount(placed, minlength=len(row))
    if report is not None:
      report(stop)
  return hits, shown


def _relevant_ranks(
  rows: np.ndarray, ids: np.ndarray, scores: np.ndarray, num_before: np.ndarray
) -> np.ndarray:
  """[n] 0-based rank of each relevant candidate."""
  order = np.lexsort((ids, -scores, rows))
  ranks = np.empty_like(rows)
  # `rows` ascends, so a row starts at the same position in `order` and `rows`.
  ranks[order] = np.arange(len(rows)) - np.searchsorted(rows, rows)
  return ranks + num_before


def _other_ranks(
  rows: np.ndarray, num_before: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
  """[chunk, k] 0-based rank of the others after merging in the relevant."""
  chunk, k = shape
  inside = num_before < k
  before = np.zeros([chunk, k], dtype=np.int64)
  # A relevant candidate with n others before it shifts others n, n + 1, ...
  np.add.at(before, (rows[inside], num_before[inside]), 1)
  return before.cumsum(axis=1) + np.arange(k)
