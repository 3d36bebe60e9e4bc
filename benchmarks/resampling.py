r"""Times the resampling of a batch and compares the variance of the counts.

    python -m benchmarks.resampling

Draws counts from shares with each method of
`ops.resampling.counts_from_shares`, in consecutive chunks of rows, like
`ops.fused`. The peer uses TensorFlow: `tf.random.stateless_categorical`, and
`tf.math.bincount` of each row's samples. It runs on one smaller chunk, and its
time is scaled up.

`variance` is the variance of the counts over many seeds, summed over the
columns of a small pool, relative to m w (1 - w), the variance of m independent
draws.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import harness
from xir_tfrs.ops import resampling

_SIZES = {
  "rows": (256, "Rows per chunk."),
  "chunks": (8, "Chunks."),
  "pool": (2048, "Columns."),
  "num_resampled": (1024, "Draws per row."),
  "peer_rows": (64, "Rows for the peer."),
  "variance_rows": (4, "Rows for the variance."),
  "variance_pool": (256, "Columns for the variance."),
  "seeds": (200, "Seeds for the variance."),
  "repetitions": (30, "Repetitions; the median is reported."),
}
_PEER = "categorical + bincount"


def run(sizes: dict[str, int]) -> dict[str, dict[str, float]]:
  """Times the cases; `sizes` has the keys of `_SIZES`.

  Returns:
    case -> `median_s` and the like for all chunks, their `ratio` to the peer,
    and the relative `variance`.
  """
  m = sizes["num_resampled"]
  methods = {name: _method(name, m) for name in resampling.METHODS}
  methods[_PEER] = _categorical(m)
  shares = _shares(sizes["rows"], sizes["pool"])
  cases = {
    name: _in_chunks(draw, shares, sizes["chunks"])
    for name, draw in methods.items()
  }
  peer_shares = _shares(sizes["peer_rows"], sizes["pool"])
  cases[_PEER] = _in_chunks(methods[_PEER], peer_shares, chunks=1)
  seconds = harness.measure(cases, repetitions=sizes["repetitions"])
  left_out = sizes["rows"] * sizes["chunks"] / sizes["peer_rows"]
  seconds[_PEER] = [s * left_out for s in seconds[_PEER]]
  results = harness.summarise(seconds)
  small = _shares(sizes["variance_rows"], sizes["variance_pool"])
  for name, result in results.items():
    result["ratio"] = result["median_s"] / results[_PEER]["median_s"]
    result["variance"] = _variance(methods[name], small, m, sizes["seeds"])
  return results


def _shares(rows: int, pool: int) -> tf.Tensor:
  """[rows, pool] float32; a few columns have most of the weight."""
  logits = np.random.default_rng(0).normal(scale=2.0, size=[rows, pool])
  return tf.nn.softmax(tf.constant(logits, tf.float32))


def _method(name, num_resampled):
  return lambda shares, seed: resampling.counts_from_shares(
    shares, num_resampled, seed=seed, method=name
  )


def _categorical(num_resampled):
  def draw(shares, seed):
    pool = shares.shape[1]
    samples = tf.random.stateless_categorical(
      tf.math.log(shares), num_resampled, seed, dtype=tf.int32
    )
    return tf.math.bincount(
      samples, minlength=pool, maxlength=pool, axis=-1, dtype=tf.float32
    )

  return draw


def _in_chunks(draw, shares, chunks):
  # One chunk at a time, with its own draws; the sums keep all columns alive.
  @tf.function
  def draw_all():
    def body(chunk, draws):
      counts = draw(shares, tf.stack([chunk, 0]))
      return chunk + 1, draws + tf.reduce_sum(counts, axis=0)

    return tf.while_loop(
      lambda chunk, _: chunk < chunks,
      body,
      (tf.constant(0), tf.zeros(shares.shape[1:])),
      parallel_iterations=1,
    )[1]

  return lambda: draw_all().numpy()


def _variance(draw, shares, num_resampled, num_seeds):
  """Variance summed over columns, relative to that of independent draws."""
  draw = tf.function(draw)
  counts = np.stack(
    [draw(shares, tf.constant([seed, 1])) for seed in range(num_seeds)]
  )
  share = shares.numpy() / shares.numpy().sum(axis=1, keepdims=True)
  independent = num_resampled * share * (1.0 - share)
  return float(counts.var(axis=0, ddof=1).sum() / independent.sum())


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the table."""
  harness.print_table(
    f"{sizes['chunks']} x [{sizes['rows']}, {sizes['pool']:,}], "
    f"{sizes['num_resampled']:,} draws per row; median of "
    f"{sizes['repetitions']}",
    ("", "ms", "ratio", "variance"),
    [
      (
        name,
        f"{1e3 * result['median_s']:.1f}",
        f"{result['ratio']:.3f}",
        f"{result['variance']:.3f}",
      )
      for name, result in results.items()
    ],
  )


if __name__ == "__main__":
  harness.main("resampling", _SIZES, run, show)
