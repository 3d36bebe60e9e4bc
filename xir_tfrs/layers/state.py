"""The one way to make a variable that is state, not a weight."""

from collections.abc import Callable

import tensorflow as tf


def add_state(
  layer: tf.keras.layers.Layer,
  name: str,
  shape: tuple[int, ...],
  dtype: tf.DType,
  value: Callable[[], tf.Tensor] | None = None,
) -> tf.Variable:
  """Adds a non-trainable variable that all replicas agree on.

  Every replica writes the same value to it, computed from gathered ids and
  reduced numbers. With TensorFlow's default aggregation each would write its
  own, and replicas would drift apart without an error.

  Args:
    layer: Its owner, whose checkpoints hold it.
    name: Its name in checkpoints.
    shape: Its shape.
    dtype: Its type, independent of the layer's policy.
    value: Makes the initial value; None: zeros.

  Returns:
    The variable.
  """
  # A file of weights in HDF5 needs names that differ within a model.
  with tf.name_scope(layer.name):
    return layer.add_weight(
      name=name,
      shape=shape,
      dtype=dtype,
      initializer=(
        "zeros" if value is None else lambda shape, dtype=None, **_: value()
      ),
      trainable=False,
      experimental_autocast=False,
      aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
