"""Windows of events, and what encoders of a history compute over them.

A window holds the newest events of a history in its first columns, oldest
first; the columns after them are padding. Column t sees only the columns up to
t, so padding changes nothing before it.

Axes: n = histories, length = columns of a window, dim = size of a vector.
"""

import math
from collections.abc import Sequence

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
    num_ids: Number of known ids: an int or an int64 scalar.

  Returns:
    ([n, length] int64 window, padded with -1; [n] int32 events in it).

  Examples:
    >>> history_ids = tf.ragged.constant([[3, 1, 2], [5]])
    >>> window, lengths = xir.ops.history.newest(
    ...   history_ids, length=2, num_ids=9
    ... )
    >>> window.numpy().tolist(), lengths.numpy().tolist()
    ([[1, 2], [5, -1]], [2, 1])
  """
  if isinstance(history_ids, tf.RaggedTensor):
    history_ids = history_ids.to_tensor(NO_EVENT)
  columns, lengths = newest_columns(history_ids, length, num_ids)
  return at_columns(tf.cast(history_ids, tf.int64), columns), lengths


def newest_columns(
  history_ids: tf.Tensor, length: int, num_ids: int | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Where `newest` finds the events of its window.

  Args:
    history_ids: [n, H] integer ids, as in `newest`.
    length: Columns of the window.
    num_ids: Number of known ids.

  Returns:
    ([n, length] int32 columns of the histories, padded with -1; [n] int32
    events of the window).

  Examples:
    >>> history_ids = tf.constant([[3, -1, 2], [5, -1, -1]])
    >>> columns, _ = xir.ops.history.newest_columns(
    ...   history_ids, length=2, num_ids=9
    ... )
    >>> columns.numpy().tolist()
    [[0, 2], [0, -1]]
  """
  ids = tf.cast(history_ids, tf.int64)
  # Without columns there is nothing to sort.
  ids = tf.pad(ids, [[0, 0], [0, 1]], constant_values=NO_EVENT)
  known = (ids >= 0) & (ids < num_ids)
  from_end = tf.cumsum(tf.cast(known, tf.int32), axis=1, reverse=True)
  keep = known & (from_end <= length)
  # Distinct keys: kept columns first, in their order.
  width = tf.shape(ids)[1]
  keys = tf.range(width) + tf.where(keep, 0, width)
  columns = tf.argsort(keys, axis=1)
  columns = tf.where(tf.gather(keep, columns, batch_dims=1), columns, NO_EVENT)
  columns = tf.pad(
    columns[:, :length],
    [[0, 0], [0, tf.maximum(length - width, 0)]],
    constant_values=NO_EVENT,
  )
  lengths = tf.reduce_sum(tf.cast(keep, tf.int32), axis=1)
  return tf.ensure_shape(columns, [None, length]), lengths


def at_columns(values: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
  """Values of some columns, -1 for column -1.

  Args:
    values: [n, H] integer tensor.
    columns: [n, m] integer columns.

  Returns:
    [n, m] tensor.

  Examples:
    >>> values, columns = tf.constant([[7, 8]]), tf.constant([[1, -1]])
    >>> xir.ops.history.at_columns(values, columns).numpy().tolist()
    [[8, -1]]
  """
  # The added column, for values without columns, is the last one.
  values = tf.pad(values, [[0, 0], [0, 1]], constant_values=NO_EVENT)
  last = tf.shape(values)[1] - 1
  return tf.gather(values, tf.where(columns >= 0, columns, last), batch_dims=1)


def window_times(
  times: tf.Tensor, columns: tf.Tensor, lengths: tf.Tensor
) -> tf.Tensor:
  """Times of the events of a window and, after them, of the request.

  Args:
    times: [n, H + 1] integer times of the events of each history and, in the
      last column, of the request. Negative times are unknown.
    columns: [n, length] columns of the window; see `newest_columns`.
    lengths: [n] events of the window.

  Returns:
    [n, length + 1]: times of the events; from column `lengths` on, of the
    request.

  Examples:
    >>> times, columns = tf.constant([[10, 20, 90]]), tf.constant([[1, -1]])
    >>> xir.ops.history.window_times(times, columns, tf.constant([1])).numpy()
    array([[20, 90, 90]], dtype=int32)
  """
  events, request = times[:, :-1], times[:, -1:]
  found = tf.concat([at_columns(events, columns), request], axis=1)
  after = tf.range(tf.shape(found)[1]) >= lengths[:, tf.newaxis]
  return tf.where(after, request, found)


def age_buckets(times: tf.Tensor, num_buckets: int) -> tf.Tensor:
  """Ages of events at the time of each request, in classes of their logarithm.

      bucket = min(floor(log(max(age, 1)) / 0.301), num_buckets - 1)

  as in HSTU (Zhai et al. 2024). Column t makes its request at the time of the
  next event, or of the request after the last one: the time when the answer is
  asked for is known, what follows is not.

  If one time of a row is unknown, all its events are in bucket 0. So a bias by
  bucket has no effect on the softmax over the events of such a row.

  Args:
    times: [n, length + 1] integer times, as `window_times` returns them.
    num_buckets: Number of buckets.

  Returns:
    [n, length, length] int32: for each column, the bucket of each event.

  Examples:
    >>> times = tf.constant([[10, 20, 21]])
    >>> xir.ops.history.age_buckets(times, num_buckets=9).numpy().tolist()
    [[[7, 0], [7, 0]]]
  """
  events, requests = times[:, tf.newaxis, :-1], times[:, 1:, tf.newaxis]
  ages = tf.cast(tf.maximum(requests - events, 1), tf.float32)
  classes = tf.cast(tf.math.log(ages) / 0.301, tf.int32)
  known = tf.reduce_all(times >= 0, axis=1)[:, tf.newaxis, tf.newaxis]
  return tf.where(known, tf.minimum(classes, num_buckets - 1), 0)


def last(states: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
  """The state after the last event of each history.

  Args:
    states: [n, length, dim], one state per column.
    lengths: [n] events; a history without events gets its first column.

  Returns:
    [n, dim] tensor.

  Examples:
    >>> states = tf.constant([[[1.0], [2.0], [3.0]]])
    >>> xir.ops.history.last(states, tf.constant([2])).numpy()
    array([[2.]], dtype=float32)
  """
  return tf.gather(states, tf.maximum(lengths - 1, 0), batch_dims=1)


def prefixes(
  window: tf.Tensor, rows: tf.Tensor, positions: tf.Tensor
) -> tf.Tensor:
  """Prefixes of windows, as histories.

  Args:
    window: [w, length] ids, the oldest first.
    rows: [n] integer, the window of each history.
    positions: [n] integer, the number of events of the prefix.

  Returns:
    [n, length] ids, padded with -1.

  Examples:
    >>> window = tf.constant([[3, 1, 2]])
    >>> rows, positions = tf.constant([0, 0]), tf.constant([1, 2])
    >>> xir.ops.history.prefixes(window, rows, positions).numpy().tolist()
    [[3, -1, -1], [3, 1, -1]]
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

  Examples:
    >>> weights, lengths = tf.constant([[[2.0, 1.0]]]), tf.constant([2])
    >>> vectors = tf.ones([1, 2, 3])
    >>> xir.ops.history.weighted_sums(weights, vectors, lengths).numpy()
    array([[[3., 3., 3.]]], dtype=float32)
  """
  present = tf.sequence_mask(lengths, vectors.shape[1])[:, tf.newaxis]
  return tf.matmul(tf.where(present, weights, 0.0), vectors)


def aged_means(vectors: tf.Tensor, log_weights: tf.Tensor) -> tf.Tensor:
  """Mean of the events up to each column, weighted by their age.

      m_t = sum_{j <= t} a_{t - j} v_j / sum_{j <= t} a_{t - j}

  The bag of watches of Covington et al. 2016, with a weight for each age.

  Args:
    vectors: [n, length, dim] vectors of a window.
    log_weights: [at least length] log a, by age in events.

  Returns:
    [n, length, dim] means.

  Examples:
    >>> vectors = tf.constant([[[2.0], [4.0]]])
    >>> log_weights = tf.zeros([2])
    >>> xir.ops.history.aged_means(vectors, log_weights).numpy()[0]
    array([[2.],
           [3.]], dtype=float32)
  """
  length = vectors.shape[1]
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
  bias: tf.Tensor | None = None,
) -> tf.Tensor:
  """Scaled dot-product attention that sees no later column.

      softmax_{j <= t}(q_t . k_j / sqrt(dim) + bias_tj) v_j

  Equation 1 of Vaswani et al. 2017, causal as in SASRec (Kang and McAuley
  2018).

  Args:
    queries: [n, heads, m, dim] of m columns.
    keys: [n, heads, length, dim] of all columns.
    values: [n, heads, length, dim] of all columns.
    columns: [n, m] or [1, m] integer, the column of each query.
    bias: [n, heads or 1, m, length] to add to the logits; None: 0.

  Returns:
    [n, heads, m, dim] tensor.

  Examples:
    >>> keys = tf.zeros([1, 1, 2, 4])
    >>> values = tf.constant([[[[2.0], [4.0]]]])
    >>> columns = tf.constant([[0, 1]])
    >>> found = xir.ops.history.causal_attention(keys, keys, values, columns)
    >>> found.numpy()[0, 0]
    array([[2.],
           [3.]], dtype=float32)
  """
  logits = tf.matmul(queries, keys, transpose_b=True)
  logits *= tf.cast(queries.shape[-1], logits.dtype) ** -0.5
  if bias is not None:
    logits += bias
  visible = tf.range(tf.shape(keys)[2]) <= tf.cast(
    columns[:, tf.newaxis, :, tf.newaxis], tf.int32
  )
  logits = tf.where(visible, logits, tf.constant(float("-inf"), logits.dtype))
  return tf.matmul(tf.nn.softmax(logits), values)


def routed_interests(
  events: tf.Tensor,
  initial_logits: tf.Tensor,
  columns: tf.Tensor,
  num_rounds: int,
  log_weights: tf.Tensor | None = None,
) -> tf.Tensor:
  """Interests of the events up to some columns, by dynamic routing.

      b_jk = initial logits, by age;  then in each round
      w_jk = softmax_k(b_jk);  u_k = squash(sum_j a_j w_jk e_j)
      b_jk <- b_jk + e_j . u_k
      squash(z) = |z|^2 / (1 + |z|^2) z / |z|

  Behaviour-to-interest routing of MIND, Li et al. 2019, algorithm 1, where all
  a_j are 1. No gradient goes through the weights w.

  Args:
    events: [n, length, dim] mapped vectors e of a window.
    initial_logits: [at least length, interests], by age in events.
    columns: [n, m] or [1, m] integer; column t has the interests of the events
      up to t.
    num_rounds: Rounds, at least 1.
    log_weights: [at least length] log a, by age in events; None: 0.

  Returns:
    [n, m, interests, dim] tensor.

  Raises:
    ValueError: `num_rounds` is not positive.

  Examples:
    >>> events, initial_logits = tf.ones([1, 3, 2]), tf.zeros([3, 4])
    >>> xir.ops.history.routed_interests(
    ...   events, initial_logits, columns=tf.constant([[2]]), num_rounds=2
    ... ).shape
    TensorShape([1, 1, 4, 2])
  """
  ages = columns[:, :, tf.newaxis] - tf.range(tf.shape(events)[1])
  shares = tf.cast(ages >= 0, events.dtype)[..., tf.newaxis]
  ages = tf.maximum(ages, 0)
  if log_weights is not None:
    shares *= tf.gather(tf.exp(log_weights), ages)[..., tf.newaxis]
  # [n or 1, m, length, interests].
  logits = tf.gather(initial_logits, ages)
  fixed = tf.stop_gradient(events)
  for number in range(num_rounds):
    weights = tf.stop_gradient(tf.nn.softmax(logits)) * shares
    # `einsum` needs the weights in full, not broadcast along n.
    weights += tf.zeros_like(events[:, :1, :1, tf.newaxis])
    if number == num_rounds - 1:
      return squash(tf.einsum("nmjk,njd->nmkd", weights, events))
    weights = tf.stop_gradient(weights)
    interests = squash(tf.einsum("nmjk,njd->nmkd", weights, fixed))
    logits += tf.einsum("njd,nmkd->nmjk", fixed, interests)
  raise ValueError(f"`num_rounds` must be positive. Received: {num_rounds}.")


def squash(z: tf.Tensor) -> tf.Tensor:
  """|z|^2 / (1 + |z|^2) z / |z| of [..., dim] vectors (Sabour et al. 2017).

  Examples:
    >>> xir.ops.history.squash(tf.constant([[3.0, 4.0]])).numpy().round(3)
    array([[0.577, 0.769]], dtype=float32)
  """
  square = tf.reduce_sum(tf.square(z), axis=-1, keepdims=True)
  # At 0 the root has no gradient.
  return z * tf.sqrt(square + 1e-12) / (1.0 + square)


def label_aware_attention(
  interests: tf.Tensor, labels: tf.Tensor, power: int | None
) -> tf.Tensor:
  """The interests of a row, weighted by their scores with its label.

      sum_k softmax_k((u_k . v)^power) u_k

  Li et al. 2019, section 3.4; without a power, its limit: the best interest.

  Args:
    interests: [n, interests, dim].
    labels: [n, dim].
    power: At least 1; None: only the interest of the highest score counts.

  Returns:
    [n, dim] tensor.

  Examples:
    >>> interests, labels = tf.eye(2)[tf.newaxis], tf.constant([[0.1, 0.9]])
    >>> xir.ops.history.label_aware_attention(interests, labels, None).numpy()
    array([[0., 1.]], dtype=float32)
  """
  scores = tf.einsum("nkd,nd->nk", interests, labels)
  if power is None:
    return tf.gather(interests, tf.argmax(scores, axis=1), batch_dims=1)
  weights = tf.nn.softmax(scores**power)
  return tf.einsum("nk,nkd->nd", weights, interests)


def kept(
  num_rows: int | tf.Tensor,
  shape: Sequence[int],
  rate: float,
  *,
  seed: tf.Tensor,
  first_row: int | tf.Tensor = 0,
) -> tf.Tensor:
  """Draws the entries that dropout keeps; `only_kept` applies them.

  Args:
    num_rows: Number of rows, n.
    shape: Static shape of a row.
    rate: Share of entries that are not kept, in [0, 1).
    seed: [2] integer seed.
    first_row: Number of row 0 in the global batch: rows lose the same entries
      whichever replica holds them.

  Returns:
    [n, *shape] bool tensor.

  Examples:
    >>> keep = xir.ops.history.kept(2, [100], 0.5, seed=tf.constant([0, 1]))
    >>> keep.shape, keep.dtype
    (TensorShape([2, 100]), tf.bool)
  """
  keep = seeds.bernoulli_rows(
    seed, num_rows, math.prod(shape), 1.0 - rate, first_row
  )
  return tf.reshape(keep, [num_rows, *shape])


def only_kept(x: tf.Tensor, keep: tf.Tensor, rate: float) -> tf.Tensor:
  """Sets the entries that are not kept to 0, and scales up the others.

  Args:
    x: Float tensor.
    keep: Bool tensor of the shape of `x`; see `kept`.
    rate: Share of entries that are not kept, in [0, 1).

  Returns:
    Tensor like `x`; over the draws of `keep`, its expectation is `x`.

  Examples:
    >>> keep = tf.constant([True, False])
    >>> xir.ops.history.only_kept(tf.ones([2]), keep, rate=0.5).numpy()
    array([2., 0.], dtype=float32)
  """
  return tf.where(keep, x / (1.0 - rate), tf.zeros_like(x))
