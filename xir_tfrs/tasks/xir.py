"""XIR: cache-augmented in-batch importance resampling."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from xir_tfrs import distribute
from xir_tfrs.layers import candidate_cache
from xir_tfrs.ops import fused, proposals, seeds, xla
from xir_tfrs.tasks import arguments, importance_resampling
from xir_tfrs.tasks import batch as batches
from xir_tfrs.types import CandidateEncoder


class XIRRetrieval(importance_resampling.ResamplingTask):
  """BIR, beside the same over a cache of candidates that are drawn often.

      L = cache_weight * L(K_u) + (1 - cache_weight) * L(R_u)

  where R_u is drawn from the batch and K_u from the cache, `num_resampled`
  each, both with weights softmax_j(s_j - log pop_j), and L is the loss of
  `BIRRetrieval`; section 3.2 and equation 4 of Chen et al. 2022. The cached
  candidates are encoded anew at every step, with gradient. The next cache is
  drawn in proportion to how often each candidate has been drawn so far
  (Algorithm 2).

  With `joint_partition` batch and cache are one pool, of which all is drawn
  together, for one loss: L = L(batch and cache), with weights
  softmax_j(s_j - log Q*_j) and the proposal of the mixture,

      Q*_j = B / (B + C) pop_j + C / (B + C) q_j

  for B candidates of the batch and C of the cache, drawn by q: the shares of
  the draw counts, or pop for a cache by recency. (The first cache is uniform;
  by recency this is not corrected.)

  Attributes:
    cache: The `layers.CandidateCache`.

  Examples:
    >>> candidate_tower = xir.models.Tower(vocabulary_size=3, dim=2)
    >>> task = xir.tasks.XIRRetrieval(
    ...   candidate_counts=[9, 3, 1],
    ...   candidate_encoder=candidate_tower,
    ...   cache_size=2,
    ...   num_resampled=8,
    ... )
    >>> ids = tf.constant([0, 2])
    >>> loss = task(tf.ones([2, 2]), candidate_tower(ids), candidate_ids=ids)
    >>> bool(loss > 0), task.cache.ids.shape
    (True, TensorShape([2]))
    >>> int(task.cache.step)  # A training step has renewed the cache.
    1
  """

  def __init__(
    self,
    *,
    candidate_counts: Sequence[int],
    candidate_encoder: CandidateEncoder,
    cache_size: int,
    num_resampled: int | None = None,
    cache_weight: float = 0.2,
    cache_scope: str = "step",
    occurrence_decay: float = 1.0,
    cache_policy: str = "occurrence",
    joint_partition: bool = False,
    resampler: str | None = None,
    **shared: Any,
  ) -> None:
    """Builds the task.

    Args:
      candidate_counts: [num_candidates] training interactions of each
        candidate; candidates with none count as one.
      candidate_encoder: [n] dense candidate ids -> [n, dim]; the candidate
        tower.
      cache_size: Candidates in the cache.
      num_resampled: Draws per query from each of batch and cache, or from both
        together; None: `cache_size // 2`.
      cache_weight: Share of the cache in the loss, lambda; in [0, 1]. Ignored
        with `joint_partition`.
      cache_scope: The candidates that the next cache is drawn from: `"step"`,
        those of this step's batch and cache, or `"all"`.
      occurrence_decay: Factor of the old draw counts at each step, in (0, 1].
      cache_policy: What is cached: `"occurrence"`, candidates that are drawn
        often, or `"recency"`, those of the last batches.
      joint_partition: Whether batch and cache are one pool, with one loss.
        Needs `cache_scope="all"`, or a cache by recency.
      resampler: How to draw; one of `ops.resampling.METHODS`. None:
        `"systematic"` if `num_resampled` is given, else `"expected"`, which
        counts each candidate as often as draws do on average.
      **shared: See `RetrievalTask`. With `positive_in_pool`, the default as in
        the released code, the row's own positive may be drawn from the batch.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(
      candidate_counts=candidate_counts,
      num_resampled=num_resampled,
      resampler=resampler,
      **shared,
    )
    arguments.require_encoder(candidate_encoder)
    if not 0.0 <= cache_weight <= 1.0:
      raise ValueError(
        "`cache_weight` must lie in [0, 1]. "
        f"Received: `cache_weight` = {cache_weight}."
      )
    if joint_partition and cache_scope == "step" and cache_policy != "recency":
      raise ValueError(
        "`joint_partition` needs to know by what distribution the cache was "
        'drawn: give `cache_scope="all"` or `cache_policy="recency"`.'
      )
    self._candidate_encoder = candidate_encoder
    self._cache_size = cache_size
    self._cache_weight = cache_weight
    self._cache_scope = cache_scope
    self._occurrence_decay = occurrence_decay
    self._cache_policy = cache_policy
    self._joint_partition = joint_partition
    self.cache = candidate_cache.CandidateCache(
      len(self._candidate_counts),
      cache_size,
      cache_scope=cache_scope,
      occurrence_decay=occurrence_decay,
      cache_policy=cache_policy,
      seed=self._seed,
    )

  def get_config(self) -> dict:
    """The arguments; `candidate_encoder` is the object itself.

    A copy of the encoder, which JSON would bring, would share no weights with
    the candidate tower: give the tower to a task that is made from JSON.
    """
    return super().get_config() | {
      "candidate_encoder": self._candidate_encoder,
      "cache_size": self._cache_size,
      "cache_weight": self._cache_weight,
      "cache_scope": self._cache_scope,
      "occurrence_decay": self._occurrence_decay,
      "cache_policy": self._cache_policy,
      "joint_partition": self._joint_partition,
    }

  def readout(self) -> dict[str, tf.Tensor]:
    """`cache_distinct` and the like; see `CandidateCache.readout`."""
    return {
      f"cache_{name}": value for name, value in self.cache.readout().items()
    }

  def _terms(
    self, batch: batches.Batch, training: bool
  ) -> Sequence[batches.Term]:
    in_batch, in_cache = self._in_batch(batch), self._in_cache(batch, training)
    if self._joint_partition:
      joined = self._joined(in_batch, in_cache)
      return [self._drawn(batch, joined, seeds.BATCH_DRAWS, 1.0)]
    weight = self._cache_weight
    return [
      self._drawn(batch, in_batch, seeds.BATCH_DRAWS, 1.0 - weight),
      self._drawn(batch, in_cache, seeds.CACHE_DRAWS, weight),
    ]

  def _in_cache(self, batch: batches.Batch, training: bool) -> fused.Pool:
    """The cached candidates; copies of one are a column, if nothing is drawn.

    Most of a cache are copies, so this encodes and scores far fewer.
    """
    ids, copies = tf.identity(self.cache.ids), None
    # XLA needs the shape, and so do collectives in a loop of steps. Draws of
    # one column differ from those of copies.
    static = xla.compiling() or distribute.num_replicas() > 1
    if self._resampler == "expected" and not static:
      ids, _, copies = tf.unique_with_counts(ids)
    embeddings = distribute.encode_together(
      self._encoder_for(self._candidate_encoder, batch, training),
      ids,
    )
    log_q = tf.gather(self._log_popularity, ids)
    return fused.Pool(embeddings, ids, log_q, copies=copies)

  def _joined(self, in_batch: fused.Pool, in_cache: fused.Pool) -> fused.Pool:
    """Both as one pool, with the proposal of their mixture."""
    in_both = (in_batch, in_cache)
    ids = tf.concat([pool.ids for pool in in_both], 0)
    log_popularity = tf.concat([pool.log_q for pool in in_both], 0)
    log_q = proposals.log_mixture(
      log_popularity,
      tf.size(in_batch.ids),
      log_popularity
      if self._cache_policy == "recency"
      else self.cache.log_proposal(ids),
      self._cache_size,
    )
    copies = in_cache.copies
    if copies is not None:
      copies = tf.concat([tf.ones_like(in_batch.ids, tf.int32), copies], 0)
    embeddings = tf.concat([pool.embeddings for pool in in_both], 0)
    return fused.Pool(
      embeddings, ids, log_q, in_batch.own_offset, copies=copies
    )

  def _drawn(
    self, batch: batches.Batch, pool: fused.Pool, stream: int, share: float
  ) -> batches.Term:
    """The term of a resample of the pool."""
    return self._resampled(
      batch,
      pool,
      self._num_resampled or max(self._cache_size // 2, 1),
      self.cache.step,
      stream,
      share=share,
      count_draws=True,
    )

  def _advance(
    self,
    batch: batches.Batch,
    terms: Sequence[batches.Term],
    draws: Sequence[tf.Tensor],
  ) -> None:
    """Draws the next cache from the pools, batch first."""
    counts = tf.concat(draws, 0)
    in_batch = tf.size(batch.pool_ids)
    batch_ids, cache_ids = batch.pool_ids, tf.identity(self.cache.ids)
    batch_draws, cache_draws = counts[:in_batch], counts[in_batch:]
    copies = terms[-1].pool.copies
    if copies is not None:
      # The copies share the draws of their column.
      cache_draws /= tf.cast(copies[-tf.size(cache_draws) :], tf.float64)
      cache_draws = tf.gather(cache_draws, tf.unique(cache_ids)[1])
    if self._cross_replica:
      batch_draws = distribute.all_reduce_sum(batch_draws)
    else:
      # Each replica drew from a pool of its own.
      batch_ids = distribute.all_gather(batch_ids)
      batch_draws = distribute.all_gather(batch_draws)
    cache_draws = distribute.all_reduce_sum(cache_draws)
    self.cache.update(
      tf.concat([batch_ids, cache_ids], 0),
      tf.concat([batch_draws, cache_draws], 0),
      arrived=batch_ids,
    )
