"""What encoders of a history have in common."""

import itertools
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.ops import chunks, history, seeds, xla

# Share of the histories whose times training hides, so that an encoder that
# takes times also learns to do without.
_HIDDEN_TIMES = 0.1
# The narrowest windows that are encoded apart from wider ones.
_NARROWEST = 6
# Sets entries to 0 if training; else the identity.
Dropout: TypeAlias = Callable[[tf.Tensor], tf.Tensor]


class HistoryEncoder(tf.keras.layers.Layer):
  """Vectors of a window of events to a state after each of its events.

  Subclasses define `states`. The state of column t depends only on the columns
  up to t, and rows do not see each other. So one call encodes a history, in its
  last state, and all prefixes of it.

  Axes: n = histories, length = columns, dim = size of the vectors.

  On a CPU, `call` encodes short histories apart from long ones, without most of
  their padding. So `states` may get fewer than `length` columns.

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
    checks.require_sizes(dim=dim, length=length)
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
    if times is not None:
      times = _partly_hidden(times, seed, first_row)
    dropout = _Dropout(
      0.0 if seed is None else self._dropout,
      seed,
      tf.shape(vectors)[0],
      self.length,
      first_row,
    )
    widths = [self.length]
    # XLA needs static shapes, and a GPU would wait for the parts to start.
    if not (xla.compiling() or chunks.has_gpu()):
      while widths[0] >= 2 * _NARROWEST:
        widths.insert(0, -(-widths[0] // 2))
    if len(widths) == 1:
      return self._states(vectors, lengths, times, dropout.of_rows(None))
    return self._states_by_width(widths, vectors, lengths, times, dropout)

  def _states(
    self,
    vectors: tf.Tensor,
    lengths: tf.Tensor,
    times: tf.Tensor | None,
    dropout: Dropout,
  ) -> tf.Tensor:
    given = {} if times is None else {"times": times}
    return self.states(vectors, lengths, dropout, **given)

  def _states_by_width(
    self,
    widths: list[int],
    vectors: tf.Tensor,
    lengths: tf.Tensor,
    times: tf.Tensor | None,
    dropout: "_Dropout",
  ) -> tf.Tensor:
    """`_states`, but each history with the fewest columns that hold it."""
    of_rows = tf.searchsorted(widths, lengths)

    def parts(tensor: tf.Tensor) -> list[tf.Tensor]:
      return tf.dynamic_partition(tensor, of_rows, len(widths))

    rows = parts(tf.range(tf.size(lengths)))
    vector_parts, length_parts = parts(vectors), parts(lengths)
    time_parts = [None] * len(widths) if times is None else parts(times)
    states = []
    for number, width in enumerate(widths):
      part_times = time_parts[number]
      if part_times is not None:
        part_times = part_times[:, : width + 1]
      found = self._states(
        vector_parts[number][:, :width],
        length_parts[number],
        part_times,
        dropout.of_rows(rows[number]),
      )
      padding = [[0, 0], [0, self.length - width]]
      padding += [[0, 0]] * (found.shape.rank - 2)
      states.append(tf.pad(found, padding))
    return tf.dynamic_stitch(rows, states)

  def last(
    self,
    vectors: tf.Tensor,
    lengths: tf.Tensor,
    times: tf.Tensor | None = None,
  ) -> tf.Tensor:
    """[n, dim] states after the last events, without dropout."""
    # Not in parts by width, which would not be worth it for few histories.
    states = self._states(vectors, lengths, times, lambda x: x)
    return history.last(states, lengths)

  def states(
    self, vectors: tf.Tensor, lengths: tf.Tensor, dropout: Dropout
  ) -> tf.Tensor:
    """The states of `call`, for the columns that there are.

    `dropout(x)` drops entries of x, [n, columns, ...], in training.
    """
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
  """Dropout with another stream of random numbers at each call.

  `of_rows` shares the numbers: a row loses the same entries in a part of the
  rows, and with fewer columns.
  """

  def __init__(
    self,
    rate: float,
    seed: tf.Tensor | None,
    num_rows: tf.Tensor,
    length: int,
    first_row: int | tf.Tensor,
  ) -> None:
    self._rate = rate
    self._seed = seed
    self._num_rows = num_rows
    self._length = length
    self._first_row = first_row
    # What each call keeps, in all columns of all rows.
    self._kept: list[tf.Tensor] = []

  def of_rows(self, rows: tf.Tensor | None) -> Dropout:
    """The dropout of some rows, or of all."""
    calls = itertools.count()
    return lambda x: self._drop(next(calls), x, rows)

  def _drop(self, call: int, x: tf.Tensor, rows: tf.Tensor | None) -> tf.Tensor:
    if not self._rate:
      return x
    if call == len(self._kept):
      keep = history.kept(
        self._num_rows,
        [self._length, *x.shape[2:]],
        self._rate,
        # 0 is the stream of the hidden times.
        seed=seeds.fold_in(self._seed, call + 1),
        first_row=self._first_row,
      )
      self._kept.append(keep)
    keep = self._kept[call]
    if rows is not None:
      keep = tf.gather(keep[:, : x.shape[1]], rows)
    return history.only_kept(x, keep, self._rate)
