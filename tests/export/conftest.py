"""A tiny data directory and model directory, in the library's format."""

import dataclasses
import functools
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from export import export_retriever
from xir_tfrs.data import records, runs, tables
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.ops import words
from xir_tfrs.serving import bundle
from xir_tfrs.serving import manifest as manifests

NUM_QUERIES = 40
NUM_CANDIDATES = 300
DIM = 6
CANDIDATE_FEATURES = (
  schema_lib.FeatureSchema("tag", "token", vocabulary=["", *"abcdefgh"]),
  schema_lib.FeatureSchema("words", "token_seq", vocabulary=["", *"wxyz"]),
  schema_lib.FeatureSchema("price", "float", mean=[1.0], std=[2.0]),
  schema_lib.FeatureSchema("blurb", "text", num_buckets=50),
  schema_lib.FeatureSchema(
    "place", "float_seq", length=2, mean=[0.0, 1.0], std=[1.0, 1.0]
  ),
)


@dataclasses.dataclass
class World:
  """The written data, and the model's answers in plain NumPy."""

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
  columns: dict
  model: xir.models.TwoTower

  @staticmethod
  def title_of(candidate_id: str) -> str:
    """The title of a candidate; some have none."""
    return "" if candidate_id.endswith("3") else f"The ‘{candidate_id}’"

  def ranking(self, query: int, leave_out=()) -> list[str]:
    """Candidate ids for the dense id of a query, best first."""
    scores = self.candidate_vectors @ self.query_vectors[query]
    order = np.argsort(-scores, kind="stable")
    return [
      self.candidate_ids[row]
      for row in order
      if self.candidate_ids[row] not in set(leave_out)
    ]


def write_data(directory, query_ids, candidate_ids, pairs, columns):
  """Training rows in two shards, and both tables."""
  directory.mkdir()
  counts, shards = [], {}
  for side, name, ids, features, values in (
    (0, "queries", query_ids, (), {}),
    (1, "candidates", candidate_ids, CANDIDATE_FEATURES, columns),
  ):
    counts.append(np.bincount(pairs[:, side], minlength=len(ids)))
    table = tables.Table(
      np.array(ids, object),
      counts[-1],
      values,
      np.array([World.title_of(i) for i in ids], object) if side else None,
    )
    shards[name] = tables.write_table(directory, name, table, features)
  train = []
  for part in (pairs[:160], pairs[160:]):
    file = records.shard_name("train", len(train), 2)
    with records.BlockWriter(directory / file, block_rows=50) as writer:
      writer.append({"query_id": part[:, 0], "candidate_id": part[:, 1]})
    train.append(schema_lib.Shard(file, len(part)))
  schema_lib.Schema(
    name="tiny",
    num_queries=len(query_ids),
    num_candidates=len(candidate_ids),
    rows={"train": len(pairs)},
    shards={"train": tuple(train), **shards},
    candidate_features=CANDIDATE_FEATURES,
    item_title="name",
    source=schema_lib.Source(options={"item": "Sku"}),
    split=schema_lib.Split("random", seed=10),
  ).save(directory)
  return counts[1]


def write_config(model_dir, data, model):
  config = runs.RunConfig(
    data=str(data),
    schema_sha256=schema_lib.Schema.load_hashed(data)[1],
    model=model.get_config(),
    train={"task": "xir"},
  )
  runs.RunDir(model_dir).write_config(config)


def served_vectors(model, counts):
  """Candidate vectors; only features count without training rows."""
  ids = np.arange(len(counts))
  return model.encode_candidates(
    tf.constant(np.where(counts > 0, ids, -1)),
    model.candidate_tower.look_up(tf.constant(ids)),
  ).numpy()


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
  return make_world(tmp_path_factory.mktemp("world"))


def make_world(root: pathlib.Path) -> World:
  """Writes `data` and `model` below `root`."""
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
  # One side feature of each kind, all exported.
  feature = xir.types.Feature
  features = (
    feature("tag", "token", vocabulary_size=9),
    feature("words", "token_seq", vocabulary_size=5),
    feature("price", "float", mean=(1.0,), std=(2.0,)),
    feature("blurb", "text", vocabulary_size=50),
    feature("place", "float_seq", length=2, mean=(0.0, 1.0), std=(1.0, 1.0)),
  )
  blurbs = words.hashed(
    tf.constant([f"Blurb {i % 17}, of {i}" for i in range(NUM_CANDIDATES)]), 50
  )
  price = rng.random(NUM_CANDIDATES)
  price[4] = np.nan
  columns = {
    "tag": rng.integers(0, 9, NUM_CANDIDATES).astype(np.int32),
    "words": (
      rng.integers(0, 5, 2 * NUM_CANDIDATES).astype(np.int32),
      np.append(0, 2 * np.arange(1, NUM_CANDIDATES + 1)),
    ),
    "price": price,
    "blurb": (blurbs.values.numpy(), blurbs.row_splits.numpy()),
    "place": rng.random([NUM_CANDIDATES, 2]),
  }
  counts = write_data(root / "data", query_ids, candidate_ids, pairs, columns)
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
  for variable in candidate_tower.variables:
    if "blurb" in variable.name and variable.dtype == tf.float32:
      variable.assign(np.random.default_rng(5).normal(size=variable.shape))
  model = xir.models.TwoTower(query_tower, candidate_tower, normalize=True)
  model_dir = root / "model"
  checkpoint = tf.train.Checkpoint(
    model=model, optimizer=tf.keras.optimizers.Adagrad(), step=tf.Variable(7)
  )
  tf.train.CheckpointManager(checkpoint, str(model_dir / "best"), 1).save()
  # checkpoints/ has other weights, so restoring it would be noticed.
  saved = model.get_weights()
  model.set_weights([-2 * x if x.dtype == np.float32 else x for x in saved])
  tf.train.CheckpointManager(
    checkpoint, str(model_dir / "checkpoints"), 1
  ).save()
  model.set_weights(saved)
  write_config(model_dir, root / "data", model)
  return World(
    data=root / "data",
    model_dir=model_dir,
    query_ids=query_ids,
    candidate_ids=candidate_ids,
    counts=counts,
    seen=[set(pairs[pairs[:, 0] == q, 1]) for q in range(NUM_QUERIES)],
    query_vectors=model.encode_queries(tf.range(NUM_QUERIES)).numpy(),
    candidate_vectors=served_vectors(model, counts),
    unknown_query=model.encode_queries(tf.constant([-1]))[0].numpy(),
    unknown_candidate=model.encode_candidates(tf.constant([-1]))[0].numpy(),
    pairs=pairs,
    columns=columns,
    model=model,
  )


@pytest.fixture(scope="session")
def exported(world, tmp_path_factory) -> pathlib.Path:
  """A bundle with both indexes; the ScaNN index has a real searcher."""
  return export_both(world, tmp_path_factory.mktemp("bundles") / "both")


def export_both(world: World, output: pathlib.Path) -> pathlib.Path:
  export_retriever.export_retriever(
    export_retriever.ExportOptions(
      data=str(world.data),
      model_dir=str(world.model_dir),
      output=str(output),
      exact_below=0,
    )
  )
  return output


@pytest.fixture(scope="session")
def load():
  """`Bundle.load`, but once for each index of a bundle, which must not change.

  Loading and the first answers take seconds.
  """
  load_once = functools.cache(bundle.Bundle.load)

  def load(directory, index=None):
    directory = pathlib.Path(directory).resolve()
    if index is None:
      has = manifests.load(directory).indexes
      index = next(name for name in bundle.INDEXES if name in has)
    return load_once(directory, index)

  return load


@pytest.fixture(scope="session")
def numbered(world, tmp_path_factory) -> pathlib.Path:
  """The same with integer ids and answers to unknown queries.

  Query q is 10**12 + q, candidate c is 5 * c.
  """
  root = tmp_path_factory.mktemp("numbered")
  write_data(
    root / "data",
    [str(10**12 + q) for q in range(NUM_QUERIES)],
    [str(5 * c) for c in range(NUM_CANDIDATES)],
    world.pairs,
    world.columns,
  )
  shutil.copytree(world.model_dir, root / "model")
  write_config(root / "model", root / "data", world.model)
  export_retriever.export_retriever(
    export_retriever.ExportOptions(
      data=str(root / "data"),
      model_dir=str(root / "model"),
      output=str(root / "bundle"),
      query_id_type="int64",
      candidate_id_type="int64",
      unknown_query="tower",
      max_k=400,
      exact_below=0,
    )
  )
  return root / "bundle"
