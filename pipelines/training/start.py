"""Builds a run from a config, and restores it if it is resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
import sys

import tensorflow as tf

import xir_tfrs as xir
from pipelines.evaluation import split
from pipelines.training import (
  batches,
  build,
  checkpoints,
  schedule,
  shapes,
  strategies,
  validation,
)
from pipelines.training import config as configs
from xir_tfrs.data import datasets, errors, runs
from xir_tfrs.data import directory as directories
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import settings

_PACKAGES = (
  "tensorflow",
  "tf-keras",
  "tensorflow-recommenders",
  "numpy",
  "xir-tfrs",
)


@dataclasses.dataclass(frozen=True)
class Run:
  """The parts of a run.

  Attributes:
    config: The settings.
    strategy: The distribution strategy.
    workers: The processes that train together.
    directory: The directory of the run.
    schedule: The schedule.
    rows: The training rows.
    examples: Makes batches of the rows.
    validation: The validation split, or None.
    model: The compiled model.
    step: Number of steps so far.
    average: The weight average, if there is one.
    checkpoints: Writes checkpoints.
  """

  config: configs.TrainConfig
  strategy: tf.distribute.Strategy
  workers: strategies.Workers
  directory: runs.RunDir
  schedule: schedule.Schedule
  rows: batches.TrainingRows
  examples: shapes.Examples
  validation: split.EvaluationData | None
  model: xir.models.TwoTower
  step: tf.Variable
  average: xir.optimizers.WeightAverage | None
  checkpoints: checkpoints.Checkpoints

  @property
  def now(self) -> int:
    """Number of steps so far, as a Python integer."""
    # A mirrored variable does not convert by itself.
    return int(self.step.numpy())


def start(
  config: configs.TrainConfig,
  strategy: tf.distribute.Strategy,
  held: contextlib.ExitStack,
  *,
  resume: bool,
  overwrite: bool,
) -> tuple[Run, int | None]:
  """Starts a new run or restores one; its directory stays locked.

  Returns:
    The run, and the step of its newest checkpoint, or None.

  Raises:
    DataError: The data cannot be read, or the directory cannot be used.
    SettingsError: The model refuses a setting.
  """
  workers = strategies.Workers(strategy)
  # Checks first, because reading the data may take minutes.
  directory = runs.RunDir(config.model_dir, workers.is_chief)
  held.enter_context(directory.locked())
  if not resume:
    directory.require_new(overwrite)
  # Refuses a batch of fewer rows than replicas, before anything is read.
  datasets.shares(config.global_batch_size, strategy.num_replicas_in_sync)
  data = directories.DataDir(
    config.data,
    all_rows=config.rows == "all",
    rows_in_memory=config.rows_in_memory,
  )
  schema = data.schema
  if not schema.rows["train"]:
    raise errors.DataError("there are no training rows", path=config.data)
  held_out = validation.load(config, data)
  rows = _rows(config, data)
  calendar = schedule.Schedule(rows.num_rows, config)
  if workers.is_chief:
    _say_if_few_steps(rows.num_rows, calendar.total_steps, config)
  tf.keras.utils.set_random_seed(config.seed)
  with strategy.scope():
    model = build.build(config, schema, data.queries, data.candidates)
    optimizer = build.optimizer(config, calendar.steps_per_epoch)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer)
    step = tf.Variable(0, dtype=tf.int64, name="step", trainable=False)
    state = {"model": model, "optimizer": optimizer, "step": step}
    average = None
    if config.average_epochs:
      average = xir.optimizers.WeightAverage(model.trainable_variables)
      state["average"] = average
  run = Run(
    config=config,
    strategy=strategy,
    workers=workers,
    directory=directory,
    schedule=calendar,
    rows=rows,
    examples=rows.examples(config, calendar.total_steps),
    validation=held_out,
    model=model,
    step=step,
    average=average,
    checkpoints=checkpoints.Checkpoints(
      directory, tf.train.Checkpoint(**state), config.keep_checkpoints, average
    ),
  )
  return run, _begin(run, _description(run, data), resume, overwrite)


def _say_if_few_steps(
  num_rows: int, num_steps: int, config: configs.TrainConfig
) -> None:
  if num_rows < config.global_batch_size:
    print(
      f"A batch (--global_batch_size {config.global_batch_size:,}) is larger "
      f"than the {num_rows:,} training rows: {config.epochs:,} epochs have "
      f"only {num_steps:,} steps. Choose a smaller batch.",
      file=sys.stderr,
    )


def _rows(
  config: configs.TrainConfig, data: directories.DataDir
) -> batches.TrainingRows:
  """The training rows and their known candidates."""
  used = config.resolved
  kind = batches.InMemory if data.fits else batches.OnDisk
  return kind.of_data(
    config,
    data,
    bool(used.mask_known_positives),
    used.popularity_weight or 0.0,
  )


def _begin(
  run: Run, description: runs.RunConfig, resume: bool, overwrite: bool
) -> int | None:
  """Starts or restores, as the chief decides; returns the saved step."""
  directory, workers = run.directory, run.workers
  (restores,) = workers.of_chief(resume and directory.exists())
  if not restores:
    directory.create(description, overwrite)
  else:
    _require_same_run(run, description)
    directory.write_config(description)
  step = None
  if restores and workers.is_chief:
    step = run.checkpoints.restore()
  (step,) = workers.of_chief(-1 if step is None else step)
  saved = int(step) if step >= 0 else None
  if saved is not None and not workers.is_chief:
    run.checkpoints.restore_step(saved)
  if not restores:
    return None
  if workers.is_chief:
    print(
      f"{directory.path} holds no checkpoint yet: starting at step 0."
      if saved is None
      else f"Resuming from step {saved} of {directory.path}"
    )
  directory.forget_metrics_after(run.now)
  # Nothing reads the metrics before they are truncated.
  workers.of_chief(0.0)
  return saved


def _description(run: Run, data: directories.DataDir) -> runs.RunConfig:
  """The content of config.json."""
  defaults = {}
  if run.config.temperature is None:
    defaults["temperature"] = run.model.task.temperature
  return runs.RunConfig(
    data=str(data.path.resolve()),
    schema_sha256=data.schema_sha256,
    model=run.model.get_config(),
    train=settings.as_dict(run.config),
    versions={"python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in _PACKAGES},
    defaults=defaults,
  )


def _require_same_run(run: Run, new: runs.RunConfig) -> None:
  """Raises DataError unless the run can resume the existing one."""
  old = run.directory.read_config()
  if old.schema_sha256 != new.schema_sha256:
    raise errors.DataError(
      f"The data in {new.data} is not what this run was trained on (its "
      f"{schema_lib.FILE_NAME} differs): resume with the old data, or start a "
      "new run in another --model_dir."
    )
  before = configs.of_run(old.train, run.directory.path / runs.CONFIG)
  name = configs.changed(before, run.config)
  if name is not None:
    raise errors.DataError(
      f"A resumed run cannot change --{name} (it was "
      f"{getattr(before, name)!r}, now {getattr(run.config, name)!r}): start a "
      "new run in another --model_dir."
    )
  was, now = (
    (one.defaults or {}).get("temperature", config.resolved.temperature)
    for one, config in ((old, before), (new, run.config))
  )
  if was != now:
    raise errors.DataError(
      f"was begun by another version, whose default temperature is {was}; that "
      f"of this version is {now}: give --temperature {was}",
      path=run.directory.path,
    )
