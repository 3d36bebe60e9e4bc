"""Embeds ids and side features; the first stage of towers and rankers."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.layers import candidate_table
from xir_tfrs.ops import ids as ids_lib
from xir_tfrs.types import Feature


class FeatureEmbedder(tf.keras.Model):
  """Maps an id and each of its features to a vector of size `dim`.

  Ids and tokens have an embedding. A sequence of tokens, or of the words of a
  text, becomes the mean of their embeddings. Numbers are normalised and mapped
  linearly.

  Attributes:
    table: The `layers.CandidateTable` of side features, or None.
  """

  def __init__(
    self,
    *,
    vocabulary_size: int,
    dim: int,
    features: Sequence[Feature] = (),
    columns: Mapping[str, candidate_table.Column] | None = None,
    init_stddev: float = 0.1,
    seed: int = 0,
    name: str | None = None,
    table: candidate_table.CandidateTable | None = None,
  ) -> None:
    """Builds the layers; the first call makes their variables.

    Args:
      vocabulary_size: Number of ids. Ids outside `[0, vocabulary_size)` are
        unknown: their embedding is zero and they have no features.
      dim: Size of the vectors.
      features: Side features, by id.
      columns: Content of the side features; see `layers.CandidateTable`.
      init_stddev: Standard deviation of the initial embeddings.
      seed: Seed of the initial values.
      name: Name of the model.
      table: A ready table, instead of `features` and `columns`.

    Raises:
      ValueError: An argument out of its range, or a table of another size.
    """
    super().__init__(name=name)
    checks.require_sizes(vocabulary_size=vocabulary_size, dim=dim)
    self._vocabulary_size = vocabulary_size
    self._dim = dim
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
    self._id_embedding = self._embedding(
      vocabulary_size, "id_embedding", seed=seed
    )
    self._feature_layers = {}
    for number, feature in enumerate(self.features, start=1):
      self._feature_layers[feature.name] = self._feature_layer(
        feature, seed + 1000 * number
      )

  @property
  def vocabulary_size(self) -> int:
    """Number of ids that the model was built for."""
    return self._vocabulary_size

  @property
  def features(self) -> tuple[Feature, ...]:
    return () if self.table is None else self.table.features

  def call(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """Embeds ids and the features that the table holds for them.

    Args:
      ids: [n] integer ids; those outside `[0, vocabulary_size)` are unknown.
      training: Not used.

    Returns:
      [n, 1 + number of features, dim] vectors; the first is that of the id.
    """
    del training
    ids = ids_lib.dense("ids", ids, rank=1)
    return tf.stack(self.fields(ids, self.look_up(ids)), axis=1)

  def build_from_config(self, config: Any) -> None:
    """Does nothing: the default would call the model with float ids."""

  def look_up(
    self, ids: tf.Tensor
  ) -> Mapping[str, tf.Tensor | tf.RaggedTensor]:
    """Returns the side features of [n] ids; see `layers.CandidateTable`."""
    return {} if self.table is None else self.table(ids)

  def fields(
    self,
    ids: tf.Tensor,
    features: Mapping[str, tf.Tensor | tf.RaggedTensor],
  ) -> list[tf.Tensor]:
    """Embeds [n] ids with the given features.

    Returns:
      One [n, dim] tensor for the ids and one for each feature.
    """
    vectors = [self._embed_ids(ids)]
    for feature in self.features:
      vectors.append(self._embed_feature(feature, features[feature.name]))
    return vectors

  def _feature_layer(
    self, feature: Feature, seed: int
  ) -> tf.keras.layers.Layer:
    if not feature.is_token:
      return dense(self._dim, f"{feature.scope}_projection", seed)
    assert feature.vocabulary_size is not None  # `Feature` checks it.
    if feature.kind == "text":
      # Most hash buckets are never trained; zeros keep them from adding noise.
      return tf.keras.layers.Embedding(
        feature.vocabulary_size,
        self._dim,
        embeddings_initializer="zeros",
        name=f"{feature.scope}_embedding",
      )
    return self._embedding(
      feature.vocabulary_size, f"{feature.scope}_embedding", seed, unknown_row=0
    )

  def _embedding(
    self, size: int, name: str, seed: int, unknown_row: int | None = None
  ) -> tf.keras.layers.Embedding:
    initializer = _Normal(self._init_stddev, seed, unknown_row)
    return tf.keras.layers.Embedding(
      size, self._dim, embeddings_initializer=initializer, name=name
    )

  def _embed_ids(self, ids: tf.Tensor) -> tf.Tensor:
    known = (ids >= 0) & (ids < self._vocabulary_size)
    embeddings = self._id_embedding(tf.where(known, ids, 0))
    return tf.where(known[:, tf.newaxis], embeddings, 0.0)

  def _embed_feature(
    self, feature: Feature, value: tf.Tensor | tf.RaggedTensor
  ) -> tf.Tensor:
    layer = self._feature_layers[feature.name]
    if feature.kind == "token":
      return layer(value)
    if feature.is_ragged:
      return _mean_of_rows(layer, value)
    value = tf.reshape(value, [-1, feature.width])
    normalised = (value - feature.mean) / feature.std
    # A missing number counts as the mean.
    return layer(tf.where(tf.math.is_nan(value), 0.0, normalised))


# Registered because Keras rebuilds the layers of saved models from their
# config.
@tf.keras.utils.register_keras_serializable("xir_tfrs")
class _Normal(tf.keras.initializers.Initializer):
  """Normal values, and zeros in the row of the unknown code."""

  def __init__(self, stddev: float, seed: int, unknown_row: int | None) -> None:
    self._config = {"stddev": stddev, "seed": seed, "unknown_row": unknown_row}
    self._normal = tf.keras.initializers.RandomNormal(stddev=stddev, seed=seed)

  def __call__(
    self, shape: Sequence[int], dtype: Any = None, **unused: Any
  ) -> tf.Tensor:
    values = self._normal(shape, dtype)
    unknown_row = self._config["unknown_row"]
    if unknown_row is None:
      return values
    # If no training value is unknown, this row is never trained; zeros keep it
    # from adding noise.
    rows = tf.range(shape[0])[:, tf.newaxis]
    return tf.where(rows == unknown_row, 0.0, values)

  def get_config(self) -> dict:
    return dict(self._config)


def dense(
  size: int, name: str, seed: int, activation: str | None = None
) -> tf.keras.layers.Dense:
  """Returns a dense layer with seeded initial values."""
  return tf.keras.layers.Dense(
    size,
    activation=activation,
    kernel_initializer=tf.keras.initializers.GlorotUniform(seed=seed),
    name=name,
  )


def _mean_of_rows(
  embedding: tf.keras.layers.Embedding, codes: tf.Tensor | tf.RaggedTensor
) -> tf.Tensor:
  """[n, dim] mean of each row's embeddings; zeros for empty rows."""
  if not isinstance(codes, tf.RaggedTensor):
    there = tf.cast(codes >= 0, embedding.compute_dtype)[..., tf.newaxis]
    embeddings = embedding(tf.maximum(codes, 0)) * there
    return tf.math.divide_no_nan(
      tf.reduce_sum(embeddings, axis=1), tf.reduce_sum(there, axis=1)
    )
  embeddings = embedding(codes.values)
  total = tf.math.unsorted_segment_sum(
    embeddings, codes.value_rowids(), codes.nrows()
  )
  lengths = tf.cast(codes.row_lengths(), embeddings.dtype)
  return tf.math.divide_no_nan(total, lengths[:, tf.newaxis])
