"""Rankers, which score (query, candidate) pairs from the features of both."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from xir_tfrs import checks
from xir_tfrs.layers.candidate_table import CandidateTable
from xir_tfrs.layers.target_attention import TargetAttention
from xir_tfrs.models import embedder
from xir_tfrs.ops import history

KINDS = ("deepfm", "dcn", "din")


class Ranker(tf.keras.Model):
  """Scores (query, candidate) pairs, unlike towers, which encode each side.

  The ranker embeds the ids and side features of both sides as fields, vectors
  of size `dim`, with embeddings of its own. With `history_length`, the events
  of the query form another field: each event is the sum of its candidate's
  fields, and `layers.TargetAttention` weights the events by the candidate to
  score. An MLP over all fields is combined with one of:

      deepfm  a linear term for each id and feature, and the inner products of
              all pairs of fields (Guo et al. 2017);
      dcn     `num_cross_layers` cross layers x <- x0 * (W x + b) + x with
              full matrices W (DCN-V2, Wang et al. 2021b; the first DCN has
              vectors), parallel to the MLP;
      din     nothing else; needs the history (Zhou et al. 2018).

  Attributes:
    query_embedder: A `FeatureEmbedder`; None without `num_queries`.
    candidate_embedder: A `FeatureEmbedder`.

  Examples:
    >>> ranker = xir.models.Ranker(
    ...   num_queries=5, num_candidates=9, kind="dcn", dim=4, hidden_units=(8,)
    ... )
    >>> candidate_ids = tf.constant([[1, 2, 3], [4, 5, 6]])
    >>> ranker(tf.constant([0, 1]), candidate_ids).shape
    TensorShape([2, 3])
  """

  def __init__(
    self,
    *,
    num_queries: int | None,
    num_candidates: int,
    kind: str = "deepfm",
    history_length: int | None = None,
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
      num_queries: Number of query ids; None ignores them and uses histories
        alone.
      num_candidates: Number of candidate ids.
      kind: One of `KINDS`.
      history_length: Number of most recent events to use; None for a ranker
        without histories. Required by din.
      dim: Size of each field.
      hidden_units: Sizes of the MLP's ReLU layers; empty for no MLP.
      num_cross_layers: Number of cross layers (dcn).
      query_table: Side features of the queries; the ranker shares a tower's
        `table` and does not copy it.
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
    checks.require_sizes(num_cross_layers=num_cross_layers)
    if history_length is None and (kind == "din" or num_queries is None):
      raise ValueError(
        "`history_length` is required if `kind` is 'din' or `num_queries` is "
        f"None. Received: `kind` = {kind!r}, `num_queries` = "
        f"{num_queries}."
      )
    self._num_queries = num_queries
    self._num_candidates = num_candidates
    self._kind = kind
    self._history_length = history_length
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
    if history_length is not None:
      self._attention = TargetAttention(dim, seed=seed + 700, name="attention")
    if kind == "deepfm":
      self._query_linear, self._candidate_linear = self._embedders(
        1, "linear", (query_table, candidate_table), seed + 250_000
      )
    elif kind == "dcn":
      fields = sum(
        1 + len(side.features)
        for side in (self.query_embedder, self.candidate_embedder)
        if side is not None
      )
      fields += self.takes_histories
      self._cross = [
        embedder.dense(fields * dim, f"cross_{number}", seed + 70 + number)
        for number in range(num_cross_layers)
      ]
    # Creates the variables now: a strategy or a checkpoint needs them before
    # the first real call.
    one = tf.zeros([1, 1], tf.int64)
    self(one[0], one, history_ids=one if self.takes_histories else None)

  @property
  def kind(self) -> str:
    return self._kind

  @property
  def takes_histories(self) -> bool:
    """Whether the ranker needs `history_ids`."""
    return self._history_length is not None

  def call(
    self,
    query_ids: tf.Tensor,
    candidate_ids: tf.Tensor,
    training: bool | None = None,
    history_ids: tf.Tensor | tf.RaggedTensor | None = None,
  ) -> tf.Tensor:
    """Scores candidates for each query.

    Args:
      query_ids: [batch] integer ids; those out of range are unknown.
      candidate_ids: [batch, n] integer ids; those out of range are unknown.
      training: Not used: rankers behave the same in training and serving.
      history_ids: [batch, None] integer ids of the candidates that each query
        chose, oldest first, ragged or padded with -1. Required if the ranker
        `takes_histories`.

    Returns:
      [batch, n] float32 scores.

    Raises:
      ValueError: `history_ids` is missing, or the ranker takes no histories.
    """
    del training
    if self.takes_histories != (history_ids is not None):
      raise ValueError(
        "A ranker takes `history_ids` if and only if it has a "
        "`history_length`. Received: `history_length` = "
        f"{self._history_length}, `history_ids` = {history_ids!r}."
      )
    shape = tf.shape(candidate_ids)
    candidates = tf.reshape(candidate_ids, [-1])
    of_candidates = self.candidate_embedder(candidates)
    parts = [of_candidates]
    if self._history_length is not None:
      vectors = tf.reduce_sum(of_candidates, axis=1)
      vectors = tf.reshape(vectors, [shape[0], shape[1], self._dim])
      parts.insert(
        0, self._of_history(history_ids, vectors, self._history_length)
      )
    if self.query_embedder is not None:
      of_queries = self.query_embedder(query_ids)
      parts.insert(0, tf.repeat(of_queries, shape[1], axis=0))
    # [batch * n, fields, dim].
    fields = tf.concat(parts, axis=1)
    flat = tf.reshape(fields, [-1, fields.shape[1] * fields.shape[2]])
    deep = flat
    for layer in self._mlp:
      deep = layer(deep)
    if self._kind == "dcn":
      crossed = flat
      for layer in self._cross:
        crossed = cross(flat, crossed, layer)
      both = [crossed, deep] if self._mlp else [crossed]
      scores = self._output(tf.concat(both, axis=1))[:, 0]
    elif self._kind == "din":
      scores = self._output(deep)[:, 0]
    else:
      scores = pairwise_products(fields)
      scores += tf.reduce_sum(self._candidate_linear(candidates), axis=[1, 2])
      if self._query_linear is not None:
        linear = tf.reduce_sum(self._query_linear(query_ids), axis=[1, 2])
        scores += tf.repeat(linear, shape[1])
      if self._mlp:
        scores += self._output(deep)[:, 0]
    return tf.reshape(tf.cast(scores, tf.float32), shape)

  def _of_history(
    self,
    history_ids: tf.Tensor | tf.RaggedTensor,
    candidates: tf.Tensor,
    length: int,
  ) -> tf.Tensor:
    """[batch * n, 1, dim] history fields for [batch, n, dim] vectors."""
    window, lengths = history.newest(history_ids, length, self._num_candidates)
    events = self.candidate_embedder(tf.reshape(window, [-1]))
    events = tf.reshape(tf.reduce_sum(events, axis=1), [-1, length, self._dim])
    sums = self._attention(events, lengths, candidates)
    return tf.reshape(sums, [-1, 1, self._dim])

  def get_config(self) -> dict:
    """JSON-ready; checkpoints hold the content of the side features."""
    query_side = self.query_embedder
    tables = {
      "query_table": None if query_side is None else query_side.table,
      "candidate_table": self.candidate_embedder.table,
    }
    return {
      "num_queries": self._num_queries,
      "num_candidates": self._num_candidates,
      "kind": self._kind,
      "history_length": self._history_length,
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
    """Builds a ranker; a checkpoint restores its weights.

    Args:
      config: From `get_config`; a table may be a `CandidateTable`, which the
        ranker then shares.
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
      None
      if size is None
      else embedder.FeatureEmbedder(
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
  """Cross layer x0 * (W x + b) + x, equation 1 of Wang et al. 2021b.

  Args:
    x0: [rows, width] input of the first layer.
    x: [rows, width] output of the previous layer.
    layer: Dense layer with W and b.

  Returns:
    [rows, width].
  """
  return x0 * layer(x) + x


def pairwise_products(fields: tf.Tensor) -> tf.Tensor:
  """Factorisation machine sum_{i < j} <f_i, f_j> (Rendle 2010, lemma 3.1).

  Args:
    fields: [rows, number of fields, dim].

  Returns:
    [rows].
  """
  square_of_sum = tf.square(tf.reduce_sum(fields, axis=1))
  sum_of_squares = tf.reduce_sum(tf.square(fields), axis=1)
  return 0.5 * tf.reduce_sum(square_of_sum - sum_of_squares, axis=1)
