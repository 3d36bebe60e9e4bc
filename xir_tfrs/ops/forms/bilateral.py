"""The bilateral softmax loss, BSL."""

import dataclasses
from typing import ClassVar

import tensorflow as tf

from xir_tfrs.ops.forms import base


@dataclasses.dataclass(frozen=True, kw_only=True)
class BilateralSoftmax(base.Form):
  """negative_weight log Z - temperature_ratio t_p: two temperatures.

  BSL of Wu et al. 2024. In its symbols

      -s_p / tau1 + w log sum_j e^{s_j / tau2},

  where tau2 is the temperature of the task, `temperature_ratio` is tau2 /
  tau1, and w is `negative_weight`.

  Published settings for Gowalla: the released code has one temperature, 0.08,
  and w = 1.22; those are the defaults here, for `temperature` = 0.08. The
  tables of SL@K (Yang et al. 2025) have w = tau2 / tau1 with tau1 = 0.2 and
  tau2 = 0.1: `temperature_ratio` = `negative_weight` = 0.5. The loss is then
  the softmax loss times tau2 / tau1, which changes the learning rate alone.

  Where the two differ, adding a constant to all scores changes the loss: use
  it with cosine scores.

  Examples:
    >>> task = xir.tasks.SampledSoftmaxRetrieval(
    ...   loss=xir.ops.forms.BilateralSoftmax(negative_weight=1.1),
    ...   candidate_counts=[2, 1],
    ... )
    >>> ids = tf.constant([0, 1])
    >>> print(f"{task(tf.eye(2), tf.eye(2), candidate_ids=ids):.3f}")
    -0.925
  """

  name: ClassVar[str] = "bsl"

  temperature_ratio: float = base.setting(
    1.0, "The task's temperature / that of the positive.", above=0.0
  )
  negative_weight: float = base.setting(
    1.22, "Weight of the denominator's logarithm.", above=0.0
  )
  positive_in_partition: bool = base.setting(
    False, "Whether the positive is a term of the denominator."
  )

  def loss(self, rows: base.Rows) -> tf.Tensor:
    log_partition = rows.log_partition(self.positive_in_partition)
    return (
      self.negative_weight * log_partition
      - self.temperature_ratio * rows.positive
    )
