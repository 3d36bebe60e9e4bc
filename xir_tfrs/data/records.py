"""Writes, reads and checks TFRecords of blocks of rows.

A record is a `tf.train.Example` whose features are the columns of a block of
rows; this reads about ten times faster than one row per record. A file with one
row per record has blocks of one row, so the same code reads files of other
programs.

Interactions have the columns `query_id` and `candidate_id`, dense ids, and
optionally `event` (int64, the position among all rows of the query),
`timestamp` (int64) and `sample_weight` (float). `tables` describes the columns
of a table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures

import numpy as np
import tensorflow as tf

from xir_tfrs.data import errors, hashes, record_files
from xir_tfrs.data import schema as schema_lib

# Writing needs no TensorFlow, so it is in a module without it.
BLOCK_ROWS = record_files.BLOCK_ROWS
BlockWriter = record_files.BlockWriter
encode = record_files.encode
shard_name = record_files.shard_name
_BATCH_BYTES = 8 << 20
# TensorFlow's error for a column of another type; it counts records within
# their batch.
_MISTYPED = re.compile(
  r"Key: (?P<column>[^\n]*?), Index: (?P<record>\d+)\. +(?P<reason>[^\n{]*)"
)


def read_interactions(
  data_dir: str | os.PathLike[str],
  split: str,
  *,
  schema: schema_lib.Schema | None = None,
  columns: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
  """Reads the rows of a split in file order.

  Args:
    data_dir: A directory written by `pipelines.prepare`, or your own directory
      with a schema.json and one-row-per-record files.
    split: "train", "validation" or "test".
    schema: The schema of `data_dir`; by default it is read.
    columns: The columns to read; those that the schema does not list are
      ignored. None for all.

  Returns:
    name -> [rows] array of the columns in the schema: `query_id` and
    `candidate_id` int32, `event` and `timestamp` int64, `sample_weight`
    float32. Arrays are empty if the split has no rows.

  Raises:
    DataError: A file is missing, damaged or does not match the schema.
  """
  schema = schema or schema_lib.Schema.load(data_dir)
  num_rows = sum(s.rows for s in _shards_of(data_dir, split, schema))
  rows = {
    name: np.empty(num_rows, in_memory_type(name, dtype))
    for name, dtype in interaction_spec(schema, columns).items()
  }
  for batch in read_batches(data_dir, split, schema, columns):
    for name, values in batch.values.items():
      start = batch.total_rows
      rows[name][start : start + len(values)] = values
  return rows


def interaction_spec(
  schema: schema_lib.Schema, columns: Sequence[str] | None = None
) -> dict[str, tf.dtypes.DType]:
  """The columns of interactions to read, with their types on disk."""
  return {
    f.name: tf.int64 if f.dtype == "int64" else tf.float32
    for f in schema.interaction_features
    if columns is None or f.name in columns or f.name == "query_id"
  }


def in_memory_type(name: str, dtype: tf.dtypes.DType) -> np.dtype:
  """The in-memory type of an interaction column; ids take 4 bytes."""
  is_id = name in ("query_id", "candidate_id")
  return np.dtype(np.int32 if is_id else dtype.as_numpy_dtype)


def read_batches(
  data_dir: str | os.PathLike[str],
  split: str,
  schema: schema_lib.Schema,
  columns: Sequence[str] | None = None,
) -> Iterator[Batch]:
  """Yields the checked rows of a split, a few records at a time.

  Args:
    data_dir: As for `read_interactions`.
    split: As for `read_interactions`.
    schema: The schema of `data_dir`.
    columns: As for `read_interactions`.

  Raises:
    DataError: As for `read_interactions`.
  """
  limits = {
    "query_id": schema.num_queries,
    "candidate_id": schema.num_candidates,
  }
  shards = _shards_of(data_dir, split, schema)
  spec = interaction_spec(schema, columns)
  for batch in read_shards(data_dir, shards, spec, rows_of="query_id"):
    for name in spec:
      if name != "query_id":
        batch.require_lengths(name, batch.lengths["query_id"], "one per row")
      if name in limits:
        batch.require_ids(name, limits[name])
    yield batch


def _shards_of(
  data_dir: str | os.PathLike[str], split: str, schema: schema_lib.Schema
) -> Sequence[schema_lib.Shard]:
  """The shards of a split; checks that their rows add up."""
  if split not in schema_lib.SPLITS:
    raise ValueError(
      f"`split` must be one of {', '.join(schema_lib.SPLITS)}. Received:"
      f" {split!r}."
    )
  shards = schema.shards.get(split, ())
  check_rows(data_dir, split, shards, schema.rows[split])
  return shards


def check_rows(
  data_dir: str | os.PathLike[str],
  part: str,
  shards: Sequence[schema_lib.Shard],
  expected: int,
) -> int:
  """Returns the rows of `shards` by the schema.

  Raises:
    DataError: Their number is not `expected`, or a file is missing or too small
      for its rows. Memory for the rows is allocated before they are read.
  """
  for shard in shards:
    path = pathlib.Path(data_dir) / shard.file
    try:
      size = path.stat().st_size
    except FileNotFoundError:
      raise errors.DataError(
        f"file not found; {schema_lib.REMEDY}", path=path
      ) from None
    except OSError as error:
      raise errors.DataError(
        f"cannot be read ({error.strerror}); {schema_lib.REMEDY}", path=path
      ) from None
    if shard.rows > size:
      raise errors.DataError(
        f"truncated: holds {size} bytes, too few for the {shard.rows} rows that"
        f" {schema_lib.FILE_NAME} lists; {schema_lib.REMEDY}",
        path=path,
      )
  found = sum(shard.rows for shard in shards)
  if found != expected:
    raise errors.DataError(
      f"the {part} shards hold {found} rows, but there should be {expected};"
      f" {schema_lib.REMEDY}",
      path=pathlib.Path(data_dir) / schema_lib.FILE_NAME,
    )
  return found


@dataclasses.dataclass(frozen=True)
class Batch:
  """Some records of one shard, flattened, with their position for errors.

  Attributes:
    values: name -> concatenated values of all records.
    lengths: name -> [records] number of values of each record.
    path: The shard.
    shard_rows: Rows before this batch in the shard.
    total_rows: Rows before this batch in all shards.
    rows_of: The column with exactly one value per row.

  Examples:
    >>> from xir_tfrs.data import records, schema
    >>> with records.BlockWriter("train-0") as writer:
    ...   writer.append({"query_id": np.arange(2)})
    >>> shards, spec = [schema.Shard("train-0", 2)], {"query_id": tf.int64}
    >>> (batch,) = records.read_shards(".", shards, spec, rows_of="query_id")
    >>> batch.values["query_id"]
    array([0, 1])
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
    """Raises `DataError` unless each record has `expected` [records] values."""
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
    """Raises `DataError` unless all values lie in [0, limit)."""
    values = self.values[name]
    # As unsigned numbers, negative values are too large too.
    wrong = np.flatnonzero(values.view(np.uint64) >= np.uint64(limit))
    if wrong.size:
      raise errors.DataError(
        f"{values[wrong[0]]} is outside [0, {limit}); {what} are whole"
        " numbers from 0 without gaps, which xir-tfrs prepare assigns",
        path=self.path,
        row=self.shard_rows + int(wrong[0]) + 1,
        column=name,
      )

  def require_weights(self, name: str) -> None:
    """Raises `DataError` unless all values are finite and not negative."""
    values = self.values[name]
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if wrong.size:
      raise errors.DataError(
        "weights must be finite and not negative. Received: "
        f"{values[wrong[0]]}",
        path=self.path,
        row=self.shard_rows + int(wrong[0]) + 1,
        column=name,
      )


def read_shards(
  data_dir: str | os.PathLike[str],
  shards: Sequence[schema_lib.Shard],
  spec: Mapping[str, tf.dtypes.DType],
  rows_of: str,
) -> Iterator[Batch]:
  """Reads the records of shards in order and checks their row counts.

  Args:
    data_dir: The data directory.
    shards: The files to read.
    spec: The columns to read, with their types.
    rows_of: The column with exactly one value per row.

  Raises:
    DataError: A file is missing, damaged, has another number of rows, or is not
      the one that the schema lists. The hash is only known at the end of a
      file, so discard all rows if this is raised.
  """
  total = 0
  for shard in shards:
    path = pathlib.Path(data_dir) / shard.file
    rows = 0
    with _unchanged(path, shard.sha256):
      for values, lengths in read_file(path, spec, schema_lib.REMEDY):
        batch = Batch(values, lengths, path, rows, total, rows_of)
        rows += int(lengths[rows_of].sum())
        if rows > shard.rows:
          break
        yield batch
        total += int(lengths[rows_of].sum())
      if rows != shard.rows:
        at_least = "at least " if rows > shard.rows else ""
        raise errors.DataError(
          f"holds {at_least}{rows} rows, but {schema_lib.FILE_NAME} lists"
          f" {shard.rows}; {schema_lib.REMEDY}",
          path=path,
        )


@contextlib.contextmanager
def _unchanged(path: pathlib.Path, sha256: str | None) -> Iterator[None]:
  """Hashes a file while it is read; raises `DataError` if the hash differs.

  A thread hashes beside TensorFlow's reader, so that the disk is read once.
  """
  if sha256 is None:
    yield
    return
  with futures.ThreadPoolExecutor(1) as thread:
    found = thread.submit(hashes.sha256, path)
    yield
    if found.result() != sha256:
      raise errors.DataError(
        f"is not the file that {schema_lib.FILE_NAME} lists: it was changed,"
        f" or belongs to another data directory; {schema_lib.REMEDY}",
        path=path,
      )


def read_file(
  path: str | os.PathLike[str],
  spec: Mapping[str, tf.dtypes.DType],
  remedy: str,
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
  """Reads the records of one file, many at a time.

  Args:
    path: A TFRecord file of `tf.train.Example`s.
    spec: The columns to read, with their types.
    remedy: What to do about a file that cannot be used, for messages.

  Yields:
    (values, lengths): name -> concatenated values of these records, and name ->
    [records] number of values of each. A missing column has no values.

  Raises:
    DataError: The file is missing, damaged, or a column has another type.
  """
  features = {
    name: tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
    for name, dtype in spec.items()
  }

  def flatten(serialized):
    ragged = tf.io.parse_example(serialized, features)
    values = {name: value.flat_values for name, value in ragged.items()}
    return values, {name: v.row_lengths() for name, v in ragged.items()}

  num_records = 0
  try:
    dataset = (
      tf.data.TFRecordDataset(os.fspath(path))
      .batch(_records_per_batch(path))
      .map(flatten)
      .prefetch(1)
    )
    for values, lengths in dataset.as_numpy_iterator():
      yield values, lengths
      num_records += len(next(iter(lengths.values())))
  except (tf.errors.NotFoundError, FileNotFoundError):
    raise errors.DataError(f"file not found; {remedy}", path=path) from None
  except tf.errors.DataLossError as e:
    raise errors.DataError(
      f"truncated or damaged ({errors.first_line(e)}); {remedy}", path=path
    ) from None
  except OSError as e:
    raise errors.DataError(
      f"cannot be read ({e.strerror or e}); {remedy}", path=path
    ) from None
  except UnicodeDecodeError:  # TensorFlow fails to decode its own message.
    raise errors.DataError(
      f"its records do not match {schema_lib.FILE_NAME} (a column's name is"
      f" not UTF-8); {remedy}",
      path=path,
    ) from None
  except tf.errors.OpError as e:
    mistyped = _MISTYPED.search(str(e))
    reason = errors.first_line(e)
    if mistyped:
      record = num_records + int(mistyped["record"]) + 1
      reason = f"record {record}: {mistyped['reason']}"
    raise errors.DataError(
      f"its records do not match {schema_lib.FILE_NAME} ({reason}); {remedy}",
      path=path,
      column=mistyped and mistyped["column"],
    ) from None


def _records_per_batch(path: str | os.PathLike[str]) -> int:
  """Number of records that take about `_BATCH_BYTES`."""
  with open(path, "rb") as f:
    # A TFRecord file starts with the length of its first record.
    record_bytes = int.from_bytes(f.read(8), "little")
  return min(max(_BATCH_BYTES // max(record_bytes, 1), 16), 1 << 14)
