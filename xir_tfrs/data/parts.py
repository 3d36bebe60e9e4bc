"""Training rows that are read into memory one part at a time.

Each epoch permutes the units of rows on disk (`data.blocks`) and cuts them into
parts that fit in memory; the rows of a part are shuffled. The position of each
row depends on (seed, epoch) alone, so a batch depends on (seed, step) alone: no
order is stored, and any step can be reached by reading its part.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Protocol

import numpy as np
import tensorflow as tf

from xir_tfrs.data import blocks as blocks_lib
from xir_tfrs.data import datasets, errors, histories

Columns = dict[str, np.ndarray]
# AUTOTUNE may make hundreds, whose known candidates outgrow the parts.
_BATCHES_AHEAD = 16
# TensorFlow copies NumPy arrays that begin at other multiples of bytes.
_ALIGNMENT = 64
# The columns of a batch with one value per window instead of per row.
_OF_WINDOWS = ("history_ids", "history_times", "history_query_ids")


class Part(Protocol):
  """Rows that are in memory together, in epoch order."""

  def rows(self, low: int, high: int) -> Columns:
    """Returns rows [low, high) as a batch."""


class ShuffledRows:
  """A part whose rows are used directly as batches.

  With `history_length`, each row has its own history: `history_ids`, [rows,
  history_length] int64; and on request `history_times`, as in
  `histories.rows_before_dataset`.
  """

  def __init__(
    self,
    columns: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    *,
    history_length: int | None = None,
    ties: str = "strict",
    with_times: bool = False,
  ) -> None:
    self._histories, self._with_times = None, with_times
    if history_length is not None:
      self._histories = histories.Histories.of_rows(columns, ties)
      columns = self._histories.columns
    self._columns, self._length = columns, history_length
    self._order = np.arange(len(columns["query_id"]), dtype=np.int32)
    np.random.default_rng(seeds).shuffle(self._order)

  def rows(self, low: int, high: int) -> Columns:
    chosen = self._order[low:high]
    found = {name: column[chosen] for name, column in self._columns.items()}
    if self._histories is not None:
      assert self._length is not None
      before = self._histories.before(chosen, self._length)
      found["history_ids"] = before.astype(np.int64)
      if self._with_times:
        times = self._histories.times_before(chosen, self._length)
        found["history_times"] = times
    return found


class ShuffledPositions:
  """A part whose rows are the targets of history windows."""

  def __init__(
    self,
    columns: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    *,
    history_length: int,
    ties: str = "strict",
    with_times: bool = False,
  ) -> None:
    rows = histories.Histories.of_rows(columns, ties)
    windows = histories.Windows.of_histories(rows, history_length)
    self._batches = histories.PositionBatches(
      rows,
      windows,
      global_batch_size=len(rows.first),
      seed=seeds,
      with_times=with_times,
    )

  def rows(self, low: int, high: int) -> Columns:
    return self._batches.places(low, high)


class KnownCandidates:
  """The candidates of each query of a part."""

  def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
    # Halves of 32 bits come apart without division.
    pairs = datasets.distinct_pairs([columns], 1 << 32)
    self._candidates = pairs.astype(columns["candidate_id"].dtype)
    pairs >>= 32
    first = np.flatnonzero(np.diff(pairs, prepend=-1))
    self._queries = pairs[first].astype(columns["query_id"].dtype)
    self._splits = np.append(first, len(pairs))

  def of_queries(
    self, query_ids: np.ndarray
  ) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns views of the candidates of some queries, and their counts."""
    entries = np.searchsorted(self._queries, query_ids)
    starts, ends = self._splits[entries], self._splits[entries + 1]
    views = [
      self._candidates[start:end]
      for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    return views, ends - starts


@dataclasses.dataclass(frozen=True)
class _Loaded:
  part: Part
  known: KnownCandidates | None


@dataclasses.dataclass(frozen=True)
class _Epoch:
  """The order of the units in an epoch, and the end of each part.

  Attributes:
    order: [units] units in order.
    unit_ends: [parts] number of units up to the end of each part.
    row_ends: [parts] number of rows up to the end of each part.
  """

  order: np.ndarray
  unit_ends: np.ndarray
  row_ends: np.ndarray


class Parts:
  """Batches of rows on disk; two parts are in memory at a time.

  One part is in use while the next one is read.

  Attributes:
    num_rows: Rows per epoch.
    masks_known: Whether batches have the known candidates of their queries.
    failure: The error that ended a dataset; TensorFlow's own error hides it.
  """

  def __init__(
    self,
    blocks: blocks_lib.Blocks,
    make: Callable[[Columns, Sequence[int]], Part],
    *,
    rows_in_memory: int,
    global_batch_size: int,
    seed: int,
    masks_known: bool = False,
    weights: np.ndarray | None = None,
  ) -> None:
    """Plans the parts, without reading rows.

    Args:
      blocks: The rows. If a part needs all rows of a query, or with
        `masks_known`, blocks that share queries must share a unit.
      make: Makes a part from its rows and seeds.
      rows_in_memory: Maximum number of rows of two parts.
      global_batch_size: Rows per batch.
      seed: Seed of the permutations.
      masks_known: Whether each batch gets the candidates of its queries, as
        `datasets.with_known` adds them.
      weights: [num_candidates] factors for the weights of each candidate's
        rows; None for all 1.

    Raises:
      DataError: Rows that must be in memory together do not fit.
    """
    units = blocks.unit
    if units is None:
      units = np.arange(len(blocks.rows))
    self._blocks, self._make = blocks, make
    self._batch, self._seed = global_batch_size, seed
    self.masks_known, self._weights = masks_known, weights
    self._by_unit = np.argsort(units, kind="stable")
    self._unit_ends = np.cumsum(np.bincount(units))
    self._unit_rows = np.bincount(units, blocks.rows).astype(np.int64)
    self._on_disk = np.bincount(units, blocks.rows_on_disk).astype(np.int64)
    self._capacity = rows_in_memory // 2
    self.num_rows = int(self._unit_rows.sum())
    largest = int(self._on_disk.max())
    if largest > self._capacity:
      remedy = ""
      if blocks.unit is not None:
        remedy = (
          ". They share queries. If an earlier version prepared the data, "
          "which mixed queries, prepare it again with --overwrite"
        )
      raise errors.DataError(
        f"--rows_in_memory {rows_in_memory:,} is too few: {largest:,} rows "
        "must be in memory together, and two such parts. Give at least "
        f"{2 * largest:,}{remedy}",
        path=blocks.paths[0].parent,
      )
    self._epochs: dict[int, _Epoch] = {}
    self._held: dict[tuple[int, int], futures.Future[_Loaded]] = {}
    self.failure: errors.DataError | None = None
    self._lock = threading.Lock()
    self._reader = futures.ThreadPoolExecutor(1)

  def share(self, step: int, low: int, high: int) -> Columns:
    """Returns rows [low, high) of batch `step`.

    Returns:
      The columns of the rows, as the parts return them. With `masks_known` also
      `known_candidate_ids`, the concatenated candidates of the distinct
      queries, `known_lengths`, their numbers, and `known_row` [high - low].

    Raises:
      DataError: A file can no longer be read.
    """
    start = step * self._batch
    pieces = self._pieces(start, start + high)
    rows = _without(
      low, _joined([loaded.part.rows(a, b) for loaded, a, b in pieces])
    )
    if not self.masks_known:
      return rows
    return rows | _known(pieces, rows["query_id"], low)

  def free(self) -> None:
    """Drops the rows in memory; a further batch reads them again.

    TensorFlow never frees the function of a dataset, which holds this object.
    """
    with self._lock:
      self._held.clear()

  def dataset(
    self,
    *,
    start_step: int = 0,
    shares: Sequence[tuple[int, int]] | None = None,
  ) -> tf.data.Dataset:
    """Returns endless batches; arguments as of `datasets.training_dataset`.

    A thread of the iterator calls Python ahead of the caller. At the end of a
    script it would wait for the interpreter, and the interpreter for it, so do
    not keep the iterator in a global variable: use it in a function, or `del`
    it.
    """
    shares = tuple(shares or [(0, self._batch)])
    specs = self._specs({high - low for low, high in shares})

    def numpy_batch(element: np.ndarray) -> list[np.ndarray]:
      step = start_step + int(element) // len(shares)
      try:
        share = self.share(step, *shares[int(element) % len(shares)])
      except errors.DataError as error:
        self.failure = error
        raise
      return [share[name] for name in specs]

    def batch(element: tf.Tensor) -> dict[str, tf.Tensor]:
      values = datasets.from_numpy(numpy_batch, [element], list(specs.values()))
      rows = dict(zip(specs, values, strict=True))
      if self.masks_known:
        rows["known_candidate_ids"] = tf.RaggedTensor.from_row_lengths(
          rows["known_candidate_ids"], rows.pop("known_lengths"), validate=False
        )
      return rows

    # Not in parallel: a later batch would drop the part that this one needs.
    options = tf.data.Options()
    options.experimental_optimization.map_parallelization = False
    return (
      tf.data.Dataset.range(np.iinfo(np.int64).max)
      .map(batch)
      .prefetch(_BATCHES_AHEAD)
      .with_options(options)
    )

  def _specs(self, sizes: set[int]) -> dict[str, tf.TensorSpec]:
    """Specs of a share whose number of rows is one of `sizes`."""
    size = sizes.pop() if len(sizes) == 1 else None
    # Reads any block for the specs: the first batch may need a whole part.
    block = np.flatnonzero(self._blocks.rows)[:1]
    loaded = self._loaded(block, (self._seed,))
    sample = loaded.part.rows(0, 1)
    windows = _OF_WINDOWS if "history_row" in sample else ()
    specs = {}
    for name, column in sample.items():
      shape = [None if name in windows else size, *column.shape[1:]]
      specs[name] = tf.TensorSpec(shape if column.shape else [], column.dtype)
    if self.masks_known:
      dtype = sample["candidate_id"].dtype
      specs["known_candidate_ids"] = tf.TensorSpec([None], dtype)
      specs["known_lengths"] = tf.TensorSpec([None], tf.int64)
      specs["known_row"] = tf.TensorSpec([size], tf.int32)
    return specs

  def _pieces(self, low: int, high: int) -> list[tuple[_Loaded, int, int]]:
    """The parts, with row ranges, that make up [low, high) of the stream."""
    found = []
    while low < high:
      number, place = divmod(low, self.num_rows)
      ends = self._epoch(number).row_ends
      part = int(np.searchsorted(ends, place, side="right"))
      begin = int(ends[part - 1]) if part else 0
      stop = min(place + high - low, int(ends[part]))
      found.append(((number, part), place - begin, stop - begin))
      low += stop - place
    loaded = self._hold([key for key, _, _ in found])
    return [
      (part, first, last)
      for part, (_, first, last) in zip(loaded, found, strict=True)
    ]

  def _hold(self, keys: Sequence[tuple[int, int]]) -> list[_Loaded]:
    """Loads parts and drops all others except the next one."""
    with self._lock:
      wanted = [*keys] if len(keys) > 1 else [*keys, self._after(*keys[0])]
      for key in self._held.keys() - set(wanted):
        del self._held[key]
      for key in wanted:
        if key not in self._held:
          self._held[key] = self._reader.submit(self._read, *key)
      waiting = [self._held[key] for key in keys]
    return [part.result() for part in waiting]

  def _after(self, epoch: int, part: int) -> tuple[int, int]:
    """The next part with rows."""
    ends = self._epoch(epoch).row_ends
    following = int(np.searchsorted(ends, ends[part], side="right"))
    return (epoch, following) if following < len(ends) else (epoch + 1, 0)

  def _read(self, epoch: int, part: int) -> _Loaded:
    order, unit_ends = self._epoch(epoch).order, self._epoch(epoch).unit_ends
    units = order[unit_ends[part - 1] if part else 0 : unit_ends[part]]
    ends = self._unit_ends[units]
    sizes = np.diff(self._unit_ends, prepend=0)[units]
    blocks = [
      self._by_unit[end - size : end]
      for end, size in zip(ends, sizes, strict=True)
    ]
    return self._loaded(np.concatenate(blocks), (self._seed, epoch, part + 1))

  def _loaded(self, blocks: np.ndarray, seeds: Sequence[int]) -> _Loaded:
    columns = self._blocks.read(blocks)
    if self._weights is not None:
      weights = self._weights[columns["candidate_id"]]
      weights *= columns.get("sample_weight", 1.0)
      columns["sample_weight"] = weights.astype(np.float32)
    known = KnownCandidates(columns) if self.masks_known else None
    return _Loaded(self._make(columns, seeds), known)

  def _epoch(self, number: int) -> _Epoch:
    if number not in self._epochs:
      rng = np.random.default_rng([self._seed, number])
      order = rng.permutation(len(self._unit_rows))
      ends = _part_ends(self._on_disk[order], self._capacity)
      rows = np.cumsum(self._unit_rows[order])[ends - 1]
      found = _Epoch(order, ends, rows)
      # Two threads may work on different epochs.
      self._epochs = dict(list(self._epochs.items())[-2:]) | {number: found}
      return found
    return self._epochs[number]


def _part_ends(sizes: np.ndarray, most: int) -> np.ndarray:
  """Cuts a sequence into parts of about equal size, at most `most` each.

  Args:
    sizes: [n] sizes of the elements, none above `most`.
    most: Maximum size of a part.

  Returns:
    [parts] ends; the last one is n.
  """
  until = np.cumsum(sizes)
  total = int(until[-1])
  # A part ends at the unit that reaches its share of the total.
  num_parts = -(-total // (most - int(sizes.max()) + 1))
  if num_parts >= len(sizes):
    return np.arange(1, len(sizes) + 1)
  shares = total * np.arange(1, num_parts + 1) // num_parts
  return np.unique(np.searchsorted(until, shares)) + 1


def _known(
  pieces: Sequence[tuple[_Loaded, int, int]], query_ids: np.ndarray, low: int
) -> Columns:
  """Known candidates of the batch's queries, without its first `low` rows."""
  lists: list[np.ndarray] = []
  lengths, numbers = [], []
  at = -low
  for loaded, first, last in pieces:
    here = slice(max(at, 0), max(at + last - first, 0))
    at += last - first
    queries, number = np.unique(query_ids[here], return_inverse=True)
    numbers.append(number + len(lists))
    assert loaded.known is not None
    found, length = loaded.known.of_queries(queries)
    lists += found
    lengths.append(length)
  known_lengths = np.concatenate(lengths)
  ids = _aligned(int(known_lengths.sum()), lists[0].dtype)
  return {
    "known_candidate_ids": np.concatenate(lists, out=ids),
    "known_lengths": known_lengths,
    "known_row": np.concatenate(numbers).astype(np.int32),
  }


def _aligned(size: int, dtype: np.dtype) -> np.ndarray:
  """[size] array to fill, which TensorFlow uses without a copy."""
  num_bytes = size * dtype.itemsize
  memory = np.empty(num_bytes + _ALIGNMENT, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + num_bytes].view(dtype)


def _joined(batches: Sequence[Columns]) -> Columns:
  """Concatenates batches, including their history windows."""
  if len(batches) == 1:
    return batches[0]
  if "history_row" in batches[0]:
    num_windows = 0
    for batch in batches:
      batch["history_row"] += num_windows
      num_windows += len(batch["history_ids"])
  return {
    name: np.concatenate([batch[name] for batch in batches])
    if value.shape
    else value
    for name, value in batches[0].items()
  }


def _without(low: int, batch: Columns) -> Columns:
  """Drops the first `low` rows of a batch and windows only they use."""
  if not low:
    return batch
  if "history_row" not in batch:
    return {name: column[low:] for name, column in batch.items()}
  first = int(batch["history_row"][low])
  found = {
    name: column[first if name in _OF_WINDOWS else low :]
    for name, column in batch.items()
    if column.shape
  }
  found["history_row"] = found["history_row"] - np.int32(first)
  return found | {"history_first_row": np.array(first, np.int64)}
