"""Approximate search with ScaNN; the only module that imports it.

The ops have faults that the code below works around (seen with ScaNN 1.4.2):
too few results are padded with row 0 and score NaN, and the width may be less
than k; an empty batch and a NaN query are errors; a NaN row in the corpus ends
the process; fewer than 16 candidates, or fewer than leaves, cannot be built.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import types

import numpy as np
import tensorflow as tf

from xir_tfrs.indexes import base, brute_force

# Asymmetric hashing trains 16 centres per block, from as many candidates.
_SMALLEST_CORPUS = 16


@dataclasses.dataclass(frozen=True)
class ScannSettings:
  """How a searcher is built; see ScaNN's builder for the names.

  Attributes:
    num_leaves: partitions of the tree; 1 means no tree.
    num_leaves_to_search: partitions scored for a query.
    dimensions_per_block: dimensions that share one hash code.
    anisotropic_quantization_threshold: weight on errors along the vector.
    num_reorder: candidates scored again, exactly, beyond those excluded.
    max_fetch: a query with more than this many answers and exclusions
      together is scored exactly.
  """

  num_leaves: int
  num_leaves_to_search: int
  dimensions_per_block: int
  anisotropic_quantization_threshold: float
  num_reorder: int
  max_fetch: int


class ScannIndex(base.RetrievalIndex):
  """Approximate top-k, with exclusions and padding as exact as brute force.

  Which candidates are found is approximate (measure it with
  `xir_tfrs.indexes.recall`); all else is not. ScaNN is asked for k answers
  plus as many as the longest list of exclusions of the batch, and the excluded
  ones are masked. A query that asks for more than `max_fetch` in all, or is
  left with fewer answers than the corpus has, is scored exactly instead, alone:
  so a list of thousands of exclusions costs time, never an answer.

  Builds are not deterministic: two indexes over the same vectors may disagree
  on a few answers.
  """

  def __init__(
    self,
    *,
    num_leaves: int | None = None,
    num_leaves_to_search: int | None = None,
    dimensions_per_block: int | None = None,
    anisotropic_quantization_threshold: float = 0.2,
    num_reorder: int = 1000,
    max_fetch: int | None = None,
    exact_below: int = 20_000,
    name: str | None = None,
  ):
    """Sets how `index` builds.

    Args:
      num_leaves: partitions of the tree, at most the corpus size; None for the
        square root of the corpus size from 100,000 candidates on, and no tree
        below.
      num_leaves_to_search: partitions scored for a query; None for a quarter.
      dimensions_per_block: dimensions that share one hash code; None for 2,
        ScaNN's advice, or 1 for vectors of at most 64 dimensions, where it
        finds far more of the exact top k.
      anisotropic_quantization_threshold: how much more errors along a vector
        weigh; 0.2 is ScaNN's advice.
      num_reorder: how many of the best are scored again, exactly. More finds
        more; also in answers beyond half of it.
      max_fetch: answers plus exclusions of one query up to which ScaNN is
        used; None for a twentieth of the corpus, at least 1,000.
      exact_below: corpora smaller than this use exact search.
      name: name of the module.

    Raises:
      ImportError: if ScaNN is missing or does not fit this TensorFlow.
      ValueError: if a number is out of range.
    """
    super().__init__(name=name)
    self._ops = load_ops()
    for argument, value in (
      ("num_leaves", num_leaves),
      ("num_leaves_to_search", num_leaves_to_search),
      ("dimensions_per_block", dimensions_per_block),
      ("num_reorder", num_reorder),
      ("max_fetch", max_fetch),
    ):
      if value is not None and value < 1:
        raise ValueError(
          f"`{argument}` must be positive. Received: `{argument}` = {value}."
        )
    self._num_leaves = num_leaves
    self._num_leaves_to_search = num_leaves_to_search
    self._dimensions_per_block = dimensions_per_block
    self._threshold = anisotropic_quantization_threshold
    self._num_reorder = num_reorder
    self._max_fetch = max_fetch
    self._exact_below = exact_below
    self._settings: ScannSettings | None = None
    self._searcher: tf.Module | None = None
    self._embeddings: tf.Variable | None = None

  @property
  def settings(self) -> ScannSettings | None:
    """How the searcher was built; None while search is exact."""
    return self._settings

  def _store(self, embeddings: np.ndarray) -> None:
    self._settings = self._choose_settings(*embeddings.shape)
    if self._settings is None:
      self._searcher = None
      self._embeddings = tf.Variable(
        embeddings, trainable=False, name="embeddings"
      )
      return
    # Always a new searcher: the state of an old one would be saved as well.
    self._searcher = _build(self._ops, embeddings, self._settings)
    # Reordering keeps the vectors as they are, so exact search shares them.
    self._embeddings = self._searcher.dataset

  def _choose_settings(self, n: int, dim: int) -> ScannSettings | None:
    """Those given, the others after ScaNN's docs/algorithms.md."""
    if n < max(self._exact_below, _SMALLEST_CORPUS):
      return None
    num_leaves = self._num_leaves or (math.isqrt(n) if n >= 100_000 else 1)
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
      dimensions_per_block=self._dimensions_per_block
      or (1 if dim <= 64 else 2),
      anisotropic_quantization_threshold=self._threshold,
      num_reorder=self._num_reorder,
      max_fetch=self._max_fetch or max(1000, n // 20),
    )

  def _top_rows(
    self, queries: tf.Tensor, k: tf.Tensor, excluded: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    if self._searcher is None:
      return brute_force.exact_top_rows(self._embeddings, queries, k, excluded)
    num_excluded = tf.math.count_nonzero(excluded >= 0, 1, dtype=tf.int32)
    fits = k + num_excluded <= self._settings.max_fetch
    extra = tf.reduce_max(tf.where(fits, num_excluded, 0))
    rows, scores = self._approximate(queries, k, tf.maximum(extra, 0))
    keep = ~tf.math.is_nan(scores) & ~_is_listed(rows, excluded)
    rows, scores = base.best_rows(rows, scores, keep, k)
    num_found = tf.math.count_nonzero(rows >= 0, 1, dtype=tf.int32)
    complete = num_found >= tf.minimum(k, self._size - num_excluded)
    redo = tf.where(~(fits & complete))[:, 0]
    exact = brute_force.exact_top_rows(
      self._embeddings,
      tf.gather(queries, redo),
      k,
      tf.gather(excluded, redo),
    )
    return (
      tf.tensor_scatter_nd_update(rows, redo[:, None], exact[0]),
      tf.tensor_scatter_nd_update(scores, redo[:, None], exact[1]),
    )

  def _approximate(
    self, queries: tf.Tensor, k: tf.Tensor, extra: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """ScaNN's own answers: rows and scores `[batch, <= k + extra]`."""
    batch = tf.shape(queries)[0]
    # The op fails on an empty batch: give it one query to throw away.
    missing = tf.cast(batch == 0, tf.int32)
    fetch = tf.minimum(k + extra, self._settings.max_fetch)
    reorder = tf.maximum(self._settings.num_reorder, 2 * k) + extra
    searcher = self._ops.searcher_from_module(self._searcher)
    rows, scores = searcher.search_batched(
      tf.pad(queries, [[0, missing], [0, 0]]),
      final_num_neighbors=fetch,
      pre_reorder_num_neighbors=tf.minimum(reorder, self._size),
    )
    rows = tf.cast(tf.ensure_shape(rows, [None, None]), tf.int64)
    return rows[:batch], tf.ensure_shape(scores, [None, None])[:batch]


def load_ops() -> types.ModuleType:
  """Registers ScaNN's ops with TensorFlow; a saved ScannIndex needs them.

  Returns:
    ScaNN's module of TensorFlow ops.

  Raises:
    ImportError: if ScaNN is missing or does not fit this TensorFlow.
  """
  try:
    from scann.scann_ops.py import scann_ops
  except Exception as error:  # Built for another TensorFlow: NotFoundError.
    raise ImportError(
      "ScaNN cannot be loaded. Install the release that fits with "
      "`pip install 'xir-tfrs[scann]'`, or use BruteForceIndex. TensorFlow "
      f"here is {tf.__version__}; importing scann raised "
      f"{type(error).__name__}: {error}"
    ) from error
  return scann_ops


def scann_version() -> str | None:
  """Version of the installed ScaNN; its own `__version__` is not kept."""
  try:
    return importlib.metadata.version("scann")
  except importlib.metadata.PackageNotFoundError:
    return None


def _build(
  ops: types.ModuleType, embeddings: np.ndarray, settings: ScannSettings
) -> tf.Module:
  n = len(embeddings)
  sample = min(n, 100_000)
  builder = ops.builder(embeddings, 10, "dot_product")
  if settings.num_leaves > 1:
    builder = builder.tree(
      settings.num_leaves,
      settings.num_leaves_to_search,
      training_sample_size=sample,
    )
  builder = builder.score_ah(
    settings.dimensions_per_block,
    settings.anisotropic_quantization_threshold,
    training_sample_size=sample,
  )
  builder = builder.reorder(min(n, settings.num_reorder))
  return builder.build().serialize_to_module()


def _is_listed(rows: tf.Tensor, excluded: tf.Tensor) -> tf.Tensor:
  """Which of `rows` `[batch, w]` are in sorted `excluded` `[batch, E]`."""
  # The largest integer ends every list, so each search lands on an entry.
  lists = tf.pad(excluded, [[0, 0], [0, 1]], constant_values=tf.int64.max)
  place = tf.searchsorted(lists, rows)
  return tf.gather(lists, place, batch_dims=1) == rows
