"""Importance resampling: log weights -> how often each candidate is drawn.

Axes: batch = rows, one per query; pool = candidates to draw from.

Names here and in Chen et al. 2022: `log_weights` = log w(i|u), equation 3;
`num_resampled` = |R_u| (batch) or |K_u| (cache); `counts` = n_j, how often j
stands in R_u. Drawing m items and summing over them is the same as weighting
the pool's columns with their counts, and needs no [batch, m] gather.

Every method is unbiased, E[counts] = num_resampled * softmax(log_weights):

    multinomial  m independent draws, as in the paper.
    systematic   one uniform u per row: n_j = floor(m c_j + u) - floor(m
                 c_{j-1} + u), c the cumulative weights. Each n_j is within 1
                 of m w_j, and the total is exactly m. The default: smallest
                 variance at one random number per row.
    lattice      n_j = floor(m w_j + frac(u + j phi)): as systematic without
                 the scan; the total is m only in expectation.
    expected     n_j = m w_j: no randomness; the limit of the others.
"""

import numpy as np
import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.ops import masking, seeds

METHODS = ("systematic", "multinomial", "lattice", "expected")

_GOLDEN_RATIO = 0.6180339887498949
_BLOCK = 32


def log_importance_weights(
  logits: tf.Tensor, log_q: tf.Tensor, keep: tf.Tensor | None = None
) -> tf.Tensor:
  """Log of the importance weights of a pool, `w(i|u)` of equation 3.

  Args:
    logits: [batch, pool] scores.
    log_q: [pool] log of the proposal by which the pool's candidates arrived.
    keep: [batch, pool] bool, which columns may be drawn; None: all.

  Returns:
    [batch, pool] log softmax of `logits - log_q` over the kept columns,
    without gradient; -inf where a column is not kept.

  Examples:
    >>> logits = tf.constant([[1.0, 1.0]])
    >>> log_q = tf.math.log([0.75, 0.25])
    >>> weights = xir.ops.resampling.log_importance_weights(logits, log_q)
    >>> tf.exp(weights).numpy().round(2)  # The rare one counts three times.
    array([[0.25, 0.75]], dtype=float32)
  """
  corrected = logits - tf.cast(log_q, logits.dtype)
  if keep is not None:
    corrected = masking.mask_logits(corrected, keep)
  # The gradient of the loss goes through the scores of the drawn items, not
  # through how they were drawn.
  corrected = tf.stop_gradient(corrected)
  return corrected - tf.where(
    tf.reduce_any(tf.math.is_finite(corrected), axis=1, keepdims=True),
    tf.reduce_logsumexp(corrected, axis=1, keepdims=True),
    0.0,
  )


def resample_counts(
  log_weights: tf.Tensor,
  num_resampled: int,
  *,
  seed: int | tf.Tensor,
  method: str = "systematic",
  first_row: int | tf.Tensor = 0,
) -> tf.Tensor:
  """How often each column is drawn for each row.

  Args:
    log_weights: [batch, pool] log weights; need not be normalised. A row with
      all weights -inf draws nothing.
    num_resampled: Draws per row.
    seed: [2] integer seed, or a scalar.
    method: One of `METHODS`; the module says what each does.
    first_row: Number of row 0 in the global batch: rows draw the same numbers
      whichever chunk or replica holds them.

  Returns:
    [batch, pool] float32 counts, without gradient.

  Raises:
    ValueError: Unknown method, or `num_resampled` is no whole number > 0.

  Examples:
    >>> log_weights = tf.math.log([[0.5, 0.25, 0.25]])
    >>> xir.ops.resampling.resample_counts(
    ...   log_weights, 4, seed=0, method="expected"
    ... ).numpy()
    array([[2., 1., 1.]], dtype=float32)
    >>> counts = xir.ops.resampling.resample_counts(log_weights, 8, seed=0)
    >>> float(tf.reduce_sum(counts))
    8.0
  """
  validate_method(method)
  checks.require_sizes(num_resampled=num_resampled)
  log_weights = tf.stop_gradient(tf.convert_to_tensor(log_weights))
  shares, log_sum = softmax(log_weights)
  nothing = tf.math.is_inf(log_sum)[:, tf.newaxis]
  return counts_from_shares(
    tf.where(nothing, tf.zeros_like(shares), shares),
    num_resampled,
    seed=seed,
    method=method,
    first_row=first_row,
  )


def softmax(
  logits: tf.Tensor, may_be_empty: bool = True
) -> tuple[tf.Tensor, tf.Tensor]:
  """The softmax of each row, and the log of the sum that it divides by.

  Args:
    logits: [batch, pool] float tensor.
    may_be_empty: Whether there may be rows of -inf; False saves a pass.

  Returns:
    ([batch, pool], [batch]). A row of -inf has equal shares, and the log -inf.

  Examples:
    >>> shares, log_sum = xir.ops.resampling.softmax(tf.zeros([1, 4]))
    >>> print(shares.numpy(), f"{log_sum[0]:.4f} = {np.log(4):.4f}")
    [[0.25 0.25 0.25 0.25]] 1.3863 = 1.3863
  """
  highest = tf.reduce_max(logits, axis=1)
  if may_be_empty:
    # Of a row of -inf, `tf.nn.softmax` would be NaN.
    logits = tf.maximum(logits, logits.dtype.min)
  shares = tf.nn.softmax(logits)
  # The highest share is e^{highest} / sum.
  return shares, highest - tf.math.log(tf.reduce_max(shares, axis=1))


def counts_from_shares(
  shares: tf.Tensor,
  num_resampled: int,
  *,
  seed: tf.Tensor,
  method: str,
  first_row: int | tf.Tensor = 0,
) -> tf.Tensor:
  """`resample_counts` for [batch, pool] shares, which sum up to 1, or 0.

  Examples:
    >>> shares = tf.constant([[0.5, 0.5, 0.0]])
    >>> xir.ops.resampling.counts_from_shares(
    ...   shares, 4, seed=tf.constant([0, 1]), method="systematic"
    ... ).numpy()
    array([[2., 2., 0.]], dtype=float32)
  """
  draw = {
    "systematic": _systematic,
    "multinomial": _multinomial,
    "lattice": _lattice,
    "expected": _expected,
  }[method]
  counts = draw(shares, num_resampled, seed, first_row)
  return tf.stop_gradient(tf.cast(counts, tf.float32))


def effective_sample_size(log_weights: tf.Tensor) -> tf.Tensor:
  """Kish's effective sample size of each row's weights.

  Args:
    log_weights: [batch, pool] normalised log weights.

  Returns:
    [batch] `1 / sum_j w_j^2`, between 1 and the pool size.

  Examples:
    >>> log_weights = tf.math.log([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    >>> xir.ops.resampling.effective_sample_size(log_weights).numpy()
    array([2., 1.], dtype=float32)
  """
  return tf.exp(-tf.reduce_logsumexp(2.0 * log_weights, axis=1))


def validate_method(method: str, argument: str = "method") -> None:
  """Raises ValueError, which names the argument, for an unknown method.

  Examples:
    >>> xir.ops.resampling.validate_method("systematic")
  """
  if method not in METHODS:
    raise ValueError(
      f"`{argument}` must be one of {METHODS}. "
      f"Received: `{argument}` = {method!r}."
    )


def _expected(shares, num_resampled, seed, first_row):
  del seed, first_row
  return tf.cast(num_resampled, shares.dtype) * shares


def _cumulative(shares):
  """[batch, pool] cumulative share; exactly 1 at the end, 0 if all masked."""
  cumulative = _cumsum_rows(shares)
  return tf.math.divide_no_nan(cumulative, cumulative[:, -1:])


def _cumsum_rows(shares):
  """[batch, pool] sums of each row up to and including each column.

  On a CPU `tf.cumsum` would be by far the slowest part of resampling; a product
  with a triangle of ones, block by block, takes half the time. Sums never
  decrease: a column has one more term than the column before, terms are >= 0,
  and rounding is monotonic. So no count is negative.
  """
  pool = shares.shape[1]
  if pool is None or pool % _BLOCK or tf.config.list_physical_devices("GPU"):
    # A GPU scans fast, and may round the factors of a product to 10 bits.
    return tf.cumsum(shares, axis=1)
  triangle = tf.linalg.band_part(tf.ones([_BLOCK] * 2, shares.dtype), 0, -1)
  within = tf.matmul(tf.reshape(shares, [-1, _BLOCK]), triangle)
  within = tf.reshape(within, [-1, pool // _BLOCK, _BLOCK])
  before = tf.cumsum(within[:, :, -1:], axis=1, exclusive=True)
  return tf.reshape(within + before, [-1, pool])


def _differences(cumulative_counts):
  """Counts per column from the counts up to and including each column."""
  # Faster than `tf.pad`.
  first = tf.zeros_like(cumulative_counts[:, :1])
  before = tf.concat([first, cumulative_counts[:, :-1]], axis=1)
  return cumulative_counts - before


def _uniform(seed, shares, width, first_row):
  uniform = seeds.uniform_rows(seed, tf.shape(shares)[0], width, first_row)
  return tf.cast(uniform, shares.dtype)


def _systematic(shares, num_resampled, seed, first_row):
  m = tf.cast(num_resampled, shares.dtype)
  u = _uniform(seed, shares, 1, first_row)
  cumulative = _cumsum_rows(shares)
  # Make the last sum slightly larger than m, and clip it: if it were rounded
  # down, the last draw would be lost.
  above_one = 1.0 + 4.0 * np.finfo(shares.dtype.as_numpy_dtype).eps
  scale = tf.math.divide_no_nan(m * above_one, cumulative[:, -1:])
  return _differences(tf.minimum(tf.floor(cumulative * scale + u), m))


def _multinomial(shares, num_resampled, seed, first_row):
  """Merges sorted uniforms with the cumulative shares: [batch, m + pool]."""
  u = _uniform(seed, shares, num_resampled + 1, first_row)
  # Order statistics of m uniforms are normalised sums of m + 1 exponentials.
  arrivals = tf.cumsum(-tf.math.log1p(-u), axis=1)
  points = tf.math.divide_no_nan(arrivals[:, :-1], arrivals[:, -1:])
  # Strictly below 1, the value of the last cumulative weight.
  below_one = 1.0 - tf.constant(2.0**-24, shares.dtype)
  points = tf.minimum(points, below_one)
  drawn = tf.searchsorted(points, _cumulative(shares), side="left")
  return _differences(drawn)


def _lattice(shares, num_resampled, seed, first_row):
  u = _uniform(seed, shares, 1, first_row)
  # Multiples of phi in float64: at 10^6 columns float32 has lost the fraction.
  multiples = tf.range(tf.shape(shares)[1])
  multiples = tf.math.floormod(
    tf.cast(multiples, tf.float64) * _GOLDEN_RATIO, 1.0
  )
  # `floormod` would take as long as everything else together.
  offsets = u + tf.cast(multiples, shares.dtype)
  offsets -= tf.floor(offsets)
  expected = _expected(shares, num_resampled, seed, first_row)
  return tf.floor(expected + offsets)
