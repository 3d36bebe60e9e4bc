"""The average of a model's weights along the path of its training."""

import contextlib
from collections.abc import Iterator, Sequence

import tensorflow as tf


class WeightAverage(tf.Module):
  """Keeps an exponential average of weights, and puts it in their place.

      a <- a + (1 - d) (w - a),   d = min(decay, (1 + n) / (10 + n))

  after n updates. Steps of a learning rate that is not small yet lead around
  an optimum; their average lies nearer to it than any of them (Polyak and
  Juditsky 1992). Rows of an embedding table, each seen in few batches, gain
  the most. An update is a pass over the weights, so make it every so many
  steps.

  Make it inside the scope of a strategy, and call it outside of replicas.

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
    """Begins with the weights as they are.

    Args:
      weights: What is averaged.
      name: Name of the module.
    """
    super().__init__(name=name)
    # Not tracked: a checkpoint has them where they belong.
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
      decay: What is kept of the averages, in [0, 1).

    Raises:
      ValueError: `decay` is out of its range.
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
    """While it lasts, weights and averages have changed places."""
    self.exchange()
    try:
      yield
    finally:
      self.exchange()

  def exchange(self) -> None:
    """Weights and averages change places."""
    for weight, average in self._pairs():
      value = tf.identity(weight)
      weight.assign(average)
      average.assign(value)

  def _pairs(self):
    weights = (w.deref() for w in self._weights)
    return zip(weights, self.averages, strict=True)
