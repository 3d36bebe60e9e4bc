"""Rankers: scores of (query, candidate) pairs from the features of both."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from xir_tfrs.layers.candidate_table import CandidateTable
from xir_tfrs.models import embedder

KINDS = ("deepfm", "dcn")


class Ranker(tf.keras.Model):
  """Scores pairs, where a tower could only encode each side alone.

  Ids and side features of both sides become fields, vectors of `dim` numbers
  each, as in `Tower` but with embeddings of their own. Their pairs meet in one
  of two ways, beside an MLP over all of them:

      deepfm  a linear term for each field, and the inner products of all
              pairs of fields (Guo et al. 2017);
      dcn     `num_cross_layers` cross layers x <- x0 * (W x + b) + x with
              full matrices W (DCN-V2, Wang et al. 2021; not the vectors of
              the first DCN), side by side with the MLP.

  Attributes:
    query_embedder, candidate_embedder: `embedder.FeatureEmbedder`s.
  """

  def __init__(
    self,
    *,
    num_queries: int,
    num_candidates: int,
    kind: str = "deepfm",
    dim: int = 32,
    hidden_units: Sequence[int] = (128, 64),
    num_cross_layers: int = 3,
    query_table: CandidateTable | None = None,
    candidate_table: CandidateTable | None = None,
    init_stddev: float = 0.01,
    seed: int = 0,
    name: str | None = None,
  ) -> None:
    """Builds the ranker and its variables.

    Args:
      num_queries: Number of query ids.
      num_candidates: Number of candidate ids.
      kind: One of `KINDS`.
      dim: Size of each field.
      hidden_units: Sizes of the MLP's ReLU layers; none: no MLP.
      num_cross_layers: dcn: cross layers.
      query_table: Side features of the queries; a tower's `table` is shared,
        not copied.
      candidate_table: Side features of the candidates.
      init_stddev: Standard deviation of the initial embeddings.
      seed: Seed of the initial values.
      name: Name of the model.

    Raises:
      ValueError: An argument out of its range, or a table of another size.
    """
    super().__init__(name=name)
    if kind not in KINDS:
      raise ValueError(
        f"`kind` must be one of {KINDS}. Received: `kind` = {kind!r}."
      )
    if num_cross_layers < 1:
      raise ValueError(
        "`num_cross_layers` must be positive. "
        f"Received: `num_cross_layers` = {num_cross_layers}."
      )
    self._num_queries = num_queries
    self._num_candidates = num_candidates
    self._kind = kind
    self._dim = dim
    self._hidden_units = tuple(hidden_units)
    self._num_cross_layers = num_cross_layers
    self._init_stddev = init_stddev
    self._seed = seed
    self.query_embedder, self.candidate_embedder = self._embedders(
      dim, "embedder", (query_table, candidate_table), seed
    )
    self._mlp = [
      embedder.dense(size, f"dense_{number}", seed + 7 + number, "relu")
      for number, size in enumerate(self._hidden_units)
    ]
    self._output = embedder.dense(1, "output", seed + 5)
    if kind == "deepfm":
      self._query_linear, self._candidate_linear = self._embedders(
        1, "linear", (query_table, candidate_table), seed + 250_000
      )
    else:
      fields = sum(
        1 + len(side.features)
        for side in (self.query_embedder, self.candidate_embedder)
      )
      self._cross = [
        embedder.dense(fields * dim, f"cross_{number}", seed + 70 + number)
        for number in range(num_cross_layers)
      ]
    # Variables exist from here on: under a strategy, and for a checkpoint,
    # the first call is too late.
    self(tf.zeros([1], tf.int64), tf.zeros([1, 1], tf.int64))

  @property
  def kind(self) -> str:
    return self._kind

  def call(
    self,
    query_ids: tf.Tensor,
    candidate_ids: tf.Tensor,
    training: bool | None = None,
  ) -> tf.Tensor:
    """Scores candidates for each query.

    Args:
      query_ids: [batch] integer ids; those out of range are unknown.
      candidate_ids: [batch, n] integer ids; the same.
      training: Not used: rankers behave alike in training and serving.

    Returns:
      [batch, n] float32 scores.
    """
    del training
    shape = tf.shape(candidate_ids)
    candidates = tf.reshape(candidate_ids, [-1])

    def pairs(query_side, candidate_side):
      """[batch * n, fields, size] fields of both sides."""
      queries = tf.repeat(query_side(query_ids), shape[1], axis=0)
      return tf.concat([queries, candidate_side(candidates)], axis=1)

    fields = pairs(self.query_embedder, self.candidate_embedder)
    flat = tf.reshape(fields, [-1, fields.shape[1] * fields.shape[2]])
    deep = flat
    for layer in self._mlp:
      deep = layer(deep)
    if self._kind == "dcn":
      crossed = flat
      for layer in self._cross:
        crossed = cross(flat, crossed, layer)
      parts = [crossed, deep] if self._mlp else [crossed]
      scores = self._output(tf.concat(parts, axis=1))[:, 0]
    else:
      linear = pairs(self._query_linear, self._candidate_linear)
      scores = tf.reduce_sum(linear, axis=[1, 2]) + pairwise_products(fields)
      if self._mlp:
        scores += self._output(deep)[:, 0]
    return tf.reshape(tf.cast(scores, tf.float32), shape)

  def get_config(self) -> dict:
    """JSON-ready; content of side features comes from the checkpoint."""
    tables = {
      "query_table": self.query_embedder.table,
      "candidate_table": self.candidate_embedder.table,
    }
    return {
      "num_queries": self._num_queries,
      "num_candidates": self._num_candidates,
      "kind": self._kind,
      "dim": self._dim,
      "hidden_units": list(self._hidden_units),
      "num_cross_layers": self._num_cross_layers,
      "init_stddev": self._init_stddev,
      "seed": self._seed,
      "name": self.name,
    } | {
      name: None if table is None else table.get_config()
      for name, table in tables.items()
    }

  @classmethod
  def from_config(cls, config: dict, custom_objects: Any = None) -> "Ranker":
    """A ranker whose weights come from a checkpoint.

    Args:
      config: From `get_config`; a table may also be a `CandidateTable`, which
        the ranker then shares.
      custom_objects: Not used.
    """
    del custom_objects
    config = dict(config)
    for name in ("query_table", "candidate_table"):
      if isinstance(config[name], dict):
        config[name] = CandidateTable.from_config(config[name])
    return cls(**config)

  def _embedders(self, dim, name, tables, seed):
    sizes = self._num_queries, self._num_candidates
    return [
      embedder.FeatureEmbedder(
        vocabulary_size=size,
        dim=dim,
        init_stddev=self._init_stddev,
        seed=seed + 100_000 * number,
        name=f"{side}_{name}",
        table=table,
      )
      for number, (side, size, table) in enumerate(
        zip(("query", "candidate"), sizes, tables, strict=True)
      )
    ]


def cross(
  x0: tf.Tensor, x: tf.Tensor, layer: tf.keras.layers.Dense
) -> tf.Tensor:
  """x0 * (W x + b) + x: a cross layer, equation 1 of Wang et al. 2021.

  Args:
    x0: [rows, width] what the first layer saw.
    x: [rows, width] output of the layer before.
    layer: W and b.

  Returns:
    [rows, width].
  """
  return x0 * layer(x) + x


def pairwise_products(fields: tf.Tensor) -> tf.Tensor:
  """sum_{i < j} <f_i, f_j>: a factorisation machine (Rendle 2010, lemma 3.1).

  Args:
    fields: [rows, number of fields, dim].

  Returns:
    [rows].
  """
  square_of_sum = tf.square(tf.reduce_sum(fields, axis=1))
  sum_of_squares = tf.reduce_sum(tf.square(fields), axis=1)
  return 0.5 * tf.reduce_sum(square_of_sum - sum_of_squares, axis=1)
