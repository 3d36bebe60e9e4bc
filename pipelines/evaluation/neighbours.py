"""A baseline without training: candidates that often follow those in a history.

F_ij measures how often candidate j follows i in the training rows:

    F_ij = sum over rows i before row j of a query: 1 / (rows from i to j)

The score for a history of events h_1 (the newest), h_2, ... is

    score_j = sum_a F_{h_a, j} / sqrt(a * rows of h_a)

Candidates with score 0 are ranked by popularity.

Axes: n = events, rows = held-out rows, pairs = distinct (i, j).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

import xir_tfrs as xir
from pipelines.evaluation import past, rankings, split
from xir_tfrs.data import directory, histories

# Maximum number of rows from i to j. Farther rows contribute little.
_REACH = 20
# Entries in memory at a time, for pairs and for scores.
_ENTRIES = 1 << 23


@dataclasses.dataclass(frozen=True)
class Neighbours:
  """A `rankings.Ranker` that ranks by what followed in the training rows.

  Attributes:
    starts: [candidates + 1] start of the pairs of each candidate i.
    following: [pairs] the candidates j.
    weights: [pairs] float32 F_ij / sqrt(rows of i).
    popularity: [candidates] number of training rows.
  """

  starts: np.ndarray
  following: np.ndarray
  weights: np.ndarray
  popularity: np.ndarray

  @classmethod
  def of_data(
    cls, data_dir: directory.DataDir, data: split.EvaluationData
  ) -> Neighbours:
    """Counts the pairs in the training rows, with the rule of `data`."""
    assert data.past is not None
    rows = past.in_order(
      past.events(data_dir, "train"), data_dir, data.past.rule.ties
    )
    return cls.of_rows(rows, data.counts)

  @classmethod
  def of_rows(cls, rows: histories.Histories, counts: np.ndarray) -> Neighbours:
    """Counts pairs.

    Args:
      rows: The training rows.
      counts: [candidates] number of training rows of each.
    """
    num_candidates = len(counts)
    pairs, weights = np.zeros(0, np.int64), np.zeros(0)
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for new in _pairs(rows, num_candidates):
      held.append(new)
      if sum(len(p) for p, _ in held) > _ENTRIES:
        pairs, weights = _summed([(pairs, weights), *held])
        held = []
    pairs, weights = _summed([(pairs, weights), *held])
    first, following = np.divmod(pairs, num_candidates)
    starts = np.searchsorted(first, np.arange(num_candidates + 1))
    weights = (weights / np.sqrt(np.maximum(counts[first], 1))).astype("f4")
    return cls(starts, following, weights, counts)

  def rank(
    self,
    data: split.EvaluationData,
    ks: Sequence[int],
    report: rankings.Report | None = None,
  ) -> xir.metrics.Ranking:
    """See `rankings.Ranker`; only for the whole split."""
    assert data.past is not None and data.rows is None
    events = data.past.events
    chunks = (
      (some, self._scores(events[some])) for some in self._chunks(events)
    )
    return rankings.of_scores(chunks, data, ks, report)

  def _chunks(self, events: np.ndarray) -> Iterator[slice]:
    """Yields slices of rows with about `_ENTRIES` pairs and scores."""
    lengths = np.diff(self.starts)
    pairs = np.where(events >= 0, lengths[events], 0).sum(axis=1)
    size = np.cumsum(pairs + len(self.popularity))
    low = 0
    while low < len(events):
      before = size[low - 1] if low else 0
      high = int(np.searchsorted(size, before + _ENTRIES, side="right"))
      yield slice(low, max(high, low + 1))
      low = max(high, low + 1)

  def _scores(self, events: np.ndarray) -> np.ndarray:
    """[m, candidates] scores for [m, n] events padded with -1."""
    row, column = np.nonzero(events >= 0)
    event = events[row, column]
    # The newest event is last; its age is 1.
    of_event = (events.shape[1] - column) ** -0.5
    lengths = np.diff(self.starts)[event]
    ends = np.cumsum(lengths)
    places = np.arange(lengths.sum()) + np.repeat(
      self.starts[event] - (ends - lengths), lengths
    )
    num_candidates = len(self.popularity)
    cells = np.repeat(row * num_candidates, lengths) + self.following[places]
    scores = np.bincount(
      cells,
      self.weights[places] * np.repeat(of_event, lengths),
      minlength=len(events) * num_candidates,
    ).reshape(len(events), num_candidates)
    # Less than the score of any pair.
    popularity = 1e-6 * self.popularity / max(self.popularity.max(), 1)
    return (scores + popularity).astype(np.float32)


def _pairs(
  rows: histories.Histories, num_candidates: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields keys i * num_candidates + j and weights, by distance in rows."""
  candidates = rows.columns["candidate_id"].astype(np.int64)
  places = np.arange(len(candidates))
  seen_until = rows.first + rows.visible
  for reach in range(1, _REACH + 1):
    before = places - reach
    later = np.flatnonzero((before >= rows.first) & (before < seen_until))
    keys = candidates[later - reach] * num_candidates + candidates[later]
    yield keys, np.full(len(keys), 1.0 / reach)


def _summed(
  parts: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
  """Sorted distinct keys and the sums of their weights."""
  keys, weights = (np.concatenate(x) for x in zip(*parts, strict=True))
  keys, place = np.unique(keys, return_inverse=True)
  return keys, np.bincount(place, weights, minlength=len(keys))
