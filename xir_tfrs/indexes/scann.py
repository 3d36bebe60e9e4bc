"""Approximate search with ScaNN; the only module that imports it.

This module works around faults of the ops (seen with ScaNN 1.4.2): missing
results are padded with row 0 and score NaN, and the width may be less than k;
an empty batch and a NaN query are errors; a NaN row in the corpus crashes the
process; a corpus with fewer than 16 candidates, or fewer candidates than
leaves, cannot be built.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import pathlib
import tempfile
import time
import types
from typing import Any

import numpy as np
import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.indexes import base, exact_search
from xir_tfrs.ops import branches

# Asymmetric hashing trains 16 centres per block, from as many candidates.
_SMALLEST_CORPUS = 16

# Vectors from which ScaNN learns the codes and the leaves. With few vectors per
# leaf, the centres are poor: over a million vectors in clusters, 2,000 leaves
# need 140 searches for a recall of .99 after 50 vectors per leaf, and 40 after
# 100.
_SAMPLE, _SAMPLE_PER_LEAF = 100_000, 100
# Scales the centre of a leaf for inner products ("anisotropic vector
# quantization" of the partitions). The same recall needs a third to a tenth of
# the leaves, and a fifth fewer if all vectors have the same length.
_AVQ = 4.0
_NUM_REORDER = 1000
# Values that `tune` tries: shares of the leaves, and candidates to re-score.
_LEAF_SHARES = (
  *(0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1),
  *(0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0),
)
_REORDERS = (50, 100, 200, 300, 500, 1000, 2000, 4000, 8000)


@dataclasses.dataclass(frozen=True)
class ScannSettings:
  """Settings of a searcher; ScaNN's builder explains the names.

  Attributes:
    num_leaves: Partitions of the tree; 1 means no tree.
    num_leaves_to_search: Partitions scored for a query.
    dimensions_per_block: Dimensions that share one hash code.
    anisotropic_quantization_threshold: Weight of errors along the vector.
    num_reorder: Candidates to re-score exactly, beyond those excluded.
    max_fetch: Queries with more answers and exclusions than this are scored
      exactly.

  Examples:
    >>> index = xir.indexes.ScannIndex(exact_below=100, num_leaves=4)
    >>> vectors = np.random.default_rng(0).normal(size=[200, 4])
    >>> settings = index.index(range(200), vectors).settings
    >>> isinstance(settings, xir.indexes.ScannSettings), settings.num_leaves
    (True, 4)
  """

  num_leaves: int
  num_leaves_to_search: int
  dimensions_per_block: int
  anisotropic_quantization_threshold: float
  num_reorder: int
  max_fetch: int


@dataclasses.dataclass(frozen=True)
class TuningPoint:
  """A measurement of `ScannIndex.tune`.

  Attributes:
    num_leaves_to_search, num_reorder: The settings.
    recall: Share of the exact top k that they find.
    milliseconds: Median time of a single query, in ScaNN alone.

  Examples:
    >>> point = xir.indexes.TuningPoint(
    ...   num_leaves_to_search=20,
    ...   num_reorder=100,
    ...   recall=0.99,
    ...   milliseconds=0.4,
    ... )
    >>> point.recall
    0.99
  """

  num_leaves_to_search: int
  num_reorder: int
  recall: float
  milliseconds: float


class ScannIndex(base.RetrievalIndex):
  """Approximate top-k with ScaNN (Guo et al. 2020) and exact exclusions.

  Only the set of candidates that is found is approximate; measure it with
  `xir_tfrs.indexes.recall`. The index requests k answers from ScaNN, plus as
  many as the longest deny list of the batch, and masks the excluded ones. A
  query that needs more than `max_fetch` in total, or that is left with fewer
  answers than the corpus has, is scored exactly instead. So long deny lists
  cost time but never lose answers.

  Builds are not deterministic: two indexes over the same vectors may differ in
  a few answers.

  Examples:
    >>> vectors = np.random.default_rng(0).normal(size=[200, 4])
    >>> index = xir.indexes.ScannIndex(exact_below=100)
    >>> _ = index.index(range(200), vectors)
    >>> ids, scores = index.search(vectors[:2].astype("float32"), k=5)
    >>> ids.shape
    TensorShape([2, 5])
  """

  def __init__(
    self,
    *,
    num_leaves: int | None = None,
    num_leaves_to_search: int | None = None,
    dimensions_per_block: int = 2,
    anisotropic_quantization_threshold: float = 0.2,
    num_reorder: int | None = None,
    max_fetch: int | None = None,
    exact_below: int = 20_000,
    name: str | None = None,
  ):
    """Sets the settings of `index`.

    Args:
      num_leaves: Partitions of the tree, at most the corpus size; by default
        twice the square root of the corpus size from 100,000 candidates on, and
        no tree below.
      num_leaves_to_search: Partitions scored for a query; by default a quarter.
      dimensions_per_block: Dimensions that share one hash code. ScaNN
        recommends 2; 1 finds more before re-scoring, in twice the time.
      anisotropic_quantization_threshold: Weight of errors along a vector;
        ScaNN recommends 0.2.
      num_reorder: Number of best candidates to re-score exactly; by default
        1,000. More candidates increase the recall, also for large k.
      max_fetch: Maximum number of answers and exclusions of a query for which
        ScaNN is used; by default a twentieth of the corpus, at least 1,000.
      exact_below: Corpora smaller than this use exact search.
      name: Name of the module.

    Raises:
      ImportError: ScaNN is missing or does not match this TensorFlow.
      ValueError: A number is out of range.
    """
    super().__init__(name=name)
    load_ops()
    checks.require_sizes(
      num_leaves=num_leaves,
      num_leaves_to_search=num_leaves_to_search,
      dimensions_per_block=dimensions_per_block,
      num_reorder=num_reorder,
      max_fetch=max_fetch,
    )
    self._num_leaves = num_leaves
    self._num_leaves_to_search = num_leaves_to_search
    self._dimensions_per_block = dimensions_per_block
    self._threshold = anisotropic_quantization_threshold
    self._num_reorder = num_reorder
    self._max_fetch = max_fetch
    self._exact_below = exact_below
    self._settings: ScannSettings | None = None
    self._searcher: Any = None  # ScaNN's searcher, outside of TensorFlow.
    self._state: tf.Module | None = None  # The same for ops in a graph.

  @property
  def settings(self) -> ScannSettings | None:
    """Settings of the searcher; None if search is exact."""
    return self._settings

  def tune(
    self, queries: base.TensorLike, target_recall: float, k: int = 10
  ) -> list[TuningPoint]:
    """Chooses the cheapest settings that reach a target recall.

    Increases the number of leaves to search until the target is met, then
    decreases the number of candidates to re-score. Does not change settings
    that were given to the constructor. Trace functions that search after this
    call.

    Args:
      queries: `[batch, dim]` finite float32 tensor, batch > 0: vectors of the
        trained query tower. Measure `recall` later on other queries.
      target_recall: Share of the exact top k to find, in (0, 1]. If it cannot
        be reached, the best settings are used.
      k: Number of answers to compare.

    Returns:
      The measurements in order; empty if search is exact. `settings` has the
      chosen settings.

    Raises:
      ValueError: There is no corpus yet, or `queries` are of another shape.
    """
    self._require_corpus()
    if self._settings is None:
      return []
    queries = np.asarray(self._check_queries(queries))
    wanted = exact_search.top_rows(self.vectors, queries, tf.constant(k))[0]
    wanted = wanted.numpy()
    points = []

    def measure(leaves, reorder):
      points.append(self._measure(queries, wanted, leaves, reorder))
      return points[-1]

    for leaves, reorder in self._ladder():
      if measure(leaves, reorder).recall >= target_recall:
        break
    chosen = max(points, key=lambda point: point.recall)
    cheaper = [x for x in self._reorders() if x < chosen.num_reorder]
    while cheaper and chosen.recall >= target_recall:
      point = measure(chosen.num_leaves_to_search, cheaper.pop())
      if point.recall < target_recall:
        break
      chosen = point
    self._settings = dataclasses.replace(
      self._settings,
      num_leaves_to_search=chosen.num_leaves_to_search,
      num_reorder=chosen.num_reorder,
    )
    return points

  def save_searcher(self, folder: str | os.PathLike[str]) -> None:
    """Writes the files for searching in a process without TensorFlow.

    Args:
      folder: An empty directory for ScaNN's files in `searcher/`, or for
        `dataset.npy` if search is exact. Ids are not written, because ScaNN
        would pickle them.
    """
    self._require_corpus()
    folder = pathlib.Path(folder)
    if self._settings is None:
      np.save(folder / "dataset.npy", self.vectors.numpy())
      return
    (folder / "searcher").mkdir()
    self._searcher.serialize(os.fspath(folder / "searcher"), True)

  def _store(self, embeddings: np.ndarray) -> tf.Variable:
    self._settings = self._choose_settings(len(embeddings))
    if self._settings is None:
      self._searcher = self._state = None
      return tf.Variable(embeddings, trainable=False, name="vectors")
    # Always new objects: otherwise the state of an old searcher would be saved.
    self._searcher = _build(embeddings, self._settings)
    self._state = _state_of(self._searcher)
    # Reordering does not change the vectors, so exact search shares them.
    return self._state.dataset

  @property
  def _is_fast(self) -> bool:
    return self._settings is not None

  def _choose_settings(self, n: int) -> ScannSettings | None:
    """The given settings, and others according to ScaNN's algorithms.md."""
    if n < max(self._exact_below, _SMALLEST_CORPUS):
      return None
    num_leaves = self._num_leaves or (2 * math.isqrt(n) if n >= 100_000 else 1)
    if num_leaves > n:
      raise ValueError(
        "`num_leaves` must not exceed the corpus. Received: `num_leaves` = "
        f"{num_leaves} for {n} candidates."
      )
    return ScannSettings(
      num_leaves=num_leaves,
      num_leaves_to_search=min(
        num_leaves, self._num_leaves_to_search or math.ceil(num_leaves / 4)
      ),
      dimensions_per_block=self._dimensions_per_block,
      anisotropic_quantization_threshold=self._threshold,
      num_reorder=self._num_reorder or _NUM_REORDER,
      max_fetch=self._max_fetch or max(1000, n // 20),
    )

  def _ladder(self) -> list[tuple[int, int]]:
    """(num_leaves_to_search, num_reorder), from cheap to expensive."""
    settings = self._settings
    leaves = [settings.num_leaves_to_search]
    if self._num_leaves_to_search is None:
      leaves = sorted(
        {math.ceil(share * settings.num_leaves) for share in _LEAF_SHARES}
      )
    reorders = self._reorders()
    start = min(_NUM_REORDER, reorders[-1])
    return [(x, max(start, reorders[0])) for x in leaves] + [
      (leaves[-1], reorder) for reorder in reorders if reorder > start
    ]

  def _reorders(self) -> list[int]:
    if self._num_reorder is not None:
      return [self._num_reorder]
    return sorted({min(reorder, self.size) for reorder in _REORDERS})

  def _measure(
    self, queries: np.ndarray, wanted: np.ndarray, leaves: int, reorder: int
  ) -> TuningPoint:
    hits, seconds = 0, []
    for query, rows in zip(queries, wanted, strict=True):
      start = time.perf_counter()
      found, _ = self._searcher.search(query, len(rows), reorder, leaves)
      seconds.append(time.perf_counter() - start)
      hits += np.isin(rows[rows >= 0], found).sum()
    return TuningPoint(
      num_leaves_to_search=leaves,
      num_reorder=reorder,
      recall=float(hits / (wanted >= 0).sum()),
      milliseconds=1e3 * float(np.median(seconds)),
    )

  def _top_rows(
    self, queries: tf.Tensor, k: tf.Tensor, excluded: tf.Tensor | None = None
  ) -> tuple[tf.Tensor, tf.Tensor]:
    if self._settings is None:
      return exact_search.top_rows(self.vectors, queries, k, excluded)
    if excluded is not None:
      return self._best_of(queries, k, excluded)
    rows, scores = self._approximate(queries, k, 0)

    def with_checks():
      nothing = tf.fill([tf.shape(queries)[0], 0], base.NO_ROW)
      return self._best_of(queries, k, nothing)

    return branches.seldom(
      (tf.shape(rows)[1] < k) | tf.reduce_any(tf.math.is_nan(scores)),
      with_checks,
      lambda: (rows, scores),
    )

  def _best_of(
    self, queries: tf.Tensor, k: tf.Tensor, excluded: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """ScaNN's answers without the excluded ones, or else the exact ones."""
    num_excluded = tf.math.count_nonzero(excluded >= 0, 1, dtype=tf.int32)
    fits = k + num_excluded <= self._settings.max_fetch
    extra = tf.reduce_max(tf.where(fits, num_excluded, 0))
    rows, scores = self._approximate(queries, k, tf.maximum(extra, 0))
    keep = ~tf.math.is_nan(scores) & ~base.is_listed(rows, excluded)
    rows, scores = exact_search.best_rows(rows, scores, keep, k)
    num_found = tf.math.count_nonzero(rows >= 0, 1, dtype=tf.int32)
    complete = num_found >= tf.minimum(k, self.size - num_excluded)
    redo = tf.where(~(fits & complete))[:, 0]

    def with_exact():
      exact = exact_search.top_rows(
        self.vectors,
        tf.gather(queries, redo),
        k,
        tf.gather(excluded, redo),
      )
      return (
        tf.tensor_scatter_nd_update(rows, redo[:, None], exact[0]),
        tf.tensor_scatter_nd_update(scores, redo[:, None], exact[1]),
      )

    return branches.seldom(
      tf.size(redo) > 0, with_exact, lambda: (rows, scores)
    )

  def _approximate(
    self, queries: tf.Tensor, k: tf.Tensor, extra: int | tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """ScaNN's answers, best first: rows and scores `[batch, <= k + extra]`."""
    batch = tf.shape(queries)[0]
    reorder = tf.maximum(self._settings.num_reorder, 2 * k) + extra
    sizes = {
      "final_num_neighbors": tf.minimum(k + extra, self._settings.max_fetch),
      "pre_reorder_num_neighbors": tf.minimum(reorder, self.size),
      "leaves_to_search": self._settings.num_leaves_to_search,
    }
    searcher = load_ops().searcher_from_module(self._state)

    def single():
      rows, scores = searcher.search(queries[0], **sizes)
      return rows[None], scores[None]

    def batched():
      # The op fails on an empty batch, so it gets a dummy query.
      missing = tf.cast(batch == 0, tf.int32)
      padded = tf.pad(queries, [[0, missing], [0, 0]])
      rows, scores = searcher.search_batched(padded, **sizes)
      return rows[:batch], scores[:batch]

    # ScaNN takes longer for a batch of one query.
    rows, scores = tf.cond(batch == 1, single, batched)
    return (
      tf.cast(tf.ensure_shape(rows, [None, None]), tf.int64),
      tf.ensure_shape(scores, [None, None]),
    )


def load_ops() -> types.ModuleType:
  """Registers ScaNN's ops with TensorFlow; a saved ScannIndex needs them.

  Returns:
    ScaNN's module of TensorFlow ops.

  Raises:
    ImportError: ScaNN is missing or does not match this TensorFlow.

  Examples:
    >>> ops = xir.indexes.load_ops()  # ImportError without ScaNN.
  """
  try:
    from scann.scann_ops.py import scann_ops
  except Exception as error:  # Built for another TensorFlow: NotFoundError.
    raise ImportError(
      "ScaNN cannot be loaded. Install the matching release with "
      "`pip install 'xir-tfrs[scann]'`, or use BruteForceIndex. TensorFlow "
      f"here is {tf.__version__}; importing scann raised "
      f"{type(error).__name__}: {error}"
    ) from error
  return scann_ops


def scann_version() -> str | None:
  """Version of the installed ScaNN; its own `__version__` is not kept.

  Examples:
    >>> version = xir.indexes.scann_version()
    >>> version is None or version.startswith("1.")
    True
  """
  try:
    return importlib.metadata.version("scann")
  except importlib.metadata.PackageNotFoundError:
    return None


def _build(embeddings: np.ndarray, settings: ScannSettings) -> Any:
  from scann.scann_ops.py import scann_ops_pybind

  n = len(embeddings)
  sample = min(n, _SAMPLE)
  builder = scann_ops_pybind.builder(embeddings, 10, "dot_product")
  if settings.num_leaves > 1:
    builder = builder.tree(
      settings.num_leaves,
      settings.num_leaves_to_search,
      training_sample_size=min(
        n, max(_SAMPLE, _SAMPLE_PER_LEAF * settings.num_leaves)
      ),
      avq=_AVQ,
    )
  builder = builder.score_ah(
    settings.dimensions_per_block,
    settings.anisotropic_quantization_threshold,
    training_sample_size=sample,
  )
  return builder.reorder(min(n, settings.num_reorder)).build()


def _state_of(searcher: Any) -> tf.Module:
  """The state from which ScaNN's ops recreate the same searcher.

  Building with ScaNN's ops would train a second searcher with other answers.
  """
  with tempfile.TemporaryDirectory() as folder:
    searcher.serialize(folder, relative_path=True)
    path = pathlib.Path(folder)

    def text(name):
      file = path / f"{name}.pb"
      return tf.constant([file.read_bytes()] if file.exists() else b"")

    def numbers(name, dtype):
      file = path / f"{name}.npy"
      return np.load(file) if file.exists() else tf.zeros([], dtype)

    return load_ops().ScannState(
      [
        text("scann_config"),
        text("serialized_partitioner"),
        numbers("datapoint_to_token", tf.int32),
        text("ah_codebook"),
        numbers("hashed_dataset", tf.uint8),
        numbers("int8_dataset", tf.int8),
        numbers("int8_multipliers", tf.float32),
        numbers("dp_norms", tf.float32),
        numbers("dataset", tf.float32),
      ]
    )
