r"""Times a training step of each task against TFRS's in-batch softmax.

    python -m benchmarks.train_step

Times whole steps with optimizer of two towers of ids at Gowalla's sizes. The
peer is `tfrs.tasks.Retrieval` with its log-Q correction and tf_keras Adam; ours
run with Adam and, marked `lazy`, with `LazyAdam`. All cases take turns in one
process; `ratio` compares with the median of the peer. After some epochs most of
XIR's cache are copies, which it encodes and scores once: `XIR copies` has as
many distinct candidates as `--distinct` says, `XIR expected` a fresh cache.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

import xir_tfrs as xir
from benchmarks import harness

_SIZES = {
  "queries": (29_858, "Number of queries."),
  "candidates": (40_988, "Number of candidates."),
  "dim": (32, "Size of the embeddings."),
  "batch": (2048, "Rows per step."),
  "cache": (2048, "Candidates in the cache of XIR."),
  "distinct": (20, "Distinct candidates in the cache of XIR copies, in %."),
  "repetitions": (30, "Repetitions; the median is reported."),
}
_PEER = "TFRS Retrieval"


class Peer(tfrs.Model):
  """The in-batch softmax of TFRS, corrected by popularity."""

  def __init__(self, query_tower, candidate_tower, counts):
    super().__init__()
    self._queries, self._candidates = query_tower, candidate_tower
    self._task = tfrs.tasks.Retrieval()
    self._popularity = tf.constant(counts / counts.sum(), tf.float32)

  def compute_loss(self, inputs, training=False):
    ids = inputs["candidate_id"]
    return self._task(
      self._queries(inputs["query_id"]),
      self._candidates(ids),
      candidate_sampling_probability=tf.gather(self._popularity, ids),
      compute_metrics=False,
    )


def run(sizes: dict[str, int]) -> dict[str, dict[str, float]]:
  """Times the cases; `sizes` has the keys of `_SIZES`.

  Returns:
    case -> `median_s` and the like, and its `ratio` to the peer.
  """
  rng = np.random.default_rng(0)
  counts = np.minimum(rng.zipf(1.5, sizes["candidates"]), 2000)
  batch = {
    "query_id": tf.constant(
      rng.integers(sizes["queries"], size=sizes["batch"])
    ),
    "candidate_id": tf.constant(
      rng.choice(len(counts), sizes["batch"], p=counts / counts.sum())
    ),
  }
  adam = tf.keras.optimizers.Adam
  cases = {_PEER: step(Peer(*towers(sizes), counts), batch, adam(0.01))}
  makers = tasks(counts, sizes["cache"])
  makers["XIR copies"] = makers["XIR expected"]
  cached = {"XIR copies": copies(rng, sizes)}
  for name, make in makers.items():
    for label, optimizer in (("", adam), (" lazy", xir.optimizers.LazyAdam)):
      pair = towers(sizes)
      model = xir.models.TwoTower(*pair, make(pair[1]))
      cases[name + label] = step(
        model, batch, optimizer(0.01), cached.get(name)
      )
  results = harness.summarise(
    harness.measure(cases, repetitions=sizes["repetitions"])
  )
  for result in results.values():
    result["ratio"] = result["median_s"] / results[_PEER]["median_s"]
  return results


def towers(sizes):
  return tuple(
    xir.models.Tower(vocabulary_size=sizes[name], dim=sizes["dim"], seed=seed)
    for seed, name in enumerate(("queries", "candidates"))
  )


def tasks(counts, cache_size):
  """Name -> function of the candidate tower that makes the task."""

  def bir_task(resampler):
    return lambda _: xir.tasks.BIRRetrieval(
      candidate_counts=counts, resampler=resampler
    )

  def xir_task(resampler):
    return lambda tower: xir.tasks.XIRRetrieval(
      candidate_counts=counts,
      candidate_encoder=tower,
      cache_size=cache_size,
      resampler=resampler,
    )

  return {
    "SSL-Pop": lambda _: xir.tasks.SampledSoftmaxRetrieval(
      candidate_counts=counts
    ),
    "BIR": bir_task("systematic"),
    "BIR expected": bir_task("expected"),
    "XIR": xir_task("systematic"),
    "XIR expected": xir_task("expected"),
    "XIR lattice": xir_task("lattice"),
    "XIR multinomial": xir_task("multinomial"),
  }


def copies(rng, sizes):
  """[cache] candidates, of which `distinct` per cent are distinct."""
  distinct = max(sizes["cache"] * sizes["distinct"] // 100, 1)
  ids = rng.choice(sizes["candidates"], distinct, replace=False)
  return tf.constant(np.resize(ids, sizes["cache"]))


def step(model, batch, optimizer, cached=None):
  """Returns a traced training step, which blocks.

  Args:
    model: The model.
    batch: Its batch.
    optimizer: Its optimizer.
    cached: The candidates in the cache of XIR at each step. None: no change.
  """
  model.compile(optimizer=optimizer)

  @tf.function
  def run():
    if cached is not None:
      model.task.cache.ids.assign(cached)
    return model.train_step(batch)["loss"]

  return lambda: run().numpy()


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the table."""
  harness.print_table(
    f"Batch {sizes['batch']:,}, cache {sizes['cache']:,}, "
    f"{sizes['candidates']:,} candidates, dim {sizes['dim']}; median of "
    f"{sizes['repetitions']}",
    ("", "ms", "ratio"),
    [
      (name, f"{1e3 * result['median_s']:.1f}", f"{result['ratio']:.2f}")
      for name, result in results.items()
    ],
  )


if __name__ == "__main__":
  harness.main("train_step", _SIZES, run, show)
