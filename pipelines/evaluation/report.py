"""The results of an evaluation: metrics.json, the table and warnings."""

import os
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

import xir_tfrs as xir
from pipelines.evaluation import by_query as by_query_lib
from pipelines.evaluation import drawn, rankings, split
from pipelines.evaluation import intervals as intervals_lib
from xir_tfrs.data import json_files

FORMAT = 2
# A difference with a larger p may be chance.
_CHANCE = 0.05
WARM, COLD = "with training rows", "without training rows"
# Candidates by number of training rows: (name, minimum, maximum).
BANDS = (
  ("at most 5", 0, 5),
  ("6 to 20", 6, 20),
  ("more than 20", 21, np.iinfo(np.int64).max),
)
# Rows by number of events that they see: (name, minimum, maximum).
LENGTHS = (
  ("no event", 0, 0),
  ("1 to 4 events", 1, 4),
  ("5 to 9 events", 5, 9),
  ("10 to 19 events", 10, 19),
  ("20 or more events", 20, np.iinfo(np.int64).max),
)
TIED, UNTIED = "the time of the previous row", "a distinct time"
Metrics = dict[str, float]
# Ends of 95 % confidence intervals of the means, by metric.
Intervals = dict[str, tuple[float, float]]
# Metrics of each query, by ranking and name: [num_queries].
ByQuery = dict[str, dict[str, np.ndarray]]


class Part(msgspec.Struct, frozen=True):
  """Metrics of some queries or some pairs.

  Attributes:
    queries: Number of queries.
    pairs: Number of pairs that they should find.
    metrics: Metrics by ranking; empty without queries. Without coverage if
      there are other queries.
    intervals: Intervals of recall and NDCG, by ranking.
  """

  queries: int
  pairs: int
  metrics: dict[str, Metrics]
  intervals: dict[str, Intervals] = {}


class Band(Part, frozen=True, kw_only=True):
  """A part in which only some candidates are relevant.

  Attributes:
    candidates: Number of these candidates.
  """

  candidates: int


class OfHistories(msgspec.Struct, frozen=True):
  """Results that only a model of histories has.

  Attributes:
    length: Number of most recent events that the model encodes.
    ties: Whether a row sees events of the same time; see `data.histories`.
    unfiltered: As `Results.metrics`, without masking.
    by_length: Metrics of rows by the number of events that they see.
    by_time: Metrics of rows with `TIED` and of rows with `UNTIED`.
  """

  length: int
  ties: str
  unfiltered: dict[str, Metrics]
  by_length: dict[str, Part]
  by_time: dict[str, Part]


class Results(msgspec.Struct, frozen=True, kw_only=True):
  """The content of metrics.json.

  Attributes:
    split: The ranked split.
    checkpoint: Path of the checkpoint, relative to the model's directory.
    queries: Number of queries; for a model of histories, each row is a query.
    pairs: Number of pairs that they should find.
    candidates: Size of the catalogue.
    indexed: Number of candidates that can be found: those with training rows or
      side features.
    by_popularity: Number of queries answered by popularity, because they have
      neither training rows nor side features.
    ks: Cut-offs.
    rerank_depth: Candidates per query that the ranker re-ranks, if there is
      one.
    metrics: Metrics of `xir.metrics.full_ranking` by ranking: `model`;
      `reranked`, if the model has a ranker; `popularity`; `neighbours`, for a
      model of histories; `oracle`, if the data was generated.
    by_query: The same for queries with and without training rows.
    by_training_count: The same for candidates by number of training rows.
    by_seen: The same for queries by number of earlier candidates, if queries
      are ids; for a model of histories, see `histories.by_length`.
    intervals: 95 % confidence intervals of recall and NDCG, by ranking; see
      `evaluation.intervals`.
    differences: Differences of recall and NDCG between the model and another
      ranking, by its name.
    concentration: `gini@k` by ranking: how unequally lists of k show the
      candidates.
    occurrence: Popularity of draws and cache, if the method has a cache.
    histories: Results that only a model of histories has, or None.
    warnings: Warnings as sentences.
  """

  format: int = FORMAT
  split: str
  checkpoint: str
  queries: int
  pairs: int
  candidates: int
  indexed: int
  by_popularity: int
  ks: tuple[int, ...]
  rerank_depth: int | None
  metrics: dict[str, Metrics]
  by_query: dict[str, Part]
  by_training_count: dict[str, Band]
  by_seen: dict[str, Part] = {}
  intervals: dict[str, Intervals] = {}
  differences: dict[str, dict[str, intervals_lib.PairedTest]] = {}
  concentration: dict[str, Metrics] = {}
  occurrence: drawn.Occurrence | None = None
  histories: OfHistories | None = None
  warnings: tuple[str, ...]


def main_k(ks: Sequence[int]) -> int:
  """The cut-off by which a model is judged: 20, or else the largest."""
  return 20 if 20 in ks else max(ks)


def load(path: str | os.PathLike[str]) -> Results:
  """Reads metrics.json.

  Raises:
    DataError: The file is missing, damaged or of another version.
  """
  return json_files.read(
    path, Results, remedy="run xir-tfrs evaluate again", format=FORMAT
  )


def results(
  model: rankings.Vectors,
  others: Mapping[str, rankings.Ranker],
  data: split.EvaluationData,
  *,
  ks: Sequence[int],
  checkpoint: str,
  rerank_depth: int | None = None,
  occurrence: drawn.Occurrence | None = None,
) -> tuple[Results, ByQuery]:
  """Ranks with the model and the baselines, and measures.

  Args:
    model: The model's embeddings.
    others: Other rankings by name.
    data: The split.
    ks: Cut-offs.
    checkpoint: Path of the model's checkpoint.
    rerank_depth: See `Results`.
    occurrence: See `Results`.

  Returns:
    The results, and recall and NDCG of each query.
  """
  rankers = {"model": model.with_popularity(data.counts), **others}
  whole = {
    name: _ranked(name, ranker, data, ks) for name, ranker in rankers.items()
  }
  by_query = {name: _paired(ranking) for name, ranking in whole.items()}
  measured = _Measured(whole, by_query, data)
  metrics = {name: ranking.means() for name, ranking in whole.items()}
  parts = {WARM: measured.part(data.warm), COLD: measured.part(~data.warm)}
  found = Results(
    split=data.split,
    checkpoint=checkpoint,
    queries=len(data.query_ids),
    pairs=data.num_pairs,
    candidates=len(data.counts),
    indexed=int(model.indexed.sum()),
    by_popularity=int((~model.by_model).sum()),
    ks=tuple(ks),
    rerank_depth=rerank_depth,
    metrics=metrics,
    by_query=parts,
    by_training_count={
      name: _band(rankers, measured, ks, low, high) for name, low, high in BANDS
    },
    by_seen={} if data.past else measured.by_number(data.seen.row_lengths()),
    intervals=measured.intervals(),
    differences=measured.differences(),
    concentration={name: r.concentration() for name, r in whole.items()},
    occurrence=occurrence,
    histories=_of_histories(rankers, measured, ks),
    warnings=_warnings(model, data, parts[WARM].metrics or metrics, main_k(ks)),
  )
  return found, by_query


def _ranked(
  name: str,
  ranker: rankings.Ranker,
  data: split.EvaluationData,
  ks: Sequence[int],
) -> xir.metrics.Ranking:
  """`ranker.rank`, with progress."""
  title = f"rank with {name}"
  with rankings.progress_of(title, len(data.query_ids), True) as report:
    return ranker.rank(data, ks, report)


def _paired(ranking: xir.metrics.Ranking) -> dict[str, np.ndarray]:
  """Recall and NDCG of each query."""
  return {
    name: values
    for name, values in ranking.by_query().items()
    if name.partition("@")[0] in by_query_lib.PAIRED
  }


def _intervals(
  by_query: Mapping[str, np.ndarray], users: np.ndarray
) -> Intervals:
  """Intervals of the means, without unknown ones (a single user)."""
  found = {
    name: intervals_lib.interval(values, users)
    for name, values in by_query.items()
  }
  return {name: ends for name, ends in found.items() if ends is not None}


class _Measured:
  """Rankings of a split, and metrics of some of its queries."""

  def __init__(
    self,
    whole: Mapping[str, xir.metrics.Ranking],
    by_query: ByQuery,
    data: split.EvaluationData,
  ) -> None:
    self.data = data
    self._whole, self._by_query = whole, by_query
    self._lengths = data.relevant.row_lengths().numpy()

  def part(self, rows: np.ndarray) -> Part:
    """Returns metrics of some queries, `rows` [num_queries] bool."""
    metrics, of_part = {}, {}
    if rows.any():
      metrics = {name: r.means_of(rows) for name, r in self._whole.items()}
      of_part = self.intervals(rows)
    pairs = int(self._lengths[rows].sum())
    return Part(int(rows.sum()), pairs, metrics, of_part)

  def by_number(self, numbers: np.ndarray) -> dict[str, Part]:
    """Returns parts by `LENGTHS`, given [num_queries] numbers of events."""
    numbers = np.asarray(numbers)
    return {
      name: self.part((numbers >= low) & (numbers <= high))
      for name, low, high in LENGTHS
    }

  def intervals(self, rows: np.ndarray | None = None) -> dict[str, Intervals]:
    """Returns intervals by ranking, for `rows` [num_queries] bool or all."""
    if rows is None:
      rows = np.ones(len(self.data.query_ids), bool)
    users = self.data.query_ids[rows]
    return {
      name: _intervals({m: x[rows] for m, x in values.items()}, users)
      for name, values in self._by_query.items()
    }

  def differences(self) -> dict[str, dict[str, intervals_lib.PairedTest]]:
    """See `Results`."""
    ours, users = self._by_query["model"], self.data.query_ids
    if len(np.unique(users)) < 2:
      return {}
    return {
      name: {
        metric: intervals_lib.paired_test(ours[metric] - values[metric], users)
        for metric in ours
      }
      for name, values in self._by_query.items()
      if name != "model"
    }


def _of_histories(rankers, measured, ks) -> OfHistories | None:
  data = measured.data
  past = data.past
  if past is None:
    return None
  unfiltered = data.unfiltered()
  unmasked = {
    name: getattr(ranker, "unmasked", ranker)
    for name, ranker in rankers.items()
  }
  return OfHistories(
    length=past.rule.length,
    ties=past.rule.ties,
    unfiltered={
      name: _ranked(name, ranker, unfiltered, ks).means()
      for name, ranker in unmasked.items()
    },
    by_length=measured.by_number(past.num_events),
    by_time={
      TIED: measured.part(past.tied),
      UNTIED: measured.part(~past.tied),
    },
  )


def _band(rankers, measured, ks, low, high) -> Band:
  """Metrics for candidates with `low` to `high` training rows."""
  data = measured.data
  wanted = (data.counts >= low) & (data.counts <= high)
  if data.past is not None:
    # Each row has one candidate to find, and its rank does not change.
    of_rows = measured.part(wanted[data.past.targets])
    return Band(candidates=int(wanted.sum()), **msgspec.structs.asdict(of_rows))
  part = data.restricted_to(wanted)
  metrics, of_band = {}, {}
  if len(part.query_ids):
    for name, ranker in rankers.items():
      ranking = _ranked(name, ranker, part, ks)
      metrics[name] = ranking.means()
      of_band[name] = _intervals(_paired(ranking), part.query_ids)
  return Band(
    candidates=int(wanted.sum()),
    pairs=part.num_pairs,
    queries=len(part.query_ids),
    metrics=metrics,
    intervals=of_band,
  )


def _warnings(
  model: rankings.Vectors,
  data: split.EvaluationData,
  metrics: Mapping[str, Metrics],
  k: int,
) -> tuple[str, ...]:
  """Warnings about the results; `metrics` are those of warm queries."""
  warnings = []
  if data.num_repeated:
    warnings.append(
      f"{data.num_repeated:,} of {data.num_pairs:,} {data.split} pairs were "
      "seen before. They are masked, so they count as misses."
    )
  if _collapsed(model):
    warnings.append(
      "The model has collapsed: it gives every candidate the same score. Check "
      "the learning rate and the losses in metrics.jsonl."
    )
  ours, baseline = (
    metrics[name][f"ndcg@{k}"] for name in ("model", "popularity")
  )
  if ours < baseline:
    warnings.append(
      f"The model is below popularity (ndcg@{k} {ours:.4f} < {baseline:.4f}): "
      "train longer, or check the learning rate and the temperature."
    )
  second = metrics.get("reranked", {}).get(f"ndcg@{k}")
  if second is not None and second < ours:
    warnings.append(
      f"Re-ranking lowers ndcg@{k} ({second:.4f} < {ours:.4f}): the ranker is "
      "not trained well enough."
    )
  return tuple(warnings)


def _collapsed(model: rankings.Vectors) -> bool:
  """Whether all scores of each sampled query are equal, up to rounding."""
  queries = model.queries[model.by_model]
  candidates = model.candidates[model.indexed]
  if not len(queries):
    return False
  queries = queries[:: len(queries) // 256 + 1]
  candidates = candidates[:: len(candidates) // 4096 + 1]
  scores = queries @ candidates.T
  return bool((np.ptp(scores, axis=-1) <= 1e-6 * np.abs(scores).max()).all())


def summary(found: Results) -> str:
  """Returns a paragraph about the ranked split."""
  lines = [
    f"{found.checkpoint} on the {found.split} split: {found.queries:,} "
    f"queries, {found.pairs:,} pairs, {found.candidates:,} candidates"
  ]
  of = found.histories
  if of is not None:
    sees = {"strict": "earlier events", "order": "events before it in the file"}
    tied = of.by_time[TIED].queries
    lines.append(
      f"Each row is a query of its own and sees {sees[of.ties]}; {tied:,} rows "
      f"({tied / max(found.queries, 1):.1%}) have the time of the previous row."
    )
  if found.indexed < found.candidates:
    lines.append(
      f"{found.candidates - found.indexed:,} candidates have neither training "
      "rows nor side features: they are not in the index and count as misses."
    )
  if found.by_popularity:
    what = "neither training rows nor side features"
    if of is not None:
      what = "no known candidates in their history"
    lines.append(
      f"{found.by_popularity:,} queries have {what}: they are answered by "
      "popularity."
    )
  return "\n".join(lines)


def verdict(found: Results) -> list[str]:
  """Whether the model is better than what needs no training, in sentences."""
  name = f"ndcg@{main_k(found.ks)}"
  ours = found.metrics["model"][name]
  lines = []
  for other in ("popularity", "neighbours"):
    if other not in found.metrics:
      continue
    theirs = found.metrics[other][name]
    text = f"{name} of the model is {ours:.4f}"
    if theirs > 0:
      text += f", {ours / theirs:.2f} times that of {other}"
    else:
      text += f"; that of {other} is 0"
    test = found.differences.get(other, {}).get(name)
    if test is not None and test.p >= _CHANCE:
      text += "; the difference may be chance"
    lines.append(f"{text}.")
  return lines


def table(found: Results) -> str:
  """Formats the results as an aligned table with a column per ranking."""
  # `ndcg_xir_compat` is only in metrics.json, to compare with the paper.
  names = [
    name
    for name in found.metrics["model"]
    if not name.startswith("ndcg_xir_compat")
  ]
  rows = [["", *found.metrics]]
  rows += [[name, *_cells(found.metrics, name)] for name in names]
  both = ("recall", "ndcg")
  of = found.histories
  if of is not None:
    unfiltered = Part(found.queries, found.pairs, of.unfiltered)
    title = "with seen candidates left in"
    rows += _section(title, unfiltered, both, found.ks)
  if found.by_query[COLD].queries:
    for part, values in found.by_query.items():
      title = f"queries {part}: {values.queries:,}, {values.pairs:,} pairs"
      rows += _section(title, values, both, found.ks)
  if of is not None:
    parts = {f"rows with {name}": part for name, part in of.by_length.items()}
    if of.by_time[TIED].queries:
      parts |= {f"rows with {name}": part for name, part in of.by_time.items()}
    for title, values in parts.items():
      title = f"{title}: {values.queries:,}"
      rows += _section(title, values, both, found.ks[:1])
  for band, values in found.by_training_count.items():
    title = f"candidates with {band} training rows: {values.pairs:,} pairs"
    rows += _section(title, values, ("recall",), found.ks)
  width = max(len(row[0]) for row in rows if len(row) > 1)
  return "\n".join(
    "".join([row[0].ljust(width), *(cell.rjust(12) for cell in row[1:])])
    for row in rows
  )


def _section(
  title: str, part: Part, names: Sequence[str], ks: Sequence[int]
) -> list[list[str]]:
  rows = [[title]]
  if part.metrics:
    rows += [
      [f"  {name}@{k}", *_cells(part.metrics, f"{name}@{k}")]
      for name in names
      for k in ks
    ]
  return rows


def _cells(metrics: Mapping[str, Metrics], name: str) -> list[str]:
  return [f"{values[name]:.4f}" for values in metrics.values()]
