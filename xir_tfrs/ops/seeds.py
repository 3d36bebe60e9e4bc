"""Stateless randomness: every draw is a function of (seed, step, stream).

Only the step needs saving: a restored run draws what an uninterrupted run would
have drawn.

All numbers are made from the bits of Philox by operations that XLA has too, so
a compiled step draws what a plain step draws. TensorFlow's own functions do not
promise that: compiled, they use other bits, and only the last 32 of a seed.
"""

import tensorflow as tf

# Streams of one task: draws of the same step that must be independent.
(
  BATCH_DRAWS,
  CACHE_DRAWS,
  NEXT_CACHE,
  INITIAL_CACHE,
  UNIFORM_CANDIDATES,
  RANKER_DRAWS,
  HISTORY_DROPOUT,
  FIRST_CODEWORDS,
) = range(8)

_PHILOX = 1
_PHILOX_BLOCK = 4  # 32-bit numbers made by one step of Philox's counter
# The key that TensorFlow scrambles seeds with.
_SCRAMBLING_KEY = 0x02461E293EC8F720
_FLOAT32_BITS = 23
_FLOAT64_BITS = 52


def step_seed(
  seed: int | tf.Tensor,
  step: int | tf.Tensor,
  stream: int,
  replica: int | tf.Tensor = 0,
) -> tf.Tensor:
  """Seed of one stream at one step.

  Args:
    seed: Base seed of the run.
    step: Training step.
    stream: Which of the step's independent draws.
    replica: 0 for draws that must be the same on all replicas.

  Returns:
    [2] int64 seed for `tf.random.stateless_*`.

  Examples:
    >>> stream = xir.ops.seeds.NEXT_CACHE
    >>> seed = xir.ops.seeds.step_seed(17, step=3, stream=stream)
    >>> seed.shape, seed.dtype
    (TensorShape([2]), tf.int64)
  """
  base = tf.stack([tf.cast(seed, tf.int64), tf.cast(stream, tf.int64)])
  return fold_in(fold_in(base, step), replica)


def fold_in(seed: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
  """[2] int64 seed from a [2] seed and a number, for a stream of its own.

  Equals `tf.random.experimental.stateless_fold_in` in a plain step.

  Examples:
    >>> seed = xir.ops.seeds.as_pair(17)
    >>> xir.ops.seeds.fold_in(seed, 3).shape
    TensorShape([2])
  """
  folded = _bits([1], *_key_and_counter(seed), tf.int64)
  number = tf.cast(number, tf.int64)
  return tf.concat([folded, tf.reshape(number, [1])], 0)


def as_pair(seed: int | tf.Tensor) -> tf.Tensor:
  """A [2] int64 seed from one, or from a scalar.

  Examples:
    >>> xir.ops.seeds.as_pair(17).shape
    TensorShape([2])
  """
  seed = tf.cast(seed, tf.int64)
  return tf.stack([seed, tf.zeros_like(seed)]) if seed.shape.rank == 0 else seed


def uniform_rows(
  seed: int | tf.Tensor,
  num_rows: int | tf.Tensor,
  width: int | tf.Tensor,
  first_row: int | tf.Tensor = 0,
) -> tf.Tensor:
  """Rows `[first_row, first_row + num_rows)` of an endless uniform matrix.

  Row i always holds the same numbers, so chunks of rows, and replicas that hold
  some of the rows, draw what one device would.

  Args:
    seed: [2] integer seed, or a scalar.
    num_rows: Number of rows wanted.
    width: Numbers per row. Another width is another matrix.
    first_row: First row wanted.

  Returns:
    [num_rows, width] float32 tensor, uniform on [0, 1).

  Examples:
    >>> all_rows = xir.ops.seeds.uniform_rows(0, num_rows=4, width=3)
    >>> later = xir.ops.seeds.uniform_rows(0, num_rows=2, width=3, first_row=2)
    >>> bool(tf.reduce_all(all_rows[2:] == later))
    True
  """
  bits = _rows_of_bits(seed, num_rows, width, first_row)[:, :width]
  bits = tf.bitwise.bitwise_and(bits, 2**_FLOAT32_BITS - 1)
  return tf.cast(bits, tf.float32) * 2.0**-_FLOAT32_BITS


def bernoulli_rows(
  seed: int | tf.Tensor,
  num_rows: int | tf.Tensor,
  width: int,
  probability: float,
  first_row: int | tf.Tensor = 0,
) -> tf.Tensor:
  """Rows `[first_row, first_row + num_rows)` of an endless matrix of bools.

  In half the time of `uniform_rows`, whose rows they are not.

  Args:
    seed: [2] integer seed, or a scalar.
    num_rows: Number of rows wanted.
    width: Bools per row. Another width is another matrix.
    probability: That an entry is true, in [0, 1], rounded to 1 / 65,536.
    first_row: First row wanted.

  Returns:
    [num_rows, width] bool tensor.

  Examples:
    >>> rows = xir.ops.seeds.bernoulli_rows(0, 2, width=3, probability=1.0)
    >>> rows.numpy().tolist()
    [[True, True, True], [True, True, True]]
  """
  blocks = -(-width // (2 * _PHILOX_BLOCK))
  pairs = _rows_of_bits(seed, num_rows, blocks * _PHILOX_BLOCK, first_row)
  halves = tf.reshape(
    tf.bitcast(pairs, tf.uint16), [num_rows, 2 * blocks * _PHILOX_BLOCK]
  )[:, :width]
  # As uint16, 2^16 would be 0.
  below = round(probability * 2**16) - 1
  if below < 0:
    return tf.zeros_like(halves, tf.bool)
  return halves <= tf.constant(below, tf.uint16)


def _rows_of_bits(
  seed: int | tf.Tensor,
  num_rows: int | tf.Tensor,
  width: int | tf.Tensor,
  first_row: int | tf.Tensor,
) -> tf.Tensor:
  """[num_rows, at least width] int32 with independent, uniform bits."""
  blocks = (tf.cast(width, tf.int64) + _PHILOX_BLOCK - 1) // _PHILOX_BLOCK
  key, counter = _key_and_counter(seed)
  # Added as int64: the bits are those of the unsigned sum.
  skipped = tf.cast(first_row, tf.int64) * blocks
  counter = tf.bitcast(counter, tf.int64) + tf.stack(
    [skipped, tf.zeros([], tf.int64)]
  )
  return _bits(
    tf.stack([tf.cast(num_rows, tf.int64), blocks * _PHILOX_BLOCK]),
    key,
    tf.bitcast(counter, tf.uint64),
    tf.int32,
  )


def uniform(seed: int | tf.Tensor, size: int | tf.Tensor) -> tf.Tensor:
  """[size] float64 numbers, uniform on [0, 1).

  What `tf.random.stateless_uniform` gives in a plain step.

  Args:
    seed: [2] integer seed, or a scalar.
    size: How many.

  Examples:
    >>> numbers = xir.ops.seeds.uniform(0, 1000)
    >>> numbers.dtype, bool(tf.reduce_all(numbers < 1.0))
    (tf.float64, True)
  """
  bits = _bits([size], *_key_and_counter(seed), tf.int64)
  # The 20 lower ones of the first 32, before the last 32.
  high = tf.bitwise.bitwise_and(bits, 2 ** (_FLOAT64_BITS - 32) - 1)
  low = tf.bitwise.bitwise_and(
    tf.bitwise.right_shift(bits, tf.constant(32, tf.int64)), 2**32 - 1
  )
  return tf.cast(high * 2**32 + low, tf.float64) * 2.0**-_FLOAT64_BITS


def uniform_ids(
  seed: int | tf.Tensor, size: int | tf.Tensor, num_ids: int
) -> tf.Tensor:
  """[size] int64 ids, uniform on [0, num_ids).

  What `tf.random.stateless_uniform` gives in a plain step.

  Args:
    seed: [2] integer seed, or a scalar.
    size: How many.
    num_ids: How many there are to draw from.

  Examples:
    >>> ids = xir.ops.seeds.uniform_ids(0, 100, num_ids=3)
    >>> sorted(set(ids.numpy().tolist()))
    [0, 1, 2]
  """
  key, counter = _key_and_counter(seed)
  return tf.raw_ops.StatelessRandomUniformIntV2(
    shape=[size],
    key=key,
    counter=counter,
    alg=_PHILOX,
    minval=tf.zeros([], tf.int64),
    maxval=tf.constant(num_ids, tf.int64),
  )


def _key_and_counter(seed: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """([1], [2]) uint64: key and counter that TensorFlow derives from a seed."""
  mixed = _bits(
    [2],
    tf.constant([_SCRAMBLING_KEY], tf.uint64),
    tf.bitcast(as_pair(seed), tf.uint64),
    tf.uint64,
  )
  return mixed[:1], tf.concat([tf.zeros([1], tf.uint64), mixed[1:]], 0)


def _bits(
  shape: tf.Tensor | list, key: tf.Tensor, counter: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
  """Integers with independent, uniform bits."""
  return tf.raw_ops.StatelessRandomUniformFullIntV2(
    shape=shape, key=key, counter=counter, alg=_PHILOX, dtype=dtype
  )
