"""Towers: dense ids, and whatever features go with them, to embeddings."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from xir_tfrs.layers import candidate_table
from xir_tfrs.types import Feature


class Tower(tf.keras.Model):
  """Encodes queries, or candidates, from their ids and side features.

  Every feature becomes a vector of `dim` numbers: an embedding of the id, an
  embedding of a token, the mean of the embeddings of a sequence of tokens, a
  linear map of normalised numbers. Without hidden layers the tower is their
  sum, as in LightFM (Kula 2015), so a candidate that was hardly ever seen
  leans on its attributes; for ids alone this is matrix factorisation. With
  hidden layers they are concatenated and go through an MLP.

  Attributes:
    table: The `layers.CandidateTable` of side features, or None.
  """

  def __init__(
    self,
    *,
    vocabulary_size: int,
    dim: int = 32,
    features: Sequence[Feature] = (),
    columns: Mapping[str, candidate_table.Column] | None = None,
    hidden_units: Sequence[int] = (),
    init_stddev: float = 0.1,
    seed: int = 0,
    name: str | None = None,
    table: candidate_table.CandidateTable | None = None,
  ) -> None:
    """Builds the tower and its variables.

    Args:
      vocabulary_size: Number of ids. Ids outside `[0, vocabulary_size)` are
        unknown: they have an embedding of zeros, and no features.
      dim: Size of the embeddings.
      features: Side features, by id.
      columns: Content of the side features; see `layers.CandidateTable`.
      hidden_units: Sizes of ReLU layers before the last, linear one; none:
        the sum of the features' embeddings.
      init_stddev: Standard deviation of the initial embeddings.
      seed: Seed of the initial values.
      name: Name of the model.
      table: A ready table, instead of `features` and `columns`.

    Raises:
      ValueError: An argument out of its range, or a table of another size.
    """
    super().__init__(name=name)
    for argument, value in (("vocabulary_size", vocabulary_size), ("dim", dim)):
      if value <= 0:
        raise ValueError(
          f"`{argument}` must be positive. Received: `{argument}` = {value}."
        )
    self._vocabulary_size = vocabulary_size
    self._dim = dim
    self._hidden_units = tuple(hidden_units)
    self._init_stddev = init_stddev
    self._seed = seed
    if table is None and features:
      table = candidate_table.CandidateTable(features, columns)
    if table is not None and table.num_rows != vocabulary_size:
      raise ValueError(
        "The table of side features must have a row for each id. "
        f"Received: {table.num_rows} rows for {vocabulary_size} ids."
      )
    self.table = table
    self._build_layers()
    # Variables exist from here on: under a strategy, and for a checkpoint,
    # the first call is too late.
    self(tf.zeros([1], tf.int64))

  @property
  def features(self) -> tuple[Feature, ...]:
    return () if self.table is None else self.table.features

  def call(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """Encodes ids.

    Args:
      ids: [n] integer ids; those outside `[0, vocabulary_size)` are unknown.
      training: Not used: towers behave alike in training and serving.

    Returns:
      [n, dim] embeddings.
    """
    del training
    features = {} if self.table is None else self.table(ids)
    return self.encode(ids, features)

  def encode(
    self,
    ids: tf.Tensor,
    features: Mapping[str, tf.Tensor | tf.RaggedTensor],
  ) -> tf.Tensor:
    """Encodes ids with features given, instead of looked up.

    Args:
      ids: [n] integer ids; -1 for one the tower was not trained on.
      features: As `CandidateTable` returns them.

    Returns:
      [n, dim] embeddings.
    """
    parts = [self._embed_ids(ids)]
    for feature in self.features:
      parts.append(self._embed_feature(feature, features[feature.name]))
    if not self._hidden_units:
      return tf.add_n(parts)
    hidden = tf.concat(parts, axis=1)
    for layer in self._mlp:
      hidden = layer(hidden)
    return hidden

  def get_config(self) -> dict:
    """JSON-ready; content of side features comes from the checkpoint."""
    return {
      "vocabulary_size": self._vocabulary_size,
      "dim": self._dim,
      "hidden_units": list(self._hidden_units),
      "init_stddev": self._init_stddev,
      "seed": self._seed,
      "name": self.name,
      "table": None if self.table is None else self.table.get_config(),
    }

  @classmethod
  def from_config(cls, config: dict, custom_objects=None) -> "Tower":
    del custom_objects
    config = dict(config)
    table = config.pop("table", None)
    if table is not None:
      table = candidate_table.CandidateTable.from_config(table)
    return cls(table=table, **config)

  def _build_layers(self) -> None:
    self._id_embedding = self._embedding(
      self._vocabulary_size, "id_embedding", seed=self._seed
    )
    self._feature_layers = {}
    for number, feature in enumerate(self.features, start=1):
      seed = self._seed + 1000 * number
      if feature.is_token:
        layer = self._embedding(
          feature.vocabulary_size,
          f"{feature.name}_embedding",
          seed,
          unknown_row=0,
        )
      else:
        layer = self._dense(self._dim, f"{feature.name}_projection", seed)
      self._feature_layers[feature.name] = layer
    sizes = [*self._hidden_units, self._dim] if self._hidden_units else []
    self._mlp = [
      self._dense(
        size,
        f"dense_{number}",
        self._seed + 7 + number,
        activation="relu" if number < len(self._hidden_units) else None,
      )
      for number, size in enumerate(sizes)
    ]

  def _embedding(
    self, size: int, name: str, seed: int, unknown_row: int | None = None
  ) -> tf.keras.layers.Embedding:
    normal = tf.keras.initializers.RandomNormal(
      stddev=self._init_stddev, seed=seed
    )

    def initializer(shape, dtype=None, **unused):
      values = normal(shape, dtype)
      if unknown_row is None:
        return values
      # Never trained if nothing was unknown then: better nothing than noise.
      rows = tf.range(shape[0])[:, tf.newaxis]
      return tf.where(rows == unknown_row, 0.0, values)

    return tf.keras.layers.Embedding(
      size, self._dim, embeddings_initializer=initializer, name=name
    )

  def _dense(self, size: int, name: str, seed: int, activation=None):
    return tf.keras.layers.Dense(
      size,
      activation=activation,
      kernel_initializer=tf.keras.initializers.GlorotUniform(seed=seed),
      name=name,
    )

  def _embed_ids(self, ids: tf.Tensor) -> tf.Tensor:
    known = (ids >= 0) & (ids < self._vocabulary_size)
    embeddings = self._id_embedding(tf.where(known, ids, 0))
    return tf.where(known[:, tf.newaxis], embeddings, 0.0)

  def _embed_feature(self, feature: Feature, value) -> tf.Tensor:
    layer = self._feature_layers[feature.name]
    if feature.kind == "token":
      return layer(value)
    if feature.kind == "token_seq":
      return _mean_of_rows(layer, value)
    value = tf.reshape(value, [-1, feature.width])
    normalised = (value - feature.mean) / feature.std
    # A missing number is an average one.
    return layer(tf.where(tf.math.is_nan(value), 0.0, normalised))


def _mean_of_rows(embedding, codes: tf.RaggedTensor) -> tf.Tensor:
  """[n, dim] mean of each row's embeddings; zeros where there are none."""
  embeddings = embedding(codes.values)
  total = tf.math.unsorted_segment_sum(
    embeddings, codes.value_rowids(), codes.nrows()
  )
  lengths = tf.cast(codes.row_lengths(), embeddings.dtype)
  return tf.math.divide_no_nan(total, lengths[:, tf.newaxis])
