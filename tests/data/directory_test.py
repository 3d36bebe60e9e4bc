"""Data directories decode each part once, on first use."""

import collections

import numpy as np
import pytest

from xir_tfrs.data import directory, errors, records, schema, tables

FEATURES = (schema.FeatureSchema("brand", "token", vocabulary=("", "a")),)
COLUMNS = {
  "query_id": np.array([0, 1, 1]),
  "candidate_id": np.array([3, 0, 3]),
  "timestamp": np.array([5, 6, 7]),
  "sample_weight": np.array([1, 2, 3], np.float32),
}


@pytest.fixture
def path(tmp_path):
  shards = {}
  for table, side, size, features in (
    ("queries", "query_id", 2, ()),
    ("candidates", "candidate_id", 4, FEATURES),
  ):
    rows = tables.Table(
      np.array([f"{table} é{i}" for i in range(size)], object),
      np.bincount(COLUMNS[side], minlength=size),
      {"brand": np.arange(size) % 2} if features else {},
    )
    shards[table] = tables.write_table(tmp_path, table, rows, features)
  for split in ("train", "test"):
    with records.BlockWriter(tmp_path / split) as writer:
      writer.append(COLUMNS)
    shards[split] = (schema.Shard(split, 3),)
  schema.Schema(
    name="tiny",
    num_queries=2,
    num_candidates=4,
    rows={"train": 3, "test": 3},
    shards=shards,
    interaction_features=tuple(
      schema.InteractionFeature(name, kind)
      for name, kind in (
        ("query_id", "int64"),
        ("candidate_id", "int64"),
        ("timestamp", "int64"),
        ("sample_weight", "float32"),
      )
    ),
    candidate_features=FEATURES,
  ).with_hashes(tmp_path).save(tmp_path)
  return tmp_path


@pytest.fixture
def read(monkeypatch):
  """Counts reads: (file, columns) -> number."""
  counts = collections.Counter()
  read_file, read_bytes = records.read_file, schema.json_files.read_bytes

  def counting_file(path, spec, remedy):
    counts[(path.name, *sorted(spec))] += 1
    return read_file(path, spec, remedy)

  def counting_bytes(path, **arguments):
    counts[path.name] += 1
    return read_bytes(path, **arguments)

  monkeypatch.setattr(records, "read_file", counting_file)
  monkeypatch.setattr(schema.json_files, "read_bytes", counting_bytes)
  return counts


def test_everything_is_read_once_and_ids_are_not_read(path, read):
  data = directory.DataDir(path)
  for _ in range(2):
    rows = data.rows("train")
    assert rows.keys() == {"query_id", "candidate_id", "sample_weight"}
    for name, column in rows.items():
      np.testing.assert_array_equal(column, COLUMNS[name])
    assert data.queries.counts.tolist() == [1, 2]
    assert data.candidates.counts.tolist() == [1, 0, 0, 2]
    assert data.candidates.columns["brand"].tolist() == [0, 1, 0, 1]
    assert data.candidates.ids is None and len(data.candidates) == 4
  assert read == {
    "schema.json": 1,
    ("train", "candidate_id", "query_id", "sample_weight"): 1,
    ("queries-00000-of-00001.tfrecord", "count"): 1,
    ("candidates-00000-of-00001.tfrecord", "brand", "count"): 1,
  }


def test_rows_of_weight_0_are_not_counted(path):
  columns = COLUMNS | {"sample_weight": np.array([0.5, 2, 0], np.float32)}
  with records.BlockWriter(path / "train") as writer:
    writer.append(columns)
  schema.Schema.load(path).with_hashes(path).save(path)
  data = directory.DataDir(path)
  assert data.queries.counts.tolist() == [1, 1]
  assert data.candidates.counts.tolist() == [1, 0, 0, 1]


def test_rows_read_with_their_order_are_reused(path, read):
  data = directory.DataDir(path)
  assert "timestamp" in data.rows("train", in_order=True)
  assert data.rows("train") is data.rows("train", in_order=True)
  assert read.total() == 2


def test_ids_are_bytes(path):
  ids = directory.DataDir(path).ids("candidates")
  assert ids.dtype == object
  assert ids.tolist() == [f"candidates é{i}".encode() for i in range(4)]


def test_directories_that_are_not_data_directories(tmp_path):
  with pytest.raises(errors.DataError, match="not a finished data directory"):
    directory.DataDir(tmp_path)


def test_only_a_complete_data_directory_is_replaced(path):
  with pytest.raises(errors.DataError, match="holds a data directory already"):
    schema.check_output(path, overwrite=False)
  schema.check_output(path, overwrite=True)
  (path / schema.ORACLE_FILE).write_bytes(b"")
  schema.check_output(path, overwrite=True)
  (path / "notes").write_text("mine")
  with pytest.raises(errors.DataError, match="holds 'notes', which is not pa"):
    schema.check_output(path, overwrite=True)
  (path / "notes").unlink()
  (path / "schema.json").write_text("{")
  with pytest.raises(errors.DataError, match="holds 'candidates-0"):
    schema.check_output(path, overwrite=True)
