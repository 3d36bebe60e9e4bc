"""Pads batches to the same shapes, as XLA needs them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pipelines.training import config as configs

# Makes a dataset of batches; takes (start_step=..., shares=...).
Examples = Callable[..., tf.data.Dataset]
# The columns of a batch with one value per window, and the padding of each.
_PADDING = {"history_ids": -1, "history_times": -1, "history_query_ids": 0}


def most_known(counts: np.ndarray, config: configs.TrainConfig) -> int:
  """Maximum number of known candidates of the queries in one batch.

  Args:
    counts: [num_queries] number of known candidates of each.
    config: The config of the run.
  """
  rows = min(config.global_batch_size, len(counts))
  return max(int(np.partition(counts, -rows)[-rows:].sum()), 1)


def padded(
  make: Examples, most_known: int | None, most_windows: int | None
) -> Examples:
  """Pads all batches to the same shapes.

  Args:
    make: Makes the batches.
    most_known: Maximum number of known candidates of a batch's queries.
    most_windows: Maximum number of history windows of a batch.
  """

  def pad(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    batch = dict(batch)
    if most_known is not None:
      batch["known_candidate_ids"] = _padded_known(
        batch["known_candidate_ids"], batch["query_id"].shape[0], most_known
      )
    if most_windows is not None:
      # In this order, so that all runs make the same graph.
      for name, of_padding in _PADDING.items():
        if name not in batch:
          continue
        x = batch[name]
        missing = [[0, most_windows - tf.shape(x)[0]]]
        missing += [[0, 0]] * (x.shape.rank - 1)
        x = tf.pad(x, missing, constant_values=tf.constant(of_padding, x.dtype))
        batch[name] = tf.ensure_shape(x, [most_windows, *x.shape[1:]])
    return batch

  return lambda **which: make(**which).map(pad, num_parallel_calls=2)


def _padded_known(
  known: tf.RaggedTensor, num_rows: int, most: int
) -> tf.RaggedTensor:
  """Pads known candidates of distinct queries to the same shape.

  Args:
    known: [queries, None] ids.
    num_rows: Rows of the batch; there are at most as many queries.
    most: Maximum number of ids of a batch.

  Returns:
    [num_rows + 1, None] with `most` ids; the last entry holds the padding, -1.
  """
  ids, splits = known.values, known.row_splits
  missing = most - tf.size(ids)
  ids = tf.pad(ids, [[0, missing]], constant_values=-1)
  no_queries = tf.fill([num_rows + 1 - tf.size(splits)], splits[-1])
  end = tf.constant([most], splits.dtype)
  splits = tf.concat([splits, no_queries, end], axis=0)
  return tf.RaggedTensor.from_row_splits(
    tf.ensure_shape(ids, [most]),
    tf.ensure_shape(splits, [num_rows + 2]),
    validate=False,
  )
