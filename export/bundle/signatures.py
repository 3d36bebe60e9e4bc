"""The signatures of a bundle's SavedModels.

A signature is a function in this module and a row in `save_retriever`.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from export.bundle import encoders, histories
from xir_tfrs import indexes
from xir_tfrs.ops import branches, fold_in, history
from xir_tfrs.serving import manifest

# Settings of `ops.fold_in`, for query towers without histories; docs/serving.md
# has measurements.
FOLD_IN_RIDGE = 3.0
FOLD_IN_POWER = 0.5
# Number of most recent events of a history to fold in.
FOLD_IN_LENGTH = 100


class Retriever(tf.Module):
  """A query tower, an index and the data for answers."""

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
    titles: Sequence[bytes] | None = None,
    name: str | None = None,
  ):
    """Builds the retriever.

    Args:
      index: An index over the original ids of candidates.
      query_encoder: The query tower.
      candidate_encoder: The candidate tower.
      candidate_counts: `[n]` training counts by row of the index.
      seen: row_splits `[num_queries + 1]` int64 and rows `[pairs]` int32 of
        the index: the training candidates of each query.
      unknown_query: Answer to a query without training rows, one of
        `bundle.UNKNOWN_QUERY`: the candidates with the highest counts, the
        tower's answer, or "features", which is the tower's answer if the query
        is answerable, else the candidates with the highest counts.
      max_k: Maximum number of answers per query.
      titles: n UTF-8 titles by row of the index, which answers include.
      name: Name of the module.
    """
    super().__init__(name=name)
    self.index = index
    self.query_encoder = query_encoder
    self.candidate_encoder = candidate_encoder
    self.vectors = index.vectors  # For readers of the SavedModel.
    if not query_encoder.takes_history:
      self._catalogue = [
        tf.Variable(x, trainable=False, name="fold_in")
        for x in fold_in.catalogue(index.vectors, FOLD_IN_RIDGE)
      ]
    self._max_k = max_k
    self._unknown_query = unknown_query
    self._popular = None
    if unknown_query != "tower":
      self._popular = indexes.BruteForceIndex().index(
        index.ids, np.asarray(candidate_counts, np.float32)[:, None]
      )
    # All signatures share one graph each: tracing and loading graphs takes most
    # of the time of an export and of a start. As attributes, they would be
    # saved again.
    self._functions = types.SimpleNamespace(
      search=_traced(index, query_encoder.shape)
    )
    if self._popular is not None:
      self._functions.popular = _traced(self._popular, (1,))
    with tf.device("cpu:0"):
      self._seen_splits, self._seen_rows = (
        tf.Variable(x, trainable=False, name=f"seen_{name}")
        for name, x in zip(("row_splits", "rows"), seen, strict=True)
      )
      self._titles = None
      if titles is not None:
        self._titles = tf.Variable(
          tf.constant(titles, tf.string), trainable=False, name="titles"
        )

  def search(self, embeddings, k, exclude_ids, allow_ids) -> dict:
    """The signature `search`."""
    nothing = _no_rows(embeddings)
    return self._titled(
      self._search(embeddings, k, exclude_ids, allow_ids, nothing)
    )

  def similar_items(self, ids, k) -> dict:
    """The signature `similar_items`."""
    nothing = tf.zeros([tf.size(ids), 0], ids.dtype)
    rows = self.index.ids.rows(ids)
    vectors = self.index.vectors_of(rows)
    if len(self.query_encoder.shape) == 2:  # Searches as one interest each.
      vectors = vectors[:, tf.newaxis]
    return self._titled(
      self._search(vectors, k, nothing, nothing, rows[:, None])
    )

  def recommend(
    self,
    query_id,
    raw,
    k,
    exclude_ids,
    allow_ids,
    past=(),
    leave_out_seen=False,
  ) -> dict:
    """The signatures `recommend` and `recommend_unseen`.

    `past` is the history, if there is one, and its times; see
    `histories.past_inputs`.
    """
    query = self.encode(query_id, raw, past)
    seen = _no_rows(query.embedding)
    if leave_out_seen:
      seen = histories.lists_of(self._seen_splits, self._seen_rows, query.row)
      if past:
        exclude_ids = tf.concat([exclude_ids, past[0]], axis=1)
    found = self._search(query.embedding, k, exclude_ids, allow_ids, seen)
    known = query.row >= 0
    popular = self._gets_popular(query)
    if self._popular is not None:
      found = branches.seldom(
        tf.reduce_any(popular),
        lambda: self._with_popular(found, popular, k, exclude_ids, allow_ids),
        lambda: found,
      )
    found = {**self._titled(found), "known": known, "popular": popular}
    if past:
      found["num_history"] = query.num_history
    return found

  def recommend_session(self, *inputs) -> dict:
    """The signature `recommend_session`."""
    *past, k, exclude_ids, allow_ids = inputs
    nobody = self._nobody(past[0])
    found = self.recommend(*nobody, k, exclude_ids, allow_ids, past)
    del found["known"]  # A session is never known.
    return found

  def encode_session(self, *past) -> dict:
    """The signature `encode_session`."""
    query = self.encode(*self._nobody(past[0]), past)
    return {"embedding": query.embedding, "num_history": query.num_history}

  def encode(self, query_id, raw, past=()) -> encoders.Encoded:
    """Encodes queries; uses only the history of queries without training rows.

    A tower that takes histories decides by itself.
    """
    if self.query_encoder.takes_history:
      return self.query_encoder(query_id, raw, *past)
    query = self.query_encoder(query_id, raw)
    if not past:
      return query
    rows = self.index.ids.rows(past[0])
    known = tf.math.count_nonzero(rows >= 0, axis=1, dtype=tf.int32)
    return query._replace(
      embedding=tf.where(
        ((query.row < 0) & (known > 0))[:, None],
        self._fold_in(rows),
        query.embedding,
      ),
      answerable=query.answerable | (known > 0),
      num_history=known,
    )

  def _fold_in(self, rows: tf.Tensor) -> tf.Tensor:
    """`[n, dim]` vectors fitted to lists of rows `[n, H]`, newest last."""
    rows, lengths = history.newest(rows, FOLD_IN_LENGTH, self.index.size)
    vectors = tf.gather(self.index.vectors, tf.maximum(rows, 0))
    return fold_in.fold_in(
      vectors, lengths, *self._catalogue, power=FOLD_IN_POWER
    )

  def _nobody(self, history_ids) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Query ids and features of n queries without any inputs."""
    n = tf.shape(history_ids)[0]
    encoder = self.query_encoder
    padding = "" if encoder.id_dtype == tf.string else -1
    ids = tf.fill([n], tf.constant(padding, encoder.id_dtype))
    return ids, [x.not_given(n) for x in encoder.inputs]

  def _search(self, embeddings, k, exclude_ids, allow_ids, exclude_rows):
    fits = tf.debugging.assert_less_equal(
      k, self._max_k, f"`k` must be at most {self._max_k}."
    )
    with tf.control_dependencies([fits]):
      k = tf.identity(k)
    return _answers(
      *self._functions.search(
        embeddings, k, exclude_ids, allow_ids, exclude_rows
      )
    )

  def _titled(self, found: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Adds titles to answers, if there are any."""
    if self._titles is None:
      return found
    rows = self.index.ids.rows(found["candidate_ids"])
    titles = tf.gather(self._titles, tf.maximum(rows, 0))
    return {**found, "titles": tf.where(rows >= 0, titles, "")}

  def _gets_popular(self, query: encoders.Encoded) -> tf.Tensor:
    """`[n]` bool, the queries to answer with the most popular candidates."""
    known = query.row >= 0
    if self._unknown_query == "tower":
      return tf.zeros_like(known)
    if self._unknown_query == "features":
      return ~query.answerable
    if query.num_history is not None:
      known |= query.num_history > 0
    return ~known

  def _with_popular(self, found, popular, k, exclude_ids, allow_ids) -> dict:
    """Replaces answers by the most popular candidates where `popular`.

    These queries have no training rows, so they have not seen any candidate.
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


def save_query_tower(
  encoder: encoders.TrainedEncoder | histories.HistoryEncoder,
  path: str | os.PathLike[str],
) -> dict:
  """Saves `encode_query` and the signatures that `export.refresh` needs.

  Returns:
    The signatures, for the manifest.
  """
  if not encoder.takes_history:
    return _save(encoder, path, {"encode_query": _encode(encoder, "query")})
  past = histories.past_inputs(encoder.event_ids.dtype, encoder.takes_times)
  tower = encoder.tower
  signatures = {
    "encode_query": _encode(encoder, "query", past),
    "encode_events": _encode(tower, "query", tower.further),
  }
  return _save(encoder, path, signatures)


def save_candidate_tower(
  encoder: encoders.TrainedEncoder,
  events: encoders.TrainedEncoder | None,
  path: str | os.PathLike[str],
) -> dict:
  """Saves `encode_candidate`, and `encode_event` if there is one.

  Returns:
    The signatures, for the manifest.
  """
  module = tf.Module()
  module.encoder, module.events = encoder, events
  signatures = {"encode_candidate": _encode(encoder, "candidate")}
  if events is not None:
    signatures["encode_event"] = _encode(events, "candidate")
  return _save(module, path, signatures)


def save_ranker(ranker: encoders.Ranker, path: str | os.PathLike[str]) -> dict:
  """Saves `rank`.

  Returns:
    The signatures, for the manifest.
  """

  def rank(query_id, candidate_ids, *history):
    return {"scores": ranker(query_id, candidate_ids, *history)}

  names = ["candidate_ids", *["history"] * ranker.takes_history]
  id_dtype = ranker.candidate_ids.dtype
  signature = _signature(
    rank,
    tf.TensorSpec([None], ranker.query_ids.dtype, "query_id"),
    *(tf.TensorSpec([None, None], id_dtype, name) for name in names),
  )
  return _save(ranker, path, {"rank": signature})


def save_retriever(retriever: Retriever, path: str | os.PathLike[str]) -> dict:
  """Saves all signatures of a retriever; see `xir_tfrs.serving.bundle`.

  Returns:
    The signatures, for the manifest.
  """
  queries = retriever.query_encoder
  id_dtype = retriever.index.ids.dtype
  k = tf.TensorSpec([], tf.int32, "k")
  exclude = tf.TensorSpec([None, None], id_dtype, "exclude_ids")
  allow = tf.TensorSpec([None, None], id_dtype, "allow_ids")
  past = histories.past_inputs(id_dtype, queries.takes_times)
  query = (
    tf.TensorSpec([None], queries.id_dtype, "query_id"),
    *(x.spec for x in queries.inputs),
  )
  # Queries may have any number of interests.
  vectors = tf.TensorSpec(
    _of_queries(queries.shape), tf.float32, "query_embeddings"
  )
  given = past if queries.takes_history else []

  def recommend(leave_out_seen):
    def answer(query_id, *rest):
      raw, rest = rest[: len(queries.inputs)], rest[len(queries.inputs) :]
      return retriever.recommend(
        query_id,
        raw,
        *rest[-3:],
        past=rest[:-3],
        leave_out_seen=leave_out_seen,
      )

    return _signature(answer, *query, *given, k, exclude, allow)

  signatures = {
    "recommend": recommend(False),
    "recommend_unseen": recommend(True),
    "recommend_session": _signature(
      retriever.recommend_session, *past, k, exclude, allow
    ),
    "search": _signature(retriever.search, vectors, k, exclude, allow),
    "similar_items": _signature(
      retriever.similar_items, tf.TensorSpec([None], id_dtype, "ids"), k
    ),
    "encode_query": _encode(queries, "query", given),
    "encode_session": _signature(retriever.encode_session, *past),
    "encode_candidate": _encode(retriever.candidate_encoder, "candidate"),
  }
  # The signature of requests that name none.
  signatures["serving_default"] = signatures["recommend"]
  return _save(retriever, path, signatures)


def _encode(
  encoder: encoders.Encoder, side: str, history: Sequence[tf.TensorSpec] = ()
) -> tf.types.experimental.ConcreteFunction:
  def encode(ids, *values):
    raw, history = values[: len(encoder.inputs)], values[len(encoder.inputs) :]
    return encoder(ids, raw, *history).outputs()

  ids = tf.TensorSpec([None], encoder.id_dtype, f"{side}_id")
  return _signature(encode, ids, *(x.spec for x in encoder.inputs), *history)


def _of_queries(shape: tuple[int, ...]) -> list[int | None]:
  """Shape of n queries, each of `shape`, with any number of interests."""
  return [None] * len(shape) + [shape[-1]]


def _traced(
  index: indexes.RetrievalIndex, shape: tuple[int, ...]
) -> tf.types.experimental.GenericFunction:
  """`search` by vectors, k, ids to exclude or allow, and rows to exclude."""

  def search(queries, k, exclude, allow, exclude_rows):
    return index.search(queries, k, exclude, allow, exclude_rows=exclude_rows)

  ids = tf.TensorSpec([None, None], index.ids.dtype)
  signature = [
    tf.TensorSpec(_of_queries(shape), tf.float32),
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
  # Without autograph: there is no Python control flow to convert, and the
  # conversion would take most of the time of an export.
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
  return {
    name: manifest.signature_of(
      {x.name: x for x in f.structured_input_signature[0]}, f.structured_outputs
    )
    for name, f in signatures.items()
  }
