"""A weighted mean of the newest events."""

from typing import Any

import tensorflow as tf

from xir_tfrs.layers.history import encoder
from xir_tfrs.ops import history


class MeanHistory(encoder.HistoryEncoder):
  """Mean of the events with a learned weight for each age, then dense layers.

  YouTubeDNN's bag of watches (Covington et al. 2016), with weights by age.

  Examples:
    >>> encoder = xir.layers.MeanHistory(dim=4, length=3)
    >>> vectors = tf.ones([2, 3, 4])  # Two histories of up to three events.
    >>> encoder.last(vectors, lengths=tf.constant([3, 1])).shape
    TensorShape([2, 4])
  """

  def __init__(
    self, *, hidden_units: tuple[int, ...] = (), **shared: Any
  ) -> None:
    """Builds the layer.

    Args:
      hidden_units: Sizes of ReLU layers before the last, linear one.
      **shared: See `HistoryEncoder`.
    """
    super().__init__(**shared)
    self._hidden_units = tuple(hidden_units)
    self._log_weights = self.add_weight(
      name="log_weights", shape=(self.length,), initializer="zeros"
    )
    self._layers = [
      self._dense(number, units, "relu")
      for number, units in enumerate(self._hidden_units)
    ]
    self._layers.append(self._dense(len(self._layers), self.dim))

  def states(
    self, vectors: tf.Tensor, lengths: tf.Tensor, dropout: encoder.Dropout
  ) -> tf.Tensor:
    del lengths
    states = history.aged_means(dropout(vectors), self._log_weights)
    for layer in self._layers[:-1]:
      states = dropout(layer(states))
    return self._layers[-1](states)

  def get_config(self) -> dict:
    return super().get_config() | {"hidden_units": list(self._hidden_units)}
