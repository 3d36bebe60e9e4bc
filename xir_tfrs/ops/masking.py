"""Masks over a pool, and the one definition of a masked logit.

Axes: batch = rows, one per query; pool = candidates a row is scored against.
"""

import tensorflow as tf


def mask_logits(logits: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
  """Sets the logits that are not kept to -inf: they have probability 0.

  Args:
    logits: [batch, pool] float tensor.
    keep: [batch, pool] bool tensor.

  Returns:
    [batch, pool] tensor of the type of `logits`.
  """
  return tf.where(keep, logits, tf.constant(float("-inf"), logits.dtype))


def accidental_hits(positive_ids: tf.Tensor, pool_ids: tf.Tensor) -> tf.Tensor:
  """Where a pool's candidate is the row's positive, under the same id.

  Args:
    positive_ids: [batch] id of each row's positive.
    pool_ids: [pool] ids, of the same type.

  Returns:
    [batch, pool] bool tensor.
  """
  return tf.equal(positive_ids[:, tf.newaxis], pool_ids[tf.newaxis, :])


def own_columns(
  batch: int | tf.Tensor, pool: int | tf.Tensor, offset: int | tf.Tensor = 0
) -> tf.Tensor:
  """Where a pool's column is the row's own: column `row + offset`.

  Args:
    batch: Number of rows.
    pool: Number of columns.
    offset: Column of row 0; how many rows stand before it in the global batch.

  Returns:
    [batch, pool] bool tensor.
  """
  rows = tf.range(tf.cast(batch, tf.int64)) + tf.cast(offset, tf.int64)
  columns = tf.range(tf.cast(pool, tf.int64))
  return tf.equal(rows[:, tf.newaxis], columns[tf.newaxis, :])
