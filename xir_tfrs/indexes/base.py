"""What every index shares: ids, exclusions and padding; subclasses score.

Axes: batch (queries), n (candidates of the corpus), dim (of the vectors),
k (answers asked for), E (width of the exclusions), A (of the allowed).

Inside this package a candidate is its row in `[0, n)`, and -1 is no candidate.
Ids are translated once on the way in and once on the way out; callers that
have rows already give rows.
"""

from __future__ import annotations

import abc

import numpy as np
import tensorflow as tf

from xir_tfrs.indexes import exact_search, id_table
from xir_tfrs.indexes.id_table import NO_ROW, TensorLike

# Inner products of larger numbers may overflow to infinity or NaN, which a
# ScaNN searcher answers by ending the process.
_LARGEST = 1e15


class RetrievalIndex(tf.Module, metaclass=abc.ABCMeta):
  """Top-k candidates by inner product, with exact exclusions.

  A `tf.Module`: put it into a module of your own and its state goes into the
  SavedModel. `search` works eagerly, under `tf.function`, and in a signature
  with dynamic batch, k and width of the lists; eagerly each call costs tens of
  milliseconds of Python.

  `index` makes new variables each time, so that an old corpus is freed and not
  saved again. A `tf.function` traced before holds the old ones: trace again.

  Attributes:
    ids: the `IdTable` of the corpus; None before `index`.
    vectors: `[n, dim]` float32 variable, the vectors; None before `index`.

  Examples:
    >>> index: xir.indexes.RetrievalIndex = xir.indexes.BruteForceIndex()
    >>> _ = index.index([10, 20, 30], [[1.0], [2.0], [3.0]])
    >>> index.size, index.dim
    (3, 1)
    >>> ids, _ = index.search([[1.0]], k=2, allow=[[10, 20]])
    >>> ids.numpy()
    array([[20, 10]], dtype=int32)
  """

  def __init__(self, name: str | None = None):
    super().__init__(name=name)
    self.ids: id_table.IdTable | None = None
    self.vectors: tf.Variable | None = None

  @property
  def size(self) -> int:
    """Number of candidates; 0 before `index`."""
    return 0 if self.ids is None else self.ids.size

  @property
  def dim(self) -> int:
    """Dimension of the vectors; 0 before `index`."""
    return 0 if self.vectors is None else self.vectors.shape[1]

  def index(
    self, ids: TensorLike | id_table.IdTable, embeddings: TensorLike
  ) -> RetrievalIndex:
    """Replaces the corpus.

    Args:
      ids: `[n]` unique strings or integers, or their `IdTable`, which several
        indexes may share. The empty string and -1 are reserved for padding.
      embeddings: `[n, dim]` float32 tensor of numbers up to 1e15 in size; row
        i is the vector of `ids[i]`.

    Returns:
      This index.

    Raises:
      ValueError: if shapes do not match, an id is repeated or reserved, or a
        vector has a NaN, infinite or larger entry.
    """
    embeddings = np.asarray(embeddings, dtype=np.float32)
    if embeddings.ndim != 2 or 0 in embeddings.shape:
      raise ValueError(
        "`embeddings` must be [n, dim] with at least one row and column. "
        f"Received: `embeddings` of shape {embeddings.shape}."
      )
    if not isinstance(ids, id_table.IdTable):
      ids = id_table.IdTable(ids)
    if ids.size != len(embeddings):
      raise ValueError(
        "`ids` must hold one id per row of `embeddings`. Received: "
        f"{ids.size} ids, `embeddings` of shape {embeddings.shape}."
      )
    _check_vectors(ids, embeddings)
    self.vectors = self._store(embeddings)
    self.ids = ids
    return self

  # No Python control flow here depends on a tensor; to look for some would take
  # seconds in every trace.
  @tf.autograph.experimental.do_not_convert
  def search(
    self,
    queries: TensorLike,
    k: int | tf.Tensor,
    exclude: TensorLike | tf.RaggedTensor | None = None,
    allow: TensorLike | tf.RaggedTensor | None = None,
    *,
    exclude_rows: TensorLike | tf.RaggedTensor | None = None,
    allow_rows: TensorLike | tf.RaggedTensor | None = None,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Best candidates of each query.

    Args:
      queries: `[batch, dim]` float32 tensor; or `[batch, interests, dim]`: a
        search for each, of which a candidate has its highest score. A query
        with a NaN, infinite or larger entry than 1e15 gets no answers, only
        padding; the other queries are unaffected.
      k: number of answers, an int or a scalar integer tensor; may exceed the
        corpus.
      exclude: ids that must not come back: `[batch, E]` padded with "" or -1,
        or a `tf.RaggedTensor` `[batch, None]`. Repeated and unknown ids do no
        harm.
      allow: the only ids that may come back, in the same form `[batch, A]`. A
        query with an empty list, padding alone, is not restricted; one with
        nothing but unknown ids has no answers. Restricted queries are scored
        exactly.
      exclude_rows: more candidates that must not come back, by row: integers
        in `[0, n)`, padded with -1, in the same form. Spares a look-up of ids.
      allow_rows: more candidates that may come back, by row; the list of a
        query is that of `allow` and `allow_rows` together.

    Returns:
      ids `[batch, k]` and scores `[batch, k]`, best first. Where fewer than k
      candidates remain, the rest is "" or -1 with score -inf.

    Raises:
      ValueError: if there is no corpus yet, or for a wrong shape, type or k
        that is known when called.
      tf.errors.InvalidArgumentError: for those known only when run.
    """
    self._require_corpus()
    queries = self._check_queries(queries)
    shape, batch = queries.shape, tf.shape(queries)[0]
    excluded, _ = self._listed("exclude", exclude, exclude_rows, batch)
    allowed = None
    if allow is not None or allow_rows is not None:
      allowed = self._listed("allow", allow, allow_rows, batch)
    num_answers = _check_k(k)
    if shape.rank == 3:
      interests = tf.shape(queries)[1]
      queries = tf.reshape(queries, [-1, self.dim])
      excluded = tf.repeat(excluded, interests, axis=0)
      if allowed is not None:
        allowed = tuple(tf.repeat(x, interests, axis=0) for x in allowed)
    usable = tf.reduce_all(tf.abs(queries) <= _LARGEST, axis=1)  # Not NaN.
    # ScaNN fails the whole batch, or ends the process, for one bad query: let
    # it see zeros, and take the answers out again below.
    queries = tf.where(usable[:, None], queries, 0.0)

    def free():
      return self._top_rows(queries, num_answers, excluded)

    if allowed is None:
      rows, scores = free()
    else:
      rows, scores = tf.cond(
        tf.reduce_any(allowed[1]),
        lambda: self._top_rows_restricted(
          queries, num_answers, excluded, *allowed
        ),
        free,
      )
    rows = tf.where(usable[:, None], rows, NO_ROW)
    scores = tf.where(rows >= 0, scores, -np.inf)
    if shape.rank == 3:
      rows, scores = (tf.reshape(x, [batch, -1]) for x in (rows, scores))
      rows, scores = _merged(rows, scores, num_answers)
    answers = [shape[0], tf.get_static_value(num_answers)]
    return (
      tf.ensure_shape(self.ids.ids(rows), answers),
      tf.ensure_shape(scores, answers),
    )

  def similar(
    self, ids: TensorLike, k: int | tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """The candidates of highest inner product with given ones.

    Args:
      ids: `[batch]` ids. An unknown one has no answers.
      k: as in `search`.

    Returns:
      ids and scores `[batch, k]` as `search`; a candidate is never among its
      own answers.
    """
    self._require_corpus()
    ids = tf.convert_to_tensor(ids, dtype_hint=self.ids.dtype)
    rows = self.ids.rows(ids)
    return self.search(self.vectors_of(rows), k, exclude_rows=rows[:, None])

  def vectors_of(self, rows: tf.Tensor) -> tf.Tensor:
    """`[batch, dim]` vectors of rows; of -1 NaN, which finds nothing."""
    vectors = tf.gather(self.vectors, tf.maximum(rows, 0))
    return tf.where((rows >= 0)[:, None], vectors, np.nan)

  def _top_rows_restricted(
    self,
    queries: tf.Tensor,
    k: tf.Tensor,
    excluded: tf.Tensor,
    allowed: tf.Tensor,
    restricted: tf.Tensor,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """As `_top_rows`; only `allowed` where `restricted` `[batch]` is True."""
    free, listed = tf.where(~restricted)[:, 0], tf.where(restricted)[:, 0]
    keep = tf.where(is_listed(allowed, excluded), NO_ROW, allowed)
    parts = (
      self._top_rows(tf.gather(queries, free), k, tf.gather(excluded, free)),
      exact_search.top_rows_of(
        self.vectors, tf.gather(queries, listed), k, tf.gather(keep, listed)
      ),
    )
    order = tf.math.invert_permutation(tf.concat([free, listed], 0))
    return tuple(
      tf.gather(tf.concat(pair, 0), order) for pair in zip(*parts, strict=True)
    )

  @abc.abstractmethod
  def _store(self, embeddings: np.ndarray) -> tf.Variable:
    """Takes `embeddings`, a checked `[n, dim]` array; a variable of it."""

  @abc.abstractmethod
  def _top_rows(
    self, queries: tf.Tensor, k: tf.Tensor, excluded: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows (int64, -1 for padding) and scores, both `[batch, k]`.

    Args:
      queries: `[batch, dim]` finite float32 tensor.
      k: scalar int32 tensor.
      excluded: `[batch, E]` int64 tensor as `_listed` gives it.
    """

  def _require_corpus(self) -> None:
    if self.ids is None:
      raise ValueError(
        f"{type(self).__name__} has no corpus yet: call "
        "`index(ids, embeddings)` first."
      )

  def _check_queries(self, queries: TensorLike) -> tf.Tensor:
    queries = tf.convert_to_tensor(queries, dtype=tf.float32)
    wanted = [None] * (2 if queries.shape.rank == 3 else 1) + [self.dim]
    if not queries.shape.is_compatible_with(wanted):
      raise ValueError(
        f"`queries` must be [batch, {self.dim}], as the index holds vectors "
        f"of dimension {self.dim}. Received: `queries` of shape "
        f"{queries.shape}."
      )
    return tf.ensure_shape(queries, wanted)

  def _listed(
    self,
    name: str,
    ids: TensorLike | tf.RaggedTensor | None,
    rows: TensorLike | tf.RaggedTensor | None,
    batch: tf.Tensor,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows of lists of ids and of rows, and which lists are not empty.

    Returns:
      `[batch, width]` sorted int64 rows, -1 for padding, unknown and repeated;
      and `[batch]` bool, whether there is more than padding.
    """
    parts, given = [tf.fill([batch, 0], NO_ROW)], tf.fill([batch], False)
    if ids is not None:
      padding = self.ids.padding
      id_lists = _check_lists(name, ids, padding, batch)
      parts.append(self.ids.rows(id_lists))
      given |= tf.reduce_any(
        id_lists != tf.cast(padding, id_lists.dtype), axis=1
      )
    if rows is not None:
      name = f"{name}_rows"
      row_lists = tf.cast(
        _check_lists(name, rows, tf.constant(NO_ROW), batch), tf.int64
      )
      tf.debugging.assert_less(
        row_lists,
        np.int64(self.size),
        f"`{name}` must hold rows below {self.size}, the size of the corpus.",
      )
      parts.append(row_lists)
      given |= tf.reduce_any(row_lists >= 0, axis=1)
    return _sorted_once(tf.concat(parts, axis=1)), given


def _merged(
  rows: tf.Tensor, scores: tf.Tensor, k: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """The k best of `[batch, m]` answers, m >= k, each row once, the best."""
  best_first = tf.argsort(scores, axis=1, direction="DESCENDING", stable=True)
  rows = tf.gather(rows, best_first, batch_dims=1)
  scores = tf.gather(scores, best_first, batch_dims=1)
  by_row = tf.argsort(rows, axis=1, stable=True)
  rows = tf.gather(rows, by_row, batch_dims=1)
  scores = tf.gather(scores, by_row, batch_dims=1)
  repeated = tf.pad(rows[:, 1:] == rows[:, :-1], [[0, 0], [1, 0]])
  scores, places = tf.math.top_k(tf.where(repeated, -np.inf, scores), k)
  rows = tf.gather(rows, places, batch_dims=1)
  return tf.where(scores > -np.inf, rows, NO_ROW), scores


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

  Examples:
    >>> rng = np.random.default_rng(0)
    >>> vectors = rng.normal(size=[50, 4]).astype("float32")
    >>> exact = xir.indexes.BruteForceIndex().index(np.arange(50), vectors)
    >>> xir.indexes.recall(exact, exact, vectors[:9], k=5)
    1.0
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


def is_listed(rows: tf.Tensor, lists: tf.Tensor) -> tf.Tensor:
  """Which of `rows` `[batch, w]` are in sorted `lists` `[batch, E]`."""
  # The largest integer ends every list, so each search lands on an entry.
  lists = tf.pad(lists, [[0, 0], [0, 1]], constant_values=tf.int64.max)
  place = tf.searchsorted(lists, rows)
  return tf.gather(lists, place, batch_dims=1) == rows


def _check_lists(
  name: str,
  lists: TensorLike | tf.RaggedTensor,
  padding: tf.Tensor,
  batch: tf.Tensor,
) -> tf.Tensor:
  """`[batch, width]` tensor of the kind of `padding`, strings or integers."""
  if isinstance(lists, tf.RaggedTensor):
    lists = lists.to_tensor(tf.cast(padding, lists.dtype))
  else:
    lists = tf.convert_to_tensor(lists, dtype_hint=padding.dtype)
  same_kind = lists.dtype.is_integer == padding.dtype.is_integer
  if not same_kind or not lists.shape.is_compatible_with([None, None]):
    raise ValueError(
      f"`{name}` must be [batch, width] of type {padding.dtype.name}. "
      f"Received: `{name}` of shape {lists.shape} and type {lists.dtype.name}."
    )
  tf.debugging.assert_equal(
    tf.shape(lists)[0], batch, f"`{name}` must have one row per query."
  )
  return lists


def _sorted_once(rows: tf.Tensor) -> tf.Tensor:
  """`[batch, width]` rows, sorted; -1 where one is repeated."""
  rows = tf.sort(rows, axis=1)
  previous = tf.pad(rows, [[0, 0], [1, 0]], constant_values=-2)[:, :-1]
  return tf.sort(tf.where(rows == previous, NO_ROW, rows), axis=1)


def _check_vectors(ids: id_table.IdTable, embeddings: np.ndarray) -> None:
  # Inside ScaNN a NaN row ends the process; this is the place to catch it.
  usable = (np.abs(embeddings) <= _LARGEST).all(axis=1)
  if not usable.all():
    row = np.argmin(usable)
    raise ValueError(
      f"`embeddings` must be finite, and at most {_LARGEST:g} in size. "
      f"Received: {int((~usable).sum())} rows with NaN, Inf or larger numbers, "
      f"the first is row {row} (id {id_table.show(ids.ids(row).numpy())})."
    )


def _check_k(k: int | tf.Tensor) -> tf.Tensor:
  message = "`k` must be a positive integer."
  static = tf.get_static_value(k) if tf.is_tensor(k) else k
  if static is not None and (int(static) != static or static < 1):
    raise ValueError(f"{message} Received: `k` = {static}.")
  k = tf.cast(k, tf.int32)
  tf.debugging.assert_positive(k, message)
  return k
