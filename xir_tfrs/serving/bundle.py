"""The bundle: a directory with everything a retriever needs to answer.

    manifest.json      what is in here, how it was made, sha256 of every file
    query_tower/       SavedModel: encode_query(query_id, FEATURES)
    candidate_tower/   SavedModel: encode_candidate(candidate_id, FEATURES)
                         -> embedding, row (-1 for an unknown id)
    brute_force/       SavedModel of plain TensorFlow ops, and
    scann/             SavedModel with ScaNN's ops; both have encode_query,
                       encode_candidate, and
                         recommend(query_id, FEATURES, k, exclude_ids,
                                   allow_ids)
                         recommend_unseen, the same without what the query had
                         in training
                         -> candidate_ids, scores, num_found, known
                         search(query_embeddings, k, exclude_ids, allow_ids)
                         similar_items(ids, k)
                         -> candidate_ids, scores, num_found
                       serving_default is recommend
    scann_folder/      ScaNN's own files, for processes without TensorFlow
    ranker/            SavedModel, if the model has a ranker:
                         rank(query_id, candidate_ids) -> scores
    lists/             ids, training counts, seen candidates, vocabularies
    recall_latency.png how ScaNN's settings were chosen

Ids are the user's own, strings or int64. FEATURES are the side features of the
tower, raw (`export.features`). Lists of ids are padded with "" or -1, and so
are answers, with score -inf, where fewer than k remain. An `allow_ids` row of
padding alone restricts nothing.

A query that training did not know, `known` False, gets the most popular
candidates with their training counts as scores; if the query tower has side
features, or the export was told so, what the tower says of it instead.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from xir_tfrs import indexes
from xir_tfrs.data import errors, id_lists
from xir_tfrs.serving import features
from xir_tfrs.serving import manifest as manifests

INDEXES = ("scann", "brute_force")
RERANK_DEPTH = 100
UNKNOWN_QUERY = ("popularity", "tower")
FOLDER = "scann_folder"
LISTS = "lists"
RANKER = "ranker"
FEATURES = "features.json"

Id = str | int


class Recommendations(NamedTuple):
  """Answers to n queries.

  Attributes:
    ids: `[n, k]`, best first: object array of str with "" for padding, or
      int64 with -1.
    scores: `[n, k]` float32, -inf for padding; the ranker's where it ranked
      again. Where `known` is False: see the bundle.
    known: `[n]` bool, whether the query id was in the training data.
    num_found: `[n]` int32, how many answers are no padding.
  """

  ids: np.ndarray
  scores: np.ndarray
  known: np.ndarray
  num_found: np.ndarray


class SimilarItems(NamedTuple):
  """Answers for n candidates; as in `Recommendations`."""

  ids: np.ndarray
  scores: np.ndarray
  num_found: np.ndarray


class Bundle:
  """A bundle that has been read and checked.

  Attributes:
    directory: where it is.
    manifest: content of manifest.json.
    index: "scann" or "brute_force", which of the two answers.
    signatures: those of the index, by name.
    query_features, candidate_features: side features of the towers.
    candidate_ids: original ids by row of the index.
    query_ids: original ids by dense id.
  """

  def __init__(self, directory: pathlib.Path, manifest: dict, index: str):
    """Use `Bundle.load`."""
    self.directory = directory
    self.manifest = manifest
    self.index = index
    lists = directory / LISTS
    self.candidate_ids = id_lists.load_ids(lists / "candidate_ids")
    self.query_ids = id_lists.load_ids(lists / "query_ids")
    described = json.loads((lists / FEATURES).read_text(encoding="utf-8"))
    self.query_features = features.of_schema(described["query"])
    self.candidate_features = features.of_schema(described["candidate"])
    # The signatures alone do not keep the tables and variables alive.
    self._model = tf.saved_model.load(os.fspath(directory / index))
    self.signatures = dict(self._model.signatures)

  @classmethod
  def load(
    cls,
    directory: str | os.PathLike[str],
    index: str | None = None,
    check_hashes: bool = True,
  ) -> Bundle:
    """Reads a bundle and checks it against its manifest.

    Args:
      directory: what `export.export_retriever` wrote.
      index: "scann", "brute_force", or None for the first of these it has.
      check_hashes: whether to compare the content of every file that is read,
        and not its size alone.

    Raises:
      export.errors.ExportError: a file is missing or changed, the bundle has
        no such index, or ScaNN or TensorFlow here are not those it needs.
    """
    directory = pathlib.Path(directory).resolve()
    manifest = manifests.load(directory)
    available = [name for name in INDEXES if name in manifest["indexes"]]
    if index is None:
      index = available[0]
    if index not in available:
      raise errors.ExportError(
        f"{directory}: has no index {index!r}, only {', '.join(available)}; "
        "choose one of these, or export again with --index both"
      )
    read = (index, LISTS, RANKER) if check_hashes else ()
    manifests.check_files(directory, manifest, read)
    needs_scann = manifest["indexes"][index]["kind"] == "scann"
    manifests.check_versions(directory, manifest, needs_scann)
    if needs_scann:
      try:
        indexes.load_ops()
      except ImportError as error:
        raise errors.ExportError(
          f"{directory}: {error}; --index brute_force does without"
        ) from error
    return cls(directory, manifest, index)

  def recommend(
    self,
    query_ids: Sequence[Id],
    k: int,
    exclude: Sequence[Sequence[Id]] | None = None,
    allow: Sequence[Sequence[Id]] | None = None,
    features: Mapping[str, Sequence] | None = None,
    exclude_seen: bool = False,
    rerank: bool = False,
    rerank_depth: int = RERANK_DEPTH,
  ) -> Recommendations:
    """Best candidates of each query.

    Args:
      query_ids: n original ids.
      k: number of answers, from 1 to the bundle's `max_k`; may exceed the
        corpus.
      exclude: n lists of candidate ids that must not come back.
      allow: n lists of the only candidate ids that may; an empty one does not
        restrict.
      features: side features of the queries, by name, n values each; what is
        not given, or None, is as in training.
      exclude_seen: whether to leave out the candidates each query had in the
        training data as well.
      rerank: whether the answers are the best by the ranker among what the
        index has retrieved. Unknown queries are not ranked again.
      rerank_depth: how many the index retrieves for the ranker; at least k
        are.

    Raises:
      ValueError: an argument has another size or type.
      export.errors.ExportError: `rerank`, and the bundle has no ranker.
    """
    depth = max(k, rerank_depth) if rerank else k
    self._check_k("k", k)
    if rerank:
      self._check_k("rerank_depth", rerank_depth)
    # Before the work: it may not be there.
    rank = self._rank if rerank else None
    queries = self._ids("query", query_ids)
    n = len(query_ids)
    name = "recommend_unseen" if exclude_seen else "recommend"
    answers = self.signatures[name](
      query_id=queries,
      **self._features(self.query_features, features, n),
      k=tf.constant(depth, tf.int32),
      exclude_ids=self._lists("exclude", exclude, n),
      allow_ids=self._lists("allow", allow, n),
    )
    known, found = answers["known"].numpy(), answers["num_found"].numpy()
    ids, scores = answers["candidate_ids"].numpy(), answers["scores"].numpy()
    if rank is not None:
      again = rank(query_id=queries, candidate_ids=answers["candidate_ids"])
      ranked = np.where(known[:, None], again["scores"].numpy(), scores)
      ids, scores = _best_again(ids, scores, ranked, k)
      found = np.minimum(found, k)
    return Recommendations(_decode(ids), scores, known, found)

  def similar_items(self, ids: Sequence[Id], k: int) -> SimilarItems:
    """The nearest candidates of each candidate; none of an unknown one."""
    self._check_k("k", k)
    answers = self.signatures["similar_items"](
      ids=self._ids("candidate", ids), k=tf.constant(k, tf.int32)
    )
    return SimilarItems(
      _decode(answers["candidate_ids"].numpy()),
      answers["scores"].numpy(),
      answers["num_found"].numpy(),
    )

  def encode_queries(
    self,
    ids: Sequence[Id],
    features: Mapping[str, Sequence] | None = None,
  ) -> np.ndarray:
    """`[n, dim]` vectors of query ids, and features as in `recommend`."""
    found = self.signatures["encode_query"](
      query_id=self._ids("query", ids),
      **self._features(self.query_features, features, len(ids)),
    )
    return found["embedding"].numpy()

  def encode_candidates(
    self,
    ids: Sequence[Id],
    features: Mapping[str, Sequence] | None = None,
  ) -> np.ndarray:
    """`[n, dim]` vectors of candidates, as the candidate tower has them.

    Those of the index are `vectors`; after `export.refresh` they may differ.
    """
    found = self.signatures["encode_candidate"](
      candidate_id=self._ids("candidate", ids),
      **self._features(self.candidate_features, features, len(ids)),
    )
    return found["embedding"].numpy()

  def close(self) -> None:
    """Frees its memory; nothing can be asked after this.

    TensorFlow keeps hash tables and ScaNN's searchers by name when all else of
    a SavedModel is gone: a process that loads one bundle after another would
    grow by each.
    """
    for part in tf.train.TrackableView(self._model).descendants():
      if hasattr(part, "recreate_handle"):  # Of a searcher.
        handle = part.recreate_handle()
      elif hasattr(part, "resource_handle"):
        handle = part.resource_handle
      else:
        continue
      tf.raw_ops.DestroyResourceOp(resource=handle, ignore_lookup_error=True)
    self.signatures = {}

  @property
  def vectors(self) -> np.ndarray:
    """`[num_candidates, dim]` float32, in the order of `candidate_ids`."""
    return self._model.vectors.numpy()

  @functools.cached_property
  def counts(self) -> np.ndarray:
    """`[num_candidates]` int64 training counts."""
    return self._list("candidate_counts")

  @functools.cached_property
  def seen(self) -> tuple[np.ndarray, np.ndarray]:
    """Row splits by query, and rows of their training candidates."""
    return self._list("seen_row_splits"), self._list("seen_candidates")

  @property
  def has_ranker(self) -> bool:
    """Whether it can rank again."""
    return RANKER in self.manifest["signatures"]

  @functools.cached_property
  def _rank(self) -> Callable[..., dict[str, tf.Tensor]]:
    if not self.has_ranker:
      raise errors.ExportError(
        f"{self.directory}: has no ranker, so it cannot re-rank; ask without "
        "--rerank, or export a model that has one (python -m pipelines.train "
        "--task corr)"
      )
    self._ranker = tf.saved_model.load(os.fspath(self.directory / RANKER))
    return self._ranker.signatures["rank"]

  def _list(self, name: str) -> np.ndarray:
    return np.load(self.directory / LISTS / f"{name}.npy", mmap_mode="r")

  def _check_k(self, name: str, value: int) -> None:
    largest = self.manifest["max_k"]
    if not 1 <= value <= largest:
      raise ValueError(
        f"`{name}` must be from 1 to {largest}, the bundle's `max_k`. "
        f"Received: `{name}` = {value}."
      )

  def _ids(self, side: str, ids: Sequence[Id]) -> tf.Tensor:
    """`[n]` of the type that the bundle has."""
    kind = self.manifest["id_types"][side]
    expected = (str, bytes) if kind == "string" else (str, int, np.integer)
    for value in ids:
      if not isinstance(value, expected):
        raise ValueError(
          f"{side} ids of this bundle are of type {kind}. Received: {value!r}."
        )
    if kind == "string":
      return tf.constant(list(ids), tf.string, [len(ids)])
    try:
      return tf.constant([int(x) for x in ids], tf.int64, [len(ids)])
    except (ValueError, OverflowError) as error:
      raise ValueError(
        f"{side} ids of this bundle are of type int64: {error}."
      ) from None

  def _lists(
    self, name: str, lists: Sequence[Sequence[Id]] | None, n: int
  ) -> tf.Tensor:
    """`[n, width]` padded candidate ids."""
    lists = [[] for _ in range(n)] if lists is None else list(lists)
    if len(lists) != n:
      raise ValueError(
        f"`{name}` must hold one list per query. Received: {len(lists)} lists "
        f"for {n} queries."
      )
    width = max(map(len, lists), default=0)
    padding = "" if self.manifest["id_types"]["candidate"] == "string" else -1
    flat = [x for row in lists for x in (*row, *[padding] * (width - len(row)))]
    return tf.reshape(self._ids("candidate", flat), [n, width])

  def _features(
    self,
    inputs: Sequence[features.FeatureInput],
    values: Mapping[str, Sequence] | None,
    n: int,
  ) -> dict[str, tf.Tensor]:
    return features.to_tensors(inputs, values, n)


def _best_again(
  ids: np.ndarray, retrieved: np.ndarray, ranked: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """The k best by `ranked`; padding, with -inf in `retrieved`, stays last."""
  scores = np.where(np.isneginf(retrieved), -np.inf, ranked)
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return tuple(np.take_along_axis(x, order, axis=1) for x in (ids, scores))


def _decode(ids: np.ndarray) -> np.ndarray:
  if ids.dtype == np.int64:
    return ids
  flat = [x.decode() for x in ids.ravel()]
  return np.array(flat, object).reshape(ids.shape)
