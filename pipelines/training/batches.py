"""The training rows, and the batches of each replica."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from pipelines.training import config as configs
from pipelines.training import shapes
from xir_tfrs.data import blocks as blocks_lib
from xir_tfrs.data import datasets, directory, errors, histories
from xir_tfrs.data import parts as parts_lib
from xir_tfrs.programs import settings

Columns = Mapping[str, np.ndarray]


def training_rows(columns: Columns, data: str | os.PathLike[str]) -> Columns:
  """Returns the training rows, without rows of weight 0.

  A row of weight 0 would not contribute to the loss. But it would be a negative
  of other rows, enter caches, and move weights through optimizer momentum.

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
  """Multiplies the weights of rows by popularity^power.

  The sum of the weights does not change, so that the user's scale is kept.
  """
  if not power:
    return columns
  ids, own = columns["candidate_id"], columns.get("sample_weight")
  factors = popularity_factors(
    np.bincount(ids), None if own is None else np.bincount(ids, own), power
  )
  weights = factors[ids] if own is None else factors[ids] * own
  return {**columns, "sample_weight": weights.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class InMemory:
  """Training rows that are all in memory.

  Attributes:
    columns: By name, [n] arrays of the rows, with their final weights.
    known: [num_queries, None] candidates that must not be negatives of a query;
      None for no mask.
    failure: Always None: all rows have been read.
  """

  columns: Columns
  known: tf.RaggedTensor | None
  failure: None = None

  @classmethod
  def of_data(
    cls,
    config: configs.TrainConfig,
    data: directory.DataDir,
    masks_known: bool,
    popularity_weight: float,
  ) -> InMemory:
    """Reads the rows."""
    columns = data.rows("train", in_order=config.query_tower != "id")
    columns = training_rows(columns, config.data)
    known = None
    if masks_known:
      known = datasets.candidates_by_query(columns, data.schema.num_queries)
    return cls(with_popularity(columns, popularity_weight), known)

  @property
  def num_rows(self) -> int:
    return len(self.columns["query_id"])

  def examples(
    self, config: configs.TrainConfig, num_steps: int
  ) -> shapes.Examples:
    """Returns the batches of the rows, for a run of `num_steps` steps."""
    make, most_windows = self._batches(config, num_steps)
    if not config.jit_compile:
      return make
    known = None
    if self.known is not None:
      known = shapes.most_known(self.known.row_lengths().numpy(), config)
    return shapes.padded(make, known, most_windows)

  def _batches(
    self, config: configs.TrainConfig, num_steps: int
  ) -> tuple[shapes.Examples, int | None]:
    """Returns the batches, and the maximum number of history windows in one."""
    shared = {
      "global_batch_size": config.global_batch_size,
      "seed": config.seed,
    }
    known = {"known": self.known}
    if config.query_tower == "id":
      make = functools.partial(
        datasets.training_dataset, self.columns, **known, **shared
      )
      return make, None
    rows = histories.Histories.of_rows(
      self.columns, config.resolved.history_ties
    )
    if config.history_examples == "rows":
      make = functools.partial(
        histories.rows_before_dataset,
        rows,
        length=config.history_length,
        with_times=config.takes_times,
        **known,
        **shared,
      )
      return make, None
    windows = histories.Windows.of_histories(rows, config.history_length)
    batches = histories.PositionBatches(
      rows, windows, with_times=config.takes_times, **shared
    )
    make = functools.partial(batches.dataset, **known)
    return make, batches.most_windows(num_steps) if config.jit_compile else None


@dataclasses.dataclass(frozen=True)
class OnDisk:
  """Training rows that are read into memory one part at a time.

  Attributes:
    blocks: Their locations on disk.
    parts: Their batches.
  """

  blocks: blocks_lib.Blocks
  parts: parts_lib.Parts

  @classmethod
  def of_data(
    cls,
    config: configs.TrainConfig,
    data: directory.DataDir,
    masks_known: bool,
    popularity_weight: float,
  ) -> OnDisk:
    """Reads all rows once, to locate and check them."""
    of_histories = config.query_tower != "id"
    if config.estimator_probe:
      raise settings.SettingsError(
        "--estimator_probe needs all training rows in memory: leave out "
        "--rows_in_memory or the probe."
      )
    if config.jit_compile and of_histories and _by_positions(config):
      raise settings.SettingsError(
        "--jit_compile needs all training rows in memory to find the shapes of "
        "histories: leave out --rows_in_memory, or give --history_examples "
        "rows."
      )
    blocks = data.training_blocks(
      in_order=of_histories, by_query=of_histories or masks_known
    )
    parts = parts_lib.Parts(
      blocks,
      _part(config),
      rows_in_memory=config.rows_in_memory,
      global_batch_size=config.global_batch_size,
      seed=config.seed,
      masks_known=masks_known,
      weights=popularity_factors(
        blocks.counts["candidate_id"], blocks.weights, popularity_weight
      )
      if popularity_weight
      else None,
    )
    return cls(blocks, parts)

  @property
  def num_rows(self) -> int:
    return self.parts.num_rows

  @property
  def failure(self) -> errors.DataError | None:
    """The error that ended the batches, if any."""
    return self.parts.failure

  def examples(
    self, config: configs.TrainConfig, unused_num_steps: int
  ) -> shapes.Examples:
    """Returns the batches of the rows."""
    if not config.jit_compile:
      return self.parts.dataset
    known = None
    if self.parts.masks_known:
      known = shapes.most_known(self.blocks.counts["query_id"], config)
    return shapes.padded(self.parts.dataset, known, None)


TrainingRows = InMemory | OnDisk


def _by_positions(config: configs.TrainConfig) -> bool:
  return config.history_examples == "positions"


def _part(
  config: configs.TrainConfig,
) -> Callable[[parts_lib.Columns, Sequence[int]], parts_lib.Part]:
  """The maker of parts from rows on disk."""
  if config.query_tower == "id":
    return parts_lib.ShuffledRows
  kind = (
    parts_lib.ShuffledPositions
    if _by_positions(config)
    else parts_lib.ShuffledRows
  )
  return functools.partial(
    kind,
    history_length=config.history_length,
    ties=config.resolved.history_ties,
    with_times=config.takes_times,
  )


def popularity_factors(
  counts: np.ndarray, weights: np.ndarray | None, power: float
) -> np.ndarray:
  """Factors popularity^power for the weights of rows, by their candidate.

  The sum of the weights does not change; without weights, the mean is 1.

  Args:
    counts: [num_candidates] rows of each candidate.
    weights: [num_candidates] sum of their weights; None: rows have none.
    power: The power.

  Returns:
    [num_candidates] float64.
  """
  factors = np.maximum(counts, 1.0) ** power
  own = counts if weights is None else weights
  return factors * (own.sum() / (own * factors).sum())


def distributed(
  strategy: tf.distribute.Strategy,
  make: shapes.Examples,
  *,
  global_batch_size: int,
  start_step: int,
) -> Iterator[dict[str, tf.Tensor]]:
  """Distributes batches: each replica gets its share.

  Args:
    strategy: The strategy.
    make: Makes the batches.
    global_batch_size: Rows per step, on all replicas.
    start_step: The first batch to return.
  """
  shares = datasets.shares(global_batch_size, strategy.num_replicas_in_sync)

  def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
    local = len(shares) // context.num_input_pipelines
    first = context.input_pipeline_id * local
    return make(start_step=start_step, shares=shares[first : first + local])

  return iter(strategy.distribute_datasets_from_function(dataset))
