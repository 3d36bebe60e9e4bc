"""What the runs of an experiment came to: one JSON file, small enough to keep.

The file holds what tables and figures are drawn from, so that they can be drawn
again without the runs.
"""

import collections
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from pipelines.reproduction import experiments, runs
from xir_tfrs.data import json_files
from xir_tfrs.data import schema as schema_lib

FORMAT = 2
METRICS = (
  "recall@10",
  "recall@20",
  "recall@50",
  "ndcg@10",
  "ndcg@20",
  "ndcg@50",
  "ndcg_xir_compat@10",
)


def run_folder(output: str, data: str, case: experiments.Case) -> pathlib.Path:
  """Where the runs of a case are kept, but for their seed."""
  return pathlib.Path(output) / "runs" / pathlib.Path(data).name / case.name


def collect(
  experiment: str, data: str, output: str, epochs: int | None = None
) -> pathlib.Path:
  """Writes OUTPUT/EXPERIMENT_DATA.json from the runs that are finished.

  Args:
    experiment: Name in `EXPERIMENTS`.
    data: Directory made by `pipelines.prepare`.
    output: Where runs are kept.
    epochs: Runs are compared after so many; None: what the experiment says.
      Those that have not come so far are left out.
  """
  plan = experiments.EXPERIMENTS[experiment]
  schema = schema_lib.Schema.load(data)
  epoch = epochs or plan.epochs
  found = {
    case.name: [
      (path, state)
      for path, state in _runs_of(run_folder(output, data, case))
      if epoch in {point["epoch"] for point in state["curve"]}
    ]
    for case in plan.cases
  }
  result = {
    "format": FORMAT,
    "experiment": experiment,
    "title": plan.title,
    "data": {
      "name": pathlib.Path(data).name,
      "split": schema.split.kind,
      "split_seed": schema.split.seed,
      "rows": schema.rows,
      "queries": schema.num_queries,
      "candidates": schema.num_candidates,
    },
    "ranked": plan.split,
    "shows": plan.shows,
    "axis": plan.axis,
    "cases": [
      {
        "name": case.name,
        "title": plan.title_of(case),
        "task": case.task,
        "preset": case.preset,
        "settings": dict(case.settings),
        "x": case.x,
        "runs": [_summary(state) for _, state in found[case.name]],
      }
      for case in plan.cases
      if found[case.name]
    ],
    "epoch": epoch,
    "baseline": plan.baseline_title,
    "comparisons": _comparisons(plan, found, epoch),
  }
  path = pathlib.Path(output) / f"{experiment}_{pathlib.Path(data).name}.json"
  json_files.write(path, result)
  return path


def paired_test(differences: np.ndarray) -> dict[str, float]:
  """Whether the mean over queries is 0.

  Args:
    differences: [num_queries] of a metric, one method's minus another's.

  Returns:
    `difference`, its `standard_error`, and two-sided `p` by the normal
    approximation of the paired t-test; queries come by the thousand.
  """
  difference = float(differences.mean())
  error = float(differences.std(ddof=1) / math.sqrt(len(differences)))
  p = math.erfc(abs(difference) / error / math.sqrt(2.0)) if error else 1.0
  return {"difference": difference, "standard_error": error, "p": p}


def _runs_of(folder: pathlib.Path) -> list[tuple[pathlib.Path, dict[str, Any]]]:
  """(folder, run.json) of each seed that was ranked at least once."""
  found = [
    (path, runs.read(str(path)))
    for path in folder.parent.glob(folder.name + "-seed*")
  ]
  found = [(path, state) for path, state in found if state]
  return sorted(found, key=lambda pair: pair[1]["seed"])


def _summary(state: dict[str, Any]) -> dict[str, Any]:
  stages = state["stages"]
  # Of the stage that was disturbed least.
  step_ms = min((s["step_ms"] for s in stages if s["step_ms"]), default=0.0)
  peaks = [s["peak_gib"] for s in stages if s["peak_gib"]]
  summary = {
    "seed": state["seed"],
    "epochs": state["curve"][-1]["epoch"],
    "steps_per_epoch": state["steps_per_epoch"],
    "seconds_per_epoch": round(step_ms * state["steps_per_epoch"] / 1e3, 2),
    "peak_gib": max(peaks),
    "curve": [
      {"epoch": point["epoch"]} | {m: round(point[m], 6) for m in METRICS}
      for point in state["curve"]
    ],
  }
  if "occurrence" in state:
    summary["occurrence"] = state["occurrence"]
  return summary


def _comparisons(plan, found, epoch: int) -> list[dict[str, Any]]:
  """Each case against its baseline, over the seeds they have in common."""
  comparisons = []
  for case in plan.cases:
    baseline = plan.baseline_of(case)
    base = _by_seed(found[baseline.name])
    mine = _by_seed(found[case.name])
    seeds = sorted(mine.keys() & base.keys())
    if case is baseline or not seeds:
      continue
    tests = {
      metric: paired_test(differences)
      for metric, differences in _differences(mine, base, seeds, epoch).items()
    }
    comparisons.append({"case": case.name, "seeds": seeds, "metrics": tests})
  return comparisons


def _by_seed(found) -> dict[int, pathlib.Path]:
  return {state["seed"]: path for path, state in found}


def _differences(
  mine, base, seeds: Iterable[int], epoch: int
) -> dict[str, np.ndarray]:
  """By metric, of each query, the mean over the seeds."""
  found = collections.defaultdict(list)
  for seed in seeds:
    ours = runs.by_query(str(mine[seed]), epoch)
    theirs = runs.by_query(str(base[seed]), epoch)
    for metric in runs.PAIRED:
      found[metric].append(
        ours[metric].astype(np.float64) - theirs[metric].astype(np.float64)
      )
  return {metric: np.mean(values, axis=0) for metric, values in found.items()}
