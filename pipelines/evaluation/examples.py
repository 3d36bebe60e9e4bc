"""Example queries with their history and recommendations."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec
import numpy as np

from pipelines.evaluation import past, rankings, split
from xir_tfrs.data import directory, errors, histories, json_files

FORMAT = 1
NUM_QUERIES = 20
# Number of candidates to show of each kind.
_SHOWN = 10


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
  """A candidate.

  Attributes:
    id: The original id.
    title: The title; "" if the data has no titles.
    taken: For a recommendation, whether the query took it next.
  """

  id: str
  title: str = ""
  taken: bool = False


class Example(msgspec.Struct, frozen=True):
  """A query of a split.

  Attributes:
    query: The original id.
    history: Earlier candidates, newest first; unordered if the data has no
      order.
    recommended: The best candidates of the model, in order, without earlier
      ones.
    taken: Candidates of the split, which the query took next.
  """

  query: str
  history: tuple[Item, ...]
  recommended: tuple[Item, ...]
  taken: tuple[Item, ...]


class Examples(msgspec.Struct, frozen=True, kw_only=True):
  """The content of examples.json.

  Attributes:
    shown: Maximum number of candidates of each kind.
    examples: The queries.
  """

  format: int = FORMAT
  shown: int = _SHOWN
  examples: tuple[Example, ...]


def load(path: str | os.PathLike[str]) -> Examples:
  """Reads examples.json.

  Raises:
    DataError: The file is missing, damaged or of another version.
  """
  return json_files.read(
    path, Examples, remedy="run xir-tfrs evaluate again", format=FORMAT
  )


def of_rankings(
  vectors: rankings.Vectors,
  reranked: rankings.Lists | None,
  data: split.EvaluationData,
  data_dir: directory.DataDir,
) -> Examples:
  """Draws example queries that the model answers, always the same per split.

  Args:
    vectors: The model's embeddings.
    reranked: Lists of its ranker, if it has one.
    data: The split.
    data_dir: The data directory.
  """
  chosen = _draw(vectors.by_model)
  seen = [data.seen[row].numpy() for row in chosen]
  if reranked is None:
    best = _best(vectors, chosen, seen)
  else:
    best = _best_of_lists(reranked, chosen)
  before = _before(data, data_dir, chosen, seen)
  relevant = [data.relevant[row].numpy() for row in chosen]
  names = _Names(data_dir)
  queries = data_dir.ids("queries")[data.query_ids[chosen]]
  return Examples(
    examples=tuple(
      Example(
        query=_text(query),
        history=names.of(events[:_SHOWN]),
        recommended=names.of(found, set(wanted.tolist())),
        taken=names.of(wanted[:_SHOWN]),
      )
      for query, events, found, wanted in zip(
        queries, before, best, relevant, strict=True
      )
    )
  )


def _draw(answered: np.ndarray) -> np.ndarray:
  """Sorted rows of random queries, if possible of those answered."""
  rows = np.flatnonzero(answered if answered.any() else ~answered)
  rng = np.random.default_rng(0)
  return np.sort(rng.permutation(rows)[:NUM_QUERIES])


def _best(
  vectors: rankings.Vectors, rows: np.ndarray, seen: list[np.ndarray]
) -> list[np.ndarray]:
  """The best candidates of each row, without seen ones."""
  found = []
  for row, masked in zip(rows, seen, strict=True):
    # The highest score over the interests counts.
    interests = np.atleast_2d(vectors.queries[row])
    scores = (interests @ vectors.candidates.T).max(axis=0)
    scores[~vectors.indexed] = -np.inf
    scores[masked] = -np.inf
    best = np.argsort(-scores, kind="stable")[:_SHOWN]
    found.append(best[np.isfinite(scores[best])])
  return found


def _best_of_lists(lists: rankings.Lists, rows: np.ndarray) -> list[np.ndarray]:
  found = []
  for ids, scores in zip(lists.ids[rows], lists.scores[rows], strict=True):
    ids, scores = ids[ids >= 0], scores[ids >= 0]
    found.append(ids[np.argsort(-scores, kind="stable")[:_SHOWN]])
  return found


def _before(
  data: split.EvaluationData,
  data_dir: directory.DataDir,
  rows: np.ndarray,
  seen: list[np.ndarray],
) -> list[np.ndarray]:
  """The earlier candidates of each row, newest first."""
  if data.past is not None:
    return [events[events >= 0][::-1] for events in data.past.events[rows]]
  wanted = data.query_ids[rows]
  parts = [
    _of_queries(past.events(data_dir, name), wanted)
    for name in split.SEEN[data.split]
  ]
  columns = {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
  try:
    ordered = histories.Histories.of_rows(columns).columns
  except errors.DataError:  # The data has neither times nor an order.
    return seen
  # Repeated candidates count once, at their last position.
  return [
    np.fromiter(
      dict.fromkeys(
        ordered["candidate_id"][ordered["query_id"] == query][::-1].tolist()
      ),
      np.int64,
    )
    for query in wanted
  ]


def _of_queries(
  columns: Mapping[str, np.ndarray], wanted: np.ndarray
) -> dict[str, np.ndarray]:
  rows = np.isin(columns["query_id"], wanted)
  names = ("query_id", "candidate_id", "timestamp", "event")
  return {n: column[rows] for n, column in columns.items() if n in names}


class _Names:
  """Ids and titles of candidates."""

  def __init__(self, data_dir: directory.DataDir) -> None:
    self._ids, self._titles = data_dir.ids("candidates"), data_dir.titles()

  def of(
    self, candidates: np.ndarray, taken: frozenset[int] | set[int] = frozenset()
  ) -> tuple[Item, ...]:
    """Returns the items of dense ids; marks those in `taken`."""
    return tuple(
      Item(
        _text(self._ids[candidate]),
        "" if self._titles is None else self._titles[candidate],
        candidate in taken,
      )
      for candidate in candidates.tolist()
    )


def _text(name: bytes) -> str:
  return name.decode("utf-8", "replace")
