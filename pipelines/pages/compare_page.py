"""The page of several runs on the same data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from pipelines.evaluation import by_query, intervals
from pipelines.pages import charts, found, run_page
from pipelines.pages.page import Cell, Chart, Page, Section, Table
from xir_tfrs.data import errors

# Tolerance between two float32 means of the same queries.
_ROUNDING = 1e-4


def make(runs: Sequence[found.Found]) -> Page:
  """Makes the page; runs are compared with the first one.

  Raises:
    DataError: The runs were not evaluated on the same queries.
  """
  first = runs[0]
  check(runs)
  results = first.results
  return Page(
    title=f"{len(runs)} runs side by side",
    says=(
      f"The {results.split} split: {results.queries:,} queries, "
      f"{results.candidates:,} candidates.",
    ),
    facts={},
    warnings=tuple(
      f"{run.name}: {warning}"
      for run in runs
      for warning in run.results.warnings
    ),
    sections=tuple(sections(runs)),
  )


def check(runs: Sequence[found.Found]) -> None:
  """Raises a `DataError` unless the runs can be compared."""
  first = runs[0]
  for run in runs[1:]:
    for what, one, other in (
      (
        "data (schema.json)",
        first.config.schema_sha256,
        run.config.schema_sha256,
      ),
      ("split", first.results.split, run.results.split),
      ("cut-offs", first.results.ks, run.results.ks),
      ("queries", _queries(first), _queries(run)),
    ):
      if one != other:
        raise errors.DataError(
          f"has other {what} than {first.place.metrics}; "
          + _remedy(first, run),
          path=run.place.metrics,
        )


def _remedy(*runs: found.Found) -> str:
  """How to evaluate two runs so that they can be compared."""
  of_ids = [run for run in runs if run.results.histories is None]
  ties = [run.results.histories.ties for run in runs if run.results.histories]
  if not (of_ids and ties):
    return "evaluate both with the same options"
  place = of_ids[0].place.metrics.parent
  return "to rank a model of ids row by row as well, run " + errors.command(
    "evaluate", model_dir=place, history_ties=ties[0]
  )


def _queries(run: found.Found) -> tuple[int, int, str | None]:
  of = run.results.histories
  return run.results.queries, run.results.pairs, of and of.ties


def sections(runs: Sequence[found.Found]) -> Iterable[Section]:
  """The parts of the page."""
  yield _metrics(runs)
  if len(runs) > 1:
    yield _tests(runs)
  yield from _curves(runs)
  if len(runs) > 1:
    yield run_page.settings(runs, differing=True)


def _metrics(runs: Sequence[found.Found]) -> Section:
  k = runs[0].shown_k
  names = [
    name
    for name in runs[0].results.metrics["model"]
    if not name.startswith("ndcg_xir_compat")
  ]
  rankings = _rankings(runs)
  rows = []
  for name in names:
    best = max(run.results.metrics["model"][name] for run in runs)
    rows.append(
      (
        name,
        *(
          Cell(
            run_page.number(values[name]),
            run_page.ends(ends.get(name)),
            title in {run.name for run in runs} and values[name] == best,
          )
          for title, (values, ends) in rankings.items()
        ),
      )
    )
  shown = [f"recall@{k}", f"ndcg@{k}"]
  chart = charts.bars(
    "Recall and NDCG of the runs",
    shown,
    {title: [v[n] for n in shown] for title, (v, _) in rankings.items()},
    y=f"{runs[0].results.split} split",
    ends={
      title: [e.get(n) for n in shown] for title, (_, e) in rankings.items()
    },
  )
  best = max(runs, key=lambda run: run.results.metrics["model"][shown[1]])
  return Section(
    "Metrics",
    charts=(
      Chart(
        chart,
        f"{best.name} has the highest {shown[1]}, "
        f"{best.results.metrics['model'][shown[1]]:.4f}. Lines on the bars are "
        "95 % confidence intervals, by users. Runs whose intervals overlap may "
        "still differ; see the paired test.",
      ),
    ),
    tables=(Table("metrics", ("", *rankings), tuple(rows)),),
  )


def _rankings(runs: Sequence[found.Found]):
  """Metrics and intervals by title, of the runs and the baselines."""
  found_ = {
    run.name: (
      run.results.metrics["model"],
      run.results.intervals.get("model", {}),
    )
    for run in runs
  }
  for run in runs:
    for name, metrics in run.results.metrics.items():
      if name in ("popularity", "neighbours", "oracle"):
        ends = run.results.intervals.get(name, {})
        found_.setdefault(name, (metrics, ends))
  return found_


def _tests(runs: Sequence[found.Found]) -> Section:
  """Differences between each run and the first."""
  first, *others = runs
  base = _checked(first)
  tests = {}
  for run in others:
    ours = _checked(run)
    if not np.array_equal(ours[by_query.USERS], base[by_query.USERS]):
      raise errors.DataError(
        f"has other queries than {first.place.by_query}; evaluate both with "
        "the same options",
        path=run.place.by_query,
      )
    tests[run.name] = {
      name: intervals.paired_test(
        ours[name].astype(np.float64) - base[name], base[by_query.USERS]
      )
      for name in base
      if name != by_query.USERS
    }
  rows = tuple(
    (
      name,
      *(
        Cell(
          f"{of_run[name].difference:+.4f}",
          of_run[name].p_text,
          of_run[name].p < 1 - intervals.LEVEL,
        )
        for of_run in tests.values()
      ),
    )
    for name in base
    if name != by_query.USERS
  )
  return Section(
    f"Each run minus {first.name}",
    tables=(
      Table(
        "tests",
        ("", *tests),
        rows,
        "Mean differences over the same queries, and p-values of the paired "
        "test, by users, that they are 0; values below 0.05 are highlighted. "
        "The test is about these two trained models, not about whether another "
        "seed would give the same.",
      ),
    ),
  )


def _checked(run: found.Found) -> dict[str, np.ndarray]:
  """Metrics by query, after a check against metrics.json."""
  arrays = run.by_query()
  metrics = run.results.metrics["model"]
  for name, values in arrays.items():
    if name == by_query.USERS:
      continue
    if abs(float(values.mean(dtype=np.float64)) - metrics[name]) > _ROUNDING:
      raise errors.DataError(
        f"is from another evaluation than {run.place.metrics.name}; run "
        "xir-tfrs evaluate again",
        path=run.place.by_query,
      )
  return arrays


def _curves(runs: Sequence[found.Found]) -> Iterable[Section]:
  metric = runs[0].config.train.get("metric", "ndcg@20")
  made = []
  for kind, name, title in (
    ("validation", metric, f"Validation {metric} by epoch"),
    ("train", "loss", "Training loss by epoch"),
  ):
    series = {run.name: run.curve(kind, name) for run in runs}
    series = {title: curve for title, curve in series.items() if curve[1]}
    if not series:
      continue
    last = "; ".join(
      f"{run} {values[-1]:.4f} after epoch {epochs[-1]:.3g}"
      for run, (epochs, values) in series.items()
    )
    text = f"{title}, at the end: {last}."
    if name == "loss":
      text += " Losses of different methods have different scales."
    made.append(Chart(charts.lines(title, series, x="epoch", y=name), text))
  if made:
    yield Section("Curves", charts=tuple(made))
