"""Other recommenders on the same rows: popularity, neighbours, EASE, ALS, BPR.

A peer is a function from training rows and settings to a ranker for the
project's evaluation (`pipelines.evaluation.rankings.Ranker`), with a search
space for its settings. The defaults are those of its paper or library.

Axes: m (queries of a chunk), n (candidates).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import implicit.als
import implicit.bpr
import implicit.nearest_neighbours as neighbours
import implicit.recommender_base
import numpy as np
import threadpoolctl
from scipy import sparse
from scipy.linalg import lapack

import xir_tfrs as xir
from pipelines.evaluation import rankings, split
from xir_tfrs.data import directory
from xir_tfrs.programs import settings

Span = settings.Span
# A fit that failed because of its settings.
Diverged = implicit.recommender_base.ModelFitError

# Number of scores in memory at a time.
_SCORES_PER_CHUNK = 1 << 25
# Size above which one thread inverts a matrix: with two, SciPy's OpenBLAS
# crashed the process at 30,000, but not at 24,000.
_ONE_THREAD = 24_000
# Number of rows of a matrix that are copied at a time.
_ROWS_PER_COPY = 1024
_WEIGHTINGS = {
  "none": lambda rows: rows,
  "cosine": neighbours.normalize,
  "tfidf": lambda rows: neighbours.normalize(neighbours.tfidf_weight(rows)),
  "bm25": lambda rows: neighbours.bm25_weight(rows, 100, 0.8),
}


class LeftOut(Exception):
  """The data is too large for a peer; the message gives the reason."""


@dataclasses.dataclass(frozen=True)
class ItemBased:
  """Ranks by the sum of weights from the query's training candidates.

  Attributes:
    rows: [num_queries, n] training pairs, with value 1.
    weights: [n, n] weights from the row's candidate to the column's.
  """

  rows: sparse.csr_matrix
  weights: np.ndarray | sparse.csr_matrix

  def scores(self, query_ids: np.ndarray) -> np.ndarray:
    """Returns [m, n] float32 scores."""
    found = self.rows[query_ids] @ self.weights
    if sparse.issparse(found):
      found = found.toarray()
    return np.asarray(found, np.float32)

  def rank(
    self, data: split.EvaluationData, ks: Sequence[int]
  ) -> xir.metrics.Ranking:
    """See `rankings.Ranker`."""
    assert data.rows is None and data.past is None
    size = max(_SCORES_PER_CHUNK // len(data.counts), 1)
    parts = (
      slice(low, low + size) for low in range(0, len(data.query_ids), size)
    )
    chunks = ((some, self.scores(data.query_ids[some])) for some in parts)
    return rankings.of_scores(chunks, data, ks)


@dataclasses.dataclass(frozen=True)
class Factors:
  """Ranks by inner product.

  Attributes:
    queries: [num_queries, dim].
    candidates: [n, dim].
  """

  queries: np.ndarray
  candidates: np.ndarray

  def rank(
    self, data: split.EvaluationData, ks: Sequence[int]
  ) -> xir.metrics.Ranking:
    """See `rankings.Ranker`."""
    assert data.rows is None
    ours = rankings.Vectors(
      self.queries[data.query_ids],
      self.candidates,
      by_model=data.warm,
      # Candidates without training rows cannot be found.
      indexed=data.counts > 0,
    )
    return ours.rank(data, ks)


class Popular:
  """Ranks by training rows, the same for every query."""

  def rank(
    self, data: split.EvaluationData, ks: Sequence[int]
  ) -> xir.metrics.Ranking:
    """See `rankings.Ranker`."""
    return rankings.of_popularity(data, data.counts > 0).rank(data, ks)


@dataclasses.dataclass(frozen=True)
class Peer:
  """A peer and its search space.

  Attributes:
    fit: Takes [num_queries, n] training pairs, the size of embeddings and the
      settings; returns a ranker.
    tried: Values to try for each setting.
    defaults: Values of the first trial.
  """

  fit: Callable[[sparse.csr_matrix, int, Mapping[str, Any]], rankings.Ranker]
  tried: Mapping[str, Span | tuple[Any, ...]]
  defaults: Mapping[str, Any]


def training_pairs(data: directory.DataDir) -> sparse.csr_matrix:
  """[num_queries, n] float32, 1 for each pair of the training rows."""
  rows = data.rows("train")
  kept = rows.get("sample_weight", np.ones(len(rows["query_id"]))) > 0
  place = rows["query_id"][kept], rows["candidate_id"][kept]
  shape = data.schema.num_queries, data.schema.num_candidates
  pairs = sparse.csr_matrix(
    (np.ones(len(place[0]), np.float32), place), shape=shape
  )
  pairs.data[:] = 1  # Repeats were summed.
  return pairs


def _popularity(pairs, dim, chosen) -> Popular:
  del pairs, dim, chosen
  return Popular()


def _item_neighbours(pairs, dim, chosen) -> ItemBased:
  """Ranks by similarity to the query's candidates."""
  del dim
  # Candidates are the documents here; `implicit` expects rows of queries.
  weighted = _WEIGHTINGS[chosen["weighting"]](pairs.T).T.tocsr()
  similar = neighbours.all_pairs_knn(
    weighted.astype(np.float64), int(chosen["neighbours"]), show_progress=False
  )
  return ItemBased(pairs, similar.tocsr().astype(np.float32))


def _ease(pairs, dim, chosen) -> ItemBased:
  """EASE (Steck, WWW 2019): B = I - P / diag(P), P = (X'X + l2 I)^-1."""
  del dim
  size = pairs.shape[1]
  # X'X, dense and sparse; the inverse is computed in its place.
  needed, free = 3 * 4 * size**2, _free_bytes()
  if needed > free:
    raise LeftOut(
      f"its matrices of {size:,} x {size:,} candidates take "
      f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
    )
  gram = (pairs.T @ pairs).toarray(order="C")
  gram[np.diag_indices(size)] += np.float32(chosen["l2"])
  weights = _inverse(gram)
  weights /= -np.diag(weights).copy()
  weights[np.diag_indices(size)] = 0
  return ItemBased(pairs, weights)


def _inverse(gram: np.ndarray) -> np.ndarray:
  """Inverts a symmetric positive definite [n, n] float32 matrix in its place.

  By Cholesky's factors, which takes a fourth of the time of `np.linalg.inv`.
  """
  # LAPACK's columns are NumPy's rows: its lower triangle is the upper one here.
  # Of another layout it would invert a copy.
  assert gram.flags.c_contiguous and gram.dtype == np.float32
  threads = 1 if len(gram) > _ONE_THREAD else None  # None: as many as before.
  with threadpoolctl.threadpool_limits(threads, "blas"):
    factor, failed = lapack.spotrf(gram.T, lower=1, overwrite_a=1, clean=0)
    if not failed:
      _, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
  if failed:
    raise ValueError(f"X'X + l2 I is not positive definite (LAPACK: {failed})")
  for low in range(0, len(gram), _ROWS_PER_COPY):
    rows = slice(low, low + _ROWS_PER_COPY)
    gram[rows, :low] = gram[:low, rows].T
    block = np.triu(gram[rows, rows])
    gram[rows, rows] = block + np.triu(block, 1).T
  return gram


def _als(pairs, dim, chosen) -> Factors:
  """Hu, Koren and Volinsky, ICDM 2008, by `implicit`."""
  return _of_implicit(
    implicit.als.AlternatingLeastSquares, pairs, factors=dim, **chosen
  )


def _bpr(pairs, dim, chosen) -> Factors:
  """Rendle et al., UAI 2009, by `implicit`."""
  return _of_implicit(
    implicit.bpr.BayesianPersonalizedRanking, pairs, factors=dim, **chosen
  )


def _of_implicit(kind, pairs, **arguments) -> Factors:
  # Its threads would be slowed down by those of the linear algebra library.
  with threadpoolctl.threadpool_limits(1, "blas"):
    model = kind(random_state=0, **arguments)
    model.fit(pairs, show_progress=False)
  return Factors(model.user_factors, model.item_factors)


def _free_bytes() -> int:
  for line in pathlib.Path("/proc/meminfo").read_text("utf-8").splitlines():
    # Includes caches that the system can release.
    if line.startswith("MemAvailable:"):
      return 1024 * int(line.split()[1])
  return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


PEERS: dict[str, Peer] = {
  "popularity": Peer(_popularity, {}, {}),
  "item neighbours": Peer(
    _item_neighbours,
    {"neighbours": Span(5, 500, log=True), "weighting": tuple(_WEIGHTINGS)},
    {"neighbours": 20.0, "weighting": "cosine"},
  ),
  "EASE": Peer(_ease, {"l2": Span(1, 10_000, log=True)}, {"l2": 500.0}),
  "ALS": Peer(
    _als,
    {
      "regularization": Span(1e-3, 10, log=True),
      "alpha": Span(0.5, 50, log=True),
      "iterations": (5, 15, 30),
    },
    {"regularization": 0.01, "alpha": 1.0, "iterations": 15},
  ),
  "BPR": Peer(
    _bpr,
    {
      "learning_rate": Span(0.003, 0.3, log=True),
      "regularization": Span(1e-4, 0.1, log=True),
      "iterations": (50, 100, 200, 400),
    },
    {"learning_rate": 0.01, "regularization": 0.01, "iterations": 100},
  ),
}
