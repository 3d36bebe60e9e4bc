"""Writes the tables of queries and candidates, without TensorFlow.

`tables` describes the files and reads them.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from xir_tfrs.data import record_files
from xir_tfrs.data import schema as schema_lib

Column = np.ndarray | tuple[np.ndarray, np.ndarray]

RAGGED = ("token_seq", "text")
# No feature can have this name.
TITLE = "/title"


@dataclasses.dataclass(frozen=True)
class Table:
  """Queries or candidates by dense id.

  Attributes:
    ids: [rows] object array of str, the original ids; None if not read.
    counts: [rows] int64, number of training interactions.
    columns: name -> side feature, as `layers.CandidateTable` takes it: token
      int32 [rows]; token_seq and text (values int32 [n], row_splits int64
      [rows + 1]); float float32 [rows]; float_seq float32 [rows, length]. NaN
      means missing.
    titles: [rows] object array of str, "" for a row without a title; None if
      the table has no titles or they were not read.

  Examples:
    >>> from xir_tfrs.data import tables
    >>> table = tables.Table(
    ...   ids=np.array(["tea", "milk"], object),
    ...   counts=np.array([3, 1]),
    ...   columns={"price": np.array([2.5, 1.0], np.float32)},
    ... )
    >>> len(table)
    2
  """

  ids: np.ndarray | None
  counts: np.ndarray
  columns: dict[str, Column]
  titles: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.counts)


def write_table(
  data_dir: str | os.PathLike[str],
  table: str,
  rows: Table,
  features: Sequence[schema_lib.FeatureSchema],
  rows_per_shard: int = 1 << 20,
) -> tuple[schema_lib.Shard, ...]:
  """Writes the shards of `table` ("queries" or "candidates")."""
  num_shards = -(-len(rows) // rows_per_shard)
  shards = []
  for shard in range(num_shards):
    start = shard * rows_per_shard
    stop = min(start + rows_per_shard, len(rows))
    name = record_files.shard_name(table, shard, num_shards)
    with record_files.RecordWriter(pathlib.Path(data_dir) / name) as writer:
      for low in range(start, stop, record_files.BLOCK_ROWS):
        high = min(low + record_files.BLOCK_ROWS, stop)
        block = _block(table, rows, features, low, high)
        writer.write(record_files.encode(block))
    shards.append(schema_lib.Shard(name, stop - start))
  return tuple(shards)


def id_name(table: str) -> str:
  return "query_id" if table == "queries" else "candidate_id"


def _block(
  table: str,
  rows: Table,
  features: Sequence[schema_lib.FeatureSchema],
  low: int,
  high: int,
) -> dict[str, np.ndarray]:
  if rows.ids is None:
    raise ValueError(f"A table without ids cannot be written: {table}.")
  ids = [i.encode("utf-8") for i in rows.ids[low:high]]
  block = {
    id_name(table): np.array(ids, np.object_),
    "count": rows.counts[low:high],
  }
  if rows.titles is not None:
    titles = [title.encode("utf-8") for title in rows.titles[low:high]]
    block[TITLE] = np.array(titles, np.object_)
  for feature in features:
    column = rows.columns[feature.name]
    if isinstance(column, tuple):  # token_seq, text
      values, splits = column
      block[f"{feature.name}/values"] = values[splits[low] : splits[high]]
      block[f"{feature.name}/lengths"] = np.diff(splits[low : high + 1])
    else:
      block[feature.name] = column[low:high].reshape(-1)
  return block
