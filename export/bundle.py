"""The bundle: a directory with everything a retriever needs to answer.

    manifest.json      what is in here, how it was made, sha256 of every file
    query_tower/       SavedModel: encode_query(query_id) -> embedding
    candidate_tower/   SavedModel: encode_candidate(candidate_id) -> embedding
    brute_force/       SavedModel of plain TensorFlow ops, and
    scann/             SavedModel with ScaNN's ops, each with
                         recommend(query_id, k, exclude_ids) and
                         search(query_embeddings, k, exclude_ids)
                         -> candidate_ids, scores
    ranker/            SavedModel, if the model has a ranker:
                         rank(query_id, candidate_ids) -> scores
    lists/             ids, training counts and seen candidates, as .npy

Ids are the user's own strings everywhere. In the signatures an unknown id has
the tower's out-of-vocabulary embedding; `Bundle.recommend` answers an unknown
query with the most popular candidates instead.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from export import errors, manifests, saved_models, string_list
from xir_tfrs import indexes

INDEXES = ("scann", "brute_force")
RERANK_DEPTH = 100
_LISTS = "lists"
_RANKER = "ranker"


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a bundle is made of.

  Attributes:
    query_ids: original ids by dense id, utf-8 bytes.
    candidate_ids: the same of candidates.
    candidate_counts: `[num_candidates]` int64 training counts.
    seen: row_splits `[num_queries + 1]` int64 and candidates `[pairs]` int32:
      the training candidates of each query.
    query_tower: encodes original query ids.
    candidate_tower: encodes original candidate ids.
    indexes: the indexes by name, of `INDEXES`, over the original ids.
    ranker: scores pairs of original ids, if the model has a ranker.
  """

  query_ids: Sequence[bytes]
  candidate_ids: Sequence[bytes]
  candidate_counts: np.ndarray
  seen: tuple[np.ndarray, np.ndarray]
  query_tower: saved_models.Encoder
  candidate_tower: saved_models.Encoder
  indexes: dict[str, indexes.RetrievalIndex]
  ranker: saved_models.Ranker | None = None


class Recommendations(NamedTuple):
  """Answers to n queries.

  Attributes:
    ids: `[n, k]` object array of str, best first, "" for padding.
    scores: `[n, k]` float32, -inf for padding; the ranker's where it ranked
      again. Where `known` is False: the training count of the candidate.
    known: `[n]` bool, whether the query id was in the training data.
  """

  ids: np.ndarray
  scores: np.ndarray
  known: np.ndarray


class Bundle:
  """A bundle that has been read and checked.

  Attributes:
    manifest: content of manifest.json.
    index: "scann" or "brute_force", which of the two answers.
    candidate_ids: original ids by dense id.
  """

  def __init__(self, directory: pathlib.Path, manifest: dict, index: str):
    """Use `Bundle.load`."""
    self.manifest = manifest
    self.index = index
    lists = directory / _LISTS
    self.candidate_ids = string_list.StringList.load(lists / "candidate_ids")
    self._query_ids = string_list.StringList.load(lists / "query_ids")
    self._by_popularity = np.load(lists / "by_popularity.npy", mmap_mode="r")
    self._counts = np.load(lists / "candidate_counts.npy", mmap_mode="r")
    self._seen_splits = np.load(lists / "seen_row_splits.npy", mmap_mode="r")
    self._seen = np.load(lists / "seen_candidates.npy", mmap_mode="r")
    # The signatures alone do not keep the tables and variables alive.
    self._directory = directory
    self._model = tf.saved_model.load(os.fspath(directory / index))
    self._recommend = self._model.signatures["recommend"]

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
      check_hashes: whether to compare the content of every file, and not its
        size alone.

    Raises:
      export.errors.ExportError: a file is missing or changed, the bundle has
        no such index, or ScaNN or TensorFlow here are not those it needs.
    """
    directory = pathlib.Path(directory)
    manifest = manifests.load(directory)
    manifests.check_files(directory, manifest, check_hashes)
    available = [name for name in INDEXES if name in manifest["indexes"]]
    if index is None:
      index = available[0]
    if index not in available:
      raise errors.ExportError(
        f"{directory}: has no index {index!r}, only {', '.join(available)}; "
        "choose one of these, or export again with --index both"
      )
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
    query_ids: Sequence[str],
    k: int,
    exclude: Sequence[Sequence[str]] | None = None,
    exclude_seen: bool = False,
    rerank: bool = False,
    rerank_depth: int = RERANK_DEPTH,
  ) -> Recommendations:
    """Best candidates of each query.

    An id that was not in the training data gets the candidates with most
    training interactions, with those counts as scores; they are not ranked
    again.

    Args:
      query_ids: n original ids.
      k: number of answers, positive; may exceed the corpus.
      exclude: n lists of candidate ids that must not come back.
      exclude_seen: whether to leave out the candidates each query had in the
        training data as well.
      rerank: whether the answers are the best by the ranker among what the
        index has retrieved.
      rerank_depth: how many the index retrieves for the ranker; at least k
        are.

    Raises:
      export.errors.ExportError: `rerank`, and the bundle has no ranker.
    """
    if k < 1:
      raise ValueError(f"`k` must be positive. Received: `k` = {k}.")
    if rerank_depth < 1:
      raise ValueError(
        "`rerank_depth` must be positive. Received: `rerank_depth` = "
        f"{rerank_depth}."
      )
    # Before the work: it may not be there.
    rank = self._rank if rerank else None
    if exclude is not None and len(exclude) != len(query_ids):
      raise ValueError(
        "`exclude` must hold one list per query. Received: "
        f"{len(exclude)} lists for {len(query_ids)} queries."
      )
    rows = [self._query_rows.get(query_id, -1) for query_id in query_ids]
    lists = [list(x) for x in exclude] if exclude else [[] for _ in rows]
    if exclude_seen:
      for row, ids in zip(rows, lists, strict=True):
        ids.extend(self.seen(row))
    width = max(map(len, lists), default=0)
    padded = [ids + [""] * (width - len(ids)) for ids in lists]
    queries = tf.constant(list(query_ids), tf.string, [len(rows)])
    answers = self._recommend(
      query_id=queries,
      k=tf.constant(max(k, rerank_depth) if rerank else k, tf.int32),
      exclude_ids=tf.constant(padded, tf.string, [len(rows), width]),
    )
    ids, scores = answers["candidate_ids"].numpy(), answers["scores"].numpy()
    if rank is not None:
      again = rank(query_id=queries, candidate_ids=answers["candidate_ids"])
      ids, scores = _best_again(ids, scores, again["scores"].numpy(), k)
    ids = _decode(ids)
    known = np.array(rows, np.int64) >= 0
    for i in np.flatnonzero(~known):
      ids[i], scores[i] = self._most_popular(k, set(lists[i]))
    return Recommendations(ids, scores, known)

  def seen(self, row: int) -> list[str]:
    """Training candidates of the query with dense id `row`; none for -1."""
    if row < 0:
      return []
    part = slice(self._seen_splits[row], self._seen_splits[row + 1])
    return [self.candidate_ids[i] for i in self._seen[part]]

  @property
  def has_ranker(self) -> bool:
    """Whether it can rank again."""
    return _RANKER in self.manifest["signatures"]

  @functools.cached_property
  def _rank(self) -> Callable[..., dict[str, tf.Tensor]]:
    if not self.has_ranker:
      raise errors.ExportError(
        f"{self._directory}: has no ranker, so it cannot re-rank; ask without "
        "--rerank, or export a model that has one (python -m pipelines.train "
        "--task corr)"
      )
    self._ranker = tf.saved_model.load(os.fspath(self._directory / _RANKER))
    return self._ranker.signatures["rank"]

  @functools.cached_property
  def _query_rows(self) -> dict[str, int]:
    return {query_id: row for row, query_id in enumerate(self._query_ids)}

  def _most_popular(
    self, k: int, leave_out: set[str]
  ) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full(k, "", object)
    counts = np.full(k, -np.inf, np.float32)
    place = 0
    for row in self._by_popularity:
      if place == k:
        break
      candidate_id = self.candidate_ids[row]
      if candidate_id not in leave_out:
        ids[place], counts[place] = candidate_id, self._counts[row]
        place += 1
    return ids, counts


def write_bundle(
  output: str | os.PathLike[str],
  contents: Contents,
  about: dict,
  overwrite: bool = False,
) -> dict:
  """Writes a bundle; it appears at `output` complete or not at all.

  Args:
    output: the directory to make.
    contents: what goes into it.
    about: what the manifest says beside files, versions and sizes; `indexes`
      maps each index to a dict with its `kind`, "exact" or "scann".
    overwrite: whether a bundle at `output` may be replaced. Until the new one
      is complete the old one stays.

  Returns:
    The manifest.
  """
  with manifests.new_bundle(output, overwrite) as directory:
    signatures = {
      f"{side}_tower": saved_models.save_encoder(
        encoder, directory / f"{side}_tower", side
      )
      for side, encoder in (
        ("query", contents.query_tower),
        ("candidate", contents.candidate_tower),
      )
    }
    for name, index in contents.indexes.items():
      signatures[name] = saved_models.save_retriever(
        index, contents.query_tower, directory / name
      )
    if contents.ranker is not None:
      signatures[_RANKER] = saved_models.save_ranker(
        contents.ranker, directory / _RANKER
      )
    _write_lists(directory / _LISTS, contents)
    index = next(iter(contents.indexes.values()))
    sizes = {
      "num_queries": len(contents.query_ids),
      "num_candidates": index.size,
      "num_seen_pairs": len(contents.seen[1]),
      "dim": index.dim,
      "dtype": "float32",
    }
    return manifests.save(
      directory, {**sizes, **about, "signatures": signatures}
    )


def _write_lists(lists: pathlib.Path, contents: Contents) -> None:
  lists.mkdir()
  string_list.save(lists / "query_ids", contents.query_ids)
  string_list.save(lists / "candidate_ids", contents.candidate_ids)
  counts = contents.candidate_counts
  np.save(lists / "candidate_counts.npy", counts)
  order = np.argsort(-counts, kind="stable").astype(np.int32)
  np.save(lists / "by_popularity.npy", order)
  np.save(lists / "seen_row_splits.npy", contents.seen[0])
  np.save(lists / "seen_candidates.npy", contents.seen[1])


def _best_again(
  ids: np.ndarray, retrieved: np.ndarray, ranked: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """The k best by `ranked`; padding, with -inf in `retrieved`, stays last."""
  scores = np.where(np.isneginf(retrieved), -np.inf, ranked)
  order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return tuple(np.take_along_axis(x, order, axis=1) for x in (ids, scores))


def _decode(ids: np.ndarray) -> np.ndarray:
  flat = [x.decode() for x in ids.ravel()]
  return np.array(flat, object).reshape(ids.shape)
