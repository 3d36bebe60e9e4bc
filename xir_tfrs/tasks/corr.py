"""CoRR: a retriever and a ranker, trained together."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from xir_tfrs import checks, distribute
from xir_tfrs.layers import candidate_cache, inverted_multi_index, state
from xir_tfrs.ops import corr, forms, masking, midx, seeds
from xir_tfrs.tasks import arguments, retrieval
from xir_tfrs.tasks import batch as batches
from xir_tfrs.types import CandidateEncoder

SAMPLERS = ("midx", "midx_pop", "uniform", "sir", "bir", "xir")

# Pop weights of MIDX are counts to this power, as in word2vec.
_POPULARITY_POWER = 0.75
_IDS_PER_CHUNK = 8192

# ([batch] query ids, [batch, n] candidate ids) -> [batch, n] scores.
Ranker = Callable[..., tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Sample:
  """Candidates drawn for the rows of a batch.

  Attributes:
    ids: [batch, n] int64.
    log_q: [batch, n] log proposal of each, up to a constant of the row.
    positive_log_q: [batch] the same of the row's positive.
    keep: [batch, n] bool, which candidates count; None: all.
  """

  ids: tf.Tensor
  log_q: tf.Tensor
  positive_log_q: tf.Tensor
  keep: tf.Tensor | None


class CoRRRetrieval(retrieval.RetrievalTask):
  """Cooperative retriever and ranker (Huang et al. 2023).

      L = L_ranker + L_retriever + kl_weight * L_KL

  For each query, `num_sampled` candidates S are drawn from a proposal Q that
  follows the retriever. The first two terms are sampled softmax losses of the
  positive against S with the scores of the ranker, R, and the retriever, M,
  both corrected by log Q; the third is the divergence of the retriever from
  the ranker over S (`ops.corr`). No gradient goes through the draws or log Q,
  nor from the third term to the ranker.

  Proposals:

      midx      in proportion to e^{q c(i)}, c(i) the codewords of candidate i:
                the whole catalogue at a cost that does not grow with it.
                `refresh` rebuilds the codewords; call it before each epoch
                (in Keras: `LambdaCallback(on_epoch_begin=lambda *_:
                task.refresh())`). Until then the draws are uniform.
      midx_pop  in proportion to count_i^0.75 e^{q c(i)}.
      uniform   over the catalogue.
      sir       drawn from `num_pooled` uniform candidates of each row in
                proportion to e^{s_j}.
      bir       drawn from the candidates of the batch with weights
                softmax_j(s_j - log pop_j), as in `BIRRetrieval`.
      xir       the same from batch and cache together; the next cache is
                drawn as in `XIRRetrieval`.

  A draw of sir, bir or xir is distributed about as e^{s_j} over the catalogue
  (exactly so for an infinite pool, which for bir and xir arrives by
  popularity), so its log Q is the retriever's score itself. M - log Q is then 0
  everywhere: the retriever's loss is the constant log(1 + num_sampled), and
  only its gradient carries information. With the other samplers, too, the value
  does not measure progress, because the proposal changes with the model: watch
  validation metrics.

  A call needs `query_ids`, and `history_ids` if the ranker takes histories. It
  refuses `known_candidate_ids`.

  Attributes:
    ranker: The ranker.
    index: The `layers.InvertedMultiIndex`; None for other samplers.
    cache: The `layers.CandidateCache`; None for other samplers than xir.

  Examples:
    >>> candidate_tower = xir.models.Tower(vocabulary_size=9, dim=2)
    >>> ranker = xir.models.Ranker(
    ...   num_queries=5, num_candidates=9, dim=2, hidden_units=(4,)
    ... )
    >>> task = xir.tasks.CoRRRetrieval(
    ...   candidate_counts=[1] * 9,
    ...   candidate_encoder=candidate_tower,
    ...   ranker=ranker,
    ...   num_sampled=4,
    ...   num_codewords=2,
    ... )
    >>> task.refresh()  # Before each epoch.
    >>> ids = tf.constant([0, 7])
    >>> loss = task(
    ...   tf.ones([2, 2]),
    ...   candidate_tower(ids),
    ...   candidate_ids=ids,
    ...   query_ids=tf.constant([3, 4]),
    ... )
    >>> bool(loss > 0)
    True
  """

  pool_kind: ClassVar[str] = forms.RANKER
  _num_candidates: int

  def __init__(
    self,
    *,
    candidate_counts: Sequence[int],
    candidate_encoder: CandidateEncoder,
    ranker: Ranker,
    num_sampled: int = 20,
    sampler: str = "midx",
    num_pooled: int = 100,
    kl_weight: float = 1.0,
    num_codewords: int = 8,
    cache_size: int = 2048,
    cache_scope: str = "step",
    occurrence_decay: float = 1.0,
    remove_accidental_hits: bool = False,
    **shared: Any,
  ) -> None:
    """Builds the task.

    Args:
      candidate_counts: [num_candidates] training interactions of each
        candidate; candidates with none count as one.
      candidate_encoder: [n] dense candidate ids -> [n, dim]; the candidate
        tower. It is called once here, for `dim`.
      ranker: ([batch] query ids, [batch, n] candidate ids) -> [batch, n]
        scores, such as `models.Ranker`. A Keras layer is also given
        `training`, and one whose `takes_histories` is True, `history_ids`.
      num_sampled: Candidates drawn per query, with replacement.
      sampler: One of `SAMPLERS`, the proposals above.
      num_pooled: sir: candidates that each row draws from.
      kl_weight: Weight of the divergence; >= 0. The paper has 1.
      num_codewords: midx: codewords per half of a vector.
      cache_size: xir: candidates in the cache.
      cache_scope: xir: the candidates that the next cache is drawn from,
        `"step"` or `"all"`.
      occurrence_decay: xir: factor of the old draw counts at each step.
      remove_accidental_hits: Whether draws of the row's own positive are left
        out. By default they are kept: only then does the gradient tend to that
        of the full softmax as `num_sampled` grows. Without them the partition
        lacks the positive's own share, and queries that the model is already
        sure of are still pushed.
      **shared: See `RetrievalTask`. `positive_in_pool`, the default, is for
        bir and xir whether the row's own column of the batch may be drawn; for
        the samplers over the catalogue, which have no columns, False is the
        same as `remove_accidental_hits`. `row_chunk_size` has no effect:
        logits here are [batch, num_sampled].

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(remove_accidental_hits=remove_accidental_hits, **shared)
    checks.require_sizes(num_sampled=num_sampled, num_pooled=num_pooled)
    arguments.require_encoder(candidate_encoder)
    if not callable(ranker):
      raise ValueError(
        "`ranker` must map query ids [batch] and candidate ids [batch, n] to "
        f"scores [batch, n], as models.Ranker does. Received: {ranker!r}."
      )
    if sampler not in SAMPLERS:
      raise ValueError(
        f"`sampler` must be one of {SAMPLERS}. "
        f"Received: `sampler` = {sampler!r}."
      )
    if not kl_weight >= 0:
      raise ValueError(
        f"`kl_weight` must be >= 0. Received: `kl_weight` = {kl_weight}."
      )
    self._candidate_counts = arguments.as_counts(candidate_counts)
    self._num_candidates = len(self._candidate_counts)
    self._candidate_encoder = candidate_encoder
    self.ranker = ranker
    self._num_sampled = num_sampled
    self._sampler = sampler
    self._num_pooled = num_pooled
    self._kl_weight = kl_weight
    self._num_codewords = num_codewords
    self._cache_size = cache_size
    self._cache_scope = cache_scope
    self._occurrence_decay = occurrence_decay
    self.index = self._make_index() if sampler.startswith("midx") else None
    self.cache = self._make_cache() if sampler == "xir" else None
    if sampler in ("bir", "xir"):
      self._log_popularity = self._log_popularity_table(self._candidate_counts)
    self._step = state.add_state(self, "step", (), tf.int64)
    self._loss_parts = state.add_state(self, "loss_parts", (3,), tf.float32)

  def refresh(self) -> None:
    """Rebuilds the index of midx from the candidates' embeddings.

    It costs a pass over the catalogue. The result is a function of the weights
    and of the previous index, which is in the checkpoint.
    """
    if self.index is None:
      return
    num_candidates = self._num_candidates
    self.index.refresh(
      tf.concat(
        [
          self._encode(
            tf.range(
              start,
              min(start + _IDS_PER_CHUNK, num_candidates),
              dtype=tf.int64,
            ),
            training=False,
          )
          for start in range(0, num_candidates, _IDS_PER_CHUNK)
        ],
        axis=0,
      )
    )

  def readout(self) -> dict[str, tf.Tensor]:
    """The parts of the last training step's loss, the divergence unweighted."""
    parts = tf.unstack(tf.convert_to_tensor(self._loss_parts))
    return dict(
      zip(("ranker_loss", "retriever_loss", "kl"), parts, strict=True)
    )

  def get_config(self) -> dict:
    """The arguments; `candidate_encoder` and `ranker` are the objects."""
    return super().get_config() | {
      "candidate_counts": self._candidate_counts.tolist(),
      "candidate_encoder": self._candidate_encoder,
      "ranker": self.ranker,
      "num_sampled": self._num_sampled,
      "sampler": self._sampler,
      "num_pooled": self._num_pooled,
      "kl_weight": self._kl_weight,
      "num_codewords": self._num_codewords,
      "cache_size": self._cache_size,
      "cache_scope": self._cache_scope,
      "occurrence_decay": self._occurrence_decay,
    }

  def _loss(
    self, batch: batches.Batch, training: bool
  ) -> tuple[tf.Tensor, Sequence[batches.Term]]:
    self._refuse_known(batch)
    if batch.query_ids is None:
      raise ValueError(
        f"{type(self).__name__} needs `query_ids`, the dense ids of the "
        "queries, which its ranker scores: task(query_embeddings, "
        "candidate_embeddings, candidate_ids=..., "
        "query_ids=features['query_id'])."
      )
    sample = self._sample(batch, training)
    retriever, positive_retriever = self._retriever_scores(
      batch, sample, training
    )
    ranker, positive_ranker = self._ranker_scores(batch, sample, training)
    log_q = sample.log_q, sample.positive_log_q, sample.keep
    parts = tf.stack(
      [
        tf.reduce_sum(batch.row_weights * losses)
        for losses in (
          corr.sampled_softmax(ranker, positive_ranker, *log_q),
          corr.sampled_softmax(retriever, positive_retriever, *log_q),
          corr.sampled_kl(ranker, retriever, sample.log_q, sample.keep),
        )
      ]
    )
    if training:
      of_all = distribute.all_reduce_sum(tf.stop_gradient(parts))
      self._loss_parts.assign(tf.cast(of_all, tf.float32))
      self._step.assign_add(1)
    return parts[0] + parts[1] + self._kl_weight * parts[2], ()

  def _retriever_scores(self, batch, sample, training):
    """M of the sampled [batch, n] and of the positives [batch]."""
    return (
      self._scores_of(batch, sample.ids, training),
      tf.reduce_sum(batch.queries * batch.positives, axis=1),
    )

  def _scores_of(self, batch, ids, training):
    """[batch, n] the retriever's scores of [batch, n] candidates."""
    embeddings = self._encode(tf.reshape(ids, [-1]), training)
    embeddings = tf.reshape(
      tf.cast(embeddings, batch.queries.dtype),
      [-1, ids.shape[1], embeddings.shape[1]],
    )
    return tf.einsum("bd,bnd->bn", batch.queries, embeddings)

  def _ranker_scores(self, batch, sample, training):
    """R of the sampled [batch, n] and of the positives [batch]."""
    ids = tf.concat([batch.ids[:, tf.newaxis], sample.ids], axis=1)
    keywords = {}
    if isinstance(self.ranker, tf.keras.layers.Layer):
      keywords["training"] = training
    if getattr(self.ranker, "takes_histories", False):
      if batch.history_ids is None:
        raise ValueError(
          f"{type(self).__name__} needs `history_ids`: its ranker scores "
          "candidates by what queries chose before."
        )
      keywords["history_ids"] = batch.history_ids
    scores = self.ranker(batch.query_ids, ids, **keywords)
    scores = tf.cast(scores, batch.queries.dtype)
    return scores[:, 1:], scores[:, 0]

  def _encode(self, ids: tf.Tensor, training: bool) -> tf.Tensor:
    embeddings = arguments.encode(self._candidate_encoder, ids, training)
    if embeddings.dtype != tf.float64:
      embeddings = tf.cast(embeddings, tf.float32)
    return self._scored(embeddings)

  def _sample(self, batch: batches.Batch, training: bool) -> Sample:
    seed = seeds.step_seed(self._seed, self._step, seeds.RANKER_DRAWS)
    if self._sampler in ("bir", "xir"):
      return self._sample_from_pool(batch, seed, training)
    if self._sampler == "uniform":
      ids = self._uniform(batch, self._num_sampled, seed)
      # Constant, so it cancels.
      log_q = tf.zeros_like(ids, batch.queries.dtype)
      positive_log_q = tf.zeros_like(batch.ids, batch.queries.dtype)
    elif self._sampler == "sir":
      ids, log_q = self._resampled(batch, seed, training)
      positive_log_q = _own_scores(batch)
    else:
      assert self.index is not None  # The sampler is one of midx.
      ids, log_q = self.index.sample(
        batch.queries,
        self._num_sampled,
        seed=seed,
        first_row=batch.first_row,
      )
      positive_log_q = self.index.log_prob(
        batch.queries, batch.ids[:, tf.newaxis]
      )[:, 0]
    keep = None
    if self._remove_accidental_hits or not self._positive_in_pool:
      keep = ids != batch.ids[:, tf.newaxis]
    return Sample(ids, log_q, positive_log_q, keep)

  def _uniform(
    self, batch: batches.Batch, number: int, seed: tf.Tensor
  ) -> tf.Tensor:
    """[batch, number] int64 candidates, each as likely as any other."""
    return _uniform_ids(batch, number, self._num_candidates, seed)

  def _resampled(
    self, batch: batches.Batch, seed: tf.Tensor, training: bool
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """[batch, num_sampled] ids and log proposals, drawn from uniform pools."""
    pool = self._uniform(batch, self._num_pooled, seed)
    scores = tf.stop_gradient(self._scores_of(batch, pool, training))
    columns = midx.draw_columns(
      scores,
      seeds.uniform_rows(
        seeds.fold_in(seed, 1),
        tf.size(batch.ids),
        self._num_sampled,
        batch.first_row,
      ),
    )
    return (
      tf.gather(pool, columns, batch_dims=1),
      tf.gather(scores, columns, batch_dims=1),
    )

  def _sample_from_pool(
    self, batch: batches.Batch, seed: tf.Tensor, training: bool
  ) -> Sample:
    """Draws from the batch's candidates, and those of the cache for xir."""
    pool_ids, embeddings = batch.pool_ids, batch.pool_embeddings
    if self.cache is not None:
      cache_ids = tf.identity(self.cache.ids)
      cached = tf.cast(self._encode(cache_ids, training), embeddings.dtype)
      pool_ids = tf.concat([pool_ids, cache_ids], axis=0)
      embeddings = tf.concat([embeddings, cached], axis=0)
    # No gradient through the draws or their probabilities.
    scores = tf.stop_gradient(
      tf.matmul(batch.queries, embeddings, transpose_b=True)
    )
    allowed = self._allowed(batch, pool_ids)
    log_popularity = tf.gather(self._log_popularity, pool_ids)
    columns = midx.draw_columns(
      masking.mask_logits(
        scores - tf.cast(log_popularity, scores.dtype), allowed
      ),
      seeds.uniform_rows(
        seed, tf.shape(scores)[0], self._num_sampled, batch.first_row
      ),
    )
    # A row without an allowed column has still drawn something.
    keep = tf.gather(allowed, columns, batch_dims=1)
    if self.cache is not None and training:
      self._update_cache(self.cache, pool_ids, columns, keep)
    return Sample(
      ids=tf.gather(pool_ids, columns),
      log_q=tf.gather(scores, columns, batch_dims=1),
      positive_log_q=_own_scores(batch),
      keep=keep,
    )

  def _allowed(self, batch: batches.Batch, pool_ids: tf.Tensor) -> tf.Tensor:
    """[batch, pool] bool, which columns of the pool may be drawn."""
    rows, columns = tf.size(batch.ids), tf.size(pool_ids)
    allowed = tf.fill([rows, columns], True)
    if not self._positive_in_pool:
      allowed &= ~masking.own_columns(rows, columns, batch.own_offset)
    if self._remove_accidental_hits:
      allowed &= ~masking.accidental_hits(batch.ids, pool_ids)
    return allowed

  def _update_cache(
    self,
    cache: candidate_cache.CandidateCache,
    pool_ids: tf.Tensor,
    columns: tf.Tensor,
    keep: tf.Tensor,
  ) -> None:
    draws = tf.math.unsorted_segment_sum(
      tf.cast(tf.reshape(keep, [-1]), tf.float64),
      tf.reshape(columns, [-1]),
      tf.size(pool_ids),
    )
    if self._cross_replica:
      draws = distribute.all_reduce_sum(draws)
    else:
      # Each replica drew from its own pool.
      pool_ids = distribute.all_gather(pool_ids)
      draws = distribute.all_gather(draws)
    cache.update(pool_ids, draws)

  def _make_index(self) -> inverted_multi_index.InvertedMultiIndex:
    counts = self._candidate_counts
    weights = None
    if self._sampler == "midx_pop":
      weights = np.maximum(counts, 1) ** _POPULARITY_POWER
    # Its size must be known now: under a strategy, the first step is too late
    # to create variables.
    one = self._encode(tf.zeros([1], tf.int64), training=False)
    return inverted_multi_index.InvertedMultiIndex(
      len(counts),
      one.shape[1],
      num_codewords=self._num_codewords,
      weights=weights,
      seed=self._seed,
    )

  def _make_cache(self) -> candidate_cache.CandidateCache:
    return candidate_cache.CandidateCache(
      len(self._candidate_counts),
      self._cache_size,
      cache_scope=self._cache_scope,
      occurrence_decay=self._occurrence_decay,
      seed=self._seed,
    )


def _own_scores(batch: batches.Batch) -> tf.Tensor:
  """[batch] the retriever's scores of the positives, without gradient."""
  return tf.stop_gradient(
    tf.reduce_sum(batch.queries * batch.positives, axis=1)
  )


def _uniform_ids(
  batch: batches.Batch, num_sampled: int, num_candidates: int, seed: tf.Tensor
) -> tf.Tensor:
  """[batch, num_sampled] int64 candidates, each as likely as any other."""
  rows = tf.size(batch.ids)
  uniform = seeds.uniform_rows(seed, rows, 2 * num_sampled, batch.first_row)
  uniform = tf.reshape(tf.cast(uniform, tf.float64), [rows, num_sampled, 2])
  # 46 bits: 23 would leave candidates out of a catalogue of millions.
  uniform = uniform[:, :, 0] + 2.0**-23 * uniform[:, :, 1]
  ids = tf.cast(uniform * num_candidates, tf.int64)
  return tf.minimum(ids, num_candidates - 1)
