"""What all retrieval tasks share: arguments, scores, the global batch."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from xir_tfrs import distribute
from xir_tfrs.layers import state
from xir_tfrs.ops import fused, proposals
from xir_tfrs.types import CandidateEncoder


@dataclasses.dataclass(frozen=True)
class Batch:
  """A batch, ready to be scored; batch = this replica's rows.

  Attributes:
    queries: [batch, dim] such that scores are inner products: normalised if
      asked for, and divided by the temperature.
    positives: [batch, dim] the rows' own candidates.
    ids: [batch] int64, their ids.
    row_weights: [batch] share of each row in the mean over the global batch.
    first_row: Scalar int64, number of row 0 in the global batch.
    pool_embeddings: [pool, dim] candidates of the batch; of the global batch
      with `cross_replica`.
    pool_ids: [pool] int64, their ids.
    own_offset: Scalar int64, column of row 0's positive in the pool.
    query_ids: [batch] int64 ids of the queries, where the caller gave them.
    known_ids: [batch, None] int64 ids of candidates that are no negatives of
      the row, where the caller gave them.
  """

  queries: tf.Tensor
  positives: tf.Tensor
  ids: tf.Tensor
  row_weights: tf.Tensor
  first_row: tf.Tensor
  pool_embeddings: tf.Tensor
  pool_ids: tf.Tensor
  own_offset: tf.Tensor
  query_ids: tf.Tensor | None = None
  known_ids: tf.RaggedTensor | None = None


class RetrievalTask(tf.keras.layers.Layer):
  """Base of the tasks. A method is `_loss`, from a `Batch` to a scalar.

  Called as `task(query_embeddings, candidate_embeddings, candidate_ids=...)`
  it returns this replica's share of the mean loss over the global batch: the
  sum of its rows' losses / the number of rows on all replicas. So the
  gradients that an optimizer sums over replicas are those of the global mean,
  and outside a strategy it is simply the mean.
  """

  def __init__(
    self,
    *,
    temperature: float = 1.0,
    normalize: bool = False,
    remove_accidental_hits: bool = False,
    positive_in_pool: bool = True,
    positive_in_partition: bool = True,
    robustness: float = 0.0,
    cross_replica: bool = True,
    row_chunk_size: int | None = None,
    seed: int = 0,
    name: str | None = None,
  ) -> None:
    """Takes the shared arguments.

    Args:
      temperature: What scores are divided by; > 0.
      normalize: Whether scores are cosines instead of inner products.
      remove_accidental_hits: Whether pool columns with the id of the row's
        positive are left out, its own column included.
      positive_in_pool: Whether the row's own positive is also a candidate of
        its pool, beside its place as the positive.
      positive_in_partition: Whether the positive is a term of the softmax's
        denominator. Otherwise the denominator has other candidates only, as in
        equation 3 of Chen et al. 2022 as it is printed, and as in decoupled
        contrastive learning (Yeh et al. 2022): a positive that wins already is
        still pulled. The loss may then be negative; columns with the id of
        the positive are left out in any case.
      robustness: Above 0, up to 1: the generalized cross entropy (1 - p^q) / q
        of Zhang and Sabuncu 2018 in place of the cross entropy -log p, with
        this q and the positive's probability p among all candidates, as the
        pool estimates it. Rows count by p^q, so positives that the model finds
        unlikely count less.
      cross_replica: Whether the pool is the global batch; otherwise each
        replica's rows are scored against its own candidates only.
      row_chunk_size: Rows whose logits are held at a time; None chooses it
        from the sizes. Changes memory and speed, not the result.
      seed: Base seed of the draws.
      name: Name of the layer.

    Raises:
      ValueError: An argument out of its range.
    """
    # The loss is computed in float32 whatever the policy of the towers.
    super().__init__(name=name, autocast=False)
    require_positive("temperature", temperature)
    if row_chunk_size is not None:
      require_positive("row_chunk_size", row_chunk_size)
    self._temperature = temperature
    self._normalize = normalize
    self._remove_accidental_hits = remove_accidental_hits
    if not 0.0 <= robustness <= 1.0:
      raise ValueError(
        "`robustness` must lie in [0, 1]. "
        f"Received: `robustness` = {robustness}."
      )
    self._positive_in_pool = positive_in_pool
    self._positive_in_partition = positive_in_partition
    self._robustness = robustness
    self._cross_replica = cross_replica
    self._row_chunk_size = row_chunk_size
    self._seed = seed

  @property
  def normalize(self) -> bool:
    """Whether scores are cosines."""
    return self._normalize

  @property
  def temperature(self) -> float:
    """What scores are divided by."""
    return self._temperature

  def call(
    self,
    query_embeddings: tf.Tensor,
    candidate_embeddings: tf.Tensor,
    *,
    candidate_ids: tf.Tensor | None = None,
    query_ids: tf.Tensor | None = None,
    known_candidate_ids: tf.RaggedTensor | None = None,
    sample_weight: tf.Tensor | None = None,
    training: bool = True,
  ) -> tf.Tensor:
    """Loss of a batch whose rows are (query, positive candidate) pairs.

    Args:
      query_embeddings: [batch, dim] float tensor.
      candidate_embeddings: [batch, dim] float tensor: row i is the positive of
        query i, and a negative of the others.
      candidate_ids: [batch] dense integer ids of the candidates.
      query_ids: [batch] dense integer ids of the queries, for tasks that score
        with more than the embeddings; others ignore them.
      known_candidate_ids: [batch, None] integer ids of the candidates that
        each query is known to want, such as its training interactions: they
        are not negatives of its row. The row's own positive may be among
        them; `remove_accidental_hits` alone decides of its id. None: only
        what that says is left out.
      sample_weight: [batch] weight of each row's loss; None: 1.
      training: Whether the state of the task moves; a Python bool.

    Returns:
      Scalar float32 (float64 for float64 embeddings): this replica's share of
      the weighted mean, sum_i sample_weight_i loss_i / global batch size.

    Raises:
      ValueError: `candidate_ids` is missing, shapes do not agree, or
        `training` is a tensor.
    """
    if candidate_ids is None:
      raise ValueError(
        f"{type(self).__name__} needs `candidate_ids`, the dense ids of the "
        "candidates in the batch: task(query_embeddings, "
        "candidate_embeddings, candidate_ids=features['candidate_id'])."
      )
    if not isinstance(training, bool):
      raise ValueError(
        "`training` must be a Python bool: it decides when the step function "
        f"is traced whether state moves. Received: `training` = {training!r}."
      )
    return self._traced(
      query_embeddings,
      candidate_embeddings,
      candidate_ids,
      query_ids,
      known_candidate_ids,
      sample_weight,
      training,
    )

  def readout(self) -> dict[str, tf.Tensor]:
    """Scalars worth a line in the log of a run, by name; reads state only."""
    return {}

  def refresh(self) -> None:
    """Renews what is too dear for every step; call it before each epoch.

    It must leave the task as a function of the weights and the step, so that
    a run resumed at the start of an epoch goes on exactly.
    """

  def get_config(self) -> dict:
    return {
      "temperature": self._temperature,
      "normalize": self._normalize,
      "remove_accidental_hits": self._remove_accidental_hits,
      "positive_in_pool": self._positive_in_pool,
      "positive_in_partition": self._positive_in_partition,
      "robustness": self._robustness,
      "cross_replica": self._cross_replica,
      "row_chunk_size": self._row_chunk_size,
      "seed": self._seed,
      "name": self.name,
    }

  def _loss(self, batch: Batch, training: bool) -> tf.Tensor:
    raise NotImplementedError

  # Nothing below needs AutoGraph, which would double the time of tracing. Not
  # at `call`: Keras would no longer see the default of `training`.
  @tf.autograph.experimental.do_not_convert
  def _traced(
    self,
    query_embeddings,
    candidate_embeddings,
    candidate_ids,
    query_ids,
    known_candidate_ids,
    sample_weight,
    training,
  ) -> tf.Tensor:
    distribute.require_scope(self.variables, self.name)
    batch = self._batch(
      query_embeddings,
      candidate_embeddings,
      candidate_ids,
      query_ids,
      known_candidate_ids,
      sample_weight,
    )
    # Where a dataset ends unannounced, `fit` finds out by a step whose batch
    # never comes. TensorFlow still runs what needs no batch, so without this
    # counters would count that step.
    with tf.control_dependencies([batch.ids]):
      return self._loss(batch, training)

  def _batch(
    self,
    query_embeddings,
    candidate_embeddings,
    candidate_ids,
    query_ids,
    known_candidate_ids,
    sample_weight,
  ) -> Batch:
    queries = _at_least_float32(query_embeddings)
    positives = tf.cast(candidate_embeddings, queries.dtype)
    if not queries.shape.is_compatible_with(positives.shape):
      raise ValueError(
        "`query_embeddings` and `candidate_embeddings` must both be "
        f"[batch, dim]. Received: {queries.shape} and {positives.shape}."
      )
    ids = tf.cast(candidate_ids, tf.int64)
    if not queries.shape[:1].is_compatible_with(ids.shape):
      raise ValueError(
        "`candidate_ids` must be [batch], like the rows of the embeddings. "
        f"Received: {ids.shape} for {queries.shape}."
      )
    first_row, global_batch_size = distribute.global_rows(tf.shape(ids)[0])
    if distribute.num_replicas() > 1:
      # To gather nothing from everyone kills the process.
      some = tf.debugging.assert_positive(
        global_batch_size,
        "The batch has no row on any replica: leave such batches out.",
      )
      with tf.control_dependencies([some]):
        positives, ids = tf.identity(positives), tf.identity(ids)
    row_weights = tf.fill(
      tf.shape(ids), 1.0 / tf.cast(global_batch_size, queries.dtype)
    )
    if sample_weight is not None:
      row_weights *= tf.reshape(
        tf.cast(sample_weight, queries.dtype), tf.shape(ids)
      )
    positives = self._scored(positives)
    pool_embeddings, pool_ids, own_offset = (
      positives,
      ids,
      tf.zeros_like(first_row),
    )
    if self._cross_replica:
      pool_embeddings = distribute.all_gather(positives)
      pool_ids = distribute.all_gather(ids)
      own_offset = first_row
    return Batch(
      queries=self._scored(queries) / self._temperature,
      positives=positives,
      ids=ids,
      row_weights=row_weights,
      first_row=first_row,
      pool_embeddings=pool_embeddings,
      pool_ids=pool_ids,
      own_offset=own_offset,
      query_ids=None if query_ids is None else tf.cast(query_ids, tf.int64),
      known_ids=_as_known_ids(known_candidate_ids),
    )

  def _scored(self, embeddings: tf.Tensor) -> tf.Tensor:
    """Embeddings whose inner product is the score, before the temperature."""
    if self._normalize:
      return tf.math.l2_normalize(embeddings, axis=1)
    return embeddings

  def _encoded(
    self,
    candidate_encoder: CandidateEncoder,
    ids: tf.Tensor,
    dtype: tf.DType,
    training: bool,
  ) -> tf.Tensor:
    """[n, dim] embeddings of [n] ids, as they are scored."""
    embeddings = encode(candidate_encoder, ids, training)
    return self._scored(tf.cast(embeddings, dtype))

  def _pool_loss(
    self,
    batch: Batch,
    pool: fused.Pool,
    positive_log_q: tf.Tensor | None = None,
    resampler: fused.Resampler | None = None,
    logq_corrected: bool = False,
    count_draws: bool = False,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    return fused.pool_softmax(
      batch.queries,
      batch.positives,
      batch.ids,
      batch.row_weights,
      pool,
      positive_log_q=positive_log_q,
      resampler=resampler,
      logq_corrected=logq_corrected,
      robustness=self._robustness,
      positive_in_partition=self._positive_in_partition,
      mask_own_column=not self._positive_in_pool,
      mask_accidental_hits=self._remove_accidental_hits,
      known_ids=batch.known_ids,
      count_draws=count_draws,
      row_chunk_size=self._row_chunk_size,
    )

  def _log_popularity_table(self, counts: np.ndarray) -> tf.Variable:
    """[num_candidates] variable, so that a step gathers only its pool's."""
    return state.add_state(
      self,
      "log_popularity",
      counts.shape,
      tf.float32,
      lambda: proposals.log_popularity(counts),
    )


def require_positive(name: str, value: float) -> None:
  """Raises ValueError unless `value` > 0."""
  if not value > 0:
    raise ValueError(
      f"`{name}` must be positive. Received: `{name}` = {value}."
    )


def require_cross_entropy(
  robustness: float, positive_in_partition: bool, task: str
) -> None:
  """Raises ValueError where a task has no other shapes of the loss."""
  if robustness or not positive_in_partition:
    raise ValueError(
      f"{task} has neither `robustness` nor `positive_in_partition` = False. "
      f"Received: `robustness` = {robustness}, `positive_in_partition` = "
      f"{positive_in_partition}."
    )


def refuse_known(batch: Batch, task: str) -> None:
  """Raises ValueError for ids that a task would not leave out."""
  if batch.known_ids is not None:
    raise ValueError(
      f"{task} scores candidates that `known_candidate_ids` cannot be left out "
      "of: do not give any."
    )


def require_encoder(candidate_encoder: CandidateEncoder) -> None:
  """Raises ValueError unless it can be called."""
  if not callable(candidate_encoder):
    raise ValueError(
      "`candidate_encoder` must map candidate ids to embeddings, as the "
      f"candidate tower does. Received: {candidate_encoder!r}."
    )


def encode(
  candidate_encoder: CandidateEncoder, ids: tf.Tensor, training: bool
) -> tf.Tensor:
  """[n, dim] embeddings of [n] ids, with `training` for Keras encoders."""
  if isinstance(candidate_encoder, tf.keras.layers.Layer):
    return candidate_encoder(ids, training=training)
  return candidate_encoder(ids)


def size_of_catalogue(candidate_encoder: CandidateEncoder) -> int | None:
  """Number of candidates an encoder is for, where it says so.

  A `models.Tower` says it by `vocabulary_size`, a Keras `Embedding` by
  `input_dim`.
  """
  for name in ("vocabulary_size", "input_dim"):
    size = getattr(candidate_encoder, name, None)
    if size is not None:
      return int(size)
  return None


def require_num_candidates(
  num_candidates: int | None, candidate_encoder: CandidateEncoder
) -> int:
  """`num_candidates`, or else what the encoder says.

  Raises:
    ValueError: Not given, and the encoder does not say; or not positive.
  """
  if num_candidates is None:
    num_candidates = size_of_catalogue(candidate_encoder)
  if num_candidates is None:
    raise ValueError(
      "`num_candidates` must say how many candidates there are: "
      f"{candidate_encoder!r} does not."
    )
  require_positive("num_candidates", num_candidates)
  return num_candidates


def as_counts(candidate_counts: Sequence[int] | np.ndarray) -> np.ndarray:
  """Training counts as [num_candidates] int64.

  Raises:
    ValueError: Not a vector, empty, or not whole numbers >= 0.
  """
  counts = np.asarray(candidate_counts)
  if counts.ndim != 1 or not counts.size:
    raise ValueError(
      "`candidate_counts` must be a vector [num_candidates] of training "
      f"counts. Received: shape {counts.shape}."
    )
  whole = counts.astype(np.int64)
  if (whole != counts).any() or whole.min() < 0:
    first = int(np.argmax((whole != counts) | (whole < 0)))
    raise ValueError(
      "`candidate_counts` must be whole numbers >= 0. "
      f"Received: `candidate_counts[{first}]` = {counts[first]}."
    )
  return whole


def _as_known_ids(known) -> tf.RaggedTensor | None:
  """`known_candidate_ids` as int64, checked."""
  if known is None:
    return None
  if not isinstance(known, tf.RaggedTensor) or known.ragged_rank != 1:
    raise ValueError(
      "`known_candidate_ids` must be a tf.RaggedTensor [batch, None]. "
      f"Received: {known!r}."
    )
  return tf.cast(known, tf.int64)


def _at_least_float32(embeddings: tf.Tensor) -> tf.Tensor:
  embeddings = tf.convert_to_tensor(embeddings)
  if embeddings.dtype == tf.float64:
    return embeddings
  return tf.cast(embeddings, tf.float32)
