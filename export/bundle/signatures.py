"""The signatures of a bundle's SavedModels: what it answers.

A signature is a function here, and a row in `save_retriever`.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from export.bundle import encoders
from xir_tfrs import indexes
from xir_tfrs.serving import manifest


class Retriever(tf.Module):
  """An index behind a query tower, and all that it needs to answer."""

  def __init__(
    self,
    index: indexes.RetrievalIndex,
    query_encoder: encoders.Encoder,
    candidate_encoder: encoders.Encoder,
    candidate_counts: np.ndarray,
    seen: tuple[np.ndarray, np.ndarray],
    *,
    unknown_query: str,
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
      unknown_query: what a query without training rows gets, one of
        `bundle.UNKNOWN_QUERY`: the candidates with the highest counts, what
        the tower says, or "features": the first if it is not answerable.
      max_k: most answers that may be asked for.
      name: name of the module.
    """
    super().__init__(name=name)
    self.index = index
    self.query_encoder = query_encoder
    self.candidate_encoder = candidate_encoder
    self.vectors = index.vectors  # For readers of the SavedModel.
    self._max_k = max_k
    self._unknown_query = unknown_query
    self._popular = None
    if unknown_query != "tower":
      self._popular = indexes.BruteForceIndex().index(
        index.ids, np.asarray(candidate_counts, np.float32)[:, None]
      )
    # One graph each, however many signatures search: tracing and loading them
    # takes most of the time of an export and of a start. As attributes they
    # would be saved once more.
    self._functions = types.SimpleNamespace(search=_traced(index))
    if self._popular is not None:
      self._functions.popular = _traced(self._popular)
    with tf.device("cpu:0"):
      self._seen_splits, self._seen_rows = (
        tf.Variable(x, trainable=False, name=f"seen_{name}")
        for name, x in zip(("row_splits", "rows"), seen, strict=True)
      )

  def search(self, embeddings, k, exclude_ids, allow_ids) -> dict:
    """The signature `search`."""
    nothing = _no_rows(embeddings)
    return self._search(embeddings, k, exclude_ids, allow_ids, nothing)

  def similar_items(self, ids, k) -> dict:
    """The signature `similar_items`."""
    nothing = tf.zeros([tf.size(ids), 0], ids.dtype)
    rows = self.index.ids.rows(ids)
    vectors = self.index.vectors_of(rows)
    return self._search(vectors, k, nothing, nothing, rows[:, None])

  def recommend(
    self, query_id, raw, k, exclude_ids, allow_ids, leave_out_seen=False
  ) -> dict:
    """The signatures `recommend` and `recommend_unseen`."""
    query = self.query_encoder(query_id, raw)
    seen = _no_rows(query.embedding)
    if leave_out_seen:
      seen = self._seen(query.row)
    found = self._search(query.embedding, k, exclude_ids, allow_ids, seen)
    known = query.row >= 0
    popular = self._gets_popular(known, query.answerable)
    if self._popular is not None:
      found = tf.cond(
        tf.reduce_any(popular),
        lambda: self._with_popular(found, popular, k, exclude_ids, allow_ids),
        lambda: found,
      )
    return {**found, "known": known, "popular": popular}

  def _search(self, embeddings, k, exclude_ids, allow_ids, exclude_rows):
    with tf.control_dependencies([self._check_k(k)]):
      k = tf.identity(k)
    return _answers(
      *self._functions.search(
        embeddings, k, exclude_ids, allow_ids, exclude_rows
      )
    )

  def _gets_popular(self, known: tf.Tensor, answerable: tf.Tensor) -> tf.Tensor:
    """`[n]` bool, which queries the most popular candidates answer."""
    if self._unknown_query == "tower":
      return tf.zeros_like(known)
    return ~(answerable if self._unknown_query == "features" else known)

  def _with_popular(self, found, popular, k, exclude_ids, allow_ids) -> dict:
    """`found`, with the most popular candidates where `popular`.

    Those have no training rows, so they have not seen anything either.
    """
    places = tf.where(popular)
    queries = tf.ones([tf.shape(places)[0], 1])
    most = _answers(
      *self._functions.popular(
        queries,
        k,
        tf.gather(exclude_ids, places[:, 0]),
        tf.gather(allow_ids, places[:, 0]),
        _no_rows(queries),
      )
    )
    return {
      name: tf.tensor_scatter_nd_update(x, places, most[name])
      for name, x in found.items()
    }

  def _seen(self, rows: tf.Tensor) -> tf.Tensor:
    """Rows `[n, width]` of the training candidates of queries, -1 padded."""
    known = tf.maximum(rows, 0)
    starts = tf.gather(self._seen_splits, known)
    ends = tf.gather(self._seen_splits, known + 1)
    ends = tf.where(rows >= 0, ends, starts)
    places = tf.ragged.range(starts, ends).to_tensor(indexes.NO_ROW)
    seen = tf.gather(self._seen_rows, tf.maximum(places, 0))
    return tf.where(places >= 0, tf.cast(seen, tf.int64), indexes.NO_ROW)

  def _check_k(self, k: tf.Tensor) -> tf.Operation:
    return tf.debugging.assert_less_equal(
      k, self._max_k, f"`k` must be at most {self._max_k}."
    )


def save_encoder(
  encoder: encoders.TrainedEncoder, path: str | os.PathLike[str], side: str
) -> dict:
  """Saves `encode_query` or `encode_candidate`; `side` names which.

  Returns:
    The signatures, as `_describe` gives them.
  """
  return _save(encoder, path, {f"encode_{side}": _encode(encoder, side)})


def save_ranker(ranker: encoders.Ranker, path: str | os.PathLike[str]) -> dict:
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
  """Saves all that a retriever answers; see `xir_tfrs.serving.bundle`.

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
  encoder: encoders.Encoder, side: str
) -> tf.types.experimental.ConcreteFunction:
  def encode(ids, *raw):
    return encoder(ids, raw)._asdict()

  ids = tf.TensorSpec([None], encoder.id_dtype, f"{side}_id")
  return _signature(encode, ids, *(x.spec for x in encoder.inputs))


def _traced(
  index: indexes.RetrievalIndex,
) -> tf.types.experimental.GenericFunction:
  """`search` of vectors, k, ids to exclude and to allow, rows to exclude."""

  def search(queries, k, exclude, allow, exclude_rows):
    return index.search(queries, k, exclude, allow, exclude_rows=exclude_rows)

  ids = tf.TensorSpec([None, None], index.ids.dtype)
  signature = [
    tf.TensorSpec([None, index.dim], tf.float32),
    tf.TensorSpec([], tf.int32),
    *(ids, ids),
    tf.TensorSpec([None, None], tf.int64),
  ]
  return tf.function(search, input_signature=signature, autograph=False)


def _no_rows(queries: tf.Tensor) -> tf.Tensor:
  return tf.zeros([tf.shape(queries)[0], 0], tf.int64)


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
) -> dict[str, manifest.Signature]:
  tf.saved_model.save(
    module,
    os.fspath(path),
    signatures=signatures,
    options=tf.saved_model.SaveOptions(namespace_whitelist=["Scann"]),
  )
  return {name: _describe(f) for name, f in signatures.items()}


def _describe(
  signature: tf.types.experimental.ConcreteFunction,
) -> manifest.Signature:
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
