"""The arithmetic of sizes, against the variables and the guide."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from pipelines import capacity

_ROOT = pathlib.Path(__file__).parents[2]
_OPTIMIZERS = {
  "lazy_adam": xir.optimizers.LazyAdam,
  "adam": tf.keras.optimizers.Adam,
  "adagrad": tf.keras.optimizers.Adagrad,
}


@pytest.mark.parametrize("optimizer", list(_OPTIMIZERS))
def test_memory_is_that_of_the_variables(optimizer):
  run = capacity.Run(
    candidates=1000,
    queries=700,
    interactions=1,
    dim=16,
    global_batch_size=32,
    cache_size=64,
    devices=1,
    optimizer=optimizer,
  )
  query, candidate = (
    xir.models.Tower(vocabulary_size=n, dim=run.dim)
    for n in (run.queries, run.candidates)
  )
  task = xir.tasks.XIRRetrieval(
    candidate_counts=np.ones(run.candidates),
    candidate_encoder=candidate,
    cache_size=run.cache_size,
  )
  model = xir.models.TwoTower(query, candidate, task)
  adam = _OPTIMIZERS[optimizer](0.1)
  adam.build(model.trainable_variables)
  found = {
    id(v): v.shape.num_elements() * v.dtype.size
    for v in [*model.variables, *adam.variables]
    if v.shape.rank
  }
  expected = capacity.device_bytes(run)
  assert sum(found.values()) == sum(expected.values())


def test_one_device_has_no_traffic():
  run = capacity.Run(1000, 0, 5000, 8, 64, 64, devices=1)
  assert sum(capacity.traffic_bytes(run).values()) == 0
  seconds = capacity.step_seconds(
    run, tflops=1.0, memory_gb_per_s=1.0, network_gb_per_s=1.0
  )
  assert seconds["traffic"] == 0 < seconds["products"]


def test_traffic_does_not_grow_with_the_catalogue():
  runs = [capacity.Run(n, 0, 5000, 8, 64, 64, devices=2) for n in (10, 10**9)]
  small, large = (capacity.traffic_bytes(run) for run in runs)
  assert small == large


def test_guide_shows_what_the_program_prints():
  printed = subprocess.run(
    [sys.executable, "-m", "pipelines.capacity"],
    cwd=_ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  guide = (_ROOT / "docs/distributed.md").read_text("utf-8")
  assert f"```text\n{printed}```" in guide
