"""The weights that a task's loss gives to the candidates of its pools.

A loss is a sum of terms, one per pool (`RetrievalTask.loss_terms`). This module
recomputes them for a few rows in a way that exposes the weights, with the
masks, known positives and form of each term.

Axes: rows (the first rows of the batch), pool (columns of one pool), distinct
(distinct ids of all pools of a step), dim.
"""

import dataclasses
from collections.abc import Sequence

import tensorflow as tf

from xir_tfrs.tasks.batch import Term


def loss_weights(
  terms: Sequence[Term], num_rows: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Computes the weights P_j of the candidates in each row's gradient.

      grad loss = sum_j P_j grad s_j - grad s_p

  P_j is the derivative of the loss by the score of j, plus 1 for the positive
  p.

  Args:
    terms: Terms of a loss, with their shares.
    num_rows: Number of rows at the start of the batch.

  Returns:
    ([distinct] ids, [distinct, rows] weights).
  """
  ids, columns = [], []
  positive = tf.ones([num_rows], terms[0].batch.queries.dtype)
  for term in terms:
    by_column, by_positive = _score_gradients(term.first(num_rows), num_rows)
    ids.append(term.pool.ids)
    columns.append(term.share * by_column)
    positive += term.share * by_positive
  ids.append(terms[0].batch.ids[:num_rows])
  columns.append(tf.linalg.diag(positive))
  return _sum_by_id(tf.concat(ids, 0), tf.concat(columns, 0))


def draw_weights(
  terms: Sequence[Term], num_rows: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Computes the probability of each candidate in the draws of each row.

  Args:
    terms: Terms of a loss, each with a resampler.
    num_rows: Number of rows at the start of the batch.

  Returns:
    ([distinct] ids, [distinct, rows] probabilities); zeros for a row that
    draws nothing.
  """
  ids, columns, total = [], [], 0.0
  for term in terms:
    assert term.resampler is not None
    log_weights = term.first(num_rows).log_importance_weights()
    number = tf.cast(term.resampler.num_resampled, log_weights.dtype)
    ids.append(term.pool.ids)
    columns.append(number * tf.transpose(tf.exp(log_weights)))
    total += number
  return _sum_by_id(tf.concat(ids, 0), tf.concat(columns, 0) / total)


def _score_gradients(term: Term, num_rows: int) -> tuple[tf.Tensor, tf.Tensor]:
  """Derivatives of the rows' losses by scores.

  Each query gets an extra dimension with a 1, in which all candidates are 0.
  This does not change the scores, and the gradient of the candidates then holds
  the contribution of each row in its own dimension.

  Returns:
    ([pool, rows] derivatives by the scores of the columns, [rows] by the score
    of the positive if it is not one of the columns).
  """
  batch = term.batch
  dim = tf.shape(batch.queries)[1]
  own = tf.eye(num_rows, dtype=batch.queries.dtype)
  positives = tf.pad(batch.positives, [[0, 0], [0, num_rows]])
  embeddings = tf.pad(term.pool.embeddings, [[0, 0], [0, num_rows]])
  with tf.GradientTape() as tape:
    tape.watch([positives, embeddings])
    loss, _ = dataclasses.replace(
      term,
      batch=dataclasses.replace(
        batch,
        queries=tf.concat([batch.queries, own], 1),
        positives=positives,
      ),
      pool=dataclasses.replace(
        term.pool, embeddings=embeddings, gradient_scale=None
      ),
      count_draws=False,
    ).loss()
  by_positive, by_column = tape.gradient(
    loss, [positives, embeddings], unconnected_gradients="zero"
  )
  return by_column[:, dim:], tf.linalg.diag_part(by_positive[:, dim:])


def _sum_by_id(
  ids: tf.Tensor, columns: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """[n] ids, [n, rows] -> [distinct] ids, [distinct, rows] sums."""
  distinct, place = tf.unique(ids)
  return distinct, tf.math.unsorted_segment_sum(
    columns, place, tf.size(distinct)
  )
