"""Rankings of a split by the model as served, and by baselines.

The model answers like an exported bundle (`xir_tfrs.models.cold_start`): ids
without training rows count as unknown. A query about which nothing is known
gets the most popular candidates, and a candidate about which nothing is known
is not in the index.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from pipelines.evaluation import split
from xir_tfrs.data import errors, runs
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.models import cold_start
from xir_tfrs.programs import progress

# Events of histories that are encoded at a time.
_EVENTS_PER_BATCH = 1 << 16
# Queries whose lists are re-ranked at a time.
_LISTS_PER_BATCH = 256
# Called with the number of rows done so far.
Report = Callable[[int], None]


@contextlib.contextmanager
def progress_of(title: str, rows: int, show: bool) -> Iterator[Report]:
  """Shows progress of work on rows, if asked to."""
  with progress.Progress(title, rows, show=show) as bar:
    yield lambda done: bar.update_rows(done, done - bar.rows)


class Ranker(Protocol):
  """Ranks candidates for the queries of a split."""

  def rank(
    self,
    data: split.EvaluationData,
    ks: Sequence[int],
    report: Report | None = None,
  ) -> xir.metrics.Ranking:
    """Ranks for all queries.

    Args:
      data: The split, or some of its queries.
      ks: Cut-offs.
      report: Called with the number of queries ranked so far.
    """


@dataclasses.dataclass(frozen=True)
class Vectors:
  """Ranks by inner product.

  Attributes:
    queries: [num_queries, dim] float32; or [num_queries, interests, dim], where
      the highest score counts.
    candidates: [num_candidates, dim] float32.
    by_model: [num_queries] bool, whether the model answers the query, and not
      popularity.
    indexed: [num_candidates] bool, whether a candidate can be found.
  """

  queries: np.ndarray
  candidates: np.ndarray
  by_model: np.ndarray
  indexed: np.ndarray

  def rank(
    self,
    data: split.EvaluationData,
    ks: Sequence[int],
    report: Report | None = None,
  ) -> xir.metrics.Ranking:
    """See `Ranker`."""
    return xir.metrics.rank_all(
      self.queries if data.rows is None else self.queries[data.rows],
      self.candidates,
      relevant=data.relevant,
      seen=data.seen,
      indexed=self.indexed,
      ks=ks,
      report=report,
    )

  def with_popularity(self, counts: np.ndarray) -> "Vectors":
    """Replaces scores by counts for queries that the model does not answer."""
    if self.by_model.all():
      return self
    # The added entry is 0 for the other queries, so their scores stay.
    shape = [-1] + [1] * (self.queries.ndim - 1)
    by_counts = (~self.by_model).reshape(shape)
    queries = np.where(by_counts, np.float32(0), self.queries)
    last = np.broadcast_to(by_counts, (*queries.shape[:-1], 1))
    return dataclasses.replace(
      self,
      queries=np.concatenate([queries, last.astype(np.float32)], axis=-1),
      candidates=np.hstack([self.candidates, _popularity(counts)]),
    )


@dataclasses.dataclass(frozen=True)
class Lists:
  """Ranks a list of candidates for each query.

  Attributes:
    ids: [num_queries, depth] dense ids, best first by the retriever, padded
      with -1.
    scores: [num_queries, depth] scores.
    unmasked: The same lists without masking, if requested.
  """

  ids: np.ndarray
  scores: np.ndarray
  unmasked: "Lists | None" = None

  def rank(
    self,
    data: split.EvaluationData,
    ks: Sequence[int],
    report: Report | None = None,
  ) -> xir.metrics.Ranking:
    """See `Ranker`."""
    del report  # The lists are ranked at once.
    return xir.metrics.rank_lists(
      self.ids if data.rows is None else self.ids[data.rows],
      self.scores if data.rows is None else self.scores[data.rows],
      relevant=data.relevant,
      num_candidates=len(data.counts),
      ks=ks,
    )


def of_scores(
  chunks: Iterable[tuple[slice, np.ndarray]],
  data: split.EvaluationData,
  ks: Sequence[int],
  report: Report | None = None,
) -> xir.metrics.Ranking:
  """Ranks by scores that are computed in chunks of queries.

  Args:
    chunks: Slices of queries, in order, with scores [m, num_candidates]
      float32, which are modified.
    data: The split.
    ks: Cut-offs.
    report: Called with the number of queries ranked so far.
  """
  num_candidates = len(data.counts)
  ids, best = [], []
  for some, scores in chunks:
    for pairs, changed in (
      (data.seen[some], lambda x: np.full_like(x, -np.inf)),
      (data.relevant[some], _just_below),
    ):
      place = pairs.value_rowids().numpy(), pairs.values.numpy()
      scores[place] = changed(scores[place])
    found = tf.math.top_k(scores, min(max(ks), num_candidates))
    best.append(found.values.numpy())
    ids.append(np.where(np.isfinite(best[-1]), found.indices, -1))
    if report is not None:
      report(some.stop)
  return xir.metrics.rank_lists(
    np.concatenate(ids),
    np.concatenate(best),
    relevant=data.relevant,
    num_candidates=num_candidates,
    ks=ks,
  )


def _just_below(scores: np.ndarray) -> np.ndarray:
  """The next lower scores, so that ties do not favour relevant candidates."""
  lower = np.nextafter(scores, np.float32(-np.inf))
  # The next number below 0 is subnormal, which TensorFlow treats as 0.
  return np.minimum(lower, scores - np.finfo(np.float32).tiny)


def of_model(
  model: xir.models.TwoTower, data: split.EvaluationData, show: bool = False
) -> Vectors:
  """Returns the model's embeddings, without answers by popularity.

  Args:
    model: The model.
    data: The split.
    show: Whether to show progress.
  """
  candidate_ids = np.arange(len(data.counts))
  candidates, indexed = _encode(
    model.encode_candidates,
    model.candidate_tower,
    candidate_ids,
    data.counts > 0,
    show,
  )
  if not model.takes_histories:
    queries, by_model = _encode(
      model.encode_queries, model.query_tower, data.query_ids, data.warm, show
    )
  else:
    events, _ = _encode(
      model.candidate_tower.encode,
      model.candidate_tower,
      candidate_ids,
      data.counts > 0,
      show,
    )
    queries, by_model = _encode_past(model, data, events, indexed, show)
  return Vectors(queries, candidates, by_model, indexed)


def _encode_past(
  model: xir.models.TwoTower,
  data: split.EvaluationData,
  event_vectors: np.ndarray,
  indexed: np.ndarray,
  show: bool,
) -> tuple[np.ndarray, np.ndarray]:
  """As `_encode`, for rows with the events before them.

  If the model has interests, the vectors are [rows, interests, dim].
  """
  events = _known_events(data, indexed)
  event_vectors = tf.constant(event_vectors)
  all_times = _times(model, data)

  def encode(rows):
    ids, has_rows, histories, has_history = (
      tf.constant(column[rows])
      for column in (data.query_ids, data.warm, events, (events >= 0).any(1))
    )
    times = {name: tf.constant(x[rows]) for name, x in all_times.items()}
    features = model.query_tower.look_up(ids)
    encoder = functools.partial(
      model.encode_queries,
      history_ids=histories,
      event_vectors=event_vectors,
      **times,
    )
    vectors = cold_start.encode(encoder, ids, has_rows, features)
    answerable = has_history
    if model.query_tower.query_tower is not None:
      answerable |= cold_start.is_answerable(has_rows, features)
    return tf.reshape(vectors, [len(rows), -1]), answerable

  vectors, answerable = _in_batches(
    lambda rows: encode(rows.numpy()),
    np.arange(len(events)),
    show,
    ids_per_batch=max(_EVENTS_PER_BATCH // events.shape[1], 1),
  )
  if model.has_interests:
    vectors = vectors.reshape(len(vectors), -1, event_vectors.shape[1])
  return vectors, answerable


def _known_events(
  data: split.EvaluationData, indexed: np.ndarray
) -> np.ndarray:
  """[rows, length] events, -1 for candidates about which nothing is known.

  Serving drops these candidates from histories.
  """
  assert data.past is not None
  events = data.past.events
  known = (events >= 0) & indexed[events]
  return np.where(known, events, cold_start.UNKNOWN_ID)


def _times(
  model: xir.models.TwoTower, data: split.EvaluationData
) -> dict[str, np.ndarray]:
  """[rows, length + 1] `history_times`, if the model takes them."""
  assert data.past is not None
  if not model.query_tower.encoder.takes_times:
    return {}
  if data.past.times is None:
    raise errors.DataError(
      "the interactions have no times, and the model uses the ages of "
      "events: evaluate it on data with a --time_column"
    )
  return {"history_times": data.past.times}


def _encode(
  encoder: Callable[..., tf.Tensor],
  tower: tf.keras.Model,
  ids: np.ndarray,
  has_rows: np.ndarray,
  show: bool,
) -> tuple[np.ndarray, np.ndarray]:
  """[n, dim] vectors as served, and [n] whether an id can be answered."""
  trained = np.zeros(ids.max() + 1, bool)
  trained[ids] = has_rows
  trained = tf.constant(trained)

  def encode(ids):
    known = tf.gather(trained, ids)
    features = tower.look_up(ids)
    return (
      cold_start.encode(encoder, ids, known, features),
      cold_start.is_answerable(known, features),
    )

  return _in_batches(encode, ids, show)


def _in_batches(
  encode: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
  ids: np.ndarray,
  show: bool,
  **batches: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Encodes ids to [n, dim] vectors and [n] whether they can be answered."""

  def joined(part):
    vectors, answerable = encode(part)
    flag = tf.cast(answerable, tf.float32)[:, tf.newaxis]
    return tf.concat([vectors, flag], axis=1)

  with progress_of("encode", len(ids), show) as report:
    found = runs.encode_in_batches(joined, ids, report, **batches)
  return found[:, :-1], found[:, -1] > 0


def of_popularity(
  data: split.EvaluationData, indexed: np.ndarray | None = None
) -> Vectors:
  """Ranks by training counts, in the same order for every query.

  Args:
    data: The split.
    indexed: [num_candidates] bool, whether a candidate can be found; None for
      all.
  """
  num_queries, num_candidates = len(data.query_ids), len(data.counts)
  return Vectors(
    queries=np.ones([num_queries, 1], np.float32),
    candidates=_popularity(data.counts),
    by_model=np.zeros(num_queries, bool),
    indexed=np.ones(num_candidates, bool) if indexed is None else indexed,
  )


def _popularity(counts: np.ndarray) -> np.ndarray:
  """[num_candidates, 1] float32 with the order of the counts."""
  # Not the counts themselves: float32 is not exact beyond 2^24.
  _, order = np.unique(counts, return_inverse=True)
  return order.astype(np.float32)[:, np.newaxis]


def of_oracle(
  data_dir: str | os.PathLike[str], data: split.EvaluationData
) -> Vectors | None:
  """Returns the generator's embeddings; None if data was not generated."""
  path = pathlib.Path(data_dir) / schema_lib.ORACLE_FILE
  if not path.exists():
    return None
  with np.load(path) as arrays:
    queries = arrays["query_embeddings"][data.query_ids]
    candidates = arrays["candidate_embeddings"]
  return Vectors(
    queries,
    candidates,
    np.ones(len(queries), bool),
    np.ones(len(candidates), bool),
  )


def second_stage(
  model: xir.models.TwoTower,
  first: Vectors,
  data: split.EvaluationData,
  depth: int,
  show: bool = False,
) -> Lists:
  """Re-ranks the best candidates of the first stage.

  Queries without training rows keep the scores of the first stage. If the
  ranker takes histories, only queries that the first stage cannot answer do.

  Args:
    model: A model with a ranker.
    first: The first stage, with popularity.
    data: The whole split.
    depth: Candidates per query.
    show: Whether to show progress.

  Returns:
    The lists; if rows are queries, also the lists without masking.
  """
  lists = _reranked(model, first, data, depth, show)
  if data.past is None:
    return lists
  unmasked = _reranked(model, first, data.unfiltered(), depth, show)
  return dataclasses.replace(lists, unmasked=unmasked)


def _reranked(
  model: xir.models.TwoTower,
  first: Vectors,
  data: split.EvaluationData,
  depth: int,
  show: bool,
) -> Lists:
  indexed = np.flatnonzero(first.indexed)
  index = xir.indexes.BruteForceIndex().index(
    indexed, first.candidates[indexed]
  )
  query_ids = np.where(data.warm, data.query_ids, cold_start.UNKNOWN_ID)
  given, known = [tf.constant(query_ids, tf.int64)], data.warm
  if model.ranker.takes_histories:
    events = _known_events(data, first.indexed)
    given, known = [*given, tf.constant(events, tf.int64)], first.by_model
  pairs = tf.TensorSpec([None, None], tf.int64)
  rerank = tf.function(
    model.rerank_scores,
    input_signature=[tf.TensorSpec([None], tf.int64), pairs]
    + [pairs] * (len(given) - 1),
  )
  ids, scores = [], []
  with progress_of("re-rank", len(data.query_ids), show) as report:
    for start in range(0, len(data.query_ids), _LISTS_PER_BATCH):
      rows = slice(start, start + _LISTS_PER_BATCH)
      found, retrieved = index.search(
        first.queries[rows], depth, exclude=data.seen[rows]
      )
      queries, *histories = (column[rows] for column in given)
      ranked = rerank(queries, found, *histories)
      ids.append(found.numpy())
      scores.append(np.where(known[rows, np.newaxis], ranked, retrieved))
      report(start + len(found))
  return Lists(np.concatenate(ids), np.concatenate(scores))


def rank(
  model: xir.models.TwoTower, data: split.EvaluationData, ks: Sequence[int]
) -> xir.metrics.Ranking:
  """Returns the ranking of a model as served."""
  return of_model(model, data).with_popularity(data.counts).rank(data, ks)


def means_with_parts(
  ranking: xir.metrics.Ranking, warm: np.ndarray
) -> dict[str, float]:
  """Means over all queries, and over those with and without training rows.

  Args:
    ranking: The ranking of all queries.
    warm: [num_queries] bool, whether a query has training rows.

  Returns:
    Metrics by name; if there are queries of both kinds, also `warm/NAME` and
    `cold/NAME`.
  """
  means = ranking.means()
  if warm.any() and not warm.all():
    for part, rows in (("warm", warm), ("cold", ~warm)):
      for name, value in ranking.means_of(rows).items():
        means[f"{part}/{name}"] = value
  return means
