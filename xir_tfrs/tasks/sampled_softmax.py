"""In-batch sampled softmax, with and without popularity correction."""

from collections.abc import Sequence

import tensorflow as tf

from xir_tfrs.layers.frequency_estimator import FrequencyEstimator
from xir_tfrs.ops import fused
from xir_tfrs.tasks import retrieval

LOSSES = ("sampled_softmax", "logq_corrected")


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

  `loss="logq_corrected"` is the corrected log-Q of Khrylchenko et al. 2025:
  the positive is no sample, so it takes no correction and no place in the
  denominator, negatives are drawn from q given that they are not the
  positive, and each row counts by how unsure the model is of it. Columns with
  the id of the row's positive are left out in any case, and the value of the
  loss, which may be negative, is no measure of progress. See
  `ops.losses.logq_corrected_softmax`.
  """

  def __init__(
    self,
    *,
    candidate_counts: Sequence[int] | None = None,
    frequency_estimator: FrequencyEstimator | None = None,
    loss: str = "sampled_softmax",
    positive_in_pool: bool = False,
    **shared,
  ) -> None:
    """Builds the task.

    Args:
      candidate_counts: [num_candidates] training interactions of each
        candidate; None: no correction.
      frequency_estimator: Learns the proposal from the batches instead.
      loss: One of `LOSSES`.
      positive_in_pool: Whether the positive counts twice.
      **shared: See `RetrievalTask`.

    Raises:
      ValueError: An argument out of its range, both sources of q, or
        `"logq_corrected"` with none, or with the positive in the pool.
    """
    super().__init__(positive_in_pool=positive_in_pool, **shared)
    if loss not in LOSSES:
      raise ValueError(
        f"`loss` must be one of {LOSSES}. Received: `loss` = {loss!r}."
      )
    if candidate_counts is not None and frequency_estimator is not None:
      raise ValueError(
        "`candidate_counts` and `frequency_estimator` both say how often "
        "candidates come: give one of them."
      )
    if loss == "logq_corrected":
      if candidate_counts is None and frequency_estimator is None:
        raise ValueError(
          "`loss` = 'logq_corrected' needs to know how often candidates come: "
          "give `candidate_counts` or a `frequency_estimator`."
        )
      if positive_in_pool:
        raise ValueError(
          "`loss` = 'logq_corrected' has no place for the positive among its "
          "negatives. Received: `positive_in_pool` = True."
        )
    if loss == "logq_corrected":
      retrieval.require_cross_entropy(
        self._robustness, self._positive_in_partition, "'logq_corrected'"
      )
    self._loss_name = loss
    self._candidate_counts = None
    self._log_popularity = None
    if candidate_counts is not None:
      self._candidate_counts = retrieval.as_counts(candidate_counts)
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
      "loss": self._loss_name,
    }

  def _loss(self, batch: retrieval.Batch, training: bool) -> tf.Tensor:
    log_q = self._log_proposal(batch, training)
    pool = fused.Pool(
      batch.pool_embeddings, batch.pool_ids, log_q, batch.own_offset
    )
    return self._softmax(batch, pool, self._own(batch, log_q))

  def _log_proposal(self, batch: retrieval.Batch, training: bool) -> tf.Tensor:
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

  def _own(self, batch: retrieval.Batch, of_pool: tf.Tensor) -> tf.Tensor:
    """[batch] the entries of a [pool] tensor at the rows' own columns."""
    rows = tf.range(tf.size(batch.ids), dtype=tf.int64)
    return tf.gather(of_pool, rows + batch.own_offset)

  def _softmax(
    self,
    batch: retrieval.Batch,
    pool: fused.Pool,
    positive_log_q: tf.Tensor | None,
  ) -> tf.Tensor:
    """Scalar loss of the rows against a pool, in the form of `loss`.

    Args:
      batch: The rows.
      pool: The batch's candidates, and others behind them.
      positive_log_q: [batch] log proposal of the positives, as in the pool;
        None, in the plain form only: positives are not corrected.
    """
    loss, _ = self._pool_loss(
      batch,
      pool,
      positive_log_q=positive_log_q,
      logq_corrected=self._loss_name == "logq_corrected",
    )
    return loss
