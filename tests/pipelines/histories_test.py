"""Training and evaluation with histories: settings, batches, tables."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from pipelines import evaluate
from pipelines.evaluation import (
  neighbours,
  past,
  places,
  rankings,
  report,
  split,
)
from pipelines.training import batches, build
from pipelines.training import config as configs
from pipelines.training import loop as training
from tests import synthetic_data
from xir_tfrs.data import directory, errors, histories, records, runs, tables
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import settings

_SETTINGS = {
  "task": "ssl_pop",
  "query_tower": "history",
  "history_length": 6,
  "history_dropout": 0.3,
  "dim": 8,
  "optimizer": "adam",
  "learning_rate": 0.01,
  "global_batch_size": 125,
  "epochs": 2,
  "seed": 5,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  output = tmp_path_factory.mktemp("histories") / "data"
  return synthetic_data.prepare_synthetic(
    output,
    num_users=60,
    num_items=40,
    num_interactions=900,
    seed=3,
    validation_fraction=0.1,
  )


def config(data, path="unused", **given):
  given = _SETTINGS | given
  if given["query_tower"] == "id":
    given = {k: v for k, v in given.items() if not k.startswith("history")}
  return configs.from_preset(data=str(data), model_dir=str(path), **given)


def run(data, path, *, resume=False, strategy=None, **given):
  return training.train(
    config(data, path, **given),
    progress=False,
    resume=resume,
    strategy=strategy,
  )


def variables(path):
  """All values in the newest checkpoint, by name."""
  reader = tf.train.load_checkpoint(
    tf.train.latest_checkpoint(str(path / "checkpoints"))
  )
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_shape_map()
    if "SAVE_COUNTER" not in name.upper() and "GRAPH" not in name
  }


def built(data, **given):
  """A model, and its batches."""
  made = config(data, **given)
  opened = directory.DataDir(data)
  model = build.build(made, opened.schema, opened.queries, opened.candidates)
  rows = opened.rows("train", in_order=True)
  return model, batches.InMemory(rows, None).examples(made, 1)


# Settings --------------------------------------------------------------------


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (
      {"history_encoder": "gru", "query_tower": "id"},
      "--history_encoder belongs to --query_tower history or both. Received: "
      "--query_tower id.",
    ),
    ({"query_tower": "id", "history_length": 5}, "--history_length belongs"),
    ({"query_hidden": (8,)}, "--query_hidden belongs to --query_tower id or"),
    ({"estimator_probe": 8}, "--estimator_probe belongs to --query_tower id"),
    (
      {"query_tower": "id", "task": "corr", "ranker": "din"},
      "--ranker din belongs to --query_tower history or both",
    ),
    ({"history_dropout": -1}, "--history_dropout must not be negative"),
    ({"history_encoder": "lstm"}, "--history_encoder must be one of atten"),
  ],
)
def test_settings_that_are_refused(given, message):
  given = {"query_tower": "history"} | given
  with pytest.raises(settings.SettingsError, match=message):
    configs.from_preset(**given)


def test_histories_have_defaults_of_their_own():
  def chosen(**given):
    made = configs.from_preset(**given)
    return made.task, made.optimizer, made.learning_rate

  assert chosen(query_tower="id") == ("xir", "lazy_adam", 0.02)
  assert chosen(query_tower="history") == ("ssl_pop", "adam", 0.002)
  given = {"task": "xir", "optimizer": "adagrad", "learning_rate": 0.3}
  made = chosen(query_tower="both", preset="plain", **given)
  assert made == ("xir", "adagrad", 0.3)


@pytest.mark.parametrize(
  ("preset", "with_ids", "with_histories"),
  [("default", 128, 64), ("plain", 64, 64), ("paper", 32, 32)],
)
def test_embeddings_are_larger_with_ids(preset, with_ids, with_histories):
  for tower, dim in (("id", with_ids), ("history", with_histories)):
    made = configs.from_preset(
      query_tower=tower, preset=preset, use_features=True
    )
    assert made.dim == dim
  assert configs.from_preset(query_tower="both", dim=7).dim == 7


@pytest.mark.parametrize(
  ("given", "temperature"),
  # The data are dense, which only concerns ids.
  [({}, 0.05), ({"task": "bir"}, 0.1), ({"query_tower": "id"}, 0.2)],
)
def test_temperature_is_lower_with_histories(data, given, temperature):
  model, _ = built(data, **({"task": "ssl_pop"} | given))
  assert model.task.get_config()["temperature"] == temperature


def test_runs_of_ids_have_no_history_settings():
  of_ids = settings.as_dict(configs.from_preset())
  # Unless the model is validated on histories.
  assert of_ids.pop("history_ties") is None
  assert not any(name.startswith("history") for name in of_ids)
  assert of_ids["query_tower"] == "id"


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"num_block": 1}, "has no argument 'num_block'. It has: num_blocks"),
    ({"num_heads": 3}, "--history_encoder attention: `num_heads` must divide"),
    (
      {"ages": True, "x": 1},
      "has no argument 'x'. It has: num_blocks, num_hea",
    ),
  ],
)
def test_wrong_arguments_of_an_encoder(data, given, message):
  with pytest.raises(settings.SettingsError, match=message):
    built(data, history_arguments=given)


def test_settings_reach_the_encoder(data):
  model, _ = built(data, history_arguments="num_blocks=1", query_tower="both")
  made = model.query_tower.get_config()
  assert made["encoder"] == "attention"
  assert made["encoder_arguments"] == {"num_blocks": 1}
  assert (made["dropout"], made["history_length"]) == (0.3, 6)
  assert made["query_tower"]["init_stddev"] == 0.02
  assert model.candidate_tower.get_config()["init_stddev"] == 0.02
  model, _ = built(data, init_stddev=0.3)
  assert model.candidate_tower.get_config()["init_stddev"] == 0.3
  assert model.query_tower.query_tower is None


def test_every_encoder_can_be_chosen():
  choices = next(
    one.about.choices
    for one in settings.settings_of(configs.TrainConfig)
    if one.name == "history_encoder"
  )
  assert set(choices) == set(build.xir.layers.history.ENCODERS)


# Training --------------------------------------------------------------------

# Quick to trace; encoders may get positions wrong.
_SMALL = {
  "positions": {"history_arguments": "num_blocks=1,ages=true"},
  "rows": {"history_encoder": "mean"},
}


# conformance/histories_test.py has all tasks. Of these, the first uses only the
# batch, XIR also encodes other candidates, and CoRR's ranker sees histories.
@pytest.mark.parametrize(
  ("task", "given"),
  [
    ("ssl_pop", {}),
    ("xir", {"cache_size": 16}),
    ("corr", {"ranker": "din", "task_arguments": "num_codewords=4"}),
  ],
)
@pytest.mark.parametrize("examples", ["positions", "rows"])
def test_tasks_train(data, task, given, examples):
  model, make = built(data, task=task, history_examples=examples, **given)
  model.compile(tf.keras.optimizers.Adam(0.01))
  before = [w.numpy() for w in model.query_tower.encoder.trainable_weights]
  for batch in make().take(2):
    loss = model.gradient_step(batch)["loss"]
    assert np.isfinite(loss)
  for weight, old in zip(
    model.query_tower.encoder.trainable_weights, before, strict=True
  ):
    if "position" not in weight.name:
      assert np.abs(weight.numpy() - old).max() > 0, weight.name


@pytest.mark.parametrize("examples", ["positions", "rows"])
@pytest.mark.slow
def test_two_replicas_are_one_device_dropout_included(
  data, tmp_path, two_replicas, examples
):
  given = {"history_examples": examples, "epochs": 1, **_SMALL[examples]}
  run(data, tmp_path / "one", **given)
  run(data, tmp_path / "two", strategy=two_replicas, **given)
  expected, got = (variables(tmp_path / name) for name in ("one", "two"))
  assert expected.keys() == got.keys()
  for name, value in expected.items():
    # The bias of keys has no effect, so its gradient is only rounding.
    if "_key/bias" not in name:
      np.testing.assert_allclose(
        value, got[name], rtol=1e-3, atol=1e-4, err_msg=name
      )


def test_a_resumed_run_is_bit_identical(data, tmp_path):
  given = {"query_tower": "both", **_SMALL["positions"]}
  run(data, tmp_path / "whole", checkpoint_steps=3, **given)
  parts = tmp_path / "parts"
  run(data, parts, epochs=1, checkpoint_steps=3, **given)
  run(data, parts, checkpoint_steps=3, resume=True, **given)
  expected, got = variables(tmp_path / "whole"), variables(parts)
  assert expected.keys() == got.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(value, got[name], err_msg=name)


def test_known_positives_come_with_positions(data):
  opened = directory.DataDir(data)
  rows = opened.rows("train", in_order=True)
  known = batches.datasets.candidates_by_query(rows, opened.schema.num_queries)
  make = batches.InMemory(rows, known).examples(config(data), 1)
  (batch,) = make(shares=[(10, 30)]).take(1)
  entries = batch["known_candidate_ids"].to_list()
  assert [entries[row] for row in batch["known_row"].numpy()] == [
    known[query].numpy().tolist() for query in batch["query_id"].numpy()
  ]


def test_histories_need_ordered_data(data, tmp_path):
  opened = directory.DataDir(data)
  rows = dict(opened.rows("train"))
  with pytest.raises(errors.DataError, match="neither times nor an order"):
    batches.InMemory(rows, None).examples(config(data), 1)


# Evaluation ------------------------------------------------------------------

# (query, candidate, time), in the order of the file. Query 2 has no training
# row, and query 1 repeats a candidate.
_ROWS = {
  "train": [(0, 0, 1), (1, 3, 1), (0, 1, 2), (0, 2, 2), (1, 4, 3)],
  "validation": [(0, 3, 3), (0, 4, 4), (2, 0, 5)],
  "test": [(0, 5, 4), (0, 6, 6), (1, 3, 7), (2, 1, 6), (2, 7, 6), (2, 2, 9)],
}


def write_data(path, rows=None):
  path.mkdir()
  shards, place = {}, dict.fromkeys(range(3), 0)
  rows = rows or _ROWS
  in_time = {
    split: sorted(part, key=lambda r: r[2]) for split, part in rows.items()
  }
  for name, part in in_time.items():
    query, candidate, time = np.array(part).T
    events = []
    for q in query:
      events.append(place[q])
      place[q] += 1
    # Files are shuffled.
    order = np.random.default_rng(0).permutation(len(query))
    file = records.shard_name(name, 0, 1)
    with records.BlockWriter(path / file) as writer:
      writer.append(
        {
          "query_id": query[order],
          "candidate_id": candidate[order],
          "event": np.array(events)[order],
          "timestamp": time[order],
        }
      )
    shards[name] = (schema_lib.Shard(file, len(part)),)
  trained = np.array(rows["train"])
  for side, (table, size) in enumerate((("queries", 3), ("candidates", 8))):
    content = tables.Table(
      np.array([f"{table}{i}" for i in range(size)], object),
      np.bincount(trained[:, side], minlength=size),
      {},
    )
    shards[table] = tables.write_table(path, table, content, ())
  columns = ("query_id", "candidate_id", "event", "timestamp")
  schema_lib.Schema(
    name="tiny",
    num_queries=3,
    num_candidates=8,
    rows={name: len(part) for name, part in rows.items()},
    shards=shards,
    interaction_features=tuple(
      schema_lib.InteractionFeature(name, "int64") for name in columns
    ),
  ).save(path)
  return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  return write_data(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="module")
def of_histories(tiny, tmp_path_factory):
  """The directory of a run with histories; tests must not change it."""
  path = tmp_path_factory.mktemp("of_histories") / "m"
  run(tiny, path, epochs=1, global_batch_size=4, history_dropout=0.0)
  return path


@pytest.fixture(scope="module")
def of_ids(tiny, tmp_path_factory):
  """The directory of a run with ids; tests may only change its metrics."""
  path = tmp_path_factory.mktemp("of_ids") / "m"
  run(tiny, path, epochs=1, query_tower="id")
  return path


def load(tiny, ties, length=3, name="test"):
  return split.load_evaluation_data(tiny, name, past.Rule(length, ties))


def test_each_held_out_row_is_a_query(tiny):
  found = load(tiny, "strict")
  assert found.query_ids.tolist() == [0, 0, 1, 2, 2, 2]
  assert found.relevant.to_list() == [[5], [6], [3], [1], [7], [2]]
  assert found.warm.tolist() == [True] * 3 + [False] * 3
  assert found.past.tied.tolist() == [True, False, False, False, True, False]
  # (0, 5) and (0, 4) have the same time, and so do (2, 7) and (2, 1).
  assert found.past.events.tolist() == [
    [1, 2, 3],
    [3, 4, 5],
    [-1, 3, 4],
    [-1, -1, 0],
    [-1, -1, 0],
    [0, 1, 7],
  ]
  assert found.past.num_events.tolist() == [4, 6, 2, 1, 1, 3]
  assert found.past.times.tolist() == [
    [2, 2, 3, 4],
    [3, 4, 4, 6],
    [-1, 1, 3, 7],
    [-1, -1, 5, 6],
    [-1, -1, 5, 6],
    [5, 6, 6, 9],
  ]


def test_ages_are_used_in_evaluation(data):
  model, _ = built(data, history_arguments="num_blocks=1,ages=true")
  rule = past.Rule(6, "strict")
  rows = split.load_evaluation_data(directory.DataDir(data), "test", rule)
  plain = rankings.of_model(model, rows)
  (block,) = model.query_tower.encoder._blocks
  block._age_bias.assign(tf.random.stateless_normal([100], [0, 1], stddev=3.0))
  found = rankings.of_model(model, rows)
  assert np.abs(found.queries - plain.queries).max() > 1e-3
  for row in (0, len(rows.query_ids) // 2):
    np.testing.assert_allclose(
      found.queries[row],
      model.encode_queries(
        tf.constant(rows.query_ids[[row]]),
        history_ids=tf.constant(rows.past.events[[row]]),
        history_times=tf.constant(rows.past.times[[row]]),
      )[0],
      atol=1e-5,
    )
  seen = rows.past.seen_rows
  columns = {name: x for name, x in seen.columns.items() if name != "timestamp"}
  without = dataclasses.replace(seen, columns=columns)
  rows = dataclasses.replace(
    rows, past=dataclasses.replace(rows.past, seen_rows=without)
  )
  with pytest.raises(errors.DataError, match="uses the ages of events: eval"):
    rankings.of_model(model, rows)


def test_in_the_order_of_the_file(tiny):
  found = load(tiny, "order")
  assert found.past.events.tolist()[0] == [2, 3, 4]
  assert found.past.events.tolist()[4] == [-1, 0, 1]


def test_what_is_masked(tiny):
  found = load(tiny, "strict")
  # All rows of earlier splits, and the rows of the same split that are seen.
  assert [sorted(row) for row in found.seen.to_list()] == [
    [0, 1, 2, 3, 4],
    [0, 1, 2, 3, 4, 5],
    [3, 4],
    [0],
    [0],
    [0, 1, 7],
  ]
  assert found.num_repeated == 1
  assert found.unfiltered().seen.to_list() == [[]] * 6
  first = load(tiny, "strict", name="validation")
  assert [sorted(row) for row in first.seen.to_list()] == [
    [0, 1, 2],
    [0, 1, 2, 3],
    [],
  ]


def test_rows_of_weight_0_are_no_events(tiny, monkeypatch):
  opened = directory.DataDir(tiny)
  rows = opened.rows("train", in_order=True)
  weights = (rows["candidate_id"] != 2).astype(np.float32)
  opened._rows["train", True] = {**rows, "sample_weight": weights}
  found = split.load_evaluation_data(opened, "test", past.Rule(3, "strict"))
  assert found.past.events.tolist()[0] == [0, 1, 3]


def neighbours_by_loops(rows, found, ties, counts):
  """Ranks of the targets, from 1."""
  follow = np.zeros([8, 8])
  for q, c, t, place in rows:
    for q2, c2, t2, place2 in rows:
      visible = t < t2 if ties == "strict" else place < place2
      if q == q2 and visible and place < place2:
        follow[c, c2] += 1 / (place2 - place)
  ranks = []
  for row, target in enumerate(found.past.targets):
    scores = 1e-6 * counts / counts.max()
    for age, event in enumerate(found.past.events[row][::-1], start=1):
      if event >= 0:
        scores = scores + follow[event] / np.sqrt(age * max(counts[event], 1))
    scores[found.seen.to_list()[row]] = -np.inf
    better = (scores >= scores[target]) & (np.arange(8) != target)
    ranks.append(1 + better.sum() if scores[target] > -np.inf else np.inf)
  return np.array(ranks)


@pytest.mark.parametrize("ties", histories.TIES)
def test_neighbours(tmp_path, ties, monkeypatch):
  rng = np.random.default_rng(1)
  made = {
    name: [tuple(row) for row in rng.integers(0, [3, 8, 30], [size, 3]) + low]
    for name, size, low in (
      ("train", 40, [0, 0, 0]),
      ("validation", 4, [0, 0, 30]),
      ("test", 25, [0, 0, 60]),
    )
  }
  tiny = write_data(tmp_path / "data", made)
  opened = directory.DataDir(tiny)
  found = split.load_evaluation_data(opened, "test", past.Rule(3, ties))
  # Small chunks, so pairs are summed several times.
  monkeypatch.setattr(neighbours, "_ENTRIES", 50)
  rule = neighbours.Neighbours.of_data(opened, found)
  columns = opened.rows("train", in_order=True)
  names = ("query_id", "candidate_id", "timestamp", "event")
  rows = list(zip(*(columns[name] for name in names), strict=True))
  for which in (found, found.unfiltered()):
    ranking = rule.rank(which, (8,))
    ranks = neighbours_by_loops(rows, which, ties, found.counts)
    for row, rank in enumerate(ranks):
      expected = np.arange(1, 9) == rank
      np.testing.assert_array_equal(ranking.hits[row], expected, str(row))


def test_trained_and_evaluated(data, tmp_path, capsys):
  path = tmp_path / "m"
  result = run(data, path, query_tower="both", history_encoder="gru")
  assert result.validation["recall@20"] > 0
  model, kept, _ = runs.load_model(path)
  assert model.takes_histories
  assert kept.train["history_encoder"] == "gru"
  evaluate.run(evaluate.EvaluateConfig(model_dir=str(path), ks=(5, 10)))
  output = capsys.readouterr().out
  assert "Each row is a query of its own" in output
  assert "with seen candidates left in" in output
  found = report.load(places.Place.of(path).metrics)
  test_rows = schema_lib.Schema.load(data).rows["test"]
  assert found.queries == found.pairs == test_rows
  assert list(found.metrics) == [
    "model",
    "popularity",
    "neighbours",
    "oracle",
  ]
  of = found.histories
  assert (of.length, of.ties) == (6, "strict")
  assert list(of.unfiltered) == list(found.metrics)
  for parts in (of.by_length, of.by_time, found.by_training_count):
    assert sum(part.queries for part in parts.values()) == test_rows
    mean = sum(
      part.queries * part.metrics["model"]["recall@5"]
      for part in parts.values()
      if part.queries
    )
    assert mean / test_rows == pytest.approx(found.metrics["model"]["recall@5"])


@pytest.mark.parametrize("encoder", ["mean", "mind"])
def test_the_second_stage_ranks_by_histories(data, encoder):
  model, _ = built(
    data,
    task="corr",
    ranker="din",
    task_arguments="num_codewords=4",
    history_encoder=encoder,
  )
  for weight in model.ranker.trainable_weights:
    weight.assign(tf.random.stateless_normal(weight.shape, [0, 1]))
  rule = past.Rule(6, "strict")
  rows = split.load_evaluation_data(directory.DataDir(data), "test", rule)
  first = rankings.of_model(model, rows).with_popularity(rows.counts)
  lists = rankings.second_stage(model, first, rows, 5)
  for row in (0, len(rows.query_ids) // 2):
    scores = model.ranker(
      tf.constant([0]),
      tf.constant(lists.ids[[row]]),
      history_ids=tf.constant(rows.past.events[[row]]),
    )
    np.testing.assert_allclose(lists.scores[row], scores[0], rtol=1e-4)
  seen = rows.seen[row].numpy()
  assert not np.isin(lists.ids[row], seen).any()
  scores = first.queries[row] @ first.candidates.T
  best = np.argsort(-np.reshape(scores, [-1, len(rows.counts)]).max(axis=0))
  assert set(lists.ids[row]) == {*best[~np.isin(best, seen)][:5]}
  assert np.isin(lists.unmasked.ids, seen).any()


def test_cold_queries_are_answered_from_their_histories(of_histories):
  model_dir = str(of_histories)
  found = evaluate.evaluate(
    evaluate.EvaluateConfig(model_dir=model_dir, ks=(2,))
  )
  # Candidates 5 to 7 have no training row, so they are no events.
  assert found.by_popularity == 0
  assert found.by_query[report.COLD].queries == 3
  cold, popular = (
    found.by_query[report.COLD].metrics[name]
    for name in ("model", "popularity")
  )
  assert cold.keys() == popular.keys()
  # Rows without a history are answered by popularity.
  first = evaluate.evaluate(
    evaluate.EvaluateConfig(model_dir=model_dir, ks=(2,), split="validation")
  )
  assert first.by_popularity == 1
  assert first.histories.by_length["no event"].queries == 1


def test_ties_can_differ_from_training(of_histories):
  found = evaluate.evaluate(
    evaluate.EvaluateConfig(model_dir=str(of_histories), history_ties="order")
  )
  assert found.histories.ties == "order"


def test_a_model_of_ids_is_ranked_row_by_row(tiny, of_ids, of_histories):
  by_ids, by_histories = (
    evaluate.evaluate(
      evaluate.EvaluateConfig(model_dir=str(one), history_ties="strict")
    )
    for one in (of_ids, of_histories)
  )
  assert by_ids.histories is not None
  assert by_ids.queries == by_histories.queries == by_ids.pairs
  # With the same queries and masks, untrained baselines rank the same.
  for name in ("popularity", "neighbours"):
    assert by_ids.metrics[name] == by_histories.metrics[name]
  data = split.load_evaluation_data(str(tiny), "test", past.Rule(50, "strict"))
  model = runs.load_model(of_ids)[0]
  vectors = rankings.of_model(model, data)
  row = np.flatnonzero(data.warm)[-1]
  np.testing.assert_allclose(
    vectors.queries[row],
    model.encode_queries(tf.constant([data.query_ids[row]]))[0],
    rtol=1e-6,
  )


def test_metrics_of_ids_have_no_histories(of_ids):
  evaluate.run(evaluate.EvaluateConfig(model_dir=str(of_ids)))
  text = places.Place.of(of_ids).metrics.read_text("utf-8")
  assert json.loads(text)["histories"] is None
