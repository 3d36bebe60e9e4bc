"""What every index shares: ids, exclusions and padding; subclasses score.

Axes: batch (queries), n (candidates of the corpus), dim (of the vectors),
k (answers asked for), E (width of the exclusions).

Inside this package a candidate is its row in `[0, n)`, and -1 is no candidate;
ids are translated once on the way in and once on the way out.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

TensorLike = tf.Tensor | np.ndarray | Sequence

# Inner products of larger numbers may overflow to infinity or NaN, which a
# ScaNN searcher answers by ending the process.
_LARGEST = 1e15

# Typed: in a graph `tf.where` does not widen a Python -1 to int64.
NO_ROW = np.int64(-1)


class RetrievalIndex(tf.Module, metaclass=abc.ABCMeta):
  """Top-k candidates by inner product, with exact exclusions.

  A `tf.Module`: put it into a module of your own and its state goes into the
  SavedModel. `search` works eagerly, under `tf.function`, and in a signature
  with dynamic batch, k and width of the exclusions; eagerly each call costs
  tens of milliseconds of Python.

  `index` makes new variables each time, so that an old corpus is freed and not
  saved again. A `tf.function` traced before holds the old ones: trace again.
  """

  def __init__(self, name: str | None = None):
    super().__init__(name=name)
    self._ids: tf.Variable | None = None
    self._table: tf.lookup.experimental.MutableHashTable | None = None
    self._size = 0
    self._dim = 0

  @property
  def size(self) -> int:
    """Number of candidates; 0 before `index`."""
    return self._size

  @property
  def dim(self) -> int:
    """Dimension of the vectors; 0 before `index`."""
    return self._dim

  def index(self, ids: TensorLike, embeddings: TensorLike) -> RetrievalIndex:
    """Replaces the corpus.

    Args:
      ids: `[n]` unique strings or integers. The empty string and -1 are
        reserved for padding.
      embeddings: `[n, dim]` float32 tensor of numbers up to 1e15 in size; row
        i is the vector of `ids[i]`.

    Returns:
      This index.

    Raises:
      ValueError: if shapes do not match, an id is repeated or reserved, or a
        vector has a NaN, infinite or larger entry.
    """
    ids = tf.convert_to_tensor(ids)
    embeddings = np.asarray(embeddings, dtype=np.float32)
    _check_corpus(ids, embeddings)
    self._store(embeddings)
    self._size, self._dim = embeddings.shape
    with tf.device("cpu:0"):  # Strings and hash tables have no GPU kernels.
      self._ids = tf.Variable(ids, trainable=False, name="ids")
      keys = _table_keys(ids)
      self._table = tf.lookup.experimental.MutableHashTable(
        keys.dtype, tf.int64, default_value=NO_ROW
      )
      self._table.insert(keys, tf.range(self._size, dtype=tf.int64))
    return self

  # No Python control flow here depends on a tensor; to look for some would take
  # seconds in every trace.
  @tf.autograph.experimental.do_not_convert
  def search(
    self,
    queries: TensorLike,
    k: int | tf.Tensor,
    exclude: TensorLike | tf.RaggedTensor | None = None,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Best candidates of each query.

    Args:
      queries: `[batch, dim]` float32 tensor. A query with a NaN, infinite or
        larger entry than 1e15 gets no answers, only padding; the other queries
        are unaffected.
      k: number of answers, an int or a scalar integer tensor; may exceed the
        corpus.
      exclude: ids that must not come back: `[batch, E]` padded with "" or -1,
        or a `tf.RaggedTensor` `[batch, None]`. Repeated and unknown ids do no
        harm.

    Returns:
      ids `[batch, k]` and scores `[batch, k]`, best first. Where fewer than k
      candidates remain, the rest is "" or -1 with score -inf.

    Raises:
      ValueError: if there is no corpus yet, or for a wrong shape, type or k
        that is known when called.
      tf.errors.InvalidArgumentError: for those known only when run.
    """
    if self._ids is None:
      raise ValueError(
        f"{type(self).__name__} has no corpus yet: call "
        "`index(ids, embeddings)` first."
      )
    queries = self._check_queries(queries)
    num_answers = _check_k(k)
    excluded = self._excluded_rows(exclude, tf.shape(queries)[0])
    usable = tf.reduce_all(tf.abs(queries) <= _LARGEST, axis=1)  # Not NaN.
    # ScaNN fails the whole batch, or ends the process, for one bad query: let
    # it see zeros, and take the answers out again below.
    queries = tf.where(usable[:, None], queries, 0.0)
    rows, scores = self._top_rows(queries, num_answers, excluded)
    rows = tf.where(usable[:, None], rows, NO_ROW)
    scores = tf.where(rows >= 0, scores, -np.inf)
    padding = _padding(self._ids.dtype)
    ids = tf.gather(self._ids, tf.maximum(rows, 0))
    ids = tf.where(rows >= 0, ids, padding)
    shape = [queries.shape[0], tf.get_static_value(num_answers)]
    return tf.ensure_shape(ids, shape), tf.ensure_shape(scores, shape)

  @abc.abstractmethod
  def _store(self, embeddings: np.ndarray) -> None:
    """Replaces the vectors by `embeddings`, a checked `[n, dim]` array."""

  @abc.abstractmethod
  def _top_rows(
    self, queries: tf.Tensor, k: tf.Tensor, excluded: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows (int64, -1 for padding) and scores, both `[batch, k]`.

    Args:
      queries: `[batch, dim]` finite float32 tensor.
      k: scalar int32 tensor.
      excluded: `[batch, E]` int64 tensor as `_excluded_rows` gives it.
    """

  def _check_queries(self, queries: TensorLike) -> tf.Tensor:
    queries = tf.convert_to_tensor(queries, dtype=tf.float32)
    if not queries.shape.is_compatible_with([None, self._dim]):
      raise ValueError(
        f"`queries` must be [batch, {self._dim}], as the index holds vectors "
        f"of dimension {self._dim}. Received: `queries` of shape "
        f"{queries.shape}."
      )
    return tf.ensure_shape(queries, [None, self._dim])

  def _excluded_rows(
    self, exclude: TensorLike | tf.RaggedTensor | None, batch: tf.Tensor
  ) -> tf.Tensor:
    """`[batch, E]` sorted int64 rows; -1 for padding, unknown and repeated."""
    if exclude is None:
      return tf.fill([batch, 0], NO_ROW)
    padding = _padding(self._ids.dtype)
    if isinstance(exclude, tf.RaggedTensor):
      exclude = exclude.to_tensor(tf.cast(padding, exclude.dtype))
    else:
      hint = self._ids.dtype
      exclude = tf.convert_to_tensor(exclude, dtype_hint=hint)
    same_kind = exclude.dtype.is_integer == self._ids.dtype.is_integer
    if not same_kind or not exclude.shape.is_compatible_with([None, None]):
      raise ValueError(
        f"`exclude` must be [batch, E] ids of type {self._ids.dtype.name}. "
        f"Received: `exclude` of shape {exclude.shape} and type "
        f"{exclude.dtype.name}."
      )
    tf.debugging.assert_equal(
      tf.shape(exclude)[0],
      batch,
      "`exclude` must have one row of ids per query.",
    )
    rows = tf.sort(self._table.lookup(_table_keys(exclude)), axis=1)
    previous = tf.pad(rows, [[0, 0], [1, 0]], constant_values=-2)[:, :-1]
    return tf.sort(tf.where(rows == previous, NO_ROW, rows), axis=1)


def recall(
  index: RetrievalIndex,
  exact: RetrievalIndex,
  queries: TensorLike,
  k: int,
) -> float:
  """Share of the exact top-k answers that an index finds.

  Args:
    index: the index to measure.
    exact: a `BruteForceIndex` over the same corpus.
    queries: `[batch, dim]` finite float32 tensor, batch > 0. Use vectors of
      the trained query tower: on random vectors ScaNN does far worse than on
      real ones.
    k: number of answers.

  Returns:
    A number in [0, 1], mean over all answers of all queries. Answers are
    compared by id, so a tie broken otherwise counts as a miss.
  """
  found = index.search(queries, k)[0].numpy()
  wanted, scores = (x.numpy() for x in exact.search(queries, k))
  real = np.isfinite(scores)
  if not real.any():
    raise ValueError("`queries` must hold at least one finite vector.")
  hits = [
    np.isin(want[keep], got).sum()
    for want, got, keep in zip(wanted, found, real, strict=True)
  ]
  return float(np.sum(hits) / real.sum())


def best_rows(
  rows: tf.Tensor, scores: tf.Tensor, keep: tf.Tensor, k: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """The k best of the rows to keep, padded with -1 and -inf to width k.

  Args:
    rows: `[batch, width]` int64 tensor.
    scores: `[batch, width]` float32 tensor; NaN where `keep` is False is fine.
    keep: `[batch, width]` bool tensor.
    k: scalar int32 tensor.

  Returns:
    rows and scores, both `[batch, k]`, best first.
  """
  # top_k sorts NaN as the largest score: mask before, never after.
  scores = tf.where(keep, scores, -np.inf)
  rows = tf.where(keep, rows, NO_ROW)
  best = tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
  rows = tf.gather(rows, best.indices, batch_dims=1)
  missing = [[0, 0], [0, k - tf.shape(rows)[1]]]
  return (
    tf.pad(rows, missing, constant_values=-1),
    tf.pad(best.values, missing, constant_values=-np.inf),
  )


def _check_corpus(ids: tf.Tensor, embeddings: np.ndarray) -> None:
  if embeddings.ndim != 2 or 0 in embeddings.shape:
    raise ValueError(
      "`embeddings` must be [n, dim] with at least one row and column. "
      f"Received: `embeddings` of shape {embeddings.shape}."
    )
  if ids.dtype not in (tf.string, tf.int32, tf.int64):
    raise ValueError(
      "`ids` must be strings, int32 or int64. Received: `ids` of type "
      f"{ids.dtype.name}."
    )
  if ids.shape != embeddings.shape[:1]:
    raise ValueError(
      "`ids` must hold one id per row of `embeddings`. Received: `ids` of "
      f"shape {ids.shape}, `embeddings` of shape {embeddings.shape}."
    )
  ids = ids.numpy().tolist()
  seen = set()
  if len(set(ids)) < len(ids):
    repeated = next(i for i in ids if i in seen or seen.add(i))
    raise ValueError(
      f"`ids` must be unique. Received: {_show(repeated)} more than once."
    )
  for reserved in (b"", -1):
    if reserved in ids:
      raise ValueError(
        f"The id {_show(reserved)} is reserved for padding. Received it at "
        f"row {ids.index(reserved)}."
      )
  # Inside ScaNN a NaN row ends the process; this is the place to catch it.
  usable = (np.abs(embeddings) <= _LARGEST).all(axis=1)
  if not usable.all():
    row = int(np.argmin(usable))
    raise ValueError(
      f"`embeddings` must be finite, and at most {_LARGEST:g} in size. "
      f"Received: {int((~usable).sum())} rows with NaN, Inf or larger numbers, "
      f"the first is row {row} (id {_show(ids[row])})."
    )


def _check_k(k: int | tf.Tensor) -> tf.Tensor:
  message = "`k` must be a positive integer."
  static = tf.get_static_value(k) if tf.is_tensor(k) else k
  if static is not None and (int(static) != static or static < 1):
    raise ValueError(f"{message} Received: `k` = {static}.")
  k = tf.cast(k, tf.int32)
  tf.debugging.assert_positive(k, message)
  return k


def _padding(dtype: tf.DType) -> tf.Tensor:
  return tf.constant("" if dtype == tf.string else -1, dtype)


def _table_keys(ids: tf.Tensor) -> tf.Tensor:
  return ids if ids.dtype == tf.string else tf.cast(ids, tf.int64)


def _show(value: bytes | int) -> str:
  return repr(value.decode() if isinstance(value, bytes) else value)
