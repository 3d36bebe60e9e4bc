"""Writes a bundle; `xir_tfrs.serving.bundle` has its layout."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from export.bundle import encoders, plot, signatures
from export.bundle.options import MAX_K
from xir_tfrs import indexes
from xir_tfrs.data import id_lists, json_files
from xir_tfrs.serving import bundle, features, manifest, scann_folder


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a bundle is made of.

  Attributes:
    query_ids: original ids by dense id: utf-8 bytes, or an int64 array.
    candidate_counts: `[num_candidates]` int64 training counts by row of the
      indexes.
    seen: row_splits `[num_queries + 1]` int64 and rows `[pairs]` int32 of the
      indexes: the training candidates of each query.
    query_tower: encodes original query ids.
    candidate_tower: encodes original candidate ids.
    event_tower: encodes the candidates of histories, if the query tower takes
      some.
    indexes: the indexes by name, of `INDEXES`, over the original ids.
    about_indexes: what the manifest says of each.
    ranker: scores pairs of original ids, if the model has a ranker.
    copied: parts to take from another bundle, as they are, by name: their
      directories. A tower here is not saved again.
    history_length: newest events that the query tower encodes, if it takes
      histories.
    scann_folder: whether to write what processes without TensorFlow need.
    unknown_query: what queries without training rows get, one of
      `bundle.UNKNOWN_QUERY`; "features" is popularity if there are none.
    titles: what is shown of the candidates by row of the indexes, utf-8 bytes.
    item_title: the column they come from; None: there are none.
    max_k: most answers that may be asked for.
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
  max_k: int = MAX_K

  def __post_init__(self) -> None:
    if self.unknown_query == "features" and not self.query_tower.inputs:
      object.__setattr__(self, "unknown_query", "popularity")

  @property
  def candidate_ids(self) -> np.ndarray:
    """Original ids by row of the indexes: utf-8 bytes, or int64."""
    index = next(iter(self.indexes.values()))
    return index.ids.ids(tf.range(index.size, dtype=tf.int64)).numpy()


def write_bundle(
  directory: pathlib.Path, contents: Contents, about: Mapping[str, Any]
) -> manifest.Manifest:
  """Writes a bundle into an empty directory, that of `manifest.new_bundle`.

  Args:
    directory: the directory.
    contents: what goes into it.
    about: the fields of the manifest that tell where the bundle comes from.

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
  """Writes what `xir_tfrs.serving.ScannFolder` reads.

  Args:
    folder: the directory to make.
    index: over the ids.
    ids: original ids by row: utf-8 bytes, or an int64 array.
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
  lists.mkdir()
  id_lists.save_ids(lists / "query_ids", contents.query_ids)
  id_lists.save_ids(lists / "candidate_ids", contents.candidate_ids)
  if contents.titles is not None:
    id_lists.save(lists / bundle.TITLES, contents.titles)
  np.save(lists / "candidate_counts.npy", contents.candidate_counts)
  np.save(lists / "seen_row_splits.npy", contents.seen[0])
  np.save(lists / "seen_candidates.npy", contents.seen[1])
  described = features.FeatureLists(
    contents.query_tower.inputs, contents.candidate_tower.inputs
  )
  json_files.write(lists / bundle.FEATURES, described)


def _num_interests(shape: tuple[int, ...]) -> int | None:
  """Of queries whose vectors have this shape."""
  return shape[0] if len(shape) == 2 else None


def _describe(directory: pathlib.Path, contents: Contents) -> dict[str, Any]:
  """The fields of the manifest that follow from what is in the bundle."""
  index = next(iter(contents.indexes.values()))
  towers = {
    "query": contents.query_tower,
    "candidate": contents.candidate_tower,
  }
  return {
    "num_queries": len(contents.query_ids),
    "num_candidates": index.size,
    "num_seen_pairs": len(contents.seen[1]),
    "dim": index.dim,
    "num_interests": _num_interests(contents.query_tower.shape),
    "dtype": "float32",
    "max_k": contents.max_k,
    "id_types": manifest.IdTypes(
      contents.query_tower.id_dtype.name, index.ids.dtype.name
    ),
    "history_length": contents.history_length,
    "unknown_query": contents.unknown_query,
    "item_title": contents.item_title,
    "query_features": tuple(x.about() for x in towers["query"].inputs),
    "candidate_features": tuple(x.about() for x in towers["candidate"].inputs),
    "tower_sha256": {
      side: manifest.tower_hash(directory / f"{side}_tower") for side in towers
    },
    "indexes": contents.about_indexes,
  }
