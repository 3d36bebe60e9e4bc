"""The files of `pipelines.reproduce`: run.json, and one file per experiment."""

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
  """A part of a run, at whose end it was ranked.

  Attributes:
    until_epoch: The end.
    step_ms: Milliseconds per step; None if the part was only ranked.
    peak_gib: Highest memory of the process; None if it also covers ranking.
  """

  until_epoch: int
  step_ms: float | None
  peak_gib: float | None


class RunState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
  """run.json: what a run has come to so far.

  Attributes:
    name: Of its case, and so of the folder.
    task: The method, by --task.
    preset: What the settings stand over.
    settings: What differs from the preset.
    seed: Of initial values, order and draws.
    split: What is ranked.
    steps_per_epoch: Steps per epoch.
    curve: Metrics after each epoch that was ranked.
    stages: Time and memory between these epochs.
    occurrence: Who is drawn and cached, if the method has a cache.
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


class RunSummary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
  """What an experiment's file keeps of a run."""

  seed: int
  epochs: int
  steps_per_epoch: int
  seconds_per_epoch: float
  peak_gib: float
  curve: tuple[Point, ...]
  occurrence: drawn.Occurrence | None = None

  def after(self, epoch: int) -> Point | None:
    """Metrics after an epoch; None if the run was not ranked there."""
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
  """A case against its baseline, over the seeds that both have."""

  case: str
  seeds: tuple[int, ...]
  metrics: dict[str, intervals.PairedTest]


class Data(msgspec.Struct, frozen=True, kw_only=True):
  """The data that was trained on."""

  name: str
  split: str
  split_seed: int | None
  rows: dict[str, int]
  queries: int
  candidates: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
  """A file of an experiment, from which tables and figures are made.

  Attributes:
    experiment: Name in `EXPERIMENTS`.
    title: What it shows.
    data: The data.
    ranked: The split that was ranked.
    shows: See `experiments.Experiment`.
    axis: See there.
    cases: The rows.
    epoch: The runs are compared after it.
    baseline: Above the column of tests.
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
  """What a run has left, finished or not; None: nothing yet.

  Raises:
    DataError: run.json is damaged.
  """
  path = pathlib.Path(folder) / RUN_FILE
  if not path.exists():
    return None
  return json_files.read(path, RunState, remedy=_REMEDY)


def read_result(path: str | os.PathLike[str]) -> Result:
  """The file of an experiment.

  Raises:
    DataError: It is damaged, or of another version.
  """
  return json_files.read(path, Result, remedy=_REMEDY, format=FORMAT)
