"""The cross entropy per example, dense: a plain version of the kernel `fused`.

The forms of the loss, this one among them, are in `forms`.

Axes: batch = rows, one per query; pool = candidates a row is scored against.
`positive_logits` = s(u, i) of the row's positive i; `counts` = n_j, how often
column j is drawn (`resampling.resample_counts`).
"""

import tensorflow as tf

from xir_tfrs.ops import masking


def sampled_softmax(
  logits: tf.Tensor,
  positive_logits: tf.Tensor,
  keep: tf.Tensor | None = None,
) -> tf.Tensor:
  """Cross entropy of the positive against the pool's kept columns.

      -log( e^{s_p} / (e^{s_p} + sum_j e^{s_j}) )

  With logits corrected by -log q this is the sampled softmax (Bengio and
  Senecal 2008; SSL-Pop in Chen et al. 2022). The positive is always in the
  denominator: mask its own column, or it counts twice.

  Args:
    logits: [batch, pool] logits, with or without log-Q correction.
    positive_logits: [batch] logits of the positives, corrected in the same way.
    keep: [batch, pool] bool, which columns count; None: all.

  Returns:
    [batch] losses, >= 0.

  Examples:
    >>> logits, positive_logits = tf.zeros([1, 3]), tf.zeros([1])
    >>> loss = xir.ops.losses.sampled_softmax(logits, positive_logits)
    >>> print(f"{loss[0]:.4f} = {np.log(4):.4f}")
    1.3863 = 1.3863
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

  Examples:
    >>> logits, positive_logits = tf.zeros([1, 2]), tf.zeros([1])
    >>> counts = tf.constant([[5.0, 2.0]])
    >>> loss = xir.ops.losses.resampled_softmax(logits, positive_logits, counts)
    >>> print(f"{loss[0]:.4f} = {np.log(8):.4f}")
    2.0794 = 2.0794
  """
  counts = tf.stop_gradient(tf.cast(counts, logits.dtype))
  # log 0 = -inf drops the column; where the count is 0 the logit may be
  # anything, -inf and its gradient included.
  drawn = counts > 0
  log_counts = tf.math.log(tf.where(drawn, counts, 1.0))
  return sampled_softmax(logits + log_counts, positive_logits, keep=drawn)
