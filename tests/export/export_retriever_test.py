"""The manifest, and failing exports, which leave no files."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil

import msgspec
import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from export import export_retriever
from export.bundle import indexing, write
from xir_tfrs.data import directory, errors, runs, tables
from xir_tfrs.programs import settings
from xir_tfrs.serving import bundle
from xir_tfrs.serving import manifest as manifests


@pytest.fixture
def options(world, tmp_path):
  """Options over copies that a test may break."""
  return export_retriever.ExportOptions(
    data=str(shutil.copytree(world.data, tmp_path / "data")),
    model_dir=str(shutil.copytree(world.model_dir, tmp_path / "model")),
    output=str(tmp_path / "out" / "bundle"),
    indexes=("brute_force",),
  )


def _fails(options, message):
  with pytest.raises(errors.DataError, match=message):
    export_retriever.export_retriever(options)


def test_manifest(world, exported):
  manifest = json.loads((exported / "manifest.json").read_text())
  files = {
    path.relative_to(exported).as_posix(): path
    for path in exported.rglob("*")
    if path.is_file() and path.name != "manifest.json"
  }
  assert set(manifest["files"]) == set(files)
  for name, path in files.items():
    content = path.read_bytes()
    assert manifest["files"][name] == {
      "bytes": len(content),
      "sha256": hashlib.sha256(content).hexdigest(),
    }
  assert manifest["num_queries"] == 40
  assert manifest["num_candidates"] == 300
  assert manifest["num_seen_pairs"] == sum(map(len, world.seen))
  assert (manifest["dim"], manifest["dtype"]) == (6, "float32")
  assert manifest["checkpoint"] == "best/ckpt-1"
  assert manifest["training"]["train"] == {"task": "xir"}
  assert manifest["versions"]["tensorflow"] == tf.__version__
  assert manifest["versions"]["scann"]
  scann = manifest["indexes"]["scann"]
  assert scann["kind"] == "scann"
  assert scann["recall"] == {"10": 1.0, "100": 1.0}
  assert (scann["recall_queries"], scann["target_recall"]) == (20, 0.99)
  assert {"num_reorder": 50, "num_leaves_to_search": 1}.items() <= max(
    scann["curve"], key=lambda point: -point["num_reorder"]
  ).items()
  assert scann["settings"]["num_leaves"] == 1
  retriever = [
    *("recommend", "recommend_unseen", "recommend_session", "search"),
    *("similar_items", "encode_query", "encode_session", "encode_candidate"),
    "serving_default",
  ]
  assert {k: list(v) for k, v in manifest["signatures"].items()} == {
    "query_tower": ["encode_query"],
    "candidate_tower": ["encode_candidate"],
    "brute_force": retriever,
    "scann": retriever,
  }
  inputs = manifest["signatures"]["scann"]["recommend"]["inputs"]
  assert inputs == {
    "query_id": {"dtype": "string", "shape": [None]},
    "k": {"dtype": "int32", "shape": []},
    "exclude_ids": {"dtype": "string", "shape": [None, None]},
    "allow_ids": {"dtype": "string", "shape": [None, None]},
  }
  assert manifest["id_types"] == {"query": "string", "candidate": "string"}
  assert (manifest["unknown_query"], manifest["max_k"]) == ("popularity", 10000)
  assert [x["name"] for x in manifest["candidate_features"]] == [
    *("tag", "words", "price", "blurb", "place")
  ]
  for side in ("query", "candidate"):
    assert manifest["tower_sha256"][side] == manifests.tower_hash(
      exported / f"{side}_tower"
    )
  assert (exported / "recall_latency.png").read_bytes()[:4] == b"\x89PNG"
  assert list(exported.parent.iterdir()) == [exported]


def test_small_corpus_is_exact_and_overwrite(world, options):
  manifest = export_retriever.export_retriever(
    dataclasses.replace(options, indexes=("scann",))
  )
  assert manifest.indexes["scann"].kind == "exact"
  assert manifest.indexes["scann"].recall == {"10": 1.0, "100": 1.0}
  _fails(options, "already; replace it with --overwrite")
  again = dataclasses.replace(options, overwrite=True)
  export_retriever.export_retriever(again)
  assert not (pathlib.Path(options.output) / "scann").exists()
  found = bundle.Bundle.load(options.output).recommend(
    [world.query_ids[1]], k=3
  )
  assert found.ids[0].tolist() == world.ranking(1)[:3]


def test_low_recall_fails_and_says_what_to_do(options, monkeypatch):
  monkeypatch.setattr(
    indexing.xir.indexes,
    "hits_by_query",
    lambda *unused: (np.array([5, 5]), np.array([10, 10])),
  )
  options = dataclasses.replace(options, indexes=("scann",), exact_below=0)
  _fails(options, "0.5000, below 0.99; .*--num_leaves_to_search")
  assert not pathlib.Path(options.output).exists()
  export_retriever.export_retriever(
    dataclasses.replace(options, min_recall=0.5)
  )
  manifest = manifests.load(options.output)
  assert manifest.indexes["scann"].given == {
    "exact_below": 0,
    "min_recall": 0.5,
  }


def test_last_checkpoint_when_there_is_no_best(options):
  model_dir = pathlib.Path(options.model_dir)
  shutil.rmtree(model_dir / "best")
  manifest = export_retriever.export_retriever(options)
  assert manifest.checkpoint == "checkpoints/ckpt-2"
  shutil.rmtree(model_dir / "checkpoints")
  options = dataclasses.replace(options, overwrite=True)
  _fails(options, "model: holds no checkpoint")


def test_model_dir_of_other_data_or_settings(options):
  path = pathlib.Path(options.model_dir) / "config.json"
  config = json.loads(path.read_text())
  del config["sha256"]  # As in runs of older versions, which are not checked.
  path.write_text(json.dumps({**config, "schema_sha256": "0" * 64}))
  _fails(options, "schema.json: is not the data that .* was trained on")
  config["model"]["query_tower"]["vocabulary_size"] = 41
  path.write_text(json.dumps(config))
  _fails(options, "cannot be restored as config.json describes the model")
  path.unlink()
  _fails(options, "config.json")
  assert not pathlib.Path(options.output).exists()


def test_model_of_other_data(options):
  path = pathlib.Path(options.data) / "queries-00000-of-00001.tfrecord"
  record = tf.train.Example()
  record.features.feature["query_id"].bytes_list.value[:] = [b"a", b"b"]
  record.features.feature["count"].int64_list.value[:] = [1, 1]
  with tf.io.TFRecordWriter(str(path)) as writer:
    writer.write(record.SerializeToString())
  _fails(options, "holds 2 rows, but schema.json lists 40")


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda path: path.unlink(), "file not found; prepare"),
    (lambda path: path.write_bytes(path.read_bytes()[:-9]), "truncated"),
    (lambda path: path.write_bytes(b"no record at all"), "truncated"),
  ],
)
@pytest.mark.parametrize("part", ["candidates", "train"])
def test_broken_shard(options, part, damage, message):
  name = {
    "candidates": "candidates-00000-of-00001",
    "train": "train-00001-of-00002",
  }
  path = pathlib.Path(options.data) / f"{name[part]}.tfrecord"
  damage(path)
  _fails(options, f"{path.name}: {message}")


@pytest.mark.parametrize(
  "content, message",
  [
    (None, "not a finished data directory"),
    ("[]", "Expected `object`, got `array`"),
    ("{}", "field format: .* format 1, the file has None"),
  ],
)
def test_broken_schema(options, content, message):
  path = pathlib.Path(options.data) / "schema.json"
  path.unlink() if content is None else path.write_text(content)
  _fails(options, message)


def test_weights_that_are_not_finite_name_the_candidate(options):
  """The vector may still be finite, because a fused ReLU turns NaN into 0."""
  manager_dir = pathlib.Path(options.model_dir) / "best"
  model, _, _ = runs.load_model(options.model_dir)
  table = model.candidate_tower.trainable_variables[0]
  table.scatter_nd_update([[17]], np.full([1, 6], np.nan, np.float32))
  tf.train.CheckpointManager(
    tf.train.Checkpoint(model=model), str(manager_dir), 1
  ).save()
  _fails(options, r"tower.*id_embedding.* not finite at \[17, 0\]")
  assert not pathlib.Path(options.output).exists()


@pytest.fixture
def ids_alone(world, options):
  """Options of a model whose towers have no side features."""
  tower = functools.partial(xir.models.Tower, dim=6, init_stddev=1.0)
  model = xir.models.TwoTower(
    tower(vocabulary_size=40, seed=1), tower(vocabulary_size=300, seed=2)
  )
  model_dir = pathlib.Path(options.model_dir)
  shutil.rmtree(model_dir / "best")
  tf.train.CheckpointManager(
    tf.train.Checkpoint(model=model), str(model_dir / "best"), 1
  ).save()
  run = runs.RunDir(model_dir)
  run.write_config(
    msgspec.structs.replace(run.read_config(), model=model.get_config())
  )
  return model, options


def test_candidates_without_rows_and_features_are_left_out(
  world, ids_alone, capsys
):
  model, options = ids_alone
  manifest = export_retriever.export_retriever(options)
  trained = np.flatnonzero(world.counts)
  left_out = 300 - len(trained)
  assert left_out > 50
  assert (manifest.num_candidates, manifest.num_left_out) == (
    len(trained),
    left_out,
  )
  assert f"{left_out} of 300 candidates have neither" in capsys.readouterr().out
  loaded = bundle.Bundle.load(options.output)
  assert list(loaded.candidate_ids) == [
    world.candidate_ids[row] for row in trained
  ]
  vectors = model.encode_candidates(tf.constant(trained)).numpy()
  np.testing.assert_allclose(loaded.vectors, vectors, rtol=1e-5)
  assert loaded.counts.tolist() == world.counts[trained].tolist()
  # Seen candidates have other rows in the smaller index.
  query = 5
  found = loaded.recommend([world.query_ids[query]], k=300, exclude_seen=True)
  scores = vectors @ model.encode_queries(tf.constant([query])).numpy()[0]
  assert found.ids[0][: found.num_found[0]].tolist() == [
    world.candidate_ids[trained[row]]
    for row in np.argsort(-scores)
    if trained[row] not in world.seen[query]
  ]
  options = dataclasses.replace(
    options, unknown_candidates="keep", overwrite=True
  )
  manifest = export_retriever.export_retriever(options)
  assert (manifest.num_candidates, manifest.num_left_out) == (300, 0)


def test_export_without_any_known_candidate(ids_alone, monkeypatch):
  _, options = ids_alone
  monkeypatch.setattr(
    directory.DataDir, "candidates", tables.Table(None, np.zeros(300), {})
  )
  _fails(options, "no candidate has training rows or side features")


def test_settings_of_scann_need_its_index(options):
  for given in ({"num_leaves": 3}, {"target_recall": 0.9}):
    message = f"--{[*given][0]} is for ScaNN"
    with pytest.raises(settings.SettingsError, match=message):
      dataclasses.replace(options, **given)


def test_failure_while_writing_keeps_the_old_bundle(
  options, exported, monkeypatch
):
  shutil.copytree(exported, options.output)
  before = manifests.load(options.output)
  monkeypatch.setattr(
    write,
    "_write_lists",
    lambda *unused: (_ for _ in ()).throw(OSError("full")),
  )
  with pytest.raises(OSError, match="full"):
    export_retriever.export_retriever(
      dataclasses.replace(options, overwrite=True)
    )
  output = pathlib.Path(options.output)
  assert list(output.parent.iterdir()) == [output]
  assert manifests.load(output) == before
  manifests.check_files(output, before)
