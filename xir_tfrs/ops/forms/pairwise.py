"""The pairwise softmax loss, PSL."""

import dataclasses
import math
from typing import ClassVar

import tensorflow as tf

from xir_tfrs.ops.forms import base

# Smaller activations count as 0, because the slope of their log overflows.
_SMALLEST = 1e-6
ACTIVATIONS = ("tanh", "atan", "relu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairwiseSoftmax(base.Form):
  """log sum_j a_j sigma(d_j)^{1 / tau*}, with sigma in place of exp.

      d_j = tau* (s_j - s_p)
      sigma(d) = tanh(d) + 1, or atan(d) + 1, or max(d + 1, 0)

  PSL of Yang et al. 2024. For |d| <= 1 all
  three lie between exp(d) and the step at 0, so they are closer to a ranking
  metric than the softmax is, and a candidate far above the positive, which may
  be a false negative, counts less. tau* -> 0 gives the softmax loss without
  the positive.

  The paper's own temperature tau, for which d = (cos_j - cos_p) / tau, is the
  task's temperature / tau*. Published setting for Gowalla: tau* = 0.05 and
  tau = 2, so `temperature` = 0.1, with cosine scores; any activation.

  Examples:
    >>> task = xir.tasks.SampledSoftmaxRetrieval(
    ...   loss=xir.ops.forms.PairwiseSoftmax(activation="tanh"),
    ...   candidate_counts=[2, 1],
    ... )
    >>> ids = tf.constant([0, 1])
    >>> print(f"{task(tf.eye(2), tf.eye(2), candidate_ids=ids):.3f}")
    -1.025
  """

  name: ClassVar[str] = "psl"
  pairwise: ClassVar[bool] = True

  activation: str = base.setting(
    "relu", "What stands for exp.", choices=ACTIVATIONS
  )
  tau_star: float = base.setting(
    0.05, "Temperature of the robust optimization; near 0: softmax.", above=0.0
  )
  positive_in_partition: bool = base.setting(
    False, "Whether the positive is a term of the denominator."
  )

  def activate(self, differences: tf.Tensor) -> tf.Tensor:
    """log sigma(d) / tau*; -inf where sigma is 0."""
    d = self.tau_star * differences
    if self.activation == "tanh":
      # log(tanh(d) + 1), where tanh(d) + 1 may round to 0.
      return (math.log(2.0) - tf.math.softplus(-2.0 * d)) / self.tau_star
    more_than_one = tf.atan(d) if self.activation == "atan" else d
    inside = more_than_one > _SMALLEST - 1.0
    # Places outside get no gradient, which would be NaN there.
    logs = tf.math.log1p(tf.where(inside, more_than_one, 0.0))
    return tf.where(inside, logs / self.tau_star, -math.inf)

  def loss(self, rows: base.Rows) -> tf.Tensor:
    return rows.log_partition(self.positive_in_partition) - rows.positive
