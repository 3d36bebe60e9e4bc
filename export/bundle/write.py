"""Writes a bundle; `xir_tfrs.serving.bundle` describes its layout."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from export.bundle import corpus as corpora
from export.bundle import encoders, plot, signatures
from export.bundle.options import MAX_K
from xir_tfrs import indexes
from xir_tfrs.data import id_lists, json_files
from xir_tfrs.serving import bundle, features, manifest, scann_folder


@dataclasses.dataclass(frozen=True)
class Contents:
  """The contents of a bundle.

  Attributes:
    query_ids: Original ids by dense id: UTF-8 bytes, or an int64 array.
    candidate_counts: `[num_candidates]` int64 training counts by row of the
      indexes.
    seen: row_splits `[num_queries + 1]` int64 and rows `[pairs]` int32 of the
      indexes: the training candidates of each query.
    query_tower: Encodes original query ids.
    candidate_tower: Encodes original candidate ids.
    event_tower: Encodes the candidates in histories, if the query tower takes
      histories.
    indexes: The indexes over the original ids, by name in `INDEXES`.
    about_indexes: Their entries in the manifest.
    ranker: Scores pairs of original ids, if the model has a ranker.
    copied: Directories of parts to copy from another bundle, by name. A tower
      in here is not saved again.
    history_length: Number of most recent events that the query tower encodes,
      if it takes histories.
    scann_folder: Whether to write the files for processes without TensorFlow.
    unknown_query: Answer to queries without training rows, one of
      `bundle.UNKNOWN_QUERY`; "features" means popularity without features.
    titles: UTF-8 titles of the candidates by row of the indexes.
    item_title: The column of the titles; None without titles.
    removed: Candidates that were removed and may come back; None for none.
    max_k: Maximum number of answers per query.
  """

  query_ids: Sequence[bytes] | np.ndarray
  candidate_counts: np.ndarray
  seen: tuple[np.ndarray, np.ndarray]
  query_tower: encoders.Encoder
  candidate_tower: encoders.Encoder
  indexes: dict[str, indexes.RetrievalIndex]
  about_indexes: dict[str, manifest.Index]
  event_tower: encoders.TrainedEncoder | None = None
  ranker: encoders.Ranker | None = None
  copied: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
  history_length: int | None = None
  scann_folder: bool = True
  unknown_query: str = "features"
  titles: Sequence[bytes] | None = None
  item_title: str | None = None
  removed: corpora.Corpus | None = None
  max_k: int = MAX_K

  def __post_init__(self) -> None:
    if self.unknown_query == "features" and not self.query_tower.inputs:
      object.__setattr__(self, "unknown_query", "popularity")

  @property
  def candidate_ids(self) -> np.ndarray:
    """Original ids by row of the indexes: UTF-8 bytes or int64."""
    index = next(iter(self.indexes.values()))
    return index.ids.ids(tf.range(index.size, dtype=tf.int64)).numpy()


def write_bundle(
  directory: pathlib.Path, contents: Contents, about: Mapping[str, Any]
) -> manifest.Manifest:
  """Writes a bundle into an empty directory from `manifest.new_bundle`.

  Args:
    directory: The directory.
    contents: The contents.
    about: Fields of the manifest about the origin of the bundle.

  Returns:
    The manifest.
  """
  signed = _write_towers(directory, contents)
  signed |= _write_retrievers(directory, contents)
  if contents.ranker is not None:
    signed[bundle.RANKER] = signatures.save_ranker(
      contents.ranker, directory / bundle.RANKER
    )
  _write_lists(directory / bundle.LISTS, contents)
  if contents.scann_folder and "scann" in contents.indexes:
    write_folder(
      directory / bundle.FOLDER,
      contents.indexes["scann"],
      contents.candidate_ids,
    )
  tuned = contents.about_indexes.get("scann")
  if tuned and tuned.curve:
    plot.draw(tuned, directory / plot.FILE_NAME)
  return manifest.save(
    directory, {**_describe(directory, contents), **about, "signatures": signed}
  )


def write_folder(
  folder: pathlib.Path,
  index: indexes.ScannIndex,
  ids: Sequence[bytes] | np.ndarray,
) -> None:
  """Writes a folder for `xir_tfrs.serving.ScannFolder`.

  Args:
    folder: The directory to create.
    index: The index over the ids.
    ids: Original ids by row: UTF-8 bytes, or an int64 array.
  """
  folder.mkdir(parents=True)
  index.save_searcher(folder)
  id_lists.save_ids(folder / "candidate_ids", ids)
  searcher = None
  if index.settings is not None:
    searcher = scann_folder.Searcher(
      num_leaves_to_search=index.settings.num_leaves_to_search,
      num_reorder=index.settings.num_reorder,
      max_fetch=index.settings.max_fetch,
    )
  settings = scann_folder.Settings(
    size=index.size,
    dim=index.dim,
    id_type="string" if index.ids.dtype == tf.string else "int64",
    scann=indexes.scann_version(),
    searcher=searcher,
    files=manifest.list_files(folder),
  )
  json_files.write(folder / scann_folder.SETTINGS, json_files.seal(settings))


def _write_towers(
  directory: pathlib.Path, contents: Contents
) -> dict[str, dict[str, manifest.Signature]]:
  signed = {}
  if "query_tower" not in contents.copied:
    signed["query_tower"] = signatures.save_query_tower(
      contents.query_tower, directory / "query_tower"
    )
  if "candidate_tower" not in contents.copied:
    signed["candidate_tower"] = signatures.save_candidate_tower(
      contents.candidate_tower,
      contents.event_tower,
      directory / "candidate_tower",
    )
  for name, source in contents.copied.items():
    shutil.copytree(source, directory / name)
    signed[name] = manifest.load(source.parent).signatures[name]
  return signed


def _write_retrievers(
  directory: pathlib.Path, contents: Contents
) -> dict[str, dict[str, manifest.Signature]]:
  retriever = functools.partial(
    signatures.Retriever,
    query_encoder=contents.query_tower,
    candidate_encoder=contents.candidate_tower,
    candidate_counts=contents.candidate_counts,
    seen=contents.seen,
    unknown_query=contents.unknown_query,
    max_k=contents.max_k,
    titles=contents.titles,
  )
  return {
    name: signatures.save_retriever(retriever(index), directory / name)
    for name, index in contents.indexes.items()
  }


def _write_lists(lists: pathlib.Path, contents: Contents) -> None:
  _write_candidates(
    lists,
    contents.candidate_ids,
    contents.candidate_counts,
    contents.seen,
    contents.titles,
  )
  gone = contents.removed
  if gone is not None:
    _write_candidates(
      lists / corpora.REMOVED,
      as_written(gone.ids),
      gone.counts,
      gone.seen,
      None if gone.titles is None else as_written(gone.titles),
    )
  id_lists.save_ids(lists / "query_ids", contents.query_ids)
  described = features.FeatureLists(
    contents.query_tower.inputs, contents.candidate_tower.inputs
  )
  json_files.write(lists / bundle.FEATURES, described)


def _write_candidates(
  lists: pathlib.Path,
  ids: Sequence[bytes] | np.ndarray,
  counts: np.ndarray,
  seen: tuple[np.ndarray, np.ndarray],
  titles: Sequence[bytes] | None,
) -> None:
  lists.mkdir()
  id_lists.save_ids(lists / "candidate_ids", ids)
  if titles is not None:
    id_lists.save(lists / bundle.TITLES, titles)
  np.save(lists / "candidate_counts.npy", counts)
  np.save(lists / "seen_row_splits.npy", seen[0])
  np.save(lists / "seen_candidates.npy", seen[1])


def as_written(
  values: Sequence[str] | Sequence[int] | np.ndarray,
) -> list[bytes] | np.ndarray:
  """Strings as UTF-8, integers as an int64 array."""
  if isinstance(values, np.ndarray):
    return values
  if values and isinstance(values[0], int):
    return np.array(values, np.int64)
  return [x.encode() for x in values]


def _describe(directory: pathlib.Path, contents: Contents) -> dict[str, Any]:
  """Fields of the manifest that are derived from the contents."""
  index = next(iter(contents.indexes.values()))
  queries, candidates = contents.query_tower, contents.candidate_tower
  return {
    "num_queries": len(contents.query_ids),
    "num_candidates": index.size,
    "num_seen_pairs": len(contents.seen[1]),
    "dim": index.dim,
    "num_interests": queries.shape[0] if len(queries.shape) == 2 else None,
    "dtype": "float32",
    "max_k": contents.max_k,
    "id_types": manifest.IdTypes(queries.id_dtype.name, index.ids.dtype.name),
    "history_length": contents.history_length,
    "unknown_query": contents.unknown_query,
    "item_title": contents.item_title,
    "query_features": tuple(x.about() for x in queries.inputs),
    "candidate_features": tuple(x.about() for x in candidates.inputs),
    "tower_sha256": {
      side: manifest.tower_hash(directory / f"{side}_tower")
      for side in ("query", "candidate")
    },
    "indexes": contents.about_indexes,
  }
