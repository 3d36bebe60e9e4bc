"""Query towers of a bundle that encode histories.

Axes: n = queries, H = width of the histories of a call, m = candidates that
histories may contain, dim = size of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from export.bundle import encoders
from xir_tfrs import indexes
from xir_tfrs.data import histories

# Padding of times; negative times are unknown.
NO_TIME = np.int64(-1)


def past_inputs(
  id_dtype: tf.DType, takes_times: bool = False
) -> list[tf.TensorSpec]:
  """Returns specs of a history and, if the tower takes them, its times."""
  specs = [
    tf.TensorSpec([None, None], id_dtype, "history"),
    tf.TensorSpec([None, None], tf.int64, "history_times"),
    tf.TensorSpec([None], tf.int64, "time"),
  ]
  return specs if takes_times else specs[:1]


def further_inputs(dim: int, takes_times: bool = False) -> list[tf.TensorSpec]:
  """Returns specs of the further inputs of a `TrainedEncoder` of histories.

  Rows of events, the vectors of all events and, if the tower takes them,
  the times of the events and of the request, `[n, H + 1]`.
  """
  specs = [
    tf.TensorSpec([None, None], tf.int64, "history_rows"),
    tf.TensorSpec([None, dim], tf.float32, "event_vectors"),
    tf.TensorSpec([None, None], tf.int64, "times"),
  ]
  return specs if takes_times else specs[:2]


class HistoryEncoder(tf.Module):
  """An `encoders.Encoder` of queries with histories of original ids.

  Attributes:
    tower: Encodes queries from rows of events.
    event_ids: `IdTable` of the candidates that histories may contain; it may
      differ from that of an index.
    event_vectors: `[m, dim]` variable, the vectors of these candidates.
  """

  takes_history = True

  def __init__(
    self,
    tower: encoders.TrainedEncoder | encoders.LoadedEncoder,
    event_ids: indexes.IdTable,
    event_vectors: np.ndarray,
    takes_times: bool = False,
    name: str | None = None,
  ):
    super().__init__(name=name)
    self.tower = tower
    self.takes_times = takes_times
    self.inputs, self.id_dtype = tower.inputs, tower.id_dtype
    self.shape = tower.shape
    self.event_ids = event_ids
    self.event_vectors = tf.Variable(
      event_vectors, trainable=False, name="event_vectors"
    )

  def __call__(
    self,
    ids: tf.Tensor,
    raw: Sequence[tf.Tensor],
    history: tf.Tensor,
    *times: tf.Tensor,
  ) -> encoders.Encoded:
    rows = self.event_ids.rows(history)
    known = tf.math.count_nonzero(rows >= 0, axis=1, dtype=tf.int32)
    given = [_with_request(history, *times)] if self.takes_times else []
    found = self.tower(ids, raw, rows, self.event_vectors, *given)
    return found._replace(
      answerable=found.answerable | (known > 0), num_history=known
    )

  def of_rows(self, rows: tf.Tensor) -> encoders.Encoded:
    """Encodes dense ids with their histories and features in training.

    The tower must be a `TrainedEncoder`.
    """
    nothing = tf.zeros([len(rows), 0], tf.int64)
    unknown = [tf.fill([len(rows), 1], NO_TIME)] if self.takes_times else []
    return self.tower.of_rows(rows, nothing, self.event_vectors, *unknown)


def _with_request(
  history: tf.Tensor, history_times: tf.Tensor, time: tf.Tensor
) -> tf.Tensor:
  """`[n, H + 1]` times of all columns of a history, and of the request."""
  missing = tf.shape(history)[1] - tf.shape(history_times)[1]
  fits = tf.debugging.assert_non_negative(
    missing, "`history_times` must not have more columns than `history`."
  )
  with tf.control_dependencies([fits]):
    times = tf.pad(
      history_times, [[0, 0], [0, missing]], constant_values=NO_TIME
    )
  return tf.concat([times, time[:, tf.newaxis]], axis=1)


def stored_where_empty(
  row_splits: np.ndarray, *stored: np.ndarray
) -> Callable[..., list[tf.Tensor]]:
  """Returns a function that replaces empty histories by those in training.

  Args:
    row_splits: `[num_queries + 1]` int64, the start of each query's events.
    *stored: `[pairs]` rows of the events, oldest first; and their times.

  Returns:
    A function of dense ids `[n]`, -1 for unknown ids, and rows of events
    `[n, H]`; with stored times, also of their times `[n, H + 1]`, the last of
    which are those of the requests. It returns rows of events, and times.
  """
  with tf.device("cpu:0"):
    splits, *columns = (
      tf.Variable(x, trainable=False, name=f"history_{name}")
      for name, x in zip(
        ("row_splits", "events", "times"), (row_splits, *stored), strict=False
      )
    )

  def filled(ids, history, *times):
    empty = ~tf.reduce_any(history >= 0, axis=1)
    owners = tf.where(empty, ids, indexes.NO_ROW)
    # One of the two is padding.
    return [
      tf.concat([lists_of(splits, column, owners), given], axis=1)
      for column, given in zip(columns, (history, *times), strict=True)
    ]

  return filled


def with_stored(
  encode: encoders.Encode, row_splits: np.ndarray, *stored: np.ndarray
) -> encoders.Encode:
  """Returns a tower that uses stored histories if none are given.

  Args:
    encode: Takes dense ids, features, rows of events `[n, H]`, vectors and, if
      times are stored, times `[n, H + 1]`.
    row_splits: See `stored_where_empty`.
    *stored: See `stored_where_empty`.
  """
  filled = stored_where_empty(row_splits, *stored)

  def encode_filled(ids, features, history, event_vectors, *times):
    history, *times = filled(ids, history, *times)
    return encode(ids, features, history, event_vectors, *times)

  return encode_filled


def ranks_with_stored(
  rank: Callable[..., tf.Tensor],
  known_queries: np.ndarray,
  known_events: np.ndarray,
  row_splits: np.ndarray,
  events: np.ndarray,
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
  """Returns a ranker that uses stored histories if none are given.

  Args:
    rank: Takes dense ids of queries `[n]`, of candidates `[n, m]`, and of
      candidates in histories `[n, H]`.
    known_queries: `[num_queries]` bool, whether a query has training rows.
    known_events: `[num_candidates]` bool, whether histories may contain a
      candidate.
    row_splits: See `stored_where_empty`.
    events: See `stored_where_empty`; dense ids.

  Returns:
    A function like `rank` that also accepts -1 and unknown ids.
  """
  filled = stored_where_empty(row_splits, events)
  queries, candidates = (
    tf.Variable(x, trainable=False, name=name)
    for name, x in (("queries", known_queries), ("events", known_events))
  )

  def known(rows, which):
    is_known = tf.gather(which, tf.maximum(rows, 0)) & (rows >= 0)
    return tf.where(is_known, rows, indexes.NO_ROW)

  def ranks(query_ids, candidate_ids, history):
    query_ids = known(query_ids, queries)
    (history,) = filled(query_ids, known(history, candidates))
    return rank(query_ids, candidate_ids, history)

  return ranks


def of_training(
  rows: Mapping[str, np.ndarray],
  num_queries: int,
  length: int,
  names: Sequence[str] = ("candidate_id",),
) -> tuple[np.ndarray, ...]:
  """Returns the most recent training rows of each query, oldest first.

  Args:
    rows: The training rows, with the columns of their order.
    num_queries: Number of queries.
    length: Maximum number of rows per query.
    names: The columns to return.

  Returns:
    row_splits `[num_queries + 1]` int64 and `[pairs]` of each column.
  """
  columns = histories.Histories.of_rows(rows).columns
  counts = np.bincount(columns["query_id"], minlength=num_queries)
  ends = np.cumsum(counts)
  from_end = ends[columns["query_id"]] - np.arange(len(columns["query_id"]))
  lengths = np.minimum(counts, length)
  return (
    np.append(0, np.cumsum(lengths)),
    *(columns[name][from_end <= length] for name in names),
  )


def lists_of(
  row_splits: tf.Variable, values: tf.Variable, rows: tf.Tensor
) -> tf.Tensor:
  """Returns `[n, width]` int64 lists, padded with -1; empty for row -1.

  Args:
    row_splits: Start of each row's list among the values.
    values: Integers.
    rows: `[n]` int64 rows.
  """
  known = tf.maximum(rows, 0)
  starts = tf.gather(row_splits, known)
  ends = tf.where(rows >= 0, tf.gather(row_splits, known + 1), starts)
  places = tf.ragged.range(starts, ends).to_tensor(indexes.NO_ROW)
  listed = tf.gather(values, tf.maximum(places, 0))
  return tf.where(places >= 0, tf.cast(listed, tf.int64), indexes.NO_ROW)
