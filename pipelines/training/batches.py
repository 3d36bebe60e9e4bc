"""What the training rows are, and the batches that each replica gets."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from pipelines.training import config as configs
from xir_tfrs.data import datasets, errors, histories
from xir_tfrs.ops import ragged

Columns = Mapping[str, np.ndarray]


def training_rows(columns: Columns, data: str | os.PathLike[str]) -> Columns:
  """The rows that are trained on: a row of weight 0 is none of them.

  It would not add to the loss. But it would be a negative of other rows, be
  drawn into a cache, and move weights by an optimizer's momentum.

  Args:
    columns: By name, [n] arrays of the train split.
    data: The data directory, for errors.

  Raises:
    DataError: A weight is negative or not finite, or all are 0.
  """
  weights = columns.get("sample_weight")
  if weights is None:
    return columns
  wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
  if wrong.size:
    raise errors.DataError(
      f"weights must be finite and not negative, but row {wrong[0] + 1:,} of "
      f"the train split has {weights[wrong[0]]}",
      path=data,
      column="sample_weight",
    )
  kept = weights > 0
  if kept.all():
    return columns
  if not kept.any():
    raise errors.DataError(
      "all training rows have weight 0", path=data, column="sample_weight"
    )
  return {name: column[kept] for name, column in columns.items()}


def with_popularity(columns: Columns, power: float) -> Columns:
  """The rows with popularity^power times their own weight as their weight.

  The weights keep their sum, so that their scale stays the user's.
  """
  if not power:
    return columns
  weights = datasets.popularity_weights(columns["candidate_id"], power)
  if "sample_weight" in columns:
    own = columns["sample_weight"].astype(np.float64)
    product = own * weights
    weights = (product * (own.sum() / product.sum())).astype(np.float32)
  return {**columns, "sample_weight": weights}


# Makes a dataset of the batches from a step on: (start_step=..., shares=...).
Examples = Callable[..., tf.data.Dataset]


def examples(
  config: configs.TrainConfig,
  columns: Columns,
  known: tf.RaggedTensor | None,
  num_steps: int,
) -> Examples:
  """How training rows become batches.

  Args:
    config: The run.
    columns: By name, [n] arrays of the training rows.
    known: [num_queries, None] candidates that are no negatives of a query.
    num_steps: Steps of the run.
  """
  if config.jit_compile:
    make, most_windows = _examples(config, columns, None, num_steps)
    return _padded(make, known, most_windows)
  make, _ = _examples(config, columns, known, num_steps)
  return make


def _examples(
  config: configs.TrainConfig,
  columns: Columns,
  known: tf.RaggedTensor | None,
  num_steps: int,
) -> tuple[Examples, int | None]:
  """How rows become batches, and the most windows of histories in one."""
  shared = {
    "global_batch_size": config.global_batch_size,
    "seed": config.seed,
  }
  if config.query_tower == "id":
    make = functools.partial(
      datasets.training_dataset, columns, known=known, **shared
    )
    return make, None
  rows = histories.Histories.of_rows(columns, config.resolved.history_ties)
  if config.history_examples == "rows":
    make = functools.partial(
      histories.rows_before_dataset,
      rows,
      length=config.history_length,
      known=known,
      **shared,
    )
    return make, None
  windows = histories.Windows.of_histories(rows, config.history_length)
  batches = histories.PositionBatches(rows, windows, **shared)
  make = functools.partial(batches.dataset, known=known)
  return make, batches.most_windows(num_steps) if config.jit_compile else None


def _padded(
  make: Examples, known: tf.RaggedTensor | None, most_windows: int | None
) -> Examples:
  """The batches in shapes that are the same for all of them."""

  def pad(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    batch = dict(batch)
    if known is not None:
      ids = ragged.gather(known, batch["query_id"])
      shape = [batch["query_id"].shape[0], width]
      batch["known_candidate_ids"] = ids.to_tensor(-1, shape=shape)
    if most_windows is not None:
      for name, of_padding in (("history_ids", -1), ("history_query_ids", 0)):
        x = batch[name]
        missing = [[0, most_windows - tf.shape(x)[0]]]
        missing += [[0, 0]] * (x.shape.rank - 1)
        x = tf.pad(x, missing, constant_values=tf.constant(of_padding, x.dtype))
        batch[name] = tf.ensure_shape(x, [most_windows, *x.shape[1:]])
    return batch

  if known is not None:
    width = max(int(tf.reduce_max(known.row_lengths())), 1)
  return lambda **which: make(**which).map(pad, num_parallel_calls=2)


def distributed(
  strategy: tf.distribute.Strategy,
  make: Examples,
  *,
  global_batch_size: int,
  start_step: int,
) -> Iterator[dict[str, tf.Tensor]]:
  """The batches from a step on, to each replica its share.

  Args:
    strategy: The strategy.
    make: Makes the batches.
    global_batch_size: Rows per step, on all replicas.
    start_step: The first batch wanted.
  """
  shares = datasets.shares(global_batch_size, strategy.num_replicas_in_sync)

  def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
    local = len(shares) // context.num_input_pipelines
    first = context.input_pipeline_id * local
    return make(start_step=start_step, shares=shares[first : first + local])

  return iter(strategy.distribute_datasets_from_function(dataset))
