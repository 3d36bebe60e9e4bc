"""Adam that updates only the embedding rows in the batch."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from xir_tfrs.ops import search, xla


class LazyAdam(tf.keras.optimizers.Adam):
  """Adam that updates only the table rows that have a gradient.

  Adam (Kingma and Ba 2015) moves every row of an embedding table at every step,
  rows without a gradient by their remaining momentum. That costs a pass over
  the catalogue at each step. LazyAdam delays the moves of a row until its next
  gradient and then catches up: for a row last updated k steps ago with moments
  m and v,

      w <- w - rate * m / sqrt(v) * (r + r^2 + ... + r^(k-1)),
      m <- beta_1^k m + (1 - beta_1) g,   v <- beta_2^k v + (1 - beta_2) g^2,

  with r = beta_1 / sqrt(beta_2), and then Adam's move. The result differs from
  Adam's in two ways: rows without a later gradient miss their last moves, and
  the catching up uses the current learning rate. If every row has a gradient at
  every step, it equals Adam.

  Examples:
    >>> table = tf.Variable(tf.ones([3, 2]))
    >>> optimizer = xir.optimizers.LazyAdam(0.1)
    >>> with tf.GradientTape() as tape:
    ...   loss = tf.reduce_sum(tf.gather(table, [1]))
    >>> optimizer.minimize(loss, [table], tape=tape)  # Moves only row 1.
    >>> table.numpy().round(2)
    array([[1. , 1. ],
           [0.9, 0.9],
           [1. , 1. ]], dtype=float32)
  """

  def __init__(self, learning_rate: Any = 0.001, **kwargs: Any) -> None:
    """Builds the optimizer.

    Args:
      learning_rate: A number or a schedule.
      **kwargs: See `tf.keras.optimizers.Adam`; not `amsgrad`.

    Raises:
      ValueError: `amsgrad` is set.
    """
    if kwargs.pop("amsgrad", False):
      raise ValueError("LazyAdam does not support `amsgrad`.")
    # With XLA, each new number of updated rows would trigger a compilation.
    kwargs.setdefault("jit_compile", False)
    super().__init__(
      learning_rate, name=kwargs.pop("name", "LazyAdam"), **kwargs
    )

  def build(self, var_list: Sequence[tf.Variable]) -> None:
    """Adds to Adam's moments the step at which each row was last updated."""
    super().build(var_list)
    if hasattr(self, "_last_touched"):
      return
    strategy = tf.distribute.get_strategy()
    self._last_touched = []
    for variable in var_list:
      with strategy.extended.colocate_vars_with(variable):
        last = tf.Variable(
          tf.zeros(variable.shape[:1], tf.int64),
          trainable=False,
          name=f"last_touched/{variable._shared_name}",
        )
      self._last_touched.append(last)
      self._variables.append(last)  # The base class saves these.

  def update_step(
    self, gradient: tf.Tensor | tf.IndexedSlices, variable: tf.Variable
  ) -> None:
    slot = self._index_dict[self._var_key(variable)]
    momentum, velocity = self._momentums[slot], self._velocities[slot]
    last_touched = self._last_touched[slot]
    if not isinstance(gradient, tf.IndexedSlices):
      super().update_step(gradient, variable)
      # Or a later sparse gradient would repeat the moves of this step.
      last_touched.assign(tf.fill(tf.shape(last_touched), self.iterations + 1))
      return
    dtype = variable.dtype
    beta_1, beta_2 = (tf.cast(b, dtype) for b in (self.beta_1, self.beta_2))
    step = tf.cast(self.iterations + 1, dtype)
    rate = tf.cast(self.learning_rate, dtype)
    rate = rate * tf.sqrt(1.0 - beta_2**step) / (1.0 - beta_1**step)

    # The base class has already summed the gradients of repeated rows.
    rows, g = gradient.indices, gradient.values
    m, v = tf.gather(momentum, rows), tf.gather(velocity, rows)
    gap = self.iterations + 1 - tf.gather(last_touched, rows)
    gap = tf.reshape(tf.cast(gap, dtype), [-1] + [1] * (g.shape.rank - 1))
    ratio = beta_1 / tf.sqrt(beta_2)
    missed = ratio * (1.0 - ratio ** (gap - 1.0)) / (1.0 - ratio)
    change = missed * m / (tf.sqrt(v) + self.epsilon)
    m = beta_1**gap * m + (1.0 - beta_1) * g
    v = beta_2**gap * v + (1.0 - beta_2) * g * g
    change += m / (tf.sqrt(v) + self.epsilon)

    if xla.compiling():
      # All copies of a repeated row get the same value.
      value = tf.gather(variable, rows) - rate * change
      variable.scatter_update(tf.IndexedSlices(value, rows))
    else:
      variable.scatter_sub(tf.IndexedSlices(rate * change, rows))
    momentum.scatter_update(tf.IndexedSlices(m, rows))
    velocity.scatter_update(tf.IndexedSlices(v, rows))
    last_touched.scatter_update(
      tf.IndexedSlices(tf.fill(tf.shape(rows), self.iterations + 1), rows)
    )

  def _deduplicate_sparse_grad(self, grads: Sequence[Any]) -> list[Any]:
    """Sums the gradients of repeated rows; the base class calls it.

    The number of distinct rows is not static, so with XLA repeated rows are
    kept and each copy gets the sum.
    """
    if not xla.compiling():
      return super()._deduplicate_sparse_grad(grads)
    return [
      _summed(grad) if isinstance(grad, tf.IndexedSlices) else grad
      for grad in grads
    ]


def _summed(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
  numbers = search.numbers(gradient.indices)
  sums = tf.math.unsorted_segment_sum(
    gradient.values, numbers, tf.size(numbers)
  )
  return tf.IndexedSlices(
    tf.gather(sums, numbers), gradient.indices, gradient.dense_shape
  )
