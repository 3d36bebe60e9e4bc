"""Block and row-per-record TFRecords: round trips, and damage reported."""

import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf

from xir_tfrs.data import (
  directory,
  errors,
  record_files,
  records,
  schema,
  tables,
)


def _interactions(rows, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "query_id": rng.integers(7, size=rows),
    "candidate_id": rng.integers(5, size=rows),
    "timestamp": rng.integers(2**40, 2**41, size=rows),
    "sample_weight": rng.random(rows).astype(np.float32),
  }


def _save(data_dir, shards, rows, **kwargs):
  schema.Schema(
    name="t",
    num_queries=7,
    num_candidates=5,
    rows={"train": rows},
    shards={"train": tuple(schema.Shard(*s) for s in shards)},
    interaction_features=(
      schema.InteractionFeature("query_id", "int64"),
      schema.InteractionFeature("candidate_id", "int64"),
      schema.InteractionFeature("timestamp", "int64"),
      schema.InteractionFeature("sample_weight", "float32"),
    ),
    **kwargs,
  ).save(data_dir)


@pytest.mark.parametrize("rows", [1, 4, 5, 9])
@pytest.mark.parametrize("parts", [1, 3])
def test_interactions_round_trip(tmp_path, rows, parts):
  columns = _interactions(rows)
  with records.BlockWriter(tmp_path / "a", block_rows=4) as writer:
    for part in np.array_split(np.arange(rows), parts):
      writer.append({k: v[part] for k, v in columns.items()})
  assert writer.rows == rows
  blocks = [
    len(
      tf.train.Example.FromString(r)
      .features.feature["query_id"]
      .int64_list.value
    )
    for r in tf.data.TFRecordDataset(str(tmp_path / "a")).as_numpy_iterator()
  ]
  assert blocks == [min(4, rows - s) for s in range(0, rows, 4)]
  _save(tmp_path, [("a", rows)], rows)
  read = records.read_interactions(tmp_path, "train")
  assert {k: v.dtype.name for k, v in read.items()} == {
    "query_id": "int32",
    "candidate_id": "int32",
    "timestamp": "int64",
    "sample_weight": "float32",
  }
  for name, values in columns.items():
    np.testing.assert_array_equal(read[name], values)


def test_files_are_as_tensorflow_writes_them(tmp_path):
  """They are written without it, and must be the same in every byte."""
  columns = {
    "ids": np.array([0, 127, 128, 2**62, -1]),
    "few": np.zeros(0, np.int32),
    "weights": np.array([0.5, -0.0, np.nan, np.inf], np.float32),
    "words": np.array(["ü".encode(), b"", b"\0tea"], object),
  }
  kinds = {
    "ids": ("int64_list", tf.train.Int64List),
    "few": ("int64_list", tf.train.Int64List),
    "weights": ("float_list", tf.train.FloatList),
    "words": ("bytes_list", tf.train.BytesList),
  }
  feature = {
    name: tf.train.Feature(**{kind: make(value=columns[name].tolist())})
    for name, (kind, make) in kinds.items()
  }
  example = tf.train.Example(features=tf.train.Features(feature=feature))
  expected = example.SerializeToString(deterministic=True)
  assert records.encode(columns) == expected
  found = [expected, b"", bytes(range(256)) * 999]
  for name, make in (
    ("theirs", tf.io.TFRecordWriter),
    ("ours", record_files.RecordWriter),
  ):
    with make(str(tmp_path / name)) as writer:
      for record in found:
        writer.write(record)
  written = (tmp_path / "ours").read_bytes()
  assert written == (tmp_path / "theirs").read_bytes()


def _write_rows(path, columns):
  """A row per record, written without the code under test."""
  with tf.io.TFRecordWriter(str(path)) as writer:
    for row in range(len(columns["query_id"])):
      feature = {
        name: tf.train.Feature(
          float_list=tf.train.FloatList(value=[values[row]])
        )
        if values.dtype.kind == "f"
        else tf.train.Feature(
          int64_list=tf.train.Int64List(value=[values[row]])
        )
        for name, values in columns.items()
      }
      example = tf.train.Example(features=tf.train.Features(feature=feature))
      writer.write(example.SerializeToString())


def test_row_per_record_files_over_several_shards(tmp_path):
  first, second = _interactions(30), _interactions(11, seed=1)
  _write_rows(tmp_path / "a", first)
  _write_rows(tmp_path / "b", second)
  _save(tmp_path, [("a", 30), ("b", 11)], 41)
  read = records.read_interactions(tmp_path, "train")
  for name in first:
    np.testing.assert_array_equal(
      read[name], np.concatenate([first[name], second[name]])
    )


def test_a_split_without_rows_is_empty(tmp_path):
  _save(tmp_path, [], 0)
  read = records.read_interactions(tmp_path, "test")
  assert [len(v) for v in read.values()] == [0, 0, 0, 0]
  with pytest.raises(ValueError, match="Received: 'dev'"):
    records.read_interactions(tmp_path, "dev")


@pytest.mark.parametrize(
  ("column", "value"),
  [("query_id", 7), ("candidate_id", 5), ("candidate_id", -1)],
)
def test_ids_beyond_the_table_are_named(tmp_path, column, value):
  columns = _interactions(20)
  columns[column][12] = value
  _write_rows(tmp_path / "mine", columns)
  _save(tmp_path, [("mine", 20)], 20)
  with pytest.raises(errors.DataError) as caught:
    records.read_interactions(tmp_path, "train")
  assert str(caught.value).startswith(
    f"{tmp_path / 'mine'}, row 13, column '{column}': {value} is outside [0,"
  )


def test_missing_shard_truncation_and_wrong_counts(tmp_path):
  columns = _interactions(20)
  _write_rows(tmp_path / "a", columns)

  def message(shards, rows=None):
    _save(tmp_path, shards, sum(n for _, n in shards) if rows is None else rows)
    with pytest.raises(errors.DataError) as caught:
      records.read_interactions(tmp_path, "train")
    assert "--overwrite" in str(caught.value)
    return str(caught.value)

  assert "b: file not found" in message([("b", 20)])
  assert "holds 20 rows, but schema.json lists 21" in message([("a", 21)])
  assert "holds at least 20 rows, but schema.json lists 3" in message(
    [("a", 3)]
  )
  data = (tmp_path / "a").read_bytes()
  (tmp_path / "cut").write_bytes(data[:-5])
  assert "cut: truncated or damaged" in message([("cut", 20)])
  (tmp_path / "flip").write_bytes(data[:40] + b"\x00\x01" + data[42:])
  assert "flip: truncated or damaged" in message([("flip", 20)])
  (tmp_path / "empty").write_bytes(b"")
  assert "too few for the 20 rows" in message([("empty", 20)])
  assert "train shards hold 20 rows, but there should be 9" in message(
    [("a", 20)], rows=9
  )


def test_a_shard_of_another_directory_is_refused_by_name(tmp_path):
  ours, theirs = tmp_path / "ours", tmp_path / "theirs"
  for folder, seed in ((ours, 0), (theirs, 1)):
    folder.mkdir()
    for name in ("a", "b"):
      _write_rows(folder / name, _interactions(20, seed))
  _save(ours, [("a", 20), ("b", 20)], 40)
  made = schema.Schema.load(ours).with_hashes(ours)
  made.save(ours)
  assert schema.Schema.load(ours) == made
  records.read_interactions(ours, "train")
  # A valid file with as many rows and known ids: only the hash differs.
  shutil.copy(theirs / "b", ours)
  with pytest.raises(errors.DataError) as caught:
    records.read_interactions(ours, "train")
  assert str(caught.value).startswith(
    f"{ours / 'b'}: is not the file that schema.json lists"
  )
  assert "--overwrite" in str(caught.value)
  _write_rows(ours / "b", _interactions(21))
  with pytest.raises(errors.DataError, match="b: holds at least 21 rows"):
    records.read_interactions(ours, "train")
  (ours / "b").unlink()
  with pytest.raises(errors.DataError, match="b: file not found"):
    records.read_interactions(ours, "train")


def test_missing_and_mistyped_columns(tmp_path):
  columns = _interactions(6)
  del columns["timestamp"]
  _write_rows(tmp_path / "a", columns)
  _save(tmp_path, [("a", 6)], 6)
  with pytest.raises(errors.DataError, match="holds 0 values, expected 1"):
    records.read_interactions(tmp_path, "train")
  columns = _interactions(6)
  columns["query_id"] = columns["query_id"].astype(np.float32)
  _write_rows(tmp_path / "a", columns)
  with pytest.raises(errors.DataError) as caught:
    records.read_interactions(tmp_path, "train")
  assert str(caught.value).startswith(
    f"{tmp_path / 'a'}, column 'query_id': its records do not match schema.json"
    " (record 1: Data types don't match. Expected type: int64, Actual type: flo"
  )


_FEATURES = (
  schema.FeatureSchema("brand", "token", vocabulary=("", "a", "b")),
  schema.FeatureSchema("tags", "token_seq", vocabulary=("", "x", "y")),
  schema.FeatureSchema("price", "float", mean=(0.0,), std=(1.0,)),
  schema.FeatureSchema(
    "image", "float_seq", length=2, mean=(0.0, 0.0), std=(1.0, 1.0)
  ),
)


def _table():
  rng = np.random.default_rng(0)
  lengths = np.array([2, 0, 3, 0, 1])
  image = rng.random([5, 2]).astype(np.float32)
  image[3] = np.nan
  return tables.Table(
    ids=np.array(["a", "é", "c d", " ", "5"], object),
    counts=np.array([3, 0, 2**40, 1, 1]),
    columns={
      "brand": np.array([1, 2, 0, 1, 1], np.int32),
      "tags": (
        rng.integers(3, size=6).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]),
      ),
      "price": np.array([1, np.nan, 3, 4, 5], np.float32),
      "image": image,
    },
  )


def _assert_tables_equal(one, two):
  assert one.ids.tolist() == two.ids.tolist()
  np.testing.assert_array_equal(one.counts, two.counts)
  for name in ("brand", "price", "image"):
    np.testing.assert_array_equal(one.columns[name], two.columns[name])
    assert one.columns[name].dtype == two.columns[name].dtype
  for left, right in zip(one.columns["tags"], two.columns["tags"], strict=True):
    np.testing.assert_array_equal(left, right)


def _schema(shards):
  """The schema of a data directory with only `_table()`."""
  return schema.Schema(
    name="t",
    num_queries=0,
    num_candidates=5,
    rows={},
    shards={"candidates": shards},
    candidate_features=_FEATURES,
  )


@pytest.mark.parametrize("block_rows", [2, 4096])
@pytest.mark.parametrize("rows_per_shard", [3, 100])
def test_table_round_trip(tmp_path, monkeypatch, block_rows, rows_per_shard):
  monkeypatch.setattr(records, "BLOCK_ROWS", block_rows)
  shards = tables.write_table(
    tmp_path, "candidates", _table(), _FEATURES, rows_per_shard
  )
  assert len(shards) == (2 if rows_per_shard == 3 else 1)
  _schema(shards).save(tmp_path)
  _assert_tables_equal(tables.read_table(tmp_path, "candidates"), _table())


def test_table_without_ids(tmp_path):
  shards = tables.write_table(tmp_path, "candidates", _table(), _FEATURES)
  made = _schema(shards)
  # The given schema is used, because there is none on disk.
  table = tables.read_table(tmp_path, "candidates", schema=made, with_ids=False)
  assert table.ids is None and len(table) == 5
  _assert_tables_equal(dataclasses.replace(table, ids=_table().ids), _table())
  ids = tables.read_ids(tmp_path, "candidates", schema=made)
  assert ids.tolist() == [i.encode() for i in _table().ids]


def test_ids_that_are_not_utf8_are_named(tmp_path):
  block = {
    "query_id": np.array([b"a", b"\xff"], object),
    "count": np.array([1, 1]),
  }
  with tf.io.TFRecordWriter(str(tmp_path / "q")) as writer:
    writer.write(records.encode(block))
  made = schema.Schema(
    name="t",
    num_queries=2,
    num_candidates=0,
    rows={},
    shards={"queries": (schema.Shard("q", 2),)},
  )
  for read in (tables.read_table, tables.read_ids):
    with pytest.raises(errors.DataError, match="row 2, column 'query_id'"):
      read(tmp_path, "queries", schema=made)


@pytest.mark.parametrize(
  ("third", "message"),
  [(b"a", "the id 'a' appears twice"), (b"", "empty id")],
)
def test_wrong_ids_of_own_records_are_found_before_training(
  tmp_path, third, message
):
  with tf.io.TFRecordWriter(str(tmp_path / "c")) as writer:
    for value in (b"a", b"b", third):
      row = {"candidate_id": np.array([value], object), "count": np.array([1])}
      writer.write(records.encode(row))
  schema.Schema(
    name="t",
    num_queries=0,
    num_candidates=3,
    rows={},
    shards={"candidates": (schema.Shard("c", 3),)},
  ).save(tmp_path)
  with pytest.raises(errors.DataError) as caught:
    directory.DataDir(tmp_path).candidates  # noqa: B018
  where = f"{tmp_path / 'c'}, row 3, column 'candidate_id'"
  assert str(caught.value) == f"{where}: {message}"


def test_negative_counts_are_named(tmp_path):
  table = dataclasses.replace(_table(), counts=np.array([3, 0, -1, 1, 1]))
  shards = tables.write_table(tmp_path, "candidates", table, _FEATURES)
  _schema(shards).save(tmp_path)
  with pytest.raises(errors.DataError, match="row 3, column 'count': -1 is no"):
    tables.read_table(tmp_path, "candidates")


def test_table_checks(tmp_path):
  table = _table()
  table.columns["brand"][4] = 3
  shards = tables.write_table(tmp_path, "candidates", table, _FEATURES)
  made = schema.Schema(
    name="t",
    num_queries=1,
    num_candidates=5,
    rows={},
    shards={"candidates": shards},
    candidate_features=_FEATURES,
  )
  made.save(tmp_path)
  with pytest.raises(errors.DataError, match="row 5, column 'brand': 3 is"):
    tables.read_table(tmp_path, "candidates")
  with pytest.raises(errors.DataError, match="hold 0 rows.*should be 1"):
    tables.read_table(tmp_path, "queries")
