r"""Measures time, memory and results of training steps on a GPU.

    python -m benchmarks.gpu --output gpu.json

Times whole steps, with tf_keras Adam, of two towers of ids, compared with the
in-batch softmax of `tfrs.tasks.Retrieval`; `jit` marks steps compiled by XLA.
The cases of a size take turns in one process; `ratio` compares with the median
of the peer in the same mode. Then measures the peak memory of steps on
increasing batches, steps of a tower of histories, and differences of loss and
gradients to the CPU. Failing cases are reported as such. Cases that do not fit
in `--seconds` are left out.

At small sizes, it also runs without a GPU, as a test.
"""

import functools
import gc
import itertools
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from benchmarks import harness, train_step

_SIZES = {
  "queries": (29_858, "Number of queries."),
  "candidates": (40_988, "Number of candidates."),
  "small_dim": (32, "Smaller size of the embeddings."),
  "dim": (64, "Size of the embeddings."),
  "small_batch": (2048, "Rows per step, and candidates in cache and bank."),
  "batch": (8192, "Larger number of rows, and of candidates."),
  "largest_batch": (65_536, "Largest batch whose memory is measured."),
  "history_batch": (1024, "Histories per step."),
  "history": (50, "Events of a history."),
  "checked_batch": (512, "Rows per step that is compared with the CPU."),
  "steps": (20, "Steps that are timed together."),
  "repetitions": (7, "Repetitions; the median is reported."),
  "seconds": (200, "Cases that have not started by then are left out."),
}
_PEER = "TFRS Retrieval"
_MODES = {"": False, " jit": True}
_LEFT_OUT = {"error": "left out, out of time"}


class Budget:
  """A time limit for cases."""

  def __init__(self, seconds: float) -> None:
    self._end = time.monotonic() + seconds

  def result(self, function: Callable[[], Any]) -> Any:
    """Returns the result of the function, or {"error": reason}."""
    if time.monotonic() > self._end:
      return dict(_LEFT_OUT)
    gc.collect()
    try:
      return function()
    # Catches everything: a failing case must not stop the others, because the
    # machine is only available for minutes.
    except Exception as error:
      text = " ".join(f"{type(error).__name__}: {error}".split())
      return {"error": f"{text[:300]} ... {text[-300:]}"}


class _StaticPeer(train_step.Peer):
  """The peer with dense gradients: Adam sums rows with dynamic shapes."""

  def train_step(self, inputs):
    with tf.GradientTape() as tape:
      loss = self.compute_loss(inputs, training=True)
    variables = self.trainable_variables
    gradients = map(tf.convert_to_tensor, tape.gradient(loss, variables))
    self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return {"loss": loss}


def tasks(counts, size, resampler="systematic"):
  """Name -> function of the candidate tower that makes the task."""
  encoded = {"candidate_counts": counts}
  return {
    "SSL-Pop": lambda _: xir.tasks.SampledSoftmaxRetrieval(**encoded),
    "BIR": lambda _: xir.tasks.BIRRetrieval(resampler=resampler, **encoded),
    "XIR": lambda tower: xir.tasks.XIRRetrieval(
      candidate_encoder=tower, cache_size=size, resampler=resampler, **encoded
    ),
    "MNS": lambda tower: xir.tasks.MixedNegativeRetrieval(
      candidate_encoder=tower, num_uniform=size, **encoded
    ),
    "CBNS": lambda tower: xir.tasks.CrossBatchRetrieval(
      bank_size=size,
      warmup_steps=0,
      embedding_dim=tower(tf.zeros([1], tf.int64)).shape[1],
      **encoded,
    ),
  }


def run(sizes: Mapping[str, int]) -> dict[str, Any]:
  """Runs all measurements; `sizes` has the keys of `_SIZES`.

  Returns:
    Section -> case -> results.
  """
  budget = Budget(sizes["seconds"])
  small, large = sizes["small_batch"], sizes["batch"]
  dims = sizes["dim"], sizes["small_dim"]
  few = (_PEER, "SSL-Pop", "BIR", "XIR")
  sections = {
    _title(small, dims[0]): lambda: steps(sizes, budget, small, dims[0]),
    _title(large, dims[0]): lambda: steps(sizes, budget, large, dims[0]),
    "against the CPU": lambda: against_cpu(sizes, budget),
    "memory": lambda: _memory(sizes, budget),
    "histories": lambda: _histories(sizes, budget),
    _title(small, dims[1]): lambda: steps(sizes, budget, small, dims[1], few),
    _title(large, dims[1]): lambda: steps(sizes, budget, large, dims[1], few),
    "rows per chunk": lambda: _chunks(sizes, budget),
    "resamplers": lambda: _resamplers(sizes, budget),
  }
  results = {}
  for name, measure in sections.items():
    found = measure()
    # Prints immediately, because the machine may stop before the end.
    _print(name, found)
    found = {case: x for case, x in found.items() if x != _LEFT_OUT}
    if found:
      results[name] = found
  return results


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints all tables again."""
  print(f"\n{harness.machine()['gpus'] or 'no GPU'}, {dict(sizes)}")
  for name, section in results.items():
    _print(name, section)


def steps(sizes, budget, batch, dim, names=None):
  """Case -> step times of each task, plain and compiled."""
  data = _Data(sizes, batch, dim)
  cases = {}
  for name in (_PEER, *tasks(data.counts, batch)):
    for mode, jit in _MODES.items():
      if names is None or name in names:
        cases[name + mode] = lambda name=name, jit=jit: data.step(
          data.model(name, jit), jit
        )
  if names is None:
    for mode, jit in _MODES.items():
      cases["XIR lazy" + mode] = lambda jit=jit: data.step(
        data.model("XIR", jit, lazy=True), jit
      )
  return _timed(cases, sizes, budget)


def _histories(sizes, budget):
  """Case -> step times for queries that are encoded from histories."""
  data = _Data(sizes, sizes["history_batch"], sizes["dim"])
  data.add_histories(sizes["history"])
  cases = {}
  for encoder in ("mean", "attention", "gru"):
    for mode, jit in _MODES.items():
      if encoder == "gru" and not jit:
        # Without the right version of cuDNN, it would crash the process.
        continue
      cases[f"{encoder}, SSL-Pop{mode}"] = lambda encoder=encoder, jit=jit: (
        data.step(data.model("SSL-Pop", jit, True, encoder=encoder), jit)
      )
  return _timed(cases, sizes, budget, peer=None)


def _chunks(sizes, budget):
  """BIR on the larger batch, by the number of rows per chunk of logits."""
  data = _Data(sizes, sizes["batch"], sizes["dim"])
  cases = {}
  for divisor in (1, 4, 16, 64):
    rows = max(sizes["batch"] // divisor, 1)
    for mode, jit in _MODES.items():
      cases[f"BIR, {rows:,} rows{mode}"] = lambda rows=rows, jit=jit: data.step(
        data.model("BIR", jit, row_chunk_size=rows), jit
      )
  return _timed(cases, sizes, budget, peer=None)


def _resamplers(sizes, budget):
  data = _Data(sizes, sizes["small_batch"], sizes["dim"])
  cases = {}
  for resampler in xir.ops.resampling.METHODS:
    for mode, jit in _MODES.items():
      cases[f"XIR {resampler}{mode}"] = lambda r=resampler, jit=jit: data.step(
        data.model("XIR", jit, resampler=r), jit
      )
  return _timed(cases, sizes, budget, peer=None)


def _memory(sizes, budget):
  """Peak memory of a few steps for increasing batches, d = `dim`."""
  results = {}
  batch = sizes["batch"]
  dead = set()
  while batch <= sizes["largest_batch"]:
    data = _Data(sizes, batch, sizes["dim"])
    for name in (_PEER, "SSL-Pop", "XIR"):
      for mode, jit in _MODES.items():
        case = name + mode
        if case in dead:
          continue
        found = budget.result(functools.partial(_peak, data, name, jit))
        results[f"{case}, {batch:,}"] = found
        print("memory", case, batch, found, flush=True)
        if "error" in found:
          dead.add(case)
    batch *= 2
  for name, found in results.items():
    peer = results.get(f"{_PEER}, {name.split(', ')[-1]}", {})
    if "peak_mib" in found and peer.get("peak_mib"):
      found["ratio"] = found["peak_mib"] / peer["peak_mib"]
  return results


def _peak(data, name, jit):
  step = data.step(data.model(name, jit, lazy=True), jit, steps=1)
  if not tf.config.list_logical_devices("GPU"):
    step()
    return {"peak_mib": float("nan")}
  before = tf.config.experimental.get_memory_info("GPU:0")["current"]
  tf.config.experimental.reset_memory_stats("GPU:0")
  step()
  start = time.perf_counter()
  step()
  seconds = time.perf_counter() - start
  peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] - before
  return {"peak_mib": peak / 2**20, "median_s": seconds}


def against_cpu(sizes, budget, names=None):
  """Largest differences of loss and gradients to the CPU."""
  data = _Data(sizes, sizes["checked_batch"], sizes["small_dim"])
  gpu = "/GPU:0" if tf.config.list_logical_devices("GPU") else "/CPU:0"
  results = {}
  names = names or tuple(tasks(data.counts, 1))
  for name, resampler in itertools.chain(
    zip(names, itertools.repeat("expected")), [("XIR", "systematic")]
  ):

    def difference(name=name, resampler=resampler):
      # Without TensorFloat-32, whose products have 10 bits.
      tf.config.experimental.enable_tensor_float_32_execution(False)
      on_cpu = data.gradients(name, "/CPU:0", False, resampler)
      found = {
        "plain": _difference(
          on_cpu, data.gradients(name, gpu, False, resampler)
        ),
        "jit": _difference(on_cpu, data.gradients(name, gpu, True, resampler)),
      }
      tf.config.experimental.enable_tensor_float_32_execution(True)
      found["tf32"] = _difference(
        on_cpu, data.gradients(name, gpu, False, resampler)
      )
      return found

    results[f"{name} {resampler}"] = budget.result(difference)
    print(name, resampler, results[f"{name} {resampler}"], flush=True)
  tf.config.experimental.enable_tensor_float_32_execution(True)
  return results


def _difference(first, second):
  """Largest difference relative to the largest entry, of loss and gradients."""
  return max(
    float(np.max(np.abs(a - b)) / np.maximum(np.max(np.abs(a)), 1e-30))
    for a, b in zip(first, second, strict=True)
  )


class _Data:
  """Batches and models."""

  def __init__(self, sizes: Mapping[str, int], batch: int, dim: int) -> None:
    self._sizes = {**sizes, "dim": dim}
    self._batch = batch
    self._rng = np.random.default_rng(0)
    self.counts = np.minimum(
      self._rng.zipf(1.5, sizes["candidates"]), 2000
    ).astype(np.int64)
    self._shares = self.counts / self.counts.sum()
    self._batches = [
      {
        "query_id": tf.constant(
          self._rng.integers(sizes["queries"], size=batch)
        ),
        "candidate_id": tf.constant(self._candidates(batch)),
      }
      for _ in range(4)
    ]

  def add_histories(self, length: int) -> None:
    for batch in self._batches:
      ids = self._candidates(self._batch * length)
      ids = ids.reshape([self._batch, length])
      ages = self._rng.integers(1, length + 1, [self._batch, 1])
      ids[np.arange(length) >= ages] = -1
      batch["history_ids"] = tf.constant(ids)

  def model(self, name, jit, lazy=False, encoder=None, **settings):
    """Returns a model after Keras' `compile`."""
    towers = train_step.towers(self._sizes)
    if name == _PEER:
      model = (_StaticPeer if jit else train_step.Peer)(*towers, self.counts)
    else:
      chunk = settings.pop("row_chunk_size", None)
      if chunk:
        task = xir.tasks.BIRRetrieval(
          candidate_counts=self.counts, row_chunk_size=chunk
        )
      else:
        made = tasks(self.counts, self._batch, **settings)
        task = made[name](towers[1])
      queries = towers[0]
      if encoder:
        queries = xir.models.HistoryTower(
          towers[1], encoder, self._sizes["history"]
        )
      model = xir.models.TwoTower(queries, towers[1], task)
    # If compiled separately, an optimizer would be compiled again for every
    # number of distinct rows.
    adam = (
      xir.optimizers.LazyAdam(0.01)
      if lazy and name != _PEER
      else tf.keras.optimizers.Adam(0.01, jit_compile=False)
    )
    model.compile(optimizer=adam)
    return model

  def step(self, model, jit, steps=None) -> Callable[[], None]:
    """Returns a function that runs some steps and waits for them."""
    step = tf.function(
      lambda batch: getattr(model, "gradient_step", model.train_step)(batch)[
        "loss"
      ],
      jit_compile=jit,
    )
    batches = itertools.cycle(self._batches)
    table = model.trainable_variables[0]

    def some_steps():
      for _ in range(steps or self._sizes["steps"]):
        loss = step(next(batches))
      # Losses are ready before the update of the tables.
      return loss.numpy(), table[:1].numpy()

    return some_steps

  def gradients(self, name, device, jit, resampler):
    """Returns [loss, gradients of the tables] of a first step, as arrays."""
    with tf.device(device):
      towers = train_step.towers(self._sizes)
      task = tasks(self.counts, self._batch, resampler)[name](towers[1])
      model = xir.models.TwoTower(*towers, task)
      first, batch, *_ = [
        {key: tf.identity(ids) for key, ids in batch.items()}
        for batch in self._batches
      ]

      def step(batch):
        with tf.GradientTape() as tape:
          loss = model.compute_loss(batch, training=True)
        gradients = tape.gradient(loss, model.trainable_variables)
        return loss, [tf.convert_to_tensor(g) for g in gradients]

      step = tf.function(step, jit_compile=jit, autograph=False)
      # Uses the second step, when the cache and the bank are filled.
      step(first)
      loss, gradients = step(batch)
    return [loss.numpy(), *(g.numpy() for g in gradients)]

  def _candidates(self, size):
    return self._rng.choice(len(self.counts), size, p=self._shares)


def _timed(cases, sizes, budget, peer: str | None = _PEER):
  """Case -> seconds per step, or the error; `cases` make the functions."""
  results: dict[str, dict[str, Any]] = {}
  runs = {}
  for name, make in cases.items():
    start = time.perf_counter()

    def first(make=make):
      run = make()
      run()
      return run

    made = budget.result(first)
    if isinstance(made, dict):
      results[name] = made
      continue
    runs[name] = made
    results[name] = {"first_s": time.perf_counter() - start}
  seconds = harness.measure(runs, repetitions=sizes["repetitions"])
  for name, found in harness.summarise(seconds).items():
    results[name] |= {
      key: value / sizes["steps"] if key.endswith("_s") else value
      for key, value in found.items()
    }
  for name, found in results.items():
    mode = " jit" if name.endswith(" jit") else ""
    of_peer = results.get(f"{peer}{mode}", {})
    if "median_s" in of_peer and "median_s" in found:
      found["ratio"] = found["median_s"] / of_peer["median_s"]
  return results


def _title(batch, dim):
  return f"batch {batch:,}, dim {dim}"


def _print(name, section):
  def cell(value):
    if isinstance(value, float):
      return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
    return str(value)

  columns = dict.fromkeys(key for found in section.values() for key in found)
  columns = [
    c for c in columns if c not in ("error", "min_s", "max_s", "repetitions")
  ]
  harness.print_table(
    name,
    ("", *(c.replace("_s", "_ms") for c in columns)),
    [
      (
        case,
        *(
          cell(found[c] * 1e3 if c.endswith("_s") else found[c])
          if c in found
          else ""
          for c in columns
        ),
      )
      for case, found in section.items()
      if "error" not in found
    ],
  )
  reasons: dict[str, list[str]] = {}
  for case, found in section.items():
    if "error" in found:
      reasons.setdefault(found["error"], []).append(case)
  for reason, named in reasons.items():
    print(f"  {', '.join(named)}: {reason}")
  sys.stdout.flush()


if __name__ == "__main__":
  harness.main("gpu", _SIZES, run, show)
