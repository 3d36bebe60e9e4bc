"""The cross entropy, and the same without the positive in the denominator."""

import dataclasses
from typing import ClassVar

import tensorflow as tf

from xir_tfrs.ops.forms import base


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropy(base.Form):
  """log(e^{t_p} + S) - t_p.

  The sampled softmax (Bengio and Senecal 2008) with a_j = 1 / q_j; each part
  of BIR and XIR with a_j the counts of a resample (Chen et al. 2022, equations
  3 and 4 as in the released code). It is never negative.

  Examples:
    >>> task = xir.tasks.SampledSoftmaxRetrieval(
    ...   loss=xir.ops.forms.CrossEntropy(),
    ...   candidate_counts=[2, 1],
    ... )
    >>> ids = tf.constant([0, 1])
    >>> print(f"{task(tf.eye(2), tf.eye(2), candidate_ids=ids):.3f}")
    0.360
  """

  name: ClassVar[str] = "cross_entropy"
  suits: ClassVar[frozenset[str]] = base.Form.suits | {base.RANKER}
  own_column_stands_in: ClassVar[bool] = True

  def loss(self, rows: base.Rows) -> tf.Tensor:
    return rows.log_partition(with_positive=True) - rows.positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoupled(base.Form):
  """log S - t_p: the denominator has the other candidates only.

  Decoupled contrastive learning (Yeh et al. 2022), and equation 3 of Chen et
  al. 2022 as it is printed. The positive is pulled even after it has won. The
  loss may be negative.

  Examples:
    >>> task = xir.tasks.SampledSoftmaxRetrieval(
    ...   loss=xir.ops.forms.Decoupled(),
    ...   candidate_counts=[2, 1],
    ... )
    >>> ids = tf.constant([0, 1])
    >>> print(f"{task(tf.eye(2), tf.eye(2), candidate_ids=ids):.3f}")
    -1.000
  """

  name: ClassVar[str] = "decoupled"

  @property
  def positive_in_partition(self) -> bool:
    return False

  def loss(self, rows: base.Rows) -> tf.Tensor:
    return rows.log_partition(with_positive=False) - rows.positive
