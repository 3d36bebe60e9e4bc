"""Searches a bundle's `scann_folder/` in a process without TensorFlow.

    folder = scann_folder.ScannFolder.load("BUNDLE/scann_folder")
    ids, scores = folder.search(query_vector, k=10, exclude=["seen before"])

It needs NumPy and ScaNN, or NumPy alone where the corpus was too small for
ScaNN. What it reads:

    settings.json    size, dim, ScaNN's version and the settings of its searcher
    candidate_ids.*  ids by row, as `export.string_list` writes them
    searcher/        ScaNN's own files; or, where search is exact,
    dataset.npy      the vectors

Axes: n (queries), size (candidates), dim (of the vectors), k (answers).
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import sys
import types
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from xir_tfrs.data import errors
from xir_tfrs.data import id_lists as string_list

# Inner products of larger numbers may overflow to infinity or NaN, which a
# ScaNN searcher answers by ending the process.
_LARGEST = 1e15
# Exact search scores at most this many candidates at once: 16 MiB of float32.
_SCORES_PER_CHUNK = 2**22
_REMEDY = "copy the folder again, or export the bundle again"

Id = str | int
Rows = tuple[np.ndarray, np.ndarray]


class ScannFolder:
  """Top-k candidates, with exclusions and padding as in `ScannIndex`.

  Which candidates are found is approximate; all else is exact. ScaNN is asked
  for k answers and as many as the longest list of exclusions, and the excluded
  ones are masked. A query that asks for more than `max_fetch` in all, or is
  left with fewer answers than the corpus has, is scored exactly.

  Attributes:
    size: number of candidates.
    dim: dimension of the vectors.
  """

  def __init__(
    self,
    ids: Sequence[str] | np.ndarray,
    vectors: np.ndarray,
    searcher: Any,
    settings: dict[str, Any],
  ):
    """Use `ScannFolder.load`."""
    self.size, self.dim = vectors.shape
    # Row -1, no candidate, is the last one: padding.
    if isinstance(ids, np.ndarray):
      self._ids = np.append(ids, np.int64(-1))
    else:
      self._ids = np.array([*ids, ""], object)
    self._vectors = vectors
    self._searcher = searcher
    self._settings = settings

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> ScannFolder:
    """Reads the folder.

    Args:
      path: `scann_folder` of a bundle, or a copy of it.

    Raises:
      DataError: a file is missing, cut short, or does not fit
        the others, or ScaNN is missing or of another version.
    """
    path = pathlib.Path(path)
    settings = _read_settings(path / "settings.json")
    exact = settings["exact"]
    if exact:
      vectors = _map_array(path / "dataset.npy")
    else:
      pybind = _load_pybind(path, settings["scann"])
      searcher_path = path / "searcher"
      assets = _read_assets(searcher_path)
      vectors = _map_array(searcher_path / "dataset.npy")
    expected = (settings["size"], settings["dim"])
    if vectors.shape != expected or vectors.dtype != np.float32:
      raise errors.DataError(
        f"{path}: its dataset.npy holds {vectors.dtype} of shape "
        f"{vectors.shape}, settings.json says float32 of {expected}; {_REMEDY}"
      )
    ids = _read_ids(path, settings["size"])
    searcher = None
    if not exact:
      # Not ScaNN's `load_searcher`: it runs what a pickle in the folder says.
      try:
        searcher = pybind.ScannNumpy(os.fspath(searcher_path), assets)
      except RuntimeError as error:
        raise errors.DataError(
          f"{searcher_path}: ScaNN cannot load it: {error}; {_REMEDY}"
        ) from error
    return cls(ids, vectors, searcher, settings)

  def search(
    self,
    queries: np.ndarray,
    k: int,
    exclude: Sequence[Sequence[Id]] | Sequence[Id] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Best candidates of each query.

    Args:
      queries: `[n, dim]` float32, or one query `[dim]`. A query with a NaN,
        infinite or larger entry than 1e15 gets only padding; the other queries
        are unaffected.
      k: number of answers, positive; may exceed the corpus.
      exclude: n lists of candidate ids that must not come back, or one list
        for one query. Padding, repeated and unknown ids do no harm.

    Returns:
      ids `[n, k]`, object array of str or int64, and scores `[n, k]` float32,
      best first; `[k]` both for one query. Where fewer than k candidates
      remain, the rest is "" or -1 with score -inf.

    Raises:
      ValueError: if an argument has another shape.
    """
    queries = np.asarray(queries, np.float32)
    if queries.ndim == 1:
      lists = None if exclude is None else [exclude]
      ids, scores = self.search(queries[np.newaxis], k, lists)
      return ids[0], scores[0]
    if queries.ndim != 2 or queries.shape[1] != self.dim:
      raise ValueError(
        f"`queries` must be [n, {self.dim}] or [{self.dim}]. Received: "
        f"`queries` of shape {queries.shape}."
      )
    if k != int(k) or k < 1:
      raise ValueError(f"`k` must be a positive integer. Received: `k` = {k}.")
    if exclude is not None and len(exclude) != len(queries):
      raise ValueError(
        "`exclude` must hold one list per query. Received: "
        f"{len(exclude)} lists for {len(queries)} queries."
      )
    lists = [()] * len(queries) if exclude is None else exclude
    excluded = [self._rows_of(x) for x in lists]
    rows, scores = self._top_rows(queries, int(k), excluded)
    return self._ids[rows], scores

  def _top_rows(
    self, queries: np.ndarray, k: int, excluded: list[np.ndarray]
  ) -> Rows:
    """Rows (-1 for padding) and scores, both `[n, k]`."""
    rows = np.full([len(queries), k], -1)
    scores = np.full([len(queries), k], -np.inf, np.float32)
    usable = (np.abs(queries) <= _LARGEST).all(axis=1)  # Not NaN.
    lengths = np.array([len(x) for x in excluded], int)
    complete = np.minimum(k, self.size - lengths)
    if self._searcher is not None:
      fits = k + lengths <= self._settings["max_fetch"]
      part = np.flatnonzero(usable & fits)
      if part.size:
        rows[part], scores[part] = self._approximate(
          queries[part], k, [excluded[i] for i in part]
        )
    found = (rows >= 0).sum(axis=1)
    chunk = max(1, _SCORES_PER_CHUNK // self.size)
    redo = np.flatnonzero(usable & (found < complete))
    for start in range(0, len(redo), chunk):
      part = redo[start : start + chunk]
      every = queries[part] @ self._vectors.T
      for i, of_query in zip(part, every, strict=True):
        of_query[excluded[i]] = -np.inf
        best = _best(of_query, k)[: complete[i]]
        rows[i, : len(best)], scores[i, : len(best)] = best, of_query[best]
    return rows, scores

  def _approximate(
    self, queries: np.ndarray, k: int, excluded: list[np.ndarray]
  ) -> Rows:
    """What ScaNN finds, padded as `_top_rows`; n > 0, all queries finite."""
    extra = max(map(len, excluded))
    reorder = max(self._settings["num_reorder"], 2 * k) + extra
    rows, scores = self._searcher.search_batched(
      queries,
      k + extra,
      min(reorder, self.size),
      self._settings["num_leaves_to_search"],
      False,  # On one thread: the caller may have several.
      0,
    )
    # ScaNN fills up with score NaN and any row at all.
    keep = ~np.isnan(scores)
    rows = rows.astype(np.int64)
    for i, leave_out in enumerate(excluded):
      if leave_out.size:
        keep[i] &= ~np.isin(rows[i], leave_out)
    rows, scores = np.where(keep, rows, -1), np.where(keep, scores, -np.inf)
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    return tuple(np.take_along_axis(x, order, axis=1) for x in (rows, scores))

  def _rows_of(self, ids: Iterable[Id]) -> np.ndarray:
    """Sorted, each once; without those of no candidate."""
    if isinstance(ids, str):
      raise ValueError(
        f"`exclude` must hold lists of ids. Received: {ids!r} as one of them."
      )
    rows = {self._row_by_id[x] for x in ids if x in self._row_by_id}
    return np.array(sorted(rows), int)

  @functools.cached_property
  def _row_by_id(self) -> dict[Id, int]:
    return {x: row for row, x in enumerate(self._ids[:-1].tolist())}


def _best(scores: np.ndarray, k: int) -> np.ndarray:
  """Rows of the k best of `scores` `[size]`; of equal ones the first."""
  rows = np.arange(len(scores))
  if k < len(scores):
    rows = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
  return rows[np.argsort(-scores[rows], kind="stable")][:k]


def _load_pybind(path: pathlib.Path, version: str) -> types.ModuleType:
  """ScaNN's compiled module; raises if it is not of `version`."""
  try:
    found = importlib.metadata.version("scann")
  except importlib.metadata.PackageNotFoundError:
    found = "none"
  if found != version:
    raise errors.DataError(
      f"{path}: written with ScaNN {version}, found {found}; pip install "
      f"'scann=={version}'"
    )
  # Not `import scann`: that imports TensorFlow wherever it is installed. This
  # is how, and under which name, ScaNN imports the module itself.
  (package,) = importlib.util.find_spec("scann").submodule_search_locations
  folder = os.path.join(package, "scann_ops", "cc", "python")
  if folder not in sys.path:
    sys.path.append(folder)
  import scann_pybind

  return scann_pybind


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
  try:
    settings = json.loads(path.read_text(encoding="utf-8"))
    names = ["size", "dim", "exact", "scann"]
    if not settings["exact"]:
      names += ["num_leaves_to_search", "num_reorder", "max_fetch"]
    missing = [name for name in names if name not in settings]
  except OSError:
    raise errors.DataError(
      f"{path}: cannot be read, so {path.parent} is no ScaNN folder; "
      "python -m export.export_retriever writes one as BUNDLE/scann_folder"
    ) from None
  except (ValueError, KeyError, TypeError):
    raise errors.DataError(f"{path}: truncated; {_REMEDY}") from None
  if missing:
    raise errors.DataError(
      f"{path}: does not say {', '.join(missing)}; {_REMEDY}"
    )
  return settings


def _read_assets(searcher: pathlib.Path) -> str:
  """ScaNN's list of its files, which are there and whole if they are arrays."""
  path = searcher / "scann_assets.pbtxt"
  try:
    assets = path.read_text(encoding="utf-8")
  except OSError:
    raise errors.DataError(f"{path}: missing; {_REMEDY}") from None
  for name in ("scann_config.pb", *re.findall(r'asset_path: "(.+)"', assets)):
    if not (searcher / name).is_file():
      raise errors.DataError(f"{searcher / name}: missing; {_REMEDY}")
    if name.endswith(".npy"):
      _map_array(searcher / name)
  return assets


def _read_ids(
  path: pathlib.Path, size: int
) -> string_list.StringList | np.ndarray:
  names = ["candidate_ids.npy"]
  if not (path / names[0]).exists():
    names = ["candidate_ids.data.npy", "candidate_ids.offsets.npy"]
  arrays = [_map_array(path / name) for name in names]
  ids = string_list.load_ids(path / "candidate_ids")
  cut = len(arrays) == 2 and arrays[1][-1] != len(arrays[0])
  if len(ids) != size or cut:
    raise errors.DataError(
      f"{path}: its candidate_ids are not those of {size} candidates; {_REMEDY}"
    )
  return ids


def _map_array(path: pathlib.Path) -> np.ndarray:
  try:
    return np.load(path, mmap_mode="r")
  except FileNotFoundError:
    raise errors.DataError(f"{path}: missing; {_REMEDY}") from None
  except (OSError, ValueError, EOFError):
    raise errors.DataError(f"{path}: truncated; {_REMEDY}") from None
