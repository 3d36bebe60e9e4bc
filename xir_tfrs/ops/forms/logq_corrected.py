"""The corrected log-Q loss."""

import dataclasses
from typing import ClassVar

import tensorflow as tf

from xir_tfrs.ops import proposals
from xir_tfrs.ops.forms import base


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogQCorrected(base.Form):
  """-(1 - P) log( e^{s_p} / sum_j e^{s_j - log Q'_j} ).

      Q'_j = Q_j / (1 - Q_p)
      P = e^{s_p} / (e^{s_p} + (1/n) sum_j e^{s_j - log Q'_j})

  over the n columns that count; Khrylchenko et al. 2025. No gradient goes
  through P, the model's estimate of the positive's share of the full softmax.
  The positive is given, not drawn, so it has no correction and is not in the
  sum; the other columns are drawn given that they are not the positive. The
  gradient estimates that of the full softmax, and equals it if every other
  candidate is a column once and Q is uniform. The value may be negative, and
  does not measure progress.

  It has no settings. It is for tasks that sample from a known distribution.

  Examples:
    >>> task = xir.tasks.SampledSoftmaxRetrieval(
    ...   loss=xir.ops.forms.LogQCorrected(),
    ...   candidate_counts=[2, 1],
    ... )
    >>> ids = tf.constant([0, 1])
    >>> print(f"{task(tf.eye(2), tf.eye(2), candidate_ids=ids):.3f}")
    -0.269
  """

  name: ClassVar[str] = "logq_corrected"
  suits: ClassVar[frozenset[str]] = frozenset({base.SAMPLED})
  needs_log_q: ClassVar[bool] = True
  corrects_positive: ClassVar[bool] = False

  @property
  def positive_in_partition(self) -> bool:
    return False

  def loss(self, rows: base.Rows) -> tf.Tensor:
    log_sum = rows.log_partition(with_positive=False)
    log_sum += proposals.log_complement(rows.log_q)
    log_mean = log_sum - tf.math.log(tf.maximum(rows.num_columns(), 1.0))
    not_positive = tf.stop_gradient(tf.sigmoid(log_mean - rows.positive))
    return not_positive * (log_sum - rows.positive)
