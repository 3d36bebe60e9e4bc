"""BIR: in-batch importance resampling."""

from collections.abc import Sequence

import tensorflow as tf

from xir_tfrs.layers import state
from xir_tfrs.ops import fused, seeds
from xir_tfrs.tasks import retrieval


class BIRRetrieval(retrieval.RetrievalTask):
  """Softmax over the batch's candidates, resampled for each query.

      w_j = softmax_j(s_j - log pop_j) over the batch
      R_u = num_resampled draws from w, with replacement
      -log( e^{s_p} / (e^{s_p} + sum_{j in R_u} e^{s_j}) )

  Section 3.1 and equation 3 of Chen et al. 2022; no gradient goes through the
  weights or the draws. As the draws favour high scores already, the loss
  behaves like a softmax at half the temperature: try twice the temperature
  that suits SSL-Pop. Its value is no measure of progress: where the positive
  may be drawn and the model is sure of it, all draws are the positive, and the
  loss is log(1 + num_resampled). Watch validation metrics.
  """

  def __init__(
    self,
    *,
    candidate_counts: Sequence[int],
    num_resampled: int | None = None,
    resampler: str = "systematic",
    positive_in_pool: bool = True,
    **shared,
  ) -> None:
    """Builds the task.

    Args:
      candidate_counts: [num_candidates] training interactions of each
        candidate; candidates with none count as one.
      num_resampled: Draws per query, |R_u|; None: the size of the pool, as in
        the paper.
      resampler: How to draw; one of `ops.resampling.METHODS`.
      positive_in_pool: Whether the row's positive may be drawn, as in the
        released code.
      **shared: See `RetrievalTask`.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(positive_in_pool=positive_in_pool, **shared)
    retrieval.validate_resampling(resampler, num_resampled)
    self._candidate_counts = retrieval.as_counts(candidate_counts)
    self._num_resampled = num_resampled
    self._resampler = resampler
    self._log_popularity = self._log_popularity_table(self._candidate_counts)
    self._step = state.add_state(self, "step", (), tf.int64)

  def get_config(self) -> dict:
    return super().get_config() | {
      "candidate_counts": self._candidate_counts.tolist(),
      "num_resampled": self._num_resampled,
      "resampler": self._resampler,
    }

  def _loss(self, batch: retrieval.Batch, training: bool) -> tf.Tensor:
    pool = fused.Pool(
      batch.pool_embeddings,
      batch.pool_ids,
      tf.gather(self._log_popularity, batch.pool_ids),
      batch.own_offset,
    )
    resampler = fused.Resampler(
      self._num_resampled or tf.shape(batch.pool_ids)[0],
      self._resampler,
      seeds.step_seed(self._seed, self._step, seeds.BATCH_DRAWS),
      batch.first_row,
    )
    loss, _ = self._pool_loss(batch, pool, resampler=resampler)
    if training:
      self._step.assign_add(1)
    return loss
