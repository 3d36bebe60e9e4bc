"""Several interests of a history."""

from typing import Any, ClassVar

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.layers.history import encoder
from xir_tfrs.ops import history


class InterestHistory(encoder.HistoryEncoder):
  """Several vectors for a history, by routing of events to capsules.

  MIND (Li et al. 2019): `ops.history.routed_interests`. A candidate's
  score is its highest with any of them; in training, a row is that interest
  which fits its positive best (`ops.history.label_aware_attention`).

  The initial logits of the routing are drawn once for each age of an event,
  not at each call as in the paper, so a history always has the same interests.
  States are [n, length, interests, dim].

  Examples:
    >>> encoder = xir.layers.InterestHistory(dim=4, length=3, num_interests=2)
    >>> vectors = tf.ones([2, 3, 4])  # Two histories of up to three events.
    >>> encoder.last(vectors, lengths=tf.constant([3, 1])).shape
    TensorShape([2, 2, 4])
  """

  has_interests: ClassVar[bool] = True

  def __init__(
    self,
    *,
    num_interests: int = 4,
    num_rounds: int = 3,
    label_power: int | None = None,
    age_weights: bool = False,
    **shared: Any,
  ) -> None:
    """Builds the layer.

    Args:
      num_interests: Vectors of a history.
      num_rounds: Rounds of the routing.
      label_power: In training, scores of the interests are raised to this power
        before a softmax mixes them; None: only the best interest counts, as in
        serving.
      age_weights: Whether events have a learned weight for each age, as in
        `MeanHistory`. The paper has none, so old events count as much as new
        ones.
      **shared: See `HistoryEncoder`.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(**shared)
    checks.require_sizes(num_interests=num_interests, num_rounds=num_rounds)
    checks.require_positive(label_power=label_power)
    self._num_interests = num_interests
    self._num_rounds = num_rounds
    self._label_power = label_power
    self._logits = tf.random.stateless_normal(
      [self.length, num_interests], [self._seed, 60]
    )
    self._log_weights = None
    if age_weights:
      self._log_weights = self.add_weight(
        name="log_weights", shape=(self.length,), initializer="zeros"
      )
    self._shared_map = tf.keras.layers.Dense(
      self.dim,
      use_bias=False,
      kernel_initializer=tf.keras.initializers.GlorotUniform(self._seed),
      name="shared_map",
    )

  def states(
    self, vectors: tf.Tensor, lengths: tf.Tensor, dropout: encoder.Dropout
  ) -> tf.Tensor:
    del lengths
    return self._routed(
      dropout(vectors), tf.range(vectors.shape[1])[tf.newaxis]
    )

  def last(
    self,
    vectors: tf.Tensor,
    lengths: tf.Tensor,
    times: tf.Tensor | None = None,
  ) -> tf.Tensor:
    """[n, interests, dim] after the last events; these columns alone."""
    del times
    newest = tf.maximum(lengths - 1, 0)[:, tf.newaxis]
    return self._routed(vectors, newest)[:, 0]

  def of_labels(self, interests: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """[n, dim] queries of training rows, whose positives are `labels`."""
    return history.label_aware_attention(interests, labels, self._label_power)

  def get_config(self) -> dict:
    return super().get_config() | {
      "num_interests": self._num_interests,
      "num_rounds": self._num_rounds,
      "label_power": self._label_power,
      "age_weights": self._log_weights is not None,
    }

  def _routed(self, vectors: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    # Scaled as in `AttentionHistory`: small vectors would not be routed.
    return history.routed_interests(
      self._shared_map(vectors * self.dim**0.5),
      self._logits,
      columns,
      self._num_rounds,
      self._log_weights,
    )
