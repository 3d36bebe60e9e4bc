r"""Times the input pipeline from TFRecords to shuffled batches.

    python -m benchmarks.input_pipeline

writes random interactions to a temporary directory and compares, in rows per
second,

- `read`: `xir_tfrs.data.records.read_interactions`, as at the start of a run;
- `batches`: batches of `xir_tfrs.data.datasets.training_dataset`, taken by a
  `tf.function` as in training;
- `batches, Python loop`: the same, taken one by one from Python;
- `first epoch`: read and one epoch of batches together;
- typical tf.data: records of one row each, `shuffle`, `batch`, `parse_example`,
  one pass over fewer rows.
"""

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import harness
from xir_tfrs.data import datasets, records, schema

_SIZES = {
  "rows": (5_000_000, "Rows of the interactions."),
  "peer_rows": (500_000, "Rows of one record each."),
  "shard_rows": (1_000_000, "Rows per file."),
  "shuffle": (100_000, "Shuffle buffer of tf.data."),
  "batch": (2048, "Rows per batch."),
  "steps": (1000, "Batches per repetition."),
  "repetitions": (5, "Repetitions; the median is reported."),
}
_PEER = "tf.data, row per record"
_IDS = {"query_id": 1_000_000, "candidate_id": 1_000_000}


def run(sizes: dict[str, int]) -> dict[str, dict[str, float]]:
  """Times the cases; `sizes` has the keys of `_SIZES`.

  Returns:
    case -> `median_s` and the like, `rows_per_s`, and the `ratio` of that to
    the peer's.
  """
  with tempfile.TemporaryDirectory() as directory:
    directory = pathlib.Path(directory)
    _write_blocks(directory, sizes)
    peer_file = directory / "rows.tfrecord"
    _write_rows(peer_file, sizes["peer_rows"])
    results = harness.summarise(
      harness.measure(
        _cases(directory, peer_file, sizes), repetitions=sizes["repetitions"]
      )
    )
  rows = {
    "read": sizes["rows"],
    "batches": sizes["steps"] * sizes["batch"],
    "batches, Python loop": sizes["steps"] * sizes["batch"],
    "first epoch": _steps_per_epoch(sizes) * sizes["batch"],
    _PEER: sizes["peer_rows"],
  }
  for name, result in results.items():
    result["rows_per_s"] = rows[name] / result["median_s"]
  for result in results.values():
    result["ratio"] = result["rows_per_s"] / results[_PEER]["rows_per_s"]
  return results


def _cases(directory, peer_file, sizes):
  def batches():
    rows = records.read_interactions(directory, "train")
    return iter(
      datasets.training_dataset(rows, global_batch_size=sizes["batch"], seed=1)
    )

  # The iterator continues between repetitions, as in training.
  running = batches()
  take = tf.function(_take)

  def python_loop():
    for _ in range(sizes["steps"]):
      next(running)["candidate_id"].numpy()

  def peer():
    for batch in _row_per_record(peer_file, sizes):
      batch["candidate_id"].numpy()

  return {
    "read": lambda: records.read_interactions(directory, "train"),
    "batches": lambda: take(running, tf.constant(sizes["steps"])).numpy(),
    "batches, Python loop": python_loop,
    "first epoch": lambda: take(
      batches(), tf.constant(_steps_per_epoch(sizes))
    ).numpy(),
    _PEER: peer,
  }


def _take(iterator, steps):
  """Takes batches and reads a number of each, so that no work is skipped."""
  total = tf.zeros([], tf.int64)
  for _ in tf.range(steps):
    batch = next(iterator)
    total += tf.cast(batch["query_id"][0], tf.int64)
    total += tf.cast(batch["candidate_id"][0], tf.int64)
  return total


def _row_per_record(path, sizes):
  features = {name: tf.io.FixedLenFeature([], tf.int64) for name in _IDS}
  return (
    tf.data.TFRecordDataset(str(path))
    .shuffle(sizes["shuffle"])
    .batch(sizes["batch"])
    .map(
      lambda serialized: tf.io.parse_example(serialized, features),
      num_parallel_calls=tf.data.AUTOTUNE,
    )
    .prefetch(tf.data.AUTOTUNE)
  )


def _steps_per_epoch(sizes):
  return datasets.steps_to_finish(sizes["rows"], sizes["batch"], 1)


def _random_rows(num_rows, seed):
  rng = np.random.default_rng(seed)
  return {name: rng.integers(n, size=num_rows) for name, n in _IDS.items()}


def _write_blocks(directory, sizes):
  num_shards = -(-sizes["rows"] // sizes["shard_rows"])
  shards = []
  for shard in range(num_shards):
    rows = min(sizes["shard_rows"], sizes["rows"] - shard * sizes["shard_rows"])
    name = records.shard_name("train", shard, num_shards)
    with records.BlockWriter(directory / name) as writer:
      writer.append(_random_rows(rows, seed=shard))
    shards.append(schema.Shard(name, rows))
  schema.Schema(
    name="benchmark",
    num_queries=_IDS["query_id"],
    num_candidates=_IDS["candidate_id"],
    rows={"train": sizes["rows"]},
    shards={"train": tuple(shards)},
  ).save(directory)


def _write_rows(path, num_rows):
  with records.BlockWriter(path, block_rows=1) as writer:
    writer.append(_random_rows(num_rows, seed=0))


def show(results: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
  """Prints the table."""
  harness.print_table(
    f"{sizes['rows']:,} rows, batch {sizes['batch']:,}; median of "
    f"{sizes['repetitions']}",
    ("", "rows/s", "x tf.data"),
    [
      (name, f"{result['rows_per_s']:,.0f}", f"{result['ratio']:.1f}")
      for name, result in results.items()
    ],
  )


if __name__ == "__main__":
  harness.main("input_pipeline", _SIZES, run, show)
