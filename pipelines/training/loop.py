"""The training loop: from a config to checkpoints and metrics.

A run is a function of its config: batches and draws follow from (seed, step),
and everything else is in the checkpoint. So a run that was stopped anywhere
goes on exactly as if it had not been.
"""

import contextlib
import dataclasses
import importlib.metadata
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from pipelines.evaluation import rankings
from pipelines.evaluation import split as evaluation_split
from pipelines.training import build as model
from pipelines.training import checkpoints, schedule, strategies
from pipelines.training import config as configs
from xir_tfrs.data import datasets, errors, runs
from xir_tfrs.data import directory as directories
from xir_tfrs.data import schema as schema_lib
from xir_tfrs.programs import progress as progress_lib

_KS = (10, 20, 50)
_PACKAGES = (
  "tensorflow",
  "tf-keras",
  "tensorflow-recommenders",
  "numpy",
  "xir-tfrs",
)


class TrainingDiverged(RuntimeError):
  """The loss, or a weight, is no longer a finite number."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """How a run ended.

  Attributes:
    step: Steps done, over all sessions of the run.
    outcome: `"finished"`, `"stopped early"`, `"paused"` (by `stop_after`) or
      `"interrupted"`.
    validation: Metrics of the best checkpoint; empty without validation.
    seconds: Time of this session's steps, without validation.
    examples_per_second: In this session, without validation.
    step_milliseconds: Median over blocks of steps, the first left out.
    peak_memory_bytes: Largest resident size of the process so far.
  """

  step: int
  outcome: str
  validation: dict[str, float]
  seconds: float
  examples_per_second: float
  step_milliseconds: float
  peak_memory_bytes: int


def train(
  config: configs.TrainConfig,
  *,
  resume: bool = False,
  overwrite: bool = False,
  progress: bool = True,
  stop_after: int | None = None,
  strategy: tf.distribute.Strategy | None = None,
) -> TrainResult:
  """Runs or resumes a training run.

  Args:
    config: The run.
    resume: Go on from the newest checkpoint of `config.model_dir`.
    overwrite: Begin anew where a run was before.
    progress: Show a progress line.
    stop_after: Pause after so many epochs of the run, to be resumed.
    strategy: A strategy made already, instead of `config.strategy`.

  Returns:
    How it ended.

  Raises:
    DataError: The data directory cannot be read, or is not the run's.
    DataError: The model directory cannot be used as asked.
    TrainingDiverged: The loss became NaN or infinite.
    CheckpointNotSaved: The disk is full, or cannot be written to.
    WorkerLost: Another worker has gone.
  """
  if config.task not in model.TASKS:
    raise ValueError(
      f"--task must be one of {', '.join(model.TASKS)}. "
      f"Received: {config.task!r}."
    )
  if strategy is None:
    strategy = strategies.create(config.strategy, config.cpu_replicas)
  with (
    strategies.lost_workers(strategy),
    _interrupts() as interrupted,
    contextlib.ExitStack() as held,
  ):
    run = _Run(config, strategy, held, resume=resume, overwrite=overwrite)
    return run.go(interrupted, progress, stop_after)


class _Run:
  """A run between its checkpoints."""

  def __init__(
    self,
    config,
    strategy,
    held: contextlib.ExitStack,
    *,
    resume: bool,
    overwrite: bool,
  ) -> None:
    self._config = config
    self._strategy = strategy
    self._workers = strategies.Workers(strategy)
    self._dir = runs.RunDir(config.model_dir, self._workers.is_chief)
    self._shares = datasets.shares(
      config.global_batch_size, strategy.num_replicas_in_sync
    )
    self._data = directories.DataDir(config.data)
    schema = self._data.schema
    if not schema.rows["train"]:
      raise errors.DataError("there are no training rows", path=config.data)
    self._schedule = schedule.Schedule(schema.rows["train"], config)
    self._num_queries = schema.num_queries
    self._validation = _validation_data(config, self._data)

    tf.keras.utils.set_random_seed(config.seed)
    with strategy.scope():
      self._model = model.build(
        config, schema, self._data.queries, self._data.candidates
      )
      optimizer = model.optimizer(
        config, schema.rows["train"] / config.global_batch_size
      )
      optimizer.build(self._model.trainable_variables)
      self._model.compile(optimizer=optimizer)
      self._step = tf.Variable(0, dtype=tf.int64, name="step", trainable=False)
      state = {"model": self._model, "optimizer": optimizer, "step": self._step}
      self._average = None
      if config.average_epochs:
        self._average = xir.optimizers.WeightAverage(
          self._model.trainable_variables
        )
        state["average"] = self._average
    self._checkpoints = checkpoints.Checkpoints(
      self._dir,
      tf.train.Checkpoint(**state),
      config.keep_checkpoints,
      self._average,
    )
    held.enter_context(self._dir.locked())
    self._begin(
      _description(config, self._data, self._model), resume, overwrite
    )
    self._validations = [
      row for row in self._dir.read_metrics() if row["kind"] == "validation"
    ]
    self._events = self._dir.event_writer()
    self._run_steps = tf.function(_run_steps, reduce_retracing=True)

  def go(
    self,
    interrupted: threading.Event,
    progress: bool,
    stop_after: int | None,
  ) -> TrainResult:
    pause = self._schedule.end_of_epoch(stop_after or self._config.epochs)
    columns = self._data.rows("train")
    batches = self._batches(columns)
    probe = self._probe(columns)
    seconds, first_step, block_times = 0.0, self._now, []
    report = progress_lib.Progress(
      self._config.task,
      self._schedule.total_steps,
      start=first_step,
      show=progress and self._workers.is_chief,
    )
    with report:
      while (outcome := self._outcome(interrupted, pause)) is None:
        step = self._now
        if self._schedule.starts_epoch(step):
          self._model.task.refresh()
        start = time.perf_counter()
        losses = self._run_steps(
          self._strategy,
          self._model,
          self._step,
          batches,
          tf.constant(self._schedule.block(step)),
        ).numpy()
        elapsed = time.perf_counter() - start
        self._require_finite(losses, step)
        if self._schedule.averages(self._now):
          self._average.update(self._schedule.average_decay)
        seconds += elapsed
        block_times.append(elapsed / len(losses))
        self._log_block(losses, elapsed)
        speed = self._config.global_batch_size / block_times[-1]
        report.update(
          self._now,
          f"epoch {self._epoch():.2f}, loss {losses.mean():.4f}, "
          f"{speed:,.0f} examples/s",
        )
        self._validate_and_save(report, probe)
    if self._now != self._saved_step:
      self._save()
    self._events.close()
    steps = self._now - first_step
    return TrainResult(
      step=self._now,
      outcome=outcome,
      validation=self._best_validation() or {},
      seconds=seconds,
      examples_per_second=(
        steps * self._config.global_batch_size / seconds if seconds else 0.0
      ),
      step_milliseconds=1e3 * float(np.median(block_times[1:] or [0.0])),
      peak_memory_bytes=1024
      * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )

  def _begin(self, description, resume: bool, overwrite: bool) -> None:
    """A new run, or an old one restored; the chief says which."""
    (restores,) = self._workers.of_chief(resume and self._dir.exists())
    if not restores:
      self._dir.create(description, overwrite)
    else:
      _require_same_run(self._dir.read_config(), description)
      self._dir.write_config(description)
    step = None
    if restores and self._workers.is_chief:
      step = self._checkpoints.restore()
    (step,) = self._workers.of_chief(-1 if step is None else step)
    self._saved_step = int(step) if step >= 0 else None
    if self._saved_step is not None and not self._workers.is_chief:
      self._checkpoints.restore_step(self._saved_step)
    if not restores:
      return
    if self._workers.is_chief:
      print(
        f"{self._dir.path} holds no checkpoint yet: starting at step 0."
        if self._saved_step is None
        else f"Going on from step {self._saved_step} of {self._dir.path}"
      )
    self._dir.forget_metrics_after(self._now)
    # Nobody reads the metrics before they are cut.
    self._workers.of_chief(0.0)

  def _batches(self, columns) -> Iterator[dict[str, tf.Tensor]]:
    """The batches from here on, to each replica its share."""
    start_step = self._now
    shape = model.rows_of_loss(self._config)
    if shape["popularity_weight"]:
      columns = columns | {
        "sample_weight": datasets.popularity_weights(
          columns["candidate_id"], shape["popularity_weight"]
        )
      }
    known = None
    if shape["mask_known_positives"]:
      known = datasets.candidates_by_query(columns, self._num_queries)

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
      local = len(self._shares) // context.num_input_pipelines
      first = context.input_pipeline_id * local
      return datasets.training_dataset(
        columns,
        global_batch_size=self._config.global_batch_size,
        seed=self._config.seed,
        start_step=start_step,
        shares=self._shares[first : first + local],
        known=known,
      )

    return iter(self._strategy.distribute_datasets_from_function(dataset))

  def _probe(self, columns):
    """What compares the loss with the full softmax, if asked for."""
    if not self._config.estimator_probe:
      return None
    return xir.diagnostics.EstimatorProbe(
      self._model,
      columns,
      probe_size=self._config.estimator_probe,
      batch_size=self._config.global_batch_size,
      seed=self._config.seed,
    )

  @property
  def _now(self) -> int:
    """Steps done."""
    # A mirrored variable is no Python number.
    return int(self._step.numpy())

  def _epoch(self) -> float:
    return self._schedule.epoch(self._now)

  def _outcome(self, interrupted: threading.Event, pause: int) -> str | None:
    """How the run ends here, on all workers; None: it goes on."""
    if self._now >= self._schedule.total_steps:
      return "finished"
    best = self._best_validation()
    if best is not None and self._config.patience:
      since = [row for row in self._validations if row["step"] > best["step"]]
      if len(since) >= self._config.patience:
        return "stopped early"
    if self._now >= pause:
      return "paused"
    return "interrupted" if self._workers.any(interrupted.is_set()) else None

  def _log_block(self, losses: np.ndarray, elapsed: float) -> None:
    row = {
      "kind": "train",
      "step": self._now,
      "epoch": round(self._epoch(), 4),
      "loss": float(losses.mean()),
      "learning_rate": float(
        tf.convert_to_tensor(self._model.optimizer.learning_rate)
      ),
      "examples_per_second": round(
        len(losses) * self._config.global_batch_size / elapsed
      ),
    }
    readout = self._model.task.readout()
    self._log(row | {name: float(value) for name, value in readout.items()})

  def _log(self, row: dict[str, Any]) -> None:
    self._dir.append_metrics(row)
    with self._events.as_default(step=row["step"]):
      for name, value in row.items():
        if name not in ("kind", "step"):
          tf.summary.scalar(f"{row['kind']}/{name}", value)
    self._events.flush()

  def _validate_and_save(self, report: progress_lib.Progress, probe) -> None:
    step = self._now
    if self._schedule.validates(step):
      if self._validation is not None:
        self._require_finite_weights()
        self._validate(report)
      if probe is not None:
        self._log(self._row("estimator") | probe.measure())
    if self._schedule.saves(step):
      self._save()

  def _row(self, kind: str) -> dict[str, Any]:
    return {
      "kind": kind,
      "step": self._now,
      "epoch": round(self._epoch(), 4),
    }

  def _validate(self, report: progress_lib.Progress) -> None:
    before = self._best_validation()
    ks = sorted({*_KS, int(self._config.metric.partition("@")[2])})
    with self._checkpoints.as_saved():
      metrics = rankings.rank(self._model, self._validation, tuple(ks)).means()
    # Every worker has ranked, but on unlike machines a rounding may differ.
    values = self._workers.of_chief(*metrics.values())
    row = self._row("validation") | dict(zip(metrics, values, strict=True))
    value = row[self._config.metric]
    better = before is None or value > before[self._config.metric]
    if better:
      self._checkpoints.save_best(self._now)
    # After the checkpoint, so that no row speaks of one that is not there.
    self._log(row)
    self._validations.append(row)
    shown = dict.fromkeys([self._config.metric, "recall@20", "ndcg@20"])
    report.write(
      f"epoch {self._epoch():.1f}  step {row['step']}  "
      + "  ".join(f"{name} {row[name]:.4f}" for name in shown)
      + ("  best so far" if better else "")
    )

  def _best_validation(self) -> dict[str, Any] | None:
    if not self._validations:
      return None
    return max(self._validations, key=lambda row: row[self._config.metric])

  def _save(self) -> None:
    self._require_finite_weights()
    self._checkpoints.save(self._now)
    self._saved_step = self._now

  def _require_finite(self, losses: np.ndarray, first_step: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
      self._raise_diverged(
        f"The loss is {losses[bad[0]]} at step {first_step + bad[0] + 1}"
      )

  def _require_finite_weights(self) -> None:
    # A finite loss may have made an update that is not; it must not replace
    # the last good checkpoint.
    for weight in self._model.trainable_variables:
      if not bool(tf.reduce_all(tf.math.is_finite(weight))):
        self._raise_diverged(
          f"{weight.name} is not finite after step {self._now}"
        )

  def _raise_diverged(self, what: str) -> None:
    kept = self._checkpoints.newest or "none was written yet"
    config = self._config
    raise TrainingDiverged(
      f"{what} (epoch {self._epoch():.2f}). Last good checkpoint: {kept}. "
      f"Look at the learning rate ({config.learning_rate}; try a tenth), the "
      f"temperature ({config.temperature}; inner products may need more, or "
      f"--normalize), --init_stddev ({config.init_stddev}), infinite numbers "
      f"among the side features, and the losses before it in "
      f"{self._dir.path / runs.METRICS}."
    )


def _run_steps(strategy, trained, step, batches, num_steps):
  """Losses [num_steps] of as many steps, in one call of a graph."""
  losses = tf.TensorArray(tf.float32, size=num_steps)
  for i in tf.range(num_steps):
    metrics = strategy.run(trained.gradient_step, args=(next(batches),))
    # Each replica has its share of the global mean.
    loss = strategy.reduce(
      tf.distribute.ReduceOp.SUM, metrics["loss"], axis=None
    )
    losses = losses.write(i, tf.cast(loss, tf.float32))
    step.assign_add(1)
  return losses.stack()


def _validation_data(config, data):
  name, _, k = config.metric.partition("@")
  known = ("recall", "ndcg", "mrr", "map", "hit", "coverage")
  if name not in known or not k.isdigit() or int(k) < 1:
    raise ValueError(
      f"--metric must be one of {', '.join(known)}, with @k: ndcg@20. "
      f"Received: {config.metric!r}."
    )
  if data.schema.rows["validation"]:
    return evaluation_split.load_evaluation_data(data, "validation")
  print(
    "There is no validation split (pipelines.prepare --validation_fraction): "
    "no validation metrics, no best checkpoint, no early stopping.",
    file=sys.stderr,
  )
  return None


def _description(config, data, trained) -> runs.RunConfig:
  """What config.json says of a run."""
  return runs.RunConfig(
    data=str(data.path.resolve()),
    schema_sha256=data.schema_sha256,
    model=trained.get_config(),
    train=dataclasses.asdict(config),
    versions={"python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in _PACKAGES},
  )


def _require_same_run(old: runs.RunConfig, new: runs.RunConfig) -> None:
  """Raises DataError unless `new` goes on with the run of `old`."""
  if old.schema_sha256 != new.schema_sha256:
    raise errors.DataError(
      f"The data in {new.data} is not what this run was trained on (its "
      f"{schema_lib.FILE_NAME} differs): resume with the old data, or start a "
      "new run in another --model_dir."
    )
  known = configs.of_run(old.train)
  changeable = configs.changeable(known["learning_rate_schedule"])
  for name, value in new.train.items():
    value = list(value) if isinstance(value, tuple) else value
    before = known[name]
    before = list(before) if isinstance(before, tuple) else before
    if name not in changeable and value != before:
      raise errors.DataError(
        f"A resumed run cannot change --{name} (it was {before!r}, now "
        f"{value!r}): start a new run in another --model_dir."
      )


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
  """Turns the first Ctrl-C (or SIGTERM) into a wish to stop."""
  wish = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield wish
    return

  def stop(number, unused_frame):
    wish.set()
    # The second one stops at once.
    signal.signal(number, before[number])

  before = {
    number: signal.signal(number, stop)
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    yield wish
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
