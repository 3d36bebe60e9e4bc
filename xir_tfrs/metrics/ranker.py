"""Finds the best candidates of the whole catalogue for a chunk of queries.

Axes: chunk (queries of a chunk), num_columns (candidates, rounded up to whole
blocks of `ops.top_k`), k (candidates to find).
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from xir_tfrs.ops import top_k


def make_ranker(
  candidates: np.ndarray, k: int
) -> Callable[..., list[np.ndarray]]:
  """Prepares a function that ranks the candidates.

  Args:
    candidates: [num_candidates, dim] float32 or float64 array.
    k: Number of candidates to find, at most num_candidates.

  Returns:
    A function of a chunk of queries, [chunk, dim] or [chunk, interests, dim],
    and four [n] arrays: the rows and ids of the relevant candidates, and those
    of the seen ones. It returns the results of `compile_ranker` as arrays.
  """
  num_candidates = len(candidates)
  padding = top_k.whole_blocks(num_candidates, k) - num_candidates
  table, column = unique_rows(candidates)
  if column is None:
    table = np.pad(table, [(0, padding), (0, 0)])
  else:
    column = tf.constant(np.pad(column, (0, padding)))
  compiled = functools.partial(
    compile_ranker, k, column is not None, table.dtype.name
  )
  table = tf.constant(table)
  outside = np.arange(num_candidates, num_candidates + padding, dtype=np.int64)

  def rank_chunk(queries, rows, ids, seen_rows, seen_ids):
    chunk = len(queries)
    masked_rows = np.repeat(np.arange(chunk), len(outside))
    masked = (
      np.concatenate([seen_rows, masked_rows]),
      np.concatenate([seen_ids, np.tile(outside, chunk)]),
    )
    arguments = [
      queries,
      table,
      np.stack([rows, ids], axis=1),
      np.stack(masked, axis=1),
    ]
    if column is not None:
      arguments.append(column)
    rank = compiled(queries.ndim == 3)
    return [output.numpy() for output in rank(*arguments)]

  return rank_chunk


def unique_rows(
  candidates: np.ndarray,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Returns the distinct rows, and the row of each candidate.

  A matrix product may round the same row differently in different columns (at
  the edges of its tiles), which would break ties arbitrarily. So each distinct
  row is scored once. If rows repeat, copying their scores makes the ranking two
  to three times slower.

  Returns:
    The distinct rows, and [num_candidates] the row of each candidate; None if
    all rows are distinct.
  """
  if candidates.shape[1] == 1:
    return candidates, None  # A single product is rounded the same anywhere.
  # Adding zero turns -0.0 into 0.0: the same number with other bytes.
  rows = np.ascontiguousarray(candidates + 0.0)
  row_bytes = np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))
  _, first, column = np.unique(
    rows.view(row_bytes).ravel(), return_index=True, return_inverse=True
  )
  if len(first) == len(rows):
    return rows, None
  return rows[first], column.ravel()


@functools.cache
def compile_ranker(
  k: int, expand: bool, dtype: str, interests: bool
) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
  """Compiles the ranking of one chunk for any sizes, so it is traced once.

  The function takes queries [chunk, dim], or with `interests` [chunk,
  interests, dim], of which the highest score counts; table [num_rows, dim];
  relevant [n, 2] and masked [m, 2] pairs of (row, candidate); and, if
  `expand`, column [num_columns], the row of the table of each candidate. It
  returns
    others: [chunk, k] ids of the best candidates that are neither relevant nor
      masked, equal scores by id; padded with -1.
    scores: [n] scores of the relevant candidates, -inf if masked.
    num_before: [n] number of others that score at least as much, at most k.
  """
  pairs = tf.TensorSpec([None, 2], tf.int64)
  matrix = tf.TensorSpec([None, None], dtype)
  queries = tf.TensorSpec([None, None, None], dtype) if interests else matrix
  signature = [queries, matrix, pairs, pairs]
  if expand:
    signature.append(tf.TensorSpec([None], tf.int64))

  @tf.function(input_signature=signature, autograph=False)
  def rank_chunk(queries, table, relevant, masked, column=None):
    if interests:
      scores = tf.reduce_max(tf.einsum("qkd,rd->qkr", queries, table), axis=1)
    else:
      scores = tf.matmul(queries, table, transpose_b=True)
    if expand:
      scores = tf.gather(scores, column, axis=1)
    scores = _mask(scores, masked)
    relevant_scores = tf.gather_nd(scores, relevant)
    # Reading first allows the write below to happen in place.
    with tf.control_dependencies([relevant_scores]):
      scores = _mask(scores, relevant)
    values, others = top_k.top_k(scores, k)
    others = tf.where(values > -np.inf, others, -1)
    rivals = tf.gather(values, relevant[:, 0])
    num_before = tf.math.count_nonzero(
      rivals >= relevant_scores[:, tf.newaxis], axis=1
    )
    return others, relevant_scores, num_before

  return rank_chunk


def _mask(scores: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
  # Adding -inf masks because scores are finite. This op writes in place if
  # nothing else references `scores`; `tf.tensor_scatter_nd_update` always
  # copies on a CPU, which takes longer than the product.
  hidden = tf.fill([tf.shape(pairs)[0]], tf.constant(-np.inf, scores.dtype))
  return tf.raw_ops.ScatterNdNonAliasingAdd(
    input=scores, indices=pairs, updates=hidden
  )
