"""Every benchmark runs at small sizes; nothing here asserts a timing."""

import dataclasses
import json
import math
import platform
import re

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import (
  catalogue_scaling,
  estimator_bias,
  floor,
  full_ranking,
  harness,
  input_pipeline,
  memory,
  methods,
  resampling,
  serving,
  train_step,
)
from pipelines import prepare
from pipelines.readers import sources, synthetic
from tests import synthetic_data

_TOWERS = {"queries": 50, "candidates": 60, "dim": 4, "batch": 16, "cache": 8}


def _assert_figures(results, peer, extra=()):
  assert results[peer]["ratio"] == 1.0
  for result in results.values():
    for key in ("median_s", "min_s", "max_s", "ratio", *extra):
      assert math.isfinite(result[key]) and result[key] > 0, key
    assert result["min_s"] <= result["median_s"] <= result["max_s"]


def test_train_step():
  results = train_step.run(_TOWERS | {"repetitions": 2})
  _assert_figures(results, "TFRS Retrieval")
  assert {"SSL-Pop", "BIR", "XIR", "XIR lazy"} <= results.keys()


def test_methods(tmp_path, capsys):
  output = tmp_path / "data"
  synthetic_data.prepare_synthetic(
    output, num_users=80, num_items=60, num_interactions=1000, seed=3
  )
  done = {"ssl": {"recall@10": 0.5, "step_ms": 7.0}}
  seen = []
  results = methods.run(
    str(output),
    {"epochs": 1, "dim": 4},
    tasks=("ssl", "corr"),
    done=done,
    after_each=lambda results: seen.append(set(results)),
  )
  # What is done is not done again.
  assert results["ssl"] == done["ssl"]
  assert seen == [{"ssl", "corr"}] * 2
  for stage in (results["corr"], results["corr"]["reranked"]):
    assert 0 < stage["recall@20"] <= 1
  assert results["corr"]["peak_gib"] > 0.1
  assert results["corr"]["examples_per_s"] > 0
  capsys.readouterr()
  untimed = {"ssl": {**results["corr"], "step_ms": 12.34}}
  del untimed["ssl"]["peak_gib"]
  methods.show("tiny", untimed, {"epochs": 1, "dim": 4})
  title, header, row = capsys.readouterr().out.splitlines()
  assert title == "tiny: 1 epochs, dim 4"
  assert header.split()[-2:] == ["ms/step", "GiB"]
  assert row.split()[0] == "ssl" and row.split()[-2:] == ["12.3", "nan"]


def test_full_ranking():
  results = full_ranking.run(
    {
      "queries": 40,
      "candidates": 70,
      "dim": 4,
      "relevant": 2,
      "seen": 3,
      "query_chunk_size": 16,
      "peer_share": 4,
      "repetitions": 1,
    }
  )
  _assert_figures(results, "product + top_k")
  assert {"full_ranking", "TFRS FactorizedTopK"} <= results.keys()


def test_catalogue_scaling():
  results = catalogue_scaling.run(
    {
      "queries": 50,
      "smallest": 50,
      "largest": 5000,
      "peer_largest": 500,
      "dim": 4,
      "batch": 16,
      "cache": 8,
      "batches": 3,
      "repetitions": 2,
    }
  )
  _assert_figures(results, "XIR, 50", extra=["candidates"])
  _assert_figures(results, "TFRS Retrieval, 50")
  assert set(results) == {
    *(f"XIR, {size}" for size in ("50", "500", "5,000")),
    *(f"TFRS Retrieval, {size}" for size in ("50", "500")),
  }


def test_input_pipeline():
  results = input_pipeline.run(
    {
      "rows": 1000,
      "peer_rows": 100,
      "shard_rows": 600,
      "shuffle": 50,
      "batch": 32,
      "steps": 5,
      "repetitions": 2,
    }
  )
  _assert_figures(results, "tf.data, row per record", extra=["rows_per_s"])
  assert len(results) == 5


def test_resampling():
  results = resampling.run(
    {
      "rows": 8,
      "chunks": 2,
      "pool": 32,
      "num_resampled": 16,
      "peer_rows": 4,
      "variance_rows": 2,
      "variance_pool": 32,
      "seeds": 100,
      "repetitions": 2,
    }
  )
  _assert_figures(results, "categorical + bincount")
  variance = {name: result["variance"] for name, result in results.items()}
  # Of 100 seeds, 2 rows: three standard errors are less than a quarter.
  for name in ("multinomial", "categorical + bincount"):
    assert variance[name] == pytest.approx(1.0, abs=0.25)
  assert variance["expected"] == pytest.approx(0.0, abs=1e-6)
  assert 0.0 < variance["systematic"] < 0.7


def test_floor():
  results = floor.run(
    {
      "batch": 32,
      "pool": 24,
      "dim": 4,
      "row_chunk_size": 16,
      "num_resampled": 8,
      "repetitions": 2,
    }
  )
  _assert_figures(results, "floor")
  assert {"products", "exp", "sampled softmax", "lattice"} <= results.keys()


def test_estimator_bias(tmp_path, capsys):
  data = str(tmp_path / "data")
  prepare.prepare(
    prepare.PrepareConfig(
      input=sources.Input(
        format="synthetic",
        synthetic=synthetic.SyntheticConfig(
          num_users=60, num_items=40, num_interactions=900, seed=3
        ),
      ),
      output=data,
    )
  )
  cases = {
    name: dataclasses.replace(
      case,
      warmup_steps=min(case.warmup_steps, 1),
      warmup_epochs=0,
    )
    for name, case in estimator_bias.CASES.items()
  }
  tf.config.run_functions_eagerly(True)
  try:
    results = estimator_bias.run(
      {
        "epochs": 1,
        "dim": 4,
        "train_batch": 128,
        "smallest_batch": 16,
        "largest_batch": 63,
        "probe": 2,
        "repetitions": 2,
      },
      data,
      cases,
    )
  finally:
    tf.config.run_functions_eagerly(False)
  assert {"SSL", "SSL-Pop", "MNS", "CBNS", "BIR", "XIR"} <= results.keys()
  for found in results.values():
    assert list(found) == ["16", "32"]
    for readout in found.values():
      assert all(math.isfinite(value) for value in readout.values())
      assert {"bias", "deviation", "sharpness", "kl_weights"} <= readout.keys()
  assert "kl_draws" in results["BIR"]["16"]
  assert "cache_mass" in results["XIR"]["16"]
  # The same rows, weights and temperature for all.
  assert (
    len({found["32"]["positive_weight_full"] for found in results.values()})
    == 1
  )
  estimator_bias.print_tables(results)
  printed = capsys.readouterr().out
  assert estimator_bias.FIGURES["bias"] in printed
  assert f"{results['BIR']['32']['sharpness']:.3f}" in printed
  picture = tmp_path / "plot.png"
  estimator_bias.plot(results, picture, "title")
  assert picture.read_bytes().startswith(b"\x89PNG")


def test_serving(monkeypatch, capsys):
  monkeypatch.setattr(serving, "_STARTS", ("brute_force, unchecked", "folder"))
  sizes = {
    **{"size": 400, "dim": 4, "clusters": 8},
    **{"queries": 20, "batch": 8, "batches": 3, "threads": 2},
    **{"k": 10, "starts": 1},
  }
  results = serving.run(sizes)
  assert list(results) == ["generated"]
  result = results["generated"]
  assert (result["candidates"], result["dim"]) == (400, 4)
  assert result["scann"]["kind"] == "scann"
  assert list(result["cases"]) == [
    "brute force",
    "ScaNN in graph",
    "ScaNN folder",
    "TFRS BruteForce",
    "TFRS ScaNN",
  ]
  for name, case in result["cases"].items():
    assert all(math.isfinite(x) and x > 0 for x in case.values()), name
    assert case["p50_ms"] <= case["p95_ms"] <= case["p99_ms"]
  recall = {name: case["recall"] for name, case in result["cases"].items()}
  assert recall["brute force"] == recall["TFRS BruteForce"] == 1.0
  assert recall["ScaNN in graph"] == recall["ScaNN folder"] > 0.9
  peer = result["cases"]["brute force"]
  assert peer["ratio"] == peer["ratio_threads"] == peer["ratio_batched"] == 1
  assert list(result["ready"]) == ["brute_force, unchecked", "folder"]
  for start in result["ready"].values():
    assert start["import_s"] > 0 and start["ready_s"] > 0
  assert {"brute_force", "scann", "scann_folder"} <= result["megabytes"].keys()
  serving.print_tables(results, sizes)
  assert f"{recall['TFRS ScaNN']:.4f}" in capsys.readouterr().out


def test_memory(monkeypatch):
  # In this process, where an earlier case's memory may be free for a later
  # one: only the peer, with its 16 MiB of logits, must show.
  monkeypatch.setattr(memory, "_in_process", memory.peak_mib)
  results = memory.run(_TOWERS | {"batch": 2048, "steps": 1})
  assert results["TFRS Retrieval"]["peak_mib"] > 0
  assert results["TFRS Retrieval"]["ratio"] == 1.0
  assert {"SSL-Pop", "BIR", "XIR", "XIR multinomial"} <= results.keys()
  for result in results.values():
    assert math.isfinite(result["peak_mib"]) and math.isfinite(result["ratio"])


def test_memory_sees_what_was_freed_again():
  mib = memory._resident_peak(lambda: np.ones(2**24)) / 2**20
  assert 100 < mib < 300


def test_json_is_whole_and_says_no_machine_s_name(tmp_path):
  results = {"a": {"median_s": 1.5}}
  path = harness.write_json(tmp_path / "new" / "a.json", "a", {"n": 2}, results)
  content = json.loads(path.read_text())
  assert content["benchmark"] == "a"
  assert content["parameters"] == {"n": 2}
  assert content["results"] == results
  assert content["versions"].keys() >= {"python", "tensorflow", "numpy"}
  assert content["machine"].keys() == {
    "cpu",
    "cores",
    "memory_gib",
    "gpus",
    "system",
  }
  assert platform.node() not in re.findall(r"[\w.-]+", path.read_text())
  assert [p.name for p in path.parent.iterdir()] == ["a.json"]
