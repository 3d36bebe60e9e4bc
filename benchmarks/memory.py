r"""Measures the memory of training steps against TFRS's in-batch softmax.

    python -m benchmarks.memory

Runs a few steps: forward, backward and `LazyAdam`. Reports the increase of peak
resident memory over the state after building the model and one step with few
rows; on a GPU, the same of its allocator. Each case has its own process, to not
reuse freed memory. The peer is `tfrs.tasks.Retrieval`, which holds
batch x batch logits.
"""

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import app, flags

import xir_tfrs as xir
from benchmarks import harness, train_step

_SIZES = {
  "queries": (50_000, "Number of queries."),
  "candidates": (50_000, "Number of candidates."),
  "dim": (64, "Size of the embeddings."),
  "batch": (16_384, "Rows per step."),
  "cache": (16_384, "Candidates in the cache of XIR."),
  "steps": (3, "Steps."),
}
_PEER = "TFRS Retrieval"
_CASES = (_PEER, "SSL-Pop", "BIR", "XIR", "XIR multinomial")
_FEW_ROWS = 16


def run(sizes: dict[str, int]) -> dict[str, dict[str, float]]:
  """Measures the cases; `sizes` has the keys of `_SIZES`.

  Returns:
    case -> `peak_mib`, and its `ratio` to the peer.
  """
  results = {name: {"peak_mib": _in_process(name, sizes)} for name in _CASES}
  for result in results.values():
    result["ratio"] = result["peak_mib"] / results[_PEER]["peak_mib"]
  return results


def peak_mib(case: str, sizes: dict[str, int]) -> float:
  """Memory of the steps of one case beyond the idle process, in MiB."""
  rng = np.random.default_rng(0)
  counts = np.minimum(rng.zipf(1.5, sizes["candidates"]), 2000)
  towers = train_step.towers(sizes)
  if case == _PEER:
    model = train_step.Peer(*towers, counts)
  else:
    task = train_step.tasks(counts, sizes["cache"])[case](towers[1])
    model = xir.models.TwoTower(*towers, task)
  model.compile(optimizer=xir.optimizers.LazyAdam(0.01))
  ids = tf.TensorSpec([None], tf.int64)
  step = tf.function(
    lambda batch: model.train_step(batch)["loss"],
    # One trace for the small and the large step.
    input_signature=[{"query_id": ids, "candidate_id": ids}],
  )
  batch = {
    "query_id": tf.constant(
      rng.integers(sizes["queries"], size=sizes["batch"])
    ),
    "candidate_id": tf.constant(
      rng.choice(len(counts), sizes["batch"], p=counts / counts.sum())
    ),
  }
  step({name: values[:_FEW_ROWS] for name, values in batch.items()}).numpy()

  def run_all():
    for _ in range(sizes["steps"]):
      step(batch).numpy()

  on_gpu = bool(tf.config.list_logical_devices("GPU"))
  return (_device_peak if on_gpu else _resident_peak)(run_all) / 2**20


def _resident_peak(function: Callable[[], None]) -> int:
  """Bytes; Linux only."""
  before = _status_bytes("VmRSS")
  forget_peak()
  function()
  return peak_bytes() - before


def forget_peak() -> None:
  """Resets the peak resident memory to the current one."""
  pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
  """Peak resident memory since `forget_peak`; Linux only."""
  return _status_bytes("VmHWM")


def _device_peak(function: Callable[[], None]) -> int:
  before = tf.config.experimental.get_memory_info("GPU:0")["current"]
  tf.config.experimental.reset_memory_stats("GPU:0")
  function()
  return tf.config.experimental.get_memory_info("GPU:0")["peak"] - before


def _status_bytes(field: str) -> int:
  status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
  return int(re.search(rf"^{field}:\s+(\d+) kB$", status, re.M)[1]) * 1024


def _in_process(case: str, sizes: dict[str, int]) -> float:
  arguments = [f"--{name}={value}" for name, value in sizes.items()]
  process = subprocess.run(
    [sys.executable, "-m", "benchmarks.memory", f"--case={case}", *arguments],
    cwd=pathlib.Path(__file__).parent.parent,
    stdout=subprocess.PIPE,
    check=True,
    text=True,
  )
  return json.loads(process.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
  del argv
  sizes = harness.given(_SIZES)
  if flags.FLAGS.case:
    print(json.dumps(peak_mib(flags.FLAGS.case, sizes)))
    return
  results = run(sizes)
  harness.print_table(
    f"Batch {sizes['batch']:,}, cache {sizes['cache']:,}, dim {sizes['dim']}; "
    f"peak of {sizes['steps']} steps above the idle process",
    ("", "MiB", "ratio"),
    [
      (name, f"{result['peak_mib']:,.0f}", f"{result['ratio']:.3f}")
      for name, result in results.items()
    ],
  )
  path = harness.write_json(flags.FLAGS.output, "memory", sizes, results)
  print(f"Written to {path}")


if __name__ == "__main__":
  harness.define_flags(_SIZES)
  flags.DEFINE_enum("case", None, _CASES, "Measure this case in this process.")
  app.run(main)
