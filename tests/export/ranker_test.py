"""The ranker in a bundle: export and re-ranking."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from export import export_retriever, query
from xir_tfrs.data import errors, json_files, runs
from xir_tfrs.serving import bundle
from xir_tfrs.serving import manifest as manifests

_ROOT = pathlib.Path(__file__).parents[2]

_PLAIN_TENSORFLOW = """
import json, sys
import tensorflow as tf
sys.path = [x for x in sys.path if x]
rank = tf.saved_model.load(sys.argv[1] + "/ranker").signatures["rank"]
queries, candidates = json.loads(sys.argv[2])
scores = rank(query_id=tf.constant(queries),
              candidate_ids=tf.constant(candidates))["scores"]
assert not [x for x in sys.modules if x.split(".")[0] in ("xir_tfrs", "export")]
print(json.dumps(scores.numpy().tolist()))
"""


@pytest.fixture(scope="module")
def ranked(world, tmp_path_factory):
  """(model, bundle) of the world's towers and a ranker."""
  root = tmp_path_factory.mktemp("ranked")
  model, config, _ = runs.load_model(world.model_dir)
  ranker = xir.models.Ranker(
    num_queries=len(world.query_ids),
    num_candidates=len(world.candidate_ids),
    dim=4,
    hidden_units=(8,),
    candidate_table=model.candidate_tower.table,
    init_stddev=1.0,
  )
  model = xir.models.TwoTower(
    model.query_tower, model.candidate_tower, normalize=True, ranker=ranker
  )
  (root / "model").mkdir()
  tf.train.CheckpointManager(
    tf.train.Checkpoint(model=model), str(root / "model/best"), 1
  ).save()
  runs.RunDir(root / "model").write_config(
    msgspec.structs.replace(config, model=model.get_config())
  )
  export_retriever.export_retriever(
    export_retriever.ExportOptions(
      data=str(world.data),
      model_dir=str(root / "model"),
      output=str(root / "bundle"),
      indexes=("brute_force",),
    )
  )
  return model, root / "bundle"


def _reranked(world, model, query_number, depth, leave_out=()):
  """(ids, scores), best first: the ranker's order of the retriever's best."""
  ids = world.ranking(query_number, leave_out)[:depth]
  rows = [world.candidate_ids.index(i) for i in ids]
  scores = model.rerank_scores(
    tf.constant([query_number]), tf.constant([rows])
  ).numpy()[0]
  order = np.argsort(-scores)
  return [ids[i] for i in order], scores[order]


def test_manifest(ranked):
  _, directory = ranked
  manifest = json.loads((directory / "manifest.json").read_text())
  signature = manifest["signatures"]["ranker"]["rank"]
  assert signature["inputs"] == {
    "query_id": {"dtype": "string", "shape": [None]},
    "candidate_ids": {"dtype": "string", "shape": [None, None]},
  }
  assert signature["outputs"]["scores"]["dtype"] == "float32"
  files = [name for name in manifest["files"] if name.startswith("ranker/")]
  assert "ranker/saved_model.pb" in files
  for name in files:
    content = (directory / name).read_bytes()
    assert (
      manifest["files"][name]["sha256"] == hashlib.sha256(content).hexdigest()
    )


@pytest.mark.parametrize("depth", [7, 100, 1000])
def test_reranks_retrieved_candidates(world, ranked, load, depth):
  model, directory = ranked
  loaded = load(directory)
  assert loaded.has_ranker
  queries = [3, 0, 38]
  found = loaded.recommend(
    [world.query_ids[q] for q in queries], k=5, rerank=True, rerank_depth=depth
  )
  for row, number in enumerate(queries):
    ids, scores = _reranked(world, model, number, depth)
    assert found.ids[row].tolist() == ids[:5]
    np.testing.assert_allclose(found.scores[row], scores[:5], rtol=1e-4)


def test_more_answers_than_the_depth(world, ranked, load):
  model, directory = ranked
  loaded = load(directory)
  name = world.query_ids[2]
  found = loaded.recommend([name], k=12, rerank=True, rerank_depth=3)
  assert found.ids[0].tolist() == _reranked(world, model, 2, 12)[0]
  # More than there are, so padding follows.
  found = loaded.recommend([name], k=305, rerank=True)
  assert found.ids[0, :300].tolist() == _reranked(world, model, 2, 300)[0]
  assert found.ids[0, 300:].tolist() == [""] * 5
  assert np.isneginf(found.scores[0, 300:]).all()
  with pytest.raises(ValueError, match="`rerank_depth` = 0"):
    loaded.recommend([name], k=3, rerank=True, rerank_depth=0)


def test_exclusions_and_unknown_queries(world, ranked, load):
  model, directory = ranked
  loaded = load(directory)
  seen = {world.candidate_ids[c] for c in world.seen[5]}
  found = loaded.recommend(
    [world.query_ids[5], "nobody"], k=10, exclude_seen=True, rerank=True
  )
  assert found.ids[0].tolist() == _reranked(world, model, 5, 100, seen)[0][:10]
  assert found.known.tolist() == [True, False]
  assert found.scores[1, 0] == world.counts.max()


def test_query_prints_who_ranked(world, ranked, load, monkeypatch):
  monkeypatch.setattr(bundle.Bundle, "load", load)
  model, directory = ranked
  name = world.query_ids[1]
  asked = {"bundle": directory, "k": 3}
  lines = query.answer(
    query.QueryOptions(**asked, query_id=(name,), rerank=True)
  ).splitlines()
  best = _reranked(world, model, 1, 100)[0]
  assert lines[0] == f"query {name} (brute_force, re-ranked)"
  assert [line.split()[1:3] for line in lines[2:5]] == [
    b.split() for b in best[:3]
  ]
  for rerank in (False, True):
    known, unknown = (
      json.loads(line)
      for line in query.answer(
        query.QueryOptions(
          **asked, query_id=(name, "nobody"), json=True, rerank=rerank
        )
      ).splitlines()
    )
    assert (known["reranked"], unknown["reranked"]) == (rerank, False)
    assert known["index"] == "brute_force"
    expected = best if rerank else world.ranking(1)
    assert known["candidate_ids"] == expected[:3]


def test_plain_tensorflow_ranks(world, ranked):
  model, directory = ranked
  candidates = [["item 7", "no such item"], ["item 0", "item 7"]]
  done = subprocess.run(
    [
      *(sys.executable, "-c", _PLAIN_TENSORFLOW, directory),
      json.dumps([[world.query_ids[8], "nobody"], candidates]),
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  expected = model.rerank_scores(
    tf.constant([8, -1]), tf.constant([[7, -1], [0, 7]])
  )
  np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-4)


def test_a_damaged_ranker_is_refused(ranked, tmp_path):
  _, directory = ranked
  copied = shutil.copytree(directory, tmp_path / "bundle")
  (copied / "ranker/saved_model.pb").unlink()
  with pytest.raises(errors.DataError, match="ranker/saved_model.pb: miss"):
    bundle.Bundle.load(copied)


@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.parametrize("meanwhile", [True, False])
def test_the_ranker_of_another_bundle_is_not_used(
  world, ranked, tmp_path, monkeypatch, removed, meanwhile
):
  copy = tmp_path / "bundle"
  shutil.copytree(ranked[1], copy)
  loaded = bundle.Bundle.load(copy)
  load = tf.saved_model.load

  def replaced(*arguments):
    if removed:
      shutil.rmtree(copy)
    else:
      manifest = json.loads((copy / "manifest.json").read_text())
      other = msgspec.convert(
        manifest | {"encode_seconds": 99}, manifests.Manifest
      )
      json_files.write(copy / "manifest.json", json_files.seal(other))
    return load(*arguments) if arguments else None

  if meanwhile:
    monkeypatch.setattr(tf.saved_model, "load", replaced)
  else:
    replaced()
  with pytest.raises(errors.DataError, match="replaced or removed after"):
    loaded.recommend([world.query_ids[0]], k=3, rerank=True)
