"""Ten candidates for tests of tasks; some have no training rows."""

import numpy as np
import tensorflow as tf

COUNTS = np.array([5, 1, 0, 40, 7, 2, 0, 3, 11, 0])
DIM = 3


def encoder(seed=0) -> tf.keras.layers.Embedding:
  """Candidate tower: [n] ids -> [n, DIM], a plain table."""
  table = np.random.default_rng(seed).normal(size=[len(COUNTS), DIM])
  layer = tf.keras.layers.Embedding(
    len(COUNTS),
    DIM,
    embeddings_initializer=tf.keras.initializers.Constant(table),
  )
  layer.build(None)
  return layer


def problem(batch, seed=1):
  """Query embeddings, and ids with repeats."""
  rng = np.random.default_rng(seed)
  query = rng.normal(size=[batch, DIM]).astype(np.float32)
  return query, rng.integers(0, 5, batch)


def loss(task, candidate_encoder, query, ids, **kwargs):
  """The task's loss, with candidates as they are encoded now."""
  ids = tf.constant(ids, tf.int64)
  return task(
    tf.convert_to_tensor(query),
    candidate_encoder(ids),
    candidate_ids=ids,
    **kwargs,
  )
