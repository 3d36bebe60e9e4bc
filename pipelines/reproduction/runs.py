"""A run of an experiment, trained and ranked in stages.

A run resumes where it stopped: training from its checkpoint, ranking after the
last ranked epoch. Its folder holds the files of `pipelines.train`, and

- `run.json`: settings, curve, time and memory (`files.RunState`);
- `by_query/EPOCH.npz`: metrics of each query after that epoch, for paired
  comparisons of runs.
"""

import dataclasses
import os
import pathlib

import numpy as np

from pipelines.evaluation import drawn, past, rankings
from pipelines.evaluation import split as evaluation_split
from pipelines.reproduction import experiments, files
from pipelines.training import config as configs
from pipelines.training import loop as training
from pipelines.training import schedule
from xir_tfrs.data import directory, errors, json_files
from xir_tfrs.data import runs as run_dirs
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import settings

BY_QUERY = "by_query"
# The metrics of paired comparisons.
PAIRED = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
KS = (10, 20, 50)
# Epochs after which a run is ranked.
_STAGES = (1, 2, 3, 5, 10, 20, 30, 60, 100, 150, 200)


class Interrupted(Exception):
  """Ctrl-C stopped a run, which can be resumed."""


@dataclasses.dataclass(frozen=True)
class Run:
  """A case with one seed on one data directory.

  Attributes:
    case: Method and settings.
    seed: Seed of initial values, shuffling and draws, but not of the split.
    data: Directory written by `pipelines.prepare`.
    folder: Folder of the run.
    epochs: Number of epochs.
    split: The split to rank.
  """

  case: experiments.Case
  seed: int
  data: str
  folder: str
  epochs: int
  split: str

  @property
  def settings(self) -> configs.TrainConfig:
    """The settings of the case; those without a flag go to the task."""
    flags = {field.name for field in dataclasses.fields(configs.TrainConfig)}
    given, arguments = {}, {}
    for name, value in self.case.settings.items():
      (given if name in flags else arguments)[name] = value
    if arguments:
      given["task_arguments"] = arguments
    return configs.from_preset(
      **given
      | {
        "preset": self.case.preset,
        "task": self.case.task,
        "data": self.data,
        "model_dir": self.folder,
        "seed": self.seed,
      }
    )

  @property
  def calendar(self) -> schedule.Schedule:
    """The steps of its epochs."""
    rows = schema_lib.Schema.load(self.data).rows["train"]
    return schedule.Schedule(rows, self.settings)

  @property
  def steps_per_epoch(self) -> int:
    """Steps per epoch."""
    return self.calendar.end_of_epoch(1)

  def config(self) -> configs.TrainConfig:
    """The settings of `pipelines.train`."""
    return dataclasses.replace(
      self.settings,
      epochs=self.epochs,
      # This module ranks, and nothing is selected by validation.
      patience=0,
      eval_epochs=10**6,
      checkpoint_steps=self.steps_per_epoch,
      keep_checkpoints=1,
    )


def by_query(folder: str, epoch: int) -> dict[str, np.ndarray]:
  """Reads the `PAIRED` metrics of each query after a ranked epoch."""
  with np.load(pathlib.Path(folder) / BY_QUERY / f"{epoch}.npz") as arrays:
    return dict(arrays)


def state_of(
  folder: str | os.PathLike[str], data: directory.DataDir
) -> files.RunState | None:
  """Reads the state of a run on `data`; None if it has none yet.

  Raises:
    DataError: The run is one on other data, or its files are damaged.
  """
  state = files.read_run(folder)
  if state is not None:
    # The folder has the name of the data, which may be prepared again.
    run_dirs.check_fit(run_dirs.RunDir(folder).read_config(), data, folder)
  return state


def is_finished(run: Run) -> bool:
  """Whether there is nothing left to do.

  Raises:
    DataError: The folder holds a run on other data, or one that was trained
      beyond the last epoch without a ranking there.
  """
  state = state_of(run.folder, directory.DataDir(run.data))
  if state is None:
    return False
  if state.last_epoch > run.epochs and not state.is_ranked(run.epochs):
    raise _beyond(run, run.epochs)
  return state.is_ranked(run.epochs)


def _beyond(run: Run, epoch: int) -> errors.DataError:
  return errors.DataError(
    f"was trained beyond epoch {epoch} without a ranking there: choose other "
    "--epochs or another --output",
    path=run.folder,
  )


def carry_out(run: Run, progress: bool = True) -> files.RunState:
  """Trains and ranks the missing stages.

  Returns:
    The content of `run.json`.

  Raises:
    Interrupted: Ctrl-C was pressed.
    DataError: The folder holds another run, or data cannot be read.
  """
  state = files.read_run(run.folder)
  done = state.last_epoch if state else 0
  calendar = run.calendar
  rule = past.Rule.of_training(settings.values_of(run.config()))
  data = evaluation_split.load_evaluation_data(run.data, run.split, rule)
  stages = [e for e in _STAGES if e < run.epochs] + [run.epochs]
  fresh = True
  for epoch in stages:
    if epoch <= done:
      continue
    result = training.train(
      run.config(), resume=True, progress=progress, stop_after=epoch
    )
    if result.outcome == "interrupted":
      raise Interrupted(run.folder)
    if result.step > calendar.end_of_epoch(epoch):
      # An earlier start with more epochs was killed between two rankings.
      raise _beyond(run, epoch)
    model, _, checkpoint = run_dirs.load_model(run.folder, "latest")
    metrics = rankings.rank(model, data, KS).by_query()
    stage = files.Stage(
      until_epoch=epoch,
      step_ms=_step_milliseconds(result, run),
      # The memory of later stages would include that of ranking.
      peak_gib=round(result.peak_memory_bytes / 2**30, 3) if fresh else None,
    )
    fresh = False
    point = {"epoch": epoch} | {n: float(v.mean()) for n, v in metrics.items()}
    state = _state(run, state, stage, point, checkpoint)
    _write(run.folder, state, metrics)
  return state


def _state(
  run: Run,
  before: files.RunState | None,
  stage: files.Stage,
  point: files.Point,
  checkpoint: str,
) -> files.RunState:
  """The state of a run after another stage."""
  return files.RunState(
    name=run.case.name,
    task=run.case.task,
    preset=run.case.preset,
    settings=dict(run.case.settings),
    seed=run.seed,
    split=run.split,
    steps_per_epoch=run.steps_per_epoch,
    curve=(*(before.curve if before else ()), point),
    stages=(*(before.stages if before else ()), stage),
    occurrence=drawn.in_checkpoint(
      checkpoint, directory.DataDir(run.data).candidates.counts
    ),
  )


def _step_milliseconds(result: training.TrainResult, run: Run) -> float | None:
  """Step time of a stage; None if it was only ranked in this session."""
  if result.step_milliseconds:
    return round(result.step_milliseconds, 2)
  # A stage of a single block of steps has no median.
  if not result.examples_per_second:
    return None
  rows = run.config().global_batch_size
  return round(1e3 * rows / result.examples_per_second, 2)


def _write(
  folder: str, state: files.RunState, metrics: dict[str, np.ndarray]
) -> None:
  """Writes metrics first, because `run.json` lists them."""
  path = pathlib.Path(folder)
  (path / BY_QUERY).mkdir(exist_ok=True)
  np.savez_compressed(
    path / BY_QUERY / f"{state.last_epoch}.npz",
    **{name: metrics[name].astype(np.float32) for name in PAIRED},
  )
  json_files.write(path / files.RUN_FILE, state)
