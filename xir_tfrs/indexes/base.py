"""Base class of indexes: ids, exclusions and padding; subclasses score.

Axes: batch (queries), n (candidates of the corpus), dim (of the vectors),
k (requested answers), E (width of the deny lists), A (width of the allow
lists).

This package represents a candidate by its row in `[0, n)`; -1 is padding. Ids
are translated once on input and once on output; callers can also pass rows.
"""

from __future__ import annotations

import abc
import functools
import reprlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from xir_tfrs.indexes import exact_search, id_table
from xir_tfrs.indexes.id_table import NO_ROW, TensorLike
from xir_tfrs.ops import branches

# Inner products of larger numbers may overflow to infinity or NaN, which
# crashes the process in ScaNN.
_LARGEST = 1e15
_WRONG_K = "`k` must be a positive integer."


class RetrievalIndex(tf.Module, metaclass=abc.ABCMeta):
  """Top-k candidates by inner product, with exact exclusions.

  An index is a `tf.Module`: if you assign it to your own module, the SavedModel
  includes its state. `search` works eagerly, in a `tf.function`, and in a
  signature with dynamic batch size, k and list widths. An eager call costs tens
  of milliseconds of Python time.

  `index` creates new variables each time, so that the old corpus is freed and
  not saved. A `tf.function` that was traced before keeps the old variables:
  trace it again.

  Attributes:
    ids: The `IdTable` of the corpus; None before `index`.
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
      ids: `[n]` unique strings or integers, or an `IdTable`, which several
        indexes may share. The empty string and -1 are reserved for padding.
      embeddings: `[n, dim]` float32 tensor with entries of magnitude up to
        1e15; row i is the vector of `ids[i]`.

    Returns:
      This index.

    Raises:
      ValueError: Shapes do not match, an id is repeated or reserved, or a
        vector has a NaN, infinite or larger entry.
    """
    try:
      embeddings = np.asarray(embeddings, dtype=np.float32)
    except (TypeError, ValueError):
      raise ValueError(
        "`embeddings` must be [n, dim] numbers: index(ids, embeddings). "
        f"Received: {reprlib.repr(embeddings)}."
      ) from None
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

  # Without autograph: no control flow depends on tensors here, and converting
  # the code would take seconds in every trace.
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
    """Finds the best candidates of each query.

    Args:
      queries: `[batch, dim]` float32 tensor; or `[batch, interests, dim]`: the
        index searches for each interest, and the highest score of a candidate
        counts. A query with a NaN, infinite or larger entry than 1e15 gets only
        padding; the other queries are unaffected.
      k: Number of answers, an int or a scalar integer tensor; may exceed the
        corpus.
      exclude: Deny lists of ids: `[batch, E]` padded with "" or -1, or a
        `tf.RaggedTensor` `[batch, None]`. Repeated and unknown ids are ignored.
      allow: Allow lists of ids, `[batch, A]`, in the same form. A list of
        padding alone restricts nothing; a query with only unknown ids gets no
        answers. Restricted queries are scored exactly.
      exclude_rows: Additional deny lists of rows: integers in `[0, n)`, padded
        with -1, in the same form. Saves the look-up of ids.
      allow_rows: Additional allow lists of rows; `allow` and `allow_rows` are
        combined.

    Returns:
      ids `[batch, k]` and scores `[batch, k]`, best first. If fewer than k
      candidates remain, the rest is "" or -1 with score -inf.

    Raises:
      ValueError: There is no corpus yet, or a statically known shape, type or k
        is invalid.
      tf.errors.InvalidArgumentError: A shape or k is found invalid at run time.
    """
    self._require_corpus()
    queries = self._check_queries(queries)
    num_answers = _check_k(k)
    excluded = self._listed("exclude", exclude, exclude_rows)
    allowed = self._listed("allow", allow, allow_rows)

    def plain():
      flat = tf.reshape(queries, [-1, self.dim])
      rows, scores = self._top_rows(flat, num_answers)
      return _of_queries(queries, rows, scores, num_answers)

    def general():
      given = queries, num_answers, excluded, allowed
      # Graphs would run other ops beside the checks, and may report their
      # errors.
      with tf.control_dependencies(self._checks(*given)):
        return self._search(*given)

    if self._is_fast and not tf.executing_eagerly():
      unusual = self._is_unusual(queries, num_answers, excluded, allowed)
      rows, scores = branches.seldom(unusual, general, plain)
    else:
      rows, scores = general()
    answers = [queries.shape[0], tf.get_static_value(num_answers)]
    return (
      tf.ensure_shape(self.ids.ids(rows), answers),
      tf.ensure_shape(scores, answers),
    )

  def similar(
    self, ids: TensorLike, k: int | tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the candidates with the highest inner product with given ones.

    Args:
      ids: `[batch]` ids. An unknown id gets no answers.
      k: As in `search`.

    Returns:
      ids and scores `[batch, k]`, as in `search`; a candidate is never among
      its own answers.

    Raises:
      ValueError: There is no corpus yet, or `ids` or `k` are of another shape
        or type.
      tf.errors.InvalidArgumentError: `k` is found invalid at run time.
    """
    self._require_corpus()
    ids = tf.convert_to_tensor(ids, dtype_hint=self.ids.dtype)
    same_kind = ids.dtype.is_integer == self.ids.dtype.is_integer
    if not same_kind or not ids.shape.is_compatible_with([None]):
      raise ValueError(
        f"`ids` must be [batch] of type {self.ids.dtype.name}. Received: `ids` "
        f"of shape {ids.shape} and type {ids.dtype.name}."
      )
    rows = self.ids.rows(ids)
    return self.search(self.vectors_of(rows), k, exclude_rows=rows[:, None])

  def vectors_of(self, rows: tf.Tensor) -> tf.Tensor:
    """Returns `[batch, dim]` vectors of rows; NaN for row -1."""
    vectors = tf.gather(self.vectors, tf.maximum(rows, 0))
    return tf.where((rows >= 0)[:, None], vectors, np.nan)

  def _is_unusual(
    self,
    queries: tf.Tensor,
    k: tf.Tensor,
    excluded: Sequence[_List],
    allowed: Sequence[_List],
  ) -> tf.Tensor:
    """Whether a search needs more than the best rows of each query."""
    fine = [k > 0, tf.reduce_all(tf.abs(queries) <= _LARGEST)]  # Not NaN.
    for _, entries, padding in (*excluded, *allowed):
      fine.append(tf.shape(entries)[0] == tf.shape(queries)[0])
      fine.append(tf.reduce_all(entries == padding))
    return ~tf.reduce_all(tf.stack(fine))

  def _search(
    self,
    queries: tf.Tensor,
    k: tf.Tensor,
    excluded: Sequence[_List],
    allowed: Sequence[_List],
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows and scores of `search`, after `_checks`."""
    batch, interests = tf.shape(queries)[0], 1
    if queries.shape.rank == 3:
      interests = tf.shape(queries)[1]
    exclude = tf.repeat(self._rows(excluded, batch), interests, axis=0)
    flat = tf.reshape(queries, [-1, self.dim])
    usable = tf.reduce_all(tf.abs(flat) <= _LARGEST, axis=1)  # Not NaN.
    # One bad query makes ScaNN fail the batch or crash the process: replace it
    # by zeros, and remove its answers below.
    flat = tf.where(usable[:, None], flat, 0.0)

    def free():
      return self._top_rows(flat, k, exclude)

    def restricted():
      rows = tf.repeat(self._rows(allowed, batch), interests, axis=0)
      given = tf.repeat(are_given, interests, axis=0)
      return self._top_rows_restricted(flat, k, exclude, rows, given)

    if not allowed:
      rows, scores = free()
    else:
      are_given = _are_given(allowed)
      rows, scores = branches.seldom(tf.reduce_any(are_given), restricted, free)
    rows = tf.where(usable[:, None], rows, NO_ROW)
    scores = tf.where(rows >= 0, scores, -np.inf)
    return _of_queries(queries, rows, scores, k)

  def _top_rows_restricted(
    self,
    queries: tf.Tensor,
    k: tf.Tensor,
    excluded: tf.Tensor,
    allowed: tf.Tensor,
    restricted: tf.Tensor,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """As `_top_rows`, limited to `allowed` where `restricted` `[batch]`."""
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

  @property
  def _is_fast(self) -> bool:
    """Whether the ops for lists and checks take longer than `_top_rows`.

    Then graphs leave them out where they change nothing.
    """
    return False

  @abc.abstractmethod
  def _store(self, embeddings: np.ndarray) -> tf.Variable:
    """Stores `embeddings`, a checked `[n, dim]` array, in a variable."""

  @abc.abstractmethod
  def _top_rows(
    self, queries: tf.Tensor, k: tf.Tensor, excluded: tf.Tensor | None = None
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds rows (int64, -1 for padding) and scores, both `[batch, k]`.

    Args:
      queries: `[batch, dim]` finite float32 tensor.
      k: scalar int32 tensor.
      excluded: `[batch, E]` int64 tensor, as `_rows` returns it; None: nothing.
    """

  def _require_corpus(self) -> None:
    if self.ids is None:
      raise ValueError(
        f"{type(self).__name__} has no corpus yet: call "
        "`index(ids, embeddings)` first."
      )

  def _check_queries(self, queries: TensorLike) -> tf.Tensor:
    queries = tf.cast(tf.convert_to_tensor(queries), tf.float32)
    wanted = [None] * (2 if queries.shape.rank == 3 else 1) + [self.dim]
    if not queries.shape.is_compatible_with(wanted):
      raise ValueError(
        f"`queries` must be [batch, {self.dim}]: the index holds vectors of "
        f"dimension {self.dim}. Received: `queries` of shape "
        f"{queries.shape}."
      )
    return tf.ensure_shape(queries, wanted)

  def _listed(
    self,
    name: str,
    ids: TensorLike | tf.RaggedTensor | None,
    rows: TensorLike | tf.RaggedTensor | None,
  ) -> list[_List]:
    """Lists of ids and of rows as matrices; leaves out what is not given."""
    given = []
    if ids is not None:
      given.append(_as_matrix(name, ids, self.ids.padding))
    if rows is not None:
      lists = _as_matrix(f"{name}_rows", rows, tf.constant(NO_ROW))
      given.append(lists._replace(entries=tf.cast(lists.entries, tf.int64)))
    return given

  def _checks(
    self,
    queries: tf.Tensor,
    k: tf.Tensor,
    excluded: Sequence[_List],
    allowed: Sequence[_List],
  ) -> list[tf.Operation]:
    """Checks what is only known at run time."""
    checks = [tf.debugging.assert_positive(k, _WRONG_K)]
    for name, entries, _ in (*excluded, *allowed):
      checks.append(
        tf.debugging.assert_equal(
          tf.shape(entries)[0],
          tf.shape(queries)[0],
          f"`{name}` must have one row per query.",
        )
      )
      if name.endswith("_rows"):
        checks.append(
          tf.debugging.assert_less(
            entries,
            np.int64(self.size),
            f"`{name}` must hold rows below the size of the corpus, "
            f"{self.size}.",
          )
        )
    return checks

  def _rows(self, lists: Sequence[_List], batch: tf.Tensor) -> tf.Tensor:
    """`[batch, width]` sorted int64 rows; -1 is padding, unknown, repeated."""
    rows = [
      x.entries if x.name.endswith("_rows") else self.ids.rows(x.entries)
      for x in lists
    ]
    return _sorted_once(tf.concat([tf.fill([batch, 0], NO_ROW), *rows], axis=1))


class _List(NamedTuple):
  """What a search leaves out, or is restricted to.

  Attributes:
    name: Name of the argument; that of rows ends in "_rows".
    entries: `[batch, width]` ids or int64 rows.
    padding: The entry that means nothing.
  """

  name: str
  entries: tf.Tensor
  padding: tf.Tensor


def _are_given(lists: Sequence[_List]) -> tf.Tensor:
  """`[batch]` bool, for which queries a list holds more than padding."""
  return functools.reduce(
    tf.logical_or,
    [tf.reduce_any(x.entries != x.padding, axis=1) for x in lists],
  )


def _of_queries(
  queries: tf.Tensor, rows: tf.Tensor, scores: tf.Tensor, k: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Merges the answers `[batch * interests, k]` of queries with interests."""
  if queries.shape.rank == 2:
    return rows, scores
  batch, interests = tf.shape(queries)[0], tf.shape(queries)[1]
  # Not -1: an empty batch would get no columns.
  shape = [batch, interests * tf.shape(rows)[1]]
  # A query without interests has no answers.
  missing = [[0, 0], [0, tf.maximum(k - shape[1], 0)]]
  rows = tf.pad(tf.reshape(rows, shape), missing, constant_values=NO_ROW)
  scores = tf.pad(tf.reshape(scores, shape), missing, constant_values=-np.inf)
  return _merged(rows, scores, k)


def _merged(
  rows: tf.Tensor, scores: tf.Tensor, k: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """The k best of `[batch, m]` answers, m >= k, without duplicate rows."""
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
  """Measures the share of the exact top-k answers that an index finds.

  Args:
    index: The index to measure.
    exact: A `BruteForceIndex` over the same corpus.
    queries: `[batch, dim]` finite float32 tensor, batch > 0. Use vectors of the
      trained query tower: ScaNN performs far worse on random vectors.
    k: Number of answers.

  Returns:
    The mean over all answers of all queries, in [0, 1]. Answers are compared by
    id, so a tie that is broken differently counts as a miss.

  Raises:
    ValueError: An index has no corpus, or no query is finite.

  Examples:
    >>> rng = np.random.default_rng(0)
    >>> vectors = rng.normal(size=[50, 4]).astype("float32")
    >>> exact = xir.indexes.BruteForceIndex().index(np.arange(50), vectors)
    >>> xir.indexes.recall(exact, exact, vectors[:9], k=5)
    1.0
  """
  hits, wanted = hits_by_query(index, exact, queries, k)
  return float(hits.sum() / wanted.sum())


def hits_by_query(
  index: RetrievalIndex,
  exact: RetrievalIndex,
  queries: TensorLike,
  k: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Counts the exact top-k answers of each query that an index finds.

  Args:
    index: As in `recall`.
    exact: As in `recall`.
    queries: As in `recall`.
    k: As in `recall`.

  Returns:
    ([batch] answers found, [batch] exact answers, k or all that there are).

  Raises:
    ValueError: As for `recall`.

  Examples:
    >>> vectors = np.eye(3, dtype="float32")
    >>> exact = xir.indexes.BruteForceIndex().index(np.arange(3), vectors)
    >>> xir.indexes.hits_by_query(exact, exact, vectors[:2], k=9)
    (array([3, 3]), array([3, 3]))
  """
  found = index.search(queries, k)[0].numpy()
  wanted, scores = (x.numpy() for x in exact.search(queries, k))
  real = np.isfinite(scores)
  if not real.any():
    raise ValueError("`queries` must contain at least one finite vector.")
  hits = [
    np.isin(want[keep], got).sum()
    for want, got, keep in zip(wanted, found, real, strict=True)
  ]
  return np.array(hits), real.sum(axis=1)


def is_listed(rows: tf.Tensor, lists: tf.Tensor) -> tf.Tensor:
  """Which of `rows` `[batch, w]` are in sorted `lists` `[batch, E]`."""
  # The largest integer ends every list, so each search finds an entry.
  lists = tf.pad(lists, [[0, 0], [0, 1]], constant_values=tf.int64.max)
  place = tf.searchsorted(lists, rows)
  return tf.gather(lists, place, batch_dims=1) == rows


def _as_matrix(
  name: str, lists: TensorLike | tf.RaggedTensor, padding: tf.Tensor
) -> _List:
  """Checks what is known before a search."""
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
  return _List(name, lists, tf.cast(padding, lists.dtype))


def _sorted_once(rows: tf.Tensor) -> tf.Tensor:
  """`[batch, width]` sorted rows; repeated rows become -1."""
  rows = tf.sort(rows, axis=1)
  previous = tf.pad(rows, [[0, 0], [1, 0]], constant_values=-2)[:, :-1]
  return tf.sort(tf.where(rows == previous, NO_ROW, rows), axis=1)


def _check_vectors(ids: id_table.IdTable, embeddings: np.ndarray) -> None:
  # A NaN row would crash the process inside ScaNN.
  usable = (np.abs(embeddings) <= _LARGEST).all(axis=1)
  if not usable.all():
    row = np.argmin(usable)
    raise ValueError(
      f"`embeddings` must be finite, with entries up to {_LARGEST:g}. "
      f"Received: {int((~usable).sum())} rows with NaN, Inf or larger numbers; "
      f"the first is row {row} (id {id_table.show(ids.ids(row).numpy())})."
    )


def _check_k(k: int | tf.Tensor) -> tf.Tensor:
  static = tf.get_static_value(k) if tf.is_tensor(k) else k
  if static is not None and (int(static) != static or static < 1):
    raise ValueError(f"{_WRONG_K} Received: `k` = {static}.")
  return tf.cast(k, tf.int32)
