"""The bundle: a directory with everything a retriever needs for serving.

    manifest.json      contents, origin, and the SHA-256 of every file
    query_tower/       SavedModel: encode_query(query_id, FEATURES, HISTORY)
    candidate_tower/   SavedModel: encode_candidate(candidate_id, FEATURES)
                         -> embedding, row (-1 for an unknown id), answerable
    brute_force/       SavedModel of plain TensorFlow ops, and
    scann/             SavedModel with ScaNN's ops; both have encode_query,
                       encode_candidate, and
                         recommend(query_id, FEATURES, HISTORY, k, exclude_ids,
                                   allow_ids)
                         recommend_unseen, the same without the candidates of
                         the query's training rows and history
                         -> candidate_ids, scores, num_found, known, popular
                         recommend_session(history, k, exclude_ids, allow_ids)
                         -> candidate_ids, scores, num_found, popular
                         encode_session(history) -> embedding
                         search(query_embeddings, k, exclude_ids, allow_ids)
                         similar_items(ids, k)
                         -> candidate_ids, scores, num_found
                       serving_default is recommend. If queries have several
                       interests, embeddings are [n, interests, dim], and the
                       highest score of a candidate counts
    scann_folder/      ScaNN's own files, for processes without TensorFlow
    ranker/            SavedModel, if the model has a ranker:
                         rank(query_id, candidate_ids, HISTORY) -> scores
    lists/             ids, titles, training counts, seen candidates,
                       vocabularies; the same in removed/ for candidates that
                       a refresh removed, which may be added again
    recall_latency.png the tuning of ScaNN's settings

Ids are the original ones, strings or int64. FEATURES are the raw side features
of the tower (`xir_tfrs.serving.features`). Lists of ids are padded with "" or
-1. Answers are padded too, with score -inf, if fewer than k candidates remain.
An `allow_ids` row of padding alone restricts nothing. If the data has titles,
every signature that returns `candidate_ids` also returns `titles`, "" for none.

If the query tower or the ranker takes histories, HISTORY is `history` [n, H],
the candidates that each query chose, newest last. Padding may be anywhere,
unknown ids are dropped, and only the newest ids of long histories count. Except
for the ranker, signatures with this input also return `num_history`, the number
of known ids. If no id is known, a query with training rows uses its training
history.

If the query tower uses the ages of events, HISTORY also has `history_times`
[n, up to H], the times of the columns of `history`, and `time` [n], that of the
request, in the unit of the training data. Negative and missing times are
unknown. If the time of the request or of an event that counts is unknown, the
answer uses no ages. A training history has its times in training.

A session is a query with a history only. Any bundle answers it: a
tower of query ids uses a vector that is fitted to the history
(`xir_tfrs.ops.fold_in`).

A query without training rows is unknown (`known` is False). If its history has
known ids, the answer uses them. Otherwise, if the query tower has side features
and some of them are given, the query is `answerable` and the tower uses them.
Otherwise it gets the most popular candidates, with their training counts as
scores, and `popular` is True. The export can choose popularity, or the tower,
for all unknown queries.
"""

from __future__ import annotations

import functools
import operator
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tensorflow as tf

from xir_tfrs import indexes
from xir_tfrs.data import errors, id_lists, json_files, paths
from xir_tfrs.serving import features as features_lib
from xir_tfrs.serving import ids as ids_lib
from xir_tfrs.serving import manifest as manifests
from xir_tfrs.serving.ids import Id
from xir_tfrs.serving.manifest import INDEXES

RERANK_DEPTH = 100
FOLDER = "scann_folder"
LISTS = "lists"
RANKER = "ranker"
FEATURES = "features.json"
TITLES = "candidate_titles"


class Recommendations(NamedTuple):
  """Answers to n queries.

  Attributes:
    ids: `[n, k]`, best first: object array of str padded with "", or int64
      padded with -1.
    scores: `[n, k]` float32, -inf for padding: scores of the index, of the
      ranker if it re-ranked, or training counts if `popular`.
    known: `[n]` bool, whether the query id has training rows.
    num_found: `[n]` int32, number of answers without padding.
    popular: `[n]` bool, whether the answers are the most popular candidates
      and the scores their training counts.
    num_history: `[n]` int32, number of known ids in the given history; 0 if a
      tower of query ids answers from training rows.
    titles: `[n, k]` object array of str, the titles of `ids`, "" for none; None
      if the bundle has no titles.

  Examples:
    >>> bundle = xir.serving.Bundle.load("bundle")
    >>> found = bundle.recommend(["nobody"], k=3)
    >>> found.popular, found.num_found
    (array([ True]), array([3], dtype=int32))
  """

  ids: np.ndarray
  scores: np.ndarray
  known: np.ndarray
  num_found: np.ndarray
  popular: np.ndarray
  num_history: np.ndarray
  titles: np.ndarray | None = None


class SimilarItems(NamedTuple):
  """Answers for n candidates; fields as in `Recommendations`.

  Examples:
    >>> bundle = xir.serving.Bundle.load("bundle")
    >>> found = bundle.similar_items([bundle.candidate_ids[0]], k=2)
    >>> found.ids.shape, found.num_found
    ((1, 2), array([2], dtype=int32))
  """

  ids: np.ndarray
  scores: np.ndarray
  num_found: np.ndarray
  titles: np.ndarray | None = None


class Queries(NamedTuple):
  """Encoded queries, ready for an index.

  Attributes:
    vectors: `[n, dim]` float32; `[n, interests, dim]` if the manifest of the
      bundle has `num_interests`.
    rows: `[n]` int64 dense ids, as in `Bundle.seen`; -1 without training rows.
    popular: `[n]` bool, whether the most popular candidates answer the query.
  """

  vectors: np.ndarray
  rows: np.ndarray
  popular: np.ndarray


class Bundle:
  """A loaded and checked bundle.

      bundle = xir.serving.Bundle.load("BUNDLE")
      found = bundle.recommend(["u1", "u2"], k=10, exclude_seen=True)
      print(found.ids[0], found.scores[0])
      print(found.titles, bundle.title("i1"))  # If the data has titles.

  Attributes:
    directory: Directory of the bundle.
    manifest: Content of manifest.json.
    index: The loaded index, "scann" or "brute_force".
    query_features, candidate_features: Side features of the towers.
    candidate_ids: Original ids by row of the index.
    query_ids: Original ids by dense id.
    titles: Titles in the order of `candidate_ids`, "" for none; None if the
      bundle has no titles.
    counts: `[num_candidates]` int64 training counts.
    seen: Row splits by query, and the rows of the training candidates.

  Examples:
    >>> bundle = xir.serving.Bundle.load("bundle")
    >>> who = [bundle.query_ids[0], "nobody"]
    >>> found = bundle.recommend(who, k=3, exclude_seen=True)
    >>> found.ids.shape, found.known
    ((2, 3), array([ True, False]))
  """

  def __init__(
    self, directory: pathlib.Path, manifest: manifests.Manifest, index: str
  ):
    """Use `Bundle.load`."""
    self.directory = directory
    self.manifest = manifest
    self.index = index
    lists = directory / LISTS
    self.candidate_ids, self.query_ids = (
      id_lists.load_ids(lists / f"{side}_ids", getattr(manifest.id_types, side))
      for side in ("candidate", "query")
    )
    # Opens all lists now, because another bundle may replace them later.
    self.titles: Sequence[str] | None = None
    if manifest.item_title is not None:
      self.titles = id_lists.StringList.load(lists / TITLES)
    self.counts: np.ndarray = id_lists.load_array(
      lists / "candidate_counts.npy"
    )
    self.seen: tuple[np.ndarray, np.ndarray] = (
      id_lists.load_array(lists / "seen_row_splits.npy"),
      id_lists.load_array(lists / "seen_candidates.npy"),
    )
    described = json_files.read(
      lists / FEATURES,
      features_lib.FeatureLists,
      remedy="copy or export the bundle again",
    )
    self.query_features = described.query
    self.candidate_features = described.candidate
    # The signatures alone do not keep the tables and variables alive.
    self._model = tf.saved_model.load(
      os.fspath(paths.literal(directory / index))
    )
    self._signatures = dict(self._model.signatures)
    self._process = os.getpid()

  @classmethod
  def load(
    cls,
    directory: str | os.PathLike[str],
    index: str | None = None,
    check_hashes: bool = True,
  ) -> Bundle:
    """Loads a bundle and checks it against its manifest.

    If another bundle replaces it meanwhile, that one is loaded.

    Args:
      directory: Directory that `export.export_retriever` wrote.
      index: "scann", "brute_force", or None for the first one that the bundle
        has.
      check_hashes: Whether to check the hash of every file that is read, and
        not only its size.

    Raises:
      DataError: A file is missing or changed, the bundle has no such index, or
        it needs another version of ScaNN or TensorFlow.
    """
    directory = pathlib.Path(directory)
    return manifests.read_whole(
      # A symbolic link may name another bundle meanwhile.
      directory,
      lambda: cls._load(directory.resolve(), index, check_hashes),
    )

  @classmethod
  def _load(
    cls, directory: pathlib.Path, index: str | None, check_hashes: bool
  ) -> Bundle:
    manifest = manifests.load(directory)
    available = [name for name in INDEXES if name in manifest.indexes]
    if index is None:
      index = available[0]
    if index not in available:
      raise errors.DataError(
        f"{directory}: has no index {index!r}, only {', '.join(available)}; "
        "choose one of these, or export again with --index both"
      )
    read = (index, LISTS, RANKER) if check_hashes else ()
    manifests.check_files(directory, manifest, read)
    needs_scann = manifest.indexes[index].kind == "scann"
    manifests.check_versions(directory, manifest, needs_scann)
    if needs_scann:
      try:
        indexes.load_ops()
      except ImportError as error:
        raise errors.DataError(
          f"{directory}: {error}; --index brute_force does not need ScaNN"
        ) from error
    return cls(directory, manifest, index)

  def recommend(
    self,
    query_ids: Sequence[Id] | None = None,
    history: Sequence[Sequence[Id]] | None = None,
    k: int = 10,
    exclude_ids: Sequence[Sequence[Id]] | None = None,
    allow_ids: Sequence[Sequence[Id]] | None = None,
    *,
    features: Mapping[str, Sequence] | None = None,
    history_times: Sequence[Sequence[int | None]] | None = None,
    time: Sequence[int | None] | None = None,
    exclude_seen: bool = False,
    exclude_history: bool = False,
    rerank: bool = False,
    rerank_depth: int = RERANK_DEPTH,
  ) -> Recommendations:
    """Recommends the best candidates for each query.

    Args:
      query_ids: n original ids; None for sessions, i.e. queries with a history
        only.
      history: n lists of candidate ids, newest last. A tower of query ids uses
        them only for queries without training rows. None or an empty list means
        the history in training.
      k: Number of answers, from 1 to the bundle's `max_k`; may exceed the
        corpus.
      exclude_ids: n deny lists of candidate ids.
      allow_ids: n allow lists of candidate ids; an empty list restricts
        nothing.
      features: Side features of the queries, by name, n values each. Missing
        features and None mean the value in training.
      history_times: The time of each id in `history`, in the unit of the
        training data; None and negative times are unknown. Only for a bundle
        that `takes_times`; so is `time`.
      time: n times of the requests. Without it no ages are used.
      exclude_seen: Whether to also leave out the candidates of the query's
        training rows and history.
      exclude_history: Whether to also leave out the candidates of its history.
      rerank: Whether the ranker re-ranks the candidates that the index
        retrieves. It does not re-rank unknown queries, unless it takes
        histories and theirs has known ids.
      rerank_depth: Number of candidates to retrieve for the ranker; at least k
        are retrieved.

    Raises:
      ValueError: An argument has a wrong size or type.
      DataError: `rerank` is True and the bundle has no ranker.
    """
    if isinstance(history, int):
      raise ValueError(
        "`history` must hold one list of ids per query; give `k` by name. "
        f"Received: `history` = {history}."
      )
    self._check_k("k", k)
    if rerank:
      self._check_k("rerank_depth", rerank_depth)
      if query_ids is None and not self.ranks_histories:
        raise ValueError(
          "`rerank` needs `query_ids`: the ranker only scores known queries."
        )
    if exclude_history and history is None:
      raise ValueError(
        "`exclude_history` leaves out the ids of `history`. Received: "
        "`history` = None."
      )
    # Before any work, because the ranker may be missing.
    rank = self._rank if rerank else None
    query_ids, history = _as_lists(query_ids, history)
    queries, n = self._queries(query_ids, history)
    excluded = [self._lists("exclude_ids", exclude_ids, n)]
    if exclude_seen or exclude_history:
      excluded.append(self._lists("history", history, n))
    found = self._ask(
      "recommend_unseen" if exclude_seen else "recommend",
      "recommend_session",
      query_ids,
      history,
      features,
      {
        "k": tf.constant(max(k, rerank_depth) if rerank else k, tf.int32),
        "exclude_ids": tf.concat(excluded, axis=1),
        "allow_ids": self._lists("allow_ids", allow_ids, n),
        **self._times(history, history_times, time, n),
      },
    )
    ids, scores = found["candidate_ids"], found["scores"]
    num_found, titles = found["num_found"], found.get("titles")
    if rank is not None:
      given, rankable = {}, found["known"]
      if self.ranks_histories:
        given["history"] = self._lists("history", history, n)
        rankable = rankable | (found["num_history"] > 0)
      again = rank(
        query_id=queries,
        candidate_ids=tf.constant(ids, self.manifest.id_types.candidate),
        **given,
      )
      ranked = np.where(rankable[:, None], again["scores"].numpy(), scores)
      order, scores = _best_again(scores, ranked, k)
      ids = np.take_along_axis(ids, order, axis=1)
      if titles is not None:
        titles = np.take_along_axis(titles, order, axis=1)
      num_found = np.minimum(num_found, k)
    return Recommendations(
      _decode(ids),
      scores,
      found["known"],
      num_found,
      found["popular"],
      found["num_history"],
      None if titles is None else _decode(titles),
    )

  def similar_items(self, ids: Sequence[Id], k: int = 10) -> SimilarItems:
    """Finds the nearest candidates of each; an unknown id gets no answers."""
    self._check_k("k", k)
    answers = _to_numpy(
      self.signatures["similar_items"](
        ids=self._ids("candidate", ids), k=tf.constant(k, tf.int32)
      )
    )
    titles = answers.get("titles")
    return SimilarItems(
      _decode(answers["candidate_ids"]),
      answers["scores"],
      answers["num_found"],
      None if titles is None else _decode(titles),
    )

  def encode_queries(
    self,
    ids: Sequence[Id] | None = None,
    features: Mapping[str, Sequence] | None = None,
    history: Sequence[Sequence[Id]] | None = None,
    history_times: Sequence[Sequence[int | None]] | None = None,
    time: Sequence[int | None] | None = None,
  ) -> np.ndarray:
    """Returns vectors as in `Queries`; arguments as in `recommend`."""
    return self.read_queries(
      ids, features, history, history_times, time
    ).vectors

  def read_queries(
    self,
    ids: Sequence[Id] | None = None,
    features: Mapping[str, Sequence] | None = None,
    history: Sequence[Sequence[Id]] | None = None,
    history_times: Sequence[Sequence[int | None]] | None = None,
    time: Sequence[int | None] | None = None,
  ) -> Queries:
    """Encodes queries as `recommend` does, for use with your own index."""
    ids, history = _as_lists(ids, history)
    _, n = self._queries(ids, history)
    found = self._ask(
      "encode_query",
      "encode_session",
      ids,
      history,
      features,
      self._times(history, history_times, time, n),
    )
    has_history = found["num_history"] > 0
    popular = {
      "popularity": (found["row"] < 0) & ~has_history,
      "features": ~(found["answerable"] | has_history),
      "tower": np.zeros_like(has_history),
    }
    return Queries(
      found["embedding"], found["row"], popular[self.manifest.unknown_query]
    )

  def encode_candidates(
    self,
    ids: Sequence[Id],
    features: Mapping[str, Sequence] | None = None,
  ) -> np.ndarray:
    """Encodes candidates with the candidate tower: `[n, dim]` vectors.

    The vectors of the index are `vectors`; after `export.refresh` they may
    differ.
    """
    ids = self._ids("candidate", ids)
    found = self.signatures["encode_candidate"](
      candidate_id=ids,
      **features_lib.to_tensors(self.candidate_features, features, len(ids)),
    )
    return found["embedding"].numpy()

  def _ask(
    self,
    signature: str,
    of_sessions: str,
    query_ids: Sequence[Id] | None,
    history: Sequence[Sequence[Id]] | None,
    features: Mapping[str, Sequence] | None,
    limits: Mapping[str, tf.Tensor] | None = None,
  ) -> dict[str, np.ndarray]:
    """Calls one or both signatures and combines their answers.

    Args:
      signature: Takes ids, features and, if the tower does, histories.
      of_sessions: Takes histories alone. It answers sessions; if the tower
        takes no histories, also queries without training rows.
      query_ids: As in `recommend`.
      history: As in `recommend`.
      features: As in `recommend`.
      limits: Further inputs of both signatures.

    Returns:
      The outputs of `signature`, and `num_history`.
    """
    ids, n = self._queries(query_ids, history)
    limits = dict(limits or {})
    sessions = self._lists("history", history, n)
    raw = features_lib.to_tensors(self.query_features, features, n)
    if query_ids is None and not features:
      unknown = {"known": False, "row": -1, "answerable": False}
      return {name: np.full(n, x) for name, x in unknown.items()} | (
        self._of_sessions(of_sessions, sessions, limits)
      )
    if self.takes_histories:
      raw["history"] = sessions
    found = _to_numpy(self.signatures[signature](query_id=ids, **raw, **limits))
    if self.takes_histories:
      return found
    found["num_history"] = np.zeros(n, np.int32)
    known = found["known"] if "known" in found else found["row"] >= 0
    listed = (sessions != self._padding).numpy().any(axis=1)
    places = np.flatnonzero(~known & listed)
    if places.size:
      answers = self._of_sessions(
        of_sessions,
        tf.gather(sessions, places),
        {
          name: tf.gather(x, places) if x.shape.rank else x
          for name, x in limits.items()
        },
      )
      fitted = answers["num_history"] > 0
      for name, values in answers.items():
        found[name][places[fitted]] = values[fitted]
    return found

  def _of_sessions(
    self, signature: str, history: tf.Tensor, limits: Mapping[str, tf.Tensor]
  ) -> dict[str, np.ndarray]:
    if signature not in self.signatures:
      raise errors.DataError(
        "was exported by a version without support for histories; export "
        "it again, or leave `history` out",
        path=self.directory,
      )
    return _to_numpy(self.signatures[signature](history=history, **limits))

  def __reduce__(self) -> NoReturn:
    raise TypeError(
      f"{self.directory} cannot be pickled or copied, because TensorFlow's "
      "graphs cannot; load the bundle in each process."
    )

  def close(self) -> None:
    """Frees the memory; the bundle cannot be used after this.

    TensorFlow keeps hash tables and ScaNN searchers by name after a SavedModel
    is deleted, so without this call a process that loads several bundles would
    grow with each.
    """
    for part in tf.train.TrackableView(self._model).descendants():
      if hasattr(part, "recreate_handle"):  # A searcher.
        handle = part.recreate_handle()
      elif hasattr(part, "resource_handle"):
        handle = part.resource_handle
      else:
        continue
      tf.raw_ops.DestroyResourceOp(resource=handle, ignore_lookup_error=True)
    self._signatures = {}

  @property
  def signatures(self) -> dict[str, Callable[..., dict[str, tf.Tensor]]]:
    """The signatures of the index, by name.

    Raises:
      RuntimeError: This process was forked after the bundle was loaded, or the
        bundle was closed.
    """
    if not self._signatures:
      raise RuntimeError(f"{self.directory} was closed; load it again.")
    if os.getpid() != self._process:  # TensorFlow would hang.
      raise RuntimeError(
        f"{self.directory} was loaded before a fork, and TensorFlow's threads "
        "stay in the parent process; load the bundle in each process, after "
        "the fork."
      )
    return self._signatures

  @property
  def vectors(self) -> np.ndarray:
    """`[num_candidates, dim]` float32, in the order of `candidate_ids`."""
    return self._model.vectors.numpy()

  @property
  def events(self) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[m]` and vectors `[m, dim]` of the candidates in histories.

    Only for a bundle that `takes_histories`.
    """
    encoder = self._model.query_encoder
    ids = encoder.event_ids._ids.numpy()
    return _decode(ids), encoder.event_vectors.numpy()

  def title(self, candidate_id: Id) -> str:
    """Returns the title of a candidate; "" for none or an unknown id."""
    if self.titles is None:
      return ""
    (candidate_id,) = ids_lib.check_ids(
      "candidate", [candidate_id], self.manifest.id_types.candidate
    )
    row = self._row_of.get(candidate_id)
    return "" if row is None else self.titles[row]

  @functools.cached_property
  def _row_of(self) -> dict[Id, int]:
    ids = self.candidate_ids.tolist()
    return {candidate: row for row, candidate in enumerate(ids)}

  @property
  def takes_histories(self) -> bool:
    """Whether the query tower encodes histories."""
    return self.manifest.history_length is not None

  @property
  def takes_times(self) -> bool:
    """Whether the query tower uses the ages of the events in histories."""
    inputs = self.manifest.signatures[self.index]["recommend"]["inputs"]
    return "history_times" in inputs

  @property
  def has_ranker(self) -> bool:
    """Whether the bundle has a ranker."""
    return RANKER in self.manifest.signatures

  @property
  def ranks_histories(self) -> bool:
    """Whether the ranker takes histories."""
    return (
      self.has_ranker
      and "history" in self.manifest.signatures[RANKER]["rank"]["inputs"]
    )

  @functools.cached_property
  def _rank(self) -> Callable[..., dict[str, tf.Tensor]]:
    if not self.has_ranker:
      raise errors.DataError(
        f"{self.directory}: has no ranker, so it cannot re-rank; omit "
        "--rerank, or export a model that has one (xir-tfrs train "
        "--task corr)"
      )
    self._ranker = manifests.read_whole(self.directory, self._load_ranker)
    return self._ranker.signatures["rank"]

  def _load_ranker(self) -> Any:
    # Loaded at its first use, and by then another bundle may be in its place.
    try:
      same = manifests.load(self.directory) == self.manifest
    except errors.DataError:
      same = False
    if not same:
      raise errors.DataError(
        "was replaced or removed after it was loaded, before its ranker was "
        "read; load the bundle again",
        path=self.directory,
      )
    return tf.saved_model.load(
      os.fspath(paths.literal(self.directory / RANKER))
    )

  def _check_k(self, name: str, value: int) -> None:
    largest = self.manifest.max_k
    try:
      fits = 1 <= operator.index(value) <= largest
    except TypeError:
      fits = False
    if not fits:
      raise ValueError(
        f"`{name}` must be from 1 to {largest}, the bundle's `max_k`. "
        f"Received: `{name}` = {value!r}."
      )

  def _queries(
    self,
    ids: Sequence[Id] | None,
    history: Sequence[Sequence[Id]] | None,
  ) -> tuple[tf.Tensor, int]:
    """`[n]` query ids, padding if there are none, and n."""
    if ids is not None:
      queries = self._ids("query", ids)
      return queries, len(queries)
    if history is None:
      raise ValueError(
        "`query_ids` must be given, a list of original ids; or `history`, a "
        "list of ids for each query."
      )
    id_type = self.manifest.id_types.query
    return tf.fill([len(history)], _padding(id_type)), len(history)

  @property
  def _padding(self) -> tf.Tensor:
    """The padding of candidate ids."""
    return _padding(self.manifest.id_types.candidate)

  def _ids(self, side: str, ids: Sequence[Id]) -> tf.Tensor:
    """`[n]` ids with the id type of the bundle."""
    id_type = getattr(self.manifest.id_types, side)
    ids = ids_lib.check_ids(side, ids, id_type)
    return tf.constant(ids, id_type, [len(ids)])

  def _lists(
    self, name: str, lists: Sequence[Sequence[Id]] | None, n: int
  ) -> tf.Tensor:
    """`[n, width]` padded candidate ids."""
    id_type = self.manifest.id_types.candidate
    lists = ids_lib.check_lists(
      name, [[]] * n if lists is None else lists, n, id_type
    )
    width = max(map(len, lists), default=0)
    padding = [self._padding.numpy()]
    padded = [row + padding * (width - len(row)) for row in lists]
    return tf.constant(padded, id_type, [n, width])

  def _times(
    self,
    history: Sequence[Sequence[Id]] | None,
    history_times: Sequence[Sequence[int | None]] | None,
    time: Sequence[int | None] | None,
    n: int,
  ) -> dict[str, tf.Tensor]:
    """The inputs with times, if the bundle takes any."""
    if not self.takes_times:
      if history_times is not None or time is not None:
        raise ValueError(
          "`history_times` and `time` need a model that uses the ages of "
          "events; the one in this bundle does not. Leave them out."
        )
      return {}
    rows: list[list[int]] = [[]] * n
    if history_times is not None:
      lengths = [len(row) for row in history or rows]
      if len(history_times) != n:
        raise ValueError(
          "`history_times` must hold one list of times per query. Received: "
          f"{len(history_times)} for {n} queries."
        )
      rows = [
        ids_lib.check_times(f"history_times[{i}]", row, length)
        for i, (row, length) in enumerate(
          zip(history_times, lengths, strict=True)
        )
      ]
    asked = ids_lib.check_times("time", [None] * n if time is None else time, n)
    width = max(map(len, rows), default=0)
    padded = [row + [-1] * (width - len(row)) for row in rows]
    return {
      "history_times": tf.constant(padded, tf.int64, [n, width]),
      "time": tf.constant(asked, tf.int64, [n]),
    }


def _as_lists(
  ids: Sequence[Id] | None, history: Sequence[Sequence[Id]] | None
) -> tuple[list[Id] | None, list[list[Id]] | None]:
  """Lists, because both are read several times, and an iterator only once."""
  return (
    None if ids is None else ids_lib.as_list("query", ids),
    None if history is None else ids_lib.as_lists("history", history),
  )


def _best_again(
  retrieved: np.ndarray, ranked: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Positions and scores of the k best by `ranked`.

  Padding, with -inf in `retrieved`, stays last.
  """
  scores = np.where(np.isneginf(retrieved), -np.inf, ranked)
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return order, np.take_along_axis(scores, order, axis=1)


def _padding(id_type: str) -> tf.Tensor:
  return tf.constant("" if id_type == "string" else -1, id_type)


def _to_numpy(answers: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
  # Copies, because arrays in TensorFlow's memory are read-only.
  return {name: np.array(value) for name, value in answers.items()}


def _decode(ids: np.ndarray) -> np.ndarray:
  if ids.dtype == np.int64:
    return ids
  flat = [x.decode() for x in ids.ravel()]
  return np.array(flat, object).reshape(ids.shape)
