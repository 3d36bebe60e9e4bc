"""Bundles of history towers, queried in another process."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from pyarrow import parquet

import xir_tfrs as xir
from export import export_retriever
from export import query as query_lib
from export.bundle import bulk, histories, options, refreshing
from export.serving import batching, demo, models, tensors
from export.serving import options as server_options
from xir_tfrs.data import errors, records, runs, tables
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.serving import bundle

NUM_QUERIES, NUM_CANDIDATES, LENGTH, DIM = 9, 24, 4, 6
NOBODY = NUM_QUERIES - 1  # Has no training rows.
# Without training rows: one with a side feature, and one without.
WITH_TAG, UNKNOWN = NUM_CANDIDATES - 2, NUM_CANDIDATES - 1
TAG = schema_lib.FeatureSchema("tag", "token", vocabulary=["", *"abc"])
COLUMNS = ("query_id", "candidate_id", "timestamp", "event")
# Encoder, the part that the query tower adds, whether scores are cosines.
MODELS = {
  "mean": (False, False),
  "gru": (True, True),
  "attention": (False, True),
  "mind": (False, True),
}

# Only plain TensorFlow.
ASK = """
import sys
import numpy as np
import tensorflow as tf
folder, output = sys.argv[1:]
found = {}
for part in ("query_tower", "brute_force"):
  model = tf.saved_model.load(folder + "/" + part)
  encode = model.signatures["encode_query"]
  given = np.load(output + "/given.npz")
  answers = encode(
    query_id=tf.constant(given["queries"].tolist()),
    history=tf.constant(given["history"].tolist()))
  found |= {part + "_" + name: x.numpy() for name, x in answers.items()}
history = tf.constant(given["history"].tolist())
lists = {"k": tf.constant(5), "exclude_ids": history[:, :0],
         "allow_ids": history[:, :0]}
for name in ("recommend", "recommend_unseen"):
  answers = model.signatures[name](
    query_id=tf.constant(given["queries"].tolist()), history=history, **lists)
  found |= {name + "_" + key: x.numpy() for key, x in answers.items()}
bad = [x for x in sys.modules if x.split(".")[0] in
       ("xir_tfrs", "export", "pipelines", "tensorflow_recommenders")]
assert not bad, bad
found = {name: x.astype(str) if x.dtype == object else x
         for name, x in found.items()}
np.savez(output + "/found.npz", **found)
"""


@dataclasses.dataclass
class World:
  """A bundle with its model and its rows."""

  model: xir.models.TwoTower
  rows: dict[str, np.ndarray]
  directory: pathlib.Path

  def past(self, query: int) -> list[int]:
    """Training candidates, oldest first."""
    rows = zip(*(self.rows[name].tolist() for name in COLUMNS), strict=True)
    mine = [row for row in rows if row[0] == query]
    return [row[1] for row in sorted(mine, key=lambda row: row[2:])]

  def vector(self, query: int, history: list[int]) -> np.ndarray:
    """The model's vector of a query with a history of dense ids."""
    tower = self.model.query_tower
    # Candidates without training rows are served by their features.
    ids = tf.range(NUM_CANDIDATES)
    events = self.model.candidate_tower.encode(
      tf.where(ids < WITH_TAG, ids, -1), self.model.candidate_tower.look_up(ids)
    )
    events = tf.gather(events, tf.constant(history, tf.int64))[tf.newaxis]
    padding = tf.zeros([1, tower.history_length - len(history), DIM])
    vector = tower._start
    if history:
      vector = tower.encoder.last(
        tf.concat([events, padding], 1), tf.constant([len(history)])
      )[0]
    if tower.query_tower is not None and query not in (-1, NOBODY):
      vector += tower.query_tower(tf.constant([query]))[0]
    vector = vector.numpy()
    if not history and self.model.has_interests:
      vector = np.tile(vector, [4, 1])
    norms = np.linalg.norm(vector, axis=-1, keepdims=True)
    return vector / (np.maximum(norms, 1e-6) if self.model.normalize else 1.0)

  def ranking(self, vector: np.ndarray, leave_out=()) -> list[str]:
    """Candidates of the index, best first."""
    rows = np.arange(NUM_CANDIDATES)
    candidates = self.model.encode_candidates(
      tf.constant(np.where(rows < WITH_TAG, rows, -1)),
      self.model.candidate_tower.look_up(tf.constant(rows)),
    ).numpy()
    scores = candidates @ vector.T
    order = np.argsort(-scores.reshape(len(rows), -1).max(1), kind="stable")
    return [name(x) for x in order if x != UNKNOWN and x not in leave_out]


def name(candidate: int) -> str:
  return f"item {candidate}"


def write_data(
  directory: pathlib.Path, times: int = 4, of_users: dict | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """A data directory with times; its training rows, and the items' tags.

  `of_users` has side features of the queries, tokens as in `TAG`, by name.
  """
  rng = np.random.default_rng(5)
  lengths = [1, 2, 3, 4, 5, 7, 9, 3]
  rows = {
    "query_id": np.repeat(np.arange(NOBODY), lengths),
    "candidate_id": rng.integers(0, WITH_TAG, sum(lengths)),
    "timestamp": rng.integers(0, times, sum(lengths)),
    "event": np.arange(sum(lengths)),
  }
  rows["candidate_id"][: WITH_TAG // 2] = np.arange(WITH_TAG // 2)
  shuffled = rng.permutation(sum(lengths))
  rows = {key: x[shuffled] for key, x in rows.items()}
  directory.mkdir()
  shards = {}
  of_users = of_users or {}
  user_features = tuple(
    schema_lib.FeatureSchema(x, "token", vocabulary=TAG.vocabulary)
    for x in of_users
  )
  tags = rng.integers(1, 4, NUM_CANDIDATES).astype(np.int32)
  tags[UNKNOWN] = 0
  for table, prefix, size, features, columns in (
    ("queries", "user", NUM_QUERIES, user_features, of_users),
    ("candidates", "item", NUM_CANDIDATES, (TAG,), {"tag": tags}),
  ):
    column = {"queries": "query_id", "candidates": "candidate_id"}[table]
    counts = np.bincount(rows[column], minlength=size)
    if table == "candidates":
      counts = np.maximum(counts, np.arange(size) < WITH_TAG)
    ids = np.array([f"{prefix} {i}" for i in range(size)], object)
    shards[table] = tables.write_table(
      directory, table, tables.Table(ids, counts, columns), features
    )
  file = records.shard_name("train", 0, 1)
  with records.BlockWriter(directory / file, block_rows=50) as writer:
    writer.append(rows)
  schema_lib.Schema(
    name="tiny",
    num_queries=NUM_QUERIES,
    num_candidates=NUM_CANDIDATES,
    rows={"train": sum(lengths)},
    shards={"train": (schema_lib.Shard(file, sum(lengths)),), **shards},
    interaction_features=tuple(
      schema_lib.InteractionFeature(key, "int64") for key in COLUMNS
    ),
    query_features=user_features,
    candidate_features=(TAG,),
  ).save(directory)
  return rows, tags


def make_model(
  encoder: str,
  tags: np.ndarray,
  ranker: xir.models.Ranker | None = None,
  encoder_arguments: dict | None = None,
) -> xir.models.TwoTower:
  adds_ids, normalize = MODELS.get(encoder, (False, True))
  candidates = xir.models.Tower(
    vocabulary_size=NUM_CANDIDATES,
    dim=DIM,
    features=(xir.types.Feature("tag", "token", vocabulary_size=4),),
    columns={"tag": tags},
    init_stddev=1.0,
    seed=2,
  )
  queries = xir.models.HistoryTower(
    candidates,
    encoder,
    LENGTH,
    xir.models.Tower(vocabulary_size=NUM_QUERIES, dim=DIM, init_stddev=1.0)
    if adds_ids
    else None,
    encoder_arguments=encoder_arguments,
    seed=4,
  )
  return xir.models.TwoTower(
    queries, candidates, normalize=normalize, ranker=ranker
  )


def export(root: pathlib.Path, model: xir.models.TwoTower) -> pathlib.Path:
  """Exports a model that was never trained."""
  model_dir = root / "model"
  checkpoint = tf.train.Checkpoint(model=model)
  tf.train.CheckpointManager(checkpoint, str(model_dir / "best"), 1).save()
  runs.RunDir(model_dir).write_config(
    runs.RunConfig(
      data=str(root / "data"),
      schema_sha256=schema_lib.Schema.load_hashed(root / "data")[1],
      model=model.get_config(),
      train={},
    )
  )
  export_retriever.export_retriever(
    export_retriever.ExportOptions(
      data=str(root / "data"),
      model_dir=str(model_dir),
      output=str(root / "bundle"),
      indexes=("brute_force",),
    )
  )
  return root / "bundle"


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(name, marks=[pytest.mark.slow] * (name in ("mean", "gru")))
    for name in MODELS
  ],
)
def world(request, tmp_path_factory) -> World:
  root = tmp_path_factory.mktemp(request.param)
  rows, tags = write_data(root / "data")
  model = make_model(request.param, tags)
  return World(model, rows, export(root, model))


# For tests that do not depend on the encoder.
one_encoder = pytest.mark.parametrize("world", ["gru"], indirect=True)
with_interests = pytest.mark.parametrize("world", ["mind"], indirect=True)

# Query, history as sent, dense ids that count (None: those of training).
REQUESTS = [
  (-1, [3, 7], [3, 7]),
  (2, [3, 7], [3, 7]),
  (NOBODY, ["", 3, "", "", 7], [3, 7]),  # Padding anywhere.
  (1, [1, "no such item", 7, UNKNOWN], [1, 7]),
  (
    0,
    [9, 8, 7, 6, 5, 4, 3, 3],
    [5, 4, 3, 3],
  ),  # Longer than the tower's window.
  (3, [WITH_TAG, 2], [WITH_TAG, 2]),  # Known by its side feature alone.
  (-1, ["no such item"], []),
  (NOBODY, [], []),
  (2, [], None),
  (6, [""], None),  # Its training history is longer than the tower's window.
  (5, ["no such item", UNKNOWN], None),
]


def sent(history) -> list[str]:
  return [name(x) if isinstance(x, int) else x for x in history]


def query_id(query: int) -> str:
  return "" if query == -1 else f"user {query}"


def expected(world: World, query: int, counted: list[int] | None):
  """The history that counts for a query."""
  if counted is not None:
    return counted
  return world.past(query)[-LENGTH:]


def test_answers_in_another_process(world, tmp_path):
  width = max(len(history) for _, history, _ in REQUESTS) + 1
  np.savez(
    tmp_path / "given.npz",
    queries=[query_id(query) for query, _, _ in REQUESTS],
    history=[
      (row := sent(history)) + [""] * (width - len(row))
      for _, history, _ in REQUESTS
    ],
  )
  done = subprocess.run(
    [sys.executable, "-c", ASK, str(world.directory), str(tmp_path)],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  found = np.load(tmp_path / "found.npz")
  for i, (query, history, counted) in enumerate(REQUESTS):
    events = expected(world, query, counted)
    vector = world.vector(query, events)
    known = query not in (-1, NOBODY)
    for part in ("query_tower", "brute_force"):
      np.testing.assert_allclose(
        found[f"{part}_embedding"][i], vector, atol=1e-5, err_msg=str(i)
      )
      assert found[f"{part}_row"][i] == (query if known else -1)
      assert found[f"{part}_answerable"][i] == bool(events)
      given = [x for x in history if isinstance(x, int) and x != UNKNOWN]
      assert found[f"{part}_num_history"][i] == len(given)
    assert found["recommend_known"][i] == known
    assert found["recommend_popular"][i] == (not events)
    if not events:
      continue
    assert (
      found["recommend_candidate_ids"][i].tolist()
      == (world.ranking(vector)[:5])
    )
    seen = {x for x in history if isinstance(x, int)}
    seen |= set(world.past(query)) if known else set()
    best = world.ranking(vector, seen)[:5]
    assert found["recommend_unseen_candidate_ids"][i].tolist()[: len(best)] == (
      best
    )
    assert found["recommend_unseen_num_found"][i] == len(best)


def test_bundle(world):
  loaded = bundle.Bundle.load(world.directory)
  assert loaded.takes_histories
  assert loaded.manifest.history_length == LENGTH
  ids = [query_id(query) for query, _, _ in REQUESTS]
  lists = [sent(history) for _, history, _ in REQUESTS]
  found = loaded.recommend(ids, lists, 3)
  vectors = loaded.encode_queries(ids, history=lists)
  for i, (query, _, counted) in enumerate(REQUESTS):
    events = expected(world, query, counted)
    vector = world.vector(query, events)
    np.testing.assert_allclose(vectors[i], vector, atol=1e-5)
    if events:
      assert found.ids[i].tolist() == world.ranking(vector)[:3]
  # A session has no id.
  session = loaded.recommend(history=lists[:4], k=3)
  for i, (_, _, events) in enumerate(REQUESTS[:4]):
    best = world.ranking(world.vector(-1, events))
    assert session.ids[i].tolist() == best[:3]
  assert not session.known.any() and session.num_history.tolist() == [2] * 4
  # A known query without a history is answered by its training rows, also in
  # bulk.
  assert loaded.recommend(["user 6"], k=3).ids.tolist() == (
    found.ids[[9]].tolist()
  )
  with pytest.raises(ValueError, match="need a model that uses the ages"):
    loaded.recommend(["user 6"], time=[3])
  read = loaded.read_queries(["user 6", "nobody"])
  np.testing.assert_allclose(read.vectors[0], vectors[9], atol=1e-6)
  assert read.popular.tolist() == [False, True]


@one_encoder
def test_seen_and_history_are_left_out(world):
  loaded = bundle.Bundle.load(world.directory)
  best = world.ranking(world.vector(-1, [3, 7]))
  everything = loaded.recommend(history=[["item 3", "item 7"]], k=23)
  assert everything.ids[0].tolist() == best
  for given in ({"exclude_history": True}, {"exclude_seen": True}):
    found = loaded.recommend(history=[["item 3", "item 7"]], k=23, **given)
    assert found.ids[0, :21].tolist() == [
      x for x in best if x not in ("item 3", "item 7")
    ]
    assert found.num_found == [21]
  found = loaded.recommend(
    history=[["item 3"]],
    k=2,
    exclude_ids=[["item 4"]],
    allow_ids=[["item 3", "item 4", "item 5"]],
    exclude_history=True,
  )
  assert found.ids.tolist() == [["item 5", ""]]


def test_a_ranker_of_histories(tmp_path):
  rows, tags = write_data(tmp_path / "data")
  ranker = xir.models.Ranker(
    num_queries=None,
    num_candidates=NUM_CANDIDATES,
    kind="din",
    history_length=LENGTH,
    init_stddev=1.0,
  )
  model = make_model("mean", tags, ranker)
  world = World(model, rows, export(tmp_path, model))
  loaded = bundle.Bundle.load(world.directory)
  inputs = loaded.manifest.signatures["ranker"]["rank"]["inputs"]
  assert list(inputs) == ["query_id", "candidate_ids", "history"]

  def ranking(events, vector):
    """The ranker's order of the retriever's best seven."""
    ids = world.ranking(vector)[:7]
    dense = [int(x.split()[1]) for x in ids]
    scores = ranker(
      tf.constant([-1]),
      tf.constant([dense]),
      history_ids=tf.constant([events], tf.int64),
    )
    return [ids[i] for i in np.argsort(-scores.numpy()[0])]

  # A session with an unknown item, and a query without a history.
  past = world.past(5)[-LENGTH:]
  for given, events, query in (
    ({"history": [["item 3", "nothing", "item 7"]]}, [3, 7], -1),
    ({"history": [["item 7", f"item {UNKNOWN}"]]}, [7], -1),
    ({"query_ids": ["user 5"]}, past, 5),
  ):
    found = loaded.recommend(k=4, rerank=True, rerank_depth=7, **given)
    expected_ids = ranking(events, world.vector(query, events))
    assert found.ids[0].tolist() == expected_ids[:4]
    assert found.ids[0].tolist() != loaded.recommend(k=4, **given).ids.tolist()
  text = query_lib.answer(
    query_lib.QueryOptions(
      bundle=world.directory, k=3, history=("item 3",), rerank=True
    )
  )
  assert text.startswith("session, 1 known in its history (brute_force, re-ran")
  # Nothing is known about them, so they are answered by popularity.
  found = loaded.recommend(["nobody"], k=3, rerank=True)
  assert found.ids.tolist() == loaded.recommend(["nobody"], k=3).ids.tolist()


@pytest.fixture(scope="module")
def of_ages(tmp_path_factory) -> World:
  """A bundle whose tower uses the ages of events."""
  root = tmp_path_factory.mktemp("ages")
  rows, tags = write_data(root / "data", times=500)
  model = make_model("attention", tags, encoder_arguments={"ages": True})
  for block in model.query_tower.encoder._blocks:
    block._age_bias.assign(np.random.default_rng(3).normal(0, 3, [100]))
  return World(model, rows, export(root, model))


def aged(world: World, history, times=None) -> np.ndarray:
  """The model's vector of a session; the last time is that of the request."""
  ids = tf.range(NUM_CANDIDATES)
  tower = world.model.candidate_tower
  events = tower.encode(tf.where(ids < WITH_TAG, ids, -1), tower.look_up(ids))
  given = {} if times is None else {"history_times": tf.constant([times])}
  return world.model.encode_queries(
    tf.constant([-1]),
    history_ids=tf.constant([history], tf.int64),
    event_vectors=events,
    **given,
  )[0].numpy()


def test_ages_of_events(of_ages):
  loaded = bundle.Bundle.load(of_ages.directory)
  assert loaded.takes_times and loaded.takes_histories
  owned = np.flatnonzero(of_ages.rows["query_id"] == 6)
  order = np.lexsort([of_ages.rows[x][owned] for x in ("event", "timestamp")])
  moments = of_ages.rows["timestamp"][owned[order]][-LENGTH:].tolist()
  past = of_ages.past(6)[-LENGTH:]
  # Query, history, times, time of the request; what the model must see.
  cases = [
    ("user 6", [3, 7, 9], [5, 90, 99], 700, [3, 7, 9], [5, 90, 99, 700]),
    (
      "nobody",
      [3, "no such item", 7, ""],
      [5, 8, 90, 9],
      99,
      [3, 7],
      [5, 90, 99],
    ),
    ("user 2", [3, 7, 9], [5, None, 99], 700, [3, 7, 9], None),
    ("user 2", [3, 7, 9], [5, 90, 99], None, [3, 7, 9], None),
    ("user 6", [], [], 900, past, [*moments, 900]),
    ("user 6", [], [], -1, past, None),
  ]
  ids, histories_, times, requests, events, seen = zip(*cases, strict=True)
  lists = [sent(x) for x in histories_]
  found = loaded.encode_queries(
    ids, history=lists, history_times=times, time=requests
  )
  expected_ = [aged(of_ages, *x) for x in zip(events, seen, strict=True)]
  np.testing.assert_allclose(found, expected_, atol=1e-5)
  # Ages matter.
  assert np.abs(found[0] - aged(of_ages, events[0])).max() > 1e-3
  assert np.abs(found[4] - found[5]).max() > 1e-3
  # Sessions, answers, and queries without any time.
  session = loaded.recommend(
    history=lists[:2], history_times=times[:2], time=requests[:2], k=3
  )
  named = loaded.recommend(ids, lists, 3, history_times=times, time=requests)
  for row, vector in enumerate(expected_):
    best = of_ages.ranking(vector)[:3]
    assert named.ids[row].tolist() == best
    if row < 2:
      assert session.ids[row].tolist() == best
  without = loaded.encode_queries(ids, history=lists)
  np.testing.assert_allclose(without[0], aged(of_ages, events[0]), atol=1e-5)
  # The query tower alone, for processes with an index of their own.
  tower = tf.saved_model.load(str(of_ages.directory / "query_tower"))
  alone = tower.signatures["encode_query"](
    query_id=tf.constant(["user 6"]),
    history=tf.constant([lists[0]]),
    history_times=tf.constant([times[0]], tf.int64),
    time=tf.constant([700], tf.int64),
  )
  np.testing.assert_allclose(alone["embedding"][0], found[0], atol=1e-6)
  text = query_lib.answer(
    query_lib.QueryOptions(
      bundle=of_ages.directory,
      query_id=("user 6",),
      k=3,
      history=tuple(lists[0]),
      history_times=tuple(times[0]),
      time=700,
      json=True,
    )
  )
  assert json.loads(text)["candidate_ids"] == named.ids[0].tolist()
  for given, message in (
    (
      {"history_times": [[1]]},
      r"history_times\[0\]` must hold 2 integers.* 1.",
    ),
    ({"history_times": [[1, 2], [3]]}, "one list of times per query.* 2 for 1"),
    ({"time": 3}, "`time` must hold 1 integers. Received: 3."),
    ({"time": ["x"]}, "`time` must hold 1 integers. Received: 'x'."),
  ):
    with pytest.raises(ValueError, match=message):
      loaded.recommend(history=[["item 3", "item 7"]], **given)


def test_features_named_like_the_inputs_of_histories(tmp_path):
  names = ("time", "times", "history_times", "event_vectors")
  codes = np.arange(NUM_QUERIES, dtype=np.int32) % 4
  of_users = {name: np.roll(codes, i) for i, name in enumerate(names)}
  _, tags = write_data(tmp_path / "data", times=500, of_users=of_users)
  model = make_model("attention", tags, encoder_arguments={"ages": True})
  model.query_tower.query_tower = xir.models.Tower(
    vocabulary_size=NUM_QUERIES,
    dim=DIM,
    features=tuple(
      xir.types.Feature(x, "token", vocabulary_size=4) for x in names
    ),
    columns=of_users,
    init_stddev=1.0,
  )
  loaded = bundle.Bundle.load(export(tmp_path, model))
  asked = {"history": [["item 3"]], "history_times": [[5]], "time": [700]}
  plain = loaded.encode_queries(["nobody"], **asked)
  for name in names:
    given = {name: [TAG.vocabulary[2]]}
    found = loaded.encode_queries(["nobody"], features=given, **asked)
    assert np.abs(found - plain).max() > 1e-3


def test_server_and_bulk_use_times(of_ages, tmp_path):
  loaded = bundle.Bundle.load(of_ages.directory)
  model = models.Model(1, loaded)
  for signature, described in model.signatures.items():
    model.run(signature, models._example(model, described["inputs"]))
  limits = server_options.Limits()
  spec = model.signatures["recommend_session"]["inputs"]
  assert list(spec)[:3] == ["history", "history_times", "time"]
  cases = [
    ([3], {}, None),
    ([3, 7], {"history_times": [[5, 90]], "time": [99]}, [5, 90, 99]),
    ([3, 7, 9], {"history_times": [None], "time": [99]}, None),
  ]
  calls = []
  for history, given, _ in cases:
    inputs = {"history": [sent(history)], "k": 3, **given}
    calls.append(tensors.from_json({"inputs": inputs}, spec))
    tensors.check(calls[-1], spec, model.max_k, limits)
    calls[-1] = tensors.fill(calls[-1], spec)
  found = model.run("recommend_session", batching.join(calls))
  for row, (history, _, times) in enumerate(cases):
    best = of_ages.ranking(aged(of_ages, history, times))[:3]
    assert [x.decode() for x in found["candidate_ids"][row]] == best
  calls[1]["history_times"] = calls[1]["history_times"][:, :1]
  with pytest.raises(tensors.RequestError, match="must have the shape of `his"):
    tensors.check(calls[1], spec, model.max_k, limits)
  assert model.catalogue.describe()["times"]
  question = demo.Question(
    history=sent([3, 7]), history_times=[5, 90], time=99, k=3
  )
  signature, inputs = demo._request(question, model)
  found = model.run(
    signature, tensors.fill(tensors.from_json({"inputs": inputs}, spec), spec)
  )
  best = of_ages.ranking(aged(of_ages, *cases[1][::2]))[:3]
  assert [x.decode() for x in found["candidate_ids"][0]] == best

  written = tmp_path / "out"
  batch = {"bundle": str(of_ages.directory), "output": str(written), "k": 3}
  bulk.batch_recommend(options.BatchOptions(**batch, time=900))
  rows = parquet.read_table(written).to_pylist()
  at = loaded.recommend(
    [f"user {i}" for i in range(NOBODY)], k=3, time=[900] * 8
  )
  assert [row["candidate_ids"] for row in rows[:NOBODY]] == at.ids.tolist()
  assert (
    at.ids.tolist()
    != loaded.recommend([f"user {i}" for i in range(NOBODY)], k=3).ids.tolist()
  )
  with pytest.raises(errors.DataError, match="time = 900 then, None now"):
    bulk.batch_recommend(options.BatchOptions(**batch))


@pytest.mark.slow
def test_a_refreshed_bundle_uses_times(of_ages, tmp_path):
  (tmp_path / "new.csv").write_text("item_id,tag\nneu,b\n")
  refreshing.refresh(
    options.RefreshOptions(
      bundle=str(of_ages.directory),
      items=str(tmp_path / "new.csv"),
      output=str(tmp_path / "refreshed"),
    )
  )
  found = [
    bundle.Bundle.load(directory).encode_queries(
      ["user 6", "user 6"],
      history=[["item 3", "item 7"], []],
      history_times=[[5, 90], []],
      time=[99, 900],
    )
    for directory in (of_ages.directory, tmp_path / "refreshed")
  ]
  np.testing.assert_allclose(*found, atol=1e-6)


def test_stored_histories_are_the_newest_in_order_of_time():
  rows = {
    "query_id": np.array([2, 0, 2, 2, 0, 2]),
    "candidate_id": np.array([1, 2, 3, 4, 5, 6]),
    "timestamp": np.array([9, 5, 7, 7, 4, 8]),
    "event": np.array([3, 1, 1, 0, 0, 2]),
  }
  splits, events = histories.of_training(rows, 4, 3)
  assert splits.tolist() == [0, 2, 2, 5, 5]
  assert events.tolist() == [5, 2, 3, 6, 1]


@one_encoder
def test_server_joins_calls_of_different_width(world):
  loaded = bundle.Bundle.load(world.directory)
  model = models.Model(1, loaded)
  for signature, described in model.signatures.items():
    model.run(signature, models._example(model, described["inputs"]))
  spec = model.signatures["recommend"]["inputs"]
  calls = []
  for query, history in (("", ["item 3"]), ("user 2", ["item 3", "item 7"])):
    request = {"query_id": [query], "history": [history], "k": 3}
    request |= {"exclude_ids": [[""]], "allow_ids": [[""]]}
    calls.append(tensors.from_json({"inputs": request}, spec))
    tensors.check(calls[-1], spec, model.max_k, server_options.Limits())
  found = model.run("recommend", batching.join(calls))
  for row, (query, events) in enumerate([(-1, [3]), (2, [3, 7])]):
    best = world.ranking(world.vector(query, events))[:3]
    assert [x.decode() for x in found["candidate_ids"][row]] == best
  assert found["num_history"].tolist() == [1, 2]


@with_interests
def test_bulk_answers_from_training_histories(world, tmp_path):
  bulk.batch_recommend(
    options.BatchOptions(
      bundle=str(world.directory), output=str(tmp_path / "out"), k=3
    )
  )
  rows = parquet.read_table(tmp_path / "out").to_pylist()
  for query, row in enumerate(rows[:NOBODY]):
    best = world.ranking(world.vector(query, world.past(query)[-LENGTH:]))
    assert row["candidate_ids"] == best[:3]


@with_interests
@pytest.mark.slow
def test_new_items_count_in_histories_at_once(world, tmp_path):
  (tmp_path / "new.csv").write_text(
    "item_id,tag\nneu,b\nitem 3,c\nbare,\nneu 2,c\n"
  )
  (tmp_path / "gone.txt").write_text("item 7\n")
  refreshing.refresh(
    options.RefreshOptions(
      bundle=str(world.directory),
      items=str(tmp_path / "new.csv"),
      remove=str(tmp_path / "gone.txt"),
      output=str(tmp_path / "refreshed"),
    )
  )
  loaded = bundle.Bundle.load(tmp_path / "refreshed")
  assert "neu" in loaded.candidate_ids and "item 7" not in loaded.candidate_ids
  # Items that the first refresh added stay.
  (tmp_path / "gone.txt").write_text("item 5\n")
  refreshing.refresh(
    options.RefreshOptions(
      bundle=str(tmp_path / "refreshed"), remove=str(tmp_path / "gone.txt")
    )
  )
  again = bundle.Bundle.load(tmp_path / "refreshed")
  assert "item 5" in loaded.candidate_ids
  assert "item 5" not in again.candidate_ids
  tower = world.model.candidate_tower
  tag = tower.look_up(tf.constant([7]))["tag"]
  events = tower.encode(
    tf.constant([-1, 3, 7, -1]), {"tag": tf.concat([[2, 3], tag, [3]], axis=0)}
  )
  for history, rows in (
    (["neu"], [0]),
    (["neu 2"], [3]),  # The tower itself does not have its row.
    (["item 3", "neu", "bare"], [1, 0]),
    (
      ["item 7", "item 3"],
      [2, 1],
    ),  # Not in the index any more, but valid in histories.
  ):
    expected = world.model.encode_queries(
      tf.constant([-1]),
      history_ids=tf.constant([rows], tf.int64),
      event_vectors=events,
    )
    for refreshed in (loaded, again):
      found = refreshed.recommend(history=[history], k=2)
      assert found.num_history.tolist() == [len(rows)]
      np.testing.assert_allclose(
        refreshed.encode_queries(history=[history]), expected, atol=1e-5
      )
