"""Attention of a candidate to the events of a history."""

import tensorflow as tf

from xir_tfrs.ops import history


class TargetAttention(tf.keras.layers.Layer):
  """Sums up the events of a history by their relevance to a candidate.

      u_c = sum_j a(v_j, v_c) v_j
      a(v_j, v_c) = w . sigmoid(W [v_j, v_c, v_j * v_c] + b) + b'

  The local activation unit of DIN (Zhou et al. 2018). As in the paper, the
  weights are not normalised: many relevant events count more than one.

  Axes: n = histories, length = columns of a window, m = candidates of each.

  Examples:
    >>> attention = xir.layers.TargetAttention(dim=4)
    >>> events, candidates = tf.ones([2, 5, 4]), tf.ones([2, 3, 4])
    >>> attention(events, tf.constant([5, 1]), candidates).shape
    TensorShape([2, 3, 4])
  """

  def __init__(
    self, dim: int, units: int = 32, *, seed: int = 0, name: str | None = None
  ) -> None:
    """Builds the layer.

    Args:
      dim: Size of the vectors.
      units: Size of the hidden layer of a.
      seed: Seed of the initial values.
      name: Name of the layer.
    """
    super().__init__(name=name)

    def dense(number: int, units: int, bias: bool) -> tf.keras.layers.Dense:
      return tf.keras.layers.Dense(
        units,
        use_bias=bias,
        kernel_initializer=tf.keras.initializers.GlorotUniform(seed + number),
        name=f"dense_{number}",
      )

    # W, in its three parts: no tensor of [n, m, length, 3 dim] is made.
    self._of_event = dense(0, units, True)
    self._of_candidate = dense(1, units, False)
    self._of_product = dense(2, units, False)
    self._weight = dense(3, 1, True)

  def call(
    self, events: tf.Tensor, lengths: tf.Tensor, candidates: tf.Tensor
  ) -> tf.Tensor:
    """Sums up histories for each of their candidates.

    Args:
      events: [n, length, dim] vectors, in the first `lengths` columns.
      lengths: [n] integer events of each history.
      candidates: [n, m, dim] vectors.

    Returns:
      [n, m, dim] sums; zeros without events.
    """
    products = events[:, tf.newaxis] * candidates[:, :, tf.newaxis]
    hidden = tf.sigmoid(
      self._of_event(events)[:, tf.newaxis]
      + self._of_candidate(candidates)[:, :, tf.newaxis]
      + self._of_product(products)
    )
    return history.weighted_sums(self._weight(hidden)[..., 0], events, lengths)
