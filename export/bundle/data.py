"""Reads what an export needs of a data directory made by pipelines.prepare.

A record is a `tf.train.Example` that holds a block of rows as packed columns;
one row per record is a block of one row.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib

import numpy as np
import tensorflow as tf

from xir_tfrs.data import errors

SCHEMA_FORMAT = 1
_RECORDS_PER_BATCH = 256
_REMEDY = "prepare the data again with --overwrite"


def read_schema(data_dir: str | os.PathLike[str]) -> dict:
  """schema.json, with the `sha256` of its bytes added."""
  path = pathlib.Path(data_dir) / "schema.json"
  try:
    content = path.read_bytes()
    schema = json.loads(content)
    found = schema.get("format")
  except OSError:
    raise errors.DataError(
      f"{path}: cannot be read, so --data is not a finished data directory; "
      "make one with python -m pipelines.prepare"
    ) from None
  except (ValueError, AttributeError):
    raise errors.DataError(f"{path}: not a schema; {_REMEDY}") from None
  if found != SCHEMA_FORMAT:
    raise errors.DataError(
      f"{path}: `format` must be {SCHEMA_FORMAT}. Received: {found!r}; "
      f"{_REMEDY}"
    )
  return {**schema, "sha256": hashlib.sha256(content).hexdigest()}


def read_table(
  data_dir: str | os.PathLike[str], schema: dict, table: str
) -> tuple[np.ndarray, np.ndarray]:
  """Original ids and training counts by dense id.

  Args:
    data_dir: the data directory.
    schema: from `read_schema`.
    table: "queries" or "candidates".

  Returns:
    ids `[rows]`, an object array of utf-8 bytes, and counts `[rows]`, int64.
  """
  key = {"queries": "query_id", "candidates": "candidate_id"}[table]
  columns = _read(data_dir, schema, table, {key: tf.string, "count": tf.int64})
  expected = schema[f"num_{table}"]
  if len(columns[key]) != expected:
    raise errors.DataError(
      f"{data_dir}: schema.json says {expected} {table}, the shards hold "
      f"{len(columns[key])}; {_REMEDY}"
    )
  return columns[key], columns["count"]


def read_seen(
  data_dir: str | os.PathLike[str], schema: dict
) -> tuple[np.ndarray, np.ndarray]:
  """Training candidates of each query, without repeats, by dense id.

  Returns:
    row_splits `[num_queries + 1]` int64 and candidates `[pairs]` int32: those
    of query q are `candidates[row_splits[q]:row_splits[q + 1]]`, ascending.
  """
  spec = {"query_id": tf.int64, "candidate_id": tf.int64}
  columns = _read(data_dir, schema, "train", spec)
  queries, candidates = columns["query_id"], columns["candidate_id"]
  num_queries, num_candidates = schema["num_queries"], schema["num_candidates"]
  for name, ids, limit in (
    ("query_id", queries, num_queries),
    ("candidate_id", candidates, num_candidates),
  ):
    if ids.size and not 0 <= ids.min() <= ids.max() < limit:
      raise errors.DataError(
        f"{data_dir}: training rows hold a {name} outside [0, {limit}); "
        f"{_REMEDY}"
      )
  pairs = np.unique(queries * num_candidates + candidates)
  row_splits = np.zeros(num_queries + 1, np.int64)
  counts = np.bincount(pairs // num_candidates, minlength=num_queries)
  np.cumsum(counts, out=row_splits[1:])
  return row_splits, (pairs % num_candidates).astype(np.int32)


def _read(
  data_dir: str | os.PathLike[str],
  schema: dict,
  part: str,
  spec: dict[str, tf.DType],
) -> dict[str, np.ndarray]:
  """The columns of `spec`, over all shards of a split or table, in order."""
  blocks = {
    name: [np.empty(0, dtype.as_numpy_dtype)] for name, dtype in spec.items()
  }
  for shard in schema["shards"].get(part, ()):
    path = os.path.join(data_dir, shard["file"])
    columns = _read_shard(path, spec)
    for name, values in columns.items():
      if len(values) != shard["rows"]:
        raise errors.DataError(
          f"{path}: schema.json says {shard['rows']} rows, column {name!r} "
          f"holds {len(values)}; {_REMEDY}"
        )
      blocks[name].append(values)
  return {name: np.concatenate(values) for name, values in blocks.items()}


def _read_shard(path: str, spec: dict[str, tf.DType]) -> dict[str, np.ndarray]:
  features = {
    name: tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
    for name, dtype in spec.items()
  }
  dataset = (
    tf.data.TFRecordDataset(path)
    .batch(_RECORDS_PER_BATCH)
    .map(lambda records: tf.io.parse_example(records, features))
    .prefetch(1)
  )
  blocks = {
    name: [np.empty(0, dtype.as_numpy_dtype)] for name, dtype in spec.items()
  }
  try:
    for batch in dataset:
      for name, column in batch.items():
        blocks[name].append(column.flat_values.numpy())
  except tf.errors.NotFoundError:
    raise errors.DataError(f"{path}: not found; {_REMEDY}") from None
  except tf.errors.OpError as error:
    reason = error.message.splitlines()[0]
    raise errors.DataError(
      f"{path}: truncated or not of this format ({reason}); {_REMEDY}"
    ) from None
  return {name: np.concatenate(values) for name, values in blocks.items()}
