r"""Times a training step of XIR for growing catalogues.

    python -m benchmarks.catalogue_scaling

Times whole steps of XIR with `LazyAdam` for catalogues that grow tenfold. The
peer is `tfrs.tasks.Retrieval` with tf_keras Adam, whose step passes over the
whole table, up to its own limit. All cases take turns in one process, with
batches that change from step to step; `ratio` compares with the same method on
the smallest catalogue.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from benchmarks import harness, train_step

_SIZES = {
  "queries": (30_000, "Number of queries."),
  "smallest": (100_000, "Candidates of the smallest catalogue."),
  "largest": (10_000_000, "Candidates of the largest catalogue."),
  "peer_largest": (1_000_000, "Candidates of TFRS's largest catalogue."),
  "dim": (16, "Size of the embeddings."),
  "batch": (2048, "Rows per step."),
  "cache": (2048, "Candidates in the cache of XIR."),
  "batches": (64, "Different batches, used repeatedly."),
  "repetitions": (30, "Repetitions; the median is reported."),
}
_OURS, _PEER = "XIR", "TFRS Retrieval"
_GROWTH = 10


def run(sizes: dict[str, int]) -> dict[str, dict[str, float]]:
  """Times the cases; `sizes` has the keys of `_SIZES`.

  Returns:
    case -> `median_s` and the like, `candidates`, and its `ratio` to the same
    method with the smallest catalogue.
  """
  cases, candidates = {}, {}
  num_candidates = sizes["smallest"]
  while num_candidates <= sizes["largest"]:
    with_peer = num_candidates <= sizes["peer_largest"]
    for method in (_OURS, _PEER) if with_peer else (_OURS,):
      name = _name(method, num_candidates)
      candidates[name] = num_candidates
      cases[name] = _step(method, sizes | {"candidates": num_candidates})
    num_candidates *= _GROWTH
  results = harness.summarise(
    harness.measure(cases, repetitions=sizes["repetitions"])
  )
  for name, result in results.items():
    method = _OURS if name.startswith(_OURS) else _PEER
    smallest = results[_name(method, sizes["smallest"])]
    result["candidates"] = candidates[name]
    result["ratio"] = result["median_s"] / smallest["median_s"]
  return results


def _name(method: str, num_candidates: int) -> str:
  return f"{method}, {num_candidates:,}"


def _step(method, sizes):
  """Returns a traced training step on the next batch, which blocks."""
  rng = np.random.default_rng(0)
  # Zipf's law: the k-th candidate is drawn in proportion to 1 / k.
  counts = sizes["candidates"] // np.arange(1, sizes["candidates"] + 1)
  rng.shuffle(counts)
  towers = train_step.towers(sizes)
  if method == _PEER:
    model = train_step.Peer(*towers, counts)
    optimizer = tf.keras.optimizers.Adam(0.01)
  else:
    task = xir.tasks.XIRRetrieval(
      candidate_counts=counts,
      candidate_encoder=towers[1],
      cache_size=sizes["cache"],
    )
    model = xir.models.TwoTower(*towers, task)
    optimizer = xir.optimizers.LazyAdam(0.01)
  model.compile(optimizer=optimizer)
  step = tf.function(lambda batch: model.train_step(batch)["loss"])
  batches = itertools.cycle(_batches(rng, counts, sizes))
  return lambda: step(next(batches)).numpy()


def _batches(rng, counts, sizes):
  """Different batches, so that rows are seldom in the processor's caches."""
  shape = [sizes["batches"], sizes["batch"]]
  query_ids = rng.integers(sizes["queries"], size=shape)
  candidate_ids = rng.choice(len(counts), shape, p=counts / counts.sum())
  return [
    {"query_id": tf.constant(q), "candidate_id": tf.constant(c)}
    for q, c in zip(query_ids, candidate_ids, strict=True)
  ]


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the table."""
  harness.print_table(
    f"Batch {sizes['batch']:,}, cache {sizes['cache']:,}, dim {sizes['dim']}; "
    f"median of {sizes['repetitions']}",
    ("candidates", "ms", "x smallest"),
    [
      (name, f"{1e3 * result['median_s']:.1f}", f"{result['ratio']:.2f}")
      for name, result in results.items()
    ],
  )


if __name__ == "__main__":
  harness.main("catalogue_scaling", _SIZES, run, show)
