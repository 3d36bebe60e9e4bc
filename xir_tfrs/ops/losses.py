"""Losses per example: the dense, obvious forms of what `fused` computes.

Axes: batch = rows, one per query; pool = candidates a row is scored against.
`positive_logits` = s(u, i) of the row's positive i; `counts` = n_j, how often
column j is drawn (`resampling.resample_counts`).
"""

import tensorflow as tf

from xir_tfrs.ops import masking, proposals


def sampled_softmax(
  logits: tf.Tensor,
  positive_logits: tf.Tensor,
  keep: tf.Tensor | None = None,
) -> tf.Tensor:
  """Cross entropy of the positive against the pool's kept columns.

      -log( e^{s_p} / (e^{s_p} + sum_j e^{s_j}) )

  With logits corrected by -log q this is the sampled softmax (Bengio and
  Senecal 2008; SSL-Pop in Chen et al. 2022). The positive stands in the
  denominator in any case: mask its own column, or it counts twice.

  Args:
    logits: [batch, pool] logits, log-Q corrected where that is wanted.
    positive_logits: [batch] logits of the positives, corrected alike.
    keep: [batch, pool] bool, which columns count; None: all.

  Returns:
    [batch] losses, >= 0.
  """
  if keep is not None:
    logits = masking.mask_logits(logits, keep)
  positive = positive_logits[:, tf.newaxis]
  everything = tf.concat([positive, logits], axis=1)
  return tf.reduce_logsumexp(everything, axis=1) - positive_logits


def resampled_softmax(
  logits: tf.Tensor, positive_logits: tf.Tensor, counts: tf.Tensor
) -> tf.Tensor:
  """Cross entropy of the positive against the resampled candidates.

      log(e^{s_p} + sum_j n_j e^{s_j}) - s_p

  Equation 3 of Chen et al. 2022 (and each part of equation 4), with the
  positive in the denominator as in the released code.

  Args:
    logits: [batch, pool] scores, not corrected.
    positive_logits: [batch] scores of the positives.
    counts: [batch, pool] how often each column was drawn, >= 0; no gradient.

  Returns:
    [batch] losses, >= 0.
  """
  counts = tf.stop_gradient(tf.cast(counts, logits.dtype))
  # log 0 = -inf drops the column; where the count is 0 the logit may be
  # anything, -inf and its gradient included.
  drawn = counts > 0
  log_counts = tf.math.log(tf.where(drawn, counts, 1.0))
  return sampled_softmax(logits + log_counts, positive_logits, keep=drawn)


def logq_corrected_softmax(
  logits: tf.Tensor,
  positive_logits: tf.Tensor,
  log_q: tf.Tensor,
  positive_log_q: tf.Tensor,
  keep: tf.Tensor,
) -> tf.Tensor:
  """The corrected log-Q loss of Khrylchenko et al. 2025.

      Q'_j = Q_j / (1 - Q_p)
      -(1 - P) log( e^{s_p} / sum_j e^{s_j - log Q'_j} )
      P = e^{s_p} / (e^{s_p} + (1/n) sum_j e^{s_j - log Q'_j})

  over the n kept columns; no gradient goes through P, the model's estimate of
  the positive's share of the full softmax. The positive is given, not drawn:
  it has no correction and no place in the sum, and what is drawn is drawn
  given that it is not the positive. The gradient estimates that of the full
  softmax, and is it where every other candidate is a column once and Q is
  uniform. The value may be negative: it is no measure of progress.

  Args:
    logits: [batch, pool] scores, not corrected.
    positive_logits: [batch] scores of the positives, not corrected.
    log_q: [pool] log Q of the columns.
    positive_log_q: [batch] log Q of the positives.
    keep: [batch, pool] bool, which columns count: not those that hold the
      positive.

  Returns:
    [batch] losses; 0 for rows without a kept column.
  """
  log_others = proposals.log_complement(positive_log_q)
  corrected = logits - log_q + log_others[:, tf.newaxis]
  num_columns = tf.math.count_nonzero(keep, axis=1, dtype=logits.dtype)
  empty = tf.equal(num_columns, 0)
  corrected = masking.mask_logits(corrected, keep)
  # Where nothing is kept anything finite will do, with gradient 0.
  corrected = tf.where(
    empty[:, tf.newaxis], tf.zeros_like(corrected), corrected
  )
  log_sum = tf.reduce_logsumexp(corrected, axis=1)
  log_mean = log_sum - tf.math.log(tf.maximum(num_columns, 1.0))
  not_positive = tf.stop_gradient(tf.sigmoid(log_mean - positive_logits))
  not_positive = tf.where(empty, tf.zeros_like(log_sum), not_positive)
  return not_positive * (log_sum - positive_logits)


def generalized_cross_entropy(
  log_probability: tf.Tensor, power: float
) -> tf.Tensor:
  """The loss of Zhang and Sabuncu 2018: (1 - p^q) / q; -log p for q = 0.

  Its gradient is p^q times that of the cross entropy: positives that the model
  finds unlikely, many of which are noise, count less.

  Args:
    log_probability: [batch] log p of the positives, as the model has it.
    power: q, in [0, 1].

  Returns:
    [batch] losses.
  """
  if not power:
    return -log_probability
  return -tf.math.expm1(power * log_probability) / power
