"""Writes a bundle; `xir_tfrs.serving.bundle` has its layout."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from export.bundle import indexing as build
from export.bundle import signatures as saved_models
from xir_tfrs import indexes
from xir_tfrs.data import id_lists as string_list
from xir_tfrs.serving import bundle
from xir_tfrs.serving import manifest as manifests

MAX_K = 10_000


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
    indexes: the indexes by name, of `INDEXES`, over the original ids.
    ranker: scores pairs of original ids, if the model has a ranker.
    copied: parts to take from another bundle, as they are, by name: their
      directories. A tower here is not saved again.
    scann_folder: whether to write what processes without TensorFlow need.
    popular_if_unknown: whether unknown queries get the most popular; None: if
      the query tower has no side features.
    max_k: most answers that may be asked for.
  """

  query_ids: Sequence[bytes] | np.ndarray
  candidate_counts: np.ndarray
  seen: tuple[np.ndarray, np.ndarray]
  query_tower: saved_models.Encoder
  candidate_tower: saved_models.Encoder
  indexes: dict[str, indexes.RetrievalIndex]
  ranker: saved_models.Ranker | None = None
  copied: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
  scann_folder: bool = True
  popular_if_unknown: bool | None = None
  max_k: int = MAX_K


def write_bundle(
  output: str | os.PathLike[str],
  contents: Contents,
  about: dict,
  overwrite: bool = False,
  check: Callable[[pathlib.Path], None] = lambda directory: None,
) -> dict:
  """Writes a bundle; it appears at `output` complete or not at all.

  Args:
    output: the directory to make.
    contents: what goes into it.
    about: what the manifest says beside files, versions and sizes; `indexes`
      maps each index to a dict with its `kind`, "exact" or "scann".
    overwrite: whether a bundle at `output` may be replaced. Until the new one
      is complete the old one stays, and then they change places in one step.
    check: called with the complete bundle, before that; if it raises, there is
      no new bundle.

  Returns:
    The manifest.
  """
  with manifests.new_bundle(output, overwrite) as directory:
    index = next(iter(contents.indexes.values()))
    signatures = _write_towers(directory, contents)
    retriever = functools.partial(
      saved_models.Retriever,
      query_encoder=contents.query_tower,
      candidate_encoder=contents.candidate_tower,
      candidate_counts=contents.candidate_counts,
      seen=contents.seen,
      popular_if_unknown=_popular_if_unknown(contents),
      max_k=contents.max_k,
    )
    for name, built in contents.indexes.items():
      signatures[name] = saved_models.save_retriever(
        retriever(built), directory / name
      )
    if contents.ranker is not None:
      signatures[bundle.RANKER] = saved_models.save_ranker(
        contents.ranker, directory / bundle.RANKER
      )
    _write_lists(directory / bundle.LISTS, contents)
    if contents.scann_folder and "scann" in contents.indexes:
      _write_folder(directory / bundle.FOLDER, contents.indexes["scann"])
    curve = about["indexes"].get("scann", {})
    if "curve" in curve:
      build.plot_curve(curve, directory / build.PLOT)
    described = {
      "num_queries": len(contents.query_ids),
      "num_candidates": index.size,
      "num_seen_pairs": len(contents.seen[1]),
      "dim": index.dim,
      "dtype": "float32",
      "max_k": contents.max_k,
      "id_types": {
        "query": contents.query_tower.id_dtype.name,
        "candidate": index.ids.dtype.name,
      },
      "unknown_query": bundle.UNKNOWN_QUERY[not _popular_if_unknown(contents)],
      "query_features": [x.about() for x in contents.query_tower.inputs],
      "candidate_features": [
        x.about() for x in contents.candidate_tower.inputs
      ],
      "tower_sha256": {
        side: manifests.tower_hash(directory / f"{side}_tower")
        for side in ("query", "candidate")
      },
    }
    manifest = manifests.save(
      directory, {**described, **about, "signatures": signatures}
    )
    check(directory)
    return manifest


def _write_towers(directory: pathlib.Path, contents: Contents) -> dict:
  signatures = {}
  for side, encoder in (
    ("query", contents.query_tower),
    ("candidate", contents.candidate_tower),
  ):
    name = f"{side}_tower"
    if name not in contents.copied:
      signatures[name] = saved_models.save_encoder(
        encoder, directory / name, side
      )
  for name, source in contents.copied.items():
    shutil.copytree(source, directory / name)
    signatures[name] = manifests.load(source.parent)["signatures"][name]
  return signatures


def _write_folder(folder: pathlib.Path, index: indexes.ScannIndex) -> None:
  folder.mkdir()
  index.save_folder(folder)
  string_list.save_ids(folder / "candidate_ids", _original_ids(index))


def _write_lists(lists: pathlib.Path, contents: Contents) -> None:
  lists.mkdir()
  index = next(iter(contents.indexes.values()))
  string_list.save_ids(lists / "query_ids", contents.query_ids)
  string_list.save_ids(lists / "candidate_ids", _original_ids(index))
  np.save(lists / "candidate_counts.npy", contents.candidate_counts)
  np.save(lists / "seen_row_splits.npy", contents.seen[0])
  np.save(lists / "seen_candidates.npy", contents.seen[1])
  described = {
    side: [dataclasses.asdict(x) for x in encoder.inputs]
    for side, encoder in (
      ("query", contents.query_tower),
      ("candidate", contents.candidate_tower),
    )
  }
  (lists / bundle.FEATURES).write_text(
    json.dumps(described, ensure_ascii=False) + "\n", encoding="utf-8"
  )


def _original_ids(index: indexes.RetrievalIndex) -> np.ndarray:
  return index.ids.ids(tf.range(index.size, dtype=tf.int64)).numpy()


def _popular_if_unknown(contents: Contents) -> bool:
  if contents.popular_if_unknown is None:
    return not contents.query_tower.inputs
  return contents.popular_if_unknown
