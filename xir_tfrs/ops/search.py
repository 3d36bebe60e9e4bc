"""Search: in a sorted vector, and for equal ids."""

import tensorflow as tf

from xir_tfrs.ops import xla


def lower_bound(ordered: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
  """How many of the sorted numbers are less than each value.

  Args:
    ordered: [n] numbers, the smallest first.
    values: Tensor of numbers of the same type, of any shape.

  Returns:
    int32 tensor of the shape of `values`, in [0, n].

  Examples:
    >>> ordered, values = tf.constant([1, 3, 3]), tf.constant([3])
    >>> xir.ops.search.lower_bound(ordered, values).numpy()
    array([1], dtype=int32)
  """
  return _bound(ordered, values, "left")


def upper_bound(ordered: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
  """How many of the sorted numbers are at most each value; see above.

  Examples:
    >>> ordered, values = tf.constant([1, 3, 3]), tf.constant([3])
    >>> xir.ops.search.upper_bound(ordered, values).numpy()
    array([3], dtype=int32)
  """
  return _bound(ordered, values, "right")


def numbers(ids: tf.Tensor) -> tf.Tensor:
  """Numbers of the distinct ids.

  Args:
    ids: [n] integers.

  Returns:
    [n] int32 in [0, n): two places get the same number if their ids are equal.

  Examples:
    >>> numbers = xir.ops.search.numbers(tf.constant([70, 50, 70])).numpy()
    >>> bool(numbers[0] == numbers[2] != numbers[1])
    True
  """
  if not xla.compiling():
    return tf.unique(ids)[1]
  # XLA would go through the ids one by one.
  order = tf.argsort(ids)
  ordered = tf.gather(ids, order)
  first = tf.zeros_like(order[:1], tf.bool)
  is_new = tf.concat([first, ordered[1:] != ordered[:-1]], 0)
  return tf.scatter_nd(
    order[:, tf.newaxis],
    tf.cumsum(tf.cast(is_new, tf.int32)),
    tf.shape(order),
  )


def multiplicities(ids: tf.Tensor) -> tf.Tensor:
  """[n] int32: how often each id occurs among the [n] ids.

  Examples:
    >>> xir.ops.search.multiplicities(tf.constant([70, 50, 70])).numpy()
    array([2, 1, 2], dtype=int32)
  """
  number = numbers(ids)
  sizes = tf.math.unsorted_segment_sum(
    tf.ones_like(number), number, tf.size(number)
  )
  return tf.gather(sizes, number)


def _bound(ordered: tf.Tensor, values: tf.Tensor, side: str) -> tf.Tensor:
  if not xla.compiling():
    found = tf.searchsorted(ordered, tf.reshape(values, [-1]), side=side)
    return tf.reshape(found, tf.shape(values))
  # XLA would compare every value with every number.
  before = tf.less if side == "left" else tf.less_equal
  size = ordered.shape[0]
  low = tf.zeros(tf.shape(values), tf.int32)
  step = 1 << max(size.bit_length() - 1, 0)
  while step:
    # The numbers below `low + step` are before the value if the last one is.
    there = low + step
    last = tf.gather(ordered, tf.minimum(there, size) - 1)
    low = tf.where((there <= size) & before(last, values), there, low)
    step //= 2
  return low
