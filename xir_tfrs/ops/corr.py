"""The losses of CoRR (Huang et al. 2023), one value per row.

Axes: batch = rows, one per query; n = candidates sampled for each row.

Names here and in the paper: `ranker_scores` = R, `retriever_scores` = M, the
sampled candidates S_u drawn from the proposal Q, `log_q` = log Q. As Q is
known, R - log Q and M - log Q are the logits of self-normalised importance
sampling: a softmax over S_u of them estimates the softmax over the catalogue.
"""

import tensorflow as tf

from xir_tfrs.ops import losses, masking


def sampled_softmax(
  scores: tf.Tensor,
  positive_scores: tf.Tensor,
  log_q: tf.Tensor,
  positive_log_q: tf.Tensor,
  keep: tf.Tensor | None = None,
) -> tf.Tensor:
  """Softmax of the positive among itself and the sample, log-Q corrected.

      -log( e^{s_p - log q_p} / (e^{s_p - log q_p} + sum_{j in S} e^{s_j -
      log q_j}) )

  for s = R, the ranker's loss, and for s = M, the retriever's. As n grows,
  the gradient tends to that of the softmax over the catalogue; the value
  grows like log n.

  Args:
    scores: [batch, n] scores of the sampled candidates.
    positive_scores: [batch] scores of the positives.
    log_q: [batch, n] log proposal of the sampled; no gradient.
    positive_log_q: [batch] log proposal of the positives; no gradient.
    keep: [batch, n] bool, which sampled candidates count; None: all.

  Returns:
    [batch] losses, >= 0.

  Examples:
    >>> scores, log_q = tf.zeros([1, 3]), tf.zeros([1, 3])
    >>> positive, positive_log_q = tf.zeros([1]), tf.zeros([1])
    >>> loss = xir.ops.corr.sampled_softmax(
    ...   scores, positive, log_q, positive_log_q
    ... )
    >>> print(f"{loss[0]:.4f} = {np.log(4):.4f}")
    1.3863 = 1.3863
  """
  return losses.sampled_softmax(
    _corrected(scores, log_q),
    _corrected(positive_scores, positive_log_q),
    keep,
  )


def sampled_kl(
  ranker_scores: tf.Tensor,
  retriever_scores: tf.Tensor,
  log_q: tf.Tensor,
  keep: tf.Tensor | None = None,
) -> tf.Tensor:
  """Divergence of the retriever from the ranker over the sample.

      P_ra(j) = softmax_{j in S}(R(j) - log q_j)      P_re: the same with M
      sum_{j in S} P_ra(j) (log P_ra(j) - log P_re(j))

  The positive is not part of it. The ranker is the teacher: only the retriever
  gets a gradient. The divergence is 0 where R - M is the same for all of S.

  Args:
    ranker_scores: [batch, n] scores R; no gradient.
    retriever_scores: [batch, n] scores M.
    log_q: [batch, n] log proposal of the sampled; no gradient.
    keep: [batch, n] bool, which sampled candidates count; None: all.

  Returns:
    [batch] divergences, >= 0 up to rounding; 0 where nothing is kept.

  Examples:
    >>> scores = tf.constant([[1.0, 2.0]])
    >>> kl = xir.ops.corr.sampled_kl(scores, scores + 5.0, tf.zeros([1, 2]))
    >>> print(f"{abs(kl[0]):.4f}")  # Only differences of scores count.
    0.0000
  """
  if keep is None:
    keep = tf.ones_like(log_q, tf.bool)
  # A row of only -inf has no softmax: compute it unmasked, and leave its terms
  # out of the sum.
  among = keep | ~tf.reduce_any(keep, axis=1, keepdims=True)
  ranker, retriever = (
    tf.nn.log_softmax(masking.mask_logits(_corrected(scores, log_q), among))
    for scores in (tf.stop_gradient(ranker_scores), retriever_scores)
  )
  # Before the product: 0 (-inf - -inf) would be NaN.
  difference = tf.where(among, ranker - retriever, 0.0)
  terms = tf.exp(ranker) * difference
  return tf.reduce_sum(tf.where(keep, terms, 0.0), axis=1)


def _corrected(scores: tf.Tensor, log_q: tf.Tensor) -> tf.Tensor:
  return scores - tf.stop_gradient(tf.cast(log_q, scores.dtype))
