"""The files of `pipelines.reproduce`: run.json and one file per experiment."""

from __future__ import annotations

import os
import pathlib
from typing import Any, Literal

import msgspec

from pipelines.evaluation import drawn, intervals
from xir_tfrs.data import json_files

RUN_FILE = "run.json"
FORMAT = 2
_REMEDY = "make it again with xir-tfrs reproduce"

# Metrics by name, and the `epoch` after which they were measured.
Point = dict[str, int | float]


class Stage(msgspec.Struct, frozen=True):
  """A part of a run that ends with a ranking.

  Attributes:
    until_epoch: The last epoch of the stage.
    step_ms: Milliseconds per step; None if the part was only ranked.
    peak_gib: Peak memory of the process; None if it includes ranking.
  """

  until_epoch: int
  step_ms: float | None
  peak_gib: float | None


class RunState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
  """run.json: the state of a run.

  Attributes:
    name: Name of the case, and so of the folder.
    task: The method, as in --task.
    preset: The preset.
    settings: Settings that differ from the preset.
    seed: Seed of initial values, order and draws.
    split: The ranked split.
    steps_per_epoch: Steps per epoch.
    curve: Metrics after each ranked epoch.
    stages: Time and memory between these epochs.
    occurrence: Popularity of draws and cache, if the method has a cache.
  """

  name: str
  task: str
  preset: str
  settings: dict[str, Any]
  seed: int
  split: str
  steps_per_epoch: int
  curve: tuple[Point, ...]
  stages: tuple[Stage, ...]
  occurrence: drawn.Occurrence | None = None

  @property
  def last_epoch(self) -> int:
    """The last epoch after which the run was ranked."""
    return int(self.curve[-1]["epoch"])

  def is_ranked(self, epoch: int) -> bool:
    """Whether the run was ranked after an epoch."""
    return any(point["epoch"] == epoch for point in self.curve)


class RunSummary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
  """The entry of a run in the file of an experiment."""

  seed: int
  epochs: int
  steps_per_epoch: int
  seconds_per_epoch: float
  peak_gib: float
  curve: tuple[Point, ...]
  occurrence: drawn.Occurrence | None = None

  def after(self, epoch: int) -> Point | None:
    """Returns the metrics after an epoch; None if it was not ranked."""
    return next((p for p in self.curve if p["epoch"] == epoch), None)


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
  """A row of a table: see `experiments.Case`."""

  name: str
  title: str
  task: str
  preset: str
  settings: dict[str, Any]
  x: int | float | None
  runs: tuple[RunSummary, ...]


class Comparison(msgspec.Struct, frozen=True):
  """A comparison of a case with its baseline over common seeds."""

  case: str
  seeds: tuple[int, ...]
  metrics: dict[str, intervals.PairedTest]


class Data(msgspec.Struct, frozen=True, kw_only=True):
  """The training data."""

  name: str
  split: str
  split_seed: int | None
  rows: dict[str, int]
  queries: int
  candidates: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
  """The file of an experiment, the source of tables and figures.

  Attributes:
    experiment: Name in `EXPERIMENTS`.
    title: The title.
    data: The data.
    ranked: The ranked split.
    shows: See `experiments.Experiment`.
    axis: See `experiments.Experiment`.
    cases: The rows.
    epoch: The epoch after which runs are compared.
    baseline: Title of the column of tests.
    comparisons: The tests.
  """

  format: int = FORMAT
  experiment: str
  title: str
  data: Data
  ranked: str
  shows: Literal["table", "curves", "sweep", "occurrence"]
  axis: str | None
  cases: tuple[CaseResult, ...]
  epoch: int
  baseline: str
  comparisons: tuple[Comparison, ...]


def read_run(folder: str | os.PathLike[str]) -> RunState | None:
  """Reads the state of a run; None if it has none yet.

  Raises:
    DataError: run.json is damaged.
  """
  path = pathlib.Path(folder) / RUN_FILE
  if not path.exists():
    return None
  return json_files.read(path, RunState, remedy=_REMEDY)


def read_result(path: str | os.PathLike[str]) -> Result:
  """Reads the file of an experiment.

  Raises:
    DataError: The file is damaged or of another version.
  """
  return json_files.read(path, Result, remedy=_REMEDY, format=FORMAT)
