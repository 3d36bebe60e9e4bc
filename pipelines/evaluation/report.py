"""What an evaluation finds: metrics.json, the table, and what to look at."""

import os
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

import xir_tfrs as xir
from pipelines.evaluation import rankings, split
from xir_tfrs.data import json_files

FORMAT = 2
WARM, COLD = "with training rows", "without training rows"
# Candidates by their training rows: (name, fewest, most).
BANDS = (
  ("at most 5", 0, 5),
  ("6 to 20", 6, 20),
  ("more than 20", 21, np.iinfo(np.int64).max),
)
# Rows by the events that they see: (name, fewest, most).
LENGTHS = (
  ("no event", 0, 0),
  ("1 to 4 events", 1, 4),
  ("5 to 9 events", 5, 9),
  ("10 to 19 events", 10, 19),
  ("20 or more events", 20, np.iinfo(np.int64).max),
)
TIED, UNTIED = "the time of the row before", "a time of their own"
Metrics = dict[str, float]


class Part(msgspec.Struct, frozen=True):
  """Metrics of some of the queries, or of some of the pairs.

  Attributes:
    queries: Number of queries.
    pairs: Pairs that they should find.
    metrics: By ranking; empty without queries. Coverage is not in it where
      there are other queries too.
  """

  queries: int
  pairs: int
  metrics: dict[str, Metrics]


class Band(Part, frozen=True, kw_only=True):
  """A part in which only some of the candidates are relevant.

  Attributes:
    candidates: How many.
  """

  candidates: int


class OfHistories(msgspec.Struct, frozen=True):
  """What is said of a model of histories alone.

  Attributes:
    length: Newest events that the model encodes.
    ties: Whether a row sees those of its own time; see `data.histories`.
    unfiltered: As `Results.metrics`, with nothing masked.
    by_length: Metrics of rows by how many events they see.
    by_time: Metrics of rows with `TIED`, and of those with `UNTIED`.
  """

  length: int
  ties: str
  unfiltered: dict[str, Metrics]
  by_length: dict[str, Part]
  by_time: dict[str, Part]


class Results(msgspec.Struct, frozen=True, kw_only=True):
  """metrics.json.

  Attributes:
    split: What was ranked.
    checkpoint: Relative to the model's directory.
    queries: Number of queries; of a model of histories, each row is one.
    pairs: Pairs that they should find.
    candidates: Size of the catalogue.
    indexed: Candidates that can be found: those with training rows or side
      features.
    by_popularity: Queries that are answered by popularity, as they have
      neither training rows nor side features.
    ks: Cut-offs.
    rerank_depth: Candidates per query that the ranker ranks again, if the
      model has one.
    metrics: Those of `xir.metrics.full_ranking`, by ranking: `model`;
      `reranked`, if the model has a ranker; `popularity`; `neighbours`, if the
      model is one of histories; `oracle`, if the data was generated.
    by_query: The same of queries with and without training rows.
    by_training_count: The same of candidates by their training rows.
    histories: What is said of a model of histories alone; else None.
    warnings: Sentences.
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
  histories: OfHistories | None = None
  warnings: tuple[str, ...]


def load(path: str | os.PathLike[str]) -> Results:
  """Reads metrics.json.

  Raises:
    DataError: It is missing, damaged or of another version.
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
) -> Results:
  """Ranks, and measures.

  Args:
    model: The model's embeddings.
    others: What else is ranked, by name.
    data: The split.
    ks: Cut-offs.
    checkpoint: What `model` was restored from.
    rerank_depth: See `Results`.
  """
  rankers = {"model": model.with_popularity(data.counts), **others}
  whole = {name: ranker.rank(data, ks) for name, ranker in rankers.items()}
  metrics = {name: ranking.means() for name, ranking in whole.items()}
  by_query = _by_query(whole, data)
  return Results(
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
    by_query=by_query,
    by_training_count={
      name: _band(rankers, whole, data, ks, low, high)
      for name, low, high in BANDS
    },
    histories=_of_histories(rankers, whole, data, ks),
    warnings=_warnings(model, data, by_query[WARM].metrics or metrics, max(ks)),
  )


def _by_query(
  whole: Mapping[str, xir.metrics.Ranking], data: split.EvaluationData
) -> dict[str, Part]:
  """Metrics of queries with, and of those without training rows."""
  return {
    WARM: _part(whole, data, data.warm),
    COLD: _part(whole, data, ~data.warm),
  }


def _part(
  whole: Mapping[str, xir.metrics.Ranking],
  data: split.EvaluationData,
  rows: np.ndarray,
) -> Part:
  """Metrics of some of the queries, `rows` [num_queries] bool."""
  lengths = data.relevant.row_lengths().numpy()
  metrics = {}
  if rows.any():
    metrics = {name: r.means_of(rows) for name, r in whole.items()}
  return Part(int(rows.sum()), int(lengths[rows].sum()), metrics)


def _of_histories(rankers, whole, data, ks) -> OfHistories | None:
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
      name: ranker.rank(unfiltered, ks).means()
      for name, ranker in unmasked.items()
    },
    by_length={
      name: _part(
        whole, data, (past.num_events >= low) & (past.num_events <= high)
      )
      for name, low, high in LENGTHS
    },
    by_time={
      TIED: _part(whole, data, past.tied),
      UNTIED: _part(whole, data, ~past.tied),
    },
  )


def _band(rankers, whole, data, ks, low, high) -> Band:
  """Metrics on candidates with `low` to `high` training rows."""
  wanted = (data.counts >= low) & (data.counts <= high)
  if data.past is not None:
    # Each row has one candidate to find, whose rank stays as it is.
    of_rows = _part(whole, data, wanted[data.past.targets])
    return Band(candidates=int(wanted.sum()), **msgspec.structs.asdict(of_rows))
  part, rows = data.restricted_to(wanted)
  metrics = {}
  if len(rows):
    metrics = {
      name: ranker.rank(part, ks, rows).means()
      for name, ranker in rankers.items()
    }
  return Band(
    candidates=int(wanted.sum()),
    pairs=part.num_pairs,
    queries=len(rows),
    metrics=metrics,
  )


def _warnings(
  model: rankings.Vectors,
  data: split.EvaluationData,
  metrics: Mapping[str, Metrics],
  k: int,
) -> tuple[str, ...]:
  """What deserves a look; `metrics` are those of warm queries, if any."""
  warnings = []
  if data.num_repeated:
    warnings.append(
      f"{data.num_repeated:,} of {data.num_pairs:,} {data.split} pairs were "
      "seen before. They are masked, so they count as misses."
    )
  if _collapsed(model):
    warnings.append(
      "The model has collapsed: it gives every candidate the same score. Look "
      "at the learning rate and the losses in metrics.jsonl."
    )
  ours, baseline = (
    metrics[name][f"ndcg@{k}"] for name in ("model", "popularity")
  )
  if ours < baseline:
    warnings.append(
      f"The model is below popularity (ndcg@{k} {ours:.4f} < {baseline:.4f}): "
      "train longer, or look at the learning rate and the temperature."
    )
  second = metrics.get("reranked", {}).get(f"ndcg@{k}")
  if second is not None and second < ours:
    warnings.append(
      f"Re-ranking makes it worse (ndcg@{k} {second:.4f} < {ours:.4f}): the "
      "ranker is not trained well enough to be used."
    )
  return tuple(warnings)


def _collapsed(model: rankings.Vectors) -> bool:
  """Whether the scores of each query, of a sample, are equal to rounding."""
  queries = model.queries[model.by_model]
  candidates = model.candidates[model.indexed]
  if not len(queries):
    return False
  queries = queries[:: len(queries) // 256 + 1]
  candidates = candidates[:: len(candidates) // 4096 + 1]
  scores = queries @ candidates.T
  return bool((np.ptp(scores, axis=-1) <= 1e-6 * np.abs(scores).max()).all())


def summary(found: Results) -> str:
  """A paragraph of what was ranked."""
  lines = [
    f"{found.checkpoint} on the {found.split} split: {found.queries:,} "
    f"queries, {found.pairs:,} pairs, {found.candidates:,} candidates"
  ]
  of = found.histories
  if of is not None:
    sees = {"strict": "earlier in time", "order": "before it in the file"}
    tied = of.by_time[TIED].queries
    lines.append(
      f"Each row is a query of its own and sees what is {sees[of.ties]}; "
      f"{tied:,} rows ({tied / max(found.queries, 1):.1%}) have the time of "
      "the row before."
    )
  if found.indexed < found.candidates:
    lines.append(
      f"{found.candidates - found.indexed:,} candidates have neither training "
      "rows nor side features: they are not in the index and count as misses."
    )
  if found.by_popularity:
    what = "neither training rows nor side features"
    if of is not None:
      what = "no history that the model knows"
    lines.append(
      f"{found.by_popularity:,} queries have {what}: they are answered by "
      "popularity."
    )
  return "\n".join(lines)


def table(found: Results) -> str:
  """The results as an aligned table, a column per ranking."""
  # `ndcg_xir_compat` is for comparisons with the paper: metrics.json has it.
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
