"""Collects the runs of an experiment in one small JSON file.

Tables and figures are made from this file and do not need the runs.
"""

import collections
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from pipelines.evaluation import intervals
from pipelines.reproduction import experiments, files, runs
from xir_tfrs.data import directory, json_files

# The folder and the state of a run.
_Found = tuple[pathlib.Path, files.RunState]

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
  """Returns the folder of the runs of a case, without the seed."""
  return pathlib.Path(output) / "runs" / pathlib.Path(data).name / case.name


def collect(
  experiment: str, data: str, output: str, epochs: int | None = None
) -> pathlib.Path:
  """Writes OUTPUT/EXPERIMENT_DATA.json from the finished runs.

  Args:
    experiment: Name in `EXPERIMENTS`.
    data: Directory written by `pipelines.prepare`.
    output: Directory of the runs.
    epochs: The epoch after which runs are compared; by default that of the
      experiment. Runs that were not ranked there are left out.

  Raises:
    DataError: A run is one on other data.
  """
  plan = experiments.EXPERIMENTS[experiment]
  opened = directory.DataDir(data)
  schema = opened.schema
  epoch = epochs or plan.epochs
  found = {
    case.name: [
      (path, state)
      for path, state in _runs_of(run_folder(output, data, case), opened)
      if state.is_ranked(epoch)
    ]
    for case in plan.cases
  }
  name = pathlib.Path(data).name
  result = files.Result(
    experiment=experiment,
    title=plan.title,
    data=files.Data(
      name=name,
      split=schema.split.kind,
      split_seed=schema.split.seed,
      rows=schema.rows,
      queries=schema.num_queries,
      candidates=schema.num_candidates,
    ),
    ranked=plan.split,
    shows=plan.shows,
    axis=plan.axis,
    cases=tuple(
      _case(plan, case, found[case.name])
      for case in plan.cases
      if found[case.name]
    ),
    epoch=epoch,
    baseline=plan.baseline_title,
    comparisons=tuple(_comparisons(plan, found, epoch)),
  )
  path = pathlib.Path(output) / f"{experiment}_{name}.json"
  json_files.write(path, result)
  return path


def _case(
  plan: experiments.Experiment, case: experiments.Case, found: list[_Found]
) -> files.CaseResult:
  return files.CaseResult(
    name=case.name,
    title=plan.title_of(case),
    task=case.task,
    preset=case.preset,
    settings=dict(case.settings),
    x=case.x,
    runs=tuple(_summary(state) for _, state in found),
  )


def _runs_of(folder: pathlib.Path, data: directory.DataDir) -> list[_Found]:
  """Folder and state of each seed that was ranked at least once."""
  found = []
  for path in folder.parent.glob(f"{folder.name}-seed*"):
    state = runs.state_of(path, data)
    if state is not None:
      found.append((path, state))
  return sorted(found, key=lambda pair: pair[1].seed)


def _summary(state: files.RunState) -> files.RunSummary:
  # Times of the stage with the least disturbance.
  times = [s.step_ms for s in state.stages if s.step_ms]
  seconds = min(times, default=0.0) * state.steps_per_epoch / 1e3
  return files.RunSummary(
    seed=state.seed,
    epochs=state.last_epoch,
    steps_per_epoch=state.steps_per_epoch,
    seconds_per_epoch=round(seconds, 2),
    peak_gib=max(s.peak_gib for s in state.stages if s.peak_gib),
    curve=tuple(
      {"epoch": point["epoch"]} | {m: round(point[m], 6) for m in METRICS}
      for point in state.curve
    ),
    occurrence=state.occurrence,
  )


def _comparisons(
  plan: experiments.Experiment, found: Mapping[str, list[_Found]], epoch: int
) -> list[files.Comparison]:
  """Compares each case with its baseline over common seeds."""
  comparisons = []
  for case in plan.cases:
    baseline = plan.baseline_of(case)
    base = _by_seed(found[baseline.name])
    mine = _by_seed(found[case.name])
    seeds = sorted(mine.keys() & base.keys())
    if case is baseline or not seeds:
      continue
    tests = {
      metric: intervals.paired_test(differences)
      for metric, differences in _differences(mine, base, seeds, epoch).items()
    }
    comparisons.append(files.Comparison(case.name, tuple(seeds), tests))
  return comparisons


def _by_seed(found: list[_Found]) -> dict[int, pathlib.Path]:
  return {state.seed: path for path, state in found}


def _differences(
  mine: Mapping[int, pathlib.Path],
  base: Mapping[int, pathlib.Path],
  seeds: Iterable[int],
  epoch: int,
) -> dict[str, np.ndarray]:
  """Metric -> [num_queries] differences, the mean over the seeds."""
  found = collections.defaultdict(list)
  for seed in seeds:
    ours = runs.by_query(str(mine[seed]), epoch)
    theirs = runs.by_query(str(base[seed]), epoch)
    for metric in runs.PAIRED:
      found[metric].append(
        ours[metric].astype(np.float64) - theirs[metric].astype(np.float64)
      )
  return {metric: np.mean(values, axis=0) for metric, values in found.items()}
