"""Histories: what a query did before each of its rows.

Nothing is stored for them. The rows of a query in order of time, and of the
file among equal times, are its history; a row sees those that are strictly
earlier, so that neither the row nor one of its own moment leaks into its
history. With `ties="order"`, which published leave-last tables use, the order
of the file decides among equal times.

Axes: n = rows, length = events of a window.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xir_tfrs.data import datasets, errors
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.ops import history

TIES = ("strict", "order")
# The column of a row's place among the rows of its query.
EVENT = "event"


@dataclasses.dataclass(frozen=True)
class Histories:
  """Rows by query and time, and how many rows before it each one sees.

  Attributes:
    columns: By name, [n] arrays of the rows, in order of query and time.
    first: [n] int64, the first row of the row's query.
    visible: [n] int64, how many rows of its query the row sees, from `first`.
    num_tied: Rows that share query and time with the row before.

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
        `candidate_id`, and `timestamp` and `event` where there are some.
      ties: One of `TIES`: whether a row sees those of its own time that stand
        before it.

    Raises:
      DataError: The rows have no order, for want of `event`.
      ValueError: Unknown `ties`.
    """
    if ties not in TIES:
      raise ValueError(
        f"`ties` must be one of {', '.join(TIES)}. Received: `ties` = {ties!r}."
      )
    if EVENT not in columns and "timestamp" not in columns:
      raise errors.DataError(
        "the interactions have neither times nor their order, which histories "
        f"go by; {schema_lib.REMEDY}"
      )
    queries = columns["query_id"]
    # The last key is the first to go by; a stable sort keeps the rest.
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
          f"{num_tied} interactions have the time of another one of their "
          "query, and their order is not known, which ties='order' goes by; "
          f"{schema_lib.REMEDY}"
        )
      if ties == "strict":
        seen_until = np.maximum.accumulate(np.where(moments, places, 0))
    return cls(columns, first, seen_until - first, num_tied)

  def before(self, rows: np.ndarray, length: int) -> np.ndarray:
    """[m, length] the newest candidates that [m] rows see, -1 in front."""
    end = self.first[rows] + self.visible[rows]
    return self._events(self.first[rows], end, length)

  def _events(
    self, low: np.ndarray, end: np.ndarray, length: int
  ) -> np.ndarray:
    """[m, length] candidates of the newest rows in [low, end)."""
    places = end[:, np.newaxis] - length + np.arange(length)
    candidates = self.columns["candidate_id"]
    if not len(candidates):
      return np.full(places.shape, history.NO_EVENT, np.int32)
    inside = places >= low[:, np.newaxis]
    return np.where(inside, candidates[np.maximum(places, 0)], history.NO_EVENT)


@dataclasses.dataclass(frozen=True)
class Windows:
  """Parts of histories that are encoded at once, with the targets of each.

  A window holds up to `length` events; its states, after each of its events,
  are the queries of its targets. Each row is the target of one window. A long
  history has several: the targets of a later one see at least half of
  `length` events before them.

  Attributes:
    length: Most events of a window.
    first_event: [windows] first row of the events.
    first_target, num_targets: [windows] the rows that are targets.

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
    # The first target of the next window of each query that has one yet.
    targets = np.flatnonzero(_starts(rows.first))
    sees = rows.first + rows.visible
    while len(targets):
      events = np.maximum(sees[targets] - length // 2, rows.first[targets])
      events_of.append(events)
      targets_of.append(targets)
      # Over all rows `sees` ascends, so one search finds every window's end.
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
    """Targets of all windows."""
    return int(self.num_targets.sum())


def rows_before_dataset(
  rows: Histories,
  *,
  length: int,
  **arguments: Any,
) -> tf.data.Dataset:
  """`datasets.training_dataset` with `history_ids`, a row per target.

  Args:
    rows: The training rows.
    length: Newest events of each row's history.
    **arguments: Of `datasets.training_dataset`.

  Returns:
    Its dataset; batches also have `history_ids`, [rows, length] int64.
  """
  place = {"row": np.arange(len(rows.first))}

  def with_history(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    batch = dict(batch)
    batch["history_ids"] = datasets.from_numpy(
      lambda x: rows.before(x, length).astype(np.int64),
      [batch.pop("row")],
      [tf.TensorSpec([None, length], tf.int64)],
    )[0]
    return batch

  return datasets.training_dataset(rows.columns | place, **arguments).map(
    with_history, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
  )


class PositionBatches:
  """Batches of targets whose histories are encoded a window at a time.

  Windows run through one permutation after another, and their targets with
  them; batch k holds the targets `[k B, (k + 1) B)` of this endless stream. So
  a batch has B rows always, each target comes once in an epoch, and batch k is
  the same whenever it is asked for and whichever replicas share it.

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
  ) -> None:
    """Takes the rows.

    Args:
      rows: The rows.
      windows: Their windows.
      global_batch_size: Rows per batch, B.
      seed: Seed of the permutations, or several that make one.

    Raises:
      ValueError: There are no rows, or `global_batch_size` is not positive.
    """
    if not windows.num_rows:
      raise ValueError("There are no training rows to make batches of.")
    if global_batch_size <= 0:
      raise ValueError(
        "`global_batch_size` must be positive. Received: "
        f"`global_batch_size` = {global_batch_size}."
      )
    self._rows, self._windows = rows, windows
    self._sees = rows.first + rows.visible
    # Of each window: past its newest event, whichever target sees it. Not of
    # the targets in a batch: ages must not depend on how batches are cut.
    self._end = self._sees[windows.first_target + windows.num_targets - 1]
    self._batch = global_batch_size
    self._seeds = [seed] if isinstance(seed, int) else [*seed]
    self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

  def share(self, step: int, low: int, high: int) -> dict[str, np.ndarray]:
    """Rows [low, high) of batch `step`.

    Returns:
      The columns of the rows, [high - low] each; `history_ids`, [windows,
      length], and `history_query_ids` [windows] of the windows that they are
      targets of; `history_row` and `history_position`, [high - low], where
      among them the history of each row is: its window, and its events; and
      `history_first_row`, the number of the first of them in the batch.
    """
    # From row 0 on: windows are numbered in the order of the whole batch.
    start = step * self._batch
    return self.places(start, start + high, skip=low)

  def places(self, low: int, high: int, skip: int = 0) -> dict[str, np.ndarray]:
    """Rows at places [low + skip, high) of the stream, numbered from `low`.

    Returns:
      As `share`.
    """
    targets, windows = self._stream(low, high)
    begins = _starts(windows)
    number = np.cumsum(begins) - 1
    targets, first_window = targets[skip:], int(number[skip])
    history_row = number[skip:] - first_window
    chosen = windows[begins][first_window:]
    first_event = self._windows.first_event[chosen]
    length = self._windows.length
    events = first_event[:, np.newaxis] + np.arange(length)
    candidates = self._rows.columns["candidate_id"]
    ids = np.where(
      events < self._end[chosen, np.newaxis],
      candidates[np.minimum(events, len(candidates) - 1)],
      history.NO_EVENT,
    )
    queries = self._rows.columns["query_id"]
    return {
      name: column[targets] for name, column in self._rows.columns.items()
    } | {
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
    """Endless batches from `start_step` on; arguments of `training_dataset`."""
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
    """The most windows that one of the first batches has."""
    total, windows = self._windows.num_rows, len(self._windows.num_targets)
    first = np.arange(num_steps) * self._batch
    # In the endless stream of windows: that of the first target of each batch,
    # and that of the last.
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
    """What a share of one of `sizes` is made of."""
    size = sizes.pop() if len(sizes) == 1 else None
    shapes = {
      "history_ids": [None, self._windows.length],
      "history_query_ids": [None],
      "history_first_row": [],
    }
    return {
      name: tf.TensorSpec(shapes.get(name, [size]), column.dtype)
      for name, column in self.share(0, 0, 1).items()
    }

  def _stream(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and their windows at places [low, high) of the stream."""
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
    """An epoch's order of the windows, and where the targets of each end."""
    if epoch not in self._epochs:
      rng = np.random.default_rng([*self._seeds, epoch])
      order = rng.permutation(len(self._windows.num_targets))
      found = order, np.cumsum(self._windows.num_targets[order])
      # A batch may reach into the next epoch, and threads run ahead: a few.
      self._epochs = dict(list(self._epochs.items())[-3:]) | {epoch: found}
      return found
    return self._epochs[epoch]


def _starts(values: np.ndarray) -> np.ndarray:
  """[n] bool, where a run of equal values begins."""
  starts = np.ones(len(values), bool)
  starts[1:] = values[1:] != values[:-1]
  return starts
