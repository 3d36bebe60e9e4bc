"""What encoders of a history have in common."""

from collections.abc import Callable
from typing import ClassVar, TypeAlias

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.ops import history, seeds

# Share of the histories whose times training hides, so that an encoder that
# takes times also learns to do without.
_HIDDEN_TIMES = 0.1
# Sets entries to 0 if training; else the identity.
Dropout: TypeAlias = Callable[[tf.Tensor], tf.Tensor]


class HistoryEncoder(tf.keras.layers.Layer):
  """Vectors of a window of events to a state after each of its events.

  Subclasses define `states`. The state of column t depends only on the columns
  up to t, and rows do not see each other. So one call encodes a history, in its
  last state, and all prefixes of it.

  Axes: n = histories, length = columns, dim = size of the vectors.

  Attributes:
    has_interests: Whether a state is several vectors, [interests, dim].
    takes_times: Whether the encoder uses times. If so, `states` has the
      further argument `times`, and `call` and `last` need it.

  Examples:
    >>> class Newest(xir.layers.HistoryEncoder):
    ...   def states(self, vectors, lengths, dropout):
    ...     return dropout(vectors)
    >>> encoder = Newest(dim=2, length=3)
    >>> vectors = tf.constant([[[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]])
    >>> encoder.last(vectors, lengths=tf.constant([2])).numpy()
    array([[3., 4.]], dtype=float32)
  """

  has_interests: ClassVar[bool] = False
  takes_times: bool = False

  def __init__(
    self,
    *,
    dim: int,
    length: int,
    dropout: float = 0.0,
    seed: int = 0,
    name: str | None = None,
  ) -> None:
    """Takes the arguments of all encoders.

    Args:
      dim: Size of the vectors and of the states.
      length: Columns of a window.
      dropout: Share of the entries that training sets to 0, in [0, 1).
      seed: Seed of the initial values and of the dropout.
      name: Name of the layer.

    Raises:
      ValueError: An argument out of its range.
    """
    super().__init__(name=name, autocast=False)
    checks.require_positive(dim=dim, length=length)
    if not 0.0 <= dropout < 1.0:
      raise ValueError(
        f"`dropout` must lie in [0, 1). Received: `dropout` = {dropout}."
      )
    self.dim = dim
    self.length = length
    self._dropout = dropout
    self._seed = seed

  def call(
    self,
    vectors: tf.Tensor,
    lengths: tf.Tensor,
    *,
    seed: tf.Tensor | None = None,
    first_row: int | tf.Tensor = 0,
    times: tf.Tensor | None = None,
  ) -> tf.Tensor:
    """States after each event.

    Args:
      vectors: [n, length, dim] float32 vectors of the events, oldest first,
        in the first `lengths` columns of each row.
      lengths: [n] int32 events of each history.
      seed: [2] integer seed of the dropout and of the histories without
        times in training; None: neither.
      first_row: Number of row 0 in the global batch.
      times: If the encoder `takes_times`, [n, length + 1] integer times of
        the events and, from column `lengths` on, of the request. Negative
        times are unknown.

    Returns:
      [n, length, dim] states, with interests [n, length, interests, dim].
      States of padding are arbitrary.
    """
    dropout = _Dropout(self._dropout, seed, first_row)
    given = {}
    if times is not None:
      given["times"] = _partly_hidden(times, seed, first_row)
    return self.states(vectors, lengths, dropout, **given)

  def last(
    self,
    vectors: tf.Tensor,
    lengths: tf.Tensor,
    times: tf.Tensor | None = None,
  ) -> tf.Tensor:
    """[n, dim] states after the last events, without dropout."""
    return history.last(self(vectors, lengths, times=times), lengths)

  def states(
    self, vectors: tf.Tensor, lengths: tf.Tensor, dropout: Dropout
  ) -> tf.Tensor:
    """The states of `call`; `dropout(x)` drops entries of x in training."""
    raise NotImplementedError

  def get_config(self) -> dict:
    return {
      "dim": self.dim,
      "length": self.length,
      "dropout": self._dropout,
      "seed": self._seed,
      "name": self.name,
    }

  def _dense(
    self, number: int, units: int, activation: str | None = None
  ) -> tf.keras.layers.Dense:
    """A dense layer, the `number`-th of this encoder, with seeded values."""
    return tf.keras.layers.Dense(
      units,
      activation=activation,
      kernel_initializer=tf.keras.initializers.GlorotUniform(
        seed=self._seed + number
      ),
      name=f"dense_{number}",
    )


def _partly_hidden(
  times: tf.Tensor, seed: tf.Tensor | None, first_row: int | tf.Tensor
) -> tf.Tensor:
  """Replaces all times of some histories by -1, if there is a seed."""
  if seed is None:
    return times
  # `_Dropout` uses the numbers from 1 on.
  seed = seeds.fold_in(seed, 0)
  uniform = seeds.uniform_rows(seed, tf.shape(times)[0], 1, first_row)
  kept = tf.reshape(uniform >= _HIDDEN_TIMES, [-1, 1])
  return tf.where(kept, times, tf.constant(history.NO_EVENT, times.dtype))


class _Dropout:
  """Dropout with another stream of random numbers at each call."""

  def __init__(
    self, rate: float, seed: tf.Tensor | None, first_row: int | tf.Tensor
  ) -> None:
    self._rate = rate
    self._seed = seed
    self._first_row = first_row
    self._calls = 0

  def __call__(self, x: tf.Tensor) -> tf.Tensor:
    if self._seed is None or not self._rate:
      return x
    self._calls += 1
    return history.dropout(
      x,
      self._rate,
      seed=seeds.fold_in(self._seed, self._calls),
      first_row=self._first_row,
    )
