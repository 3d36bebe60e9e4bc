"""Streaming estimate of how often candidates occur.

Yi et al. 2019 (RecSys), Algorithms 2 and 3. Hashed tables hold, per cell, the
mean gap between the batches a candidate is in, in steps: the reciprocal is
the probability that a batch has it. The paper's symbols:

    gap = B, last_seen = A, step = t, learning_rate = alpha,
    num_buckets = H (cells per table), num_hashes = m (tables)
"""

import math

import tensorflow as tf

from xir_tfrs.ops import seeds

# Hashes are taken modulo this prime, so tables have fewer cells.
HASH_PRIME = 2**31 - 1

# A 64-bit key in three parts: a part times a factor stays below 2^53.
_PART_BITS = 21
_LAST_PART_BITS = 22


def as_keys(ids: tf.Tensor) -> tf.Tensor:
  """[n] int64 keys of [n] integer or string ids.

  Strings are fingerprinted to 63 bits, the same in every process.

  Examples:
    >>> keys = xir.ops.frequency.as_keys(tf.constant(["tea", "milk", "tea"]))
    >>> keys.dtype, bool(keys[0] == keys[2])
    (tf.int64, True)
  """
  ids = tf.convert_to_tensor(ids)
  if ids.dtype == tf.string:
    return tf.strings.to_hash_bucket_fast(ids, tf.int64.max)
  return tf.cast(ids, tf.int64)


def hash_coefficients(num_hashes: int, *, seed: int) -> tf.Tensor:
  """[num_hashes, 7] int64: the hash functions of `cells`, drawn by `seed`.

  Examples:
    >>> xir.ops.frequency.hash_coefficients(2, seed=0).shape
    TensorShape([2, 7])
  """
  return tf.random.stateless_uniform(
    [num_hashes, 7],
    seed=seeds.as_pair(seed),
    minval=1,
    maxval=HASH_PRIME,
    dtype=tf.int64,
  )


def cells(
  keys: tf.Tensor, coefficients: tf.Tensor, num_buckets: int
) -> tf.Tensor:
  """Where keys stand in each table: the paper's h_i(y).

      x = (a_0 k_0 + a_1 k_1 + a_2 k_2) mod P
      h = (b_3 x^3 + b_2 x^2 + b_1 x + b_0) mod P mod H

  with k_0, k_1, k_2 the bits 0-20, 21-41 and 42-63 of the key and
  P = 2^31 - 1. Two keys share a cell of one table with a probability of about
  1 / H, whatever the keys, and independently in each table. With b_1 x + b_0
  alone this holds on average only: for some coefficients, a third of
  consecutive ids would collide in both of two tables of twice their number.

  Args:
    keys: [n] int64, any values.
    coefficients: [num_hashes, 7] int64 in [0, P): a_0, a_1, a_2, b_3 ... b_0.
    num_buckets: Cells per table, H.

  Returns:
    [num_hashes, n] int64 in [0, num_buckets).

  Examples:
    >>> coefficients = xir.ops.frequency.hash_coefficients(2, seed=0)
    >>> keys = tf.constant([3, 4, 3], tf.int64)
    >>> cells = xir.ops.frequency.cells(keys, coefficients, num_buckets=100)
    >>> cells.shape, bool(tf.reduce_all(cells[:, 0] == cells[:, 2]))
    (TensorShape([2, 3]), True)
  """
  part = 2**_PART_BITS - 1
  parts = (
    tf.bitwise.bitwise_and(keys, part),
    tf.bitwise.bitwise_and(tf.bitwise.right_shift(keys, _PART_BITS), part),
    # The shift of a negative key brings ones from the left.
    tf.bitwise.bitwise_and(
      tf.bitwise.right_shift(keys, 2 * _PART_BITS), 2**_LAST_PART_BITS - 1
    ),
  )
  a_0, a_1, a_2, *polynomial = tf.split(coefficients, 7, axis=1)
  x = (a_0 * parts[0] + a_1 * parts[1] + a_2 * parts[2]) % HASH_PRIME
  value = tf.zeros_like(x)
  for b in polynomial:
    # Both factors are below 2^31, so that int64 holds the sum.
    value = (value * x + b) % HASH_PRIME
  return value % num_buckets


def update_rate(
  learning_rate: float,
  appearances: tf.Tensor,
  appearances_so_far: tf.Tensor | None = None,
) -> tf.Tensor:
  """How much of a new gap goes into the mean.

      1 - (1 - alpha)^c,  for c appearances that are c equal updates

  and at least c / n, the running mean, if n is given.

  Args:
    learning_rate: alpha, in (0, 1].
    appearances: [cells] float32, c >= 1: appearances in this batch.
    appearances_so_far: [cells] float32, n >= c: those in all batches, this one
      included.

  Returns:
    [cells] float64 in (0, 1].

  Examples:
    >>> xir.ops.frequency.update_rate(0.5, tf.constant([1.0, 2.0])).numpy()
    array([0.5 , 0.75])
  """
  appearances = tf.cast(appearances, tf.float64)
  kept = math.log1p(-learning_rate) if learning_rate < 1.0 else -math.inf
  rate = -tf.math.expm1(appearances * kept)
  if appearances_so_far is None:
    return rate
  return tf.maximum(rate, appearances / tf.cast(appearances_so_far, tf.float64))


def next_gap(
  gap: tf.Tensor,
  last_seen: tf.Tensor,
  appearances: tf.Tensor,
  rate: tf.Tensor,
  *,
  step: tf.Tensor,
) -> tf.Tensor:
  """Algorithm 2: B <- (1 - rate) B + rate (t - A) / c.

  c = 1 is the paper's. For c the number of appearances in the batch, with the
  rate of c updates, 1 / B tends to the expected appearances per batch.

  Args:
    gap: [cells] float32, B.
    last_seen: [cells] int64, A: the step before this one that hit the cell.
    appearances: [cells] float32, c >= 1.
    rate: [cells] float64, see `update_rate`; alpha for c = 1.
    step: Scalar int64, t > A.

  Returns:
    [cells] float32, the next B.

  Examples:
    >>> xir.ops.frequency.next_gap(
    ...   gap=tf.constant([4.0]),
    ...   last_seen=tf.constant([10], tf.int64),
    ...   appearances=tf.constant([1.0]),
    ...   rate=tf.constant([0.5], tf.float64),
    ...   step=tf.constant(12, tf.int64),
    ... ).numpy()
    array([3.], dtype=float32)
  """
  # In float32 the last bit would depend on where in the vector a cell stands,
  # and so on the order of the batch.
  seen_gap = tf.cast(step - last_seen, tf.float64)
  seen_gap /= tf.cast(appearances, tf.float64)
  gap = (1.0 - rate) * tf.cast(gap, tf.float64) + rate * seen_gap
  return tf.cast(gap, tf.float32)


def longest_gap(gaps: tf.Tensor, *, step: tf.Tensor) -> tf.Tensor:
  """Algorithm 3: max_i B_i.

  A collision makes gaps shorter, so the longest is the one disturbed least.

  Args:
    gaps: [num_hashes, n] float32 gaps at the candidates' cells; 0: nothing is
      known, and the gap is at least as long as the stream.
    step: Scalar int64, length of the stream.

  Returns:
    [n] float32, > 0.

  Examples:
    >>> gaps = tf.constant([[2.0, 3.0], [5.0, 1.0]])
    >>> step = tf.constant(9, tf.int64)
    >>> xir.ops.frequency.longest_gap(gaps, step=step).numpy()
    array([5., 3.], dtype=float32)
  """
  unknown = tf.cast(tf.maximum(step, 1), tf.float32)
  return tf.reduce_max(tf.where(gaps > 0, gaps, unknown), axis=0)


def gap_of_share(
  shares: tf.Tensor, batch_size: int, *, count_appearances: bool
) -> tf.Tensor:
  """Expected gap, in steps, of a candidate with a share q of the rows.

      1 / (1 - (1 - q)^batch_size),  or 1 / (q batch_size) for appearances

  Args:
    shares: [...] float64 in (0, 1].
    batch_size: Rows of the global batch.
    count_appearances: Whether each appearance in a batch counts.

  Returns:
    [...] float64.

  Examples:
    >>> shares = tf.constant([0.5, 0.25], tf.float64)
    >>> xir.ops.frequency.gap_of_share(
    ...   shares, batch_size=1, count_appearances=True
    ... ).numpy()
    array([2., 4.])
  """
  if count_appearances:
    return 1.0 / (shares * batch_size)
  return -1.0 / tf.math.expm1(batch_size * tf.math.log1p(-shares))


def log_error(
  log_estimate: tf.Tensor, counts: tf.Tensor
) -> dict[str, tf.Tensor]:
  """Distance of an estimate from true counts, in logarithms.

  A constant factor on all candidates changes no softmax and counts as no
  error. Candidates that never occurred are left out.

  Args:
    log_estimate: [n] log of the estimated frequencies.
    counts: [n] true counts >= 0.

  Returns:
    Scalars float64: `"log_correlation"` of the two logarithms,
    `"candidate_log_error"`, the mean distance over candidates, and
    `"row_log_error"`, with every candidate weighted by its count.

  Examples:
    >>> log_estimate = tf.math.log([0.2, 0.4, 0.1])
    >>> counts = tf.constant([2, 4, 1])  # The same, but for a factor.
    >>> found = xir.ops.frequency.log_error(log_estimate, counts)
    >>> print(f"{found['log_correlation']:.3f}")
    1.000
  """
  counts = tf.cast(counts, tf.float64)
  came = counts > 0
  counts = counts[came]
  truth = tf.math.log(counts)
  estimate = tf.cast(log_estimate, tf.float64)[came]

  def mean(x, weights):
    return tf.math.divide_no_nan(
      tf.reduce_sum(weights * x), tf.reduce_sum(weights)
    )

  def distance(weights):
    error = estimate - truth
    return mean(tf.abs(error - mean(error, weights)), weights)

  alike = tf.ones_like(counts)
  x, y = estimate - mean(estimate, alike), truth - mean(truth, alike)
  return {
    "log_correlation": tf.math.divide_no_nan(
      tf.reduce_sum(x * y),
      tf.sqrt(tf.reduce_sum(x * x) * tf.reduce_sum(y * y)),
    ),
    "candidate_log_error": distance(alike),
    "row_log_error": distance(counts),
  }
