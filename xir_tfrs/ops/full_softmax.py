"""The softmax over a whole catalogue, in chunks of candidates.

    log(sum_j e^{s_j}) - s_p,   j over all candidates

Candidates are encoded chunk by chunk, once for the partition and once more
for the gradient: neither [batch, num_candidates] logits nor the encoder's
activations for all candidates are ever held.

Axes: batch = rows, one per query; chunk = candidates; dim = embedding size.
"""

from collections.abc import Callable

import tensorflow as tf

from xir_tfrs.ops import masking

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
  positive_in_pool: bool = False,
  candidate_chunk_size: int | None = None,
) -> tf.Tensor:
  """Weighted sum over the rows of the cross entropy over all candidates.

  Args:
    queries: [batch, dim] float32 or float64; scores are inner products.
    positives: [batch, dim] embeddings of the rows' positives: they stand for
      these candidates in the partition.
    positive_ids: [batch] int64, their ids in `[0, num_candidates)`.
    row_weights: [batch] weight of each row's loss; no gradient.
    encode: [n] int64 ids -> [n, dim] embeddings of the type of `queries`. It
      is called twice for each candidate, and must give the same both times.
      The variables it uses take their gradient, a dense one.
    num_candidates: Size of the catalogue.
    positive_in_pool: Whether the positive is in the partition a second time,
      as `encode` has it.
    candidate_chunk_size: Candidates whose logits are held at a time; None:
      chosen from the size of the batch.

  Returns:
    The scalar `sum_i row_weights_i loss_i`.
  """
  dtype = queries.dtype
  row_weights = tf.stop_gradient(tf.cast(row_weights, dtype))
  chunk = _chunk_size(candidate_chunk_size, tf.shape(queries)[0])
  num_chunks = tf.cast((num_candidates + chunk - 1) // chunk, tf.int32)

  def chunk_ids(start: tf.Tensor) -> tf.Tensor:
    return tf.range(start, tf.minimum(start + chunk, num_candidates))

  def chunk_logits(queries, embeddings, ids) -> tf.Tensor:
    logits = tf.matmul(queries, embeddings, transpose_b=True)
    if positive_in_pool:
      return logits
    return masking.mask_logits(
      logits, ~masking.accidental_hits(positive_ids, ids)
    )

  def log_partition(queries, positive) -> tf.Tensor:
    """[batch], by a running sum relative to the highest logit so far."""

    def body(start, highest, total):
      ids = chunk_ids(start)
      logits = chunk_logits(queries, encode(ids), ids)
      higher = tf.maximum(highest, tf.reduce_max(logits, axis=1))
      terms = tf.exp(logits - higher[:, tf.newaxis])
      total = total * tf.exp(highest - higher) + tf.reduce_sum(terms, axis=1)
      return start + chunk, higher, total

    _, highest, total = _for_each_chunk(
      num_candidates, body, (positive, tf.ones_like(positive))
    )
    return highest + tf.math.log(total)

  @tf.custom_gradient
  def run(queries, positives):
    positive = tf.reduce_sum(queries * positives, axis=1)
    log_z = log_partition(queries, positive)

    def grad(upstream, variables=None):
      watched = variables or []
      weights = upstream * row_weights
      # d loss / d s_p = p_p - 1, d loss / d s_j = p_j.
      d_positive = (weights * (tf.exp(positive - log_z) - 1.0))[:, tf.newaxis]

      def of_chunk(start):
        """Gradients of the queries, and of each variable, by a chunk."""
        ids = chunk_ids(start)
        with tf.GradientTape() as tape:
          embeddings = encode(ids)
        logits = chunk_logits(queries, embeddings, ids)
        p = weights[:, tf.newaxis] * tf.exp(logits - log_z[:, tf.newaxis])
        return (
          tf.matmul(p, embeddings),
          tape.gradient(
            embeddings, watched, tf.matmul(p, queries, transpose_a=True)
          ),
        )

      # The first chunk shows which variables have gradients in rows.
      d_queries, d_variables = of_chunk(tf.zeros([], tf.int64))
      sums = [
        _Sum(variable, gradient, num_chunks)
        for variable, gradient in zip(watched, d_variables, strict=True)
      ]

      def body(start, d_queries, *totals):
        by_chunk, d_variables = of_chunk(start)
        totals = [
          s.add(total, gradient, start // chunk)
          for s, total, gradient in zip(sums, totals, d_variables, strict=True)
        ]
        return start + chunk, d_queries + by_chunk, *totals

      _, d_queries, *totals = _for_each_chunk(
        num_candidates,
        body,
        (d_positive * positives + d_queries, *(s.first for s in sums)),
        start=chunk,
      )
      d_inputs = (d_queries, d_positive * queries)
      if variables is None:
        return d_inputs
      return d_inputs, [
        s.result(total) for s, total in zip(sums, totals, strict=True)
      ]

    return tf.reduce_sum(row_weights * (log_z - positive)), grad

  return run(queries, positives)


class _Sum:
  """How the gradient of a variable is summed up over the chunks.

  A sum of whole variables would cost a pass over the table of embeddings for
  each chunk of it: gradients in rows are collected, and added up once.
  """

  def __init__(self, variable, gradient, num_chunks: tf.Tensor) -> None:
    """Begins with the gradient of the first chunk."""
    self._variable = variable
    self._in_rows = isinstance(gradient, tf.IndexedSlices)
    if not self._in_rows:
      self.first = tf.zeros_like(variable) if gradient is None else gradient
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

  def add(self, total, gradient, chunk_number: tf.Tensor):
    if self._in_rows:
      rows = (gradient.indices, gradient.values)
      chunk_number = tf.cast(chunk_number, tf.int32)
      return tuple(
        array.write(chunk_number, x)
        for array, x in zip(total, rows, strict=True)
      )
    return total if gradient is None else total + gradient

  def result(self, total) -> tf.Tensor:
    """The gradient, dense: every candidate has one."""
    if not self._in_rows:
      return total
    indices, values = (array.concat() for array in total)
    return tf.math.unsorted_segment_sum(
      values, indices, self._variable.shape[0]
    )


def _for_each_chunk(
  num_candidates: int, body, initial: tuple, start: int | tf.Tensor = 0
) -> tuple:
  return tf.while_loop(
    lambda start, *_: start < num_candidates,
    body,
    (tf.cast(start, tf.int64), *initial),
    # Chunks in parallel would hold their logits at the same time.
    parallel_iterations=1,
  )


def _chunk_size(given: int | None, batch: tf.Tensor) -> tf.Tensor:
  if given is not None:
    return tf.constant(given, tf.int64)
  chunk = _CHUNK_ELEMENTS // tf.maximum(batch, 1)
  return tf.cast(tf.maximum(chunk, _SMALLEST_CHUNK), tf.int64)
