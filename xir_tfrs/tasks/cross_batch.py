"""CBNS: candidates of earlier batches as additional negatives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from xir_tfrs import checks, distribute
from xir_tfrs.layers import embedding_history, memory_bank, state
from xir_tfrs.layers.frequency_estimator import FrequencyEstimator
from xir_tfrs.ops import fused, xla
from xir_tfrs.tasks import arguments, sampled_softmax
from xir_tfrs.tasks import batch as batches
from xir_tfrs.types import CandidateEncoder


class CrossBatchRetrieval(sampled_softmax.SampledSoftmaxRetrieval):
  """Sampled softmax over the batch and a bank of earlier batches' candidates.

      -log( e^{s'_p} / (e^{s'_p} + sum_{j in M and B, j != p} e^{s'_j}) )
      s'_j = s_j - log q_j

  CBNS, Wang et al. 2021a: the bank M keeps the embeddings of the last
  `bank_size` candidates and their q at that time, as constants, so they need no
  encoding. A batch uses the bank before it is added to it. Columns with the id
  of the row's positive are left out.

  The bank has no gradient, so candidates would be pulled up by all of their
  rows, but pushed away only by the B / (B + M) of the softmax that the batch
  has. `balance_gradients`, which the paper does not have, multiplies the push
  by (B + M) / B: its expectation is that of a batch of B + M candidates.

  The embeddings of the bank come from earlier weights. While the weights move
  fast the bank would mislead, so the loss is the plain in-batch loss for the
  first `warmup_steps` steps, or until embeddings drift less than
  `warmup_drift` per step. The bank fills up meanwhile. If the task knows the
  encoder, `readout` returns drift and staleness.

  Attributes:
    bank: The `layers.MemoryBank`; without `embedding_dim` and encoder, None
      until the first call.
    history: The `layers.EmbeddingHistory` of the candidates whose drift is
      watched, or None.

  Examples:
    >>> task = xir.tasks.CrossBatchRetrieval(
    ...   bank_size=8, warmup_steps=0, candidate_counts=[2, 1]
    ... )
    >>> ids = tf.constant([0, 1])
    >>> loss = task(tf.eye(2), tf.eye(2), candidate_ids=ids)
    >>> int(task.bank.filled)
    2
  """

  def __init__(
    self,
    *,
    bank_size: int,
    warmup_steps: int,
    candidate_counts: Sequence[int] | None = None,
    frequency_estimator: FrequencyEstimator | None = None,
    warmup_drift: float | None = None,
    candidate_encoder: CandidateEncoder | None = None,
    probe_size: int = 128,
    embedding_dim: int | None = None,
    balance_gradients: bool = True,
    remove_accidental_hits: bool = True,
    **shared: Any,
  ) -> None:
    """Builds the task.

    Args:
      bank_size: Candidates in the bank, M.
      warmup_steps: Steps before the bank is used; 0: it is used at once.
      candidate_counts: [num_candidates] training interactions of each
        candidate, for q; candidates with none count as one. None: no
        correction.
      frequency_estimator: Learns q from the batches instead.
      warmup_drift: Ends the warm-up before `warmup_steps`, for good, once the
        mean drift per step over the last 10 is less than this times the mean
        length; see `EmbeddingHistory.relative_drift`. It needs the encoder.
      candidate_encoder: [n] dense candidate ids -> [n, dim], the candidate
        tower, for drift and staleness only; None: they are not computed.
      probe_size: Candidates whose drift is watched, drawn by popularity like
        those of the bank, and encoded at each training step. 0: none.
      embedding_dim: Size of the embeddings; None: that of the encoder, or else
        that of the first batch. A bank that does not exist before the first
        batch can be neither checked in a checkpoint nor read out.
      balance_gradients: Whether candidates of the batch are pushed away for
        those of the bank too; False: as in the paper.
      remove_accidental_hits: See `RetrievalTask`; here the default.
      **shared: See `SampledSoftmaxRetrieval` and `RetrievalTask`.

    Raises:
      ValueError: An argument out of its range, `warmup_drift` with nothing to
        watch, or an unknown number of candidates.
    """
    super().__init__(
      candidate_counts=candidate_counts,
      frequency_estimator=frequency_estimator,
      remove_accidental_hits=remove_accidental_hits,
      **shared,
    )
    checks.require_sizes(bank_size=bank_size)
    checks.require_positive(warmup_drift=warmup_drift)
    for name, value in (
      ("warmup_steps", warmup_steps),
      ("probe_size", probe_size),
    ):
      if value < 0:
        raise ValueError(
          f"`{name}` must not be negative. Received: `{name}` = {value}."
        )
    if warmup_drift is not None:
      if candidate_encoder is None or not probe_size:
        raise ValueError(
          "`warmup_drift` needs a `candidate_encoder` whose drift it watches, "
          "and a `probe_size` > 0."
        )
    self._bank_size = bank_size
    self._warmup_steps = warmup_steps
    self._warmup_drift = warmup_drift
    self._candidate_encoder = candidate_encoder
    self._probe_size = probe_size
    self._embedding_dim = embedding_dim
    self._balance_gradients = balance_gradients
    self._step = state.add_state(self, "step", (), tf.int64)
    # 1 from when the drift has been small enough.
    self._settled = state.add_state(self, "settled", (), tf.int64)
    self.bank = None
    self.history = None
    dim = embedding_dim
    if candidate_encoder is not None:
      arguments.require_encoder(candidate_encoder)
      first = tf.zeros([1], tf.int64)
      dim = arguments.encode(candidate_encoder, first, False).shape[-1]
      if probe_size:
        self._probe_ids = self._popular(probe_size)
        self.history = embedding_history.EmbeddingHistory(
          len(self._probe_ids), dim
        )
    if dim is not None:
      self.bank = memory_bank.MemoryBank(bank_size, dim)

  def build(self, input_shape: tf.TensorShape) -> None:
    """Makes the bank, if its dimension was not known before.

    Raises:
      ValueError: The dimension is still unknown, or differs.
    """
    dim = input_shape[-1]
    if self.bank is None:
      if dim is None:
        raise ValueError(
          "The size of the embeddings must be known: give `embedding_dim`, or "
          f"a static shape. Received: {input_shape}."
        )
      self.bank = memory_bank.MemoryBank(self._bank_size, dim)
    if dim not in (None, self.bank.dim):
      raise ValueError(
        f"The bank was built for embeddings of `dim` = {self.bank.dim}. "
        f"Received: {input_shape}."
      )
    super().build(input_shape)

  def load_own_variables(self, store: Any) -> None:
    """Keras calls it for a file of `save_weights`.

    Raises:
      ValueError: There is no bank yet to be loaded.
    """
    if self.bank is None:
      raise ValueError(
        f"{self.name!r} has no bank yet, so its rows in the file would be "
        "lost: give `embedding_dim`, or compute a loss before the weights are "
        "loaded."
      )
    super().load_own_variables(store)

  def readout(self) -> dict[str, tf.Tensor]:
    """Reports how far the bank can be trusted.

    Returns:
      Scalars float32. `warm`: 1 if the bank is used. `bank_filled`: share of
      its slots in use. With an encoder `staleness`: mean over these of
      ||v - v_now||^2 / ||v_now||^2, which encodes the whole bank. With probes
      `drift_1`, `drift_5`, `drift_10`: mean distance to the embeddings so many
      steps ago, and `relative_drift`, which `warmup_drift` is compared with.
      If fewer steps are recorded, the drift over those.
    """
    found = super().readout()
    found["warm"] = tf.cast(self._is_warm(), tf.float32)
    if self.bank is not None:
      filled = tf.cast(self.bank.filled, tf.float32)
      found["bank_filled"] = filled / self._bank_size
      if self._candidate_encoder is not None:
        found["staleness"] = self._staleness()
    if self.history is not None:
      for steps in embedding_history.DRIFT_STEPS:
        found[f"drift_{steps}"] = self.history.drift(steps)
      found["relative_drift"] = self.history.relative_drift()
    return found

  def get_config(self) -> dict:
    """The arguments; `candidate_encoder` is the object itself."""
    return super().get_config() | {
      "bank_size": self._bank_size,
      "warmup_steps": self._warmup_steps,
      "warmup_drift": self._warmup_drift,
      "candidate_encoder": self._candidate_encoder,
      "probe_size": self._probe_size,
      "embedding_dim": self._embedding_dim,
      "balance_gradients": self._balance_gradients,
    }

  def _terms(
    self, batch: batches.Batch, training: bool
  ) -> Sequence[batches.Term]:
    log_q = self._log_proposal(batch, training)
    # Only the slots in use, and none during the warm-up.
    bank = self._built_bank()
    num_slots = tf.where(self._is_warm(), bank.filled, 0)
    in_use = gradient_scale = None
    if self._balance_gradients:
      gradient_scale = 1 + num_slots / tf.size(batch.pool_ids, tf.int64)
    if xla.compiling():
      # Static size: a mask instead of a slice.
      slots = tf.range(bank.bank_size, dtype=tf.int64)
      in_use = tf.concat(
        [tf.ones_like(batch.pool_ids, tf.bool), slots < num_slots], 0
      )
      num_slots = bank.bank_size
    bank_embeddings, bank_ids, bank_log_q = bank.read(num_slots)
    pool = fused.Pool(
      tf.concat(
        [
          batch.pool_embeddings,
          # Constants: there is no gradient to earlier weights.
          tf.stop_gradient(tf.cast(bank_embeddings, batch.queries.dtype)),
        ],
        axis=0,
      ),
      tf.concat([batch.pool_ids, bank_ids], axis=0),
      tf.concat([log_q, tf.cast(bank_log_q, log_q.dtype)], axis=0),
      batch.own_offset,
      in_use,
      gradient_scale=gradient_scale,
    )
    return [self._term(batch, pool, positive_log_q=batch.own(log_q))]

  def _advance(
    self,
    batch: batches.Batch,
    terms: Sequence[batches.Term],
    draws: Sequence[tf.Tensor],
  ) -> None:
    self._enqueue(batch, terms[0].pool.log_q[: tf.size(batch.pool_ids)])
    self._watch_drift()
    self._step.assign_add(1)

  def _built_bank(self) -> memory_bank.MemoryBank:
    assert self.bank is not None  # `build` has made it.
    return self.bank

  def _is_warm(self) -> tf.Tensor:
    return (self._step >= self._warmup_steps) | (self._settled > 0)

  def _enqueue(self, batch: batches.Batch, log_q: tf.Tensor) -> None:
    rows = (tf.stop_gradient(batch.pool_embeddings), batch.pool_ids, log_q)
    if not self._cross_replica:
      # All replicas store the global batch, or their banks would differ.
      rows = tuple(distribute.all_gather(x) for x in rows)
    self._built_bank().update(*rows)

  def _watch_drift(self) -> None:
    if self.history is None:
      return
    self.history.update(self._encode_now(tf.constant(self._probe_ids)))
    if self._warmup_drift is not None:
      settled = self.history.is_full() & (
        self.history.relative_drift() < self._warmup_drift
      )
      self._settled.assign(
        tf.maximum(self._settled, tf.cast(settled, tf.int64))
      )

  def _staleness(self) -> tf.Tensor:
    bank = self._built_bank()
    stale, ids, _ = bank.read(bank.filled)
    now = self._encode_now(ids)
    distance = tf.reduce_sum(tf.square(stale - now), axis=1)
    length = tf.reduce_sum(tf.square(now), axis=1)
    ratios = tf.math.divide_no_nan(distance, length)
    return tf.math.divide_no_nan(
      tf.reduce_sum(ratios), tf.cast(tf.size(ratios), tf.float32)
    )

  def _encode_now(self, ids: tf.Tensor) -> tf.Tensor:
    assert self._candidate_encoder is not None  # Or nothing is watched.
    return tf.stop_gradient(
      self._encoded(self._candidate_encoder, ids, tf.float32, training=False)
    )

  def _popular(self, num_ids: int) -> np.ndarray:
    """[num_ids] int64 distinct candidates, drawn by popularity."""
    if self._candidate_counts is None:
      assert self._candidate_encoder is not None  # Or nothing is watched.
      size = arguments.size_of_catalogue(self._candidate_encoder)
      if size is None:
        raise ValueError(
          "Drift is watched on some of the candidates, and neither are there "
          "`candidate_counts` nor does the encoder say how many candidates "
          f"there are: {self._candidate_encoder!r}. Give counts, or "
          "`probe_size` = 0."
        )
      weights = np.ones(size)
    else:
      weights = np.maximum(self._candidate_counts, 1.0)
    return np.random.default_rng(self._seed).choice(
      len(weights),
      size=min(num_ids, len(weights)),
      replace=False,
      p=weights / weights.sum(),
    )
