"""The generalized cross entropy."""

import dataclasses
from typing import ClassVar

import tensorflow as tf

from xir_tfrs.ops.forms import base

_HIGHEST_EXPONENT = 50.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneralizedCrossEntropy(base.Form):
  """(1 - p^power) / power instead of -log p.

  Zhang and Sabuncu 2018, who use a power of 0.7 for images. Its gradient is
  p^power times that of -log p: positives that the model finds unlikely, many of
  which are noise, count less. p is the positive's probability among all
  candidates, as n terms estimate it,

      p = e^{s_p} / (Z / n),

  with Z the partition, with or without the positive. So p may exceed 1, and
  the loss may be negative.

  With 0.07 and without the positive this is the strongest setting found on
  Gowalla (docs/results.md).

  Examples:
    >>> task = xir.tasks.SampledSoftmaxRetrieval(
    ...   loss=xir.ops.forms.GeneralizedCrossEntropy(power=0.1),
    ...   candidate_counts=[2, 1],
    ... )
    >>> ids = tf.constant([0, 1])
    >>> print(f"{task(tf.eye(2), tf.eye(2), candidate_ids=ids):.3f}")
    -0.993
  """

  name: ClassVar[str] = "generalized_cross_entropy"

  power: float = base.setting(
    0.07,
    "Rows count by this power of their positive's probability.",
    above=0.0,
    most=1.0,
  )
  positive_in_partition: bool = base.setting(
    False, "Whether the positive is a term of the denominator."
  )

  def loss(self, rows: base.Rows) -> tf.Tensor:
    log_p = (
      rows.log_num_terms
      + rows.score
      - rows.log_partition(self.positive_in_partition)
    )
    # For a positive far above all others, p^power would overflow.
    exponent = tf.minimum(self.power * log_p, _HIGHEST_EXPONENT)
    return -tf.math.expm1(exponent) / self.power
