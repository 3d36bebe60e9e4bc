"""The top-K weighted softmax loss, SL@K."""

import dataclasses
from typing import ClassVar

import tensorflow as tf

from xir_tfrs.ops.forms import base


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxAtK(base.Form):
  """sigmoid((s_p - beta) / tau_w) (log S - t_p): rows near the top K count.

  SL@K of Yang et al. 2025, a bound of
  NDCG@K: beta is the score by which a candidate is among the query's best K.
  No gradient goes through the weight. The positive is not in the denominator,
  unless `positive_in_partition`.

  Here beta is the K-th best score among candidates other than positives, as
  the row's pool estimates it: column j of n stands for 1 / (n q_j)
  candidates (`ops.ranks.kth_best`). It is computed at every step, for every
  row. The paper keeps one per query, the K-th best of its training positives
  and 1,000 uniform candidates, and renews it every 5 or 20 epochs.

  The paper's tau_w is for scores before the temperature: `weight_temperature`
  is tau_w / the task's temperature. Published setting for Gowalla: K = 20,
  `temperature` = 0.1 and tau_w = 1, so `weight_temperature` = 10, with cosine
  scores; and a tenth of the learning rate of the softmax loss.

  Examples:
    >>> task = xir.tasks.SampledSoftmaxRetrieval(
    ...   loss=xir.ops.forms.SoftmaxAtK(k=1),
    ...   candidate_counts=[2, 1],
    ... )
    >>> ids = tf.constant([0, 1])
    >>> print(f"{task(tf.eye(2), tf.eye(2), candidate_ids=ids):.3f}")
    -0.927
  """

  name: ClassVar[str] = "sl_at_k"
  needs_log_q: ClassVar[bool] = True

  k: int = base.setting(20, "Length of the list that is optimized.", least=1)
  weight_temperature: float = base.setting(
    10.0, "What the distance to the K-th best is divided by.", above=0.0
  )
  positive_in_partition: bool = base.setting(
    False, "Whether the positive is a term of the denominator."
  )

  @property
  def num_best(self) -> int:
    return self.k

  def loss(self, rows: base.Rows) -> tf.Tensor:
    log_partition = rows.log_partition(self.positive_in_partition)
    above = (rows.score - rows.kth_best()) / self.weight_temperature
    return tf.stop_gradient(tf.sigmoid(above)) * (log_partition - rows.positive)
