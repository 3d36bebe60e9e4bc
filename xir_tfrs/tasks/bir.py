"""BIR: in-batch importance resampling."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from xir_tfrs.layers import state
from xir_tfrs.ops import seeds
from xir_tfrs.tasks import batch as batches
from xir_tfrs.tasks import importance_resampling


class BIRRetrieval(importance_resampling.ResamplingTask):
  """Softmax over the batch's candidates, resampled for each query.

      w_j = softmax_j(s_j - log pop_j) over the batch
      R_u = num_resampled draws from w, with replacement
      -log( e^{s_p} / (e^{s_p} + sum_{j in R_u} e^{s_j}) )

  Section 3.1 and equation 3 of Chen et al. 2022; no gradient goes through the
  weights or the draws. Because the draws already favour high scores, the loss
  behaves like a softmax at half the temperature: try twice the temperature
  that suits SSL-Pop. Its value does not measure progress: if the positive may
  be drawn and the model is sure of it, all draws are the positive, and the loss
  is log(1 + num_resampled). Watch validation metrics.

  Examples:
    >>> task = xir.tasks.BIRRetrieval(
    ...   candidate_counts=[9, 3, 1], num_resampled=8
    ... )
    >>> queries = tf.constant([[1.0, 0.0], [0.0, 1.0]])
    >>> candidates = tf.constant([[1.0, 1.0], [0.0, 2.0]])
    >>> ids = tf.constant([0, 2])
    >>> loss = task(queries, candidates, candidate_ids=ids)
    >>> loss.shape, bool(loss > 0)
    (TensorShape([]), True)
  """

  def __init__(
    self,
    *,
    candidate_counts: Sequence[int],
    num_resampled: int | None = None,
    resampler: str | None = None,
    **shared: Any,
  ) -> None:
    """Builds the task.

    Args:
      candidate_counts: [num_candidates] training interactions of each
        candidate; candidates with none count as one.
      num_resampled: Draws per query, |R_u|; None: the size of the pool, as in
        the paper.
      resampler: How to draw; one of `ops.resampling.METHODS`. None:
        `"systematic"` if `num_resampled` is given, else `"expected"`, which
        counts each candidate as often as draws do on average.
      **shared: See `RetrievalTask`. With `positive_in_pool`, the default as in
        the released code, the row's own positive may be drawn.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(
      candidate_counts=candidate_counts,
      num_resampled=num_resampled,
      resampler=resampler,
      **shared,
    )
    self._step = state.add_state(self, "step", (), tf.int64)

  def _terms(
    self, batch: batches.Batch, training: bool
  ) -> Sequence[batches.Term]:
    return [
      self._resampled(
        batch,
        self._in_batch(batch),
        self._num_resampled or tf.size(batch.pool_ids),
        self._step,
        seeds.BATCH_DRAWS,
      )
    ]

  def _advance(
    self,
    batch: batches.Batch,
    terms: Sequence[batches.Term],
    draws: Sequence[tf.Tensor],
  ) -> None:
    self._step.assign_add(1)
