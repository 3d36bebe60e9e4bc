"""What BIR and XIR share: resampling a pool for each query."""

from collections.abc import Sequence
from typing import Any, ClassVar

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.ops import forms, fused, resampling, seeds
from xir_tfrs.tasks import arguments, retrieval
from xir_tfrs.tasks import batch as batches


class ResamplingTask(retrieval.RetrievalTask):
  """Base of the tasks that draw by w_j = softmax_j(s_j - log pop_j)."""

  pool_kind: ClassVar[str] = forms.RESAMPLED

  def __init__(
    self,
    *,
    candidate_counts: Sequence[int],
    num_resampled: int | None,
    resampler: str | None,
    **shared: Any,
  ) -> None:
    """Takes the arguments of all draws; see `BIRRetrieval`.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(**shared)
    if resampler is None:
      resampler = "expected" if num_resampled is None else "systematic"
    resampling.validate_method(resampler, "resampler")
    checks.require_sizes(num_resampled=num_resampled)
    self._candidate_counts = arguments.as_counts(candidate_counts)
    self._num_resampled = num_resampled
    self._resampler = resampler
    self._log_popularity = self._log_popularity_table(self._candidate_counts)

  def get_config(self) -> dict:
    return super().get_config() | {
      "candidate_counts": self._candidate_counts.tolist(),
      "num_resampled": self._num_resampled,
      "resampler": self._resampler,
    }

  def _in_batch(self, batch: batches.Batch) -> fused.Pool:
    """The candidates of the batch, which arrive by popularity."""
    return fused.Pool(
      batch.pool_embeddings,
      batch.pool_ids,
      tf.gather(self._log_popularity, batch.pool_ids),
      batch.own_offset,
    )

  def _resampled(
    self,
    batch: batches.Batch,
    pool: fused.Pool,
    num_resampled: int | tf.Tensor,
    step: tf.Variable,
    stream: int,
    **settings: Any,
  ) -> batches.Term:
    """The term of a resample of a pool.

    Args:
      batch: The rows.
      pool: What to draw from.
      num_resampled: Draws per row.
      step: Step of the task, for independent draws at each step.
      stream: One of `ops.seeds`, for independent draws of each pool.
      **settings: Attributes of `Term`.
    """
    resampler = fused.Resampler(
      num_resampled,
      self._resampler,
      seeds.step_seed(self._seed, step, stream),
      batch.first_row,
    )
    return self._term(batch, pool, resampler=resampler, **settings)
