"""Tests of pipelines.evaluate, on data small enough to rank by hand."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from pipelines import evaluate
from xir_tfrs.data import errors, records, runs, tables
from xir_tfrs.data import schema as schema_lib

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_NUM_QUERIES, _NUM_CANDIDATES = 5, 40
# Query 4 has no test pair; (3, 9) was trained on and comes again in the test.
_ROWS = {
  "train": [(q, c) for q in range(4) for c in range(q, 10)] + [(4, 39)] * 30,
  "validation": [(0, 20), (1, 20), (4, 20)],
  "test": [(0, 30), (0, 31), (1, 32), (2, 39), (3, 9), (3, 9), (3, 33)],
}


def _write_data(directory, rows=None):
  rows = rows or _ROWS
  directory.mkdir()
  shards = {}
  for split, pairs in rows.items():
    if not pairs:
      continue
    name = records.shard_name(split, 0, 1)
    with records.BlockWriter(directory / name) as writer:
      writer.append(
        {
          "query_id": np.array([q for q, _ in pairs], np.int64),
          "candidate_id": np.array([c for _, c in pairs], np.int64),
        }
      )
    shards[split] = (schema_lib.Shard(name, len(pairs)),)
  for side, (table, size) in enumerate((("queries", 5), ("candidates", 40))):
    ids = np.array([f"{table}{i}" for i in range(size)], object)
    trained = [pair[side] for pair in rows.get("train", ())]
    counts = np.bincount(np.array(trained, np.int64), minlength=size)
    content = tables.Table(ids, counts, {})
    shards[table] = tables.write_table(directory, table, content, ())
  schema_lib.Schema(
    name="tiny",
    num_queries=_NUM_QUERIES,
    num_candidates=_NUM_CANDIDATES,
    rows={split: len(pairs) for split, pairs in rows.items()},
    shards=shards,
  ).save(directory)
  return directory


def _model(seed=0):
  return xir.models.TwoTower(
    *(
      xir.models.Tower(vocabulary_size=size, dim=4, seed=seed + size, name=name)
      for size, name in ((5, "query_tower"), (40, "candidate_tower"))
    ),
    normalize=True,
  )


def _write_model(directory, model, data, checkpoints=("checkpoints",)):
  schema = (data / schema_lib.FILE_NAME).read_bytes()
  run = runs.RunDir(directory)
  config = runs.RunConfig(
    data=str(data),
    model=model.get_config(),
    schema_sha256=hashlib.sha256(schema).hexdigest(),
    train={},
  )
  with run.locked():
    run.create(config, overwrite=False)
  for number, name in enumerate(checkpoints):
    checkpoint = tf.train.Checkpoint(model=model, step=tf.Variable(number))
    tf.train.CheckpointManager(
      checkpoint, str(directory / name), max_to_keep=1
    ).save(checkpoint_number=number)
  return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return _write_data(tmp_path_factory.mktemp("evaluate") / "data")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
  directory = tmp_path_factory.mktemp("evaluate") / "model"
  return _write_model(directory, _model(), data, ("checkpoints", "best"))


def _lists(ragged):
  return [sorted(row) for row in ragged.to_list()]


def test_test_split_masks_training_and_validation(data):
  loaded = evaluate.load_evaluation_data(data, "test")
  assert loaded.query_ids.tolist() == [0, 1, 2, 3]
  assert _lists(loaded.relevant) == [[30, 31], [32], [39], [9, 33]]
  assert _lists(loaded.seen) == [
    [*range(10), 20],
    [*range(1, 10), 20],
    [*range(2, 10)],
    [*range(3, 10)],
  ]
  assert loaded.num_repeated == 1
  assert loaded.num_pairs == 6
  assert loaded.counts.tolist() == [1, 2, 3] + [4] * 7 + [0] * 29 + [30]


def test_validation_split_masks_training_only(data):
  loaded = evaluate.load_evaluation_data(data, "validation")
  assert loaded.query_ids.tolist() == [0, 1, 4]
  assert _lists(loaded.relevant) == [[20]] * 3
  assert _lists(loaded.seen) == [[*range(10)], [*range(1, 10)], [39]]
  assert loaded.num_repeated == 0


def test_restriction_keeps_rows_together(data):
  loaded = evaluate.load_evaluation_data(data, "test")
  band = loaded.restricted_to(np.isin(np.arange(40), [31, 33]))
  assert band.query_ids.tolist() == [0, 3]
  assert _lists(band.relevant) == [[31], [33]]
  assert _lists(band.seen) == [[*range(10), 20], [*range(3, 10)]]
  assert len(band.counts) == 40


def test_popularity_ranks_by_training_counts(data):
  loaded = evaluate.load_evaluation_data(data, "test")
  results = evaluate.rank_by_popularity(loaded, (1, 3))
  # Candidate 39 leads for every query, and only query 2 wants it. After it,
  # unseen ones with any count are 0 (query 1), 0, 1 (2) and 0, 1, 2 (3).
  assert results["recall@1"] == 1 / 4
  assert results["hit@3"] == 1 / 4


def test_popularity_with_counts_beyond_float32(data):
  loaded = evaluate.load_evaluation_data(data, "test")
  # As float32, 2^24 + 1 is 2^24. Query 2 wants 39, which leads by one.
  counts = np.full(40, 2**24)
  counts[39] += 1
  loaded = dataclasses.replace(loaded, counts=counts)
  assert evaluate.rank_by_popularity(loaded, (1,))["recall@1"] == 1 / 4


def test_rank_encodes_in_batches(data, monkeypatch):
  loaded = evaluate.load_evaluation_data(data, "test")
  model = _model()
  whole = evaluate.rank(model, loaded, (2, 10))
  monkeypatch.setattr(runs, "_IDS_PER_BATCH", 3)
  assert evaluate.rank(model, loaded, (2, 10)) == whole
  queries, candidates = evaluate.encode(model, loaded.query_ids, 40)
  assert (queries.shape, candidates.shape) == ((4, 4), (40, 4))
  np.testing.assert_allclose(np.linalg.norm(candidates, axis=1), 1, rtol=1e-6)


def test_evaluate(data, trained):
  results = evaluate.evaluate(data, trained, ks=(2, 40))
  assert results["checkpoint"] == "best/ckpt-1"
  assert list(results["metrics"]) == ["model", "popularity"]
  loaded = evaluate.load_evaluation_data(data, "test")
  expected = evaluate.rank(_model(), loaded, (2, 40))
  assert results["metrics"]["model"] == expected
  # All but the repeated pair are found in the whole catalogue.
  assert expected["recall@40"] == (1 + 1 + 1 + 1 / 2) / 4
  bands = results["by_training_count"]
  assert [band["pairs"] for band in bands.values()] == [5, 0, 1]
  assert [band["candidates"] for band in bands.values()] == [39, 0, 1]
  assert [band["queries"] for band in bands.values()] == [3, 0, 1]
  assert bands["6 to 20"]["metrics"] == {}
  assert bands["more than 20"]["metrics"]["popularity"]["recall@2"] == 1.0
  assert "1 of 6 test pairs were seen before" in results["warnings"][0]
  assert json.loads(json.dumps(results)) == results


def test_oracle_of_generated_data(data, trained, tmp_path):
  generated = shutil.copytree(data, tmp_path / "data")
  candidates = np.zeros([40, 5], np.float32)
  for query, candidate in _ROWS["test"]:
    candidates[candidate, query] = 1
  np.savez(
    generated / "oracle.npz",
    query_embeddings=np.eye(5, dtype=np.float32),
    candidate_embeddings=candidates,
  )
  results = evaluate.evaluate(generated, trained, ks=(2,))
  assert results["metrics"]["oracle"]["recall@2"] == (1 + 1 + 1 + 1 / 2) / 4
  # Queries 0, 1 and 3, each by its own embedding.
  band = results["by_training_count"]["at most 5"]
  assert band["metrics"]["oracle"]["recall@2"] == (1 + 1 + 1 / 2) / 3
  assert "oracle" in evaluate.format_table(results).splitlines()[0]


def test_table_is_aligned(data, trained):
  results = evaluate.evaluate(data, trained, ks=(2, 10))
  lines = evaluate.format_table(results).splitlines()
  assert lines[0].split() == ["model", "popularity"]
  assert len({len(line) for line in lines if "@" in line}) == 1
  assert any(line.startswith("  recall@10") for line in lines)
  assert not any("compat" in line for line in lines)


def test_collapsed_model_warns(data, tmp_path):
  model = _model()
  for weight in model.candidate_tower.weights:
    weight.assign(tf.ones_like(weight) * 0.3)
  directory = _write_model(tmp_path / "model", model, data)
  results = evaluate.evaluate(data, directory, ks=(2,))
  assert results["metrics"]["model"]["recall@2"] == 0.0
  assert any("collapsed" in warning for warning in results["warnings"])
  assert any("below popularity" in warning for warning in results["warnings"])


def test_sound_model_does_not_warn(data, trained):
  results = evaluate.evaluate(data, trained, split="validation", ks=(40,))
  assert results["warnings"] == []


@pytest.fixture(scope="module")
def ranked(data, tmp_path_factory):
  """A model with a ranker, and its directory."""
  model = _model()
  ranker = xir.models.Ranker(
    num_queries=5, num_candidates=40, dim=3, hidden_units=(4,), init_stddev=1.0
  )
  model = xir.models.TwoTower(
    model.query_tower, model.candidate_tower, normalize=True, ranker=ranker
  )
  directory = tmp_path_factory.mktemp("evaluate") / "ranked"
  return model, _write_model(directory, model, data)


def _reranked(model, loaded, depth):
  """[queries][depth] lists by sorting: the retriever's best, by the ranker."""
  queries, candidates = evaluate.encode(model, loaded.query_ids, 40)
  lists = []
  for row, query_id in enumerate(loaded.query_ids):
    scores = candidates @ queries[row]
    scores[loaded.seen[row].numpy()] = -np.inf
    best = np.argsort(-scores)[:depth]
    best = best[np.isfinite(scores[best])]
    again = model.rerank_scores(
      tf.constant([query_id]), tf.constant([best])
    ).numpy()[0]
    lists.append(best[np.argsort(-again)].tolist())
  return lists


@pytest.mark.parametrize("depth", [3, 30, 100])
def test_second_stage(data, ranked, depth, monkeypatch):
  monkeypatch.setattr(evaluate, "_LISTS_PER_BATCH", 3)
  model, directory = ranked
  results = evaluate.evaluate(data, directory, ks=(10, 30), rerank_depth=depth)
  assert list(results["metrics"]) == ["model", "reranked", "popularity"]
  assert results["rerank_depth"] == depth
  first, second = results["metrics"]["model"], results["metrics"]["reranked"]
  assert first.keys() == second.keys()
  loaded = evaluate.load_evaluation_data(data, "test")
  lists = _reranked(model, loaded, depth)
  relevant = _lists(loaded.relevant)
  assert first == evaluate.rank(model, loaded, (10, 30))
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
  # Query 2 wants only candidate 39, which is of another band.
  band = results["by_training_count"]["more than 20"]["metrics"]["reranked"]
  assert band["recall@30"] == float(39 in lists[2][:30])
  band = results["by_training_count"]["at most 5"]["metrics"]["reranked"]
  found = [
    len(set(lists[row][:30]) & set(relevant[row])) / len(relevant[row])
    for row in (0, 1, 3)
  ]
  assert band["recall@30"] == pytest.approx(np.mean(found))
  assert evaluate.format_table(results).split()[:2] == ["model", "reranked"]


def test_bad_second_stage_warns(data, ranked):
  _, directory = ranked
  results = evaluate.evaluate(data, directory, ks=(40,), rerank_depth=1)
  warned = [w for w in results["warnings"] if "Re-ranking makes it worse" in w]
  ours, second = (
    results["metrics"][name]["ndcg@40"] for name in ("model", "reranked")
  )
  assert second < ours and len(warned) == 1
  with pytest.raises(ValueError, match="--rerank_depth must be positive.*0"):
    evaluate.evaluate(data, directory, rerank_depth=0)


def test_without_a_ranker_there_is_no_second_stage(data, trained):
  results = evaluate.evaluate(data, trained, ks=(2,))
  assert "rerank_depth" not in results
  assert "reranked" not in results["metrics"]


def test_checkpoint_to_restore(data, tmp_path):
  directory = _write_model(tmp_path / "model", _model(1), data)
  # No validation, hence no best one.
  assert runs.load_model(directory)[2].endswith("checkpoints/ckpt-0")
  best = tf.train.Checkpoint(model=_model(2), step=tf.Variable(7))
  tf.train.CheckpointManager(best, str(directory / "best"), 1).save(7)
  for name, seed in (("best", 2), ("latest", 1)):
    restored = runs.load_model(directory, name)[0]
    np.testing.assert_array_equal(
      restored.encode_queries(tf.range(5)),
      _model(seed).encode_queries(tf.range(5)),
    )


def test_no_checkpoint(data, tmp_path):
  directory = _write_model(tmp_path / "model", _model(), data, ())
  with pytest.raises(errors.DataError, match="no checkpoint.*--resume"):
    runs.load_model(directory)
  assert sorted(os.listdir(directory)) == ["config.json"]


def test_checkpoint_of_another_model(data, tmp_path):
  directory = _write_model(tmp_path / "model", _model(), data)
  config = json.loads((directory / "config.json").read_text())
  config["model"]["query_tower"]["dim"] = 8
  (directory / "config.json").write_text(json.dumps(config))
  with pytest.raises(errors.DataError, match="cannot be restored"):
    runs.load_model(directory)


def test_other_data(data, trained, tmp_path):
  other = _write_data(tmp_path / "data", _ROWS | {"validation": [(0, 1)]})
  with pytest.raises(errors.DataError, match="is not the data that"):
    evaluate.evaluate(other, trained)


def test_split_without_rows(trained, tmp_path):
  data = _write_data(tmp_path / "data", _ROWS | {"validation": []})
  with pytest.raises(errors.DataError, match="validation split has no rows"):
    evaluate.load_evaluation_data(data, "validation")
  # Nor does it hinder the test split.
  assert evaluate.load_evaluation_data(data, "test").num_pairs == 6


@pytest.mark.parametrize("name", ["split", "checkpoint"])
def test_names(data, trained, name):
  with pytest.raises(ValueError, match=f"`{name}` must be one of.*'train'"):
    evaluate.evaluate(data, trained, **{name: "train"})


def _run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "pipelines.evaluate", *map(str, arguments)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_program(data, trained, tmp_path):
  output = tmp_path / "metrics.json"
  done = _run("--model_dir", trained, "--ks", "2,10", "--output", output)
  assert done.returncode == 0, done.stderr
  assert "best/ckpt-1 on the test split: 4 queries, 6 pairs" in done.stdout
  assert "popularity" in done.stdout
  assert "Warning: 1 of 6" in done.stderr
  written = json.loads(output.read_text())
  assert written == evaluate.evaluate(data, trained, ks=(2, 10))
  assert os.listdir(tmp_path) == ["metrics.json"]


def test_program_says_what_is_wrong(data, tmp_path):
  done = _run("--data", data, "--model_dir", tmp_path / "none")
  assert done.returncode == 1
  error = [line for line in done.stderr.splitlines() if "Error" in line]
  assert len(error) == 1 and "holds no training run" in error[0]
  assert "Traceback" not in done.stderr
