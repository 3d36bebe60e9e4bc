"""Exponential moving average of a model's weights."""

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf


class WeightAverage(tf.Module):
  """Keeps an exponential average of weights, and can swap it in.

      a <- a + (1 - d) (w - a),   d = min(decay, (1 + n) / (10 + n))

  after n updates. As long as the learning rate is not small, training moves
  around an optimum, and the average is closer to it than the individual steps
  (Polyak and Juditsky 1992). Embedding rows, which appear in few batches,
  benefit most. An update costs a pass over the weights, so do not update at
  every step.

  Create it inside the scope of a strategy and call it outside of replicas.

  Attributes:
    averages: One variable for each weight.
    num_updates: int64 variable, n.

  Examples:
    >>> weight = tf.Variable(0.0)
    >>> average = xir.optimizers.WeightAverage([weight])
    >>> _ = weight.assign(1.0)
    >>> average.update(decay=0.99)
    >>> print(f"{average.averages[0].numpy():.2f}")  # Fast at first.
    0.90
  """

  def __init__(
    self, weights: Sequence[tf.Variable], name: str = "weight_average"
  ) -> None:
    """Starts with the current weights.

    Args:
      weights: The variables to average.
      name: Name of the module.
    """
    super().__init__(name=name)
    # Not tracked: the model already saves its weights in a checkpoint.
    self._weights = tuple(w.ref() for w in weights)
    self.averages = [
      tf.Variable(tf.convert_to_tensor(w), trainable=False, name="average")
      for w in weights
    ]
    self.num_updates = tf.Variable(
      0, dtype=tf.int64, trainable=False, name="num_updates"
    )

  def update(self, decay: float) -> None:
    """Moves the averages towards the weights.

    Args:
      decay: Factor of the old averages, in [0, 1).

    Raises:
      ValueError: `decay` is out of range.
    """
    if not 0.0 <= decay < 1.0:
      raise ValueError(
        f"`decay` must lie in [0, 1). Received: `decay` = {decay}."
      )
    n = int(self.num_updates.numpy())
    rate = 1.0 - min(decay, (1 + n) / (10 + n))
    for weight, average in self._pairs():
      average.assign_add(tf.cast(rate, average.dtype) * (weight - average))
    self.num_updates.assign_add(1)

  @contextlib.contextmanager
  def in_place(self) -> Iterator[None]:
    """Returns a context in which weights and averages are swapped."""
    self.exchange()
    try:
      yield
    finally:
      self.exchange()

  def exchange(self) -> None:
    """Swaps weights and averages."""
    for weight, average in self._pairs():
      value = tf.identity(weight)
      weight.assign(average)
      average.assign(value)

  def _pairs(self):
    weights = (w.deref() for w in self._weights)
    return zip(weights, self.averages, strict=True)
