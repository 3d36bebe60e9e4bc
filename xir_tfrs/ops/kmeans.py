"""Deterministic k-means: independent of threads and of the clock.

Axes: n (points), K (codewords), dim.
"""

import tensorflow as tf

from xir_tfrs.ops import seeds


def initial_codewords(
  points: tf.Tensor, num_codewords: int, *, seed: int | tf.Tensor
) -> tf.Tensor:
  """k-means++ (Arthur and Vassilvitskii 2007): points far from each other.

  The next codeword is a point, drawn in proportion to the squared distance
  from the nearest codeword so far.

  Args:
    points: [n, dim] float tensor.
    num_codewords: K; if it exceeds the distinct points, some are repeated.
    seed: [2] integer seed, or a scalar.

  Returns:
    [K, dim] codewords.

  Examples:
    >>> points = tf.constant([[0.0], [0.0], [9.0]])
    >>> codewords = xir.ops.kmeans.initial_codewords(points, 2, seed=0)
    >>> sorted(codewords.numpy()[:, 0].tolist())
    [0.0, 9.0]
  """
  uniform = tf.random.stateless_uniform(
    [num_codewords], seed=seeds.as_pair(seed), dtype=tf.float64
  )

  def step(number, weights, chosen):
    cumulative = tf.cumsum(tf.cast(weights, tf.float64))
    place = tf.searchsorted(
      cumulative, [uniform[number] * cumulative[-1]], side="right"
    )[0]
    codeword = points[tf.minimum(place, tf.shape(points)[0] - 1)]
    distances = tf.reduce_sum(tf.square(points - codeword), axis=1)
    # The first is a uniform draw: there are no distances yet.
    weights = tf.where(number == 0, distances, tf.minimum(weights, distances))
    return number + 1, weights, chosen.write(number, codeword)

  _, _, chosen = tf.while_loop(
    lambda number, *_: number < num_codewords,
    step,
    (
      0,
      tf.ones(tf.shape(points)[:1], points.dtype),
      tf.TensorArray(points.dtype, num_codewords),
    ),
  )
  return tf.ensure_shape(chosen.stack(), [num_codewords, points.shape[1]])


def nearest(points: tf.Tensor, codewords: tf.Tensor) -> tf.Tensor:
  """[n] int64 number of the nearest codeword; of equals, the lower number.

  Args:
    points: [n, dim] float tensor.
    codewords: [K, dim] float tensor.

  Examples:
    >>> points = tf.constant([[1.0], [8.0]])
    >>> codewords = tf.constant([[0.0], [9.0]])
    >>> xir.ops.kmeans.nearest(points, codewords).numpy()
    array([0, 1])
  """
  # |x - c|^2 - |x|^2: the second term is the same for all codewords.
  distances = tf.reduce_sum(tf.square(codewords), axis=1) - 2.0 * tf.matmul(
    points, codewords, transpose_b=True
  )
  return tf.argmin(distances, axis=1, output_type=tf.int64)


def means(
  points: tf.Tensor, codes: tf.Tensor, codewords: tf.Tensor
) -> tf.Tensor:
  """[K, dim] mean of each codeword's points, or itself if it has none.

  Args:
    points: [n, dim] float tensor.
    codes: [n] int64 codeword of each point.
    codewords: [K, dim] the codewords before.

  Examples:
    >>> points = tf.constant([[1.0], [3.0]])
    >>> codes = tf.constant([0, 0], tf.int64)
    >>> xir.ops.kmeans.means(points, codes, tf.constant([[0.0], [9.0]])).numpy()
    array([[2.],
           [9.]], dtype=float32)
  """
  # A product, as a segment sum on a GPU would add up in any order.
  members = tf.one_hot(codes, tf.shape(codewords)[0], dtype=points.dtype)
  sums = tf.matmul(members, points, transpose_a=True)
  sizes = tf.reduce_sum(members, axis=0)[:, tf.newaxis]
  return tf.where(sizes > 0, tf.math.divide_no_nan(sums, sizes), codewords)


def lloyd(
  points: tf.Tensor, codewords: tf.Tensor, max_iterations: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Lloyd's iterations, until no point changes its codeword.

  Args:
    points: [n, dim] float tensor.
    codewords: [K, dim] where to start.
    max_iterations: Most iterations.

  Returns:
    (codewords, codes): [K, dim], and [n] int64 nearest codeword of each point.

  Examples:
    >>> points = tf.constant([[0.0], [2.0], [8.0], [10.0]])
    >>> start = tf.constant([[0.0], [2.0]])
    >>> codewords, codes = xir.ops.kmeans.lloyd(points, start, max_iterations=9)
    >>> codewords.numpy()[:, 0], codes.numpy()
    (array([1., 9.], dtype=float32), array([0, 0, 1, 1]))
  """

  def step(number, codewords, codes, unused_moved):
    codewords = means(points, codes, codewords)
    after = nearest(points, codewords)
    return number + 1, codewords, after, tf.reduce_any(after != codes)

  _, codewords, codes, _ = tf.while_loop(
    lambda number, codewords, codes, moved: moved & (number < max_iterations),
    step,
    (0, codewords, nearest(points, codewords), tf.constant(True)),
  )
  return codewords, codes
