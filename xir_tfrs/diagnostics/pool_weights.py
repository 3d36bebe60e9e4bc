"""Which weights a task's loss gives to the candidates of its pools.

A loss is a sum of terms, each of a pool, which the task computes one after
another in `_pool_loss`; they are recorded there, and computed again for a few
rows in a way that shows the weights.

Axes: rows (the first rows of the batch), pool (columns of one pool), distinct
(distinct ids of all pools of a step), dim.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from xir_tfrs.ops import fused, masking, resampling


@dataclasses.dataclass(frozen=True)
class Term:
  """One pool's part of a loss, and the arguments it was computed from.

  Attributes:
    batch: The `tasks.retrieval.Batch`.
    pool: What it was scored against.
    settings: The other arguments of `_pool_loss`.
    loss: Scalar, the result.
  """

  batch: Any
  pool: fused.Pool
  settings: dict[str, Any]
  loss: tf.Tensor


@contextlib.contextmanager
def recorded_terms(task: tf.keras.layers.Layer) -> Iterator[list[Term]]:
  """Lists the terms of the losses that the task computes meanwhile.

  The list stays empty for a task whose loss is not made of pools.
  """
  terms = []
  pool_loss = task._pool_loss

  def recorded(batch, pool, **settings):
    loss, draws = pool_loss(batch, pool, **settings)
    terms.append(Term(batch, pool, settings, loss))
    return loss, draws

  # In the instance, where it hides the method of the class.
  vars(task)["_pool_loss"] = recorded
  try:
    yield terms
  finally:
    del vars(task)["_pool_loss"]


def loss_weights(
  task: tf.keras.layers.Layer,
  terms: list[Term],
  shares: list[tf.Tensor],
  num_rows: int,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Weights P_j of the candidates in the gradient of each row's loss.

      grad loss = sum_j P_j grad s_j - grad s_p

  So P_j is the derivative of the loss by the score of j, and 1 more for the
  positive p.

  Args:
    task: The task.
    terms: Its terms.
    shares: Scalars, the derivatives of the loss by the terms.
    num_rows: For the first so many rows of the batch.

  Returns:
    ([distinct] ids, [distinct, rows] weights).
  """
  ids, columns = [], []
  positive = tf.ones([num_rows], terms[0].loss.dtype)
  for term, share in zip(terms, shares, strict=True):
    by_column, by_positive = _score_gradients(task, term, num_rows)
    ids.append(term.pool.ids)
    columns.append(share * by_column)
    positive += share * by_positive
  ids.append(terms[0].batch.ids[:num_rows])
  columns.append(tf.linalg.diag(positive))
  return _sum_by_id(tf.concat(ids, 0), tf.concat(columns, 0))


def draw_weights(
  task: tf.keras.layers.Layer, terms: list[Term], num_rows: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Probability that a draw of each row is each candidate.

  Args:
    task: A task that resamples.
    terms: Its terms, each with a resampler.
    num_rows: For the first so many rows of the batch.

  Returns:
    ([distinct] ids, [distinct, rows] probabilities).
  """
  ids, columns, total = [], [], 0.0
  for term in terms:
    log_weights = log_importance_weights(task, term, num_rows)
    number = tf.cast(
      term.settings["resampler"].num_resampled, log_weights.dtype
    )
    ids.append(term.pool.ids)
    columns.append(number * tf.transpose(tf.exp(log_weights)))
    total += number
  return _sum_by_id(tf.concat(ids, 0), tf.concat(columns, 0) / total)


def log_importance_weights(
  task: tf.keras.layers.Layer, term: Term, num_rows: int
) -> tf.Tensor:
  """[rows, pool] log weights by which a pool is resampled, with its masks."""
  config, batch, pool = task.get_config(), term.batch, term.pool
  logits = tf.matmul(
    batch.queries[:num_rows], pool.embeddings, transpose_b=True
  )
  keep = tf.ones_like(logits, tf.bool)
  if config["remove_accidental_hits"]:
    keep &= ~masking.accidental_hits(batch.ids[:num_rows], pool.ids)
  if not config["positive_in_pool"] and pool.own_offset is not None:
    keep &= ~masking.own_columns(
      num_rows, tf.shape(pool.ids)[0], pool.own_offset
    )
  if batch.known_ids is not None:
    known = masking.known_columns(
      batch.known_ids[:num_rows], batch.ids[:num_rows], pool.ids
    )
    keep &= ~masking.columns_mask(known, tf.shape(pool.ids)[0])
  return resampling.log_importance_weights(logits, pool.log_q, keep)


def _score_gradients(
  task: tf.keras.layers.Layer, term: Term, num_rows: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Derivatives of the rows' losses by scores.

  Each query gets a dimension of its own with a 1, where all candidates have a
  0: scores stay as they are, and the gradient of the candidates has the rows'
  parts side by side.

  Returns:
    ([pool, rows] by the scores of the columns, [rows] by that of the positive
    where it stands apart from them).
  """
  batch, pool = term.batch, term.pool
  dim = tf.shape(batch.queries)[1]
  own = tf.eye(num_rows, dtype=batch.queries.dtype)
  positives = tf.pad(batch.positives[:num_rows], [[0, 0], [0, num_rows]])
  embeddings = tf.pad(pool.embeddings, [[0, 0], [0, num_rows]])
  settings = term.settings | {"count_draws": False}
  if settings.get("positive_log_q") is not None:
    settings["positive_log_q"] = settings["positive_log_q"][:num_rows]
  with tf.GradientTape() as tape:
    tape.watch([positives, embeddings])
    loss, _ = task._pool_loss(
      dataclasses.replace(
        batch,
        queries=tf.concat([batch.queries[:num_rows], own], 1),
        positives=positives,
        ids=batch.ids[:num_rows],
        known_ids=None
        if batch.known_ids is None
        else batch.known_ids[:num_rows],
        row_weights=tf.ones([num_rows], own.dtype),
      ),
      dataclasses.replace(pool, embeddings=embeddings),
      **settings,
    )
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
