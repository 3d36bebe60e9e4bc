"""The candidates of a bundle as arrays, and changes to them.

Candidates that are removed may come back. So the bundle keeps what their
training rows said, apart from the candidates that it recommends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from xir_tfrs.data import errors, id_lists
from xir_tfrs.serving import bundle

# The folder in `bundle.LISTS` of the candidates that were removed.
REMOVED = "removed"


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The n candidates of a bundle with the data of their rows.

  Attributes:
    ids: n original ids.
    vectors: `[n, dim]` float32.
    counts: `[n]` int64 training counts.
    seen: Row splits by query, and rows `[pairs]` int32.
    titles: n titles; None if the bundle has none.
    removed: Candidates with training rows that were removed, without vectors;
      None for none.
  """

  ids: Sequence[str] | Sequence[int]
  vectors: np.ndarray
  counts: np.ndarray
  seen: tuple[np.ndarray, np.ndarray]
  titles: Sequence[str] | None = None
  removed: Corpus | None = None


def of_bundle(old: bundle.Bundle) -> Corpus:
  """Returns the candidates of a loaded bundle."""
  return Corpus(
    ids=old.candidate_ids.tolist(),
    vectors=old.vectors,
    counts=np.array(old.counts),
    seen=tuple(map(np.array, old.seen)),
    titles=None if old.titles is None else list(old.titles),
    removed=_removed_of(old),
  )


def _removed_of(old: bundle.Bundle) -> Corpus | None:
  """The candidates that earlier refreshes removed."""
  if not any(
    name.startswith(f"{bundle.LISTS}/{REMOVED}/") for name in old.manifest.files
  ):
    return None
  folder = old.directory / bundle.LISTS / REMOVED
  ids = id_lists.load_ids(
    folder / "candidate_ids", old.manifest.id_types.candidate
  )
  counts, *seen = (
    np.array(id_lists.load_array(folder / f"{name}.npy"))
    for name in ("candidate_counts", "seen_row_splits", "seen_candidates")
  )
  titles = None
  if old.titles is not None:
    titles = list(id_lists.StringList.load(folder / bundle.TITLES))
  return Corpus(ids.tolist(), _no_vectors(ids), counts, tuple(seen), titles)


def change(
  old: Corpus,
  new_ids: Sequence,
  new_vectors: np.ndarray,
  gone: set,
  new_titles: Sequence[str] = (),
) -> tuple[Corpus, dict]:
  """Adds, changes and removes candidates.

  Remaining rows keep their order; new ones follow, without training counts
  unless they were there before.

  Args:
    old: The current candidates.
    new_ids: m ids of old or new candidates.
    new_vectors: `[m, dim]` vectors of these ids.
    gone: Ids to remove; unknown ids are ignored.
    new_titles: m titles, where "" keeps the old title; or empty.

  Returns:
    The new candidates, and the numbers "added", "changed", "removed" and
    "removed_unknown", the ids to remove that were unknown.

  Raises:
    DataError: Nothing would change, or no candidate would be left.
  """
  vectors, added = put(old.ids, old.vectors, new_ids, new_vectors)
  keep = np.array([candidate not in gone for candidate in old.ids])
  removed = int((~keep).sum())
  if not len(new_ids) and not removed:
    raise errors.DataError(
      f"nothing to change: none of the {len(gone)} ids to remove exists"
    )
  if removed == len(old.ids) and not added:
    raise errors.DataError("all candidates would be removed; keep some")
  ids = [x for x in old.ids if x not in gone] + [new_ids[i] for i in added]
  every = _with_removed(old)
  listed = set(ids)
  known = every.counts + np.bincount(every.seen[1], minlength=len(every.ids))
  away = _chosen(
    every,
    [
      name
      for name, rows in zip(every.ids, known.tolist(), strict=True)
      # All others have nothing to keep, and would pile up.
      if rows and name not in listed
    ],
  )
  corpus = dataclasses.replace(
    _chosen(every, ids),
    vectors=np.concatenate([vectors[keep], new_vectors[added]]),
    removed=away if len(away.ids) else None,
  )
  if corpus.titles is not None:
    title_of = dict(zip(corpus.ids, corpus.titles, strict=True))
    titled = zip(new_ids, new_titles, strict=False)
    title_of.update((x, title) for x, title in titled if title)
    titles = [title_of[x] for x in corpus.ids]
    corpus = dataclasses.replace(corpus, titles=titles)
  return corpus, {
    "added": len(added),
    "changed": len(new_ids) - len(added),
    "removed": removed,
    "removed_unknown": len(gone) - removed,
  }


def _with_removed(old: Corpus) -> Corpus:
  """The candidates and, after them, the removed ones; without vectors."""
  if old.removed is None:
    return dataclasses.replace(old, vectors=_no_vectors(old.ids))
  ids = [*old.ids, *old.removed.ids]
  both = (_pairs(old.seen), _pairs(old.removed.seen))
  queries = np.concatenate([queries for queries, _ in both])
  rows = np.concatenate([both[0][1], both[1][1] + len(old.ids)])
  titles = None
  if old.titles is not None:
    titles = [*old.titles, *(old.removed.titles or ())]
  return Corpus(
    ids,
    _no_vectors(ids),
    np.concatenate([old.counts, old.removed.counts]),
    _lists(queries, rows, len(old.seen[0]) - 1),
    titles,
  )


def _chosen(known: Corpus, ids: Sequence) -> Corpus:
  """What is known about some ids, in their order; without vectors."""
  row_of = {candidate: row for row, candidate in enumerate(known.ids)}
  rows = np.array([row_of.get(x, -1) for x in ids], np.int64)
  # The last place is that of row -1.
  new_row = np.full(len(known.ids) + 1, -1)
  new_row[rows] = np.arange(len(ids))
  new_row[-1] = -1
  queries, pairs = _pairs(known.seen)
  pairs = new_row[pairs]
  there = pairs >= 0
  titles = None
  if known.titles is not None:
    titles = ["" if row < 0 else known.titles[row] for row in rows.tolist()]
  return Corpus(
    ids,
    _no_vectors(ids),
    np.append(known.counts, 0)[rows],
    _lists(queries[there], pairs[there], len(known.seen[0]) - 1),
    titles,
  )


def _pairs(seen: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
  """The queries and rows of all pairs."""
  splits, rows = seen
  return np.repeat(np.arange(len(splits) - 1), np.diff(splits)), rows


def _lists(
  queries: np.ndarray, rows: np.ndarray, num_queries: int
) -> tuple[np.ndarray, np.ndarray]:
  """Row splits by query, and the rows of each query, ascending."""
  counts = np.bincount(queries, minlength=num_queries)
  order = np.lexsort([rows, queries])
  return np.append(0, np.cumsum(counts)), rows[order].astype(np.int32)


def _no_vectors(ids: Sequence) -> np.ndarray:
  return np.zeros([len(ids), 0], np.float32)


def put(
  ids: Sequence, vectors: np.ndarray, new_ids: Sequence, new_vectors: np.ndarray
) -> tuple[np.ndarray, list[int]]:
  """Copies vectors and replaces those of known ids.

  Args:
    ids: n ids.
    vectors: `[n, dim]` vectors of `ids`.
    new_ids: m ids.
    new_vectors: `[m, dim]` vectors of `new_ids`.

  Returns:
    `[n, dim]` vectors, and the positions of the new ids that are not in `ids`.
  """
  row_of = {candidate: row for row, candidate in enumerate(ids)}
  vectors = vectors.copy()
  added = []
  for place, candidate in enumerate(new_ids):
    if candidate in row_of:
      vectors[row_of[candidate]] = new_vectors[place]
    else:
      added.append(place)
  return vectors, added
