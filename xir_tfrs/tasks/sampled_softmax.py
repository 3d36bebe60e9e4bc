"""In-batch sampled softmax, with and without popularity correction."""

from collections.abc import Sequence

import tensorflow as tf

from xir_tfrs.ops import fused
from xir_tfrs.tasks import retrieval


class SampledSoftmaxRetrieval(retrieval.RetrievalTask):
  """SSL, and SSL-Pop when given the training counts.

      -log( e^{s_p - log q_p} / sum_{j in batch} e^{s_j - log q_j} )

  The batch's candidates arrive by popularity, so `q = pop` makes the sampled
  softmax an estimate of the full one (Bengio and Senecal 2008; Yi et al.
  2019). Without counts q is constant: plain in-batch softmax, which
  underrates popular candidates.

  The positive counts once in the denominator. `positive_in_pool=True` counts
  it twice, as the code released with XIR does.
  """

  def __init__(
    self,
    *,
    candidate_counts: Sequence[int] | None = None,
    positive_in_pool: bool = False,
    **shared,
  ) -> None:
    """Builds the task.

    Args:
      candidate_counts: [num_candidates] training interactions of each
        candidate; None: no correction.
      positive_in_pool: Whether the positive counts twice.
      **shared: See `RetrievalTask`.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(positive_in_pool=positive_in_pool, **shared)
    self._candidate_counts = None
    self._log_popularity = None
    if candidate_counts is not None:
      self._candidate_counts = retrieval.as_counts(candidate_counts)
      self._log_popularity = self._log_popularity_table(self._candidate_counts)

  def get_config(self) -> dict:
    counts = self._candidate_counts
    return super().get_config() | {
      "candidate_counts": None if counts is None else counts.tolist()
    }

  def _loss(self, batch: retrieval.Batch, training: bool) -> tf.Tensor:
    del training  # Nothing is carried from step to step.
    if self._log_popularity is None:
      log_q = tf.zeros(tf.shape(batch.pool_ids), batch.queries.dtype)
      positive_log_q = None
    else:
      log_q = tf.gather(self._log_popularity, batch.pool_ids)
      positive_log_q = tf.gather(self._log_popularity, batch.ids)
    pool = fused.Pool(
      batch.pool_embeddings, batch.pool_ids, log_q, batch.own_offset
    )
    loss, _ = self._pool_loss(batch, pool, positive_log_q=positive_log_q)
    return loss
