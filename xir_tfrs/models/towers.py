"""Towers, which encode dense ids and their side features."""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from xir_tfrs.layers import candidate_table
from xir_tfrs.models import embedder
from xir_tfrs.ops import ids as ids_lib
from xir_tfrs.types import Feature


class Tower(embedder.FeatureEmbedder):
  """Encodes queries, or candidates, from their ids and side features.

  The id and each feature become vectors of size `dim`. Ids and tokens have an
  embedding. A sequence of tokens, or of the words of a text, becomes the mean
  of their embeddings. Numbers are normalised and mapped linearly.

  Without hidden layers the output is the sum of these vectors, as in LightFM
  (Kula 2015), so rare candidates rely on their attributes; with ids alone this
  is matrix factorisation. With hidden layers the vectors are concatenated and
  go through an MLP.

  Attributes:
    table: The `layers.CandidateTable` of side features, or None.

  Examples:
    >>> kind = xir.types.Feature("kind", "token", vocabulary_size=3)
    >>> tower = xir.models.Tower(
    ...   vocabulary_size=2,
    ...   dim=4,
    ...   features=[kind],
    ...   columns={"kind": np.array([1, 2])},
    ... )
    >>> tower(tf.constant([0, 1, -1])).shape  # -1 is unknown.
    TensorShape([3, 4])
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
        unknown: their embedding is zero and they have no features.
      dim: Size of the embeddings.
      features: Side features, by id.
      columns: Content of the side features; see `layers.CandidateTable`.
      hidden_units: Sizes of the ReLU layers before the final linear layer;
        empty to sum the vectors instead.
      init_stddev: Standard deviation of the initial embeddings.
      seed: Seed of the initial values.
      name: Name of the model.
      table: A ready table, instead of `features` and `columns`.

    Raises:
      ValueError: An argument out of its range, or a table of another size.
    """
    super().__init__(
      vocabulary_size=vocabulary_size,
      dim=dim,
      features=features,
      columns=columns,
      init_stddev=init_stddev,
      seed=seed,
      name=name,
      table=table,
    )
    self._hidden_units = tuple(hidden_units)
    sizes = [*self._hidden_units, dim] if self._hidden_units else []
    self._mlp = [
      embedder.dense(
        size,
        f"dense_{number}",
        seed + 7 + number,
        activation="relu" if number < len(self._hidden_units) else None,
      )
      for number, size in enumerate(sizes)
    ]
    # Creates the variables now: a strategy or a checkpoint needs them before
    # the first real call.
    self(tf.zeros([1], tf.int64))

  def call(self, ids: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """Encodes ids.

    Args:
      ids: [n] integer ids; those outside `[0, vocabulary_size)` are unknown.
      training: Not used: towers behave the same in training and serving.

    Returns:
      [n, dim] embeddings.

    Raises:
      ValueError: `ids` are no integers, or have another rank.
    """
    del training
    ids = ids_lib.dense("ids", ids, rank=1)
    return self.encode(ids, self.look_up(ids))

  def encode(
    self,
    ids: tf.Tensor,
    features: Mapping[str, tf.Tensor | tf.RaggedTensor],
  ) -> tf.Tensor:
    """Encodes ids with given features instead of those of the table.

    Args:
      ids: [n] integer ids; -1 for an id that the tower was not trained on.
      features: As `CandidateTable` returns them.

    Returns:
      [n, dim] embeddings.
    """
    parts = self.fields(ids, features)
    if not self._hidden_units:
      return tf.add_n(parts)
    hidden = tf.concat(parts, axis=1)
    for layer in self._mlp:
      hidden = layer(hidden)
    return hidden

  def get_config(self) -> dict:
    """JSON-ready; checkpoints hold the content of the side features."""
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
  def from_config(cls, config: dict, custom_objects: Any = None) -> "Tower":
    del custom_objects
    config = dict(config)
    table = config.pop("table", None)
    if table is not None:
      table = candidate_table.CandidateTable.from_config(table)
    return cls(table=table, **config)
