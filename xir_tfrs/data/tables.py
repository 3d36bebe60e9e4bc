"""The tables of queries and candidates: ids, counts, side features.

Each record holds these columns of a block of rows:

    candidate_id or query_id    original ids (bytes)
    count                       number of training interactions
    NAME                        token: codes; float, float_seq: values, NaN
                                if missing
    NAME/values, NAME/lengths   token_seq, text: codes, and their number per row
    /title                      candidates: titles, if there are any
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs.data import errors, records, table_files
from xir_tfrs.data import schema as schema_lib

# Writing needs no TensorFlow, so it is in a module without it.
Column = table_files.Column
Table = table_files.Table
write_table = table_files.write_table


def read_table(
  data_dir: str | os.PathLike[str],
  table: str,
  *,
  schema: schema_lib.Schema | None = None,
  with_ids: bool = True,
) -> Table:
  """Reads all rows of a table by dense id.

  Args:
    data_dir: The data directory.
    table: "queries" or "candidates".
    schema: The schema of `data_dir`; by default it is read.
    with_ids: Whether to read the original ids, which take most of the time and
      memory.

  Raises:
    DataError: A file is missing, damaged or does not match the schema.
  """
  schema = schema or schema_lib.Schema.load(data_dir)
  features = schema.features(table)
  id_name = table_files.id_name(table)
  spec: dict[str, tf.dtypes.DType] = {"count": tf.int64}
  for feature in features:
    spec.update(_feature_spec(feature))
  if with_ids:
    spec[id_name] = tf.string
  parts: dict[str, list[np.ndarray]] = {
    name: [np.empty(0, dtype.as_numpy_dtype)] for name, dtype in spec.items()
  }
  ids = [np.empty(0, object)]
  for batch in _read(data_dir, table, schema, spec):
    num_rows = batch.lengths["count"]
    _require_counts(batch)
    for feature in features:
      _check_feature(batch, feature, num_rows)
    if with_ids:
      batch.require_lengths(id_name, num_rows, "one per count")
      ids.append(_decoded(batch, id_name))
      del batch.values[id_name]
    for name, values in batch.values.items():
      parts[name].append(values)
  joined = {name: np.concatenate(values) for name, values in parts.items()}
  return Table(
    np.concatenate(ids) if with_ids else None,
    joined["count"],
    {f.name: _column(f, joined) for f in features},
  )


def read_ids(
  data_dir: str | os.PathLike[str],
  table: str,
  *,
  schema: schema_lib.Schema | None = None,
) -> np.ndarray:
  """Reads the original ids by dense id: [rows] object array of UTF-8 bytes.

  Raises:
    DataError: As for `read_table`; also, in files without a hash in the schema,
      an id is empty or appears twice.
  """
  schema = schema or schema_lib.Schema.load(data_dir)
  name = table_files.id_name(table)
  spec = {name: tf.string, "count": tf.int64}
  ids = [np.empty(0, object)]
  # `prepare` writes each id once; other programs may not.
  unchecked = is_foreign(schema, table)
  known: set[bytes] = set()
  for batch in _read(data_dir, table, schema, spec):
    batch.require_lengths(name, batch.lengths["count"], "one per count")
    try:
      b"\n".join(batch.values[name]).decode("utf-8")
    except UnicodeDecodeError:
      _decoded(batch, name)  # Raises an error that names the row.
    values = batch.values[name]
    if unchecked:
      before = len(known)
      known.update(values)
      if len(known) < before + len(values) or b"" in known:
        raise _wrong_id(batch, name, ids)
    ids.append(values)
  return np.concatenate(ids)


def read_titles(
  data_dir: str | os.PathLike[str],
  *,
  schema: schema_lib.Schema | None = None,
) -> np.ndarray | None:
  """Reads the titles of the candidates.

  Returns:
    [num_candidates] object array of str: titles by dense id, "" for a candidate
    without one; None if the data has no titles.

  Raises:
    DataError: As for `read_table`.
  """
  schema = schema or schema_lib.Schema.load(data_dir)
  if schema.item_title is None:
    return None
  spec = {table_files.TITLE: tf.string, "count": tf.int64}
  titles = [np.empty(0, object)]
  for batch in _read(data_dir, "candidates", schema, spec):
    batch.require_lengths(
      table_files.TITLE, batch.lengths["count"], "one per count"
    )
    titles.append(_decoded(batch, table_files.TITLE))
  return np.concatenate(titles)


def _read(
  data_dir: str | os.PathLike[str],
  table: str,
  schema: schema_lib.Schema,
  spec: Mapping[str, tf.dtypes.DType],
) -> Iterator[records.Batch]:
  if table not in schema_lib.TABLES:
    raise ValueError(
      f"`table` must be one of {', '.join(schema_lib.TABLES)}. Received:"
      f" {table!r}."
    )
  shards = schema.shards.get(table, ())
  records.check_rows(data_dir, table, shards, schema.num_rows(table))
  return records.read_shards(data_dir, shards, spec, rows_of="count")


def _decoded(batch: records.Batch, name: str) -> np.ndarray:
  ids = np.empty(len(batch.values[name]), object)
  for row, value in enumerate(batch.values[name]):
    try:
      ids[row] = value.decode("utf-8")
    except UnicodeDecodeError as error:
      raise errors.DataError(
        f"{value!r} is not UTF-8 ({error.reason}); write text as UTF-8",
        path=batch.path,
        row=batch.shard_rows + row + 1,
        column=name,
      ) from None
  return ids


def is_foreign(schema: schema_lib.Schema, table: str) -> bool:
  """Whether a program other than `prepare` may have written a table's files."""
  return any(shard.sha256 is None for shard in schema.shards.get(table, ()))


def _require_counts(batch: records.Batch) -> None:
  negative = np.flatnonzero(batch.values["count"] < 0)
  if negative.size:
    row = int(negative[0])
    raise errors.DataError(
      f"{batch.values['count'][row]} is not a count: it is the number of"
      " training rows",
      path=batch.path,
      row=batch.shard_rows + row + 1,
      column="count",
    )


def _wrong_id(
  batch: records.Batch, name: str, before: Sequence[np.ndarray]
) -> errors.DataError:
  """The error for the first id that is empty or appears again."""
  values = batch.values[name].tolist()
  known = {value for earlier in before for value in earlier}
  row = next(
    row
    for row, value in enumerate(values)
    if not value or value in known or value in values[:row]
  )
  value = values[row].decode()
  return errors.DataError(
    f"the id {value!r} appears twice" if value else "empty id",
    path=batch.path,
    row=batch.shard_rows + row + 1,
    column=name,
  )


def _feature_spec(
  feature: schema_lib.FeatureSchema,
) -> dict[str, tf.dtypes.DType]:
  if feature.kind in table_files.RAGGED:
    return {
      f"{feature.name}/values": tf.int64,
      f"{feature.name}/lengths": tf.int64,
    }
  return {feature.name: tf.int64 if feature.is_token else tf.float32}


def _check_feature(
  batch: records.Batch, feature: schema_lib.FeatureSchema, num_rows: np.ndarray
) -> None:
  name = feature.name
  if feature.kind in table_files.RAGGED:
    batch.require_lengths(f"{name}/lengths", num_rows, "one per id")
    row_lengths = batch.values[f"{name}/lengths"]
    records = np.repeat(np.arange(len(num_rows)), num_rows)
    totals = np.bincount(records, row_lengths, len(num_rows)).astype(np.int64)
    batch.require_lengths(f"{name}/values", totals, f"what {name}/lengths says")
    batch.require_ids(f"{name}/values", feature.vocabulary_size or 1, "codes")
  elif feature.kind == "token":
    batch.require_lengths(name, num_rows, "one per id")
    batch.require_ids(name, len(feature.vocabulary), "codes")
  elif feature.kind == "float":
    batch.require_lengths(name, num_rows, "one per id")
  else:
    batch.require_lengths(
      name, num_rows * feature.length, f"{feature.length} per id"
    )


def _column(
  feature: schema_lib.FeatureSchema, joined: Mapping[str, np.ndarray]
) -> Column:
  if feature.kind in table_files.RAGGED:
    lengths = joined[f"{feature.name}/lengths"]
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return joined[f"{feature.name}/values"].astype(np.int32), splits
  values = joined[feature.name]
  if feature.kind == "token":
    return values.astype(np.int32)
  if feature.kind == "float":
    return values
  return values.reshape(-1, feature.length or 1)
