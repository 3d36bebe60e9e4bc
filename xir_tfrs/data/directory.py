"""The data directory: created in one step, read lazily."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np

from xir_tfrs.data import blocks, records, tables
from xir_tfrs.data import schema as schema_lib

_COLUMNS = ("query_id", "candidate_id", "sample_weight")
_ORDER = ("timestamp", "event")


class DataDir:
  """A data directory whose contents are read on first use and kept.

  The constructor parses the schema. Each split and table is decoded when it is
  first used, and then kept. Original ids are not decoded.

  Attributes:
    path: The directory.
    schema: The schema; with `all_rows`, all rows are training rows.
    schema_sha256: The hash of schema.json, which identifies the data of a run.

  Examples:
    >>> from xir_tfrs.data import directory, records, schema
    >>> ids = np.arange(2)
    >>> with records.BlockWriter("train-0") as writer:
    ...   writer.append({"query_id": ids, "candidate_id": ids})
    >>> schema.Schema(
    ...   name="tiny",
    ...   num_queries=2,
    ...   num_candidates=2,
    ...   rows={"train": 2},
    ...   shards={"train": (schema.Shard("train-0", rows=2),)},
    ... ).save(".")
    >>> directory.DataDir(".").rows("train")["candidate_id"]
    array([0, 1], dtype=int32)
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    all_rows: bool = False,
    rows_in_memory: int = 0,
  ) -> None:
    """Opens a directory written by `pipelines.prepare`.

    Args:
      path: The directory.
      all_rows: Whether the rows of all splits are training rows, for a final
        model without held-out rows.
      rows_in_memory: Maximum number of training rows in memory; 0 for no limit.

    Raises:
      DataError: `path` is not a data directory, or its schema is invalid.
    """
    self.path = pathlib.Path(path)
    self._on_disk, self.schema_sha256 = schema_lib.Schema.load_hashed(path)
    self._all_rows = all_rows
    self.schema = self._on_disk
    if all_rows:
      total = sum(self.schema.rows.values())
      self.schema = msgspec.structs.replace(self.schema, rows={"train": total})
    self._most = rows_in_memory
    self._rows: dict[tuple[str, bool], Mapping[str, np.ndarray]] = {}

  @property
  def fits(self) -> bool:
    """Whether the training rows fit in `rows_in_memory`."""
    return not self._most or self.schema.rows["train"] <= self._most

  def rows(
    self, split: str, in_order: bool = False
  ) -> Mapping[str, np.ndarray]:
    """Returns the rows of a split.

    Args:
      split: Name of the split.
      in_order: Whether to read `timestamp` and `event` too. Only histories need
        them, and they take two thirds of the memory.

    Returns:
      name -> [rows] array, as `records.read_interactions`. The arrays are
      shared: do not modify them. There may be more columns than requested.
    """
    in_order = in_order or (split, True) in self._rows
    key = split, in_order
    if key not in self._rows:
      columns = _COLUMNS + (_ORDER if in_order else ())
      rows = self._read(split, columns)
      if self._all_rows and split != "train":
        rows = {name: column[:0] for name, column in rows.items()}
      self._rows[key] = rows
    return self._rows[key]

  def _read(
    self, split: str, columns: Sequence[str]
  ) -> Mapping[str, np.ndarray]:
    parts = [
      records.read_interactions(
        self.path, name, schema=self._on_disk, columns=columns
      )
      for name in self._splits(split)
    ]
    if len(parts) == 1:
      return parts[0]
    return {
      name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }

  def _splits(self, split: str) -> Sequence[str]:
    """The splits on disk that make up a split."""
    return schema_lib.SPLITS if self._all_rows else [split]

  def rows_of(
    self, split: str, query_ids: np.ndarray, in_order: bool = False
  ) -> Mapping[str, np.ndarray]:
    """Returns at least the rows of a split that belong to some queries.

    If the training rows do not fit in memory, reads them and keeps those of the
    queries. Otherwise returns `rows`.
    """
    if split != "train" or self.fits:
      return self.rows(split, in_order)
    wanted = np.zeros(self.schema.num_queries, bool)
    wanted[query_ids] = True
    names = _COLUMNS + (_ORDER if in_order else ())
    spec = records.interaction_spec(self.schema, names)
    parts = {
      name: [np.empty(0, records.in_memory_type(name, dtype))]
      for name, dtype in spec.items()
    }
    for batch in self._batches(names):
      chosen = wanted[batch.values["query_id"]]
      for name, found in parts.items():
        found.append(batch.values[name][chosen].astype(found[0].dtype))
    return {name: np.concatenate(found) for name, found in parts.items()}

  def training_blocks(
    self, in_order: bool = False, by_query: bool = False
  ) -> blocks.Blocks:
    """Locates the training rows on disk; see `blocks.Blocks`."""
    columns = _COLUMNS + (_ORDER if in_order else ())
    return blocks.Blocks.of_batches(
      self._batches(columns),
      self._on_disk,
      self.path,
      columns=columns,
      by_query=by_query,
    )

  def _batches(self, columns: Sequence[str]) -> Iterator[records.Batch]:
    """Yields the training rows, a few records at a time."""
    for split in self._splits("train"):
      yield from records.read_batches(self.path, split, self._on_disk, columns)

  @functools.cached_property
  def queries(self) -> tables.Table:
    """Counts and side features of the queries, without their ids.

    Rows of weight 0 are not counted: they are not training rows.
    """
    return self._table("queries", "query_id")

  @functools.cached_property
  def candidates(self) -> tables.Table:
    """Counts and side features of the candidates, without their ids."""
    return self._table("candidates", "candidate_id")

  def ids(self, table: str) -> np.ndarray:
    """Reads the original ids: [rows] object array of UTF-8 bytes; not kept."""
    return tables.read_ids(self.path, table, schema=self.schema)

  def titles(self) -> np.ndarray | None:
    """Reads the titles of the candidates; they are not kept in memory.

    Returns:
      [num_candidates] object array of str: the titles that
      `pipelines.prepare --item_title` stored, by dense id, "" if a candidate
      has none; None if the data has no titles.
    """
    return tables.read_titles(self.path, schema=self.schema)

  def _table(self, name: str, id_column: str) -> tables.Table:
    if tables.is_foreign(self.schema, name):
      self.ids(name)  # Raises if the ids are invalid.
    table = tables.read_table(
      self.path, name, schema=self.schema, with_ids=False
    )
    has_weights = any(
      column.name == "sample_weight"
      for column in self.schema.interaction_features
    )
    if not (has_weights or self._all_rows):
      return table  # Its counts already are those of the training rows.
    counts, num_left_out = np.zeros(len(table), np.int64), 0
    if self.fits:
      parts: Iterable[Mapping[str, np.ndarray]] = [self.rows("train")]
    else:
      columns = (id_column, "sample_weight")
      parts = (batch.values for batch in self._batches(columns))
    for rows in parts:
      ids = rows[id_column]
      if has_weights:
        ids = ids[rows["sample_weight"] != 0]
      np.add.at(counts, ids, 1)
      num_left_out += len(rows[id_column]) - len(ids)
    if not num_left_out and not self._all_rows:
      return table
    return dataclasses.replace(table, counts=counts)
