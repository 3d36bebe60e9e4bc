"""Data small enough to rank by hand, and runs of models on it."""

import hashlib

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from xir_tfrs.data import records, runs, tables
from xir_tfrs.data import schema as schema_lib

NUM_QUERIES, NUM_CANDIDATES = 6, 40
# Query 4 has no test pair; (3, 9) is in the training and the test split. Query
# 5 and candidate 38 have no training rows.
ROWS = {
  "train": [(q, c) for q in range(4) for c in range(q, 10)]
  + [(4, 39)] * 30
  + [(4, c) for c in range(10, 38)],
  "validation": [(0, 20), (1, 20), (4, 0)],
  "test": [
    *[(0, 30), (0, 31), (1, 32), (2, 39), (3, 9), (3, 9), (3, 33)],
    *[(5, 38), (5, 39)],
  ],
}
COUNTS = [1, 2, 3] + [4] * 7 + [1] * 28 + [0, 30]


def write_data(directory, rows=None):
  """A data directory with `ROWS` or other rows by split."""
  rows = rows or ROWS
  directory.mkdir()
  shards = {}
  for name, pairs in rows.items():
    if not pairs:
      continue
    file = records.shard_name(name, 0, 1)
    with records.BlockWriter(directory / file) as writer:
      writer.append(
        {
          "query_id": np.array([q for q, _ in pairs], np.int64),
          "candidate_id": np.array([c for _, c in pairs], np.int64),
        }
      )
    shards[name] = (schema_lib.Shard(file, len(pairs)),)
  sizes = {"queries": NUM_QUERIES, "candidates": NUM_CANDIDATES}
  for side, (table, size) in enumerate(sizes.items()):
    ids = np.array([f"{table}{i}" for i in range(size)], object)
    trained = [pair[side] for pair in rows.get("train", ())]
    counts = np.bincount(np.array(trained, np.int64), minlength=size)
    content = tables.Table(ids, counts, {})
    shards[table] = tables.write_table(directory, table, content, ())
  schema_lib.Schema(
    name="tiny",
    num_queries=NUM_QUERIES,
    num_candidates=NUM_CANDIDATES,
    rows={name: len(pairs) for name, pairs in rows.items()},
    shards=shards,
  ).save(directory)
  return directory


def tower(side, size, seed=0, **features):
  """A tower of 4 dimensions."""
  return xir.models.Tower(
    vocabulary_size=size, dim=4, seed=seed + size, name=side, **features
  )


def two_tower(seed=0, query_tower=None):
  """A model of the data."""
  return xir.models.TwoTower(
    query_tower or tower("query_tower", NUM_QUERIES, seed),
    tower("candidate_tower", NUM_CANDIDATES, seed),
    normalize=True,
  )


def write_model(directory, model, data, checkpoints=("checkpoints",), **train):
  """A run with the settings `train` and a checkpoint in each folder."""
  schema = (data / schema_lib.FILE_NAME).read_bytes()
  run = runs.RunDir(directory)
  config = runs.RunConfig(
    data=str(data),
    model=model.get_config(),
    schema_sha256=hashlib.sha256(schema).hexdigest(),
    train=train,
  )
  with run.locked():
    run.create(config, overwrite=False)
  for number, name in enumerate(checkpoints):
    checkpoint = tf.train.Checkpoint(model=model, step=tf.Variable(number))
    tf.train.CheckpointManager(
      checkpoint, str(directory / name), max_to_keep=1
    ).save(checkpoint_number=number)
  return directory
