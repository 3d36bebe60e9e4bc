"""Adam that touches only the rows a batch touched."""

import tensorflow as tf


class LazyAdam(tf.keras.optimizers.Adam):
  """Adam; on embedding tables, only for the rows that have a gradient.

  Adam moves every row of a table at every step, also those the batch did not
  touch, by what is left of their momentum: a cost in proportion to the
  catalogue. Here moments and values of untouched rows stay as they are. Where
  every row is touched it is Adam (Kingma and Ba 2015).
  """

  def __init__(self, learning_rate=0.001, **kwargs) -> None:
    """Builds the optimizer.

    Args:
      learning_rate: A number or a schedule.
      **kwargs: See `tf.keras.optimizers.Adam`; not `amsgrad`.

    Raises:
      ValueError: `amsgrad` is asked for.
    """
    if kwargs.pop("amsgrad", False):
      raise ValueError("LazyAdam has no `amsgrad` form.")
    # Compiled, every new number of touched rows would compile anew.
    kwargs.setdefault("jit_compile", False)
    super().__init__(
      learning_rate, name=kwargs.pop("name", "LazyAdam"), **kwargs
    )

  def update_step(self, gradient, variable) -> None:
    if not isinstance(gradient, tf.IndexedSlices):
      super().update_step(gradient, variable)
      return
    slot = self._index_dict[self._var_key(variable)]
    momentum, velocity = self._momentums[slot], self._velocities[slot]
    dtype = variable.dtype
    step = tf.cast(self.iterations + 1, dtype)
    unbias_1 = 1.0 - tf.cast(self.beta_1, dtype) ** step
    unbias_2 = 1.0 - tf.cast(self.beta_2, dtype) ** step
    rate = tf.cast(self.learning_rate, dtype) * tf.sqrt(unbias_2) / unbias_1

    # The base class has summed the gradients of rows that occur repeatedly.
    rows, g = gradient.indices, gradient.values
    m = tf.gather(momentum, rows) * self.beta_1 + (1.0 - self.beta_1) * g
    v = tf.gather(velocity, rows) * self.beta_2 + (1.0 - self.beta_2) * g * g
    momentum.scatter_update(tf.IndexedSlices(m, rows))
    velocity.scatter_update(tf.IndexedSlices(v, rows))
    change = rate * m / (tf.sqrt(v) + self.epsilon)
    variable.scatter_sub(tf.IndexedSlices(change, rows))
