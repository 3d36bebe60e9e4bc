"""Loops over chunks of an axis, of static shapes where the sizes are known.

XLA compiles a loop whose chunks all have one size, known when it is traced. So
the remainder is a chunk of its own after the loop. Where sizes are not known
before the step runs, the last chunk of the loop is shorter instead.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

Size: TypeAlias = int | tf.Tensor


def size(x: tf.Tensor) -> Size:
  """Length of the first axis; an int where it is static.

  Examples:
    >>> xir.ops.chunks.size(tf.zeros([5, 2]))
    5
  """
  return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def part(x: tf.Tensor, start: Size, length: Size) -> tf.Tensor:
  """`x[start : start + length]`; of static shape if the length is an int.

  Examples:
    >>> xir.ops.chunks.part(tf.range(5), 1, 3).numpy()
    array([1, 2, 3], dtype=int32)
  """
  others = x.shape.rank - 1
  return tf.slice(x, [start] + [0] * others, [length] + [-1] * others)


def fold(
  step: Callable[[Any, Size, Size], tuple[Any, tuple[tf.Tensor, ...]]],
  total: Size,
  chunk: Size,
  carry: Any,
  like: tuple[tf.Tensor, ...] = (),
  in_flight: int = 1,
) -> tuple[Any, tuple[tf.Tensor, ...]]:
  """Goes through `[0, total)`, a chunk at a time.

  Args:
    step: (carry, start, length) -> (carry, tensors [length, ...]).
    total: Length of the axis; an int for static shapes.
    chunk: Length of a chunk; an int if `total` is one.
    carry: Carry of the first step: a structure of tensors of fixed shape.
    like: For each tensor that a step returns, a tensor [total, ...] of the
      type and shape that all steps give together.
    in_flight: How many chunks may be in memory at a time: what does not need
      the carry of the chunk before need not wait for it.

  Returns:
    (the last carry, the tensors of all steps, concatenated).

  Examples:
    >>> x = tf.range(5)
    >>> def step(total, start, length):
    ...   part = xir.ops.chunks.part(x, start, length)
    ...   return total + tf.reduce_sum(part), (2 * part,)
    >>> zero = tf.constant(0)
    >>> total, (doubled,) = xir.ops.chunks.fold(step, 5, 2, zero, (x,))
    >>> int(total), doubled.numpy()
    (10, array([0, 2, 4, 6, 8], dtype=int32))
  """
  static = isinstance(total, int) and isinstance(chunk, int)
  in_loop = total
  if static:
    in_loop = total - total % chunk
    if in_loop == chunk:
      in_loop = 0
  parts = []
  if not static or in_loop:
    carry, of_loop = _loop(step, in_loop, chunk, carry, like, static, in_flight)
    parts.append(of_loop)
  if static:
    for start in range(in_loop, total, chunk):
      carry, of_step = step(carry, start, min(chunk, total - start))
      parts.append(of_step)
  if not parts:
    return carry, like
  return carry, tuple(
    tf.ensure_shape(tf.concat(found, 0) if found[1:] else found[0], x.shape)
    for x, found in zip(like, zip(*parts, strict=True), strict=True)
  )


def _loop(step, total, chunk, carry, like, static, in_flight):
  num_chunks = (total + chunk - 1) // chunk
  arrays = tuple(
    tf.TensorArray(
      x.dtype,
      num_chunks,
      infer_shape=static,
      element_shape=[chunk if static else None, *x.shape[1:]],
    )
    for x in like
  )

  def body(number, carry, arrays):
    start = number * chunk
    length = chunk if static else tf.minimum(chunk, total - start)
    carry, found = step(carry, start, length)
    arrays = tuple(
      a.write(number, x) for a, x in zip(arrays, found, strict=True)
    )
    return number + 1, carry, arrays

  _, carry, arrays = tf.while_loop(
    lambda number, *_: number < num_chunks,
    body,
    (0, carry, arrays),
    parallel_iterations=in_flight,
  )
  return carry, tuple(array.concat() for array in arrays)


def has_gpu() -> bool:
  """Whether there is a GPU, for which few large kernels are best.

  Examples:
    >>> isinstance(xir.ops.chunks.has_gpu(), bool)
    True
  """
  return bool(tf.config.list_physical_devices("GPU"))
