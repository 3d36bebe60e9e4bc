"""Makes tables and figures from the files of `results.collect`."""

import itertools
import pathlib
from collections.abc import Mapping

import numpy as np

from pipelines.evaluation import intervals
from pipelines.reproduction import experiments, files
from pipelines.training import methods
from xir_tfrs.data import errors

FILE_NAME = "report.md"
# The paper's Table 2 on Gowalla. Compare its NDCG with `ndcg_xir_compat`, which
# has the defect of the released code.
PAPER = {
  "ssl": {"recall@10": 0.1105, "ndcg_xir_compat@10": 0.1381},
  "ssl_pop": {"recall@10": 0.1124, "ndcg_xir_compat@10": 0.1479},
  "mns": {"recall@10": 0.1130, "ndcg_xir_compat@10": 0.1486},
  "g_tower": {"recall@10": 0.1176, "ndcg_xir_compat@10": 0.1500},
  "bir": {"recall@10": 0.1157, "ndcg_xir_compat@10": 0.1523},
  "xir": {"recall@10": 0.1169, "ndcg_xir_compat@10": 0.1543},
}
_SHOWN = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
_TESTED = "ndcg@20"
# A shorter way from the baseline to the ceiling is mostly chance.
_SHORTEST_WAY = 0.02
_CHANCE = 0.01


def write(output: str) -> list[pathlib.Path]:
  """Writes OUTPUT/report.md and a PNG for each results file with a figure.

  Returns:
    The written files.

  Raises:
    DataError: There are no results, or a file of them is damaged.
  """
  folder = pathlib.Path(output)
  found = load(folder)
  if not found:
    raise errors.DataError(
      "holds no results; make some with --experiment NAME --data DATA "
      f"--output {folder}",
      path=folder,
    )
  written, parts = [], ["# Results\n"]
  for name, result in found.items():
    parts.append(f"## {result.title} ({result.data.name})\n")
    parts.append(f"After {result.epoch} epochs.\n")
    parts.append(table(result))
    if result.shows != "table" and result.cases:
      path = folder / f"{name}.png"
      draw(result, path)
      written.append(path)
      parts.append(f"![{result.title}]({path.name})\n")
  if overview := cells(found):
    parts.append(f"## When the cache pays: {_TESTED} in all cells\n")
    parts.append(overview)
  path = folder / FILE_NAME
  path.write_text("\n".join(parts), encoding="utf-8")
  return [*written, path]


def load(folder: pathlib.Path) -> dict[str, files.Result]:
  """Reads results by file name, in the order of `EXPERIMENTS`."""
  found = {path.stem: files.read_result(path) for path in folder.glob("*.json")}
  order = list(experiments.EXPERIMENTS)
  return dict(
    sorted(
      found.items(), key=lambda item: (order.index(item[1].experiment), item[0])
    )
  )


def table(result: files.Result) -> str:
  """Returns the Markdown table of an experiment, without missing cases."""
  if not result.cases:
    return ""
  if result.shows == "occurrence":
    return _occurrence_table(result)
  compat = result.experiment in ("table2", "slow")
  paper = PAPER if compat and "gowalla" in result.data.name else {}
  tests = {c.case: c for c in result.comparisons}
  header = ["", *_SHOWN]
  if compat:
    header.append("compat NDCG@10")
  if paper:
    header += ["paper R@10", "paper N@10"]
  header.append(f"{_TESTED} against {result.baseline}")
  ceiling = experiments.EXPERIMENTS[result.experiment].ceiling
  if ceiling:
    header.append(f"of the way to {methods.TASKS[ceiling].title}")
  header.append("seeds")
  header += ["s/epoch", "GiB"]
  rows = []
  for case in result.cases:
    points = _points(result, case)
    row = [case.title, *(_mean(points, name) for name in _SHOWN)]
    if compat:
      row.append(_mean(points, "ndcg_xir_compat@10"))
    if paper:
      row += [f"{value:.4f}" for value in paper[case.task].values()]
    row.append(_test(tests.get(case.name)))
    if ceiling:
      row.append(_way(result, case, ceiling))
    row.append(", ".join(str(run.seed) for run in case.runs))
    seconds = np.median([run.seconds_per_epoch for run in case.runs])
    row.append(f"{seconds:.1f}")
    row.append(f"{max(run.peak_gib for run in case.runs):.2f}")
    rows.append(row)
  return _markdown(header, rows)


def cells(results: Mapping[str, files.Result]) -> str:
  """Returns the Markdown table of all experiments with a ceiling.

  A row is a cell: a data set, a tower and a batch. It has the metric of the
  baseline, and how far the other methods are from it; what is more than chance
  is bold. Nothing without such an experiment.
  """
  rows: list[tuple[tuple[str, ...], dict[str, str], int]] = []
  for result in results.values():
    if not experiments.EXPERIMENTS[result.experiment].ceiling:
      continue
    tests = {c.case: c.metrics[_TESTED] for c in result.comparisons}
    for _, (first, *others) in itertools.groupby(
      result.cases, lambda case: case.x
    ):
      base = _average(result, first, _TESTED)
      row = {methods.TASKS[first.task].title: f"{base:.4f}"}
      for case in others:
        if case.name in tests:
          title = methods.TASKS[case.task].title
          row[title] = _relative(tests[case.name], base)
      tower, batch = (
        first.settings[name] for name in ("query_tower", "global_batch_size")
      )
      cell = result.data.name, f"{tower}", f"{batch:,}"
      rows.append((cell, row, len(first.runs)))
  if not rows:
    return ""
  columns = dict.fromkeys(title for _, row, _ in rows for title in row)
  return _markdown(
    ["data", "tower", "batch", *columns, "seeds"],
    [
      [*cell, *(row.get(title, "") for title in columns), f"{seeds}"]
      for cell, row, seeds in rows
    ],
  )


def _relative(test: intervals.PairedTest, baseline: float) -> str:
  text = f"{test.difference / baseline:+.1%}"
  return f"**{text}**" if test.p < _CHANCE else text


def _occurrence_table(result: files.Result) -> str:
  tenths = [f"{number}" for number in range(1, 11)]
  header = ["tenth of the catalogue, by popularity", *tenths, "distinct"]
  rows = []
  for case in result.cases:
    for run in case.runs:
      shares = run.occurrence
      if not rows:
        rows.append(["interactions", *_percent(shares.interactions), ""])
      title = f"{case.title}, {run.epochs} epochs, seed {run.seed}"
      rows.append([f"{title}: draws", *_percent(shares.draws), ""])
      distinct = f"{shares.distinct:.1%}"
      rows.append([f"{title}: cache", *_percent(shares.cache), distinct])
  return _markdown(header, rows)


def _points(result: files.Result, case: files.CaseResult) -> list[files.Point]:
  """Metrics of the runs of a case, after the epoch of the comparison."""
  points = [run.after(result.epoch) for run in case.runs]
  return [point for point in points if point is not None]


def _average(result: files.Result, case: files.CaseResult, name: str) -> float:
  """A metric of a case, on average over its runs."""
  return float(np.mean([point[name] for point in _points(result, case)]))


def _mean(points: list[files.Point], name: str) -> str:
  values = [point[name] for point in points]
  text = f"{np.mean(values):.4f}"
  if len(values) > 1:
    text += f" ± {np.std(values, ddof=1):.4f}"
  return text


def _test(comparison: files.Comparison | None) -> str:
  if comparison is None:
    return ""
  test = comparison.metrics[_TESTED]
  return f"{test.difference:+.4f} ({test.p_text})"


def _way(result: files.Result, case: files.CaseResult, ceiling: str) -> str:
  """How much of the way from the baseline to the ceiling a case goes.

  Nothing for the two themselves; "short" where there is little or no way.
  """
  same = [other for other in result.cases if other.x == case.x]
  ends = [same[0], *(other for other in same if other.task == ceiling)]
  if len(ends) < 2 or case in ends:
    return ""
  first, last, mine = (_average(result, one, _TESTED) for one in (*ends, case))
  if last - first < _SHORTEST_WAY * first:
    return "short"
  return f"{(mine - first) / (last - first):.0%}"


def _percent(shares: tuple[float, ...]) -> list[str]:
  return [f"{share:.1%}" for share in shares]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
  lines = [header, ["---"] * len(header), *rows]
  return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def draw(result: files.Result, path: pathlib.Path) -> None:
  """Draws the figure of an experiment."""
  import matplotlib  # Not needed to train.

  matplotlib.use("Agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
  {"curves": _curves, "sweep": _sweep, "occurrence": _occurrence}[result.shows](
    result, axes
  )
  figure.suptitle(f"{result.title} ({result.data.name})")
  figure.tight_layout()
  figure.savefig(path, dpi=100, metadata={"Software": None})
  pyplot.close(figure)


def _curves(result, axes) -> None:
  for axis, metric in zip(axes, ("recall@20", "ndcg@20"), strict=True):
    for case in result.cases:
      run = case.runs[0]
      axis.plot(
        [point["epoch"] for point in run.curve],
        [point[metric] for point in run.curve],
        label=case.title,
      )
    axis.set(xlabel="epoch", ylabel=metric)
    axis.legend()


def _sweep(result, axes) -> None:
  """Draws a line per method along the axis, flat for cases without `x`."""
  for axis, metric in zip(axes, ("recall@20", "ndcg@20"), strict=True):
    lines = {}
    for case in result.cases:
      value = _average(result, case, metric)
      if case.x is None:
        axis.axhline(value, color="grey", linestyle=":", label=case.title)
      else:
        lines.setdefault(case.task, []).append((case.x, value))
    for task, points in lines.items():
      axis.plot(
        *zip(*sorted(points), strict=True),
        marker="o",
        label=methods.TASKS[task].title,
      )
    axis.set(xlabel=result.axis, ylabel=metric)
    places = [x for points in lines.values() for x, _ in points]
    if places and min(places) > 0 and max(places) / min(places) > 10:
      axis.set_xscale("log", base=2)
    axis.legend()


def _occurrence(result, axes) -> None:
  for axis, share in zip(axes, ("draws", "cache"), strict=True):
    for number, case in enumerate(result.cases):
      shares = case.runs[0].occurrence
      if not number:
        axis.plot(
          range(1, 11),
          shares.interactions,
          color="grey",
          linestyle=":",
          label="interactions",
        )
      axis.plot(
        range(1, 11), getattr(shares, share), marker="o", label=case.title
      )
    axis.set(
      xlabel="tenth of the catalogue, by popularity", ylabel=f"share of {share}"
    )
    axis.legend()
