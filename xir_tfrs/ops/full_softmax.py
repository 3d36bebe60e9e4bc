"""A loss over a whole catalogue, in chunks of candidates.

    S = sum_j e^{s_j},   j over all candidates but the positive and known ones

and what a form of the loss (`ops.forms`) makes of log S and the positive's
score. Candidates are encoded chunk by chunk, once for the sum and once more
for the gradient: neither [batch, num_candidates] logits nor the encoder's
activations for all candidates are ever held.

Axes: batch = rows, one per query; chunk = candidates; dim = embedding size.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from xir_tfrs.ops import chunks, forms, masking, ranks, xla
from xir_tfrs.ops.forms import base

# Elements of a chunk's logits: 8 MiB of float32. Encoding again and again has
# a cost per chunk, so chunks are larger than those of `fused`.
_CHUNK_ELEMENTS = 2**21
_SMALLEST_CHUNK = 256


def full_softmax(
  queries: tf.Tensor,
  positives: tf.Tensor,
  positive_ids: tf.Tensor,
  row_weights: tf.Tensor,
  encode: Callable[[tf.Tensor], tf.Tensor],
  num_candidates: int,
  *,
  form: forms.Form | None = None,
  positive_in_pool: bool = False,
  candidate_chunk_size: int | None = None,
  known_ids: tf.Tensor | tf.RaggedTensor | None = None,
  known_rows: tf.Tensor | None = None,
) -> tf.Tensor:
  """Weighted sum over the rows of a loss against all candidates.

  Args:
    queries: [batch, dim] float32 or float64; scores are inner products.
    positives: [batch, dim] embeddings of the rows' positives, used for these
      candidates in the loss.
    positive_ids: [batch] int64, their ids in `[0, num_candidates)`.
    row_weights: [batch] weight of each row's loss; no gradient.
    encode: [n] int64 ids -> [n, dim] embeddings of the type of `queries`. It
      is called twice for each candidate, and must return the same both times.
      The variables that it uses get a dense gradient.
    num_candidates: Size of the catalogue.
    form: Form of the loss; None: the cross entropy.
    positive_in_pool: Whether the positive is also one of the candidates of S,
      as `encode` has it.
    candidate_chunk_size: Candidates whose logits are held at a time; None:
      chosen from the size of the batch.
    known_ids: [batch, None] ids of other positives of each row's query, which
      S leaves out; ragged, or padded with -1. None: nothing more is left out.
    known_rows: [batch] integer entry of `known_ids`, then [queries, None], of
      each row; None: row i has entry i.

  Returns:
    The scalar `sum_i row_weights_i loss_i`.

  Raises:
    ValueError: The form does not suit the catalogue.

  Examples:
    >>> table = tf.zeros([4, 2])
    >>> loss = xir.ops.full_softmax.full_softmax(
    ...   tf.ones([1, 2]),
    ...   tf.zeros([1, 2]),
    ...   tf.constant([0], tf.int64),
    ...   tf.ones([1]),
    ...   lambda ids: tf.gather(table, ids),
    ...   num_candidates=4,
    ... )
    >>> print(f"{loss:.4f} = {np.log(4):.4f}")
    1.3863 = 1.3863
  """
  form = forms.CrossEntropy() if form is None else form
  if forms.CATALOGUE not in form.suits:
    raise ValueError(
      f"The loss {form.name!r} is for sampled pools. Losses for the catalogue: "
      f"{', '.join(forms.names_for(forms.CATALOGUE))}."
    )
  chunk = candidate_chunk_size or _chunk_size(chunks.size(queries))
  catalogue = _Catalogue(
    form=form,
    positive_ids=positive_ids,
    encode=encode,
    num_candidates=num_candidates,
    chunk=chunk,
    positive_in_pool=positive_in_pool,
    known_ids=known_ids,
    known_rows=known_rows,
  )
  row_weights = tf.stop_gradient(tf.cast(row_weights, queries.dtype))

  @tf.custom_gradient
  def run(queries, positives):
    positive = tf.reduce_sum(queries * positives, axis=1)
    losses, log_sum, by_sum, by_positive = catalogue.losses(queries, positive)

    def grad(upstream, variables=None):
      weights = upstream * row_weights
      d_queries, d_score, d_variables = catalogue.gradients(
        queries, positive, log_sum, weights * by_sum, variables or []
      )
      if not form.pairwise:
        d_score = weights * by_positive
      d_score = d_score[:, tf.newaxis]
      d_inputs = (d_score * positives + d_queries, d_score * queries)
      return d_inputs if variables is None else (d_inputs, d_variables)

    return tf.reduce_sum(row_weights * losses), grad

  return run(queries, positives)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Catalogue:
  """All candidates, a chunk at a time.

  Attributes are the arguments of `full_softmax`.
  """

  form: forms.Form
  positive_ids: tf.Tensor
  encode: Callable[[tf.Tensor], tf.Tensor]
  num_candidates: int
  chunk: chunks.Size
  positive_in_pool: bool
  known_ids: tf.Tensor | tf.RaggedTensor | None
  known_rows: tf.Tensor | None

  def losses(
    self, queries: tf.Tensor, positive: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """(losses, log S, derivatives by log S and by s_p), each [batch]."""
    log_sum, best = self._sums(queries, positive)
    empty = ~tf.math.is_finite(log_sum)
    log_sum = tf.where(empty, tf.zeros_like(log_sum), log_sum)
    nothing = tf.zeros_like(positive)
    losses, by_sum, by_positive = base.losses_and_derivatives(
      self.form,
      log_sum,
      positive,
      empty,
      correction=nothing,
      in_sum=False,
      # Every candidate is a column once: q_j = 1 / n.
      log_num_terms=tf.zeros([], positive.dtype),
      log_q=None,
      num_columns=lambda: self._num_columns(positive),
      kth_best=lambda: best[:, -1],
    )
    return losses, log_sum, by_sum, by_positive

  def gradients(self, queries, positive, log_sum, by_sum, variables):
    """Gradients through S.

    Args:
      queries: [batch, dim].
      positive: [batch] s_p.
      log_sum: [batch] log S.
      by_sum: [batch] derivative of the weighted loss by log S.
      variables: Those of the encoder.

    Returns:
      (d_queries [batch, dim], d_score [batch], d_variables): by the queries,
      by s_p for forms that are pairwise, and by each variable.
    """

    def of_chunk(start, length):
      ids = _ids(start, length)
      with tf.GradientTape() as tape:
        embeddings = self.encode(ids)
      _, values, slopes = self._values(queries, positive, embeddings, ids)
      p = by_sum[:, tf.newaxis] * tf.exp(values - log_sum[:, tf.newaxis])
      if slopes is not None:
        p *= slopes
      return (
        tf.matmul(p, embeddings),
        -tf.reduce_sum(p, axis=1),
        tape.gradient(
          embeddings, variables, tf.matmul(p, queries, transpose_a=True)
        ),
      )

    # The first chunk shows which variables have gradients in rows.
    first = _lesser(self.chunk, self.num_candidates)
    d_queries, d_score, d_variables = of_chunk(0, first)
    num_chunks = (self.num_candidates + self.chunk - 1) // self.chunk
    sums = [
      _Sum(variable, gradient, num_chunks)
      for variable, gradient in zip(variables, d_variables, strict=True)
    ]

    def step(carry, start, length):
      d_queries, d_score, totals = carry
      by_chunk, score_by_chunk, d_variables = of_chunk(first + start, length)
      totals = tuple(
        s.add(total, gradient, start // self.chunk + 1)
        for s, total, gradient in zip(sums, totals, d_variables, strict=True)
      )
      return (d_queries + by_chunk, d_score + score_by_chunk, totals), ()

    (d_queries, d_score, totals), _ = chunks.fold(
      step,
      self.num_candidates - first,
      self.chunk,
      (d_queries, d_score, tuple(s.first for s in sums)),
    )
    return (
      d_queries,
      d_score,
      [s.result(total) for s, total in zip(sums, totals, strict=True)],
    )

  def _sums(
    self, queries: tf.Tensor, positive: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """[batch] log S, by a running sum relative to the highest term so far,
    and [batch, K] the best scores, if the form needs them."""
    minus_infinity = tf.fill(
      tf.shape(positive), tf.constant(-math.inf, positive.dtype)
    )
    num_best = self.form.num_best
    best = tf.tile(minus_infinity[:, tf.newaxis], [1, num_best])

    def step(carry, start, length):
      highest, total, best = carry
      ids = _ids(start, length)
      scores, values, _ = self._values(queries, positive, self.encode(ids), ids)
      if num_best:
        best = ranks.merge_best(best, scores)
      higher = tf.maximum(highest, tf.reduce_max(values, axis=1))
      # While there is no term yet, -inf - -inf would be NaN.
      shift = tf.where(tf.math.is_finite(higher), higher, 0.0)
      total *= tf.exp(highest - shift)
      total += tf.reduce_sum(tf.exp(values - shift[:, tf.newaxis]), axis=1)
      return (higher, total, best), ()

    (highest, total, best), _ = chunks.fold(
      step,
      self.num_candidates,
      self.chunk,
      (minus_infinity, tf.zeros_like(positive), best),
    )
    return highest + tf.math.log(total), best

  def _values(
    self,
    queries: tf.Tensor,
    positive: tf.Tensor,
    embeddings: tf.Tensor,
    ids: tf.Tensor,
  ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """[batch, chunk] scores, what counts for them, and its slope by them.

    Scores and what counts are -inf where a candidate does not count.
    """
    scores = tf.matmul(queries, embeddings, transpose_b=True)
    values, slopes = base.activated(self.form, scores, positive)
    keep = self._keep(ids)
    if keep is not None:
      scores = masking.mask_logits(scores, keep)
      values = masking.mask_logits(values, keep)
    return scores, values, slopes

  def _keep(self, ids: tf.Tensor) -> tf.Tensor | None:
    """[batch, chunk] bool, which candidates count; None: all of them."""
    with_positive = self.positive_in_pool and self.form.positive_in_partition
    mask = masking.ColumnMask(
      self.positive_ids,
      ids,
      accidental_hits=not with_positive,
      known_ids=self.known_ids,
      known_rows=self.known_rows,
    )
    return mask.keep(0, chunks.size(self.positive_ids))

  def _num_columns(self, like: tf.Tensor) -> tf.Tensor:
    """[batch] number of candidates that count, of the type of `like`."""

    def step(total, start, length):
      keep = self._keep(_ids(start, length))
      if keep is None:
        return total + tf.cast(length, total.dtype), ()
      return total + tf.math.count_nonzero(keep, axis=1, dtype=total.dtype), ()

    total, _ = chunks.fold(
      step, self.num_candidates, self.chunk, tf.zeros_like(like)
    )
    return total


class _Sum:
  """How the gradient of a variable is summed up over the chunks.

  Summing whole variables would cost a pass over the table of embeddings for
  each chunk. So gradients in rows are collected, and added up once. XLA adds
  rows to a table without copying it.

  A gradient is a tensor, `tf.IndexedSlices`, or None where a chunk does not
  use the variable. A total is a tensor, or TensorArrays of indices and values.
  """

  def __init__(
    self,
    variable: tf.Variable,
    gradient: Any,
    num_chunks: chunks.Size,
  ) -> None:
    """Starts with the gradient of the first chunk."""
    self._variable = variable
    in_rows = isinstance(gradient, tf.IndexedSlices)
    self._in_rows = in_rows and not xla.compiling()
    if not self._in_rows:
      self.first: Any = (
        tf.zeros_like(variable)
        if gradient is None
        else tf.convert_to_tensor(gradient)
      )
      return
    self.first = tuple(
      tf.TensorArray(
        rows.dtype,
        num_chunks,
        infer_shape=False,
        element_shape=[None, *rows.shape[1:]],
      ).write(0, rows)
      for rows in (gradient.indices, gradient.values)
    )

  def add(self, total: Any, gradient: Any, chunk_number: chunks.Size) -> Any:
    """`total` and the gradient of another chunk."""
    if gradient is None:
      return total
    if not isinstance(gradient, tf.IndexedSlices):
      return total + gradient
    rows = (gradient.indices, gradient.values)
    if not self._in_rows:
      return tf.tensor_scatter_nd_add(total, rows[0][:, tf.newaxis], rows[1])
    return tuple(
      array.write(chunk_number, x) for array, x in zip(total, rows, strict=True)
    )

  def result(self, total: Any) -> tf.Tensor:
    """The gradient, dense: every candidate has one."""
    if not self._in_rows:
      return total
    indices, values = (array.concat() for array in total)
    return tf.math.unsorted_segment_sum(
      values, indices, self._variable.shape[0]
    )


def _ids(start: chunks.Size, length: chunks.Size) -> tf.Tensor:
  """[length] int64 candidates from `start` on."""
  return tf.cast(start + tf.range(length), tf.int64)


def _lesser(first: chunks.Size, second: int) -> chunks.Size:
  return (min if isinstance(first, int) else tf.minimum)(first, second)


def _chunk_size(batch: chunks.Size) -> chunks.Size:
  """Candidates whose logits are held at a time."""
  if isinstance(batch, int):
    return max(_CHUNK_ELEMENTS // max(batch, 1), _SMALLEST_CHUNK)
  return tf.maximum(_CHUNK_ELEMENTS // tf.maximum(batch, 1), _SMALLEST_CHUNK)
