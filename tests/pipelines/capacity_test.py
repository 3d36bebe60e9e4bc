"""The computed sizes, compared with the variables and the guide."""

import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import xir_tfrs as xir
from pipelines import capacity
from tests.distributed import problems, traffic_test

_ROOT = pathlib.Path(__file__).parents[2]
_OPTIMIZERS = {
  "lazy_adam": xir.optimizers.LazyAdam,
  "adam": tf.keras.optimizers.Adam,
  "adagrad": tf.keras.optimizers.Adagrad,
}


_RUN = capacity.Run(
  candidates=1000,
  queries=700,
  interactions=5000,
  dim=16,
  global_batch_size=32,
  cache_size=64,
  devices=1,
)


def _bytes(variables):
  """Bytes of all variables, each once, without scalars (step counters)."""
  found = {id(v): v for v in variables if v.shape.rank}
  return sum(v.shape.num_elements() * v.dtype.size for v in found.values())


@pytest.mark.parametrize("name", list(_OPTIMIZERS))
def test_memory_is_that_of_the_variables(name):
  query, candidate = (
    xir.models.Tower(vocabulary_size=n, dim=_RUN.dim)
    for n in (_RUN.queries, _RUN.candidates)
  )
  task = xir.tasks.XIRRetrieval(
    candidate_counts=np.ones(_RUN.candidates),
    candidate_encoder=candidate,
    cache_size=_RUN.cache_size,
  )
  model = xir.models.TwoTower(query, candidate, task)
  optimizer = _OPTIMIZERS[name](0.1)
  optimizer.build(model.trainable_variables)
  expected = capacity.device_bytes(dataclasses.replace(_RUN, optimizer=name))
  assert _bytes([*model.variables, *optimizer.variables]) == sum(
    expected.values()
  )
  # Every variable has a row for each candidate, query or place in the cache, so
  # a missing variable cannot be hidden by one of another size.
  for size, parts in (
    (_RUN.queries, ["query table and optimizer"]),
    (_RUN.cache_size, ["cache"]),
    (
      _RUN.candidates,
      ["candidate table and optimizer", "occurrence counts", "log popularity"],
    ),
  ):
    held = [
      v
      for v in [*model.variables, *optimizer.variables]
      if v.shape.rank and v.shape[0] == size
    ]
    assert _bytes(held) == sum(expected[part] for part in parts), parts


def test_traffic_is_that_of_the_collectives_of_a_step(two_replicas):
  sent, _ = traffic_test.step(two_replicas, "xir", rows=64)
  run = capacity.Run(
    candidates=1,  # Any number.
    dim=problems.DIM,
    global_batch_size=64,
    cache_size=8,
    devices=2,
  )
  # TensorFlow also gathers numbers of rows, one or two at a time.
  sent = [one for one in sent if max(one.shape) > 2]
  gathered = sum(x.bytes for x in sent if x.kind == "all_gather_v2")
  # Each replica holds the whole sum.
  reduced = sum(x.bytes for x in sent if x.kind == "all_reduce_v2") / 2
  expected = capacity.traffic_bytes(run)
  assert reduced == expected["their gradient"] + expected["draws"]
  assert gathered == (
    expected["embeddings"] + expected["ids"] + expected["table gradients"]
  )


def test_one_device_has_no_traffic():
  assert sum(capacity.traffic_bytes(_RUN).values()) == 0
  seconds = capacity.step_seconds(_RUN, capacity.Speeds())
  assert seconds["traffic"] == 0 < seconds["products"]


def test_times_follow_the_speeds():
  run = dataclasses.replace(_RUN, devices=4)
  slow = capacity.step_seconds(run, capacity.Speeds())
  for speed, parts in (
    ("tflops", {"products"}),
    ("memory_gb_per_s", {"passes over logits", "optimizer"}),
    ("network_gb_per_s", {"traffic"}),
  ):
    double = 2 * getattr(capacity.Speeds(), speed)
    fast = capacity.step_seconds(run, capacity.Speeds(**{speed: double}))
    for part in slow:
      ratio = 2.0 if part in parts else 1.0
      assert slow[part] == pytest.approx(ratio * fast[part]), part


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
