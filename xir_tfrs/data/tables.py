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

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs.data import errors, record_files, records
from xir_tfrs.data import schema as schema_lib

Column = np.ndarray | tuple[np.ndarray, np.ndarray]

_RAGGED = ("token_seq", "text")
# No feature can have this name.
_TITLE = "/title"


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
  spec: dict[str, tf.dtypes.DType] = {"count": tf.int64}
  for feature in features:
    spec.update(_feature_spec(feature))
  if with_ids:
    spec[_id_name(table)] = tf.string
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
      batch.require_lengths(_id_name(table), num_rows, "one per count")
      ids.append(_decoded(batch, _id_name(table)))
      del batch.values[_id_name(table)]
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
  name = _id_name(table)
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
  spec = {_TITLE: tf.string, "count": tf.int64}
  titles = [np.empty(0, object)]
  for batch in _read(data_dir, "candidates", schema, spec):
    batch.require_lengths(_TITLE, batch.lengths["count"], "one per count")
    titles.append(_decoded(batch, _TITLE))
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


def _id_name(table: str) -> str:
  return "query_id" if table == "queries" else "candidate_id"


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
    _id_name(table): np.array(ids, np.object_),
    "count": rows.counts[low:high],
  }
  if rows.titles is not None:
    titles = [title.encode("utf-8") for title in rows.titles[low:high]]
    block[_TITLE] = np.array(titles, np.object_)
  for feature in features:
    column = rows.columns[feature.name]
    if isinstance(column, tuple):  # token_seq, text
      values, splits = column
      block[f"{feature.name}/values"] = values[splits[low] : splits[high]]
      block[f"{feature.name}/lengths"] = np.diff(splits[low : high + 1])
    else:
      block[feature.name] = column[low:high].reshape(-1)
  return block


def _feature_spec(
  feature: schema_lib.FeatureSchema,
) -> dict[str, tf.dtypes.DType]:
  if feature.kind in _RAGGED:
    return {
      f"{feature.name}/values": tf.int64,
      f"{feature.name}/lengths": tf.int64,
    }
  return {feature.name: tf.int64 if feature.is_token else tf.float32}


def _check_feature(
  batch: records.Batch, feature: schema_lib.FeatureSchema, num_rows: np.ndarray
) -> None:
  name = feature.name
  if feature.kind in _RAGGED:
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
  if feature.kind in _RAGGED:
    lengths = joined[f"{feature.name}/lengths"]
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return joined[f"{feature.name}/values"].astype(np.int32), splits
  values = joined[feature.name]
  if feature.kind == "token":
    return values.astype(np.int32)
  if feature.kind == "float":
    return values
  return values.reshape(-1, feature.length or 1)
