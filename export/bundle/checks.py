"""Compares the answers of a loaded bundle with NumPy on its own vectors.

Axes: m (sampled queries), n (candidates), k (answers), dim.

Each check returns a short description of its result, or raises `DataError`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from export.bundle import indexing
from xir_tfrs.data import errors
from xir_tfrs.serving import bundle as bundle_lib

# Relative to the product of the norms of two vectors: scores are float32 sums
# in different orders.
_TOLERANCE = 1e-4
_ROWS_PER_CALL = 4096
_SCORES_PER_CHUNK = 2**25
# Recall may be below its target by this many standard errors of the sample.
_SLACK = 3.0


class Probe:
  """A bundle, a sample of its queries, and their exact answers.

  Attributes:
    bundle: The bundle.
    k: Number of answers.
    min_recall: Minimum recall of ScaNN; None for that in the manifest.
    query_ids: m known ids.
    queries: `[m, dim]` float32 embeddings; `[m, interests, dim]` if queries
      have interests, where the highest score counts.
  """

  def __init__(
    self,
    bundle: bundle_lib.Bundle,
    num_queries: int,
    k: int,
    min_recall: float | None = None,
  ):
    self.bundle = bundle
    self.k = k
    self.min_recall = min_recall
    self.rows = indexing.sample_queries(np.diff(bundle.seen[0]), num_queries)
    self.query_ids = [bundle.query_ids[row] for row in self.rows.tolist()]
    self.queries = bundle.encode_queries(self.query_ids)
    self.vectors = bundle.vectors
    self.ids = bundle.candidate_ids.tolist()

  @functools.cached_property
  def row_of(self) -> dict[str | int, int]:
    """Rows by id; padding is row -1."""
    return {candidate: row for row, candidate in enumerate(self.ids)} | {
      self.padding: -1
    }

  @functools.cached_property
  def best(self) -> np.ndarray:
    """Exact top scores `[m, min(k, n)]`, descending."""
    k = min(self.k, len(self.vectors))
    step = max(1, _SCORES_PER_CHUNK // len(self.vectors))
    parts = [np.empty([0, k], np.float32)]
    for low in range(0, len(self.queries), step):
      scores = _highest(self.queries[low : low + step] @ self.vectors.T)
      best = np.partition(scores, -k, axis=1)[:, -k:]
      parts.append(-np.sort(-best, axis=1))
    return np.concatenate(parts)

  @functools.cached_property
  def tolerance(self) -> float:
    """Maximum difference between a score and that of NumPy."""
    longest = [
      np.linalg.norm(x, axis=-1).max(initial=0.0)
      for x in (self.queries, self.vectors)
    ]
    return float(_TOLERANCE * (longest[0] * longest[1] + 1e-9))

  def search(
    self,
    queries: np.ndarray,
    k: int,
    exclude: Sequence[Sequence] = (),
    allow: Sequence[Sequence] = (),
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of the answers `[n, k]`, -1 for padding, and scores.

    Raises:
      DataError: The answers contradict each other or the vectors.
    """
    found = self.bundle.signatures["search"](
      query_embeddings=tf.constant(queries, tf.float32),
      k=tf.constant(k, tf.int32),
      exclude_ids=self._tensor(exclude, len(queries)),
      allow_ids=self._tensor(allow, len(queries)),
    )
    rows = self.rows_of(_python(found["candidate_ids"]))
    scores = found["scores"].numpy()
    self.check(queries, rows, scores, found["num_found"].numpy())
    return rows, scores

  def rows_of(self, ids: Sequence[Sequence]) -> np.ndarray:
    """Returns rows `[n, k]` of answers; raises for an unlisted id."""
    try:
      rows = [[self.row_of[x] for x in answer] for answer in ids]
    except KeyError as error:
      raise errors.DataError(
        f"answers {error.args[0]!r}, which is not in lists/candidate_ids"
      ) from None
    return np.array(rows, np.int64).reshape(len(rows), -1)

  def check(
    self,
    queries: np.ndarray,
    rows: np.ndarray,
    scores: np.ndarray,
    num_found: np.ndarray,
  ) -> None:
    """Raises `DataError` for answers that a search must not return."""
    real = rows >= 0
    if not (
      np.array_equal(num_found, real.sum(1))
      and np.array_equal(real, np.isfinite(scores))
      and np.array_equal(real, np.arange(rows.shape[1]) < num_found[:, None])
    ):
      raise errors.DataError("`num_found` and the padding do not agree")
    for row in rows:
      if len(set(row[row >= 0].tolist())) < (row >= 0).sum():
        raise errors.DataError("an answer holds a candidate twice")
    shown = np.where(real, scores, 0)
    if (np.diff(np.where(real, scores, -1e30), axis=1) > 0).any():
      raise errors.DataError("answers are not in the order of their scores")
    exact = self.scores(queries, np.maximum(rows, 0))
    wrong = np.argwhere(real & ~(np.abs(exact - shown) <= self.tolerance))
    if wrong.size:
      i, j = wrong[0]
      raise errors.DataError(
        f"{self.ids[rows[i, j]]!r} has the score {scores[i, j]:.6g}, but its "
        f"vector gives {exact[i, j]:.6g}: lists and index do not match"
      )

  def scores(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns `[n, k]` scores of rows `[n, k]` for n queries."""
    of_rows = np.einsum("n...d,nkd->n...k", queries, self.vectors[rows])
    return _highest(of_rows)

  @property
  def padding(self) -> str | int:
    """The padding of candidate ids."""
    return "" if self._dtype == tf.string else -1

  @property
  def _dtype(self) -> tf.DType:
    return tf.as_dtype(self.bundle.manifest.id_types.candidate)

  def _tensor(self, lists: Sequence[Sequence], n: int) -> tf.Tensor:
    lists = [list(x) for x in lists] or [[]] * n
    width = max(map(len, lists), default=0)
    padded = [x + [self.padding] * (width - len(x)) for x in lists]
    return tf.constant(padded, self._dtype, [n, width])


def _unknown(ids: Sequence) -> str | int:
  """An id that is not in `ids`."""
  known = set(ids)
  if all(isinstance(x, str) for x in known):
    return "unknown" + "?" * (1 + max(map(len, known)))
  return next(i for i in range(len(known) + 1) if i not in known)


def _highest(scores: np.ndarray) -> np.ndarray:
  """`[n, k]` highest scores of `[n, interests, k]`."""
  return scores.max(axis=1) if scores.ndim == 3 else scores


def vectors(probe: Probe) -> str:
  """Checks that vectors are finite and match the number of candidates."""
  manifest = probe.bundle.manifest
  expected = (manifest.num_candidates, manifest.dim)
  for name, found in (("vectors", probe.vectors), ("queries", probe.queries)):
    finite = np.isfinite(found).reshape(len(found), -1)
    wrong = np.flatnonzero(~finite.all(axis=1))
    if wrong.size:
      owners = probe.ids if name == "vectors" else probe.query_ids
      raise errors.DataError(
        f"{wrong.size} {name} are not finite; the first is that of "
        f"{owners[wrong[0]]!r}"
      )
  if probe.vectors.shape != expected:
    raise errors.DataError(
      f"have the shape {probe.vectors.shape}, but the manifest has {expected}"
    )
  return f"{expected[0]:,} of dimension {expected[1]}, all finite"


def ids(probe: Probe) -> str:
  """Checks that the index has every listed id with the vector of its row."""
  if not len(probe.queries):
    return "no queries"
  step = min(_ROWS_PER_CALL, probe.bundle.manifest.max_k)
  for low in range(0, len(probe.ids), step):
    part = probe.ids[low : low + step]
    rows, _ = probe.search(probe.queries[:1], len(part), allow=[part])
    missing = set(range(low, low + len(part))) - set(rows[0].tolist())
    if missing:
      raise errors.DataError(
        f"the index does not have {probe.ids[min(missing)]!r}"
      )
  return f"{len(probe.ids):,} ids in both lists and index"


def answers(probe: Probe) -> str:
  """Checks the scores of answers, and the recall."""
  found, _ = probe.search(probe.queries, probe.k)
  return recall(probe, found, probe.bundle.index)


def recall(probe: Probe, rows: np.ndarray, index: str) -> str:
  """Compares rows `[m, k]` with the exact best; returns the recall."""
  best = probe.best
  if ((rows >= 0).sum(axis=1) != best.shape[1]).any():
    raise errors.DataError(f"fewer than {best.shape[1]} answers to a query")
  if not best.size:
    return "no queries"
  exact = probe.scores(probe.queries, rows[:, : best.shape[1]])
  # Compares scores, because equal scores may be in any order.
  found = float((exact >= best[:, -1:] - probe.tolerance).mean())
  about = probe.bundle.manifest.indexes[index]
  promised = 1.0
  if about.kind == "scann":
    promised = about.recall.get(str(probe.k), 0.0)
    near = min(promised, 1 - 1 / len(best))  # A recall of 1.0 varies too.
    promised -= _SLACK * math.sqrt(near * (1 - near) / len(best))
    if probe.min_recall is not None:
      promised = probe.min_recall
  shown = f"recall@{probe.k} {found:.4f} on {len(best)} queries"
  if found < promised:
    raise errors.DataError(
      f"{shown}, must be at least {promised:.4f}; refresh or export again, "
      "with another --target_recall or --min_recall"
    )
  return shown


def exclusions(probe: Probe) -> str:
  """Checks that excluded candidates are left out and the next best returned."""
  queries = probe.queries[:50]
  first, _ = probe.search(queries, probe.k)
  lists = [[probe.ids[row] for row in rows if row >= 0] for rows in first]
  second, _ = probe.search(queries, probe.k, exclude=lists)
  left = max(0, len(probe.ids) - first.shape[1])
  for before, after in zip(first, second, strict=True):
    both = set(before.tolist()) & set(after.tolist()) - {-1}
    if both:
      raise errors.DataError(
        f"{probe.ids[both.pop()]!r} was excluded but returned"
      )
    if (after >= 0).sum() != min(probe.k, left):
      raise errors.DataError(
        f"{(after >= 0).sum()} answers, but {left} candidates were left"
      )
  return f"{len(queries)} queries, {probe.k} excluded each"


def allowed_only(probe: Probe) -> str:
  """Checks that only allowed candidates are returned, in exact order."""
  rng = np.random.default_rng(1)
  queries = probe.queries[:50]
  size = min(probe.k, len(probe.ids))
  picked = np.stack(
    [rng.choice(len(probe.ids), size, replace=False) for _ in queries]
    or [np.empty(size, np.int64)]
  )[: len(queries)]
  lists = [[probe.ids[row] for row in rows] for rows in picked]
  found, _ = probe.search(queries, size, allow=lists)
  if not np.array_equal(np.sort(found), np.sort(picked)):
    raise errors.DataError("the answers do not match the allow list")
  nothing = [[_unknown(probe.ids)]] * len(queries)
  if (probe.search(queries, size, allow=nothing)[0] >= 0).any():
    raise errors.DataError("an allow list of unknown ids has answers")
  return f"{len(queries)} queries, {size} allowed each"


def titles(probe: Probe) -> str:
  """Checks that answers have the listed titles."""
  listed = probe.bundle.titles
  if listed is None:
    return "skipped: the bundle has none"
  found = probe.bundle.recommend(probe.query_ids, k=probe.k)
  if found.titles is None:
    raise errors.DataError("answers have no titles, but the lists do")
  rows = probe.rows_of(found.ids)
  for answer, shown in zip(rows, found.titles, strict=True):
    for row, title in zip(answer.tolist(), shown, strict=True):
      if title != (listed[row] if row >= 0 else ""):
        raise errors.DataError(
          f"{probe.ids[row]!r} is returned with the title {title!r}, not "
          f"{listed[row]!r}"
        )
  return f"titles of {len(rows)} answers"


def seen_left_out(probe: Probe) -> str:
  """Checks that `exclude_seen` leaves out the training candidates."""
  found = probe.bundle.recommend(probe.query_ids, k=probe.k, exclude_seen=True)
  answers = probe.rows_of(found.ids)
  probe.check(probe.queries, answers, found.scores, found.num_found)
  splits, candidates = probe.bundle.seen
  for row, query, rows in zip(
    probe.rows, probe.query_ids, answers, strict=True
  ):
    seen = candidates[splits[row] : splits[row + 1]]
    both = np.intersect1d(seen, rows)
    if both.size:
      raise errors.DataError(
        f"{query!r} has seen {probe.ids[both[0]]!r}, but got it"
      )
  return f"{len(answers)} queries"


def similar_items(probe: Probe) -> str:
  """Checks that candidates do not get themselves, and unknown ones nothing."""
  rng = np.random.default_rng(2)
  size = min(50, len(probe.ids))
  rows = rng.choice(len(probe.ids), size, replace=False)
  asked = [probe.ids[row] for row in rows]
  found = probe.bundle.similar_items([*asked, _unknown(probe.ids)], probe.k)
  answers = probe.rows_of(found.ids)
  if (answers[:-1] == rows[:, None]).any():
    raise errors.DataError("a candidate is among its own answers")
  if found.num_found[-1]:
    raise errors.DataError("an unknown id has answers")
  # Not the tolerance of queries: candidate vectors may be much longer.
  expected = np.einsum(
    "nd,nkd->nk", probe.vectors[rows], probe.vectors[answers[:-1]]
  )
  norm = np.linalg.norm(probe.vectors, axis=1).max(initial=0.0)
  error = np.abs(np.where(answers[:-1] >= 0, expected - found.scores[:-1], 0))
  if not (error <= _TOLERANCE * (norm**2 + 1e-9)).all():
    raise errors.DataError("scores do not match the vectors")
  return f"{size} candidates"


def unknown_query(probe: Probe) -> str:
  """Checks that an unknown query gets popular candidates, or the tower's."""
  bundle = probe.bundle
  unknown = _unknown(bundle.query_ids.tolist())
  found = bundle.recommend([unknown], k=probe.k)
  if found.known.any():
    raise errors.DataError(f"{unknown!r} is treated as a known query")
  rows = probe.rows_of(found.ids)
  popular, promised = bool(found.popular[0]), bundle.manifest.unknown_query
  # "features" allows both: the tower may have numbers for the id.
  if promised != "features" and popular != (promised == "popularity"):
    raise errors.DataError(
      f"{unknown!r} is not answered by {promised}, but the manifest says so"
    )
  if not popular:
    queries = bundle.encode_queries([unknown])
    probe.check(queries, rows, found.scores, found.num_found)
    return "answered by the tower"
  rows = rows[0, : min(probe.k, len(probe.ids))]
  counts = np.asarray(bundle.counts, np.float32)  # Like scores.
  highest = -np.sort(-counts)[: len(rows)]
  if (
    (rows < 0).any()
    or len(set(rows.tolist())) < len(rows)
    or not np.array_equal(found.scores[0, : len(rows)], highest)
    or not np.array_equal(counts[rows], highest)
  ):
    raise errors.DataError("does not get the candidates with highest counts")
  without = bundle.recommend(
    [unknown], k=1, exclude_ids=[found.ids[0, :1].tolist()]
  )
  if without.ids[0, 0] == found.ids[0, 0]:
    raise errors.DataError("gets an excluded popular candidate")
  return "answered with the most popular"


def sessions(probe: Probe) -> str:
  """Checks answers to histories; padding and unknown ids have no effect."""
  bundle = probe.bundle
  if "recommend_session" not in bundle.signatures:
    return "skipped: the bundle is older than histories"
  rng = np.random.default_rng(3)
  size = min(5, len(probe.ids))
  lists = [
    [probe.ids[row] for row in rng.choice(len(probe.ids), size, replace=False)]
    for _ in range(20)
  ]
  queries = bundle.encode_queries(history=lists)
  if not np.isfinite(queries).all():
    raise errors.DataError("the vector of a history is not finite")
  found = bundle.recommend(
    history=lists, k=min(probe.k, len(probe.ids)), exclude_history=True
  )
  rows = probe.rows_of(found.ids)
  answered = ~found.popular
  if not answered.any():
    raise errors.DataError("all candidates in histories are unknown")
  probe.check(
    *(x[answered] for x in (queries, rows, found.scores)),
    found.num_found[answered],
  )
  for given, answer in zip(lists, found.ids.tolist(), strict=True):
    both = set(given) & set(answer)
    if both:
      raise errors.DataError(f"{both.pop()!r} is in a history but returned")
  unknown = _unknown(probe.ids)
  mixed = [[unknown, *given, probe.padding] for given in lists]
  again = bundle.encode_queries(history=mixed)
  if np.abs(again - queries).max() > _TOLERANCE:
    raise errors.DataError("padding or an unknown id changes a history")
  return f"{len(lists)} histories"


def times(probe: Probe) -> str:
  """Checks that one unknown time of a history hides all its ages."""
  bundle = probe.bundle
  if not bundle.takes_times:
    return "skipped: the model uses no ages of events"
  rng = np.random.default_rng(4)
  size = min(5, len(probe.ids), bundle.manifest.history_length or 0)
  lists = [
    [probe.ids[row] for row in rng.choice(len(probe.ids), size, replace=False)]
    for _ in range(20)
  ]
  moments = np.sort(rng.integers(0, 10**9, [20, size + 1]), axis=1)
  without = bundle.encode_queries(history=lists)
  hidden = bundle.encode_queries(
    history=lists, history_times=moments[:, :-1].tolist()
  )
  aged = bundle.encode_queries(
    history=lists,
    history_times=moments[:, :-1].tolist(),
    time=moments[:, -1].tolist(),
  )
  if not np.isfinite(aged).all():
    raise errors.DataError("the vector of a history with times is not finite")
  if np.abs(hidden - without).max() > _TOLERANCE:
    raise errors.DataError("ages are used although a time is unknown")
  return f"{len(lists)} histories"


def limits(probe: Probe) -> str:
  """Checks that too many answers are padded, and more than `max_k` fail."""
  n, max_k = len(probe.ids), probe.bundle.manifest.max_k
  if n < max_k:
    rows, _ = probe.search(probe.queries[:1], n + 1)
    if (rows[:, :n] < 0).any() or (rows[:, n:] >= 0).any():
      raise errors.DataError(f"{n + 1} answers from {n} candidates")
  try:
    probe.search(probe.queries[:1], max_k + 1)
  except tf.errors.InvalidArgumentError:
    return f"k up to {max_k:,}"
  raise errors.DataError(f"k = {max_k + 1} gets an answer")


def latency(probe: Probe) -> str:
  """Measures single queries in sequence, after a warm-up query."""
  times = []
  for query_id in [*probe.query_ids[:1], *probe.query_ids]:
    start = time.perf_counter()
    probe.bundle.recommend([query_id], k=probe.k)
    times.append(1e3 * (time.perf_counter() - start))
  if len(times) < 2:
    return "no queries"
  p50, p95, p99 = np.percentile(times[1:], [50, 95, 99])
  return f"p50 {p50:.2f}, p95 {p95:.2f}, p99 {p99:.2f} ms"


def scann_folder(probe: Probe) -> str:
  """Checks the recall and the scores of the folder."""
  from xir_tfrs.serving import scann_folder as folders

  folder = folders.ScannFolder.load(probe.bundle.directory / bundle_lib.FOLDER)
  ids, scores = folder.search(probe.queries, probe.k)
  rows = probe.rows_of(ids.tolist())
  probe.check(probe.queries, rows, scores, (rows >= 0).sum(axis=1))
  return recall(probe, rows, "scann")


def _python(ids: tf.Tensor) -> list[list]:
  if ids.dtype != tf.string:
    return ids.numpy().tolist()
  return [[x.decode() for x in row] for row in ids.numpy()]


CHECKS: dict[str, Callable[[Probe], str]] = {
  "vectors": vectors,
  "ids": ids,
  "answers": answers,
  "exclusions": exclusions,
  "allowed only": allowed_only,
  "seen left out": seen_left_out,
  "titles": titles,
  "similar items": similar_items,
  "unknown query": unknown_query,
  "sessions": sessions,
  "times": times,
  "limits of k": limits,
  "latency": latency,
}
