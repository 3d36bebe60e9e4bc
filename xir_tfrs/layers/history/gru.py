"""A gated recurrent unit over the events."""

from typing import Any

import tensorflow as tf

from xir_tfrs.layers.history import encoder
from xir_tfrs.ops import xla


class GRUHistory(encoder.HistoryEncoder):
  """GRU over the events, then a linear layer.

  GRU4Rec, Hidasi et al. 2016.

  Examples:
    >>> encoder = xir.layers.GRUHistory(dim=4, length=3, units=8)
    >>> vectors = tf.ones([2, 3, 4])  # Two histories of up to three events.
    >>> encoder.last(vectors, lengths=tf.constant([3, 1])).shape
    TensorShape([2, 4])
  """

  def __init__(self, *, units: int | None = None, **shared: Any) -> None:
    """Builds the layer.

    Args:
      units: Size of the recurrent state; None: `dim`.
      **shared: See `HistoryEncoder`.
    """
    super().__init__(**shared)
    self._units = units
    self._gru = tf.keras.layers.GRU(
      units or self.dim,
      return_sequences=True,
      kernel_initializer=tf.keras.initializers.GlorotUniform(self._seed + 100),
      recurrent_initializer=tf.keras.initializers.Orthogonal(
        seed=self._seed + 101
      ),
    )
    self._output = self._dense(0, self.dim)

  def states(
    self, vectors: tf.Tensor, lengths: tf.Tensor, dropout: encoder.Dropout
  ) -> tf.Tensor:
    # No mask: padding comes after all events and changes none of their states,
    # and cuDNN's kernel takes no other mask.
    del lengths
    gru = self._gru
    if xla.compiling():
      # What chooses between cuDNN and a loop would compile at every step.
      gru = tf.keras.layers.RNN(self._gru.cell, return_sequences=True)
    return self._output(dropout(gru(dropout(vectors))))

  def get_config(self) -> dict:
    return super().get_config() | {"units": self._units}
