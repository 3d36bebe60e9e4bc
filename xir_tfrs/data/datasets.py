"""Training input: batches that are a pure function of (seed, step)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.ops import ragged

# Rounds of the cipher that permutes the rows; the default of the op.
_ROUNDS = 4


def training_dataset(
  columns: Mapping[str, np.ndarray],
  *,
  global_batch_size: int,
  seed: int,
  start_step: int = 0,
  shares: Sequence[tuple[int, int]] | None = None,
  known: tf.RaggedTensor | None = None,
) -> tf.data.Dataset:
  """Returns endless shuffled batches; batch k depends on the seed and k alone.

  Each epoch is a permutation of all rows: position i of the endless stream is
  row `permutation_{i // n}[i % n]`, and batch k holds the positions
  `[k B, (k + 1) B)`. There is no state between batches, so a run that resumes
  at step k sees the same batches as an uninterrupted one.

  Args:
    columns: By name, [n] arrays of the training rows, in memory.
    global_batch_size: Rows per batch, B.
    seed: Seed of the permutations.
    start_step: The first batch to return.
    shares: The parts [low, high) of each batch for the replicas of this host;
      they are returned in turn. By default the whole batch.
    known: [num_queries, None] candidates that must not be negatives of a query;
      see `with_known`.

  Returns:
    Endless dataset of dicts of tensors of high - low rows.

  Raises:
    ValueError: There are no rows, or `global_batch_size` is not positive.
  """
  num_rows = len(next(iter(columns.values())))
  if num_rows == 0:
    raise ValueError("There are no training rows.")
  checks.require_sizes(global_batch_size=global_batch_size)
  shares = tuple(shares or [(0, global_batch_size)])
  sizes = {high - low for low, high in shares}
  static_size = sizes.pop() if len(sizes) == 1 else None
  tensors = {name: tf.constant(column) for name, column in columns.items()}

  def batch(element: tf.Tensor) -> dict[str, tf.Tensor]:
    step = start_step + element // len(shares)
    low, high = tf.unstack(
      tf.gather(tf.constant(shares, tf.int64), element % len(shares))
    )
    first = step * global_batch_size
    positions = tf.range(first + low, first + high, dtype=tf.int64)
    epochs = positions // num_rows
    # Uses the raw op: its wrapper pads a batch of seeds incorrectly.
    rows = tf.raw_ops.RandomIndexShuffle(
      index=positions % num_rows,
      seed=tf.cast(
        tf.stack(
          [tf.fill(tf.shape(epochs), tf.cast(seed, tf.int64)), epochs]
          + [tf.zeros_like(epochs)],
          axis=1,
        ),
        tf.int32,
      ),
      max_index=tf.constant(num_rows - 1, tf.int64),
      rounds=_ROUNDS,
    )
    rows = tf.ensure_shape(rows, [static_size])
    rows = {name: tf.gather(column, rows) for name, column in tensors.items()}
    return rows if known is None else with_known(rows, known)

  return (
    tf.data.Dataset.range(np.iinfo(np.int64).max)
    .map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    .prefetch(tf.data.AUTOTUNE)
  )


def with_known(
  batch: Mapping[str, tf.Tensor], known: tf.RaggedTensor
) -> dict[str, tf.Tensor | tf.RaggedTensor]:
  """Adds the known candidates of its queries to a batch.

  Queries with many rows have many known candidates too, so one entry per row
  would grow quadratically; rows share the entries of their queries instead.

  Returns:
    The batch with `known_candidate_ids`, [queries, None], of its distinct
    queries, and `known_row` [batch], the entry of each row.
  """
  queries, rows = tf.unique(batch["query_id"])
  return {
    **batch,
    "known_candidate_ids": ragged.gather(known, queries),
    "known_row": tf.ensure_shape(rows, batch["query_id"].shape),
  }


def from_numpy(
  function: Callable[..., Any],
  inputs: Sequence[Any],
  specs: Sequence[tf.TensorSpec],
) -> list[tf.Tensor]:
  """Calls a NumPy function in a graph and sets the static shapes."""
  values = tf.numpy_function(
    function, inputs, [spec.dtype for spec in specs], stateful=False
  )
  values = values if isinstance(values, (list, tuple)) else [values]
  for value, spec in zip(values, specs, strict=True):
    value.set_shape(spec.shape)
  return list(values)


def distinct_pairs(
  parts: Sequence[Mapping[str, np.ndarray]], num_candidates: int
) -> np.ndarray:
  """Sorted distinct values of query_id * num_candidates + candidate_id."""
  keys = np.empty(sum(len(part["query_id"]) for part in parts), np.int64)
  start = 0
  for part in parts:
    found = keys[start : start + len(part["query_id"])]
    np.multiply(part["query_id"], num_candidates, out=found, dtype=np.int64)
    found += part["candidate_id"]
    start += len(found)
  # `np.unique` hashes, which takes ten times as long.
  keys.sort()
  first = np.ones(len(keys), bool)
  first[1:] = keys[1:] != keys[:-1]
  return keys[first]


def candidates_by_query(
  columns: Mapping[str, np.ndarray], num_queries: int
) -> tf.RaggedTensor:
  """[num_queries, None] sorted distinct candidates of each query."""
  candidates = columns["candidate_id"]
  num_candidates = int(candidates.max(initial=0)) + 1
  queries, found = np.divmod(
    distinct_pairs([columns], num_candidates), num_candidates
  )
  return tf.RaggedTensor.from_row_lengths(
    found.astype(candidates.dtype), np.bincount(queries, minlength=num_queries)
  )


def shares(global_batch_size: int, num_replicas: int) -> list[tuple[int, int]]:
  """Splits a batch into parts [low, high) of nearly equal size, per replica.

  Raises:
    ValueError: There are fewer rows than replicas.
  """
  if global_batch_size < num_replicas:
    raise ValueError(
      f"--global_batch_size must be at least the number of replicas. "
      f"Received: {global_batch_size} rows for {num_replicas} replicas."
    )
  ends = [
    global_batch_size * i // num_replicas for i in range(num_replicas + 1)
  ]
  return list(zip(ends[:-1], ends[1:], strict=True))


def steps_to_finish(
  num_rows: int, global_batch_size: int, num_epochs: int
) -> int:
  """The first step after which every row has been seen `num_epochs` times."""
  return -(-num_rows * num_epochs // global_batch_size)
