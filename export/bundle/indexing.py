"""Builds the indexes of a bundle, and tunes and measures ScaNN."""

from __future__ import annotations

import dataclasses
import pathlib
import time

import numpy as np

import xir_tfrs as xir
from xir_tfrs.data import errors
from xir_tfrs.serving import bundle

PLOT = "recall_latency.png"
_SAMPLE = 1000
_RECALL_KS = (10, 100)
# What was chosen on some queries must hold on others: aim a little higher, and
# again.
_MARGINS = (0.2, 0.6, 0.9)


@dataclasses.dataclass(frozen=True)
class IndexOptions:
  """Which indexes to build, and how good ScaNN must be.

  Attributes:
    indexes: which of `bundle.INDEXES`.
    target_recall: recall@10 of ScaNN that its settings are tuned to.
    min_recall: recall@10 below which there is an error; None: the target.
    scann: arguments of `ScannIndex`; these are not tuned.
  """

  indexes: tuple[str, ...] = bundle.INDEXES
  target_recall: float = 0.99
  min_recall: float | None = None
  scann: dict[str, int] = dataclasses.field(default_factory=dict)


def build_indexes(
  options: IndexOptions,
  ids: xir.indexes.IdTable,
  vectors: np.ndarray,
  queries: np.ndarray,
) -> tuple[dict[str, xir.indexes.RetrievalIndex], dict[str, dict]]:
  """The indexes, and what a manifest says of each.

  Args:
    options: which and how.
    ids: of the candidates.
    vectors: `[n, dim]` of the candidates.
    queries: `[m, dim]` of queries; half of them tune ScaNN, the others say
      what came of it.

  Raises:
    DataError: ScaNN is missing, finds too few, or the vectors
      cannot be indexed.
  """
  built, about = {}, {}
  try:
    exact = xir.indexes.BruteForceIndex().index(ids, vectors)
    if "brute_force" in options.indexes:
      built["brute_force"] = exact
      about["brute_force"] = {"kind": "exact"}
    if "scann" in options.indexes:
      start = time.monotonic()
      scann = xir.indexes.ScannIndex(**options.scann).index(ids, vectors)
      seconds = time.monotonic() - start
      built["scann"] = scann
      about["scann"] = {
        **_tune(scann, exact, queries, options),
        "build_seconds": round(seconds, 3),
      }
  except ImportError as error:
    raise errors.DataError(f"{error} (--index brute_force)") from error
  except ValueError as error:
    raise errors.DataError(f"cannot be indexed: {error}") from error
  return built, about


def sample_queries(counts: np.ndarray, size: int = _SAMPLE) -> np.ndarray:
  """Rows of up to `size` queries, those that were trained if possible.

  Args:
    counts: `[num_queries]` training rows, or candidates, of each query.
    size: the most to take; the default is what tuning takes.
  """
  rows = np.flatnonzero(counts)
  if not rows.size:
    rows = np.arange(len(counts))
  size = min(size, rows.size)
  return np.random.default_rng(0).choice(rows, size, replace=False)


def _tune(
  index: xir.indexes.ScannIndex,
  exact: xir.indexes.BruteForceIndex,
  queries: np.ndarray,
  options: IndexOptions,
) -> dict:
  """Tunes and measures; raises if the recall is too low."""
  if index.settings is None:
    report("scann: exact search, as the corpus is small")
    recall = {str(k): 1.0 for k in _RECALL_KS}
    return {"kind": "exact", "recall": recall}
  held_out, given = queries[::2], queries[1::2]
  if not len(given):
    given = held_out
  start = time.monotonic()
  target = options.target_recall
  curve = []
  for margin in _MARGINS:
    curve += index.tune(given, target + margin * (1 - target))
    recall = {
      str(k): round(xir.indexes.recall(index, exact, held_out, k), 5)
      for k in _RECALL_KS
    }
    if recall["10"] >= target:
      break
  settings = index.settings
  shown = ", ".join(f"recall@{k} {value:.4f}" for k, value in recall.items())
  report(
    f"scann: {shown} against exact search, {len(held_out)} queries; "
    f"{settings.num_leaves_to_search} of {settings.num_leaves} leaves, "
    f"{settings.num_reorder} scored again"
  )
  least = target if options.min_recall is None else options.min_recall
  if recall["10"] < least:
    raise errors.DataError(
      f"recall@10 of ScaNN is {recall['10']:.4f}, below {least}; search more "
      "with --num_leaves_to_search (now "
      f"{settings.num_leaves_to_search} of {settings.num_leaves}) or "
      f"--num_reorder (now {settings.num_reorder}), accept it with "
      "--min_recall, or use --index brute_force"
    )
  return {
    "kind": "scann",
    "settings": dataclasses.asdict(settings),
    "recall": recall,
    "recall_queries": len(held_out),
    "target_recall": target,
    "curve": sorted(
      map(dataclasses.asdict, set(curve)), key=lambda x: x["milliseconds"]
    ),
    "tune_seconds": round(time.monotonic() - start, 3),
  }


def plot_curve(about: dict, path: pathlib.Path) -> bool:
  """Draws recall against latency; False if there is nothing to draw with.

  Args:
    about: what `build_indexes` said of "scann".
    path: the PNG to write.
  """
  try:
    from matplotlib import figure
  except ImportError:
    return False
  chosen = about["settings"]
  canvas = figure.Figure(figsize=(6, 4), layout="constrained")
  axes = canvas.add_subplot()
  for point in about["curve"]:
    names = ("num_leaves_to_search", "num_reorder")
    is_chosen = all(point[name] == chosen[name] for name in names)
    axes.scatter(
      point["milliseconds"],
      point["recall"],
      color="C1" if is_chosen else "C0",
      zorder=2,
    )
    axes.annotate(
      f"{point[names[0]]} / {point[names[1]]}",
      (point["milliseconds"], point["recall"]),
      textcoords="offset points",
      xytext=(4, -9),
      fontsize=7,
    )
  axes.axhline(about["target_recall"], color="0.6", linewidth=1, zorder=1)
  axes.set_xlabel("ms per query (leaves searched / scored again)")
  axes.set_ylabel("recall@10")
  axes.set_title(f"ScaNN, {chosen['num_leaves']} leaves; chosen in orange")
  canvas.savefig(path, dpi=120)
  return True


def report(line: str) -> None:
  """A line of progress."""
  print(line, flush=True)
