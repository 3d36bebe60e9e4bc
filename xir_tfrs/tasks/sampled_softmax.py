"""In-batch sampled softmax, with and without popularity correction."""

from collections.abc import Sequence
from typing import Any, ClassVar

import tensorflow as tf

from xir_tfrs.layers.frequency_estimator import FrequencyEstimator
from xir_tfrs.ops import fused
from xir_tfrs.tasks import arguments, retrieval
from xir_tfrs.tasks import batch as batches


class SampledSoftmaxRetrieval(retrieval.RetrievalTask):
  """SSL, and SSL-Pop when given the training counts.

      -log( e^{s_p - log q_p} / sum_{j in batch} e^{s_j - log q_j} )

  The batch's candidates arrive by popularity, so `q = pop` makes the sampled
  softmax an estimate of the full one (Bengio and Senecal 2008; Yi et al.
  2019). Without counts q is constant: plain in-batch softmax, which
  underrates popular candidates. Where no counts are known beforehand, a
  `layers.FrequencyEstimator` learns q from the batches.

  The positive counts once in the denominator. `positive_in_pool=True` counts
  it twice, as the code released with XIR does.

  `loss="logq_corrected"` is the corrected log-Q of Khrylchenko et al. 2025, in
  which the positive is no sample; see `ops.forms.LogQCorrected`.

  Examples:
    >>> ssl = xir.tasks.SampledSoftmaxRetrieval()
    >>> ssl_pop = xir.tasks.SampledSoftmaxRetrieval(candidate_counts=[9, 1])
    >>> queries, candidates = tf.eye(2), tf.eye(2)
    >>> ids = tf.constant([0, 1])
    >>> print(f"{ssl(queries, candidates, candidate_ids=ids):.3f}")
    0.313
    >>> print(f"{ssl_pop(queries, candidates, candidate_ids=ids):.3f}")
    0.751
  """

  _positive_in_pool_by_default: ClassVar[bool] = False

  def __init__(
    self,
    *,
    candidate_counts: Sequence[int] | None = None,
    frequency_estimator: FrequencyEstimator | None = None,
    **shared: Any,
  ) -> None:
    """Builds the task.

    Args:
      candidate_counts: [num_candidates] training interactions of each
        candidate; None: no correction.
      frequency_estimator: Learns the proposal from the batches instead.
      **shared: See `RetrievalTask`.

    Raises:
      ValueError: An argument out of its range, both sources of q, or none for
        a `loss` that needs to know q.
    """
    super().__init__(**shared)
    if candidate_counts is not None and frequency_estimator is not None:
      raise ValueError(
        "`candidate_counts` and `frequency_estimator` both say how often "
        "candidates come: give one of them."
      )
    unknown = candidate_counts is None and frequency_estimator is None
    if unknown and self.form.needs_log_q:
      raise ValueError(
        f"`loss` = {self.form.name!r} needs to know how often candidates come: "
        "give `candidate_counts` or a `frequency_estimator`."
      )
    self._candidate_counts = None
    self._log_popularity = None
    if candidate_counts is not None:
      self._candidate_counts = arguments.as_counts(candidate_counts)
      self._log_popularity = self._log_popularity_table(self._candidate_counts)
    self.frequency_estimator = frequency_estimator

  def readout(self) -> dict[str, tf.Tensor]:
    if self.frequency_estimator is None:
      return super().readout()
    return super().readout() | self.frequency_estimator.readout()

  def get_config(self) -> dict:
    counts = self._candidate_counts
    return super().get_config() | {
      "candidate_counts": None if counts is None else counts.tolist(),
      "frequency_estimator": self.frequency_estimator,
    }

  def _terms(
    self, batch: batches.Batch, training: bool
  ) -> Sequence[batches.Term]:
    log_q = self._log_proposal(batch, training)
    pool = fused.Pool(
      batch.pool_embeddings, batch.pool_ids, log_q, batch.own_offset
    )
    return [self._term(batch, pool, positive_log_q=batch.own(log_q))]

  def _log_proposal(self, batch: batches.Batch, training: bool) -> tf.Tensor:
    """[pool] log of the share of batch rows each candidate of the pool has.

    An estimator learns from the batch before it is read.
    """
    if self.frequency_estimator is not None:
      return self.frequency_estimator.log_shares(
        batch.pool_ids, gathered=self._cross_replica, training=training
      )
    if self._log_popularity is None:
      return tf.zeros(tf.shape(batch.pool_ids), batch.queries.dtype)
    return tf.gather(self._log_popularity, batch.pool_ids)
