"""Runs every benchmark at small sizes; no test asserts a time."""

import dataclasses
import json
import math
import platform
import re
import statistics
import time
import types

import numpy as np
import pytest
import tensorflow as tf
import threadpoolctl

import xir_tfrs as xir
from benchmarks import (
  beam,
  beyond_memory,
  catalogue_scaling,
  estimator_bias,
  floor,
  full_ranking,
  gpu,
  harness,
  history,
  input_pipeline,
  memory,
  methods,
  peers,
  readers,
  recommenders,
  resampling,
  serving,
  shifted_split,
  train_step,
)
from pipelines import prepare
from pipelines.evaluation import split
from pipelines.readers import inputs
from tests import synthetic_data
from xir_tfrs.data import directory

_measure = harness.measure
_TOWERS = {"queries": 50, "candidates": 60, "dim": 4, "batch": 16, "cache": 8}


@pytest.fixture
def seconds(monkeypatch):
  """Runs each case once; the fake times of case i are i + 1, 2 (i + 1), ... s.

  Returns:
    Name of a case -> the median of its times, filled while benchmarks run.
  """
  medians = {}

  def measure(cases, *, repetitions):
    given = {}
    for name, run in cases.items():
      run()
      unit = len(given) + 1
      given[name] = [unit * float(i + 1) for i in range(repetitions)]
      medians[name] = statistics.median(given[name])
    return given

  monkeypatch.setattr(harness, "measure", measure)
  return medians


@pytest.fixture
def eagerly():
  """Runs functions eagerly: tracing many small steps takes longer."""
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


def _assert_times(results, seconds, peer, scales=()):
  """Medians are the measured ones times `scales`; ratios are to `peer`."""
  expected = dict(seconds)
  for name, scale in dict(scales).items():
    expected[name] *= scale
  assert len(results) > 1
  for name, result in results.items():
    assert result["median_s"] == pytest.approx(expected[name]), name
    ratio = expected[name] / expected[peer(name)]
    assert result["ratio"] == pytest.approx(ratio), name


def test_train_step(seconds, eagerly):
  results = train_step.run(_TOWERS | {"distinct": 20, "repetitions": 2})
  _assert_times(results, seconds, lambda _: "TFRS Retrieval")
  assert {"SSL-Pop", "BIR", "XIR", "XIR lazy"} <= results.keys()


@pytest.mark.slow
def test_history(seconds, capsys, monkeypatch):
  monkeypatch.setattr(history, "_BLOCKS", 1)
  sizes = {name: 12 for name in history._SIZES} | {"dim": 4, "repetitions": 2}
  results = history.run(sizes)
  steps = {k: v for k, v in results.items() if k != history.ANSWER}
  _assert_times(steps, seconds, lambda _: "tf_keras, TFRS Retrieval")
  assert {"SSL-Pop, rows", "XIR, positions"} <= steps.keys()
  for result in steps.values():
    assert result["rows_per_s"] == pytest.approx(12 / result["median_s"])
  assert results[history.ANSWER]["median_s"] == seconds[history.ANSWER]
  history.show(results, sizes)
  assert "full softmax, positions" in capsys.readouterr().out


@pytest.mark.slow
def test_gpu(capsys):
  sizes = {name: 8 for name in gpu._SIZES} | {"seconds": 0}
  assert gpu.run(sizes) == {}
  assert "out of time" in capsys.readouterr().out
  sizes |= {"queries": 50, "candidates": 60, "steps": 2, "repetitions": 1}
  budget = gpu.Budget(1000)
  peer = "TFRS Retrieval"
  results = gpu.steps(sizes, budget, 16, 4, (peer, "SSL-Pop"))
  assert list(results) == [peer, f"{peer} jit", "SSL-Pop", "SSL-Pop jit"]
  for mode in ("", " jit"):
    times = results["SSL-Pop" + mode]["median_s"], results[peer + mode]
    assert results["SSL-Pop" + mode]["ratio"] == pytest.approx(
      times[0] / times[1]["median_s"]
    )
  for found in gpu.against_cpu(sizes, budget, ["SSL-Pop"]).values():
    assert found["plain"] == 0
    assert found["jit"] < 1e-5
  assert "ValueError: no" in budget.result(lambda: _raise("no"))["error"]


def _raise(text):
  raise ValueError(text)


def test_readers(seconds, capsys):
  sizes = {"rows": 200, "users": 5, "items": 9, "repetitions": 1}
  results = readers.run(sizes)
  assert list(results) == list(seconds)
  for name, result in results.items():
    assert result["rows_per_s"] == 200 / seconds[name]
    assert result["ratio"] == seconds["text"] / seconds[name]
  readers.show(results, sizes)
  assert "JSON lines" in capsys.readouterr().out


@pytest.mark.slow
def test_beam(capsys):
  sizes = {"rows": 900, "users": 50, "items": 9, "row_groups": 3, "workers": 2}
  results = beam.run(sizes)
  assert results["same"]
  (one,) = results["prepare"]["processes"]
  assert one["name"] == "prepare" and one["peak_mib"] > 10
  workers = results["prepare_beam"]["processes"]
  # Two in each pass; each takes long enough to start to be seen.
  assert [w["name"] for w in workers].count("sdk_worker_main") == 4
  beam.show(results, sizes)
  assert "the same files" in capsys.readouterr().out


@pytest.mark.slow
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
  # Finished work is not repeated.
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


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  output = tmp_path_factory.mktemp("peers") / "data"
  return synthetic_data.prepare_synthetic(
    output,
    num_users=80,
    num_items=60,
    num_interactions=1000,
    seed=3,
    validation_fraction=0.1,
  )


def test_peers(small, tmp_path, monkeypatch, capsys):
  sizes = {"trials": 2, "epochs": 1, "dim": 4}
  seen = []
  results = peers.run(
    str(small),
    sizes,
    tmp_path,
    names=tuple(recommenders.PEERS),
    done={"BPR": {"left_out": "it was done"}},
    after_each=lambda results: seen.append(set(results)),
  )
  assert list(results) == list(recommenders.PEERS) and len(seen) == 4
  assert results["BPR"] == {"left_out": "it was done"}
  for name in ("item neighbours", "EASE", "ALS"):
    assert 0 < results[name]["recall@10"] <= results[name]["recall@20"] <= 1
    assert results[name]["settings"].keys() == (
      recommenders.PEERS[name].tried.keys()
    )
  peers.show("tiny", results, sizes)
  out = capsys.readouterr().out
  assert "tiny: 2 trials each" in out and "BPR is left out: it was done." in out
  monkeypatch.setattr(recommenders, "_free_bytes", lambda: 3 * 4 * 60**2 - 1)
  left_out = peers.run(str(small), sizes, tmp_path, names=["EASE"])["EASE"]
  assert "60 x 60 candidates take 0.0 GiB" in left_out["left_out"]


def test_peers_go_on_after_a_trial_that_diverges(small, tmp_path, monkeypatch):
  fits = []

  def fit(pairs, dim, chosen):
    fits.append(chosen)
    if len(fits) == 2:
      raise recommenders.Diverged("NaN encountered in factors")
    return recommenders.Popular()

  fails = recommenders.Peer(fit, {"l2": (1.0, 2.0)}, {"l2": 1.0})
  monkeypatch.setitem(recommenders.PEERS, "BPR", fails)
  sizes = {"trials": 3, "epochs": 1, "dim": 4}
  results = peers.run(str(small), sizes, tmp_path, names=["BPR"])
  assert results["BPR"]["recall@10"] > 0
  assert len(fits) == 4  # Three trials, and the best once more.


def test_large_matrices_are_inverted_by_one_thread(monkeypatch):
  """OpenBLAS crashes with more."""
  used = []
  factorize = recommenders.lapack.spotrf

  def spotrf(*arguments, **given):
    pools = threadpoolctl.threadpool_info()
    used.append({p["num_threads"] for p in pools if p["user_api"] == "blas"})
    return factorize(*arguments, **given)

  monkeypatch.setattr(recommenders.lapack, "spotrf", spotrf)
  monkeypatch.setattr(recommenders, "_ONE_THREAD", 4)
  with threadpoolctl.threadpool_limits(2, "blas"):
    for size in (4, 5):
      gram = np.ones([size, size], np.float32)
      gram[np.diag_indices(size)] += 3
      expected = np.linalg.inv(gram)
      inverse = recommenders._inverse(gram)
      np.testing.assert_allclose(inverse, expected, rtol=1e-5)
  assert used == [{2}, {1}]


def test_peers_match_their_definitions(small):
  """EASE solves its equations, and its lists follow from its scores."""
  data = directory.DataDir(small)
  pairs = recommenders.training_pairs(data)
  assert pairs.sum() == data.schema.rows["train"] and pairs.max() == 1
  ease = recommenders.PEERS["EASE"].fit(pairs, 4, {"l2": 30.0})
  weights = ease.weights.astype(np.float64)
  assert (np.diag(weights) == 0).all()
  # The gradient of |X - XB|^2 + l2 |B|^2 is 0 off the diagonal, because the
  # diagonal of B must be 0.
  gram = (pairs.T @ pairs).toarray().astype(np.float64)
  gradient = gram @ weights - gram + 30 * weights
  np.fill_diagonal(gradient, 0)
  np.testing.assert_allclose(gradient, 0, atol=1e-3)
  test = split.load_evaluation_data(data, "test")
  near = recommenders.PEERS["item neighbours"].fit(
    pairs, 4, {"neighbours": 7.0, "weighting": "cosine"}
  )
  bpr = recommenders.PEERS["BPR"].fit(
    pairs, 4, {"learning_rate": 0.1, "regularization": 0.01, "iterations": 9}
  )
  scores = bpr.queries @ bpr.candidates.T
  for ranker, expected in (
    (ease, ease.scores(test.query_ids)),
    (near, near.scores(test.query_ids)),
    (bpr, scores[test.query_ids]),
  ):
    whole = xir.metrics.full_ranking(
      expected,
      np.eye(len(test.counts), dtype=np.float32),
      relevant=test.relevant,
      seen=test.seen,
      ks=(10, 20),
    )
    found = ranker.rank(test, (10, 20)).means()
    for name in ("recall@10", "ndcg@20", "coverage@10"):
      assert found[name] == pytest.approx(whole[name], abs=1e-6), name


def test_our_methods_report_the_results_of_the_programs(tmp_path, monkeypatch):
  """The table shows the figures in the files of the programs."""
  calls = []

  def program(name, *arguments):
    calls.append((name, arguments))
    output = tmp_path / "xir"
    output.mkdir(exist_ok=True)
    (output / "trials.csv").write_text("trial,ndcg@20,seconds\n12,0.25,3.5\n")
    (output / "best.json").write_text('{"data": "d", "temperature": 0.3}')

  monkeypatch.setattr(peers, "_program", program)
  ranked = {name: 0.5 for name in peers._METRICS}
  found = types.SimpleNamespace(metrics={"model": ranked})
  monkeypatch.setattr(peers.evaluations, "load", lambda path: found)
  sizes = {"trials": 2, "epochs": 1, "dim": 4}
  result = peers.run("data", sizes, tmp_path, names=["xir"])["xir"]
  assert result.items() >= ranked.items()
  assert (result["validation"], result["train_s"]) == (0.25, 3.5)
  assert result["settings"] == {"temperature": 0.3}
  (tune, given), (evaluate, what) = calls
  assert (tune, evaluate) == ("pipelines.tune", "pipelines.evaluate")
  assert {"--task=xir", "--trials=2", "--epochs=1", "--dim=4"} <= set(given)
  assert what[0].endswith("trials/0012")


def test_full_ranking(seconds):
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
  peers = {"TFRS FactorizedTopK": 4}
  _assert_times(results, seconds, lambda _: "product + top_k", peers)
  assert {"full_ranking", "TFRS FactorizedTopK"} <= results.keys()


def test_catalogue_scaling(seconds):
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
  _assert_times(results, seconds, lambda name: f"{name.split(', ')[0]}, 50")
  assert results["XIR, 5,000"]["candidates"] == 5000
  assert set(results) == {
    *(f"XIR, {size}" for size in ("50", "500", "5,000")),
    *(f"TFRS Retrieval, {size}" for size in ("50", "500")),
  }


def test_beyond_memory(capsys):
  sizes = {
    "rows": 6000,
    "rows_in_memory": 3000,
    "queries": 300,
    "candidates": 50,
    "files": 2,
    "buckets": 8,
    "batch": 64,
    "known_rows": 5000,
    "resumed": 2,
  }
  results = beyond_memory.run(sizes)
  assert sizes.keys() == beyond_memory._SIZES.keys()
  assert {name for name in results if results[name].get("equal")} == {
    "rows",
    "known positives",
  }
  beyond_memory.show(results, sizes)
  assert "equal" in capsys.readouterr().out


def test_input_pipeline(seconds):
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
  rows = {
    "read": 1000,
    **dict.fromkeys(("batches", "batches, Python loop"), 5 * 32),
    "first epoch": 32 * 32,  # Batches continue into the next epoch.
    "tf.data, row per record": 100,
  }
  speeds = {name: rows[name] / seconds[name] for name in rows}
  assert {n: r["rows_per_s"] for n, r in results.items()} == speeds
  peer = speeds["tf.data, row per record"]
  assert {n: r["ratio"] for n, r in results.items()} == {
    name: speed / peer for name, speed in speeds.items()
  }


def test_resampling(seconds):
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
  peer = "categorical + bincount"
  # The peer draws for 4 rows, the others for 2 chunks of 8.
  _assert_times(results, seconds, lambda _: peer, {peer: 4})
  variance = {name: result["variance"] for name, result in results.items()}
  # Of 100 seeds, 2 rows: three standard errors are less than a quarter.
  for name in ("multinomial", peer):
    assert variance[name] == pytest.approx(1.0, abs=0.25)
  assert variance["expected"] == pytest.approx(0.0, abs=1e-6)
  assert 0.0 < variance["systematic"] < 0.7


def test_floor(seconds):
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
  _assert_times(results, seconds, lambda _: "floor")
  assert {"products", "exp", "sampled softmax", "lattice"} <= results.keys()


@pytest.mark.slow
def test_estimator_bias(tmp_path, capsys, eagerly):
  data = str(tmp_path / "data")
  prepare.prepare(
    prepare.PrepareConfig(
      input=inputs.Input(
        format="synthetic",
        synthetic=inputs.SyntheticConfig(
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


@pytest.mark.slow
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
  assert list(result["rest"]) == ["kept", "new"]
  for case in result["rest"].values():
    assert 0 < case["p50_ms"] <= case["p95_ms"] <= case["p99_ms"]
  serving.print_tables(results, sizes)
  assert f"{recall['TFRS ScaNN']:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_memory(monkeypatch):
  # In this process, a case may reuse memory that an earlier one freed. Only the
  # peer, with its 16 MiB of logits, must show a difference.
  monkeypatch.setattr(memory, "_in_process", memory.peak_mib)
  results = memory.run(_TOWERS | {"batch": 2048, "steps": 1})
  assert results["TFRS Retrieval"]["peak_mib"] > 0
  assert results["TFRS Retrieval"]["ratio"] == 1.0
  assert {"SSL-Pop", "BIR", "XIR", "XIR multinomial"} <= results.keys()
  for result in results.values():
    assert math.isfinite(result["peak_mib"]) and math.isfinite(result["ratio"])


def test_peak_memory_includes_freed_memory():
  mib = memory._resident_peak(lambda: np.ones(2**24)) / 2**20
  assert 100 < mib < 300


def test_cases_alternate_after_one_unmeasured_run(monkeypatch):
  now = 0.0
  ran = []

  def case(name, first, later):
    def run():
      nonlocal now
      now += later if name in ran else first
      ran.append(name)

    return run

  monkeypatch.setattr(time, "perf_counter", lambda: now)
  cases = {"a": case("a", 100.0, 1.0), "b": case("b", 200.0, 2.0)}
  seconds = _measure(cases, repetitions=3)
  assert ran == ["a", "b"] * 4
  assert seconds == {"a": [1.0] * 3, "b": [2.0] * 3}


def test_summary_is_the_median_and_the_extremes():
  found = harness.summarise({"a": [4.0, 1.0, 2.0, 9.0]})
  assert found == {
    "a": {"median_s": 3.0, "min_s": 1.0, "max_s": 9.0, "repetitions": 4}
  }


def test_json_is_complete_and_has_no_host_name(tmp_path):
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


def test_shifted_split_scatters_as_asked():
  generator = np.random.default_rng(0)
  rows = [generator.choice(30, 10, replace=False) for _ in range(1500)]
  random = shifted_split.split(rows, 0.2, 0.0, seed=0)
  assert shifted_split.scatter(*random) == pytest.approx(1, abs=0.3)
  kept, held_out = shifted_split.shifted(rows, 0.2, 3.0, seed=0)
  assert shifted_split.scatter(kept, held_out) == pytest.approx(3, abs=0.1)
  for user, parts in enumerate(zip(kept, held_out, strict=True)):
    assert [part.size for part in parts] == [8, 2]
    np.testing.assert_array_equal(
      np.sort(np.concatenate(parts)), np.sort(rows[user])
    )


def test_scatter_is_that_of_a_binomial():
  """Items with 2 of 4 and 0 of 4 rows held out, p = 1/4."""
  kept = [np.array([0, 1, 1]), np.array([0, 1, 1])]
  held_out = [np.array([0]), np.array([0])]
  expected = np.sqrt(((2 - 1) ** 2 + (0 - 1) ** 2) / 2 / 0.75)
  found = shifted_split.scatter(kept, held_out, min_rows=4)
  assert found == pytest.approx(expected)
  with pytest.raises(ValueError, match="No item has 50 rows"):
    shifted_split.scatter(kept, held_out)


def test_shifted_split_reads_what_it_writes(tmp_path):
  rows = [np.array([3, 1]), np.array([2])]
  shifted_split._write(tmp_path / "a.txt", ["u", "v"], rows)
  with open(tmp_path / "a.txt", "a") as file:
    file.write("\nw\n")
  users, found = shifted_split._read(str(tmp_path / "a.txt"))
  assert users == ["u", "v", "w"]
  assert [items.tolist() for items in found] == [[3, 1], [2], []]
