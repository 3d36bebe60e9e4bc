r"""Times `ops.fused.pool_softmax` against the minimum arithmetic.

    python -m benchmarks.floor

A loss against a pool and its gradient need three matrix products (logits q E^T,
and the gradients P E and P^T q) and one exp per logit. These are timed alone,
in the same chunks of rows: `products`, `exp`, and both as `floor`. They are
compared with `pool_softmax`, value and gradient, as sampled softmax and with
each kind of resampling; XIR computes two such parts at each step. `ratio`
compares with `floor`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import harness
from xir_tfrs.ops import fused, resampling

_SIZES = {
  "batch": (2048, "Rows."),
  "pool": (2048, "Candidates in the pool."),
  "dim": (32, "Size of the embeddings."),
  "row_chunk_size": (256, "Rows per chunk."),
  "num_resampled": (1024, "Draws per row."),
  "repetitions": (30, "Repetitions; the median is reported."),
}


def run(sizes: dict[str, int]) -> dict[str, dict[str, float]]:
  """Times the cases; `sizes` has the keys of `_SIZES`.

  Returns:
    case -> `median_s` and the like, and its `ratio` to `floor`.
  """
  rng = np.random.default_rng(0)
  # Scores around 1.
  scale = sizes["dim"] ** -0.25
  queries, positives, pool = (
    tf.constant(rng.normal(scale=scale, size=[n, sizes["dim"]]), tf.float32)
    for n in (sizes["batch"], sizes["batch"], sizes["pool"])
  )
  chunk = sizes["row_chunk_size"]
  cases = {
    "products": _floor(queries, pool, chunk, lambda logits: logits),
    "exp": _exp(sizes),
    "floor": _floor(queries, pool, chunk, tf.exp),
    "sampled softmax": _pool_softmax(queries, positives, pool, chunk, None),
  }
  for method in resampling.METHODS:
    resampler = fused.Resampler(
      sizes["num_resampled"], method, tf.constant([1, 2], tf.int64)
    )
    cases[method] = _pool_softmax(queries, positives, pool, chunk, resampler)
  results = harness.summarise(
    harness.measure(cases, repetitions=sizes["repetitions"])
  )
  for result in results.values():
    result["ratio"] = result["median_s"] / results["floor"]["median_s"]
  return results


def _floor(queries, pool, chunk, function):
  """The three products, with `function` of the logits in between."""

  @tf.function
  def run_all(queries, pool):
    def body(start, last, d_pool):
      q = queries[start : start + chunk]
      terms = function(tf.matmul(q, pool, transpose_b=True))
      d_q = tf.matmul(terms, pool)
      # Returns one number, so that only the product is timed.
      last += d_q[0, 0]
      d_pool += tf.matmul(q, terms, transpose_a=True)
      return start + chunk, last, d_pool

    zero = tf.zeros([])
    loop_vars = (tf.constant(0), zero, tf.zeros(pool.shape[::-1]))
    return _loop(queries.shape[0], body, loop_vars)

  return lambda: run_all(queries, pool)[2].numpy()


def _exp(sizes):
  """One exp per logit, for chunks in the processor's caches."""
  chunk = sizes["row_chunk_size"]
  rng = np.random.default_rng(1)
  logits = tf.constant(rng.normal(size=[2, chunk, sizes["pool"]]), tf.float32)

  @tf.function
  def run_all(logits):
    def body(start, last):
      # Alternates two chunks: with one, exp could move out of the loop.
      return start + chunk, last + tf.exp(logits[start // chunk % 2])[0, 0]

    return _loop(sizes["batch"], body, (tf.constant(0), tf.zeros([])))

  return lambda: run_all(logits)[1].numpy()


def _loop(num_rows, body, loop_vars):
  return tf.while_loop(
    lambda start, *_: start < num_rows, body, loop_vars, parallel_iterations=1
  )


def _pool_softmax(
  queries: tf.Tensor,
  positives: tf.Tensor,
  pool: tf.Tensor,
  chunk: int,
  resampler: fused.Resampler | None,
) -> Callable[[], object]:
  ids = tf.range(pool.shape[0], dtype=tf.int64)
  rows = queries.shape[0]

  @tf.function
  def value_and_gradient(*inputs):
    with tf.GradientTape() as tape:
      tape.watch(inputs)
      loss, _ = fused.pool_softmax(
        *inputs[:2],
        positive_ids=tf.zeros([rows], tf.int64),
        row_weights=tf.fill([rows], 1.0 / rows),
        pool=fused.Pool(inputs[2], ids, tf.zeros([pool.shape[0]])),
        resampler=resampler,
        row_chunk_size=chunk,
      )
    return tape.gradient(loss, inputs)

  return lambda: value_and_gradient(queries, positives, pool)[2].numpy()


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the table."""
  harness.print_table(
    f"Batch {sizes['batch']:,}, pool {sizes['pool']:,}, dim {sizes['dim']}, "
    f"chunks of {sizes['row_chunk_size']}; median of {sizes['repetitions']}",
    ("", "ms", "x floor"),
    [
      (name, f"{1e3 * result['median_s']:.1f}", f"{result['ratio']:.2f}")
      for name, result in results.items()
    ],
  )


if __name__ == "__main__":
  harness.main("floor", _SIZES, run, show)
