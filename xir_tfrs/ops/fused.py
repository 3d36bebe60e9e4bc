"""A softmax over a pool, loss and gradient in one pass over chunks of rows.

The losses of the library are made of the partition of a pool,

    log(e^{s_p} + sum_j e^{t_j}) - s_p,   t_j = s_j + log a_j,

with `a_j` = 1 / q_j (sampled softmax), or the count n_j of column j in a
resample (BIR, XIR), or 0 where a column is masked; the corrected log-Q leaves
e^{s_p} out and weighs the row. Their gradient needs only e^{t_j} and two
numbers per row: so each chunk's logits are made, used for the loss and for
the gradient, and forgotten. No [batch, pool] matrix is ever held. `losses` has
the same in dense form; the tests hold the two equal.

Axes: batch = rows, one per query; pool = candidates; dim = embedding size.
"""

import dataclasses
import functools

import tensorflow as tf

from xir_tfrs.ops import losses, masking, proposals, resampling

# Elements of a chunk's logits: 2 MiB of float32, which stays in the cache of
# one core.
_CHUNK_ELEMENTS = 2**19

# Sums of terms relative to the highest logit: less than this is no term.
_NOTHING = 1e-30


@dataclasses.dataclass(frozen=True)
class Pool:
  """What the rows of a batch are scored against.

  Attributes:
    embeddings: [pool, dim] float tensor.
    ids: [pool] integer ids.
    log_q: [pool] log of the proposal by which the candidates arrived.
    own_offset: If the rows' positives are columns of the pool: the column of
      row 0's. None: they are not.
  """

  embeddings: tf.Tensor
  ids: tf.Tensor
  log_q: tf.Tensor
  own_offset: tf.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Resampler:
  """How candidates are drawn from a pool.

  Attributes:
    num_resampled: Draws per row.
    method: One of `resampling.METHODS`.
    seed: [2] integer seed.
    first_row: Number of row 0 in the global batch.
  """

  num_resampled: int
  method: str
  seed: tf.Tensor
  first_row: int | tf.Tensor = 0


def pool_softmax(
  queries: tf.Tensor,
  positives: tf.Tensor,
  positive_ids: tf.Tensor,
  row_weights: tf.Tensor,
  pool: Pool,
  *,
  positive_log_q: tf.Tensor | None = None,
  resampler: Resampler | None = None,
  logq_corrected: bool = False,
  robustness: float = 0.0,
  positive_in_partition: bool = True,
  mask_own_column: bool = False,
  mask_accidental_hits: bool = False,
  known_ids: tf.RaggedTensor | None = None,
  count_draws: bool = True,
  row_chunk_size: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Weighted sum over the rows of a softmax loss against a pool.

  Without a resampler: the sampled softmax, where column j counts with
  `s_j - log_q_j` and the positive with `s_p - positive_log_q`. With one: the
  resampled softmax, where `log_q` serves the weights only, and both count
  with their plain scores. With `logq_corrected`: the loss of that name in
  `losses`, against all columns but those of the positive's candidate.

  Args:
    queries: [batch, dim] float32 or float64; scores are inner products, so
      divide by the temperature and normalise before.
    positives: [batch, dim] embeddings of the rows' positives.
    positive_ids: [batch] their ids.
    row_weights: [batch] weight of each row's loss; no gradient.
    pool: What the rows are scored against.
    positive_log_q: [batch] log proposal of the positives; None: they are not
      corrected.
    resampler: How to draw from the pool; None: every column counts once.
    logq_corrected: The corrected log-Q; it needs `positive_log_q`, takes no
      resampler, and masks own columns and accidental hits in any case.
    robustness: Power of the generalized cross entropy, of the positive's
      probability in the whole catalogue: with n columns, or n draws, that is
      estimated by e^{s_p} over a mean of n terms, e^{s_p} / (partition / n).
      0: the cross entropy.
    positive_in_partition: Whether e^{s_p} is a term of the partition. If not,
      own columns and accidental hits are masked in any case, and rows without
      other columns have loss 0 and no gradient.
    mask_own_column: Leave out the column that is the row's own positive: for
      resampling, it is not drawn; otherwise the positive counts once. If
      `positive_log_q` is given it must then be the own column's: that column
      stands for the positive and takes its gradient, so `positives` must be
      rows of `pool.embeddings`.
    mask_accidental_hits: Leave out every column with the positive's id.
    known_ids: [batch, None] ids of other positives of each row's query, whose
      columns are left out too; those of the row's positive are not touched.
    count_draws: Whether to sum the draws up, which costs a pass.
    row_chunk_size: Rows per chunk; None: chosen from the size of the pool.

  Returns:
    (loss, draws): the scalar `sum_i row_weights_i loss_i`, and [pool] float64,
    how often each column was drawn, summed over the rows; zeros without a
    resampler, or without `count_draws`.

  Raises:
    ValueError: `logq_corrected` with a resampler or `robustness`, or without
      `positive_log_q`.
  """
  if logq_corrected:
    if resampler is not None or positive_log_q is None or robustness:
      raise ValueError(
        "`logq_corrected` takes the proposal of the positives, "
        "`positive_log_q`, and no resampler and no `robustness`."
      )
  if logq_corrected or not positive_in_partition:
    # The own column has the positive's id: one mask is both.
    mask_own_column, mask_accidental_hits = False, True
  dtype = queries.dtype
  batch = tf.shape(queries)[0]
  pool_size = tf.shape(pool.embeddings)[0]
  chunk = _chunk_size(row_chunk_size, batch, pool_size)
  row_weights = tf.stop_gradient(tf.cast(row_weights, dtype))
  log_q = tf.stop_gradient(tf.cast(pool.log_q, dtype))
  # Where it is corrected alike, the own column can stand for the positive
  # itself, which costs nothing; leaving it out costs two passes over the
  # logits.
  column_is_positive = (
    resampler is None
    and positive_log_q is not None
    and mask_own_column
    and pool.own_offset is not None
  )
  corrections = tf.zeros([batch], dtype)
  if positive_log_q is not None and resampler is None:
    corrections = tf.stop_gradient(tf.cast(positive_log_q, dtype))
  log_num_terms = tf.math.log(
    tf.cast(pool_size if resampler is None else resampler.num_resampled, dtype)
  )
  if logq_corrected:
    log_others = proposals.log_complement(corrections)
    corrections = tf.zeros([batch], dtype)

  known = None
  if known_ids is not None:
    known = masking.known_columns(known_ids, positive_ids, pool.ids)

  def known_positives(rows: slice) -> tf.Tensor:
    splits = known.row_splits[rows.start : rows.stop + 1]
    part = tf.RaggedTensor.from_row_splits(
      known.values[splits[0] : splits[-1]], splits - splits[0], validate=False
    )
    return masking.columns_mask(part, pool_size)

  def keep_columns(rows: slice) -> tf.Tensor | None:
    left_out = []
    if mask_accidental_hits:
      left_out.append(masking.accidental_hits(positive_ids[rows], pool.ids))
    if known is not None:
      left_out.append(known_positives(rows))
    own = None
    if mask_own_column and pool.own_offset is not None:
      if column_is_positive and not left_out:
        return None
      own = masking.own_columns(
        rows.stop - rows.start,
        pool_size,
        tf.cast(rows.start, tf.int64) + tf.cast(pool.own_offset, tf.int64),
      )
      if not column_is_positive:
        left_out.append(own)
    if not left_out:
      return None
    keep = ~functools.reduce(tf.logical_or, left_out)
    return keep | own if column_is_positive else keep

  def column_terms(
    logits: tf.Tensor, keep: tf.Tensor | None, rows: slice
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(terms [rows, pool], highest [rows], draws [pool]); terms are a_j
    e^{s_j - highest}, and exp is taken once per logit."""
    if resampler is None:
      logits = logits - log_q
    if keep is not None:
      logits = masking.mask_logits(logits, keep)
    highest = tf.reduce_max(logits, axis=1)
    # A row with every column masked has terms 0, not NaN.
    highest = tf.where(tf.math.is_finite(highest), highest, 0.0)
    terms = tf.exp(logits - highest[:, tf.newaxis])
    if resampler is None:
      return terms, highest, tf.zeros([pool_size], tf.float64)
    counts = resampling.counts_from_weights(
      # Relative to the rarest candidate: 1 / q alone would overflow for one
      # in 10^38.
      terms * tf.exp(tf.reduce_min(log_q) - log_q),
      resampler.num_resampled,
      seed=resampler.seed,
      method=resampler.method,
      first_row=tf.cast(resampler.first_row, tf.int64)
      + tf.cast(rows.start, tf.int64),
    )
    counts = tf.cast(counts, dtype)
    draws = tf.zeros([pool_size], tf.float64)
    if count_draws:
      draws = tf.cast(tf.reduce_sum(counts, axis=0), tf.float64)
    return counts * terms, highest, draws

  @tf.custom_gradient
  def run(queries, positives, pool_embeddings):
    def body(start, loss, draws, d_queries, d_positives, d_pool):
      rows = slice(start, tf.minimum(start + chunk, batch))
      q, v, weight = queries[rows], positives[rows], row_weights[rows]
      logits = tf.matmul(q, pool_embeddings, transpose_b=True)
      if column_is_positive:
        # The very number that the partition has: a rounding apart, a loss
        # near 0 could be negative.
        columns = tf.cast(tf.range(rows.start, rows.stop), tf.int64)
        positive = tf.gather(logits, columns + pool.own_offset, batch_dims=1)
      else:
        positive = tf.reduce_sum(q * v, axis=1)
      positive -= corrections[rows]
      keep = keep_columns(rows)
      terms, highest, chunk_draws = column_terms(logits, keep, rows)
      total = tf.reduce_sum(terms, axis=1)
      if logq_corrected:
        row_loss, to_terms, to_positive = _logq_corrected(
          total,
          highest,
          positive,
          log_others[rows],
          tf.math.count_nonzero(keep, axis=1, dtype=dtype),
        )
      else:
        row_loss, to_terms, to_positive = (
          _softmax(total, highest, positive, column_is_positive)
          if positive_in_partition
          else _decoupled(total, highest, positive)
        )
        if robustness:
          log_probability = corrections[rows] + log_num_terms - row_loss
          row_loss = losses.generalized_cross_entropy(
            log_probability, robustness
          )
          certainty = tf.exp(robustness * log_probability)
          to_terms, to_positive = certainty * to_terms, certainty * to_positive
      loss += tf.reduce_sum(weight * row_loss)
      # The factors are multiplied into what is [rows, dim], not [rows, pool].
      to_terms = (weight * to_terms)[:, tf.newaxis]
      to_positive = (weight * to_positive)[:, tf.newaxis]
      d_q = to_terms * tf.matmul(terms, pool_embeddings) + to_positive * v
      return (
        rows.stop,
        loss,
        draws + chunk_draws,
        tf.concat([d_queries, d_q], 0),
        tf.concat([d_positives, to_positive * q], 0),
        d_pool + tf.matmul(to_terms * q, terms, transpose_a=True),
      )

    dim = queries.shape[1]
    no_rows = tf.zeros([0, dim], dtype)
    _, loss, draws, d_queries, d_positives, d_pool = tf.while_loop(
      lambda start, *_: start < batch,
      body,
      (
        tf.zeros([], tf.int32),
        tf.zeros([], dtype),
        tf.zeros([pool_size], tf.float64),
        no_rows,
        no_rows,
        tf.zeros_like(tf.transpose(pool_embeddings)),
      ),
      shape_invariants=(
        tf.TensorShape([]),
        tf.TensorShape([]),
        tf.TensorShape([None]),
        tf.TensorShape([None, dim]),
        tf.TensorShape([None, dim]),
        tf.TensorShape([dim, None]),
      ),
      # Chunks in parallel would hold their logits at the same time.
      parallel_iterations=1,
    )

    def grad(upstream, _):
      return (
        upstream * d_queries,
        upstream * d_positives,
        upstream * tf.transpose(d_pool),
      )

    return (loss, draws), grad

  loss, draws = run(queries, positives, tf.cast(pool.embeddings, dtype))
  return loss, tf.stop_gradient(draws)


def _softmax(
  total: tf.Tensor,
  highest: tf.Tensor,
  positive: tf.Tensor,
  positive_in_total: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """log(e^{s_p} + sum_j e^{t_j}) - s_p of each row, and its derivatives.

  Args:
    total: [rows] sum of the terms, relative to e^highest.
    highest: [rows] highest t_j.
    positive: [rows] s_p.
    positive_in_total: Whether e^{s_p} is one of the terms already.

  Returns:
    (loss, to_terms, to_positive), each [rows]: d loss / d s_j is to_terms
    times term j, and d loss / d s_p is to_positive.
  """
  # A row may have no terms: every column masked, or nothing drawn. Its
  # highest logit then says nothing of the size of the partition.
  empty = total < _NOTHING
  shift = tf.where(empty, positive, tf.maximum(highest, positive))
  scale = tf.where(empty, tf.zeros_like(total), tf.exp(highest - shift))
  positive_term = tf.exp(positive - shift)
  if positive_in_total:
    positive_term = tf.zeros_like(positive)
  partition = positive_term + scale * total
  loss = shift + tf.math.log(partition) - positive
  return loss, scale / partition, positive_term / partition - 1.0


def _decoupled(
  total: tf.Tensor, highest: tf.Tensor, positive: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """log(sum_j e^{t_j}) - s_p of each row, and its derivatives."""
  empty = total < _NOTHING
  teaches = tf.cast(~empty, total.dtype)
  total = tf.where(empty, tf.ones_like(total), total)
  loss = highest + tf.math.log(total) - positive
  return teaches * loss, teaches / total, -teaches


def _logq_corrected(
  total: tf.Tensor,
  highest: tf.Tensor,
  positive: tf.Tensor,
  log_others: tf.Tensor,
  num_columns: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
  """The same of `losses.logq_corrected_softmax`.

  Args:
    total: [rows] sum of the terms, relative to e^highest.
    highest: [rows] highest t_j.
    positive: [rows] s_p.
    log_others: [rows] log(1 - Q(p)).
    num_columns: [rows] columns that are kept.
  """
  # A row may have no negatives: it teaches nothing.
  empty = total < _NOTHING
  total = tf.where(empty, tf.ones_like(total), total)
  log_sum = highest + tf.math.log(total) + log_others
  log_mean = log_sum - tf.math.log(tf.maximum(num_columns, 1.0))
  not_positive = tf.sigmoid(log_mean - positive)
  not_positive = tf.where(empty, tf.zeros_like(total), not_positive)
  loss = not_positive * (log_sum - positive)
  return loss, not_positive / total, -not_positive


def _chunk_size(
  row_chunk_size: int | None, batch: tf.Tensor, pool_size: tf.Tensor
) -> tf.Tensor:
  if row_chunk_size is not None:
    return tf.constant(row_chunk_size, tf.int32)
  rows = _CHUNK_ELEMENTS // tf.maximum(pool_size, 1)
  return tf.clip_by_value(rows, 16, tf.maximum(batch, 16))
