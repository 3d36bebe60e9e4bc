"""A batch, ready to be scored, and the terms that a loss is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from xir_tfrs import distribute
from xir_tfrs.ops import chunks, forms, fused, resampling, xla
from xir_tfrs.ops import ids as ids_lib


@dataclasses.dataclass(frozen=True)
class Inputs:
  """The arguments of a call; see `RetrievalTask.call`."""

  query_embeddings: tf.Tensor
  candidate_embeddings: tf.Tensor
  candidate_ids: tf.Tensor | None = None
  query_ids: tf.Tensor | None = None
  known_candidate_ids: tf.Tensor | tf.RaggedTensor | None = None
  known_rows: tf.Tensor | None = None
  sample_weight: tf.Tensor | None = None
  history_ids: tf.Tensor | tf.RaggedTensor | None = None


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
      the row, where the caller gave them; ragged, or padded. With
      `known_rows` [queries, None].
    known_rows: [batch] the entry of each row in `known_ids`, where rows share
      entries.
    history_ids: [batch, None] integer ids of candidates that each row's query
      chose before, where the caller gave them.
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
  known_ids: tf.Tensor | tf.RaggedTensor | None = None
  known_rows: tf.Tensor | None = None
  history_ids: tf.Tensor | tf.RaggedTensor | None = None

  def own(self, of_pool: tf.Tensor) -> tf.Tensor:
    """[batch] entries of a [pool] tensor at the rows' own columns."""
    rows = tf.range(tf.size(self.ids), dtype=tf.int64)
    return tf.gather(of_pool, rows + self.own_offset)

  def first(self, num_rows: int) -> "Batch":
    """Only the first rows, each with weight 1; the pool is unchanged."""
    histories = self.history_ids
    known, rows = self.known_ids, self.known_rows
    if rows is not None:
      rows = rows[:num_rows]
    elif known is not None:
      known = known[:num_rows]
    return dataclasses.replace(
      self,
      queries=self.queries[:num_rows],
      positives=self.positives[:num_rows],
      ids=self.ids[:num_rows],
      row_weights=tf.ones([num_rows], self.row_weights.dtype),
      query_ids=None if self.query_ids is None else self.query_ids[:num_rows],
      known_ids=known,
      known_rows=rows,
      history_ids=None if histories is None else histories[:num_rows],
    )


@dataclasses.dataclass(frozen=True)
class Term:
  """The part of a loss over one pool, with all its inputs.

  Attributes:
    batch: The rows.
    pool: The candidates they are scored against.
    form: Form of the loss.
    share: Factor of the term in the loss.
    positive_log_q: [batch] log proposal of the positives; None: they are not
      corrected.
    resampler: How the pool is drawn from; None: every column counts once.
    mask_own_column: Whether the row's own column is left out.
    mask_accidental_hits: Whether all columns with the positive's id are left
      out.
    count_draws: Whether to count the draws.
    row_chunk_size: Rows whose logits are held at a time.
  """

  batch: Batch
  pool: fused.Pool
  form: forms.Form
  share: float = 1.0
  positive_log_q: tf.Tensor | None = None
  resampler: fused.Resampler | None = None
  mask_own_column: bool = False
  mask_accidental_hits: bool = False
  count_draws: bool = False
  row_chunk_size: int | None = None

  def loss(self) -> tuple[tf.Tensor, tf.Tensor]:
    """(weighted sum of the rows' losses, [pool] draws) of this term."""
    batch = self.batch
    return fused.pool_softmax(
      batch.queries,
      batch.positives,
      batch.ids,
      batch.row_weights,
      self.pool,
      form=self.form,
      positive_log_q=self.positive_log_q,
      resampler=self.resampler,
      mask_own_column=self.mask_own_column,
      mask_accidental_hits=self.mask_accidental_hits,
      known_ids=batch.known_ids,
      known_rows=batch.known_rows,
      count_draws=self.count_draws,
      row_chunk_size=self.row_chunk_size,
    )

  def first(self, num_rows: int) -> "Term":
    """The term for only the first rows, each with weight 1."""
    log_q = self.positive_log_q
    return dataclasses.replace(
      self,
      batch=self.batch.first(num_rows),
      positive_log_q=None if log_q is None else log_q[:num_rows],
    )

  def log_importance_weights(self) -> tf.Tensor:
    """[batch, pool] log weights that the pool is resampled by; -inf: never."""
    mask = fused.column_mask(
      self.form,
      self.batch.ids,
      self.pool,
      mask_own_column=self.mask_own_column,
      mask_accidental_hits=self.mask_accidental_hits,
      known_ids=self.batch.known_ids,
      known_rows=self.batch.known_rows,
    )
    logits = tf.matmul(
      self.batch.queries, self.pool.embeddings, transpose_b=True
    )
    return resampling.log_importance_weights(
      logits, self.pool.log_q_by_copies(), mask.keep(0, chunks.size(logits))
    )


def make(
  inputs: Inputs,
  ids: tf.Tensor,
  scored: Callable[[tf.Tensor], tf.Tensor],
  *,
  temperature: float,
  cross_replica: bool,
) -> Batch:
  """Makes the batch from the arguments of a call.

  Args:
    inputs: The arguments of the call.
    ids: [batch] int64 ids of the candidates.
    scored: [n, dim] embeddings -> those whose inner products are scores.
    temperature: Divides the scores.
    cross_replica: Whether the pool is the global batch.

  Raises:
    ValueError: Shapes do not agree, or XLA compiles the step and they are not
      known.
  """
  queries = _at_least_float32(inputs.query_embeddings)
  positives = tf.cast(inputs.candidate_embeddings, queries.dtype)
  _require_same_rows(queries, positives, ids)
  _require_known_size(queries)
  known_ids = _as_known_ids(inputs, ids)
  query_ids = _of_rows("query_ids", inputs.query_ids, ids)
  known_rows = _of_rows("known_rows", inputs.known_rows, ids)
  first_row, global_batch_size = distribute.global_rows(tf.shape(ids)[0])
  checks = _run_time_checks(
    ids,
    query_embeddings=queries,
    candidate_embeddings=positives,
    query_ids=query_ids,
    known_rows=known_rows,
    known_candidate_ids=known_ids if known_rows is None else None,
  )
  if distribute.num_replicas() > 1:
    # Gathering zero rows from all replicas crashes TensorFlow.
    checks.append(
      tf.debugging.assert_positive(
        global_batch_size,
        "The batch has no row on any replica: leave such batches out.",
      )
    )
  with tf.control_dependencies(checks):
    queries, positives = tf.identity(queries), tf.identity(positives)
    ids = tf.identity(ids)
  row_weights = tf.fill(
    tf.shape(ids), 1.0 / tf.cast(global_batch_size, queries.dtype)
  )
  if inputs.sample_weight is not None:
    row_weights *= _as_row_weights(inputs.sample_weight, ids, queries.dtype)
  positives = scored(positives)
  pool_embeddings, pool_ids = positives, ids
  own_offset = tf.zeros_like(first_row)
  if cross_replica:
    pool_embeddings = distribute.all_gather(positives)
    pool_ids = distribute.all_gather(ids)
    own_offset = first_row
  return Batch(
    queries=scored(queries) / temperature,
    positives=positives,
    ids=ids,
    row_weights=row_weights,
    first_row=first_row,
    pool_embeddings=pool_embeddings,
    pool_ids=pool_ids,
    own_offset=own_offset,
    query_ids=query_ids,
    known_ids=known_ids,
    known_rows=known_rows,
    history_ids=inputs.history_ids,
  )


def _require_same_rows(
  queries: tf.Tensor, positives: tf.Tensor, ids: tf.Tensor
) -> None:
  fits = all(x.shape.rank in (None, 2) for x in (queries, positives))
  if not (fits and queries.shape.is_compatible_with(positives.shape)):
    raise ValueError(
      "`query_embeddings` and `candidate_embeddings` must both be "
      f"[batch, dim]. Received: {queries.shape} and {positives.shape}."
    )
  if not queries.shape[:1].is_compatible_with(ids.shape):
    raise ValueError(
      "`candidate_ids` must be [batch], like the rows of the embeddings. "
      f"Received: {ids.shape} for {queries.shape}."
    )


def _run_time_checks(
  ids: tf.Tensor, **of_rows: tf.Tensor | tf.RaggedTensor | None
) -> list[tf.Operation]:
  """Checks the numbers of rows that are not known while a step is traced.

  Other numbers would be broadcast, or read in part, without an error.
  """
  checks = []
  for name, x in of_rows.items():
    if x is None or None not in (x.shape[0], ids.shape[0]):
      continue
    checks.append(
      tf.debugging.assert_equal(
        tf.cast(_num_rows(x), tf.int64),
        tf.size(ids, tf.int64),
        f"`{name}` and `candidate_ids` must have the same number of rows.",
      )
    )
  return checks


def _num_rows(x: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
  return x.nrows() if isinstance(x, tf.RaggedTensor) else tf.shape(x)[0]


def _require_known_size(queries: tf.Tensor) -> None:
  if xla.compiling() and queries.shape[0] is None:
    raise ValueError(
      "A step that XLA compiles needs to know how many rows a batch has: make "
      "batches with `drop_remainder=True`. "
      f"Received: `query_embeddings` of shape {queries.shape}."
    )


def _as_row_weights(
  sample_weight: Any, ids: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
  """[batch] `sample_weight`, checked; Keras may give it a last axis of 1."""
  weights = tf.convert_to_tensor(sample_weight)
  size = ids.shape[0]
  fits = any(weights.shape.is_compatible_with(x) for x in ([size], [size, 1]))
  if not fits or weights.dtype == tf.string:
    raise ValueError(
      "`sample_weight` must be [batch] numbers, like the rows of the "
      f"embeddings. Received: {weights.dtype.name} of shape {weights.shape} "
      f"for {ids.shape} rows."
    )
  return tf.reshape(tf.cast(weights, dtype), tf.shape(ids))


def _of_rows(name: str, given: Any, ids: tf.Tensor) -> tf.Tensor | None:
  """[batch] int64 integers, checked; None if they are not given."""
  if given is None:
    return None
  given = ids_lib.dense(name, given)
  if not given.shape.is_compatible_with(ids.shape):
    raise ValueError(
      f"`{name}` must be [batch], like `candidate_ids`. Received: "
      f"{given.shape} for {ids.shape} rows."
    )
  return tf.cast(given, tf.int64)


def _as_known_ids(
  inputs: Inputs, ids: tf.Tensor
) -> tf.Tensor | tf.RaggedTensor | None:
  """`known_candidate_ids` as int64, checked."""
  known = inputs.known_candidate_ids
  if known is None:
    if inputs.known_rows is not None:
      raise ValueError(
        "`known_rows` are the rows' entries in `known_candidate_ids`: give "
        "both, or neither."
      )
    return None
  if isinstance(known, tf.RaggedTensor):
    fits = known.ragged_rank == 1
  else:
    known = tf.convert_to_tensor(known)
    fits = known.shape.rank == 2
  if not (fits and (known.dtype.is_integer or _is_empty(known))):
    raise ValueError(
      "`known_candidate_ids` must be a tf.RaggedTensor [batch, None], or a "
      f"tensor [batch, n] padded with -1, of integers. Received: {known!r}."
    )
  rows = ids.shape if inputs.known_rows is None else [None]
  if not known.shape[:1].is_compatible_with(rows):
    raise ValueError(
      "`known_candidate_ids` must have an entry for each row, or `known_rows` "
      f"must say which entry is whose. Received: {known.shape[0]} entries for "
      f"{ids.shape[0]} rows."
    )
  return tf.cast(known, tf.int64)


def _is_empty(known: tf.Tensor | tf.RaggedTensor) -> bool:
  """Whether it has no id: `tf.ragged.constant([[], []])` is of floats."""
  values = known.values if isinstance(known, tf.RaggedTensor) else known
  return values.shape.num_elements() == 0


def _at_least_float32(embeddings: tf.Tensor) -> tf.Tensor:
  embeddings = tf.convert_to_tensor(embeddings)
  if embeddings.dtype == tf.float64:
    return embeddings
  return tf.cast(embeddings, tf.float32)
