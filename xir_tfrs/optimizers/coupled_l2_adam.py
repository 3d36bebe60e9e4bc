"""Adam with L2 regularisation in the gradient."""

import tensorflow as tf


class CoupledL2Adam(tf.keras.optimizers.Adam):
  """Adam whose gradient is `g + l2 * w`, of every weight at every step.

  The classical form, which code for the methods of this library was published
  with (PyTorch calls it `weight_decay` of Adam). It is not AdamW, whose decay
  bypasses the moments, and not a penalty on the rows of a batch: each step
  costs a pass over all weights.
  """

  def __init__(self, learning_rate=0.001, *, l2: float = 0.0, **kwargs) -> None:
    """Builds the optimizer.

    Args:
      learning_rate: A number or a schedule.
      l2: Coefficient of the regularisation, >= 0.
      **kwargs: See `tf.keras.optimizers.Adam`.

    Raises:
      ValueError: `l2` is negative.
    """
    super().__init__(
      learning_rate, name=kwargs.pop("name", "CoupledL2Adam"), **kwargs
    )
    if l2 < 0:
      raise ValueError(f"`l2` must be >= 0. Received: `l2` = {l2}.")
    self._l2 = l2

  def update_step(self, gradient, variable) -> None:
    # Called with gradients already summed over replicas, so that the
    # regularisation counts once.
    gradient = tf.convert_to_tensor(gradient)
    super().update_step(
      gradient + tf.cast(self._l2, variable.dtype) * variable, variable
    )

  def get_config(self) -> dict:
    return super().get_config() | {"l2": self._l2}
