"""The candidates of a bundle as arrays, and changes to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from xir_tfrs.data import errors
from xir_tfrs.serving import bundle


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The n candidates of a bundle with the data of their rows.

  Attributes:
    ids: n original ids.
    vectors: `[n, dim]` float32.
    counts: `[n]` int64 training counts.
    seen: Row splits by query, and rows `[pairs]` int32.
    titles: n titles; None if the bundle has none.
  """

  ids: Sequence[str] | Sequence[int]
  vectors: np.ndarray
  counts: np.ndarray
  seen: tuple[np.ndarray, np.ndarray]
  titles: Sequence[str] | None = None


def of_bundle(old: bundle.Bundle) -> Corpus:
  """Returns the candidates of a loaded bundle."""
  return Corpus(
    ids=old.candidate_ids.tolist(),
    vectors=old.vectors,
    counts=np.array(old.counts),
    seen=tuple(map(np.array, old.seen)),
    titles=None if old.titles is None else list(old.titles),
  )


def change(
  old: Corpus,
  new_ids: Sequence,
  new_vectors: np.ndarray,
  gone: set,
  new_titles: Sequence[str] = (),
) -> tuple[Corpus, dict]:
  """Adds, changes and removes candidates.

  Remaining rows keep their order; new ones follow, without training counts.

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
  splits, rows = old.seen
  pairs = np.append(0, np.cumsum(keep[rows]))
  new_row = (np.cumsum(keep) - 1).astype(np.int32)
  corpus = Corpus(
    ids=[x for x in old.ids if x not in gone] + [new_ids[i] for i in added],
    vectors=np.concatenate([vectors[keep], new_vectors[added]]),
    counts=np.append(old.counts[keep], np.zeros(len(added), np.int64)),
    seen=(pairs[splits], new_row[rows[keep[rows]]]),
  )
  if old.titles is not None:
    title_of = dict(zip(old.ids, old.titles, strict=True))
    titled = zip(new_ids, new_titles, strict=False)
    title_of.update((x, title) for x, title in titled if title)
    titles = [title_of.get(x, "") for x in corpus.ids]
    corpus = dataclasses.replace(corpus, titles=titles)
  return corpus, {
    "added": len(added),
    "changed": len(new_ids) - len(added),
    "removed": removed,
    "removed_unknown": len(gone) - removed,
  }


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
