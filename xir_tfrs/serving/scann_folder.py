"""Searches a bundle's `scann_folder/` in a process without TensorFlow.

    folder = scann_folder.ScannFolder.load("BUNDLE/scann_folder")
    ids, scores = folder.search(query_vector, k=10, exclude=["seen before"])

It needs NumPy and ScaNN, or only NumPy if the corpus was too small for ScaNN.
The folder contains:

    settings.json    `Settings`, with the hash of every other file
    candidate_ids.*  ids by row, as `xir_tfrs.data.id_lists` writes them
    searcher/        ScaNN's own files; or, if search is exact,
    dataset.npy      the vectors

Axes: n (queries), size (candidates), dim (of the vectors), k (answers).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import re
import sys
import types
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from xir_tfrs.data import errors, id_lists, json_files
from xir_tfrs.serving import ids as ids_lib
from xir_tfrs.serving import manifest
from xir_tfrs.serving.ids import Id

FORMAT = 1
SETTINGS = "settings.json"
# Inner products of larger numbers may overflow to infinity or NaN, which
# crashes the process in ScaNN.
_LARGEST = 1e15
# Exact search scores at most this many candidates at once: 16 MiB of float32.
_SCORES_PER_CHUNK = 2**22
_REMEDY = "copy the folder again, or export the bundle again"

Rows = tuple[np.ndarray, np.ndarray]


class Searcher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """Settings of ScaNN; see `xir_tfrs.indexes.ScannSettings`."""

  num_leaves_to_search: int
  num_reorder: int
  max_fetch: int


class Settings(
  msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
  """Content of settings.json.

  Attributes:
    format: Format of the folder.
    size: Number of candidates.
    dim: Dimension of the vectors.
    id_type: Type of the candidate ids.
    scann: Version of ScaNN that wrote the searcher.
    searcher: Settings of the searcher; None if search is exact.
    files: Sizes and hashes of the other files.
    sha256: Hash of all of the above.
  """

  format: int = FORMAT
  size: int
  dim: int
  id_type: Literal["string", "int64"]
  scann: str | None
  searcher: Searcher | None
  files: dict[str, manifest.File]
  sha256: str = ""


class ScannFolder:
  """Top-k candidates, with exclusions and padding as in `ScannIndex`.

  Only the set of candidates that is found is approximate. The folder requests k
  answers from ScaNN, plus as many as the longest deny list, and masks the
  excluded ones. A query that needs more than `max_fetch` in total, or that is
  left with fewer answers than the corpus has, is scored exactly.

  Attributes:
    size: Number of candidates.
    dim: Dimension of the vectors.
    settings: content of its settings.json.

  Examples:
    >>> folder = xir.serving.ScannFolder.load("bundle/scann_folder")
    >>> queries = np.ones([2, folder.dim], np.float32)
    >>> ids, scores = folder.search(queries, k=3)
    >>> ids.shape, scores.shape
    ((2, 3), (2, 3))
  """

  def __init__(
    self,
    ids: Sequence[str] | np.ndarray,
    vectors: np.ndarray,
    searcher: Any,
    settings: Settings,
  ):
    """Use `ScannFolder.load`."""
    self.size, self.dim = vectors.shape
    # Row -1 selects the last entry, which is padding.
    if isinstance(ids, np.ndarray):
      self._ids = np.append(ids, np.int64(-1))
    else:
      self._ids = np.array([*ids, ""], object)
    self._vectors = vectors
    self._searcher = searcher
    self.settings = settings
    self._id_type = settings.id_type

  @classmethod
  def load(
    cls, path: str | os.PathLike[str], check_hashes: bool = True
  ) -> ScannFolder:
    """Loads the folder and checks it against its settings.json.

    If another folder replaces it meanwhile, that one is loaded.

    Args:
      path: `scann_folder` of a bundle, or a copy of it.
      check_hashes: Whether to check the hashes of the files, and not only their
        sizes. Without this check, a damaged file may return wrong ids, or crash
        the process inside ScaNN.

    Raises:
      DataError: A file is missing or changed, or ScaNN is missing or of another
        version.
    """
    path = pathlib.Path(path)
    return manifest.read_whole(
      path, lambda: cls._load(path.resolve(), check_hashes), SETTINGS
    )

  @classmethod
  def _load(cls, path: pathlib.Path, check_hashes: bool) -> ScannFolder:
    settings = json_files.read_sealed(
      path / SETTINGS,
      Settings,
      remedy=_REMEDY,
      missing=(
        f", so {path} is not a ScaNN folder; xir-tfrs export "
        "writes one as BUNDLE/scann_folder"
      ),
      format=FORMAT,
    )
    for name, expected in settings.files.items():
      manifest.check_file(path / name, expected, check_hashes, _REMEDY)
    exact = settings.searcher is None
    vectors = id_lists.load_array(
      path / ("." if exact else "searcher") / "dataset.npy"
    )
    ids = id_lists.load_ids(path / "candidate_ids", settings.id_type)
    shape = (settings.size, settings.dim)
    if vectors.shape != shape or len(ids) != settings.size:
      raise errors.DataError(
        f"holds vectors of shape {vectors.shape} and {len(ids)} ids, "
        f"{SETTINGS} says {shape}; {_REMEDY}",
        path=path,
      )
    searcher = None if exact else _load_searcher(path, settings.scann)
    return cls(ids, vectors, searcher, settings)

  def search(
    self,
    queries: np.ndarray,
    k: int,
    exclude: Sequence[Sequence[Id]] | Sequence[Id] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Finds the best candidates of each query.

    Args:
      queries: `[n, dim]` float32, or a single query `[dim]`; or `[n, interests,
        dim]` for a bundle with interests, where the highest score counts. A
        query with a NaN, infinite or larger entry than 1e15 gets only padding;
        the other queries are unaffected.
      k: Number of answers, positive; may exceed the corpus.
      exclude: n deny lists of candidate ids; a single list for a query `[dim]`.
        Padding, repeated and unknown ids are ignored.

    Returns:
      ids `[n, k]`, object array of str or int64, and scores `[n, k]` float32,
      best first; `[k]` each for a single query. If fewer than k candidates
      remain, the rest is "" or -1 with score -inf.

    Raises:
      ValueError: An argument has a wrong shape or type of ids.
    """
    queries = np.asarray(queries, np.float32)
    if queries.ndim == 1:
      alone: Any = None if exclude is None else [exclude]
      ids, scores = self.search(queries[np.newaxis], k, alone)
      return ids[0], scores[0]
    if queries.ndim not in (2, 3) or queries.shape[-1] != self.dim:
      raise ValueError(
        f"`queries` must be [n, {self.dim}], [n, interests, {self.dim}] or "
        f"[{self.dim}]. Received: `queries` of shape {queries.shape}."
      )
    if k != int(k) or k < 1:
      raise ValueError(f"`k` must be a positive integer. Received: `k` = {k}.")
    n = len(queries)
    given: Any = [[]] * n if exclude is None else exclude
    lists = ids_lib.check_lists("exclude", given, n, self._id_type)
    excluded = [self._rows_of(x) for x in lists]
    if queries.ndim == 2:
      rows, scores = self._top_rows(queries, int(k), excluded)
      return self._ids[rows], scores
    interests = queries.shape[1]
    rows, scores = self._top_rows(
      queries.reshape(-1, self.dim),
      int(k),
      [x for x in excluded for _ in range(interests)],
    )
    rows, scores = _merged(rows.reshape(n, -1), scores.reshape(n, -1), int(k))
    return self._ids[rows], scores

  def _top_rows(
    self, queries: np.ndarray, k: int, excluded: list[np.ndarray]
  ) -> Rows:
    """Finds rows (-1 for padding) and scores, both `[n, k]`."""
    rows = np.full([len(queries), k], -1)
    scores = np.full([len(queries), k], -np.inf, np.float32)
    usable = (np.abs(queries) <= _LARGEST).all(axis=1)  # Not NaN.
    lengths = np.array([len(x) for x in excluded], int)
    complete = np.minimum(k, self.size - lengths)
    searcher = self.settings.searcher
    if searcher is not None:
      fits = k + lengths <= searcher.max_fetch
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
    """ScaNN's answers, padded as in `_top_rows`; n > 0, finite queries."""
    extra = max(map(len, excluded))
    searcher = self.settings.searcher
    assert searcher is not None  # Or the index is exact.
    reorder = max(searcher.num_reorder, 2 * k) + extra
    rows, scores = self._searcher.search_batched(
      queries,
      k + extra,
      min(reorder, self.size),
      searcher.num_leaves_to_search,
      False,  # On one thread: the caller may have several.
      0,
    )
    # ScaNN pads with score NaN and arbitrary rows.
    keep = ~np.isnan(scores)
    rows = rows.astype(np.int64)
    for i, leave_out in enumerate(excluded):
      if leave_out.size:
        keep[i] &= ~np.isin(rows[i], leave_out)
    rows, scores = np.where(keep, rows, -1), np.where(keep, scores, -np.inf)
    order = np.argsort(~keep, axis=1, kind="stable")[:, :k]
    return (
      np.take_along_axis(rows, order, axis=1),
      np.take_along_axis(scores, order, axis=1),
    )

  def _rows_of(self, ids: Sequence[Id]) -> np.ndarray:
    """Sorted distinct rows of known ids."""
    rows = {self._row_by_id[x] for x in ids if x in self._row_by_id}
    return np.array(sorted(rows), int)

  @functools.cached_property
  def _row_by_id(self) -> dict[Id, int]:
    return {x: row for row, x in enumerate(self._ids[:-1].tolist())}


def _merged(rows: np.ndarray, scores: np.ndarray, k: int) -> Rows:
  """The k best of `[n, m]` answers, without duplicate rows."""
  order = np.argsort(-scores, axis=1, kind="stable")
  found = np.full([len(rows), k], -1)
  best = np.full([len(rows), k], -np.inf, np.float32)
  for i, places in enumerate(order):
    _, first = np.unique(rows[i, places], return_index=True)
    kept = places[np.sort(first)]
    kept = kept[rows[i, kept] >= 0][:k]
    found[i, : len(kept)], best[i, : len(kept)] = rows[i, kept], scores[i, kept]
  return found, best


def _best(scores: np.ndarray, k: int) -> np.ndarray:
  """Rows of the k best of `scores` `[size]`; among equal ones the first."""
  rows = np.arange(len(scores))
  if k < len(scores):
    rows = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
  return rows[np.argsort(-scores[rows], kind="stable")][:k]


def _load_searcher(path: pathlib.Path, version: str | None) -> Any:
  """Loads ScaNN's searcher from the folder."""
  pybind = _load_pybind(path, version)
  searcher = path / "searcher"
  assets = (searcher / "scann_assets.pbtxt").read_text(encoding="utf-8")
  for name in re.findall(r'asset_path: "(.+)"', assets):
    if not (searcher / name).is_file():
      raise errors.DataError(f"missing; {_REMEDY}", path=searcher / name)
  # Not ScaNN's `load_searcher`, which would run a pickle in the folder.
  try:
    return pybind.ScannNumpy(os.fspath(searcher), assets)
  except RuntimeError as error:
    raise errors.DataError(
      f"ScaNN cannot load it: {error}; {_REMEDY}", path=searcher
    ) from error


def _load_pybind(path: pathlib.Path, version: str | None) -> types.ModuleType:
  """Loads ScaNN's compiled module; raises if its version differs."""
  found = manifest.version("scann")
  if found is None or found != version:
    raise errors.DataError(
      f"written with ScaNN {version}, found {found or 'none'}; pip install "
      f"'scann=={version}'",
      path=path,
    )
  # Not `import scann`, which imports TensorFlow if it is installed. ScaNN
  # imports the module in the same way and under the same name.
  spec = importlib.util.find_spec("scann")
  assert (
    spec is not None and spec.submodule_search_locations
  )  # It has a version.
  (package,) = spec.submodule_search_locations
  folder = os.path.join(package, "scann_ops", "cc", "python")
  if folder not in sys.path:
    sys.path.append(folder)
  import scann_pybind

  return scann_pybind
