"""Exact top-k by inner product, over all rows or over given rows.

Axes: batch (queries), n (rows of the corpus), dim (of the vectors), k
(requested answers), E and A (widths of the lists). Row -1 is padding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from xir_tfrs.indexes.id_table import NO_ROW
from xir_tfrs.ops import top_k

Rows = tuple[tf.Tensor, tf.Tensor]


def top_rows(
  vectors: tf.Tensor | tf.Variable,
  queries: tf.Tensor,
  k: tf.Tensor,
  excluded: tf.Tensor | None = None,
) -> Rows:
  """Finds the k best rows of `vectors` by inner product.

  Args:
    vectors: `[n, dim]` finite float32 tensor.
    queries: `[batch, dim]` finite float32 tensor; or `[batch, interests, dim]`,
      where the highest score of a row counts.
    k: Scalar int32 tensor, may exceed n.
    excluded: `[batch, E]` int64 tensor of rows to leave out; -1 is ignored.
      None leaves out nothing.

  Returns:
    rows (int64) and scores (float32), both `[batch, k]`, best first, padded
    with -1 and -inf.

  Examples:
    >>> vectors, queries = tf.eye(3), tf.constant([[3.0, 2.0, 1.0]])
    >>> rows, scores = xir.indexes.top_rows(vectors, queries, 2)
    >>> rows.numpy(), scores.numpy()
    (array([[0, 1]]), array([[3., 2.]], dtype=float32))
  """

  has_interests = len(queries.shape) == 3  # `len`, to support arrays too.

  def best(part: slice) -> Rows:
    some = queries[part]
    scores = tf.matmul(
      tf.reshape(some, [-1, vectors.shape[1]]), vectors, transpose_b=True
    )
    if has_interests:
      shape = [tf.shape(some)[0], tf.shape(some)[1], vectors.shape[0]]
      scores = tf.reduce_max(tf.reshape(scores, shape), axis=1)
    if excluded is not None:
      scores = _without(scores, excluded[part])
    values, rows = top_k.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
    return best_rows(tf.cast(rows, tf.int64), values, values > -np.inf, k)

  chunk = top_k.queries_per_chunk(vectors.shape[0])
  if has_interests:
    chunk = tf.maximum(chunk // tf.maximum(tf.shape(queries)[1], 1), 1)
  return _in_chunks(best, tf.shape(queries)[0], chunk)


def _without(scores: tf.Tensor, excluded: tf.Tensor) -> tf.Tensor:
  """Sets the scores of rows to leave out to -inf."""
  listed = tf.where(excluded >= 0)
  hidden = tf.stack([listed[:, 0], tf.gather_nd(excluded, listed)], axis=1)
  # Adding -inf masks because scores are finite. This op writes in place;
  # `tf.tensor_scatter_nd_update` would copy the matrix on a CPU.
  return tf.raw_ops.ScatterNdNonAliasingAdd(
    input=scores,
    indices=hidden,
    updates=tf.fill([tf.shape(hidden)[0]], -np.inf),
  )


def top_rows_of(
  vectors: tf.Tensor | tf.Variable,
  queries: tf.Tensor,
  k: tf.Tensor,
  allowed: tf.Tensor,
) -> Rows:
  """Finds the k best of the given rows of each query.

  Args:
    vectors: `[n, dim]` finite float32 tensor.
    queries: `[batch, dim]` finite float32 tensor.
    k: Scalar int32 tensor, may exceed A.
    allowed: `[batch, A]` int64 tensor of distinct rows; -1 is ignored.

  Returns:
    The same as `top_rows`.
  """

  def best(part: slice) -> Rows:
    rows = allowed[part]
    listed = tf.gather(vectors, tf.maximum(rows, 0))
    scores = tf.linalg.matvec(listed, queries[part])
    return best_rows(rows, scores, rows >= 0, k)

  row_bytes = tf.maximum(tf.shape(allowed)[1] * vectors.shape[1], 1) * 4
  chunk = tf.maximum(1, top_k.CHUNK_BYTES // row_bytes)
  return _in_chunks(best, tf.shape(queries)[0], chunk)


def best_rows(
  rows: tf.Tensor, scores: tf.Tensor, keep: tf.Tensor, k: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Selects the k best of the rows to keep, padded with -1 and -inf.

  Args:
    rows: `[batch, width]` int64 tensor.
    scores: `[batch, width]` float32 tensor; may be NaN where `keep` is False.
    keep: `[batch, width]` bool tensor.
    k: Scalar int32 tensor.

  Returns:
    rows and scores, both `[batch, k]`, best first.
  """
  # top_k sorts NaN as the largest score, so mask first.
  scores = tf.where(keep, scores, -np.inf)
  rows = tf.where(keep, rows, NO_ROW)
  best = tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
  rows = tf.gather(rows, best.indices, batch_dims=1)
  missing = [[0, 0], [0, k - tf.shape(rows)[1]]]
  return (
    tf.pad(rows, missing, constant_values=-1),
    tf.pad(best.values, missing, constant_values=-np.inf),
  )


def _in_chunks(
  best: Callable[[slice], Rows], batch: tf.Tensor, chunk: int | tf.Tensor
) -> Rows:
  """Applies `best` to all queries, `chunk` at a time."""
  # At least one chunk, so that concat also works for an empty batch.
  num_chunks = tf.maximum(1, -(-batch // chunk))

  def step(i, rows, scores):
    found = best(slice(i * chunk, (i + 1) * chunk))
    return i + 1, rows.write(i, found[0]), scores.write(i, found[1])

  def results(dtype):
    return tf.TensorArray(
      dtype, num_chunks, infer_shape=False, element_shape=[None, None]
    )

  _, rows, scores = tf.while_loop(
    lambda i, *_: i < num_chunks,
    step,
    [0, results(tf.int64), results(tf.float32)],
    parallel_iterations=1,  # Keeps one chunk of scores in memory.
  )
  return rows.concat(), scores.concat()
