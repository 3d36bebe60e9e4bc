"""A query tower that encodes the most recent events of a query."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from xir_tfrs import distribute
from xir_tfrs.layers import candidate_table, state
from xir_tfrs.layers import history as encoders
from xir_tfrs.models import towers
from xir_tfrs.ops import history, seeds, xla
from xir_tfrs.ops import ids as ids_lib


class HistoryTower(tf.keras.Model):
  """Encodes queries from the candidates that they chose before.

      q = encoder(v_1, ..., v_n)  [+ query_tower(id)]

  where v_j is the vector that the candidate tower computes for the j-th event,
  side features included. Without a query tower, queries that training never saw
  are encoded like any other. An empty history has its own learned vector.

  An encoder with `takes_times` also needs `history_times`, [n, H + 1] integer
  times of the H columns of `history_ids` and, in the last column, of the
  request. Negative times are unknown; without `history_times` all are. An
  encoder ignores the ages of a history with an unknown time.

  Attributes:
    candidate_tower: Encodes the events; shared with the model's candidates.
    encoder: The `layers.HistoryEncoder`.
    query_tower: Encodes the ids of the queries, or None.

  Examples:
    >>> candidate_tower = xir.models.Tower(vocabulary_size=9, dim=4)
    >>> tower = xir.models.HistoryTower(candidate_tower, encoder="attention")
    >>> query_ids = tf.constant([0, 1])
    >>> tower(query_ids, tf.ragged.constant([[3, 7], [5]])).shape
    TensorShape([2, 4])
  """

  def __init__(
    self,
    candidate_tower: tf.keras.Model,
    encoder: str = "attention",
    history_length: int = 50,
    query_tower: tf.keras.Model | None = None,
    *,
    encoder_arguments: Mapping[str, Any] | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    name: str | None = None,
  ) -> None:
    """Builds the tower and its variables.

    Args:
      candidate_tower: [n] dense candidate ids -> [n, dim]; a `Tower`.
      encoder: One of `layers.history.ENCODERS`.
      history_length: Number of most recent events to encode; older events are
        dropped.
      query_tower: [n] dense query ids -> [n, dim]; its output is added. None
        encodes the history alone.
      encoder_arguments: Further arguments of the encoder, by name.
      dropout: Dropout rate of the encoder during training.
      seed: Seed of the initial values and of the dropout.
      name: Name of the model.

    Raises:
      ValueError: Unknown encoder, an argument out of its range, or a candidate
        tower without `vocabulary_size`.
    """
    super().__init__(name=name)
    if encoder not in encoders.ENCODERS:
      raise ValueError(
        f"`encoder` must be one of {', '.join(encoders.ENCODERS)}. Received: "
        f"`encoder` = {encoder!r}."
      )
    if getattr(candidate_tower, "vocabulary_size", None) is None:
      raise ValueError(
        "`candidate_tower` needs a `vocabulary_size`, as models.Tower has: ids "
        "of events outside it are dropped. Received: "
        f"{type(candidate_tower).__name__}."
      )
    self.candidate_tower = candidate_tower
    self.query_tower = query_tower
    dim = candidate_tower(tf.zeros([1], tf.int64)).shape[-1]
    self._encoder_name = encoder
    self._encoder_arguments = dict(encoder_arguments or {})
    self._dropout = dropout
    self._seed = seed
    self.encoder = encoders.ENCODERS[encoder](
      dim=dim,
      length=history_length,
      dropout=dropout,
      seed=seed,
      **self._encoder_arguments,
    )
    self._start = self.add_weight(
      name="start",
      shape=(dim,),
      initializer=tf.keras.initializers.RandomNormal(stddev=0.02, seed=seed),
    )
    self._step = state.add_state(self.encoder, "step", (), tf.int64)
    # Creates the variables now: a strategy or a checkpoint needs them before
    # the first real call.
    self(tf.zeros([1], tf.int64), tf.zeros([1, 1], tf.int64))

  @property
  def history_length(self) -> int:
    """Number of most recent events that are encoded."""
    return self.encoder.length

  @property
  def table(self) -> candidate_table.CandidateTable | None:
    """Side features of the queries; None if there is no query tower."""
    return None if self.query_tower is None else self.query_tower.table

  def look_up(
    self, query_ids: tf.Tensor
  ) -> Mapping[str, tf.Tensor | tf.RaggedTensor]:
    """Returns the side features of [n] queries; see `layers.CandidateTable`."""
    return (
      {} if self.query_tower is None else self.query_tower.look_up(query_ids)
    )

  def call(
    self,
    query_ids: tf.Tensor,
    history_ids: tf.Tensor | tf.RaggedTensor,
    features: Mapping[str, tf.Tensor | tf.RaggedTensor] | None = None,
    training: bool = False,
    event_vectors: tf.Tensor | None = None,
    history_times: tf.Tensor | None = None,
  ) -> tf.Tensor:
    """Encodes queries from their whole histories.

    Args:
      query_ids: [n] dense query ids; used by the query tower alone.
      history_ids: [n, None] dense candidate ids, oldest first: ragged, or
        padded with -1 anywhere. Unknown ids are dropped.
      features: Side features of the queries, as `layers.CandidateTable`
        returns them; by default the query tower looks them up.
      training: Whether dropout is applied; a Python bool.
      event_vectors: [candidates, dim] precomputed vectors of all candidates,
        which may include candidates unknown to the candidate tower. By default
        the candidate tower encodes the events.
      history_times: See the class.

    Returns:
      [n, dim] vectors; [n, interests, dim] if the encoder has interests.

    Raises:
      ValueError: Ids are no integers, shapes do not agree, or the encoder takes
        no times.
      tf.errors.InvalidArgumentError: `history_times` has too few columns.
    """
    vectors, lengths, times = self._events(
      history_ids, history_times, training, event_vectors
    )
    if training:
      random = self._randomness(lengths)
      states = self.encoder(vectors, lengths, **times, **random)
      states = history.last(states, lengths)
    else:
      states = self.encoder.last(vectors, lengths, **times)
    some = tf.reshape(lengths > 0, [-1] + [1] * (states.shape.rank - 1))
    states = tf.where(some, states, self._start)
    return self._with_ids(states, query_ids, features, training)

  def encode_positions(
    self,
    query_ids: tf.Tensor,
    history_ids: tf.Tensor | tf.RaggedTensor,
    training: bool = False,
    first_row: int | tf.Tensor | None = None,
    history_times: tf.Tensor | None = None,
  ) -> tf.Tensor:
    """Encodes queries after each event of their histories.

    One call encodes every prefix of a history, for about the cost of encoding
    the whole history once.

    Args:
      query_ids: [n] dense query ids.
      history_ids: [n, None] dense candidate ids, as in `call`.
      training: Whether dropout is applied; a Python bool.
      first_row: Position of row 0 in the global batch, which seeds the dropout.
        By default the rows of the replicas follow one another.
      history_times: See the class. The request after an event has the time of
        the next event; the one after the last event has the last time.

    Returns:
      [n, history_length + 1, dim]: column t is the vector after t events.
      Columns past the last event are undefined. If the encoder has interests,
      [n, history_length + 1, interests, dim].

    Raises:
      ValueError: As for `call`.
      tf.errors.InvalidArgumentError: As for `call`.
    """
    vectors, lengths, times = self._events(history_ids, history_times, training)
    random = self._randomness(lengths, first_row) if training else {}
    states = self.encoder(vectors, lengths, **times, **random)
    start = tf.broadcast_to(self._start, tf.shape(states[:, :1]))
    states = tf.concat([start, states], axis=1)
    return self._with_ids(states, query_ids, None, training)

  def save(self, *args: Any, **kwargs: Any) -> None:
    """Raises NotImplementedError with the alternatives to use."""
    raise NotImplementedError(
      "`HistoryTower.save` is not supported: the tower shares the candidate "
      "tower of its model, and Keras would load it as a separate copy. To "
      "continue training or load "
      "later, use `save_weights` or `tf.train.Checkpoint`; to serve, export "
      "`TwoTower.encode_queries`."
    )

  def get_config(self) -> dict:
    """JSON-ready; leaves out the candidate tower, which the model owns."""
    return {
      "encoder": self._encoder_name,
      "history_length": self.history_length,
      "query_tower": (
        None if self.query_tower is None else self.query_tower.get_config()
      ),
      "encoder_arguments": dict(self._encoder_arguments),
      "dropout": self._dropout,
      "seed": self._seed,
      "name": self.name,
    }

  @classmethod
  def from_config(
    cls,
    config: dict,
    custom_objects: Any = None,
    candidate_tower: tf.keras.Model | None = None,
  ) -> "HistoryTower":
    """Builds a tower from a config and the candidate tower to share.

    Raises:
      ValueError: There is no `candidate_tower`.
    """
    del custom_objects
    if candidate_tower is None:
      raise ValueError(
        "A HistoryTower shares the candidate tower of its model: give "
        "`candidate_tower`."
      )
    config = dict(config)
    query_tower = config.pop("query_tower")
    if query_tower is not None:
      query_tower = towers.Tower.from_config(query_tower)
    return cls(candidate_tower, query_tower=query_tower, **config)

  def _events(
    self,
    history_ids: tf.Tensor | tf.RaggedTensor,
    history_times: tf.Tensor | None,
    training: bool,
    event_vectors: tf.Tensor | None = None,
  ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
    """[n, length, dim] vectors of the newest events, and [n] event counts.

    And, if the encoder takes them, their [n, length + 1] times.
    """
    if event_vectors is None:
      num_ids = self.candidate_tower.vocabulary_size
    else:
      num_ids = tf.shape(event_vectors, tf.int64)[0]
    history_ids = _as_matrix(history_ids)
    columns, lengths = history.newest_columns(
      history_ids, self.history_length, num_ids
    )
    times = self._times(history_ids, history_times, columns, lengths)
    window = history.at_columns(tf.cast(history_ids, tf.int64), columns)
    ids = tf.reshape(window, [-1])
    if event_vectors is not None:
      vectors = tf.gather(event_vectors, tf.maximum(ids, 0))
    elif training and not xla.compiling():
      vectors = _encode_events(self.candidate_tower, ids)
    else:
      # Padding included: XLA needs a static shape.
      vectors = self.candidate_tower(ids, training=training)
    vectors = tf.cast(vectors, tf.float32)
    shape = [-1, self.history_length, vectors.shape[1]]
    return tf.reshape(vectors, shape), lengths, times

  def _times(
    self,
    history_ids: tf.Tensor,
    history_times: tf.Tensor | None,
    columns: tf.Tensor,
    lengths: tf.Tensor,
  ) -> dict[str, tf.Tensor]:
    """The argument `times` of the encoder, if it takes it."""
    if not self.encoder.takes_times:
      if history_times is not None:
        raise ValueError(
          "`history_times` needs an encoder with `takes_times`, such as "
          "attention with `ages`."
        )
      return {}
    if history_times is None:
      n, width = tf.unstack(tf.shape(history_ids))
      history_times = tf.fill([n, width + 1], history.NO_EVENT)
    # Without the last column, the newest event would pass for the request.
    tf.debugging.assert_less(
      tf.shape(history_ids)[1],
      tf.shape(history_times)[1],
      "`history_times` must have a column for each column of `history_ids`, "
      "and one more for the request.",
    )
    return {"times": history.window_times(history_times, columns, lengths)}

  def _with_ids(
    self,
    states: tf.Tensor,
    query_ids: tf.Tensor | None,
    features: Mapping[str, Any] | None,
    training: bool,
  ) -> tf.Tensor:
    """[n, ..., dim] states plus the query tower's vector of each row."""
    if self.query_tower is None:
      return states
    # Otherwise a single history would be broadcast to all queries.
    query_ids = tf.convert_to_tensor(query_ids)
    if not query_ids.shape.is_compatible_with(states.shape[:1]):
      raise ValueError(
        "`query_ids` and `history_ids` must have the same number of rows. "
        f"Received: {query_ids.shape[0]} ids and {states.shape[0]} histories."
      )
    if features:
      vectors = self.query_tower.encode(query_ids, features)
    else:
      vectors = self.query_tower(query_ids, training=training)
    shape = [-1] + [1] * (states.shape.rank - 2) + [states.shape[-1]]
    return states + tf.reshape(tf.cast(vectors, tf.float32), shape)

  def _randomness(
    self, lengths: tf.Tensor, first_row: int | tf.Tensor | None = None
  ) -> dict[str, Any]:
    """Arguments of the encoder that differ at each training step."""
    if not (self._dropout or self.encoder.takes_times):
      return {}
    seed = seeds.step_seed(self._seed, self._step, seeds.HISTORY_DROPOUT)
    if first_row is None:
      first_row, _ = distribute.global_rows(tf.size(lengths))
    self._step.assign_add(1)
    return {"seed": seed, "first_row": first_row}


def _as_matrix(history_ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
  """`history_ids` as [n, length] integers, padded with -1."""
  if isinstance(history_ids, tf.RaggedTensor):
    ids_lib.dense("history_ids", history_ids.flat_values)
    history_ids = history_ids.to_tensor(history.NO_EVENT)
  history_ids = ids_lib.dense("history_ids", history_ids)
  if history_ids.shape.rank not in (None, 2):
    raise ValueError(
      "`history_ids` must be a tf.RaggedTensor [batch, None], or a tensor "
      f"[batch, length] padded with -1. Received: shape {history_ids.shape}."
    )
  return history_ids


def _encode_events(tower: tf.keras.Model, ids: tf.Tensor) -> tf.Tensor:
  """[m, dim] vectors of [m] events; zeros for padding.

  Encodes each distinct candidate once: in a batch most candidates repeat, and
  there is more padding than events.
  """
  places = tf.where(ids >= 0)
  distinct, of_events = tf.unique(tf.gather_nd(ids, places))
  vectors = tf.gather(tower(distinct, training=True), of_events)
  shape = [tf.size(ids, tf.int64), tf.cast(vectors.shape[1], tf.int64)]
  return tf.scatter_nd(places, vectors, shape)
