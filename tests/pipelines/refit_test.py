"""Runs that are trained again on all rows for deployment."""

import json

import msgspec
import numpy as np
import pytest

from pipelines.evaluation import past
from pipelines.training import refitting
from tests import program, tiny_runs
from xir_tfrs.data import directory, runs
from xir_tfrs.serving import bundle as bundles

# Epochs end in the middle of a batch.
_SETTINGS = ["--task=ssl_pop", "--learning_rate=0.002", "--dim=4"]
_SETTINGS += ["--global_batch_size=600", "--seed=3", "--epochs=3"]
_SETTINGS += ["--learning_rate_schedule=cosine", "--patience=0"]


def rows(best):
  """metrics.jsonl of a run of three epochs, with `best` the best one."""
  return [
    {"kind": "train", "step": 2, "epoch": 0.5},
    *(
      {
        "kind": "validation",
        "step": 4 * epoch,
        "epoch": epoch + 0.0021,
        "ndcg@20": 0.5 if epoch == best else 0.1 * epoch,
      }
      for epoch in (1, 2, 3)
    ),
  ]


def test_the_best_epoch_is_that_of_the_first_best_validation():
  assert [refitting.best_epoch(rows(n), "ndcg@20") for n in (1, 2, 3)] == [
    1,
    2,
    3,
  ]
  # Without validation, it trains as long as the run.
  trained = {"kind": "train", "step": 30, "epoch": 7.0012}
  assert refitting.best_epoch([trained], "ndcg@20") == 7
  assert refitting.best_epoch(rows(1)[:1], "ndcg@20") is None
  assert refitting.best_epoch([], "ndcg@20") is None


@pytest.fixture(scope="module")
def refitted(small_data, tmp_path_factory):
  """An evaluated run, best after two of its three epochs, and its refit."""
  folder = tmp_path_factory.mktemp("refit")
  old, new = folder / "old", folder / "new"
  arguments = [f"--data={small_data}", f"--model_dir={old}", *_SETTINGS]
  done = program.run("pipelines.train", *arguments)
  assert done.returncode == 0, done.stderr
  found = [json.loads(x) for x in (old / runs.METRICS).read_text().splitlines()]
  for row in found:
    if row["kind"] == "validation":
      row["ndcg@20"] = 0.9 if int(row["epoch"]) == 2 else 0.1
  (old / runs.METRICS).write_text("".join(json.dumps(x) + "\n" for x in found))
  done = program.run("pipelines.train", "--refit", old, "--model_dir", new)
  assert done.returncode == 0, done.stderr
  assert "xir-tfrs export --data" in done.stdout
  return old, new


def test_a_refit_trains_on_all_rows_up_to_the_best_epoch(small_data, refitted):
  old, new = map(runs.RunDir, refitted)
  before, after = old.read_config().train, new.read_config().train
  assert {k for k in after if before[k] != after[k]} == {
    "model_dir",
    "rows",
    "stop_epoch",
    "temperature",
  }
  assert after["temperature"] == old.read_config().defaults["temperature"]
  assert (after["rows"], after["stop_epoch"], after["epochs"]) == ("all", 2, 3)
  trained = new.read_metrics()
  assert {row["kind"] for row in trained} == {"train"}
  num_rows = sum(directory.DataDir(small_data).schema.rows.values())
  assert trained[-1]["step"] == -(-2 * num_rows // 600)
  # The schedule is that of three epochs.
  step, steps = trained[-1]["step"] - 1, 3 * num_rows / 600
  expected = 0.002 * 0.5 * (1 + np.cos(np.pi * step / round(steps)))
  assert trained[-1]["learning_rate"] == pytest.approx(expected, rel=1e-4)


def test_a_refitted_bundle_has_seen_the_held_out_rows(
  small_data, refitted, tmp_path
):
  _, new = refitted
  made = tmp_path / "bundle"
  arguments = ["--data", small_data, "--model_dir", new, "--output", made]
  arguments += ["--index=brute_force"]
  done = program.run("export.export_retriever", *arguments)
  assert done.returncode == 0, done.stderr
  bundle = bundles.Bundle.load(made)
  splits, seen = bundle.seen
  data = directory.DataDir(small_data)
  for split in ("train", "validation", "test"):
    held = data.rows(split)
    for query, candidate in zip(
      held["query_id"][:50], held["candidate_id"][:50], strict=True
    ):
      assert candidate in seen[splits[query] : splits[query + 1]], split
  assert sum(bundle.counts) == sum(data.schema.rows.values())


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ({}, 0.31),
    ({"temperature": 0.2}, 0.2),
    # Defaults of other scores.
    ({"normalize": False}, None),
    ({"query_tower": "history", "optimizer": "adam"}, None),
  ],
)
def test_a_refit_keeps_the_temperature_that_was_evaluated(
  tmp_path, given, expected
):
  data = tiny_runs.write_data(tmp_path / "data")
  old = runs.RunDir(
    tiny_runs.write_model(tmp_path / "old", tiny_runs.two_tower(), data)
  )
  found = msgspec.structs.replace(
    old.read_config(), defaults={"temperature": 0.31}
  )
  old.write_config(found)
  old.append_metrics({"kind": "train", "step": 9, "epoch": 1.0})
  given = {"model_dir": str(tmp_path / "new")} | given
  config = refitting.config_of(old.path, given)
  assert config.temperature == expected
  # Earlier versions did not write it.
  old.write_config(msgspec.structs.replace(found, defaults=msgspec.UNSET))
  config = refitting.config_of(old.path, given)
  assert config.temperature == given.get("temperature")


def test_a_refitted_run_is_not_evaluated_or_refitted(refitted):
  old, new = refitted
  done = program.run("pipelines.evaluate", "--model_dir", new)
  assert done.returncode == 1
  assert f"{new}: was trained on all rows" in done.stderr
  again = ["--refit", new, "--model_dir", new.parent / "third"]
  done = program.run("pipelines.train", *again)
  assert done.returncode == 1 and "all rows itself" in done.stderr
  done = program.run("pipelines.train", "--refit", old, "--model_dir", old)
  assert done.returncode == 2 and "give two directories" in done.stderr
  both = ["--refit", old, "--resume", "--model_dir", new]
  done = program.run("pipelines.train", *both)
  assert done.returncode == 2 and "leave out --refit" in done.stderr


def test_all_rows_are_those_of_every_split(small_data):
  parts = directory.DataDir(small_data)
  whole = directory.DataDir(small_data, all_rows=True)
  assert whole.schema_sha256 == parts.schema_sha256
  assert whole.schema.rows["validation"] == whole.schema.rows["test"] == 0
  found = whole.rows("train", in_order=True)
  for name, column in found.items():
    expected = [
      parts.rows(split, in_order=True)[name]
      for split in ("train", "validation", "test")
    ]
    np.testing.assert_array_equal(column, np.concatenate(expected), name)
  queries = np.bincount(found["query_id"], minlength=len(whole.queries))
  np.testing.assert_array_equal(whole.queries.counts, queries)
  assert len(whole.rows("test")["query_id"]) == 0


def test_a_model_of_ids_is_validated_row_by_row_where_that_is_asked_for():
  rule = past.Rule.of_training
  assert rule({"query_tower": "id", "history_ties": None}) is None
  assert rule({"query_tower": "id"}) is None
  assert rule({"query_tower": "id", "history_ties": "order"}) == past.Rule(
    50, "order"
  )
  histories = {"query_tower": "history", "history_length": 7}
  assert rule(histories | {"history_ties": None}) == past.Rule(7, "strict")
