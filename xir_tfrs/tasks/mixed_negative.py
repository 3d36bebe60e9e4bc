"""MNS: in-batch candidates mixed with uniform ones."""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from xir_tfrs import distribute
from xir_tfrs.layers import state
from xir_tfrs.layers.frequency_estimator import FrequencyEstimator
from xir_tfrs.ops import fused, proposals, seeds
from xir_tfrs.tasks import arguments, sampled_softmax
from xir_tfrs.tasks import batch as batches
from xir_tfrs.types import CandidateEncoder

LOGQ_POSITIVES = ("none", "mixture")


class MixedNegativeRetrieval(sampled_softmax.SampledSoftmaxRetrieval):
  """Sampled softmax over the batch and candidates drawn uniformly.

      -log( e^{s_p} / (e^{s_p} + sum_{j in batch and uniform, j != p}
                                   e^{s_j - log Q*_j}) )
      Q*_j = B / (B + B') pop_j + B' / (B + B') 1 / N

  for a batch of B rows, B' = `num_uniform` further candidates out of N
  (equation 5 of Yang et al. 2020). Batches hardly ever hold rare candidates;
  the uniform ones push these away too. They are encoded at every step, with
  gradient, and are the same on all replicas.

  With `cross_replica=False` B is the number of rows of the replica.

  Examples:
    >>> candidate_tower = xir.models.Tower(vocabulary_size=50, dim=2)
    >>> task = xir.tasks.MixedNegativeRetrieval(
    ...   candidate_encoder=candidate_tower,
    ...   candidate_counts=[3] * 50,
    ...   num_uniform=16,
    ... )
    >>> ids = tf.constant([0, 7])
    >>> loss = task(tf.ones([2, 2]), candidate_tower(ids), candidate_ids=ids)
    >>> bool(loss > 0)
    True
  """

  _num_candidates: int

  def __init__(
    self,
    *,
    candidate_encoder: CandidateEncoder,
    num_uniform: int,
    candidate_counts: Sequence[int] | None = None,
    frequency_estimator: FrequencyEstimator | None = None,
    logq_positive: str = "none",
    num_candidates: int | None = None,
    remove_accidental_hits: bool = True,
    **shared: Any,
  ) -> None:
    """Builds the task.

    Args:
      candidate_encoder: [n] dense candidate ids -> [n, dim]; the candidate
        tower.
      num_uniform: Uniform candidates per step, B' >= 0.
      candidate_counts: [num_candidates] training interactions of each
        candidate, for pop; candidates with none count as one.
      frequency_estimator: Learns pop from the batches instead; one of the two
        is needed.
      logq_positive: Whether the positive is corrected by log Q* too:
        `"mixture"`, or `"none"` as in the paper. Does not change
        `loss="logq_corrected"`.
      num_candidates: Size of the catalogue, N; None: that of
        `candidate_counts`, or as the encoder says.
      remove_accidental_hits: See `RetrievalTask`; here the default.
      **shared: See `SampledSoftmaxRetrieval` and `RetrievalTask`.

    Raises:
      ValueError: An argument out of its range, no source of pop, or a size of
        the catalogue that cannot be told or is not that of the counts.
    """
    super().__init__(
      candidate_counts=candidate_counts,
      frequency_estimator=frequency_estimator,
      remove_accidental_hits=remove_accidental_hits,
      **shared,
    )
    arguments.require_encoder(candidate_encoder)
    if candidate_counts is None and frequency_estimator is None:
      raise ValueError(
        "MixedNegativeRetrieval needs to know how often candidates come: give "
        "`candidate_counts` or a `frequency_estimator`."
      )
    if num_uniform < 0:
      raise ValueError(
        "`num_uniform` must not be negative. "
        f"Received: `num_uniform` = {num_uniform}."
      )
    if logq_positive not in LOGQ_POSITIVES:
      raise ValueError(
        f"`logq_positive` must be one of {LOGQ_POSITIVES}. "
        f"Received: `logq_positive` = {logq_positive!r}."
      )
    self._candidate_encoder = candidate_encoder
    self._num_uniform = num_uniform
    self._logq_positive = logq_positive
    self._num_candidates = self._size_of_catalogue(num_candidates)
    self._step = state.add_state(self, "step", (), tf.int64)

  def get_config(self) -> dict:
    """The arguments; `candidate_encoder` is the object itself."""
    return super().get_config() | {
      "candidate_encoder": self._candidate_encoder,
      "num_uniform": self._num_uniform,
      "logq_positive": self._logq_positive,
      "num_candidates": self._num_candidates,
    }

  def _terms(
    self, batch: batches.Batch, training: bool
  ) -> Sequence[batches.Term]:
    uniform_ids = seeds.uniform_ids(
      seeds.step_seed(self._seed, self._step, seeds.UNIFORM_CANDIDATES),
      self._num_uniform,
      self._num_candidates,
    )
    uniform = distribute.encode_together(
      self._encoder_for(self._candidate_encoder, batch, training),
      uniform_ids,
    )
    log_popularity = tf.concat(
      [
        self._log_proposal(batch, training),
        self._log_popularity_of(uniform_ids, batch),
      ],
      axis=0,
    )
    log_q = proposals.log_mixture(
      log_popularity,
      tf.size(batch.pool_ids),
      -math.log(self._num_candidates),
      self._num_uniform,
    )
    pool = fused.Pool(
      tf.concat([batch.pool_embeddings, uniform], 0),
      tf.concat([batch.pool_ids, uniform_ids], 0),
      log_q,
      batch.own_offset,
    )
    # A form that does not correct the positive may still need to know its Q*.
    known = self._logq_positive == "mixture" or not self.form.corrects_positive
    return [
      self._term(
        batch, pool, positive_log_q=batch.own(log_q) if known else None
      )
    ]

  def _advance(
    self,
    batch: batches.Batch,
    terms: Sequence[batches.Term],
    draws: Sequence[tf.Tensor],
  ) -> None:
    self._step.assign_add(1)

  def _log_popularity_of(
    self, ids: tf.Tensor, batch: batches.Batch
  ) -> tf.Tensor:
    """[n] log pop of candidates that are not the batch's."""
    if self.frequency_estimator is None:
      return tf.gather(self._log_popularity, ids)
    _, num_rows = distribute.global_rows(tf.size(batch.ids))
    return self.frequency_estimator.log_shares(
      ids, gathered=True, training=False, num_rows=num_rows
    )

  def _size_of_catalogue(self, given: int | None) -> int:
    if self._candidate_counts is None:
      return arguments.require_num_candidates(given, self._candidate_encoder)
    counted = len(self._candidate_counts)
    if given not in (None, counted):
      raise ValueError(
        "`num_candidates` must be the length of `candidate_counts`. "
        f"Received: `num_candidates` = {given} for {counted} counts."
      )
    return counted
