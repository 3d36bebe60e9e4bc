"""Exact search with plain TensorFlow ops: one matrix product and a top-k."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from xir_tfrs.indexes import base, exact_search


class BruteForceIndex(base.RetrievalIndex):
  """Exact index that scores every candidate for every query.

  Its SavedModel needs only TensorFlow or TensorFlow Serving.

  Examples:
    >>> index = xir.indexes.BruteForceIndex().index(["tea", "milk"], np.eye(2))
    >>> ids, scores = index.search([[2.0, 1.0]], k=2, exclude=[["tea"]])
    >>> ids.numpy()  # Padded, because only one candidate remains.
    array([[b'milk', b'']], dtype=object)
  """

  def _store(self, embeddings: np.ndarray) -> tf.Variable:
    return tf.Variable(embeddings, trainable=False, name="vectors")

  def _top_rows(
    self, queries: tf.Tensor, k: tf.Tensor, excluded: tf.Tensor | None = None
  ) -> tuple[tf.Tensor, tf.Tensor]:
    return exact_search.top_rows(self.vectors, queries, k, excluded)
