"""Windows of events, and what encoders of a history compute over them.

A window holds the newest events of a history in its first columns, oldest
first; the columns behind them are padding. So column t can see the columns up
to t alone, and padding changes nothing before it.

Axes: n = histories, length = columns of a window, dim = size of a vector.
"""

import tensorflow as tf

from xir_tfrs.ops import seeds

NO_EVENT = -1


def newest(
  history_ids: tf.Tensor | tf.RaggedTensor,
  length: int,
  num_ids: int | tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
  """The newest known events of each history, as a window.

  Args:
    history_ids: [n, None] integer ids, oldest first; ragged, or padded with
      -1 anywhere. Ids outside `[0, num_ids)` are dropped.
    length: Columns of the window.
    num_ids: Number of known ids; an int64 scalar if it is a tensor.

  Returns:
    ([n, length] int64 window, padded with -1; [n] int32 events in it).
  """
  if isinstance(history_ids, tf.RaggedTensor):
    history_ids = history_ids.to_tensor(NO_EVENT)
  ids = tf.cast(history_ids, tf.int64)
  # A history of no columns has nothing to sort.
  ids = tf.pad(ids, [[0, 0], [0, 1]], constant_values=NO_EVENT)
  known = (ids >= 0) & (ids < num_ids)
  from_end = tf.cumsum(tf.cast(known, tf.int32), axis=1, reverse=True)
  keep = known & (from_end <= length)
  # Distinct keys: kept columns first, in their order.
  width = tf.shape(ids)[1]
  keys = tf.range(width) + tf.where(keep, 0, width)
  order = tf.argsort(keys, axis=1)
  ids = tf.gather(tf.where(keep, ids, NO_EVENT), order, batch_dims=1)
  ids = tf.pad(
    ids[:, :length],
    [[0, 0], [0, tf.maximum(length - width, 0)]],
    constant_values=NO_EVENT,
  )
  lengths = tf.reduce_sum(tf.cast(keep, tf.int32), axis=1)
  return tf.ensure_shape(ids, [None, length]), lengths


def last(states: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
  """The state after the last event of each history.

  Args:
    states: [n, length, dim], one state per column.
    lengths: [n] events; a history without events gets its first column.

  Returns:
    [n, dim] tensor.
  """
  return tf.gather(states, tf.maximum(lengths - 1, 0), batch_dims=1)


def prefixes(
  window: tf.Tensor, rows: tf.Tensor, positions: tf.Tensor
) -> tf.Tensor:
  """The histories that windows begin with.

  Args:
    window: [w, length] ids, the oldest first.
    rows: [n] integer, the window of each history.
    positions: [n] integer, how many events of its window it has.

  Returns:
    [n, length] ids, padded with -1.
  """
  before = tf.range(window.shape[1]) < tf.cast(positions, tf.int32)[:, None]
  return tf.where(before, tf.gather(window, rows), NO_EVENT)


def weighted_sums(
  weights: tf.Tensor, vectors: tf.Tensor, lengths: tf.Tensor
) -> tf.Tensor:
  """sum_j w_cj v_j over the events of each history, for each of m weightings.

  Equation 3 of Zhou et al. 2018, whose weights are not normalised.

  Args:
    weights: [n, m, length]; those of padding count as 0.
    vectors: [n, length, dim].
    lengths: [n] integer events of each history.

  Returns:
    [n, m, dim] sums.
  """
  present = tf.sequence_mask(lengths, vectors.shape[1])[:, tf.newaxis]
  return tf.matmul(tf.where(present, weights, 0.0), vectors)


def aged_means(vectors: tf.Tensor, log_weights: tf.Tensor) -> tf.Tensor:
  """Mean of the events up to each column, weighted by their age.

      m_t = sum_{j <= t} a_{t - j} v_j / sum_{j <= t} a_{t - j}

  The bag of watches of Covington et al. 2016, with a weight for each age.

  Args:
    vectors: [n, length, dim] vectors of a window.
    log_weights: [length] log a, by age in events.

  Returns:
    [n, length, dim] means.
  """
  length = log_weights.shape[0]
  ages = tf.range(length)[:, tf.newaxis] - tf.range(length)[tf.newaxis, :]
  logits = tf.gather(log_weights, tf.maximum(ages, 0))
  weights = tf.nn.softmax(
    tf.where(ages >= 0, logits, tf.constant(float("-inf"), logits.dtype))
  )
  return tf.einsum("tj,njd->ntd", weights, vectors)


def causal_attention(
  queries: tf.Tensor,
  keys: tf.Tensor,
  values: tf.Tensor,
  columns: tf.Tensor,
) -> tf.Tensor:
  """Scaled dot-product attention that sees no later column.

      softmax_{j <= t}(q_t . k_j / sqrt(dim)) v_j

  Equation 1 of Vaswani et al. 2017, causal as in SASRec (Kang and McAuley
  2018).

  Args:
    queries: [n, heads, m, dim] of m columns.
    keys: [n, heads, length, dim] of all columns.
    values: [n, heads, length, dim] of all columns.
    columns: [n, m] or [1, m] integer, the column of each query.

  Returns:
    [n, heads, m, dim] tensor.
  """
  logits = tf.matmul(queries, keys, transpose_b=True)
  logits *= tf.cast(queries.shape[-1], logits.dtype) ** -0.5
  visible = tf.range(tf.shape(keys)[2]) <= tf.cast(
    columns[:, tf.newaxis, :, tf.newaxis], tf.int32
  )
  logits = tf.where(visible, logits, tf.constant(float("-inf"), logits.dtype))
  return tf.matmul(tf.nn.softmax(logits), values)


def dropout(
  x: tf.Tensor,
  rate: float,
  *,
  seed: tf.Tensor,
  first_row: int | tf.Tensor = 0,
) -> tf.Tensor:
  """Sets a share of the entries to 0, and scales up the others.

  Args:
    x: [n, ...] float tensor; all but n is static.
    rate: Share of entries set to 0, in [0, 1).
    seed: [2] integer seed.
    first_row: Number of row 0 in the global batch: rows lose the same entries
      whichever replica holds them.

  Returns:
    Tensor like `x`, of the same expectation.
  """
  if not rate:
    return x
  width = 1
  for size in x.shape[1:]:
    width *= size
  uniform = seeds.uniform_rows(seed, tf.shape(x)[0], width, first_row)
  keep = tf.reshape(uniform >= rate, tf.shape(x))
  return tf.where(keep, x / (1.0 - rate), tf.zeros_like(x))
