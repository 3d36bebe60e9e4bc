"""Histories: the events of a query before each of its rows.

Histories are not stored. They are the rows of a query, sorted by time and then
by file order. A row sees the rows that are strictly earlier, so that neither
the row itself nor a simultaneous one leaks into its history. With
`ties="order"`, which published leave-last tables use, file order decides among
equal times.

Axes: n = rows, length = events of a window.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.data import datasets, errors
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.ops import history

TIES = ("strict", "order")
# The column with a row's position among the rows of its query.
EVENT = "event"


@dataclasses.dataclass(frozen=True)
class Histories:
  """Rows sorted by query and time, and the number of earlier rows each sees.

  Attributes:
    columns: By name, [n] arrays of the rows, sorted by query and time.
    first: [n] int64, the first row of the row's query.
    visible: [n] int64, how many rows of its query, from `first`, the row sees.
    num_tied: Number of rows with the query and time of the previous row.

  Examples:
    >>> from xir_tfrs.data import histories
    >>> rows = histories.Histories.of_rows(
    ...   {
    ...     "query_id": np.array([0, 0, 0]),
    ...     "candidate_id": np.array([7, 5, 6]),
    ...     "timestamp": np.array([30, 10, 20]),
    ...   }
    ... )
    >>> rows.before(np.array([0, 1, 2]), length=2)
    array([[-1, -1],
           [-1,  5],
           [ 5,  6]])
  """

  columns: dict[str, np.ndarray]
  first: np.ndarray
  visible: np.ndarray
  num_tied: int

  @classmethod
  def of_rows(
    cls, columns: Mapping[str, np.ndarray], ties: str = "strict"
  ) -> "Histories":
    """Sorts rows.

    Args:
      columns: By name, [n] arrays of rows in any order: `query_id`,
        `candidate_id`, and optionally `timestamp` and `event`.
      ties: One of `TIES`: whether a row sees the simultaneous rows before it.

    Raises:
      DataError: `event` is needed for the order of the rows and is missing.
      ValueError: Unknown `ties`.
    """
    if ties not in TIES:
      raise ValueError(
        f"`ties` must be one of {', '.join(TIES)}. Received: `ties` = {ties!r}."
      )
    if EVENT not in columns and "timestamp" not in columns:
      raise errors.DataError(
        "the interactions have neither times nor an order, and histories need "
        f"one of them; {schema_lib.REMEDY}"
      )
    queries = columns["query_id"]
    # The last key is the primary one; ties keep their order (stable sort).
    keys = [columns[k] for k in (EVENT, "timestamp") if k in columns]
    order = np.lexsort((*keys, queries))
    columns = {name: column[order] for name, column in columns.items()}
    queries = columns["query_id"]
    starts = _starts(queries)
    places = np.arange(len(queries))
    first = np.maximum.accumulate(np.where(starts, places, 0))
    seen_until, num_tied = places, 0
    if "timestamp" in columns:
      moments = starts | _starts(columns["timestamp"])
      num_tied = int((~moments).sum())
      if num_tied and ties == "order" and EVENT not in columns:
        raise errors.DataError(
          f"{num_tied} interactions have the same time as another one of their "
          "query, and ties='order' needs their order, which is not stored; "
          f"{schema_lib.REMEDY}"
        )
      if ties == "strict":
        seen_until = np.maximum.accumulate(np.where(moments, places, 0))
    return cls(columns, first, seen_until - first, num_tied)

  def before(self, rows: np.ndarray, length: int) -> np.ndarray:
    """[m, length] newest candidates that [m] rows see, left-padded with -1."""
    return self._before("candidate_id", rows, length)

  def times_before(self, rows: np.ndarray, length: int) -> np.ndarray:
    """[m, length + 1] times of the events of `before`, and of the rows.

    Raises:
      DataError: The rows have no times.
    """
    require_times(self)
    times = self._before("timestamp", rows, length)
    own = self.columns["timestamp"][rows]
    return np.concatenate([times, own[:, np.newaxis]], axis=1)

  def _before(self, name: str, rows: np.ndarray, length: int) -> np.ndarray:
    """[m, length] values of a column of the newest events that rows see."""
    low, column = self.first[rows], self.columns[name]
    end = low + self.visible[rows]
    places = end[:, np.newaxis] - length + np.arange(length)
    if not len(column):
      return np.full(places.shape, history.NO_EVENT, column.dtype)
    inside = places >= low[:, np.newaxis]
    return np.where(inside, column[np.maximum(places, 0)], history.NO_EVENT)


def require_times(rows: Histories) -> None:
  """Raises DataError if the rows have an order but no times."""
  if "timestamp" not in rows.columns:
    raise errors.DataError(
      "the interactions have no times, and ages of events need them: prepare "
      "the data again with a --time_column, or leave out ages from "
      "--history_arguments"
    )


@dataclasses.dataclass(frozen=True)
class Windows:
  """Parts of histories that are encoded at once, and their targets.

  A window holds up to `length` events. Its encoder states, one after each
  event, are the queries of its targets. Each row is the target of exactly one
  window. A long history has several windows; the targets of all but the first
  see at least `length / 2` events.

  Attributes:
    length: Maximum number of events of a window.
    first_event: [windows] first row of the events.
    first_target: [windows] first row of the targets.
    num_targets: [windows] number of targets.

  Examples:
    >>> from xir_tfrs.data import histories
    >>> rows = histories.Histories.of_rows(
    ...   {
    ...     "query_id": np.array([0, 0, 0]),
    ...     "candidate_id": np.array([7, 5, 6]),
    ...     "timestamp": np.array([30, 10, 20]),
    ...   }
    ... )
    >>> histories.Windows.of_histories(rows, length=2).num_rows
    3
  """

  length: int
  first_event: np.ndarray
  first_target: np.ndarray
  num_targets: np.ndarray

  @classmethod
  def of_histories(cls, rows: Histories, length: int) -> "Windows":
    """Cuts histories into windows of up to `length` events."""
    num_rows = len(rows.first)
    end_of_query = np.append(np.flatnonzero(_starts(rows.first))[1:], num_rows)
    query = np.cumsum(_starts(rows.first)) - 1
    events_of, targets_of = [], []
    # First target of the next window, for each query with rows left.
    targets = np.flatnonzero(_starts(rows.first))
    sees = rows.first + rows.visible
    while len(targets):
      events = np.maximum(sees[targets] - length // 2, rows.first[targets])
      events_of.append(events)
      targets_of.append(targets)
      # `sees` ascends over all rows, so one search finds every window's end.
      following = np.searchsorted(sees, events + length, side="right")
      following = np.minimum(following, end_of_query[query[targets]])
      targets = following[following < end_of_query[query[targets]]]
    if not targets_of:
      return cls(length, *np.zeros([3, 0], np.int64))
    first_event = np.concatenate(events_of)
    first_target = np.concatenate(targets_of)
    order = np.argsort(first_target)
    first_target = first_target[order]
    num_targets = np.diff(np.append(first_target, num_rows))
    return cls(length, first_event[order], first_target, num_targets)

  @property
  def num_rows(self) -> int:
    """Number of targets of all windows."""
    return int(self.num_targets.sum())


def rows_before_dataset(
  rows: Histories,
  *,
  length: int,
  with_times: bool = False,
  **arguments: Any,
) -> tf.data.Dataset:
  """Returns `datasets.training_dataset` with the history of each row.

  Args:
    rows: The training rows.
    length: Number of most recent events of each history.
    with_times: Whether batches also have `history_times`, [rows, length + 1]
      int64: the times of the events and of the row.
    **arguments: Arguments of `datasets.training_dataset`.

  Returns:
    The dataset; batches also have `history_ids`, [rows, length] int64.

  Raises:
    ValueError: As for `datasets.training_dataset`.
    DataError: The rows have no times, `with_times`.
  """
  place = {"row": np.arange(len(rows.first))}
  specs = {"history_ids": tf.TensorSpec([None, length], tf.int64)}
  if with_times:
    require_times(rows)
    specs["history_times"] = tf.TensorSpec([None, length + 1], tf.int64)

  def histories_of(places: np.ndarray) -> list[np.ndarray]:
    found = [rows.before(places, length).astype(np.int64)]
    return found + [rows.times_before(places, length)] * with_times

  def with_history(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    batch = dict(batch)
    found = datasets.from_numpy(
      histories_of, [batch.pop("row")], list(specs.values())
    )
    return batch | dict(zip(specs, found, strict=True))

  return datasets.training_dataset(rows.columns | place, **arguments).map(
    with_history, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
  )


class PositionBatches:
  """Batches of targets whose histories are encoded a window at a time.

  Each epoch is a permutation of the windows with their targets; batch k holds
  the targets `[k B, (k + 1) B)` of this endless stream. Every batch has B rows,
  each target appears once per epoch, and batch k depends neither on earlier
  batches nor on how replicas share it.

  Examples:
    >>> from xir_tfrs.data import histories
    >>> rows = histories.Histories.of_rows(
    ...   {
    ...     "query_id": np.array([0, 0, 0]),
    ...     "candidate_id": np.array([7, 5, 6]),
    ...     "timestamp": np.array([30, 10, 20]),
    ...   }
    ... )
    >>> windows = histories.Windows.of_histories(rows, length=2)
    >>> batches = histories.PositionBatches(
    ...   rows, windows, global_batch_size=3, seed=0
    ... )
    >>> sorted(batches.share(step=0, low=0, high=3)["candidate_id"].tolist())
    [5, 6, 7]
  """

  def __init__(
    self,
    rows: Histories,
    windows: Windows,
    *,
    global_batch_size: int,
    seed: int | Sequence[int],
    with_times: bool = False,
  ) -> None:
    """Prepares the batches.

    Args:
      rows: The rows.
      windows: The windows of the rows.
      global_batch_size: Rows per batch, B.
      seed: Seed of the permutations, or several seeds to combine.
      with_times: Whether batches also have `history_times`.

    Raises:
      ValueError: There are no rows, or `global_batch_size` is not positive.
      DataError: The rows have no times, `with_times`.
    """
    if with_times:
      require_times(rows)
    self._with_times = with_times
    if not windows.num_rows:
      raise ValueError("There are no training rows.")
    checks.require_sizes(global_batch_size=global_batch_size)
    self._rows, self._windows = rows, windows
    self._sees = rows.first + rows.visible
    # For each window, the end of the events that any of its targets sees. Not
    # only the targets in a batch: ages must not depend on the cut of batches.
    self._end = self._sees[windows.first_target + windows.num_targets - 1]
    self._batch = global_batch_size
    self._seeds = [seed] if isinstance(seed, int) else [*seed]
    self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

  def share(self, step: int, low: int, high: int) -> dict[str, np.ndarray]:
    """Returns rows [low, high) of batch `step`.

    Returns:
      The columns of the rows, [high - low] each, and the histories as
      `models.TwoTower` takes them: `history_ids` [windows, length],
      `history_query_ids` [windows], `history_row` [high - low],
      `history_position` [high - low] and the scalar `history_first_row`.
      With times, also `history_times` [windows, length + 1]: the times of the
      events and, in all columns after them, of the newest targets.
    """
    # Starts at row 0: windows are numbered in the order of the whole batch.
    start = step * self._batch
    return self.places(start, start + high, skip=low)

  def places(self, low: int, high: int, skip: int = 0) -> dict[str, np.ndarray]:
    """Returns positions [low + skip, high) of the stream, numbered from `low`.

    Returns:
      The same as `share`.
    """
    targets, windows = self._stream(low, high)
    begins = _starts(windows)
    number = np.cumsum(begins) - 1
    targets, first_window = targets[skip:], int(number[skip])
    history_row = number[skip:] - first_window
    chosen = windows[begins][first_window:]
    first_event = self._windows.first_event[chosen]
    length, end = self._windows.length, self._end[chosen, np.newaxis]
    # One more than the window has: that of the newest targets, at its end.
    places = first_event[:, np.newaxis] + np.arange(length + 1)
    candidates = self._rows.columns["candidate_id"]
    ids = np.where(
      places < end,
      candidates[np.minimum(places, len(candidates) - 1)],
      history.NO_EVENT,
    )[:, :-1]
    times = {}
    if self._with_times:
      column = self._rows.columns["timestamp"]
      times["history_times"] = column[np.minimum(places, end)]
    queries = self._rows.columns["query_id"]
    return {
      name: column[targets] for name, column in self._rows.columns.items()
    } | {
      **times,
      "history_ids": ids.astype(np.int64),
      "history_query_ids": queries[self._windows.first_target[chosen]],
      "history_row": history_row.astype(np.int32),
      "history_position": (
        self._sees[targets] - first_event[history_row]
      ).astype(np.int32),
      "history_first_row": np.array(first_window, np.int64),
    }

  def dataset(
    self,
    *,
    start_step: int = 0,
    shares: Sequence[tuple[int, int]] | None = None,
    known: tf.RaggedTensor | None = None,
  ) -> tf.data.Dataset:
    """Returns endless batches; arguments as of `datasets.training_dataset`."""
    shares = tuple(shares or [(0, self._batch)])
    specs = self._specs({high - low for low, high in shares})

    def numpy_batch(element: np.ndarray) -> list[np.ndarray]:
      step = start_step + int(element) // len(shares)
      share = self.share(step, *shares[int(element) % len(shares)])
      return [share[name] for name in specs]

    def batch(element: tf.Tensor) -> dict[str, tf.Tensor]:
      values = datasets.from_numpy(numpy_batch, [element], list(specs.values()))
      rows = dict(zip(specs, values, strict=True))
      return rows if known is None else datasets.with_known(rows, known)

    return (
      tf.data.Dataset.range(np.iinfo(np.int64).max)
      .map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
      .prefetch(tf.data.AUTOTUNE)
    )

  def most_windows(self, num_steps: int) -> int:
    """Maximum number of windows in one of the first `num_steps` batches."""
    total, windows = self._windows.num_rows, len(self._windows.num_targets)
    first = np.arange(num_steps) * self._batch
    # Positions, in the endless stream of windows, of the first and the last
    # target of each batch.
    numbers = []
    for places in (first, first + self._batch - 1):
      epochs = places // total
      number = epochs * windows
      for epoch in np.unique(epochs):
        _, ends = self._epoch(int(epoch))
        now = epochs == epoch
        number[now] += np.searchsorted(ends, places[now] % total, side="right")
      numbers.append(number)
    return int((numbers[1] - numbers[0]).max()) + 1

  def _specs(self, sizes: set[int]) -> dict[str, tf.TensorSpec]:
    """Specs of a share whose number of rows is one of `sizes`."""
    size = sizes.pop() if len(sizes) == 1 else None
    shapes = {
      "history_ids": [None, self._windows.length],
      "history_times": [None, self._windows.length + 1],
      "history_query_ids": [None],
      "history_first_row": [],
    }
    return {
      name: tf.TensorSpec(shapes.get(name, [size]), column.dtype)
      for name, column in self.share(0, 0, 1).items()
    }

  def _stream(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and their windows at positions [low, high) of the stream."""
    total = self._windows.num_rows
    targets, windows = [], []
    while low < high:
      epoch, place = divmod(low, total)
      order, ends = self._epoch(epoch)
      stop = min(place + high - low, total)
      places = np.arange(place, stop)
      at = np.searchsorted(ends, places, side="right")
      window = order[at]
      from_end = ends[at] - places
      targets.append(
        self._windows.first_target[window]
        + self._windows.num_targets[window]
        - from_end
      )
      windows.append(window)
      low += stop - place
    return np.concatenate(targets), np.concatenate(windows)

  def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Order of the windows in an epoch, and the end of the targets of each."""
    if epoch not in self._epochs:
      rng = np.random.default_rng([*self._seeds, epoch])
      order = rng.permutation(len(self._windows.num_targets))
      found = order, np.cumsum(self._windows.num_targets[order])
      # A batch may span two epochs, and threads run ahead, so keep a few.
      self._epochs = dict(list(self._epochs.items())[-3:]) | {epoch: found}
      return found
    return self._epochs[epoch]


def _starts(values: np.ndarray) -> np.ndarray:
  """[n] bool, True at the start of each run of equal values."""
  starts = np.ones(len(values), bool)
  starts[1:] = values[1:] != values[:-1]
  return starts
