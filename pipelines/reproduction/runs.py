"""One run of an experiment: trained and ranked in stages, each kept.

A run is resumed where it stopped: training from its checkpoint, ranking after
the last epoch that was ranked. Its folder holds what `pipelines.train` leaves,
and

- `run.json`: settings, curve, time and memory;
- `by_query/EPOCH.npz`: metrics of each query after that epoch, by which two
  runs on the same data can be paired.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines import evaluate
from pipelines.reproduction import experiments
from pipelines.training import config as configs
from pipelines.training import loop as training
from xir_tfrs.data import json_files, tables
from xir_tfrs.data import runs as run_dirs
from xir_tfrs.data import schema as schema_lib

RUN_FILE = "run.json"
BY_QUERY = "by_query"
# Those that are paired.
PAIRED = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
KS = (10, 20, 50)
_CACHE = "model/task/cache/{}/.ATTRIBUTES/VARIABLE_VALUE"
# Epochs after which a run is ranked, as far as it goes.
_STAGES = (1, 2, 3, 5, 10, 20, 30, 60, 100, 150, 200)


class Interrupted(Exception):
  """A run was stopped by Ctrl-C; it goes on where it stopped."""


@dataclasses.dataclass(frozen=True)
class Run:
  """A case from one seed, on one data directory.

  Attributes:
    case: Method and settings.
    seed: Of initial values, shuffling and draws; the split has its own.
    data: Directory made by `pipelines.prepare`.
    folder: Where the run is kept.
    epochs: Its length.
    split: What is ranked.
  """

  case: experiments.Case
  seed: int
  data: str
  folder: str
  epochs: int
  split: str

  @property
  def steps_per_epoch(self) -> int:
    rows = schema_lib.Schema.load(self.data).rows["train"]
    return math.ceil(rows / self._config().global_batch_size)

  def config(self) -> configs.TrainConfig:
    """The settings of `pipelines.train`."""
    return dataclasses.replace(
      self._config(),
      epochs=self.epochs,
      # Ranked here, and nothing is selected by it.
      patience=0,
      eval_epochs=10**6,
      checkpoint_steps=self.steps_per_epoch,
      keep_checkpoints=1,
    )

  def _config(self) -> configs.TrainConfig:
    return configs.from_preset(
      **self.case.settings
      | {
        "preset": self.case.preset,
        "task": self.case.task,
        "data": self.data,
        "model_dir": self.folder,
        "seed": self.seed,
      }
    )


def read(folder: str) -> dict[str, Any] | None:
  """What a run has left, finished or not; None: nothing yet."""
  path = pathlib.Path(folder) / RUN_FILE
  return json.loads(path.read_text("utf-8")) if path.exists() else None


def by_query(folder: str, epoch: int) -> dict[str, np.ndarray]:
  """`PAIRED` metrics of each query, after an epoch that was ranked."""
  with np.load(pathlib.Path(folder) / BY_QUERY / f"{epoch}.npz") as arrays:
    return dict(arrays)


def is_finished(run: Run) -> bool:
  """Whether there is nothing left to do."""
  return _last_epoch(read(run.folder)) >= run.epochs


def _last_epoch(state: dict[str, Any] | None) -> int:
  """The last epoch after which a run was ranked; 0: none yet."""
  return state["curve"][-1]["epoch"] if state and state["curve"] else 0


def carry_out(run: Run, progress: bool = True) -> dict[str, Any]:
  """Trains and ranks what is missing; what `run.json` holds.

  Raises:
    Interrupted: By Ctrl-C.
    ValueError: The folder holds another run, or data cannot be read.
  """
  state = read(run.folder) or {"curve": [], "stages": []}
  done = _last_epoch(state)
  data = evaluate.load_evaluation_data(run.data, run.split)
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
    model, _, checkpoint = run_dirs.load_model(run.folder, "latest")
    metrics = evaluate.rank_by_query(model, data, KS)
    point = {"epoch": epoch} | {n: float(v.mean()) for n, v in metrics.items()}
    stage = {
      "until_epoch": epoch,
      "step_ms": _step_milliseconds(result, run),
      # Later stages would show what ranking needed.
      "peak_gib": round(result.peak_memory_bytes / 2**30, 3) if fresh else None,
    }
    fresh = False
    state = state | _description(run, checkpoint)
    state["curve"] = [*state["curve"], point]
    state["stages"] = [*state["stages"], stage]
    _write(run.folder, state, metrics)
  return state


def _step_milliseconds(result: training.TrainResult, run: Run) -> float | None:
  """Of a stage; None if it had been trained before and only ranked now."""
  if result.step_milliseconds:
    return round(result.step_milliseconds, 2)
  # A stage of a single block of steps has no median.
  if not result.examples_per_second:
    return None
  rows = run.config().global_batch_size
  return round(1e3 * rows / result.examples_per_second, 2)


def _write(
  folder: str, state: dict[str, Any], metrics: dict[str, np.ndarray]
) -> None:
  """The metrics first: `run.json` says what is there."""
  path = pathlib.Path(folder)
  (path / BY_QUERY).mkdir(exist_ok=True)
  np.savez_compressed(
    path / BY_QUERY / f"{state['curve'][-1]['epoch']}.npz",
    **{name: metrics[name].astype(np.float32) for name in PAIRED},
  )
  json_files.write(path / RUN_FILE, state)


def _description(run: Run, checkpoint: str) -> dict[str, Any]:
  found = {
    "name": run.case.name,
    "task": run.case.task,
    "preset": run.case.preset,
    "settings": dict(run.case.settings),
    "seed": run.seed,
    "split": run.split,
    "steps_per_epoch": run.steps_per_epoch,
  }
  # The restored model is for inference: it has no task, and so no cache.
  saved = tf.train.load_checkpoint(checkpoint)
  if saved.has_tensor(_CACHE.format("occurrence_counts")):
    draws = saved.get_tensor(_CACHE.format("occurrence_counts"))
    ids = saved.get_tensor(_CACHE.format("ids"))
    found["occurrence"] = _occurrence(
      tables.read_table(run.data, "candidates").counts,
      draws,
      np.bincount(ids, minlength=len(draws)),
    )
  return found


def _occurrence(
  counts: np.ndarray, draws: np.ndarray, cached: np.ndarray
) -> dict[str, list[float]]:
  """Shares of tenths of the catalogue, the most popular first.

  Args:
    counts: [num_candidates] training interactions.
    draws: [num_candidates] how often each was drawn so far.
    cached: [num_candidates] how often each is in the cache now.
  """
  tenths = np.array_split(np.argsort(-counts, kind="stable"), 10)

  def shares(values):
    total = max(float(values.sum()), 1.0)
    return [round(float(values[tenth].sum()) / total, 5) for tenth in tenths]

  return {
    "interactions": shares(counts),
    "draws": shares(draws),
    "cache": shares(cached),
    "distinct": round(float((cached > 0).sum() / cached.sum()), 4),
  }
