"""Builds the indexes of a bundle, and tunes and measures ScaNN."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

import xir_tfrs as xir
from export.bundle.options import SCANN_SETTINGS, IndexOptions
from xir_tfrs.data import errors
from xir_tfrs.serving import manifest

_SAMPLE = 1000
_RECALL_KS = (10, 100)
# Settings that are tuned on some queries must hold on others, so the target is
# raised a little, repeatedly.
_MARGINS = (0.2, 0.6, 0.9)


def build_indexes(
  options: IndexOptions,
  ids: xir.indexes.IdTable,
  vectors: np.ndarray,
  queries: np.ndarray,
) -> tuple[dict[str, xir.indexes.RetrievalIndex], dict[str, manifest.Index]]:
  """Builds the indexes and their entries in a manifest.

  Args:
    options: Settings of the indexes.
    ids: Ids of the candidates.
    vectors: `[n, dim]` vectors of the candidates.
    queries: `[m, dim]` or `[m, interests, dim]` vectors of queries; half of
      them tune ScaNN, the others measure the recall.

  Raises:
    DataError: ScaNN is missing, its recall is too low, or the vectors cannot be
      indexed.
  """
  built, about = {}, {}
  try:
    exact = xir.indexes.BruteForceIndex().index(ids, vectors)
    if "brute_force" in options.indexes:
      built["brute_force"] = exact
      about["brute_force"] = manifest.Index(kind="exact")
    if "scann" in options.indexes:
      start = time.monotonic()
      scann = _scann(options).index(ids, vectors)
      seconds = time.monotonic() - start
      built["scann"] = scann
      about["scann"] = _tune(scann, exact, queries, options, seconds)
  except ImportError as error:
    raise errors.DataError(
      f"{error} (export with --index brute_force does not need it)"
    ) from error
  except ValueError as error:
    raise errors.DataError(f"cannot be indexed: {error}") from error
  return built, about


def _scann(options: IndexOptions) -> xir.indexes.ScannIndex:
  given = _given(options)
  given.pop("min_recall", None)
  return xir.indexes.ScannIndex(**given)


def _given(options: IndexOptions) -> dict[str, int | float]:
  """The settings of ScaNN that have no default, where they are given."""
  values = {name: getattr(options, name) for name in SCANN_SETTINGS}
  return {name: value for name, value in values.items() if value is not None}


def sample_queries(counts: np.ndarray, size: int = _SAMPLE) -> np.ndarray:
  """Samples rows of up to `size` queries, if possible with training rows.

  Args:
    counts: `[num_queries]` training rows, or candidates, of each query.
    size: Maximum number of queries; by default the number for tuning.
  """
  rows = np.flatnonzero(counts)
  if not rows.size:
    rows = np.arange(len(counts))
  size = min(size, rows.size)
  return np.random.default_rng(0).choice(rows, size, replace=False)


def _lowest_recall(hits: np.ndarray, wanted: np.ndarray) -> float:
  """Recall that other queries hardly fall below: two standard errors less.

  With few leaves, a few queries miss most of their answers.
  """
  shares = hits / np.maximum(wanted, 1)
  return float(shares.mean() - 2 * shares.std() / len(shares) ** 0.5)


def _tune(
  index: xir.indexes.ScannIndex,
  exact: xir.indexes.BruteForceIndex,
  queries: np.ndarray,
  options: IndexOptions,
  build_seconds: float,
) -> manifest.Index:
  """Tunes and measures ScaNN; raises if the recall is too low."""
  build_seconds = round(build_seconds, 3)
  if index.settings is None:
    print("scann: exact search, because the corpus is small")
    recall = {str(k): 1.0 for k in _RECALL_KS}
    return manifest.Index(
      kind="exact",
      given=_given(options),
      recall=recall,
      build_seconds=build_seconds,
    )
  held_out, given = queries[::2], queries[1::2]
  if not len(given):
    given = held_out
  start = time.monotonic()
  target = options.target_recall
  curve = []
  for margin in _MARGINS:
    # Each interest is a separate search.
    searched = given.reshape(-1, given.shape[-1])
    curve += index.tune(searched, target + margin * (1 - target))
    found = {
      k: xir.indexes.hits_by_query(index, exact, held_out, k)
      for k in _RECALL_KS
    }
    if _lowest_recall(*found[10]) >= target:
      break
  recall = {
    str(k): round(float(hits.sum() / wanted.sum()), 5)
    for k, (hits, wanted) in found.items()
  }
  settings = index.settings
  shown = ", ".join(f"recall@{k} {value:.4f}" for k, value in recall.items())
  print(
    f"scann: {shown} against exact search, {len(held_out)} queries; "
    f"{settings.num_leaves_to_search} of {settings.num_leaves} leaves, "
    f"{settings.num_reorder} re-scored"
  )
  least = target if options.min_recall is None else options.min_recall
  if recall["10"] < least:
    raise errors.DataError(
      f"recall@10 of ScaNN is {recall['10']:.4f}, below {least}; accept it "
      "with --min_recall, or export with more --num_leaves_to_search (now "
      f"{settings.num_leaves_to_search} of {settings.num_leaves}) or "
      f"--num_reorder (now {settings.num_reorder}), or with --index brute_force"
    )
  return manifest.Index(
    kind="scann",
    given=_given(options),
    settings=dataclasses.asdict(settings),
    recall=recall,
    recall_queries=len(held_out),
    target_recall=target,
    curve=sorted(
      map(dataclasses.asdict, set(curve)), key=lambda x: x["milliseconds"]
    ),
    tune_seconds=round(time.monotonic() - start, 3),
    build_seconds=build_seconds,
  )
