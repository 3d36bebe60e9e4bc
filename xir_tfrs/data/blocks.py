"""Random access to blocks of rows on disk.

One pass over the files checks every row and records where each block of a few
thousand rows begins, which takes about a byte of memory per hundred rows. After
that, blocks can be read in any order.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs.data import errors, records
from xir_tfrs.data import schema as schema_lib

# Records with fewer rows than this on average are joined.
_FEW_ROWS = 16
# Rows that are parsed at once.
_ROWS_AT_ONCE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Blocks:
  """The locations of blocks of rows, and statistics of the rows.

  Blocks leave out rows of weight 0, which training does not use.

  Attributes:
    paths: The files.
    spec: The columns to read, with their types on disk.
    file: [blocks] index of the block's file.
    start: [blocks] offset of the block in bytes.
    size: [blocks] size of the block in bytes.
    rows_on_disk: [blocks] number of rows, including those of weight 0.
    rows: [blocks] number of rows of positive weight.
    unit: [blocks] a number that is equal for blocks that share a query; None
      unless requested.
    counts: Rows of each `query_id`, [queries], and of each `candidate_id`,
      [candidates].
    weights: [candidates] float64 sum of the weights of the candidate's rows;
      None if rows have no weights.
  """

  paths: tuple[pathlib.Path, ...]
  spec: Mapping[str, tf.dtypes.DType]
  file: np.ndarray
  start: np.ndarray
  size: np.ndarray
  rows_on_disk: np.ndarray
  rows: np.ndarray
  unit: np.ndarray | None
  counts: Mapping[str, np.ndarray]
  weights: np.ndarray | None

  @classmethod
  def of_batches(
    cls,
    batches: Iterable[records.Batch],
    schema: schema_lib.Schema,
    data_dir: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    by_query: bool = False,
  ) -> Blocks:
    """Locates blocks in one pass over the rows.

    Args:
      batches: The rows, as `records.read_batches` returns them.
      schema: The schema of their data directory.
      data_dir: The data directory, for errors.
      columns: The columns to read, as in `records.read_batches`.
      by_query: Whether to find out which blocks share queries.

    Raises:
      DataError: A file or a row is invalid, or all rows have weight 0.
    """
    found = _Found(schema, by_query)
    for batch in batches:
      found.add(batch)
    total = int(found.counts["query_id"].sum())
    if found.weights is not None and not total:
      raise errors.DataError(
        "all training rows have weight 0", path=data_dir, column="sample_weight"
      )
    return cls(
      paths=tuple(found.starts),
      spec=records.interaction_spec(schema, columns),
      file=np.array(found.file, np.int32),
      start=np.array(found.start, np.int64),
      size=np.array(found.size, np.int64),
      rows_on_disk=np.array(found.rows_on_disk, np.int64),
      rows=np.array(found.rows, np.int64),
      unit=found.sharing.units() if found.sharing else None,
      counts=found.counts,
      weights=found.weights,
    )

  def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Reads the columns of some blocks, by name, in file order.

    Raises:
      DataError: A file has changed.
    """
    numbers = np.sort(numbers)
    end = int(self.rows_on_disk[numbers].sum())
    columns = {
      name: np.empty(end, records.in_memory_type(name, dtype))
      for name, dtype in self.spec.items()
    }
    # Reads several blocks at once, about the same number of rows each time.
    lots = np.cumsum(self.rows_on_disk[numbers]) // _ROWS_AT_ONCE
    at = 0
    for lot in np.split(numbers, np.flatnonzero(np.diff(lots)) + 1):
      serialized = [r for number in lot for r in self._records(number)]
      values = self._parse(tf.constant(serialized, tf.string))
      expected = int(self.rows_on_disk[lot].sum())
      for name, column in columns.items():
        found = values[name].numpy()
        if len(found) != expected:
          raise self._changed(lot[0])
        column[at : at + expected] = found
      at += expected
    weights = columns.get("sample_weight")
    if weights is None or (weights > 0).all():
      return columns
    return {name: column[weights > 0] for name, column in columns.items()}

  def _records(self, number: int) -> Iterator[bytes]:
    """The serialized examples of a block."""
    path = self.paths[self.file[number]]
    size = int(self.size[number])
    try:
      with open(path, "rb", buffering=0) as file:
        file.seek(int(self.start[number]))
        content = file.read(size)
    except FileNotFoundError:
      raise self._changed(number) from None
    at = 0
    while at < size:
      length = int.from_bytes(content[at : at + 8], "little")
      if at + length + _FRAME > len(content):
        raise self._changed(number)
      yield content[at + _BEFORE : at + _BEFORE + length]
      at += length + _FRAME

  def _changed(self, number: int) -> errors.DataError:
    return errors.DataError(
      f"was changed while it was in use; {schema_lib.REMEDY}",
      path=self.paths[self.file[number]],
    )

  @functools.cached_property
  def _parse(self) -> tf.types.experimental.GenericFunction:
    features = {
      name: tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
      for name, dtype in self.spec.items()
    }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
      ragged = tf.io.parse_example(serialized, features)
      return {name: column.flat_values for name, column in ragged.items()}

    return parse


# Layout of a record in a TFRecord file: its length (8 bytes), the checksum of
# the length (4), the record, the checksum of the record (4).
_BEFORE, _FRAME = 12, 16


def record_starts(path: pathlib.Path) -> np.ndarray:
  """[records + 1] offset of each record in bytes, and the end of the last."""
  end = path.stat().st_size
  starts = [0]
  with open(path, "rb") as file:
    while starts[-1] < end:
      file.seek(starts[-1])
      starts.append(
        starts[-1] + int.from_bytes(file.read(8), "little") + _FRAME
      )
  return np.array(starts)


class _Found:
  """The results of one pass over the files."""

  def __init__(self, schema: schema_lib.Schema, by_query: bool) -> None:
    self.starts: dict[pathlib.Path, np.ndarray] = {}
    self.file: list[int] = []
    self.start: list[int] = []
    self.size: list[int] = []
    self.rows_on_disk: list[int] = []
    self.rows: list[int] = []
    self.counts = {
      "query_id": np.zeros(schema.num_queries, np.int64),
      "candidate_id": np.zeros(schema.num_candidates, np.int64),
    }
    self.weights: np.ndarray | None = None
    self.sharing = _Sharing(schema.num_queries) if by_query else None
    self._schema = schema
    self._record = 0

  def add(self, batch: records.Batch) -> None:
    """Adds some records of a file."""
    if batch.path not in self.starts:
      self.starts[batch.path] = record_starts(batch.path)
      self._record = 0
    starts = self.starts[batch.path]
    lengths = batch.lengths["query_id"]
    ends = np.append(0, np.cumsum(lengths))
    begins = _begins(lengths)
    trained = np.ones(ends[-1], bool)
    if "sample_weight" in batch.values:
      trained = self._weigh(batch)
    for first, last in zip(begins, [*begins[1:], len(lengths)], strict=True):
      rows = slice(ends[first], ends[last])
      start, end = starts[[self._record + first, self._record + last]]
      self.file.append(len(self.starts) - 1)
      self.start.append(start)
      self.size.append(end - start)
      self.rows_on_disk.append(ends[last] - ends[first])
      self.rows.append(int(trained[rows].sum()))
      if self.sharing is not None:
        self.sharing.add(batch.values["query_id"][rows])
    for name, total in self.counts.items():
      ids = batch.values[name][trained]
      np.add.at(total, ids, 1)
    self._record += len(lengths)

  def _weigh(self, batch: records.Batch) -> np.ndarray:
    """[n] bool, the rows of positive weight; adds up their weights."""
    batch.require_weights("sample_weight")
    weights = batch.values["sample_weight"].astype(np.float64)
    if self.weights is None:
      self.weights = np.zeros(self._schema.num_candidates, np.float64)
    np.add.at(self.weights, batch.values["candidate_id"], weights)
    return weights > 0


def _begins(lengths: np.ndarray) -> list[int]:
  """The first record of each block, given the rows of each record."""
  if lengths.mean() >= _FEW_ROWS:
    return list(range(len(lengths)))
  before = np.cumsum(lengths) - lengths
  return np.unique(before // records.BLOCK_ROWS, return_index=True)[1].tolist()


class _Sharing:
  """Groups blocks that share queries, as trees of a union-find forest."""

  def __init__(self, num_queries: int) -> None:
    # The first block with rows of each query.
    self._first = np.full(num_queries, -1, np.int32)
    self._parents: list[int] = []

  def add(self, query_ids: np.ndarray) -> None:
    """Adds the next block."""
    number = len(self._parents)
    self._parents.append(number)
    first = self._first[query_ids]
    self._first[query_ids[first < 0]] = number
    # There are few blocks, so counting is faster than sorting.
    for other in np.flatnonzero(np.bincount(first[first >= 0])).tolist():
      self._parents[self._root(other)] = self._root(number)

  def units(self) -> np.ndarray:
    """[blocks] the number of each block's tree."""
    roots = [self._root(number) for number in range(len(self._parents))]
    return np.unique(roots, return_inverse=True)[1]

  def _root(self, number: int) -> int:
    parents = self._parents
    while parents[number] != number:
      parents[number] = parents[parents[number]]
      number = parents[number]
    return number
