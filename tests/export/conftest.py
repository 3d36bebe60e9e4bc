"""A data directory and a model directory, written by hand and tiny.

The records follow the written format, not the code of pipelines or export.
"""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from export import export_retriever

NUM_QUERIES = 40
NUM_CANDIDATES = 300
DIM = 6
CANDIDATE_FEATURES = [
  {"name": "tag", "kind": "token", "vocabulary": ["", *"abcdefgh"]},
  {"name": "words", "kind": "token_seq", "vocabulary": ["", *"wxyz"]},
  {"name": "price", "kind": "float", "mean": [1.0], "std": [2.0]},
  {
    "name": "place",
    "kind": "float_seq",
    "length": 2,
    "mean": [0.0, 1.0],
    "std": [1.0, 1.0],
  },
]


@dataclasses.dataclass
class World:
  """What was written, and what a model of it answers, by plain NumPy."""

  data: pathlib.Path
  model_dir: pathlib.Path
  query_ids: list[str]
  candidate_ids: list[str]
  counts: np.ndarray
  seen: list[set[int]]
  query_vectors: np.ndarray
  candidate_vectors: np.ndarray
  unknown_query: np.ndarray
  unknown_candidate: np.ndarray
  pairs: np.ndarray
  model: xir.models.TwoTower

  def ranking(self, query: int, leave_out=()) -> list[str]:
    """Candidate ids, best first, for the dense id of a query."""
    scores = self.candidate_vectors @ self.query_vectors[query]
    order = np.argsort(-scores, kind="stable")
    return [
      self.candidate_ids[row]
      for row in order
      if self.candidate_ids[row] not in set(leave_out)
    ]


def _record(**columns) -> bytes:
  features = {}
  for name, values in columns.items():
    if isinstance(values[0], str):
      values = [value.encode() for value in values]
      feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    else:
      feature = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    features[name] = feature
  example = tf.train.Example(features=tf.train.Features(feature=features))
  return example.SerializeToString()


def _write(path, records):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for record in records:
      writer.write(record)


def write_data(directory, query_ids, candidate_ids, pairs):
  """Blocks of uneven sizes, in two shards; candidates one row per record."""
  query_counts = np.bincount(pairs[:, 0], minlength=len(query_ids))
  counts = np.bincount(pairs[:, 1], minlength=len(candidate_ids))
  directory.mkdir()
  cut = len(pairs) // 3
  parts = (pairs[:cut], pairs[cut : cut + 1], pairs[cut + 1 :])
  records = [
    _record(query_id=part[:, 0].tolist(), candidate_id=part[:, 1].tolist())
    for part in parts
  ]
  _write(directory / "train-00000-of-00002.tfrecord", records[:2])
  _write(directory / "train-00001-of-00002.tfrecord", records[2:])
  _write(
    directory / "queries-00000-of-00001.tfrecord",
    [_record(query_id=query_ids, count=query_counts.tolist())],
  )
  _write(
    directory / "candidates-00000-of-00001.tfrecord",
    [
      _record(candidate_id=[name], count=[int(count)])
      for name, count in zip(candidate_ids, counts, strict=True)
    ],
  )
  schema = {
    "format": 1,
    "name": "tiny",
    "num_queries": len(query_ids),
    "num_candidates": len(candidate_ids),
    "rows": {"train": len(pairs), "validation": 0, "test": 0},
    "query_features": [],
    "candidate_features": CANDIDATE_FEATURES,
    "split": {"kind": "random", "seed": 10},
    "shards": {
      "train": [
        {"file": "train-00000-of-00002.tfrecord", "rows": cut + 1},
        {"file": "train-00001-of-00002.tfrecord", "rows": len(parts[2])},
      ],
      "queries": [
        {"file": "queries-00000-of-00001.tfrecord", "rows": len(query_ids)}
      ],
      "candidates": [
        {
          "file": "candidates-00000-of-00001.tfrecord",
          "rows": len(candidate_ids),
        }
      ],
    },
  }
  (directory / "schema.json").write_text(json.dumps(schema))
  return counts


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
  root = tmp_path_factory.mktemp("world")
  rng = np.random.default_rng(3)
  query_ids = [f"Grüße, {i}" for i in range(NUM_QUERIES)]
  candidate_ids = [f"item {i}" for i in range(NUM_CANDIDATES)]
  pairs = np.stack(
    [
      rng.integers(0, NUM_QUERIES - 1, 500),  # The last query has no pairs.
      (NUM_CANDIDATES * rng.random(500) ** 2).astype(int),
    ],
    axis=1,
  )
  pairs[1] = pairs[0]  # A repeated pair.
  counts = write_data(root / "data", query_ids, candidate_ids, pairs)

  # One side feature of each kind, all in the exported tower.
  feature = xir.types.Feature
  features = (
    feature("tag", "token", vocabulary_size=9),
    feature("words", "token_seq", vocabulary_size=5),
    feature("price", "float", mean=(1.0,), std=(2.0,)),
    feature("place", "float_seq", length=2, mean=(0.0, 1.0), std=(1.0, 1.0)),
  )
  price = rng.random(NUM_CANDIDATES)
  price[4] = np.nan
  columns = {
    "tag": rng.integers(0, 9, NUM_CANDIDATES),
    "words": (
      rng.integers(0, 5, 2 * NUM_CANDIDATES),
      np.append(0, 2 * np.arange(1, NUM_CANDIDATES + 1)),
    ),
    "price": price,
    "place": rng.random([NUM_CANDIDATES, 2]),
  }
  query_tower = xir.models.Tower(
    vocabulary_size=NUM_QUERIES, dim=DIM, seed=1, init_stddev=1.0
  )
  candidate_tower = xir.models.Tower(
    vocabulary_size=NUM_CANDIDATES,
    dim=DIM,
    features=features,
    columns=columns,
    hidden_units=(64,),
    init_stddev=1.0,
    seed=2,
  )
  model = xir.models.TwoTower(query_tower, candidate_tower, normalize=True)
  model_dir = root / "model"
  checkpoint = tf.train.Checkpoint(
    model=model, optimizer=tf.keras.optimizers.Adagrad(), step=tf.Variable(7)
  )
  tf.train.CheckpointManager(checkpoint, str(model_dir / "best"), 1).save()
  # Another state in checkpoints/, so that taking it would be noticed.
  saved = model.get_weights()
  model.set_weights([-2 * x if x.dtype == np.float32 else x for x in saved])
  tf.train.CheckpointManager(
    checkpoint, str(model_dir / "checkpoints"), 1
  ).save()
  model.set_weights(saved)
  config = {"format": 1, "data": str(root / "data"), "train": {"task": "xir"}}
  config["model"] = model.get_config()
  (model_dir / "config.json").write_text(json.dumps(config))
  return World(
    data=root / "data",
    model_dir=model_dir,
    query_ids=query_ids,
    candidate_ids=candidate_ids,
    counts=counts,
    seen=[set(pairs[pairs[:, 0] == q, 1]) for q in range(NUM_QUERIES)],
    query_vectors=model.encode_queries(tf.range(NUM_QUERIES)).numpy(),
    candidate_vectors=model.encode_candidates(tf.range(NUM_CANDIDATES)).numpy(),
    unknown_query=model.encode_queries(tf.constant([-1]))[0].numpy(),
    unknown_candidate=model.encode_candidates(tf.constant([-1]))[0].numpy(),
    pairs=pairs,
    model=model,
  )


@pytest.fixture(scope="session")
def exported(world, tmp_path_factory) -> pathlib.Path:
  """A bundle of both indexes, the ScaNN one with a searcher of ScaNN's."""
  output = tmp_path_factory.mktemp("bundles") / "both"
  export_retriever.export_retriever(
    export_retriever.ExportOptions(
      data=str(world.data),
      model_dir=str(world.model_dir),
      output=str(output),
      scann={"exact_below": 0},
    )
  )
  return output


@pytest.fixture(scope="session")
def numbered(world, tmp_path_factory) -> pathlib.Path:
  """The same with integer ids, and answers of the tower to unknown queries.

  Query q is 10**12 + q, candidate c is 5 * c.
  """
  root = tmp_path_factory.mktemp("numbered")
  write_data(
    root / "data",
    [str(10**12 + q) for q in range(NUM_QUERIES)],
    [str(5 * c) for c in range(NUM_CANDIDATES)],
    world.pairs,
  )
  export_retriever.export_retriever(
    export_retriever.ExportOptions(
      data=str(root / "data"),
      model_dir=str(world.model_dir),
      output=str(root / "bundle"),
      query_id_type="int64",
      candidate_id_type="int64",
      unknown_query="tower",
      max_k=400,
      scann={"exact_below": 0},
    )
  )
  return root / "bundle"
