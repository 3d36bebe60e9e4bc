"""A loss over a pool, with its gradient, in one pass over chunks of rows.

The losses of the library are made of the sum over a pool,

    S = sum_j e^{t_j},   t_j = s_j + log a_j,

with `a_j` = 1 / q_j (sampled softmax), or the count n_j of column j in a
resample (BIR, XIR), or 0 where a column is masked. What a loss makes of log S
and the positive's score is its form (`ops.forms`). The gradient needs only
e^{t_j} and two numbers per row. So each chunk's logits are computed, used for
the loss and for the gradient, and dropped. No [batch, pool] matrix is ever
held. `Form.dense` computes the same densely; tests hold the two equal.

Axes: batch = rows, one per query; pool = candidates; dim = embedding size.
"""

import dataclasses
import functools

import tensorflow as tf

from xir_tfrs.ops import chunks, forms, masking, ranks, resampling
from xir_tfrs.ops.forms import base

# Elements of a chunk's logits: 2 MiB of float32. Two chunks at a time, or cores
# are idle during the small operations of one. A GPU would wait for its kernels
# to start: 64 MiB.
_CHUNK_ELEMENTS = 2**19
_CHUNKS_IN_FLIGHT = 2
_CHUNK_ELEMENTS_ON_GPU = 2**24
_FEWEST_ROWS = 16

# Terms are shares, scaled: a smaller sum means no term.
_NOTHING = 1e-30


@dataclasses.dataclass(frozen=True)
class Pool:
  """Candidates that the rows of a batch are scored against.

  Attributes:
    embeddings: [pool, dim] float tensor.
    ids: [pool] integer ids.
    log_q: [pool] log of the proposal by which the candidates arrived.
    own_offset: If the rows' positives are columns of the pool: the column of
      row 0's. None: they are not.
    in_use: [pool] bool, which columns hold a candidate: a pool of static size
      may have unused ones. None: all.
    copies: [pool] integers > 0, how many equal columns each one stands for: the
      result is that of the pool with all of them, if nothing is drawn. None: 1.
    gradient_scale: Scalar, factor of the gradient by `embeddings`, except for
      the part of a row's own column. None: 1.

  Examples:
    >>> pool = xir.ops.fused.Pool(
    ...   embeddings=tf.eye(3), ids=tf.range(3), log_q=tf.zeros([3])
    ... )
    >>> pool.embeddings.shape
    TensorShape([3, 3])
  """

  embeddings: tf.Tensor
  ids: tf.Tensor
  log_q: tf.Tensor
  own_offset: tf.Tensor | None = None
  in_use: tf.Tensor | None = None
  copies: tf.Tensor | None = None
  gradient_scale: tf.Tensor | None = None

  def log_q_by_copies(self) -> tf.Tensor:
    """[pool] log_q, less the log of `copies`.

    n copies have n times the weight of one column: e^s / q * n.
    """
    if self.copies is None:
      return self.log_q
    return self.log_q - tf.math.log(tf.cast(self.copies, self.log_q.dtype))

  def num_columns(self) -> tf.Tensor:
    """Scalar int32, number of columns that hold a candidate, with copies."""
    if self.copies is None and self.in_use is None:
      return tf.size(self.ids)
    numbers = tf.ones_like(self.ids, tf.int32)
    if self.copies is not None:
      numbers = tf.cast(self.copies, tf.int32)
    if self.in_use is not None:
      numbers = tf.where(self.in_use, numbers, 0)
    return tf.reduce_sum(numbers)


@dataclasses.dataclass(frozen=True)
class Resampler:
  """How candidates are drawn from a pool.

  Attributes:
    num_resampled: Draws per row; an int or a scalar integer tensor.
    method: One of `resampling.METHODS`.
    seed: [2] integer seed.
    first_row: Number of row 0 in the global batch.

  Examples:
    >>> resampler = xir.ops.fused.Resampler(
    ...   num_resampled=8, method="systematic", seed=tf.constant([0, 1])
    ... )
    >>> resampler.num_resampled
    8
  """

  num_resampled: int | tf.Tensor
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
  form: forms.Form | None = None,
  positive_log_q: tf.Tensor | None = None,
  resampler: Resampler | None = None,
  mask_own_column: bool = False,
  mask_accidental_hits: bool = False,
  known_ids: tf.Tensor | tf.RaggedTensor | None = None,
  known_rows: tf.Tensor | None = None,
  count_draws: bool = True,
  row_chunk_size: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Weighted sum over the rows of a loss against a pool.

  Without a resampler, column j counts with `s_j - log_q_j` and the positive
  with `s_p - positive_log_q`. With one, `log_q` serves the weights only, and
  both count with their plain scores. Rows without a column that counts have
  loss 0 and no gradient.

  Args:
    queries: [batch, dim] float32 or float64; scores are inner products, so
      divide by the temperature and normalise before.
    positives: [batch, dim] embeddings of the rows' positives.
    positive_ids: [batch] their ids.
    row_weights: [batch] weight of each row's loss; no gradient.
    pool: The candidates.
    form: Form of the loss; None: the cross entropy. A form without the positive
      in the partition always masks own columns and accidental hits.
    positive_log_q: [batch] log proposal of the positives; None: they are not
      corrected.
    resampler: How to draw from the pool; None: every column counts once.
    mask_own_column: Leave out the column that is the row's own positive: for
      resampling, it is not drawn; otherwise the positive counts once. If
      positives are corrected, `positive_log_q` must then be the own column's:
      that column may stand for the positive and take its gradient, so
      `positives` must be rows of `pool.embeddings`.
    mask_accidental_hits: Leave out every column with the positive's id.
    known_ids: [batch, None] ids of other positives of each row's query, whose
      columns are left out too; those of the row's positive are not touched.
      Ragged, or padded with -1.
    known_rows: [batch] integer entry of `known_ids`, then [queries, None], of
      each row; None: its own.
    count_draws: Whether to sum up the draws, which costs a pass.
    row_chunk_size: Rows per chunk; None: chosen from the size of the pool.

  Returns:
    (loss, draws): the scalar `sum_i row_weights_i loss_i`, and [pool] float64,
    how often each column was drawn, summed over the rows; zeros without a
    resampler, or without `count_draws`.

  Raises:
    ValueError: The form needs the proposal of the positives, and there is no
      `positive_log_q`; or it does not suit resampled pools.

  Examples:
    >>> pool = xir.ops.fused.Pool(tf.zeros([3, 2]), tf.range(3), tf.zeros([3]))
    >>> loss, _ = xir.ops.fused.pool_softmax(
    ...   queries=tf.ones([1, 2]),
    ...   positives=tf.zeros([1, 2]),
    ...   positive_ids=tf.constant([7]),
    ...   row_weights=tf.ones([1]),
    ...   pool=pool,
    ... )
    >>> print(f"{loss:.4f} = {np.log(4):.4f}")
    1.3863 = 1.3863
  """
  form = forms.CrossEntropy() if form is None else form
  _require_what_it_needs(form, positive_log_q, resampler)
  dtype = queries.dtype
  batch = chunks.size(queries)
  chunk = row_chunk_size or _chunk_size(chunks.size(pool.embeddings))
  row_weights = tf.stop_gradient(tf.cast(row_weights, dtype))
  if positive_log_q is not None:
    positive_log_q = tf.stop_gradient(tf.cast(positive_log_q, dtype))
  corrected = (
    positive_log_q is not None and resampler is None and form.corrects_positive
  )
  # If it is corrected in the same way, the own column can serve as the positive
  # itself, which costs nothing. Masking it costs two passes over the logits.
  own_stands_in = (
    form.own_column_stands_in
    and corrected
    and mask_own_column
    and pool.own_offset is not None
  )
  mask = column_mask(
    form,
    positive_ids,
    pool,
    mask_own_column=mask_own_column,
    mask_accidental_hits=mask_accidental_hits,
    known_ids=known_ids,
    known_rows=known_rows,
    keep_own=own_stands_in,
  )
  log_q = tf.stop_gradient(tf.cast(pool.log_q_by_copies(), dtype))
  # Relative to the middle, or the rarest q of all could be 0.
  log_unit = (tf.reduce_min(log_q) + tf.reduce_max(log_q)) / 2.0
  columns = _Columns(
    form=form,
    log_q=log_q,
    scale=(
      tf.ones_like(log_q) if resampler is None else tf.exp(log_q - log_unit)
    ),
    log_unit=log_unit,
    pool=pool,
    resampler=resampler,
    count_draws=count_draws,
    in_sum=own_stands_in,
  )

  own_apart = pool.gradient_scale is not None and pool.own_offset is not None

  def own(start, size):
    return tf.cast(start + tf.range(size), tf.int64) + pool.own_offset

  @tf.custom_gradient
  def run(queries, positives, pool_embeddings):
    # Scale tensors of [pool, dim], not of [rows, pool].
    scale = columns.scale[:, tf.newaxis]
    scaled_embeddings = scale * pool_embeddings

    def of_rows(sums, start, size):
      part = functools.partial(chunks.part, start=start, length=size)
      q, v = part(queries), part(positives)
      logits = tf.matmul(q, pool_embeddings, transpose_b=True)
      if own_stands_in:
        # Take the same number that is in the sum: with another rounding, a
        # loss near 0 could be negative.
        positive = tf.gather(logits, own(start, size), batch_dims=1)
      else:
        positive = tf.reduce_sum(q * v, axis=1)
      log_q = None if positive_log_q is None else part(positive_log_q)
      row_losses, terms, to_terms, to_positive, chunk_draws = columns.losses(
        logits,
        positive,
        mask.keep(start, size),
        log_q,
        log_q if corrected else tf.zeros_like(positive),
        start,
      )
      weight = part(row_weights)
      # Scale tensors of [rows, dim], not of [rows, pool].
      to_terms = (weight * to_terms)[:, tf.newaxis]
      to_positive = (weight * to_positive)[:, tf.newaxis]
      d_q = to_terms * tf.matmul(terms, scaled_embeddings) + to_positive * v
      loss, draws, d_pool = sums
      sums = (
        loss + tf.reduce_sum(weight * row_losses),
        draws + chunk_draws,
        d_pool + tf.matmul(to_terms * q, terms, transpose_a=True),
      )
      if not own_apart:
        return sums, (d_q, to_positive * q)
      places = own(start, size)
      own_terms = tf.gather(terms, places, batch_dims=1)
      own_terms *= tf.gather(columns.scale, places)
      d_own = to_terms * own_terms[:, tf.newaxis] * q
      return sums, (d_q, to_positive * q, d_own)

    (loss, draws, d_pool), (d_queries, d_positives, *d_own) = chunks.fold(
      of_rows,
      batch,
      chunk,
      (
        tf.zeros([], dtype),
        tf.zeros(tf.shape(pool_embeddings)[:1], tf.float64),
        tf.zeros_like(tf.transpose(pool_embeddings)),
      ),
      like=(queries, positives, queries)[: 3 if own_apart else 2],
      in_flight=1 if chunks.has_gpu() else _CHUNKS_IN_FLIGHT,
    )
    d_pool = scale * tf.transpose(d_pool)
    if pool.gradient_scale is not None:
      factor = tf.cast(pool.gradient_scale, dtype)
      d_pool *= factor
      if own_apart:
        places = own(0, batch)[:, tf.newaxis]
        d_pool = tf.tensor_scatter_nd_add(
          d_pool, places, (1.0 - factor) * d_own[0]
        )

    def grad(upstream, _):
      return (
        upstream * d_queries,
        upstream * d_positives,
        upstream * d_pool,
      )

    return (loss, draws), grad

  loss, draws = run(queries, positives, tf.cast(pool.embeddings, dtype))
  return loss, tf.stop_gradient(draws)


def column_mask(
  form: forms.Form,
  positive_ids: tf.Tensor,
  pool: Pool,
  *,
  mask_own_column: bool,
  mask_accidental_hits: bool,
  known_ids: tf.Tensor | tf.RaggedTensor | None,
  known_rows: tf.Tensor | None,
  keep_own: bool = False,
) -> masking.ColumnMask:
  """Which columns of a pool count in `pool_softmax`.

  Args:
    form: Form of the loss.
    positive_ids: [batch] ids of the positives.
    pool: The pool.
    mask_own_column: As in `pool_softmax`.
    mask_accidental_hits: As in `pool_softmax`.
    known_ids: As in `pool_softmax`.
    known_rows: As in `pool_softmax`.
    keep_own: Whether the own column counts whatever the other masks say.

  Examples:
    >>> pool_ids = tf.constant([7, 8, 7])
    >>> pool = xir.ops.fused.Pool(tf.eye(3), pool_ids, tf.zeros([3]))
    >>> mask = xir.ops.fused.column_mask(
    ...   xir.ops.forms.CrossEntropy(),
    ...   tf.constant([7]),
    ...   pool,
    ...   mask_own_column=False,
    ...   mask_accidental_hits=True,
    ...   known_ids=None,
    ...   known_rows=None,
    ... )
    >>> mask.keep(0, 1).numpy()
    array([[False,  True, False]])
  """
  without_positive = not form.positive_in_partition
  own: masking.Own = "as others"
  if keep_own:
    own = "kept"
  # The own column has the positive's id: one mask is both.
  elif mask_own_column and not without_positive:
    own = "left out"
  return masking.ColumnMask(
    positive_ids,
    pool.ids,
    own_offset=pool.own_offset,
    own=own,
    accidental_hits=mask_accidental_hits or without_positive,
    known_ids=known_ids,
    known_rows=known_rows,
    in_use=pool.in_use,
  )


@dataclasses.dataclass(frozen=True)
class _Columns:
  """Losses and derivatives of a chunk of rows, from its logits.

  Attributes:
    scale: [pool] factor of each column's terms, which `losses` leaves out.
    log_q: [pool] log of the proposal, less the log of copies.
    log_unit: What `scale` is relative to.
  """

  form: forms.Form
  log_q: tf.Tensor
  scale: tf.Tensor
  log_unit: tf.Tensor
  pool: Pool
  resampler: Resampler | None
  count_draws: bool
  in_sum: bool

  def losses(self, logits, positive, keep, positive_log_q, correction, start):
    """Losses of the rows, and their derivatives.

    Args:
      logits: [rows, pool] s_j.
      positive: [rows] s_p.
      keep: [rows, pool] bool, which columns count; None: all.
      positive_log_q: [rows] log q_p, or None.
      correction: [rows] s_p - t_p.
      start: Number of the first row.

    Returns:
      (losses [rows], terms [rows, pool], to_terms [rows], to_positive [rows],
      draws [pool]): d loss / d s_j is to_terms times term j times scale j, and
      d loss / d s_p is to_positive.
    """
    values, slopes = base.activated(self.form, logits, positive)
    terms, total, log_unit, draws = self._terms(logits, values, keep, start)
    empty = total < _NOTHING
    total = tf.where(empty, tf.ones_like(total), total)
    losses, by_sum, by_positive = base.losses_and_derivatives(
      self.form,
      log_unit + tf.math.log(total),
      positive,
      empty,
      correction=correction,
      in_sum=self.in_sum,
      log_num_terms=tf.math.log(tf.cast(self._num_terms(), logits.dtype)),
      log_q=positive_log_q,
      num_columns=lambda: self._num_kept(logits, keep),
      kth_best=lambda: ranks.kth_best(
        logits, keep, self.log_q, self.form.num_best, self.pool.num_columns()
      ),
    )
    to_terms = by_sum / total
    if slopes is not None:
      terms *= slopes
      by_positive = -to_terms * tf.linalg.matvec(terms, self.scale)
    return losses, terms, to_terms, by_positive, draws

  def _num_terms(self) -> int | tf.Tensor:
    if self.resampler is None:
      return self.pool.num_columns()
    return self.resampler.num_resampled

  def _num_kept(self, logits, keep):
    """[rows] number of columns that count, as a float."""
    if keep is None:
      keep = tf.ones_like(logits, tf.bool)
    if self.pool.copies is None:
      return tf.math.count_nonzero(keep, axis=1, dtype=logits.dtype)
    copies = tf.cast(self.pool.copies, logits.dtype)
    return tf.linalg.matvec(tf.cast(keep, logits.dtype), copies)

  def _terms(self, logits, values, keep, start):
    """What S is made of, S = e^log_unit sum_j scale_j term_j.

    Returns:
      (terms [rows, pool], the sum [rows], 0 without a column, log_unit [rows],
      draws [pool]).
    """
    # e^{s_j} / q_j, as shares of their sum.
    shares, log_sum = self._softmax(values, keep)
    # Not what is finite: that would hide NaN.
    filled = tf.cast(log_sum != float("-inf"), logits.dtype)
    draws = tf.zeros(tf.shape(self.log_q), tf.float64)
    if self.resampler is None:
      return shares, filled, log_sum, draws
    weights = shares
    if self.form.pairwise:
      # Draws use the plain scores, whatever the form of the loss.
      weights, _ = self._softmax(logits, keep)
    counts, unit = _counts(self.resampler, weights, start)
    if self.count_draws:
      draws = unit * tf.linalg.matvec(counts, filled, transpose_a=True)
    terms = counts * shares
    # The terms are not divided by q: the scale takes that back.
    total = filled * tf.linalg.matvec(terms, self.scale)
    log_unit = log_sum + self.log_unit + tf.math.log(unit)
    return terms, total, log_unit, tf.cast(draws, tf.float64)

  def _softmax(self, values, keep):
    """`resampling.softmax` of the columns that are kept, corrected by q."""
    logits = values - self.log_q
    if keep is not None:
      logits = masking.mask_logits(logits, keep)
    # Activations may be -inf.
    may_be_empty = keep is not None or self.form.pairwise
    return resampling.softmax(logits, may_be_empty)


def _counts(
  resampler: Resampler, shares: tf.Tensor, start: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """(counts [rows, pool], unit): column j is drawn unit * counts_j times."""
  dtype = shares.dtype
  if resampler.method == "expected":
    # Averages are in proportion to the shares: this saves a pass.
    return shares, tf.cast(resampler.num_resampled, dtype)
  counts = resampling.counts_from_shares(
    shares,
    resampler.num_resampled,
    seed=resampler.seed,
    method=resampler.method,
    first_row=tf.cast(resampler.first_row, tf.int64) + tf.cast(start, tf.int64),
  )
  return tf.cast(counts, dtype), tf.ones([], dtype)


def _require_what_it_needs(
  form: forms.Form,
  positive_log_q: tf.Tensor | None,
  resampler: Resampler | None,
) -> None:
  if resampler is not None and forms.RESAMPLED not in form.suits:
    raise ValueError(
      f"The loss {form.name!r} takes no `resampler`. Losses that do: "
      f"{', '.join(forms.names_for(forms.RESAMPLED))}."
    )
  if positive_log_q is None and not form.corrects_positive:
    raise ValueError(
      f"The loss {form.name!r} needs the proposal of the positives, "
      "`positive_log_q`."
    )


def _chunk_size(pool_size: chunks.Size) -> chunks.Size:
  """Rows whose logits are held at a time."""
  elements = _CHUNK_ELEMENTS
  if chunks.has_gpu():
    elements = _CHUNK_ELEMENTS_ON_GPU
  if isinstance(pool_size, int):
    return max(elements // max(pool_size, 1), _FEWEST_ROWS)
  return tf.maximum(elements // tf.maximum(pool_size, 1), _FEWEST_ROWS)
