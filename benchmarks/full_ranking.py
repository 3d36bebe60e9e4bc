r"""Times `xir.metrics.full_ranking` against the minimum arithmetic.

    python -m benchmarks.full_ranking

compares, on random embeddings of Gowalla's sizes,

- `product`: the matrix product of queries and candidates, in chunks;
- `product + top_k`: the same, and `tf.math.top_k` of each chunk;
- `full_ranking` with seen candidates masked, in the same chunks;
- TFRS `FactorizedTopK` over a `BruteForce` index, which ranks the catalogue
  once per (query, relevant candidate) pair. It runs on every `peer_share`-th
  pair, and its time is multiplied by `peer_share`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

import xir_tfrs as xir
from benchmarks import harness

_KS = (10, 20, 50)
_SIZES = {
  "queries": (29_858, "Number of queries."),
  "candidates": (40_988, "Number of candidates."),
  "dim": (32, "Size of the embeddings."),
  "relevant": (7, "Relevant candidates per query."),
  "seen": (28, "Masked candidates per query."),
  "query_chunk_size": (128, "Queries per chunk."),
  "peer_share": (64, "TFRS runs on every so many-th pair."),
  "repetitions": (5, "Repetitions; the median is reported."),
}


def run(sizes: dict[str, int]) -> dict[str, dict[str, float]]:
  """Times the cases; `sizes` has the keys of `_SIZES`.

  Returns:
    case -> `median_s` and the like, and its `ratio` to product + top_k.
  """
  rng = np.random.default_rng(0)
  queries, candidates = (
    rng.normal(size=[sizes[name], sizes["dim"]]).astype(np.float32)
    for name in ("queries", "candidates")
  )
  ids = _distinct_ids(rng, sizes)
  relevant, seen = ids[:, : sizes["relevant"]], ids[:, sizes["relevant"] :]
  chunk = sizes["query_chunk_size"]

  def rank():
    xir.metrics.full_ranking(
      queries,
      candidates,
      relevant=tf.RaggedTensor.from_tensor(relevant),
      seen=tf.RaggedTensor.from_tensor(seen),
      ks=_KS,
      query_chunk_size=chunk,
    )

  seconds = harness.measure(
    {
      "product": _in_chunks(_product, queries, candidates, chunk),
      "product + top_k": _in_chunks(_product_top_k, queries, candidates, chunk),
      "full_ranking": rank,
      "TFRS FactorizedTopK": _factorized_top_k(
        queries, candidates, relevant, chunk, sizes["peer_share"]
      ),
    },
    repetitions=sizes["repetitions"],
  )
  seconds["TFRS FactorizedTopK"] = [
    s * sizes["peer_share"] for s in seconds["TFRS FactorizedTopK"]
  ]
  results = harness.summarise(seconds)
  for result in results.values():
    result["ratio"] = (
      result["median_s"] / results["product + top_k"]["median_s"]
    )
  return results


def _distinct_ids(
  rng: np.random.Generator, sizes: dict[str, int]
) -> np.ndarray:
  """[queries, relevant + seen] distinct ids per row."""
  per_query = sizes["relevant"] + sizes["seen"]
  return np.stack(
    [
      rng.choice(sizes["candidates"], per_query, replace=False)
      for _ in range(sizes["queries"])
    ]
  )


def _product(queries: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
  # Returns one column, so that only the product is timed.
  return tf.matmul(queries, candidates, transpose_b=True)[:, 0]


def _product_top_k(queries: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
  scores = tf.matmul(queries, candidates, transpose_b=True)
  return tf.math.top_k(scores, max(_KS)).indices


def _in_chunks(function, queries, candidates, chunk):
  matrix = tf.TensorSpec([None, queries.shape[1]], tf.float32)
  compiled = tf.function(function, input_signature=[matrix, matrix])
  candidates = tf.constant(candidates)

  def run_all():
    for start in range(0, len(queries), chunk):
      compiled(queries[start : start + chunk], candidates).numpy()

  return run_all


def _factorized_top_k(queries, candidates, relevant, chunk, share):
  index = tfrs.layers.factorized_top_k.BruteForce(k=max(_KS))
  index.index(candidates, np.arange(len(candidates)))
  metric = tfrs.metrics.FactorizedTopK(index, ks=_KS)
  rows = np.repeat(np.arange(len(queries)), relevant.shape[1])[::share]
  ids = relevant.ravel()[::share]

  @tf.function(
    input_signature=[
      tf.TensorSpec([None, queries.shape[1]], tf.float32),
      tf.TensorSpec([None, queries.shape[1]], tf.float32),
      tf.TensorSpec([None], tf.int64),
    ]
  )
  def update(*batch):
    metric.update_state(*batch)

  def run_all():
    metric.reset_states()
    for start in range(0, len(ids), chunk):
      part = slice(start, start + chunk)
      update(queries[rows[part]], candidates[ids[part]], ids[part])
    for value in metric.result():
      value.numpy()

  return run_all


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the table."""
  harness.print_table(
    f"{sizes['queries']:,} queries x {sizes['candidates']:,} candidates, "
    f"dim {sizes['dim']}, k {max(_KS)}; median of {sizes['repetitions']}",
    ("", "seconds", "x product + top_k"),
    [
      (name, f"{result['median_s']:.2f}", f"{result['ratio']:.2f}")
      for name, result in results.items()
    ],
  )


if __name__ == "__main__":
  harness.main("full_ranking", _SIZES, run, show)
