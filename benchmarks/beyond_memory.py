r"""Measures training input with more rows than fit in memory.

    python -m benchmarks.beyond_memory --rows 200000000 \
      --rows_in_memory 10000000

writes random interactions to a temporary directory, about 7 bytes per row, and
makes one epoch of batches, one part at a time, like `pipelines.train
--rows_in_memory`:

- `first pass`: checks and counts every row, as at the start of each run;
- `rows`: an epoch of batches;
- `known positives`: the same with fewer rows, where each batch has the
  candidates of its queries in other rows, so that all rows of a query must be
  in memory together.

Reports rows per second and the peak resident memory of the process. Then makes
the batches of some steps again, like a resumed run, for one replica and for
two; they must be identical.
"""

import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import harness, memory
from xir_tfrs.data import datasets, directory, parts, records, schema

_SIZES = {
  "rows": (10_000_000, "Rows of the interactions."),
  "rows_in_memory": (4_000_000, "Rows of two parts."),
  "queries": (2_000_000, "Number of queries."),
  "candidates": (1_000_000, "Number of candidates."),
  "files": (64, "Files."),
  "buckets": (64, "Buckets of queries, whose rows are stored together."),
  "batch": (2048, "Rows per batch."),
  "known_rows": (20_000_000, "Rows of the case `known positives`."),
  "resumed": (5, "Steps at which batches are made again."),
}
_ROWS_AT_ONCE = 1 << 20


def run(sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
  """Measures the cases; `sizes` has the keys of `_SIZES`.

  Returns:
    case -> `seconds`, `rows_per_s` and `peak_mib`; for `rows` and `known
    positives` also `equal`, whether repeated batches were the same.
  """
  results: dict[str, dict[str, Any]] = {}
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    results["write"] = _measured(lambda: _write(path, sizes), sizes["rows"])
    data = directory.DataDir(path, sizes["rows_in_memory"])
    blocks = []
    results["first pass"] = _measured(
      lambda: blocks.append(data.training_blocks(by_query=True)), sizes["rows"]
    )
    for name, masks_known in (("rows", False), ("known positives", True)):

      def make(masks_known: bool = masks_known) -> parts.Parts:
        return parts.Parts(
          blocks[0],
          parts.ShuffledRows,
          rows_in_memory=sizes["rows_in_memory"],
          global_batch_size=sizes["batch"],
          seed=1,
          masks_known=masks_known,
        )

      rows = sizes["rows"]
      if masks_known:
        rows = min(rows, sizes["known_rows"])
      steps = rows // sizes["batch"]
      made = make()
      results[name] = _measured(
        lambda steps=steps, made=made: _take(iter(made.dataset()), steps),
        steps * sizes["batch"],
      )
      made.free()
      results[name]["equal"] = _equal(make, steps, sizes)
  return results


def _measured(function: Callable[[], object], rows: int) -> dict[str, float]:
  memory.forget_peak()
  start = time.perf_counter()
  function()
  seconds = time.perf_counter() - start
  return {
    "seconds": seconds,
    "rows_per_s": rows / seconds,
    "peak_mib": memory.peak_bytes() / 2**20,
  }


@tf.function
def _take(iterator: Iterator[dict[str, tf.Tensor]], steps: int) -> tf.Tensor:
  """Takes batches and reads a number of each, so that no work is skipped."""
  total = tf.zeros([], tf.int64)
  for _ in tf.range(steps):
    batch = next(iterator)
    total += tf.cast(batch["query_id"][0], tf.int64)
    total += tf.cast(batch["candidate_id"][0], tf.int64)
  return total


def _equal(
  make: Callable[[], parts.Parts], steps: int, sizes: Mapping[str, int]
) -> bool:
  """Whether one replica and two make the same batches after a restart."""
  shares = datasets.shares(sizes["batch"], 2)
  for step in np.linspace(0, steps - 1, sizes["resumed"], dtype=int).tolist():
    alone, replicas = make(), make()
    (whole,) = alone.dataset(start_step=step).take(1)
    halves = [*replicas.dataset(start_step=step, shares=shares).take(2)]
    alone.free()
    replicas.free()
    for name in ("query_id", "candidate_id"):
      joined = tf.concat([half[name] for half in halves], axis=0)
      if not np.array_equal(whole[name], joined):
        return False
  return True


def _write(path: pathlib.Path, sizes: Mapping[str, int]) -> None:
  """Writes rows like `pipelines.prepare`: in buckets, over all files."""
  files = sizes["files"]
  names = [records.shard_name("train", file, files) for file in range(files)]
  writers = [records.BlockWriter(path / name) for name in names]
  for bucket in range(sizes["buckets"]):
    low, high = (
      sizes["rows"] * b // sizes["buckets"] for b in (bucket, bucket + 1)
    )
    rng = np.random.default_rng(bucket)
    queries = np.arange(bucket, sizes["queries"], sizes["buckets"])
    for start in range(low, high, _ROWS_AT_ONCE):
      num_rows = min(_ROWS_AT_ONCE, high - start)
      # Popular candidates and active queries, as in real data.
      columns = {
        "query_id": queries[_skewed(rng, len(queries), num_rows)],
        "candidate_id": _skewed(rng, sizes["candidates"], num_rows),
      }
      for file, chosen in enumerate(np.array_split(np.arange(num_rows), files)):
        writers[file].append({n: x[chosen] for n, x in columns.items()})
    for writer in writers:
      writer.end_block()
  for writer in writers:
    writer.close()
  shards = [
    schema.Shard(name, writer.rows)
    for name, writer in zip(names, writers, strict=True)
  ]
  schema.Schema(
    name="benchmark",
    num_queries=sizes["queries"],
    num_candidates=sizes["candidates"],
    rows={"train": sizes["rows"]},
    shards={"train": tuple(shards)},
  ).with_hashes(path).save(path)


def _skewed(rng: np.random.Generator, limit: int, size: int) -> np.ndarray:
  """[size] integers below `limit`; small ones are more frequent."""
  return (limit * rng.random(size) ** 2).astype(np.int64)


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the table."""
  harness.print_table(
    f"{sizes['rows']:,} rows, {sizes['rows_in_memory']:,} in memory, batch "
    f"{sizes['batch']:,}",
    ("", "s", "rows/s", "peak MiB", "made again"),
    [
      (
        name,
        f"{result['seconds']:,.1f}",
        f"{result['rows_per_s']:,.0f}",
        f"{result['peak_mib']:,.0f}",
        {True: "equal", False: "OTHER", None: ""}[result.get("equal")],
      )
      for name, result in results.items()
    ],
  )


if __name__ == "__main__":
  harness.main("beyond_memory", _SIZES, run, show)
