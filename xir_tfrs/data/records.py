"""TFRecords of blocks of rows: writing, reading, and checking what was read.

A record is a `tf.train.Example` whose features are packed columns of a block
of rows, which reads about ten times faster than a row per record. A file with
one row per record is the same thing with blocks of one row, so files written
by other programs are read by the same code.

    interactions   query_id, candidate_id: dense ids; optional timestamp
                   (int64) and sample_weight (float)
    candidates     candidate_id: original ids (bytes), count: training
                   interactions, and per side feature NAME
                     token                 NAME: codes
                     token_seq             NAME/values, NAME/lengths
                     float, float_seq      NAME: values, NaN where missing
    queries        the same with query_id
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs.data import errors
from xir_tfrs.data import schema as schema_lib

BLOCK_ROWS = 4096
_BATCH_BYTES = 8 << 20
_REMEDY = "prepare the data again with --overwrite"

Column = np.ndarray | tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Table:
  """Queries or candidates by dense id.

  Attributes:
    ids: [rows] object array of str, the original ids.
    counts: [rows] int64, training interactions.
    columns: name -> side feature, as `layers.CandidateTable` takes it: token
      int32 [rows]; token_seq (values int32 [n], row_splits int64 [rows + 1]);
      float float32 [rows]; float_seq float32 [rows, length]. NaN is missing.
  """

  ids: np.ndarray
  counts: np.ndarray
  columns: dict[str, Column]


class BlockWriter:
  """Appends rows to one shard; a context manager.

  Attributes:
    rows: rows appended so far.
  """

  def __init__(
    self, path: str | os.PathLike[str], block_rows: int = BLOCK_ROWS
  ):
    self.rows = 0
    self._block_rows = block_rows
    self._pending: list[dict[str, np.ndarray]] = []
    self._pending_rows = 0
    self._writer = tf.io.TFRecordWriter(os.fspath(path))

  def append(self, columns: Mapping[str, np.ndarray]) -> None:
    """Appends `columns`: name -> [n] array, the same names every time."""
    n = len(next(iter(columns.values())))
    self.rows += n
    self._pending.append(dict(columns))
    self._pending_rows += n
    if self._pending_rows >= self._block_rows:
      self._flush(keep=self._pending_rows % self._block_rows)

  def close(self) -> None:
    self._flush(keep=0)
    self._writer.close()

  def _flush(self, keep: int) -> None:
    if not self._pending_rows:
      return
    rows = {
      name: np.concatenate([block[name] for block in self._pending])
      for name in self._pending[0]
    }
    end = self._pending_rows - keep
    for start in range(0, end, self._block_rows):
      block = slice(start, min(start + self._block_rows, end))
      self._writer.write(encode({k: v[block] for k, v in rows.items()}))
    # Copies, so that a few pending rows do not keep a large block alive.
    self._pending = [{k: v[end:].copy() for k, v in rows.items()}]
    self._pending_rows = keep

  def __enter__(self) -> BlockWriter:
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()


def encode(columns: Mapping[str, np.ndarray]) -> bytes:
  """A serialized `tf.train.Example` of int, float or bytes [n] arrays."""
  features = {}
  for name, values in columns.items():
    if values.dtype.kind in "iu":
      value = tf.train.Feature(
        int64_list=tf.train.Int64List(value=values.tolist())
      )
    elif values.dtype.kind == "f":
      value = tf.train.Feature(
        float_list=tf.train.FloatList(value=values.tolist())
      )
    else:
      value = tf.train.Feature(
        bytes_list=tf.train.BytesList(value=values.tolist())
      )
    features[name] = value
  example = tf.train.Example(features=tf.train.Features(feature=features))
  return example.SerializeToString(deterministic=True)


def write_table(
  data_dir: str | os.PathLike[str],
  table: str,
  rows: Table,
  features: Sequence[schema_lib.FeatureSchema],
  rows_per_shard: int = 1 << 20,
) -> tuple[schema_lib.Shard, ...]:
  """Writes the shards of `table` ("queries" or "candidates")."""
  num_rows = len(rows.ids)
  num_shards = -(-num_rows // rows_per_shard)
  shards = []
  for shard in range(num_shards):
    start = shard * rows_per_shard
    stop = min(start + rows_per_shard, num_rows)
    name = shard_name(table, shard, num_shards)
    with tf.io.TFRecordWriter(str(pathlib.Path(data_dir) / name)) as writer:
      for low in range(start, stop, BLOCK_ROWS):
        high = min(low + BLOCK_ROWS, stop)
        writer.write(encode(_table_block(table, rows, features, low, high)))
    shards.append(schema_lib.Shard(name, stop - start))
  return tuple(shards)


def shard_name(part: str, shard: int, num_shards: int) -> str:
  return f"{part}-{shard:05d}-of-{num_shards:05d}.tfrecord"


def read_interactions(
  data_dir: str | os.PathLike[str], split: str
) -> dict[str, np.ndarray]:
  """The rows of a split in file order.

  Args:
    data_dir: a directory written by `pipelines.prepare`, or one of a user's
      own with a schema.json and row-per-record files.
    split: "train", "validation" or "test".

  Returns:
    name -> [rows] array: `query_id` and `candidate_id` int32, `timestamp`
    int64, `sample_weight` float32, as far as the schema names them. Empty
    arrays when the split has no rows.
  """
  if split not in schema_lib.SPLITS:
    raise ValueError(
      f"`split` must be one of {', '.join(schema_lib.SPLITS)}. Received:"
      f" {split!r}."
    )
  schema = schema_lib.Schema.load(data_dir)
  limits = {
    "query_id": schema.num_queries,
    "candidate_id": schema.num_candidates,
  }
  spec = {
    f.name: tf.int64 if f.dtype == "int64" else tf.float32
    for f in schema.interaction_features
  }
  shards = schema.shards.get(split, ())
  rows = {
    name: np.empty(
      sum(s.rows for s in shards),
      np.int32 if name in limits else dtype.as_numpy_dtype,
    )
    for name, dtype in spec.items()
  }
  for batch in _read_shards(data_dir, shards, spec):
    num_rows = batch.lengths["query_id"]
    for name, values in batch.values.items():
      batch.require_lengths(name, num_rows, "one value per query_id")
      if name in limits:
        batch.require_ids(name, limits[name])
      start = batch.total_rows
      rows[name][start : start + len(values)] = values
  return rows


def read_table(data_dir: str | os.PathLike[str], table: str) -> Table:
  """All rows of a table ("queries" or "candidates") by dense id."""
  if table not in schema_lib.TABLES:
    raise ValueError(
      f"`table` must be one of {', '.join(schema_lib.TABLES)}. Received:"
      f" {table!r}."
    )
  schema = schema_lib.Schema.load(data_dir)
  features, num_rows = (
    (schema.query_features, schema.num_queries)
    if table == "queries"
    else (schema.candidate_features, schema.num_candidates)
  )
  shards = schema.shards.get(table, ())
  if sum(s.rows for s in shards) != num_rows:
    raise errors.DataError(
      f"the {table} shards hold {sum(s.rows for s in shards)} rows, but"
      f" there should be {num_rows}; {_REMEDY}",
      path=pathlib.Path(data_dir) / schema_lib.FILE_NAME,
    )
  id_name = _id_name(table)
  spec = {id_name: tf.string, "count": tf.int64}
  for feature in features:
    spec.update(_feature_spec(feature))
  parts: dict[str, list[np.ndarray]] = {name: [] for name in spec}
  for batch in _read_shards(data_dir, shards, spec, rows_of=id_name):
    batch.require_lengths("count", batch.lengths[id_name], "one per id")
    for feature in features:
      _check_feature(batch, feature, batch.lengths[id_name])
    for name, values in batch.values.items():
      parts[name].append(values)
  joined = {
    name: np.concatenate(values)
    if values
    else np.empty(0, spec[name].as_numpy_dtype)
    for name, values in parts.items()
  }
  ids = np.array([value.decode("utf-8") for value in joined[id_name]], object)
  return Table(
    ids, joined["count"], {f.name: _column(f, joined) for f in features}
  )


def _id_name(table: str) -> str:
  return "query_id" if table == "queries" else "candidate_id"


def _table_block(
  table: str,
  rows: Table,
  features: Sequence[schema_lib.FeatureSchema],
  low: int,
  high: int,
) -> dict[str, np.ndarray]:
  block = {
    _id_name(table): np.array(
      [i.encode("utf-8") for i in rows.ids[low:high]], object
    ),
    "count": rows.counts[low:high],
  }
  for feature in features:
    column = rows.columns[feature.name]
    if feature.kind == "token_seq":
      values, splits = column
      block[f"{feature.name}/values"] = values[splits[low] : splits[high]]
      block[f"{feature.name}/lengths"] = np.diff(splits[low : high + 1])
    else:
      block[feature.name] = column[low:high].reshape(-1)
  return block


def _feature_spec(
  feature: schema_lib.FeatureSchema,
) -> dict[str, tf.dtypes.DType]:
  if feature.kind == "token_seq":
    return {
      f"{feature.name}/values": tf.int64,
      f"{feature.name}/lengths": tf.int64,
    }
  return {feature.name: tf.int64 if feature.is_token else tf.float32}


def _check_feature(
  batch: _Batch, feature: schema_lib.FeatureSchema, num_rows: np.ndarray
) -> None:
  name = feature.name
  if feature.kind == "token_seq":
    batch.require_lengths(f"{name}/lengths", num_rows, "one per id")
    row_lengths = batch.values[f"{name}/lengths"]
    records = np.repeat(np.arange(len(num_rows)), num_rows)
    totals = np.bincount(records, row_lengths, len(num_rows)).astype(np.int64)
    batch.require_lengths(f"{name}/values", totals, f"what {name}/lengths says")
    batch.require_ids(f"{name}/values", len(feature.vocabulary), "codes")
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
  if feature.kind == "token_seq":
    lengths = joined[f"{feature.name}/lengths"]
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return joined[f"{feature.name}/values"].astype(np.int32), splits
  values = joined[feature.name]
  if feature.kind == "token":
    return values.astype(np.int32)
  if feature.kind == "float":
    return values
  return values.reshape(-1, feature.length)


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Some records of one shard, flattened, with what an error must name.

  Attributes:
    values: name -> values of all records one after another.
    lengths: name -> [records] how many values each record holds.
    path: the shard.
    shard_rows, total_rows: rows before this batch, in the shard and in all.
    rows_of: the column of ids, one per row.
  """

  values: dict[str, np.ndarray]
  lengths: dict[str, np.ndarray]
  path: pathlib.Path
  shard_rows: int
  total_rows: int
  rows_of: str

  def require_lengths(
    self, name: str, expected: np.ndarray, meaning: str
  ) -> None:
    wrong = np.flatnonzero(self.lengths[name] != expected)
    if wrong.size:
      record = wrong[0]
      raise errors.DataError(
        f"a record holds {self.lengths[name][record]} values, expected"
        f" {expected[record]} ({meaning}); write every column named in"
        f" {schema_lib.FILE_NAME} for every row",
        path=self.path,
        column=name,
        row=self.shard_rows
        + int(self.lengths[self.rows_of][:record].sum())
        + 1,
      )

  def require_ids(self, name: str, limit: int, what: str = "dense ids") -> None:
    values = self.values[name]
    # As unsigned, negative values are too large as well.
    wrong = np.flatnonzero(values.view(np.uint64) >= np.uint64(limit))
    if wrong.size:
      raise errors.DataError(
        f"{values[wrong[0]]} is outside [0, {limit}); {what} are whole"
        " numbers from 0 without gaps, which pipelines.prepare assigns",
        path=self.path,
        row=self.shard_rows + int(wrong[0]) + 1,
        column=name,
      )


def _read_shards(
  data_dir: str | os.PathLike[str],
  shards: Sequence[schema_lib.Shard],
  spec: Mapping[str, tf.dtypes.DType],
  rows_of: str = "query_id",
) -> Iterator[_Batch]:
  """Yields the records of the shards in order, and checks the row counts."""
  # RaggedFeature reads a column that a record lacks as no values, which the
  # length checks then report with the file.
  features = {
    name: tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
    for name, dtype in spec.items()
  }
  total = 0
  for shard in shards:
    path = pathlib.Path(data_dir) / shard.file
    rows = 0
    for values, lengths in _parse(path, features):
      batch = _Batch(values, lengths, path, rows, total, rows_of)
      rows += int(lengths[rows_of].sum())
      if rows > shard.rows:
        break
      yield batch
      total += int(lengths[rows_of].sum())
    if rows != shard.rows:
      at_least = "at least " if rows > shard.rows else ""
      raise errors.DataError(
        f"holds {at_least}{rows} rows, but {schema_lib.FILE_NAME} says"
        f" {shard.rows}; {_REMEDY}",
        path=path,
      )


def _parse(
  path: pathlib.Path, features: Mapping[str, tf.io.RaggedFeature]
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
  try:
    dataset = (
      tf.data.TFRecordDataset(str(path))
      .batch(_records_per_batch(path))
      .map(_flattener(features))
      .prefetch(1)
    )
    yield from dataset.as_numpy_iterator()
  except (tf.errors.NotFoundError, FileNotFoundError):
    raise errors.DataError(f"file not found; {_REMEDY}", path=path) from None
  except tf.errors.DataLossError as e:
    raise errors.DataError(
      f"truncated or damaged ({_first_line(e)}); {_REMEDY}", path=path
    ) from None
  except (tf.errors.InvalidArgumentError, tf.errors.InternalError) as e:
    raise errors.DataError(
      f"its records do not match {schema_lib.FILE_NAME}"
      f" ({_first_line(e)}); {_REMEDY}",
      path=path,
    ) from None


def _records_per_batch(path: pathlib.Path) -> int:
  """Many small records or a few blocks: about `_BATCH_BYTES` either way."""
  with open(path, "rb") as f:
    # A TFRecord file begins with the length of its first record.
    record_bytes = int.from_bytes(f.read(8), "little")
  return min(max(_BATCH_BYTES // max(record_bytes, 1), 16), 1 << 14)


def _flattener(
  features: Mapping[str, tf.io.RaggedFeature],
) -> Callable[[tf.Tensor], tuple[dict, dict]]:
  def flatten(serialized):
    ragged = tf.io.parse_example(serialized, features)
    values = {name: value.flat_values for name, value in ragged.items()}
    return values, {name: v.row_lengths() for name, v in ragged.items()}

  return flatten


def _first_line(error: tf.errors.OpError) -> str:
  return error.message.splitlines()[0].split(" [Op:")[0].strip()
