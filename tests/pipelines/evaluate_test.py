"""Tests of pipelines.evaluate, on data small enough to rank by hand."""

import dataclasses
import json
import os
import shutil

import msgspec
import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from pipelines import evaluate
from pipelines.evaluation import intervals, places, rankings, report, split
from tests import program, tiny_runs
from xir_tfrs.data import errors
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import progress, settings
from xir_tfrs.types import Feature


def _evaluate(data, model_dir, **given):
  return evaluate.evaluate(
    evaluate.EvaluateConfig(
      data=data and str(data), model_dir=str(model_dir), **given
    )
  )


def _rank(model, loaded, ks):
  return rankings.rank(model, loaded, ks).means()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return tiny_runs.write_data(tmp_path_factory.mktemp("evaluate") / "data")


@pytest.fixture(scope="module")
def loaded(data):
  return split.load_evaluation_data(data, "test")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
  directory = tmp_path_factory.mktemp("evaluate") / "model"
  return tiny_runs.write_model(
    directory, tiny_runs.two_tower(), data, ("checkpoints", "best")
  )


def _lists(ragged):
  return [sorted(row) for row in ragged.to_list()]


def test_test_split_masks_training_and_validation(loaded):
  assert loaded.query_ids.tolist() == [0, 1, 2, 3, 5]
  assert loaded.warm.tolist() == [True, True, True, True, False]
  assert _lists(loaded.relevant) == [[30, 31], [32], [39], [9, 33], [38, 39]]
  assert _lists(loaded.seen) == [
    [*range(10), 20],
    [*range(1, 10), 20],
    [*range(2, 10)],
    [*range(3, 10)],
    [],
  ]
  assert loaded.num_repeated == 1
  assert loaded.num_pairs == 8
  assert loaded.counts.tolist() == tiny_runs.COUNTS


def test_validation_split_masks_training_only(data):
  found = split.load_evaluation_data(data, "validation")
  assert found.query_ids.tolist() == [0, 1, 4]
  assert _lists(found.relevant) == [[20], [20], [0]]
  assert _lists(found.seen) == [
    [*range(10)],
    [*range(1, 10)],
    [*range(10, 38), 39],
  ]
  assert found.num_repeated == 0


def test_restriction_keeps_rows_together(loaded):
  band = loaded.restricted_to(np.isin(np.arange(40), [31, 33, 38]))
  assert band.rows.tolist() == [0, 3, 4]
  assert band.query_ids.tolist() == [0, 3, 5]
  assert band.warm.tolist() == [True, True, False]
  assert _lists(band.relevant) == [[31], [33], [38]]
  assert _lists(band.seen) == [[*range(10), 20], [*range(3, 10)], []]
  assert len(band.counts) == 40


def test_popularity_ranks_by_training_counts(loaded):
  results = rankings.of_popularity(loaded).rank(loaded, (1, 3)).means()
  # Candidate 39 is first for every query; queries 2 and 5 want it. Candidates 0
  # to 9 follow, unless they are seen.
  assert results["recall@1"] == (1 + 1 / 2) / 5
  assert results["hit@3"] == 2 / 5


def test_popularity_with_counts_beyond_float32(loaded):
  # As float32, 2^24 + 1 is 2^24. Candidate 39 leads by one.
  counts = np.full(40, 2**24)
  counts[39] += 1
  loaded = dataclasses.replace(loaded, counts=counts)
  results = rankings.of_popularity(loaded).rank(loaded, (1,)).means()
  assert results["hit@1"] == 2 / 5


def test_cold_queries_and_candidates_are_ranked_as_served(loaded):
  """Untrained vectors do not matter; no query finds candidate 38."""
  model = tiny_runs.two_tower()
  results = rankings.rank(model, loaded, (2, 10, 40))
  for tower, row in ((model.query_tower, 5), (model.candidate_tower, 38)):
    table = tower.weights[0]
    table.assign(tf.tensor_scatter_nd_update(table, [[row]], [[9.0] * 4]))
  again = rankings.rank(model, loaded, (2, 10, 40))
  np.testing.assert_array_equal(again.hits, results.hits)
  assert not results.covered[:, 38].any()
  popularity = rankings.of_popularity(loaded, np.arange(40) != 38)
  np.testing.assert_array_equal(
    results.hits[4], popularity.rank(loaded, (2, 10, 40)).hits[4]
  )
  assert results.by_query()["recall@40"].tolist() == [1, 1, 1, 1 / 2, 1 / 2]


def test_cold_query_with_side_features_is_ranked_by_them(loaded):
  city = Feature("city", "token", vocabulary_size=3)
  codes = np.array([1, 1, 2, 2, 1, 2])
  tower = tiny_runs.tower(
    "query_tower",
    tiny_runs.NUM_QUERIES,
    features=(city,),
    columns={"city": codes},
  )
  model = tiny_runs.two_tower(query_tower=tower)
  vectors = rankings.of_model(model, loaded)
  assert vectors.by_model.all()
  np.testing.assert_allclose(
    vectors.queries[4],
    model.encode_queries(tf.constant([-1]), {"city": tf.constant([2])})[0],
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    vectors.queries[:4], model.encode_queries(tf.range(4)), rtol=1e-6
  )
  # A query whose city is also unknown is answered by popularity.
  codes[5] = 0
  tower = tiny_runs.tower(
    "query_tower",
    tiny_runs.NUM_QUERIES,
    features=(city,),
    columns={"city": codes},
  )
  vectors = rankings.of_model(tiny_runs.two_tower(query_tower=tower), loaded)
  assert vectors.by_model.tolist() == [True] * 4 + [False]


def test_evaluate(data, loaded, trained):
  results = _evaluate(data, trained, ks=(2, 40))
  assert results.checkpoint == "best/ckpt-1"
  assert list(results.metrics) == ["model", "popularity"]
  expected = _rank(tiny_runs.two_tower(), loaded, (2, 40))
  assert results.metrics["model"] == pytest.approx(expected)
  # All but the repeated pair and the candidate outside the index.
  assert expected["recall@40"] == (1 + 1 + 1 + 1 / 2 + 1 / 2) / 5
  assert (results.indexed, results.by_popularity) == (39, 1)
  bands = results.by_training_count
  assert [band.pairs for band in bands.values()] == [6, 0, 2]
  assert [band.candidates for band in bands.values()] == [39, 0, 1]
  assert [band.queries for band in bands.values()] == [4, 0, 2]
  assert bands["6 to 20"].metrics == {}
  assert bands["more than 20"].metrics["popularity"]["recall@2"] == 1.0
  assert "1 of 8 test pairs were seen before" in results.warnings[0]


def test_warm_and_cold_queries_are_reported_separately(data, trained):
  results = _evaluate(data, trained, ks=(2, 40))
  warm, cold = (results.by_query[name] for name in (report.WARM, report.COLD))
  assert (warm.queries, warm.pairs) == (4, 6)
  assert (cold.queries, cold.pairs) == (1, 2)
  for ranking, whole in results.metrics.items():
    parts = [part.metrics[ranking] for part in (warm, cold)]
    assert parts[0].keys() == {n for n in whole if not n.startswith("cover")}
    for name in parts[0]:
      mean = (4 * parts[0][name] + parts[1][name]) / 5
      assert mean == pytest.approx(whole[name])
  assert cold.metrics["model"]["recall@2"] == 1 / 2
  assert cold.metrics["model"] == cold.metrics["popularity"]
  lines = report.table(results).splitlines()
  place = lines.index("queries without training rows: 1, 2 pairs")
  assert lines[place + 1].split() == ["recall@2", "0.5000", "0.5000"]
  assert "1 queries have neither" in report.summary(results)
  assert "1 candidates have neither" in report.summary(results)


def test_means_with_parts(data, loaded):
  ranking = rankings.rank(tiny_runs.two_tower(), loaded, (2,))
  means = rankings.means_with_parts(ranking, loaded.warm)
  assert means["cold/recall@2"] == 1 / 2
  mean = (4 * means["warm/recall@2"] + means["cold/recall@2"]) / 5
  assert means["recall@2"] == pytest.approx(mean)
  everyone = np.ones(5, bool)
  assert rankings.means_with_parts(ranking, everyone) == ranking.means()


def test_the_verdict_compares_with_what_needs_no_training(data, trained):
  found = _evaluate(data, trained, ks=(2, 10))
  ndcg = {"model": {"ndcg@10": 0.3}, "popularity": {"ndcg@10": 0.2}}
  chance = intervals.PairedTest(0.1, 0.1, p=0.3)
  sure = intervals.PairedTest(0.1, 0.01, p=0.001)
  for test, end in ((chance, "; the difference may be chance."), (sure, ".")):
    told = msgspec.structs.replace(
      found, metrics=ndcg, differences={"popularity": {"ndcg@10": test}}
    )
    assert report.verdict(told) == [
      f"ndcg@10 of the model is 0.3000, 1.50 times that of popularity{end}"
    ]


def test_one_cut_off_for_the_verdict_and_the_next_command(data, trained):
  """Better than popularity at 20, worse at 50."""
  config = evaluate.EvaluateConfig(data=str(data), model_dir=str(trained))
  found = msgspec.structs.replace(
    _evaluate(data, trained, ks=(2,)),
    ks=(20, 50),
    metrics={
      "model": {"ndcg@20": 0.3, "ndcg@50": 0.3},
      "popularity": {"ndcg@20": 0.2, "ndcg@50": 0.4},
    },
    differences={},
  )
  assert report.verdict(found) == [
    "ndcg@20 of the model is 0.3000, 1.50 times that of popularity."
  ]
  assert evaluate._following(config, found).startswith("xir-tfrs export")
  without = msgspec.structs.replace(found, ks=(10, 50))
  assert "ndcg@50 of the model is 0.3000, 0.75" in report.verdict(without)[0]
  assert evaluate._following(config, without).startswith("xir-tfrs tune")


def test_no_section_without_cold_queries(data, trained):
  results = _evaluate(data, trained, split="validation", ks=(40,))
  assert results.by_query[report.COLD] == report.Part(0, 0, {})
  assert "without training rows" not in report.table(results)
  assert "queries have neither" not in report.summary(results)


def test_oracle_of_generated_data(data, trained, tmp_path):
  generated = shutil.copytree(data, tmp_path / "data")
  candidates = np.zeros([40, 6], np.float32)
  for query, candidate in tiny_runs.ROWS["test"]:
    candidates[candidate, query] = 1
  np.savez(
    generated / schema_lib.ORACLE_FILE,
    query_embeddings=np.eye(6, dtype=np.float32),
    candidate_embeddings=candidates,
  )
  results = _evaluate(generated, trained, ks=(2,))
  # The oracle also knows untrained ids.
  assert results.metrics["oracle"]["recall@2"] == (1 + 1 + 1 + 1 / 2 + 1) / 5
  # Queries 0, 1, 3 and 5, each with its own embedding.
  band = results.by_training_count["at most 5"]
  assert band.metrics["oracle"]["recall@2"] == (1 + 1 + 1 / 2 + 1) / 4
  assert "oracle" in report.table(results).splitlines()[0]


def test_table_is_aligned(data, trained):
  results = _evaluate(data, trained, ks=(2, 10))
  lines = report.table(results).splitlines()
  assert lines[0].split() == ["model", "popularity"]
  assert len({len(line) for line in lines if "@" in line}) == 1
  assert any(line.startswith("  recall@10") for line in lines)
  assert not any("compat" in line for line in lines)


def test_collapsed_model_warns(data, tmp_path):
  model = tiny_runs.two_tower()
  for weight in model.candidate_tower.weights:
    weight.assign(tf.ones_like(weight) * 0.3)
  directory = tiny_runs.write_model(tmp_path / "model", model, data)
  results = _evaluate(data, directory, ks=(2,))
  assert results.by_query[report.WARM].metrics["model"]["recall@2"] == 0.0
  assert any("collapsed" in warning for warning in results.warnings)
  assert any("below popularity" in warning for warning in results.warnings)


def test_sound_model_does_not_warn(data, trained):
  results = _evaluate(data, trained, split="validation", ks=(40,))
  assert results.warnings == ()


@pytest.fixture(scope="module")
def ranked(data, tmp_path_factory):
  """A model with a ranker, and its directory."""
  model = tiny_runs.two_tower()
  ranker = xir.models.Ranker(
    num_queries=tiny_runs.NUM_QUERIES,
    num_candidates=tiny_runs.NUM_CANDIDATES,
    dim=3,
    hidden_units=(4,),
    init_stddev=1.0,
  )
  model = xir.models.TwoTower(
    model.query_tower, model.candidate_tower, normalize=True, ranker=ranker
  )
  directory = tmp_path_factory.mktemp("evaluate") / "ranked"
  return model, tiny_runs.write_model(directory, model, data)


def _reranked(model, loaded, depth):
  """[queries][depth] lists: the retriever's best, sorted by the ranker."""
  candidates = model.encode_candidates(tf.range(40)).numpy()
  lists = []
  for row, query_id in enumerate(loaded.query_ids):
    scores = (
      candidates @ model.encode_queries(tf.constant([query_id])).numpy()[0]
    )
    if query_id == 5:
      scores = np.array(tiny_runs.COUNTS, float)
    scores[38] = -np.inf
    scores[loaded.seen[row].numpy()] = -np.inf
    best = np.argsort(-scores, kind="stable")[:depth]
    best = best[np.isfinite(scores[best])]
    again = model.rerank_scores(
      tf.constant([query_id]), tf.constant([best])
    ).numpy()[0]
    if query_id != 5:
      best = best[np.argsort(-again)]
    lists.append(best.tolist())
  return lists


@pytest.mark.parametrize("depth", [3, 30, 100])
def test_second_stage(data, loaded, ranked, depth, monkeypatch):
  monkeypatch.setattr(rankings, "_LISTS_PER_BATCH", 3)
  model, directory = ranked
  results = _evaluate(data, directory, ks=(10, 30), rerank_depth=depth)
  assert list(results.metrics) == ["model", "reranked", "popularity"]
  assert results.rerank_depth == depth
  first, second = results.metrics["model"], results.metrics["reranked"]
  assert first.keys() == second.keys()
  lists = _reranked(model, loaded, depth)
  relevant = _lists(loaded.relevant)
  assert first == pytest.approx(_rank(model, loaded, (10, 30)))
  for k in (10, 30):
    recall = [
      len(set(found[:k]) & set(wanted)) / len(wanted)
      for found, wanted in zip(lists, relevant, strict=True)
    ]
    assert second[f"recall@{k}"] == pytest.approx(np.mean(recall))
    shown = {i for found in lists for i in found[:k]}
    assert second[f"coverage@{k}"] == pytest.approx(len(shown) / 40)
  if depth == 30:
    # The same thirty, in another order.
    assert second["recall@30"] == first["recall@30"] > 0
    assert second["mrr@30"] != first["mrr@30"]
  # Queries 2 and 5 want candidate 39, which is in another band.
  band = results.by_training_count["more than 20"].metrics["reranked"]
  found = [39 in lists[row][:30] for row in (2, 4)]
  assert band["recall@30"] == pytest.approx(np.mean(found))
  band = results.by_training_count["at most 5"].metrics["reranked"]
  wanted = [[30, 31], [32], [9, 33], [38]]
  found = [
    len(set(lists[row][:30]) & set(ids)) / len(ids)
    for row, ids in zip((0, 1, 3, 4), wanted, strict=True)
  ]
  assert band["recall@30"] == pytest.approx(np.mean(found))
  assert report.table(results).split()[:2] == ["model", "reranked"]


def test_long_rankings_show_their_progress(data, ranked, monkeypatch, capfd):
  monkeypatch.setattr(progress, "_SECONDS_PER_LINE", 0.0)
  monkeypatch.setattr(rankings, "_LISTS_PER_BATCH", 3)
  _evaluate(data, ranked[1], ks=(10,))
  lines = capfd.readouterr().err.splitlines()
  for title, part in (
    ("encode", "100%, 40 rows"),
    ("re-rank", "60%, 3 rows"),
    ("rank with model", "100%, 5 rows"),
    ("rank with popularity", "100%, 5 rows"),
  ):
    assert any(line.startswith(f"{title} {part}") for line in lines), title


def test_bad_second_stage_warns(data, ranked):
  _, directory = ranked
  results = _evaluate(data, directory, ks=(40,), rerank_depth=1)
  warned = [w for w in results.warnings if "Re-ranking lowers ndcg" in w]
  ours, second = (
    results.by_query[report.WARM].metrics[name]["ndcg@40"]
    for name in ("model", "reranked")
  )
  assert second < ours and len(warned) == 1


def test_without_a_ranker_there_is_no_second_stage(data, trained):
  results = _evaluate(data, trained, ks=(2,))
  assert results.rerank_depth is None
  assert "reranked" not in results.metrics
  with pytest.raises(settings.SettingsError, match="--rerank_depth belongs"):
    _evaluate(data, trained, rerank_depth=5)


def test_checkpoint_that_is_evaluated(data, loaded, tmp_path):
  directory = tiny_runs.write_model(
    tmp_path / "model", tiny_runs.two_tower(1), data
  )
  best = tf.train.Checkpoint(model=tiny_runs.two_tower(2), step=tf.Variable(7))
  tf.train.CheckpointManager(best, str(directory / "best"), 1).save(7)
  for name, seed in (("best", 2), ("latest", 1)):
    results = _evaluate(data, directory, checkpoint=name, ks=(10,))
    expected = _rank(tiny_runs.two_tower(seed), loaded, (10,))
    assert results.metrics["model"] == pytest.approx(expected)


def test_other_data(data, trained, tmp_path):
  other = tiny_runs.write_data(
    tmp_path / "data", tiny_runs.ROWS | {"validation": [(0, 1)]}
  )
  with pytest.raises(errors.DataError, match="is not the data that"):
    _evaluate(other, trained)


def test_split_without_rows(tmp_path):
  data = tiny_runs.write_data(
    tmp_path / "data", tiny_runs.ROWS | {"validation": []}
  )
  with pytest.raises(errors.DataError, match="validation split has no rows"):
    split.load_evaluation_data(data, "validation")
  # The test split still works.
  assert split.load_evaluation_data(data, "test").num_pairs == 8


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"split": "train"}, "--split must be one of validation, test.*'train'"),
    ({"checkpoint": "old"}, "--checkpoint must be one of best, latest.*'old'"),
    ({"ks": (10, 10)}, "--ks must be one or more distinct.*10,10"),
    ({"ks": ()}, "--ks must be one or more"),
    ({"ks": (0,)}, "--ks must be at least 1.*0"),
    ({"rerank_depth": 0}, "--rerank_depth must be at least 1.*0"),
  ],
)
def test_wrong_settings_are_refused_by_name(given, message):
  with pytest.raises(settings.SettingsError, match=message):
    evaluate.EvaluateConfig(model_dir="m", **given)


def test_program(data, trained, tmp_path):
  output = tmp_path / "new" / "metrics.json"
  done = program.run(
    "pipelines.evaluate",
    "--model_dir",
    trained,
    "--ks",
    "2,10",
    "--output",
    output,
    "--noreport",
  )
  assert done.returncode == 0, done.stderr
  assert "best/ckpt-1 on the test split: 5 queries, 8 pairs" in done.stdout
  assert "popularity" in done.stdout
  assert f"Next: xir-tfrs tune --data {data} --output" in done.stdout
  assert "Warning: 1 of 8" in done.stderr
  written = report.load(output)
  assert written == _evaluate(data, trained, ks=(2, 10))
  assert json.loads(output.read_text())["metrics"]["model"]["recall@10"] > 0
  assert {*os.listdir(output.parent)} == {"metrics.json", "by_query.npz"}


def test_no_page_of_an_earlier_evaluation_stays(data, trained, tmp_path):
  place = places.Place.of(trained, str(tmp_path / "metrics.json"))
  for old in (place.report, place.examples):
    old.write_text("{}")
  evaluate.rank(
    evaluate.EvaluateConfig(
      data=str(data), model_dir=str(trained), report=False
    )
  ).write(place)
  assert {*os.listdir(tmp_path)} == {"metrics.json", "by_query.npz"}


def test_an_output_that_cannot_be_written_is_refused_first(trained, tmp_path):
  done = program.run(
    *("pipelines.evaluate", "--model_dir", trained, "--output", tmp_path)
  )
  assert done.returncode == 1 and done.stdout == ""
  assert f"{tmp_path}: is a directory" in done.stderr


def test_program_says_what_is_wrong(data, tmp_path):
  done = program.run(
    "pipelines.evaluate", "--data", data, "--model_dir", tmp_path / "none"
  )
  assert done.returncode == 1
  error = [line for line in done.stderr.splitlines() if "Error" in line]
  assert len(error) == 1 and "holds no training run" in error[0]
  assert "Traceback" not in done.stderr
