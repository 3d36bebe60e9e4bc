"""A query vector for a user who was not in training, from a history.

Axes: n = histories, length = columns of a window, dim = size of a vector.
"""

import tensorflow as tf

_SMALLEST = 1e-30


def catalogue(vectors: tf.Tensor, ridge: float) -> tuple[tf.Tensor, tf.Tensor]:
  """The statistics of all items that `fold_in` needs.

  Args:
    vectors: [num_items, dim] float32.
    ridge: Size of the penalty lambda, positive; 1 is the mean eigenvalue of
      the matrix that it is added to. So scaled vectors have scaled penalties.

  Returns:
    ([dim] m, the mean vector; [dim, dim] (V_c^T V_c + lambda I)^-1 of the
    centered vectors, up to a positive factor).

  Examples:
    >>> mean, inverse = xir.ops.fold_in.catalogue(tf.eye(3), ridge=1.0)
    >>> mean.shape, inverse.shape
    (TensorShape([3]), TensorShape([3, 3]))
  """
  mean = tf.reduce_mean(vectors, axis=0)
  # Centering the vectors themselves would copy the catalogue.
  squares = tf.matmul(vectors, vectors, transpose_a=True)
  squares -= tf.cast(tf.shape(vectors)[0], tf.float32) * tf.tensordot(
    mean, mean, axes=0
  )
  dim = vectors.shape[1]
  # If all vectors are equal there is no scale, and none is needed.
  scale = tf.maximum(tf.linalg.trace(squares) / dim, _SMALLEST)
  return mean, tf.linalg.inv(squares / scale + ridge * tf.eye(dim))


def fold_in(
  vectors: tf.Tensor,
  lengths: tf.Tensor,
  mean: tf.Tensor,
  inverse: tf.Tensor,
  *,
  power: float,
) -> tf.Tensor:
  """The query vectors whose scores explain histories.

      q = (V_c^T V_c + lambda I)^-1 sum_j a_j^-power (v_j - m)

  over the items of a history, a_j = 1 for the newest, 2 for the one before,
  and so on. This is the step for one user of alternating least squares (Hu et
  al. 2008, equation 4), for item vectors that were trained by any method, with
  an intercept: items of the history should score above the others, at whatever
  level. Their confidences are small compared
  with that of the whole catalogue, which makes the step linear in the history;
  larger ones find no more.

  Args:
    vectors: [n, length, dim] float32 windows of items; see `ops.history`.
    lengths: [n] items of each history.
    mean: Of `catalogue`.
    inverse: Of `catalogue`.
    power: How fast the weight of an item falls with its age; 0: it does not.

  Returns:
    [n, dim] vectors of length 1, since only their directions compare items;
    zeros where the history gives no direction.

  Examples:
    >>> items = tf.constant([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    >>> mean, inverse = xir.ops.fold_in.catalogue(items, ridge=1.0)
    >>> history = tf.gather(items, [[0, 0]])  # [1, 2, dim]
    >>> xir.ops.fold_in.fold_in(
    ...   history, tf.constant([2]), mean, inverse, power=0.0
    ... ).numpy()
    array([[1., 0.]], dtype=float32)
  """
  ages = lengths[:, tf.newaxis] - tf.range(tf.shape(vectors)[1])
  weights = tf.where(
    ages > 0, tf.cast(tf.maximum(ages, 1), tf.float32) ** -power, 0.0
  )
  sums = tf.einsum("nl,nld->nd", weights, vectors - mean)
  return tf.math.l2_normalize(
    tf.matmul(sums, inverse), axis=1, epsilon=_SMALLEST
  )
