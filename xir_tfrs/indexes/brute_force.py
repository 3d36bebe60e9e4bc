"""Exact search: one matrix product and a top-k, from plain TensorFlow ops."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from xir_tfrs.indexes import base

# A chunk of queries scores at most this many candidates at once (128 MiB of
# float32), whatever the size of the batch.
_SCORES_PER_CHUNK = 2**25


class BruteForceIndex(base.RetrievalIndex):
  """Every candidate is scored for every query.

  A SavedModel of it needs nothing beyond TensorFlow, TensorFlow Serving
  included.
  """

  def __init__(self, name: str | None = None):
    super().__init__(name=name)
    self._embeddings: tf.Variable | None = None

  def _store(self, embeddings: np.ndarray) -> None:
    self._embeddings = tf.Variable(
      embeddings, trainable=False, name="embeddings"
    )

  def _top_rows(
    self, queries: tf.Tensor, k: tf.Tensor, excluded: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    return exact_top_rows(self._embeddings, queries, k, excluded)


def exact_top_rows(
  embeddings: tf.Tensor | tf.Variable,
  queries: tf.Tensor,
  k: tf.Tensor,
  excluded: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
  """The k best rows of `embeddings` by inner product, in chunks of queries.

  Args:
    embeddings: `[n, dim]` finite float32 tensor.
    queries: `[batch, dim]` finite float32 tensor.
    k: scalar int32 tensor, may exceed n.
    excluded: `[batch, E]` int64 tensor of rows to leave out; -1 is ignored.

  Returns:
    rows (int64) and scores (float32), both `[batch, k]`, best first, padded
    with -1 and -inf.
  """
  batch = tf.shape(queries)[0]
  n = tf.shape(embeddings)[0]
  chunk = tf.maximum(1, _SCORES_PER_CHUNK // n)
  # At least one chunk, so that an empty batch also has something to concat.
  num_chunks = tf.maximum(1, -(-batch // chunk))

  def step(i, rows, scores):
    part = slice(i * chunk, (i + 1) * chunk)
    best = _top_rows_of_chunk(embeddings, queries[part], k, excluded[part])
    return i + 1, rows.write(i, best[0]), scores.write(i, best[1])

  def results(dtype):
    return tf.TensorArray(
      dtype, num_chunks, infer_shape=False, element_shape=[None, None]
    )

  _, rows, scores = tf.while_loop(
    lambda i, *_: i < num_chunks,
    step,
    [0, results(tf.int64), results(tf.float32)],
    parallel_iterations=1,  # More would hold more than one chunk of scores.
  )
  return rows.concat(), scores.concat()


def _top_rows_of_chunk(
  embeddings: tf.Tensor | tf.Variable,
  queries: tf.Tensor,
  k: tf.Tensor,
  excluded: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
  scores = tf.matmul(queries, embeddings, transpose_b=True)
  listed = tf.where(excluded >= 0)
  hidden = tf.stack([listed[:, 0], tf.gather_nd(excluded, listed)], axis=1)
  scores = tf.tensor_scatter_nd_update(
    scores, hidden, tf.fill([tf.shape(hidden)[0]], -np.inf)
  )
  best = tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
  return base.best_rows(
    tf.cast(best.indices, tf.int64), best.values, best.values > -np.inf, k
  )
