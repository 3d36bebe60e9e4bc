"""Runs whose steps are compiled by XLA."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from pipelines.training import batches as batches_lib
from pipelines.training import config as configs
from pipelines.training import loop
from xir_tfrs.data import datasets, histories, runs
from xir_tfrs.programs import settings


def config(data, model_dir, **given):
  return configs.from_preset(
    **{
      "data": str(data),
      "model_dir": str(model_dir),
      "dim": 8,
      "global_batch_size": 128,
      "log_steps": 3,
      "metric": "recall@20",
      "seed": 5,
    }
    | given
  )


def losses(model_dir):
  rows = runs.RunDir(model_dir).read_metrics()
  return [row["loss"] for row in rows if row["kind"] == "train"]


def test_one_compilation_and_the_losses_of_a_plain_run(small_data, tmp_path):
  # Known positives and sequences of tokens are padded. "expected" draws
  # nothing; rounding could change draws.
  xir = {"task": "xir", "resampler": "expected", "cache_size": 32, "epochs": 2}
  loop.train(config(small_data, tmp_path / "plain", **xir), progress=False)
  subprocess.run(
    [
      sys.executable,
      *("-m", "pipelines.train", "--jit_compile"),
      f"--data={small_data}",
      f"--model_dir={tmp_path / 'compiled'}",
      *(
        "--task=xir",
        "--resampler=expected",
        "--cache_size=32",
        "--epochs=2",
        "--dim=8",
        "--seed=5",
      ),
      *("--global_batch_size=128", "--log_steps=3", "--metric=recall@20"),
    ],
    # XLA dumps what it compiles.
    env=os.environ | {"XLA_FLAGS": f"--xla_dump_to={tmp_path / 'modules'}"},
    capture_output=True,
    check=True,
  )
  names = [path.name for path in (tmp_path / "modules").iterdir()]
  modules = {name.split(".")[0] for name in names if "gradient_step" in name}
  assert len(modules) == 1
  plain, compiled = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
  assert len(plain) > 4
  np.testing.assert_allclose(plain, compiled, rtol=1e-4)


@pytest.mark.parametrize("examples", ["positions", "rows"])
@pytest.mark.slow
def test_histories_are_padded(small_data, tmp_path, examples):
  found = []
  for jit_compile in (False, True):
    path = tmp_path / str(jit_compile)
    run = config(
      small_data,
      path,
      task="ssl_pop",
      query_tower="both",
      history_examples=examples,
      history_length=6,
      history_arguments={"num_blocks": 1, "ages": True},
      history_dropout=0.1,
      epochs=1,
      jit_compile=jit_compile,
    )
    loop.train(run, progress=False)
    found.append(losses(path))
  np.testing.assert_allclose(*found, rtol=1e-4)


def test_rows_of_one_query_share_its_padded_known_candidates():
  # Query 0 has 500 of the 510 rows: nearly every row of a batch is its own.
  columns = {
    "query_id": np.repeat([0, 1, 2], [500, 4, 6]),
    "candidate_id": np.arange(510),
  }
  known = datasets.candidates_by_query(columns, 3)
  plain, compiled = (
    batches_lib.InMemory(columns, known).examples(
      config("", "", global_batch_size=64, jit_compile=jit), 1
    )
    for jit in (False, True)
  )
  for rows, padded in zip(plain().take(1), compiled().take(1), strict=True):
    # Not 500 for each of the 64 rows.
    assert padded["known_candidate_ids"].values.shape == [510]
    assert padded["known_candidate_ids"].row_splits.shape == [66]
    of_rows, of_padded = (
      tf.gather(batch["known_candidate_ids"], batch["known_row"]).to_list()
      for batch in (rows, padded)
    )
    assert of_rows == of_padded


def test_most_windows_of_a_batch():
  rng = np.random.default_rng(0)
  query_id = np.sort(rng.integers(0, 9, 70))
  columns = {
    "query_id": query_id,
    "candidate_id": rng.integers(0, 9, 70),
    "timestamp": rng.integers(0, 99, 70),
  }
  rows = histories.Histories.of_rows(columns, "strict")
  windows = histories.Windows.of_histories(rows, 4)
  for size in (1, 7, 32, 150):
    batches = histories.PositionBatches(
      rows, windows, global_batch_size=size, seed=3
    )
    found = [len(batches.share(k, 0, size)["history_ids"]) for k in range(20)]
    for steps in (1, 3, 20):
      assert batches.most_windows(steps) == max(found[:steps])


def test_replicas_are_refused(small_data, tmp_path):
  with pytest.raises(settings.SettingsError, match="jit_compile.*strategy"):
    config(small_data, tmp_path, jit_compile=True, strategy="mirrored")


def test_a_run_can_resume_with_jit_compile(small_data, tmp_path):
  old, new = (
    config(small_data, tmp_path, jit_compile=jit) for jit in (False, True)
  )
  assert configs.changed(old, new) is None
