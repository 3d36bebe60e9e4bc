"""Adam with L2 regularisation as part of the gradient."""

from typing import Any

import tensorflow as tf


class CoupledL2Adam(tf.keras.optimizers.Adam):
  """Adam with the gradient `g + l2 * w` for every weight at every step.

  This is Adam (Kingma and Ba 2015) with classical L2 regularisation, as in the
  published code for the methods of this library (`weight_decay` of Adam in
  PyTorch). Unlike AdamW, the decay goes through the moments. Unlike a penalty
  on the rows of a batch, each step costs a pass over all weights.

  Examples:
    >>> weight = tf.Variable(1.0)
    >>> optimizer = xir.optimizers.CoupledL2Adam(0.1, l2=0.01)
    >>> _ = optimizer.apply_gradients([(tf.constant(0.0), weight)])
    >>> bool(weight < 1.0)  # Because of the penalty alone.
    True
  """

  def __init__(
    self, learning_rate: Any = 0.001, *, l2: float = 0.0, **kwargs: Any
  ) -> None:
    """Builds the optimizer.

    Args:
      learning_rate: A number or a schedule.
      l2: Coefficient of the regularisation, >= 0.
      **kwargs: See `tf.keras.optimizers.Adam`; not `amsgrad`.

    Raises:
      ValueError: `l2` is negative, or `amsgrad` is set.
    """
    if kwargs.pop("amsgrad", False):
      raise ValueError("CoupledL2Adam does not support `amsgrad`.")
    super().__init__(
      learning_rate, name=kwargs.pop("name", "CoupledL2Adam"), **kwargs
    )
    if not l2 >= 0:
      raise ValueError(f"`l2` must be >= 0. Received: `l2` = {l2}.")
    self._l2 = l2

  def update_step(
    self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable
  ) -> None:
    # The gradients are already summed over replicas here, so the
    # regularisation counts once.
    dtype = variable.dtype
    gradient = tf.convert_to_tensor(gradient)
    gradient += tf.cast(self._l2, dtype) * variable
    beta_1, beta_2 = (tf.cast(b, dtype) for b in (self.beta_1, self.beta_2))
    step = tf.cast(self.iterations + 1, dtype)
    slot = self._index_dict[self._var_key(variable)]
    # The base class would make about ten passes over the weights.
    tf.raw_ops.ResourceApplyAdam(
      var=variable.handle,
      m=self._momentums[slot].handle,
      v=self._velocities[slot].handle,
      beta1_power=beta_1**step,
      beta2_power=beta_2**step,
      lr=tf.cast(self.learning_rate, dtype),
      beta1=beta_1,
      beta2=beta_2,
      epsilon=tf.cast(self.epsilon, dtype),
      grad=gradient,
    )

  def get_config(self) -> dict:
    return super().get_config() | {"l2": self._l2}
