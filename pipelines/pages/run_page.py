"""The page of one run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from pipelines.evaluation import examples, report
from pipelines.pages import charts, found
from pipelines.pages.page import Card, Cell, Chart, Named, Page, Section, Table
from xir_tfrs.data import errors, schema
from xir_tfrs.serving import manifest

_EXPLAINED = {
  "cache_distinct": "Share of distinct ids in the cache.",
  "cache_coverage": "Share of the catalogue that is in the cache.",
  "cache_turnover": "Share of the cache that the last update replaced.",
  "cache_age": "Average number of updates since an entry was added.",
  "warm": "1 if the bank of earlier batches is used.",
  "bank_filled": "Share of the bank that is in use.",
  "staleness": "Squared distance of the bank's vectors to the current ones.",
}
_NOT_HEALTH = ("loss", "learning_rate", "examples_per_second")
_KEPT = ("recall", "ndcg", "mrr", "hit")
_LEVEL = "95 % confidence intervals, by users"


def make(run: found.Found, index: manifest.Index | None = None) -> Page:
  """Makes the page of a run; `index` is that of its bundle, if exported."""
  results = run.results
  said = report.summary(results).splitlines()
  task = run.config.train.get("task")
  return Page(
    title=f"{run.name}: {task} on {_data_name(run)}" if task else run.name,
    says=tuple(line.rstrip(".") + "." for line in said),
    facts=_facts(run),
    warnings=results.warnings,
    sections=tuple(sections(run, index)),
  )


def sections(
  run: found.Found, index: manifest.Index | None = None
) -> Iterable[Section]:
  """Yields the sections for which there is data."""
  results = run.results
  yield from curves(run)
  yield _metrics(run)
  yield from _by_popularity(run)
  yield from _by_length(run)
  yield _exposure(results)
  yield from _health(run)
  yield from _who_is_drawn(results)
  yield from _estimator(run)
  if index is not None and index.curve:
    yield _index(index)
  yield from _examples(run)
  yield settings([run])


def _data_name(run: found.Found) -> str:
  try:
    return schema.Schema.load(run.config.data).name
  except errors.DataError:  # The data has moved.
    return run.config.data.rstrip("/").rpartition("/")[2]


def _facts(run: found.Found) -> dict[str, str]:
  results, k = run.results, run.shown_k
  name = f"recall@{k}"
  ours = results.metrics["model"]
  facts = {
    name: number(ours[name]),
    f"ndcg@{k}": number(ours[f"ndcg@{k}"]),
    f"coverage@{k}": f"{ours[f'coverage@{k}']:.1%}",
    "queries": f"{results.queries:,}",
    "candidates": f"{results.candidates:,}",
  }
  speeds = run.curve("train", "examples_per_second")[1]
  if speeds:
    middle = sorted(speeds)[len(speeds) // 2]
    facts["training, median"] = f"{middle:,.0f} examples/s"
  return facts


def number(value: float) -> str:
  """Formats a metric."""
  return f"{value:.4f}"


def ends(interval: Sequence[float] | None) -> str:
  """Formats an interval; "" for None."""
  if interval is None:
    return ""
  return f"{interval[0]:.4f} to {interval[1]:.4f}"


def curves(run: found.Found) -> Iterable[Section]:
  """Yields the section of loss and validation by epoch."""
  made = []
  epochs, losses = run.curve("train", "loss")
  if losses:
    first, last = losses[0], losses[-1]
    verb = "falls" if last < first else "goes"
    made.append(
      Chart(
        charts.lines(
          "Training loss by epoch",
          {"loss": (epochs, losses)},
          x="epoch",
          y="loss",
        ),
        f"The training loss {verb} from {first:.3f} to {last:.3f} in "
        f"{epochs[-1]:.3g} epochs.",
      )
    )
  metric = run.config.train.get("metric", "ndcg@20")
  series = {n: run.curve("validation", n) for n in (metric, "recall@20")}
  series = {name: curve for name, curve in series.items() if curve[1]}
  if series:
    shown, (epochs, values) = next(iter(series.items()))
    best = max(range(len(values)), key=values.__getitem__)
    made.append(
      Chart(
        charts.lines(
          "Validation by epoch",
          series,
          x="epoch",
          y="validation",
          mark=(epochs[best], values[best]),
        ),
        f"The best {shown} on the validation split is {values[best]:.4f}, "
        f"after epoch {epochs[best]:.3g} of {epochs[-1]:.3g}.",
      )
    )
  if made:
    yield Section("Training", charts=tuple(made))


def _metrics(run: found.Found) -> Section:
  results, k = run.results, run.shown_k
  names = [f"{kind}@{k}" for kind in ("recall", "ndcg")]
  chart = charts.bars(
    f"{' and '.join(names)} by ranking",
    names,
    {r: [values[n] for n in names] for r, values in results.metrics.items()},
    y=f"{results.split} split",
    ends={
      r: [of_ranking.get(n) for n in names]
      for r, of_ranking in results.intervals.items()
    },
  )
  return Section(
    "Metrics",
    charts=(Chart(chart, _beside(results, names[0])),),
    tables=(metrics_table(results), *_differences(results)),
  )


def _beside(results: report.Results, name: str) -> str:
  ours = results.metrics["model"][name]
  text = f"{name} of the model is {ours:.4f}"
  others = [
    f"{ranking} {values[name]:.4f}"
    for ranking, values in results.metrics.items()
    if ranking != "model"
  ]
  return f"{text}; {', '.join(others)}. Lines on the bars are {_LEVEL}."


def metrics_table(results: report.Results) -> Table:
  """Makes the table of metrics by ranking, with intervals."""
  names = [
    name for name in results.metrics["model"] if name.partition("@")[0] in _KEPT
  ]
  rows = []
  for name in names:
    values = {r: metrics[name] for r, metrics in results.metrics.items()}
    # The oracle knows the truth, so it does not compete.
    best = max(value for r, value in values.items() if r != "oracle")
    cells = [
      Cell(
        number(value),
        ends(results.intervals.get(ranking, {}).get(name)),
        value == best and ranking != "oracle",
      )
      for ranking, value in values.items()
    ]
    rows.append((name, *cells))
  return Table(
    "metrics",
    ("", *results.metrics),
    tuple(rows),
    f"Means over {results.queries:,} queries; small print: {_LEVEL}.",
  )


def _differences(results: report.Results) -> Iterable[Table]:
  if not results.differences:
    return
  names = list(next(iter(results.differences.values())))
  yield Table(
    "differences",
    ("the model minus", *results.differences),
    tuple(
      (
        name,
        *(
          Cell(f"{test[name].difference:+.4f}", test[name].p_text)
          for test in results.differences.values()
        ),
      )
      for name in names
    ),
    "Mean difference per query to the other ranking, and the p-value of the "
    "paired test that it is 0.",
  )


def _by_popularity(run: found.Found) -> Iterable[Section]:
  parts = run.results.by_training_count
  says = (
    "Candidates by number of training rows: gains on rare candidates often "
    "come with losses on frequent ones."
  )
  yield from _parts(run, "By popularity", "popularity", says, parts, "pairs")


def _by_length(run: found.Found) -> Iterable[Section]:
  of = run.results.histories
  if of is not None:
    says = "Rows by the number of events that they see."
    parts = of.by_length
  else:
    says = "Queries by number of earlier candidates."
    parts = run.results.by_seen
  title = "By length of the history"
  yield from _parts(run, title, "length", says, parts, "queries")


def _parts(
  run: found.Found,
  title: str,
  name: str,
  says: str,
  parts: Mapping[str, report.Part],
  unit: str,
) -> Iterable[Section]:
  """Recall of parts of the queries or pairs."""
  parts = {key: part for key, part in parts.items() if part.metrics}
  if not parts:
    return
  metric = f"recall@{run.shown_k}"
  rankings = list(run.results.metrics)
  values = {
    r: [part.metrics[r][metric] for part in parts.values()] for r in rankings
  }
  ends_of = {
    r: [part.intervals.get(r, {}).get(metric) for part in parts.values()]
    for r in rankings
  }
  best = max(parts, key=lambda key: parts[key].metrics["model"][metric])
  worst = min(parts, key=lambda key: parts[key].metrics["model"][metric])
  sees = (
    f"The model's {metric} is {parts[best].metrics['model'][metric]:.4f} with "
    f"{best}, and {parts[worst].metrics['model'][metric]:.4f} with {worst}."
  )
  rows = tuple(
    (
      key,
      f"{getattr(part, unit):,}",
      *(
        Cell(
          number(part.metrics[r][metric]),
          ends(part.intervals.get(r, {}).get(metric)),
        )
        for r in rankings
      ),
    )
    for key, part in parts.items()
  )
  yield Section(
    title,
    says=(says,),
    charts=(
      Chart(
        charts.bars(
          f"{metric} {title.lower()}",
          list(parts),
          values,
          y=metric,
          ends=ends_of,
        ),
        sees,
      ),
    ),
    tables=(Table(name, (metric, unit, *rankings), rows),),
  )


def _exposure(results: report.Results) -> Section:
  rows = []
  for k in results.ks:
    cells = [
      f"{metrics[f'coverage@{k}']:.1%}" for metrics in results.metrics.values()
    ]
    rows.append((f"coverage@{k}", *cells))
  for k in results.ks if results.concentration else ():
    of_k = [
      number(results.concentration[r][f"gini@{k}"]) for r in results.metrics
    ]
    rows.append((f"gini@{k}", *of_k))
  return Section(
    "Coverage of the catalogue",
    says=(
      "Coverage is the share of the catalogue that appears in the top k of at "
      "least one query. Gini is 0 if all candidates are shown equally often, "
      "and near 1 if a few candidates fill all lists.",
    ),
    tables=(Table("exposure", ("", *results.metrics), tuple(rows)),),
  )


def _health(run: found.Found) -> Iterable[Section]:
  made = []
  for name in run.names("train"):
    if name in _NOT_HEALTH:
      continue
    epochs, values = run.curve("train", name)
    title = name.replace("_", " ")
    text = _EXPLAINED.get(name, f"{name}, as reported by the task.")
    made.append(
      Chart(
        charts.lines(
          f"{title} by epoch", {title: (epochs, values)}, x="epoch", y=title
        ),
        f"{text} At the end: {values[-1]:.4g}.",
      )
    )
  if made:
    cached = any(name.startswith("cache_") for name in run.names("train"))
    title = "Health of the cache" if cached else "State of the task"
    yield Section(title, charts=tuple(made))


def _who_is_drawn(results: report.Results) -> Iterable[Section]:
  of = results.occurrence
  if of is None:
    return
  tenths = [str(number) for number in range(1, len(of.draws) + 1)]
  series = {
    "interactions": of.interactions,
    "draws": of.draws,
    "cache": of.cache,
  }
  chart = charts.bars(
    "Shares of the tenths of the catalogue", tenths, series, y="share"
  )
  yield Section(
    "Popularity of draws and cache",
    says=(
      "Tenths of the catalogue, most popular first: the share of each in the "
      "training rows, in all draws so far, and in the cache at the checkpoint.",
    ),
    charts=(
      Chart(
        chart,
        f"The most popular tenth has {of.interactions[0]:.1%} of the training "
        f"rows, {of.draws[0]:.1%} of the draws and {of.cache[0]:.1%} of the "
        f"cache. {of.distinct:.1%} of the cache are distinct candidates.",
      ),
    ),
    tables=(
      Table(
        "drawn",
        ("share of", *tenths),
        tuple(
          (name, *(f"{value:.1%}" for value in values))
          for name, values in series.items()
        ),
      ),
    ),
  )


def _estimator(run: found.Found) -> Iterable[Section]:
  """Yields the section of --estimator_probe."""
  names = run.names("estimator")
  if not names:
    return
  shown = [
    name
    for name in ("cosine", "bias", "pool_mass", "cache_mass")
    if name in names
  ]
  chart = charts.lines(
    "The loss compared with the full softmax",
    {name: run.curve("estimator", name) for name in shown},
    x="epoch",
    y="of the probe",
  )
  last = {name: run.curve("estimator", name)[1][-1] for name in names}
  yield Section(
    "Quality of the loss",
    says=(
      "Its gradient compared with that of the full softmax, on some rows.",
    ),
    charts=(
      Chart(
        chart, "; ".join(f"{name} {last[name]:.4g}" for name in shown) + "."
      ),
    ),
    tables=(
      Table(
        "estimator",
        ("", "at the end"),
        tuple((name, f"{value:.4g}") for name, value in last.items()),
      ),
    ),
  )


def _index(index: manifest.Index) -> Section:
  places, values = (
    [point[name] for point in index.curve]
    for name in ("milliseconds", "recall")
  )
  series = {"tried": (places, values)}
  names = ("num_leaves_to_search", "num_reorder")
  chosen = [
    point
    for point in index.curve
    if all(point.get(n) == index.settings.get(n) for n in names)
  ]
  says = "Each point is a setting of the index."
  if chosen:
    point = chosen[0]
    series["chosen"] = [point["milliseconds"]], [point["recall"]]
    says = (
      f"The chosen settings find {point['recall']:.1%} of the results of exact "
      f"search, in {point['milliseconds']:.3f} ms per query."
    )
  if index.target_recall is not None:
    says += f" The dashed line is the target recall, {index.target_recall}."
  return Section(
    "Recall and latency of the index",
    charts=(
      Chart(
        charts.points(
          "Recall of the index by latency",
          series,
          x="ms per query",
          y="recall@10 against exact search",
          level=index.target_recall,
        ),
        says,
      ),
    ),
    tables=(
      Table(
        "index",
        ("recall against exact search", "recall"),
        tuple((f"@{k}", number(v)) for k, v in index.recall.items()),
        f"Recall of the built index, on {index.recall_queries:,} queries.",
      ),
    )
    if index.recall
    else (),
  )


def _examples(run: found.Found) -> Iterable[Section]:
  shown = run.examples()
  if not shown:
    return
  yield Section(
    "Example queries",
    says=(
      f"{len(shown)} random queries. Histories show the newest event first. A "
      "tick marks candidates that the query took next.",
    ),
    cards=tuple(
      Card(
        f"Query {example.query}",
        {
          "History": _named(example.history),
          "Recommended": _named(example.recommended),
          "Took next": _named(example.taken),
        },
      )
      for example in shown
    ),
  )


def _named(items: Sequence[examples.Item]) -> tuple[Named, ...]:
  return tuple(
    Named(item.title or item.id, item.id, item.taken) for item in items
  )


def settings(runs: Sequence[found.Found], differing: bool = False) -> Section:
  """Makes the section of the runs' settings, or of those that differ."""
  names = dict.fromkeys(name for run in runs for name in run.config.train)
  rows = []
  for name in names:
    values = [_value(run.config.train.get(name)) for run in runs]
    if differing and (name == "model_dir" or len(set(values)) == 1):
      continue
    rows.append((name, *values))
  return Section(
    "Settings that differ" if differing else "Settings",
    says=() if rows else ("None.",),
    tables=(Table("settings", ("", *(run.name for run in runs)), tuple(rows)),)
    if rows
    else (),
    folded=not differing,
  )


def _value(value: object) -> str:
  if value is None:
    return "–"
  if isinstance(value, float) and math.isfinite(value):
    return f"{value:g}"
  return value if isinstance(value, str) else json.dumps(value)
