"""Stateless randomness: every draw is a function of (seed, step, stream).

Nothing but the step needs saving, so a restored run draws what an
uninterrupted one would have drawn.
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
_PHILOX_BLOCK = 4  # float32 numbers made by one step of Philox's counter


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
    replica: Leave 0 for what must be the same on all replicas.

  Returns:
    [2] int64 seed for `tf.random.stateless_*`.
  """
  base = tf.stack([tf.cast(seed, tf.int64), tf.cast(stream, tf.int64)])
  return fold_in(fold_in(base, step), replica)


def fold_in(seed: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
  """[2] int64 seed from a [2] seed and a number: one of many streams of it."""
  return tf.random.experimental.stateless_fold_in(
    seed, tf.cast(number, tf.int64)
  )


def as_pair(seed: int | tf.Tensor) -> tf.Tensor:
  """A [2] int64 seed from one, or from a scalar."""
  seed = tf.cast(seed, tf.int64)
  return tf.stack([seed, tf.zeros_like(seed)]) if seed.shape.rank == 0 else seed


def uniform_rows(
  seed: int | tf.Tensor,
  num_rows: int | tf.Tensor,
  width: int | tf.Tensor,
  first_row: int | tf.Tensor = 0,
) -> tf.Tensor:
  """Rows `[first_row, first_row + num_rows)` of an endless uniform matrix.

  Row i holds the same numbers whoever asks for it, so chunks of rows, or
  replicas that hold some of the rows, draw what one device would.

  Args:
    seed: [2] integer seed, or a scalar.
    num_rows: Number of rows wanted.
    width: Numbers per row. Another width is another matrix.
    first_row: First row wanted.

  Returns:
    [num_rows, width] float32 tensor, uniform on [0, 1).
  """
  blocks = (tf.cast(width, tf.int64) + _PHILOX_BLOCK - 1) // _PHILOX_BLOCK
  key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=as_pair(seed))
  skipped = tf.cast(first_row, tf.int64) * blocks
  # Added as int64: the bits are those of the unsigned sum.
  counter = tf.bitcast(counter, tf.int64) + tf.stack(
    [skipped, tf.zeros([], tf.int64)]
  )
  numbers = tf.raw_ops.StatelessRandomUniformV2(
    shape=tf.stack([tf.cast(num_rows, tf.int64), blocks * _PHILOX_BLOCK]),
    key=key,
    counter=tf.bitcast(counter, tf.uint64),
    alg=_PHILOX,
  )
  return numbers[:, :width]
