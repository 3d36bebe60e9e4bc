"""CoRR through the programs: train, evaluate, export, re-rank."""

import json

import numpy as np
import pytest
import tensorflow as tf

from pipelines.training import config as configs
from pipelines.training import loop as training
from tests import program, synthetic_data
from xir_tfrs.data import runs

_SETTINGS = {
  "task": "corr",
  "dim": 8,
  "global_batch_size": 256,
  "ranker": "dcn",
  "ranker_dim": 4,
  "ranker_hidden": (8,),
  "num_sampled": 6,
  "negative_sampler": "midx_pop",
  "task_arguments": "num_codewords=4",
  "log_steps": 4,
}


def _run(name, *arguments):
  done = program.run(name, *arguments)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  output = tmp_path_factory.mktemp("corr") / "data"
  synthetic_data.prepare_synthetic(
    output,
    num_users=150,
    num_items=120,
    num_interactions=3000,
    validation_fraction=0.1,
  )
  return output


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
  """The directory of a run of one epoch."""
  directory = tmp_path_factory.mktemp("corr") / "model"
  flags = [f"--{k}={v}" for k, v in _SETTINGS.items() if k != "ranker_hidden"]
  _run(
    "pipelines.train",
    *(f"--data={data}", f"--model_dir={directory}", "--epochs=1"),
    *("--ranker_hidden=8", *flags),
  )
  return directory


def _train(data, directory, epochs):
  config = configs.from_preset(
    data=str(data), model_dir=str(directory), epochs=epochs, **_SETTINGS
  )
  training.train(config, resume=True, progress=False)
  newest = tf.train.latest_checkpoint(str(directory / "checkpoints"))
  reader = tf.train.load_checkpoint(newest)
  return {
    key: reader.get_tensor(key)
    for key in reader.get_variable_to_shape_map()
    if "SAVE_COUNTER" not in key.upper() and "GRAPH" not in key
  }


def test_train(trained):
  written = json.loads((trained / "config.json").read_text())
  assert written["model"]["ranker"]["kind"] == "dcn"
  # The towers' features, which are stored once.
  assert written["model"]["ranker"]["candidate_table"] == "tower"
  rows = runs.RunDir(trained).read_metrics()
  steps = [row for row in rows if row["kind"] == "train"]
  assert {"ranker_loss", "retriever_loss", "kl"} <= steps[-1].keys()
  assert steps[-1]["loss"] < steps[0]["loss"]


def test_evaluate_export_and_query(data, trained, tmp_path):
  output, bundle = tmp_path / "metrics.json", tmp_path / "bundle"
  printed = _run(
    "pipelines.evaluate",
    *("--model_dir", trained, "--rerank_depth=50", "--output", output),
  )
  assert "reranked" in printed
  results = json.loads(output.read_text())
  assert results["rerank_depth"] == 50
  metrics = results["metrics"]
  assert metrics["reranked"].keys() == metrics["model"].keys()
  # The same fifty, in another order.
  assert metrics["reranked"]["recall@50"] == pytest.approx(
    metrics["model"]["recall@50"]
  )
  assert metrics["reranked"]["ndcg@10"] != metrics["model"]["ndcg@10"]

  _run(
    "export.export_retriever",
    *(f"--data={data}", f"--model_dir={trained}", f"--output={bundle}"),
    "--index=brute_force",
  )
  answers = json.loads(
    _run(
      "export.query",
      *(f"--bundle={bundle}", "--query_id=u3", "--k=5", "--json", "--rerank"),
      *("--rerank_depth=50", "--exclude_seen"),
    )
  )
  assert answers["reranked"]
  assert len(set(answers["candidate_ids"])) == 5
  assert answers["scores"] == sorted(answers["scores"], reverse=True)


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(data, trained, tmp_path):
  # At the second epoch, the index is rebuilt from its previous codewords.
  whole = _train(data, tmp_path / "whole", epochs=2)
  parts = _train(data, trained, epochs=2)
  assert whole.keys() == parts.keys()
  assert any("codebooks" in key for key in whole)
  for key, value in whole.items():
    np.testing.assert_array_equal(value, parts[key], err_msg=key)
