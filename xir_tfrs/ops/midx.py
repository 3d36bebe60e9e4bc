"""MIDX: sampling from the whole catalogue by an inverted multi-index.

The sampler of CoRR (Huang et al. 2023). Vectors are cut into two halves,
each half of a candidate is replaced by the nearest of K codewords, and
candidates with the same two codewords form a bucket. With q0, q1 the halves
of a query, c0, c1 the codewords, and omega the total weight of a bucket,

    P(k0 | q)      in proportion to  e^{q0 c0[k0]} sum_k1 omega[k0, k1]
                                                          e^{q1 c1[k1]}
    P(k1 | k0, q)  in proportion to  omega[k0, k1] e^{q1 c1[k1]}
    P(i | k0, k1)  =                 weight_i / omega[k0, k1]

so that Q(i | q) is in proportion to weight_i e^{q c(i)}: a softmax over the
catalogue with every candidate replaced by its codewords, at a cost that does
not grow with the catalogue.

Axes: batch (queries), n (draws per query), N (candidates), K (codewords per
half), half (size of half a vector).
"""

from typing import NamedTuple

import tensorflow as tf

from xir_tfrs.ops import search


class InvertedLists(NamedTuple):
  """Candidates by bucket; bucket (k0, k1) has number k0 * K + k1.

  Attributes:
    order: [N] int64, the candidates, bucket after bucket.
    offsets: [K * K + 1] int64: bucket b is `order[offsets[b]:offsets[b + 1]]`.
    cumulative_weights: [N + 1] float64: total weight of the candidates before
      each place in `order`. float64 is exact for counts; float32 would not
      distinguish candidates in large catalogues.

  Examples:
    >>> codes = tf.constant([[0, 0], [0, 1], [1, 1]], tf.int64)
    >>> lists = xir.ops.midx.invert(codes, tf.ones([3]), num_codewords=2)
    >>> isinstance(lists, xir.ops.midx.InvertedLists), lists.order.numpy()
    (True, array([0, 1, 2]))
  """

  order: tf.Tensor
  offsets: tf.Tensor
  cumulative_weights: tf.Tensor


def halves(vectors: tf.Tensor) -> tf.Tensor:
  """Cuts [n, dim] vectors into [n, 2, half]; an odd dim gains a zero.

  Examples:
    >>> xir.ops.midx.halves(tf.constant([[1.0, 2.0, 3.0]])).numpy()
    array([[[1., 2.],
            [3., 0.]]], dtype=float32)
  """
  dim = vectors.shape[1]
  if dim % 2:
    vectors = tf.pad(vectors, [[0, 0], [0, 1]])
  return tf.reshape(vectors, [-1, 2, (dim + 1) // 2])


def invert(
  codes: tf.Tensor, weights: tf.Tensor, num_codewords: int
) -> InvertedLists:
  """The candidates of each bucket.

  Args:
    codes: [N, 2] int64, the codewords of each candidate's halves.
    weights: [N] weights > 0: 1, or a candidate's popularity.
    num_codewords: K.

  Examples:
    >>> codes = tf.constant([[0, 0], [0, 1], [1, 1]], tf.int64)
    >>> lists = xir.ops.midx.invert(codes, tf.ones([3]), num_codewords=2)
    >>> lists.offsets.numpy()  # Bucket (1, 0) is empty.
    array([0, 1, 2, 2, 3])
  """
  buckets = codes[:, 0] * num_codewords + codes[:, 1]
  order = tf.cast(tf.argsort(buckets, stable=True), tf.int64)
  starts = tf.range(num_codewords**2 + 1, dtype=tf.int64)
  offsets = tf.searchsorted(
    tf.gather(buckets, order), starts, side="left", out_type=tf.int64
  )
  cumulative = tf.cumsum(tf.gather(tf.cast(weights, tf.float64), order))
  return InvertedLists(order, offsets, tf.pad(cumulative, [[1, 0]]))


def log_bucket_weights(lists: InvertedLists, num_codewords: int) -> tf.Tensor:
  """[K, K] float32 log omega: the log total weight, -inf where empty.

  Examples:
    >>> codes = tf.constant([[0, 0], [0, 1], [1, 1]], tf.int64)
    >>> lists = xir.ops.midx.invert(codes, tf.ones([3]), num_codewords=2)
    >>> xir.ops.midx.log_bucket_weights(lists, num_codewords=2).numpy()
    array([[  0.,   0.],
           [-inf,   0.]], dtype=float32)
  """
  ends = tf.gather(lists.cumulative_weights, lists.offsets)
  omega = tf.reshape(ends[1:] - ends[:-1], [num_codewords] * 2)
  # A difference of sums may not round to exactly 0.
  sizes = tf.reshape(lists.offsets[1:] - lists.offsets[:-1], omega.shape)
  log_omega = tf.math.log(tf.where(sizes > 0, omega, 1.0))
  return tf.cast(tf.where(sizes > 0, log_omega, float("-inf")), tf.float32)


def codeword_scores(queries: tf.Tensor, codebooks: tf.Tensor) -> tf.Tensor:
  """[2, batch, K] inner products q0 c0 and q1 c1.

  Args:
    queries: [batch, dim] vectors.
    codebooks: [2, K, half] codewords of the first and the second halves.

  Examples:
    >>> queries, codebooks = tf.ones([1, 4]), tf.ones([2, 3, 2])
    >>> xir.ops.midx.codeword_scores(queries, codebooks).shape
    TensorShape([2, 1, 3])
  """
  codebooks = tf.cast(codebooks, queries.dtype)
  return tf.einsum("bhd,hkd->hbk", halves(queries), codebooks)


def log_first(scores: tf.Tensor, log_omega: tf.Tensor) -> tf.Tensor:
  """[batch, K] log P(k0 | q).

  Args:
    scores: [2, batch, K] from `codeword_scores`.
    log_omega: [K, K] from `log_bucket_weights`; not all -inf.

  Examples:
    >>> codes = tf.constant([[0, 0], [0, 1], [1, 1]], tf.int64)
    >>> lists = xir.ops.midx.invert(codes, tf.ones([3]), num_codewords=2)
    >>> log_omega = xir.ops.midx.log_bucket_weights(lists, num_codewords=2)
    >>> scores = tf.zeros([2, 1, 2])  # [halves, batch, codewords]
    >>> tf.exp(xir.ops.midx.log_first(scores, log_omega)).numpy().round(3)
    array([[0.667, 0.333]], dtype=float32)
  """
  second = tf.reduce_logsumexp(_second(scores, log_omega), axis=2)
  return tf.nn.log_softmax(scores[0] + second)


def log_second(scores: tf.Tensor, log_omega: tf.Tensor) -> tf.Tensor:
  """[batch, K, K] log P(k1 | k0, q); -inf where all buckets of k0 are empty.

  Examples:
    >>> codes = tf.constant([[0, 0], [0, 1], [1, 1]], tf.int64)
    >>> lists = xir.ops.midx.invert(codes, tf.ones([3]), num_codewords=2)
    >>> log_omega = xir.ops.midx.log_bucket_weights(lists, num_codewords=2)
    >>> scores = tf.zeros([2, 1, 2])  # [halves, batch, codewords]
    >>> tf.exp(xir.ops.midx.log_second(scores, log_omega)).numpy().round(3)
    array([[[0.5, 0.5],
            [0. , 1. ]]], dtype=float32)
  """
  second = _second(scores, log_omega)
  total = tf.reduce_logsumexp(second, axis=2, keepdims=True)
  # -inf - -inf would be NaN.
  return second - tf.where(tf.math.is_finite(total), total, 0.0)


def log_partition(scores: tf.Tensor, log_omega: tf.Tensor) -> tf.Tensor:
  """[batch] log of sum_i weight_i e^{q c(i)}, over the whole catalogue.

  Examples:
    >>> codes = tf.constant([[0, 0], [0, 1], [1, 1]], tf.int64)
    >>> lists = xir.ops.midx.invert(codes, tf.ones([3]), num_codewords=2)
    >>> log_omega = xir.ops.midx.log_bucket_weights(lists, num_codewords=2)
    >>> scores = tf.zeros([2, 1, 2])  # [halves, batch, codewords]
    >>> tf.exp(xir.ops.midx.log_partition(scores, log_omega)).numpy().round(3)
    array([3.], dtype=float32)
  """
  both = scores[0][:, :, tf.newaxis] + _second(scores, log_omega)
  return tf.reduce_logsumexp(both, axis=[1, 2])


def log_prob(
  scores: tf.Tensor,
  log_omega: tf.Tensor,
  codes: tf.Tensor,
  log_weights: tf.Tensor | float,
) -> tf.Tensor:
  """log Q(i | q) of given candidates.

  Args:
    scores: [2, batch, K] from `codeword_scores`.
    log_omega: [K, K] from `log_bucket_weights`.
    codes: [batch, n, 2] int64, the candidates' codewords.
    log_weights: [batch, n] logs of the candidates' weights, or a number.

  Returns:
    [batch, n] logs; their exponentials sum to 1 over the catalogue.

  Examples:
    >>> codes = tf.constant([[0, 0], [0, 1], [1, 1]], tf.int64)
    >>> lists = xir.ops.midx.invert(codes, tf.ones([3]), num_codewords=2)
    >>> log_omega = xir.ops.midx.log_bucket_weights(lists, num_codewords=2)
    >>> scores = tf.zeros([2, 1, 2])  # [halves, batch, codewords]
    >>> found = xir.ops.midx.log_prob(scores, log_omega, codes[tf.newaxis], 0.0)
    >>> tf.exp(found).numpy().round(3)
    array([[0.333, 0.333, 0.333]], dtype=float32)
  """
  first = tf.gather(scores[0], codes[:, :, 0], batch_dims=1)
  second = tf.gather(scores[1], codes[:, :, 1], batch_dims=1)
  partition = log_partition(scores, log_omega)[:, tf.newaxis]
  return first + second + tf.cast(log_weights, first.dtype) - partition


def draw(
  scores: tf.Tensor, lists: InvertedLists, uniform: tf.Tensor
) -> tf.Tensor:
  """Draws candidates, with replacement, from Q(i | q).

  Args:
    scores: [2, batch, K] from `codeword_scores`.
    lists: The candidates of each bucket.
    uniform: [batch, n, 4] float32, uniform on [0, 1) with 23 bits: one number
      for each of k0 and k1, two for the place in the bucket.

  Returns:
    [batch, n] int64 candidates.

  Examples:
    >>> codes = tf.constant([[0, 0], [0, 1], [1, 1]], tf.int64)
    >>> lists = xir.ops.midx.invert(codes, tf.ones([3]), num_codewords=2)
    >>> log_omega = xir.ops.midx.log_bucket_weights(lists, num_codewords=2)
    >>> scores = tf.zeros([2, 1, 2])  # [halves, batch, codewords]
    >>> uniform = tf.random.stateless_uniform([1, 50, 4], seed=[0, 1])
    >>> drawn = xir.ops.midx.draw(scores, lists, uniform)
    >>> sorted(set(drawn.numpy()[0].tolist()))
    [0, 1, 2]
  """
  num_codewords = scores.shape[2]
  log_omega = log_bucket_weights(lists, num_codewords)
  first = draw_columns(log_first(scores, log_omega), uniform[:, :, 0])
  second = tf.gather(log_second(scores, log_omega), first, batch_dims=1)
  second = draw_columns(
    tf.reshape(second, [-1, num_codewords]),
    tf.reshape(uniform[:, :, 1], [-1, 1]),
  )
  buckets = first * num_codewords + tf.reshape(second, tf.shape(first))
  low = tf.gather(lists.offsets, buckets)
  high = tf.gather(lists.offsets, buckets + 1)
  start = tf.gather(lists.cumulative_weights, low)
  width = tf.gather(lists.cumulative_weights, high) - start
  # 46 bits: 23 would leave candidates out of a bucket of millions.
  u = tf.cast(uniform, tf.float64)
  points = start + width * (u[:, :, 2] + 2.0**-23 * u[:, :, 3])
  places = search.upper_bound(lists.cumulative_weights, points)
  places = tf.cast(places, tf.int64) - 1
  # Rounding may reach the next bucket.
  places = tf.clip_by_value(places, low, tf.maximum(low, high - 1))
  return tf.gather(lists.order, places)


def draw_columns(log_weights: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
  """Draws columns, with replacement, in proportion to their weights.

  Args:
    log_weights: [batch, m] logs of weights; need not be normalised. A row of
      only -inf draws its last column.
    uniform: [batch, n] uniform on [0, 1).

  Returns:
    [batch, n] int64 columns.

  Examples:
    >>> log_weights = tf.math.log([[1.0, 3.0]])
    >>> uniform = tf.constant([[0.1, 0.9]])
    >>> xir.ops.midx.draw_columns(log_weights, uniform).numpy()
    array([[0, 1]])
  """
  highest = tf.reduce_max(log_weights, axis=1, keepdims=True)
  highest = tf.where(tf.math.is_finite(highest), highest, 0.0)
  cumulative = tf.cumsum(tf.exp(log_weights - highest), axis=1)
  # Exactly 1 from the last column with a weight on, and 1 > u: a column of
  # weight 0 is never drawn, whatever the rounding.
  cumulative = tf.math.divide_no_nan(cumulative, cumulative[:, -1:])
  drawn = tf.raw_ops.UpperBound(
    sorted_inputs=cumulative,
    values=tf.cast(uniform, cumulative.dtype),
    out_type=tf.int64,
  )
  last = tf.shape(log_weights, out_type=tf.int64)[1] - 1
  return tf.minimum(drawn, last)


def _second(scores: tf.Tensor, log_omega: tf.Tensor) -> tf.Tensor:
  """[batch, K, K] log of omega[k0, k1] e^{q1 c1[k1]}."""
  return tf.cast(log_omega, scores.dtype) + scores[1][:, tf.newaxis, :]
