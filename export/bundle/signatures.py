"""The SavedModels of a bundle: towers and retrievers over original ids."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from xir_tfrs import indexes
from xir_tfrs.serving import features

Features = Mapping[str, tf.Tensor | tf.RaggedTensor]
# Dense ids, and features by name (the stored ones if there are none).
Encode = Callable[..., tf.Tensor]


class Encoder(Protocol):
  """A tower over original ids and raw features.

  Attributes:
    inputs: the side features.
    ids: type of the ids.
  """

  inputs: tuple[features.FeatureInput, ...]
  id_dtype: tf.DType

  def __call__(
    self, ids: tf.Tensor, raw: Sequence[tf.Tensor]
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Embeddings `[n, dim]` and rows `[n]` int64, -1 for unknown ids.

    Args:
      ids: `[n]` original ids.
      raw: the side features, in the order of `inputs`.
    """


class TrainedEncoder(tf.Module):
  """An `Encoder` made of a tower over dense ids, for `save_encoder`."""

  def __init__(
    self,
    ids: indexes.IdTable,
    encode: Encode,
    look_up: Callable[[tf.Tensor], Features] | None = None,
    inputs: Sequence[features.FeatureInput] = (),
    name: str | None = None,
  ):
    """Takes the parts.

    Args:
      ids: original ids; row i has the dense id i.
      encode: dense ids `[n]` int64, -1 for an unknown one, and features by
        name, to `[n, dim]`.
      look_up: dense ids to their features in training; needed with `inputs`.
      inputs: the side features of the tower.
      name: name of the module.
    """
    super().__init__(name=name)
    self.inputs = tuple(inputs)
    self.id_dtype = ids.dtype
    self._ids = ids
    self._reader = features.Reader(self.inputs)

    def encode_rows(rows, *raw):
      given = self._reader(raw, look_up(rows)) if raw else {}
      return encode(rows, given)

    specs = [x.spec for x in self.inputs]
    self._encode = tf.function(
      encode_rows,
      input_signature=[tf.TensorSpec([None], tf.int64), *specs],
      autograph=False,
    )
    # A Keras model as an attribute would drag its training functions, and
    # what they need, into the SavedModel: hold the variables alone.
    self._used = self._encode.get_concrete_function().variables

  def __call__(
    self, ids: tf.Tensor, raw: Sequence[tf.Tensor]
  ) -> tuple[tf.Tensor, tf.Tensor]:
    rows = self._ids.rows(ids)
    return self._encode(rows, *raw), rows


class LoadedEncoder(tf.Module):
  """An `Encoder` made of the SavedModel that `save_encoder` wrote."""

  def __init__(
    self,
    path: str | os.PathLike[str],
    side: str,
    inputs: Sequence[features.FeatureInput] = (),
    name: str | None = None,
  ):
    """Loads it.

    Args:
      path: directory of the SavedModel.
      side: "query" or "candidate".
      inputs: the side features of the tower.
      name: name of the module.
    """
    super().__init__(name=name)
    self.inputs = tuple(inputs)
    # The signature alone does not keep tables and variables alive.
    self._model = tf.saved_model.load(os.fspath(path))
    self._signature = self._model.signatures[f"encode_{side}"]
    self._id = f"{side}_id"
    specs = self._signature.structured_input_signature[1]
    self.id_dtype = specs[self._id].dtype

  def __call__(
    self, ids: tf.Tensor, raw: Sequence[tf.Tensor]
  ) -> tuple[tf.Tensor, tf.Tensor]:
    given = {x.input: value for x, value in zip(self.inputs, raw, strict=True)}
    found = self._signature(**{self._id: ids}, **given)
    return found["embedding"], found["row"]


class Ranker(tf.Module):
  """Original ids of pairs to scores: two tables, and a ranker."""

  def __init__(
    self,
    query_ids: indexes.IdTable,
    candidate_ids: indexes.IdTable,
    rank: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    name: str | None = None,
  ):
    """Takes the parts.

    Args:
      query_ids: original ids; row i has the dense id i.
      candidate_ids: the same of candidates.
      rank: dense ids `[n]` of queries and `[n, m]` of candidates, int64, -1
        for an unknown one, to scores `[n, m]`.
      name: name of the module.
    """
    super().__init__(name=name)
    self.query_ids = query_ids
    self.candidate_ids = candidate_ids
    self._rank = tf.function(
      rank,
      input_signature=[
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None, None], tf.int64),
      ],
      autograph=False,
    )
    # As in `TrainedEncoder`: the variables alone.
    self._used = self._rank.get_concrete_function().variables

  def __call__(
    self, query_ids: tf.Tensor, candidate_ids: tf.Tensor
  ) -> tf.Tensor:
    """Ids `[n]` and `[n, m]` to scores `[n, m]`."""
    return self._rank(
      self.query_ids.rows(query_ids), self.candidate_ids.rows(candidate_ids)
    )


class Retriever(tf.Module):
  """An index behind a query tower, and all that it needs to answer."""

  def __init__(
    self,
    index: indexes.RetrievalIndex,
    query_encoder: Encoder,
    candidate_encoder: Encoder,
    candidate_counts: np.ndarray,
    seen: tuple[np.ndarray, np.ndarray],
    *,
    popular_if_unknown: bool,
    max_k: int,
    name: str | None = None,
  ):
    """Takes the parts.

    Args:
      index: over the original ids of candidates.
      query_encoder: the query tower.
      candidate_encoder: the candidate tower.
      candidate_counts: `[n]` training counts by row of the index.
      seen: row_splits `[num_queries + 1]` int64 and rows `[pairs]` int32 of
        the index: the training candidates of each query.
      popular_if_unknown: whether a query that training did not know gets the
        candidates with the highest counts, and not what the tower says.
      max_k: most answers that may be asked for.
      name: name of the module.
    """
    super().__init__(name=name)
    self.index = index
    self.query_encoder = query_encoder
    self.candidate_encoder = candidate_encoder
    self.vectors = index.vectors  # For readers of the SavedModel.
    self._max_k = max_k
    self._popular = None
    if popular_if_unknown:
      self._popular = indexes.BruteForceIndex().index(
        index.ids, np.asarray(candidate_counts, np.float32)[:, None]
      )
    # One graph each, however many signatures search: tracing and loading them
    # takes most of the time of an export and of a start. As attributes they
    # would be saved once more.
    lists = [tf.TensorSpec([None, None], index.ids.dtype)] * 2
    self._functions = types.SimpleNamespace(
      search=_traced(index.search, index.dim, lists)
    )
    if self._popular is not None:
      self._functions.popular = _traced(self._popular.search, 1, lists)
    with tf.device("cpu:0"):
      self._seen_splits, self._seen_rows = (
        tf.Variable(x, trainable=False, name=f"seen_{name}")
        for name, x in zip(("row_splits", "rows"), seen, strict=True)
      )

  def search(self, embeddings, k, exclude_ids, allow_ids) -> dict:
    """The signature `search`; see `signatures`."""
    with tf.control_dependencies([self._check_k(k)]):
      k = tf.identity(k)
    return _answers(
      *self._functions.search(embeddings, k, exclude_ids, allow_ids)
    )

  def similar_items(self, ids, k) -> dict:
    """The signature `similar_items`."""
    all_allowed = tf.zeros([tf.size(ids), 0], ids.dtype)
    vectors = self.index.vectors_of(ids)
    return self.search(vectors, k, ids[:, None], all_allowed)

  def recommend(
    self, query_id, raw, k, exclude_ids, allow_ids, leave_out_seen=False
  ) -> dict:
    """The signatures `recommend` and `recommend_unseen`."""
    embeddings, rows = self.query_encoder(query_id, raw)
    if leave_out_seen:
      exclude_ids = tf.concat([exclude_ids, self._seen(rows)], axis=1)
    found = self.search(embeddings, k, exclude_ids, allow_ids)
    if self._popular is not None:
      found = tf.cond(
        tf.reduce_all(rows >= 0),
        lambda: found,
        lambda: self._with_popular(found, rows, k, exclude_ids, allow_ids),
      )
    return {**found, "known": rows >= 0}

  def _with_popular(self, found, rows, k, exclude_ids, allow_ids) -> dict:
    unknown = tf.where(rows < 0)[:, 0]
    popular = _answers(
      *self._functions.popular(
        tf.ones([tf.size(unknown), 1]),
        k,
        tf.gather(exclude_ids, unknown),
        tf.gather(allow_ids, unknown),
      )
    )
    return {
      name: tf.tensor_scatter_nd_update(x, unknown[:, None], popular[name])
      for name, x in found.items()
    }

  def _seen(self, rows: tf.Tensor) -> tf.Tensor:
    """Ids `[n, width]` of the training candidates of queries."""
    known = tf.maximum(rows, 0)
    starts = tf.gather(self._seen_splits, known)
    ends = tf.gather(self._seen_splits, known + 1)
    ends = tf.where(rows >= 0, ends, starts)
    places = tf.ragged.range(starts, ends).to_tensor(indexes.NO_ROW)
    seen = tf.gather(self._seen_rows, tf.maximum(places, 0))
    seen = tf.where(places >= 0, tf.cast(seen, tf.int64), indexes.NO_ROW)
    return self.index.ids.ids(seen)

  def _check_k(self, k: tf.Tensor) -> tf.Operation:
    return tf.debugging.assert_less_equal(
      k, self._max_k, f"`k` must be at most {self._max_k}."
    )


def save_encoder(
  encoder: TrainedEncoder, path: str | os.PathLike[str], side: str
) -> dict:
  """Saves `encode_query` or `encode_candidate`; `side` names which.

  Returns:
    The signatures, as `_describe` gives them.
  """
  return _save(encoder, path, {f"encode_{side}": _encode(encoder, side)})


def save_ranker(ranker: Ranker, path: str | os.PathLike[str]) -> dict:
  """Saves `rank`.

  Returns:
    The signatures, as `_describe` gives them.
  """

  def rank(query_id, candidate_ids):
    return {"scores": ranker(query_id, candidate_ids)}

  signature = _signature(
    rank,
    tf.TensorSpec([None], ranker.query_ids.dtype, "query_id"),
    tf.TensorSpec([None, None], ranker.candidate_ids.dtype, "candidate_ids"),
  )
  return _save(ranker, path, {"rank": signature})


def save_retriever(retriever: Retriever, path: str | os.PathLike[str]) -> dict:
  """Saves all that a retriever answers; see `export.bundle`.

  Returns:
    The signatures, as `_describe` gives them.
  """
  queries = retriever.query_encoder
  id_dtype = retriever.index.ids.dtype
  k = tf.TensorSpec([], tf.int32, "k")
  exclude = tf.TensorSpec([None, None], id_dtype, "exclude_ids")
  allow = tf.TensorSpec([None, None], id_dtype, "allow_ids")
  query = (
    tf.TensorSpec([None], queries.id_dtype, "query_id"),
    *(x.spec for x in queries.inputs),
  )
  vectors = tf.TensorSpec(
    [None, retriever.index.dim], tf.float32, "query_embeddings"
  )

  def recommend(leave_out_seen):
    def answer(query_id, *rest):
      return retriever.recommend(
        query_id, rest[:-3], *rest[-3:], leave_out_seen=leave_out_seen
      )

    return _signature(answer, *query, k, exclude, allow)

  signatures = {
    "recommend": recommend(False),
    "recommend_unseen": recommend(True),
    "search": _signature(retriever.search, vectors, k, exclude, allow),
    "similar_items": _signature(
      retriever.similar_items, tf.TensorSpec([None], id_dtype, "ids"), k
    ),
    "encode_query": _encode(queries, "query"),
    "encode_candidate": _encode(retriever.candidate_encoder, "candidate"),
  }
  # What servers take when a request names none.
  signatures["serving_default"] = signatures["recommend"]
  return _save(retriever, path, signatures)


def _encode(
  encoder: Encoder, side: str
) -> tf.types.experimental.ConcreteFunction:
  def encode(ids, *raw):
    embedding, row = encoder(ids, raw)
    return {"embedding": embedding, "row": row}

  ids = tf.TensorSpec([None], encoder.id_dtype, f"{side}_id")
  return _signature(encode, ids, *(x.spec for x in encoder.inputs))


def _traced(
  search: Callable, dim: int, lists: Sequence[tf.TensorSpec]
) -> tf.types.experimental.GenericFunction:
  queries = tf.TensorSpec([None, dim], tf.float32)
  signature = [queries, tf.TensorSpec([], tf.int32), *lists]
  return tf.function(search, input_signature=signature, autograph=False)


def _answers(ids: tf.Tensor, scores: tf.Tensor) -> dict[str, tf.Tensor]:
  found = tf.math.count_nonzero(scores > -np.inf, axis=1, dtype=tf.int32)
  return {"candidate_ids": ids, "scores": scores, "num_found": found}


def _signature(
  function: Callable, *specs: tf.TensorSpec
) -> tf.types.experimental.ConcreteFunction:
  # There is no Python control flow to convert, and looking for it takes most
  # of the time of an export.
  return tf.function(function, autograph=False).get_concrete_function(*specs)


def _save(
  module: tf.Module, path: str | os.PathLike[str], signatures: dict
) -> dict:
  tf.saved_model.save(
    module,
    os.fspath(path),
    signatures=signatures,
    options=tf.saved_model.SaveOptions(namespace_whitelist=["Scann"]),
  )
  return {name: _describe(f) for name, f in signatures.items()}


def _describe(signature: tf.types.experimental.ConcreteFunction) -> dict:
  """Inputs and outputs: name -> type and shape, None where dynamic."""

  def show(tensors):
    return {
      name: {"dtype": x.dtype.name, "shape": x.shape.as_list()}
      for name, x in tensors.items()
    }

  inputs = signature.structured_input_signature[0]
  return {
    "inputs": show({x.name: x for x in inputs}),
    "outputs": show(signature.structured_outputs),
  }
