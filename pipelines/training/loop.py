"""The training loop.

A run is a function of its config: (seed, step) determines batches and draws,
and the checkpoint holds everything else. So a resumed run gives exactly the
same results as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import xir_tfrs as xir
from pipelines.evaluation import rankings
from pipelines.training import batches, health, strategies, validation
from pipelines.training import config as configs
from pipelines.training import start as start_lib
from xir_tfrs.data import runs
from xir_tfrs.programs import progress as progress_lib

# Takes the rows of all validations so far and returns whether to pause.
Watch = Callable[[Sequence[Mapping[str, Any]]], bool]


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """The result of a run.

  Attributes:
    step: Number of steps in all sessions of the run.
    outcome: `"finished"`, `"stopped early"`, `"paused"` (by `stop_after` or
      `watch`) or `"interrupted"`.
    validation: Metrics of the best checkpoint; empty without validation.
    seconds: Time of this session's steps, without validation.
    examples_per_second: Rate in this session, without validation.
    step_milliseconds: Median over blocks of steps, without the first block.
    peak_memory_bytes: Maximum resident size of the process so far.
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
  watch: Watch | None = None,
) -> TrainResult:
  """Runs or resumes a training run.

  Args:
    config: The config of the run.
    resume: Whether to continue from the newest checkpoint of
      `config.model_dir`.
    overwrite: Whether to replace an existing run.
    progress: Whether to show a progress line.
    stop_after: Epoch of the run at whose end to pause.
    strategy: An existing strategy, instead of `config.strategy`.
    watch: Called after each validation and on resuming; returns whether to
      pause. Only for a run with one process.

  Returns:
    The result of the run.

  Raises:
    DataError: The data directory cannot be read or is not the run's, or the
      model directory cannot be used.
    SettingsError: A setting is invalid for this run.
    TrainingDiverged: The loss became NaN or infinite.
    CheckpointNotSaved: The disk is full or not writable.
    WorkerLost: Another worker has stopped.
  """
  if strategy is None:
    strategy = strategies.create(config.strategy, config.cpu_replicas)
  with (
    strategies.lost_workers(strategy),
    _interrupts() as interrupted,
    contextlib.ExitStack() as held,
  ):
    run, saved = start_lib.start(
      config, strategy, held, resume=resume, overwrite=overwrite
    )
    show = progress and run.workers.is_chief
    return Loop(run, saved, interrupted, watch).go(show, stop_after)


class Loop:
  """Trains, validates and saves a run on schedule."""

  def __init__(
    self,
    run: start_lib.Run,
    saved_step: int | None,
    interrupted: threading.Event,
    watch: Watch | None = None,
  ) -> None:
    """Builds the loop.

    Args:
      run: The run.
      saved_step: Step of its newest checkpoint.
      interrupted: An event that stops the loop when set.
      watch: See `train`.
    """
    self._run = run
    self._saved_step = saved_step
    self._interrupted = interrupted
    self._watch = watch
    self._log = _Log(run.directory)
    self._validations = validation.Validations(
      run.config,
      [r for r in run.directory.read_metrics() if r["kind"] == "validation"],
    )
    self._pauses = self._asks_to_pause()
    # A step needs no AutoGraph, which takes longer than tracing does.
    self._run_steps = tf.function(
      _run_steps, reduce_retracing=True, autograph=False
    )
    self._train = run.model.gradient_step
    if run.config.jit_compile:
      self._train = tf.function(self._train, jit_compile=True, autograph=False)

  def go(self, show: bool, stop_after: int | None) -> TrainResult:
    """Trains until the run ends or pauses."""
    run, config = self._run, self._run.config
    pause = run.schedule.end_of_epoch(stop_after or config.epochs)
    rows = batches.distributed(
      run.strategy,
      run.examples,
      global_batch_size=config.global_batch_size,
      start_step=run.now,
    )
    probe = self._probe()
    first_step, block_times, seconds = run.now, [], 0.0
    report = progress_lib.Progress(
      config.task, run.schedule.total_steps, start=first_step, show=show
    )
    with report:
      report.write(self._describe())
      while (outcome := self._outcome(pause)) is None:
        losses, elapsed = self._block(rows)
        seconds += elapsed
        block_times.append(elapsed / len(losses))
        self._log_block(losses, elapsed)
        if len(block_times) == 1:
          # The graph was built, which says nothing about the steps to come.
          report.start_again(run.now)
        else:
          speed = config.global_batch_size / block_times[-1]
          report.update(
            run.now,
            f"epoch {self._epoch():.2f}, loss {losses.mean():.4f}, "
            f"{speed:,.0f} examples/s",
          )
        self._validate_and_save(report, probe)
      if outcome == "stopped early":
        report.write(self._validations.why_stopped)
    if run.now != self._saved_step:
      self._save()
    self._log.close()
    trained = (run.now - first_step) * config.global_batch_size
    return TrainResult(
      step=run.now,
      outcome=outcome,
      validation=self._validations.best or {},
      seconds=seconds,
      examples_per_second=trained / seconds if seconds else 0.0,
      step_milliseconds=1e3 * float(np.median(block_times[1:] or [0.0])),
      peak_memory_bytes=1024
      * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )

  def _describe(self) -> str:
    """What is about to be trained, before the first step, which is slow."""
    run, config = self._run, self._run.config
    schedule = run.schedule
    return (
      f"{config.task} on {schedule.num_rows:,} rows of {config.data}: up to "
      f"{config.epochs} epochs, {schedule.total_steps:,} steps"
    )

  def _block(self, rows: Iterator[Any]) -> tuple[np.ndarray, float]:
    """Trains until something is due; returns losses [steps] and seconds."""
    run = self._run
    step = run.now
    if run.schedule.starts_epoch(step):
      run.model.task.refresh()
    steps = run.schedule.block(step)
    # Within a call, TensorFlow requires all steps to have the collective shapes
    # of the first. Gradients of sequences have as many rows as the batch has
    # distinct tokens or events, so these need one call per step.
    per_call = 1 if run.strategy.num_replicas_in_sync > 1 else steps
    start = time.perf_counter()
    try:
      parts = [
        self._run_steps(
          run.strategy, self._train, run.step, rows, tf.constant(per_call)
        )
        for _ in range(steps // per_call)
      ]
    except tf.errors.OpError as error:
      raise (run.rows.failure or error) from None
    losses = np.concatenate([part.numpy() for part in parts])
    elapsed = time.perf_counter() - start
    bad = health.first_bad_loss(losses)
    if bad is not None:
      self._diverged(f"The loss is {losses[bad]} at step {step + bad + 1}")
    if run.average is not None and run.schedule.averages(run.now):
      run.average.update(run.schedule.average_decay)
    return losses, elapsed

  def _outcome(self, pause: int) -> str | None:
    """The outcome if the run ends here, the same on all workers, or None."""
    if self._run.now >= self._run.schedule.total_steps:
      return "finished"
    if self._validations.should_stop:
      return "stopped early"
    if self._run.now >= pause or self._pauses:
      return "paused"
    stop = self._run.workers.any(self._interrupted.is_set())
    return "interrupted" if stop else None

  def _asks_to_pause(self) -> bool:
    rows = self._validations.rows
    return self._watch is not None and len(rows) > 0 and self._watch(rows)

  def _probe(self) -> xir.diagnostics.EstimatorProbe | None:
    """The probe that compares the loss with the full softmax, if requested."""
    config = self._run.config
    rows = self._run.rows
    if not config.estimator_probe or not isinstance(rows, batches.InMemory):
      return None
    return xir.diagnostics.EstimatorProbe(
      self._run.model,
      rows.columns,
      known=rows.known,
      probe_size=config.estimator_probe,
      batch_size=config.global_batch_size,
      seed=config.seed,
    )

  def _epoch(self) -> float:
    return self._run.schedule.epoch(self._run.now)

  def _row(self, kind: str) -> dict[str, Any]:
    epoch = round(self._epoch(), 4)
    return {"kind": kind, "step": self._run.now, "epoch": epoch}

  def _learning_rate(self) -> float:
    return float(tf.convert_to_tensor(self._run.model.optimizer.learning_rate))

  def _log_block(self, losses: np.ndarray, elapsed: float) -> None:
    examples = len(losses) * self._run.config.global_batch_size
    row = self._row("train") | {
      "loss": float(losses.mean()),
      "learning_rate": self._learning_rate(),
      "examples_per_second": round(examples / elapsed),
    }
    readout = self._run.model.task.readout()
    self._log.write(row | {name: float(x) for name, x in readout.items()})

  def _validate_and_save(self, report: progress_lib.Progress, probe) -> None:
    run = self._run
    if run.schedule.validates(run.now):
      if run.validation is not None:
        self._require_finite_weights()
        self._validate(report)
      if probe is not None:
        self._log.write(self._row("estimator") | probe.measure())
    if run.schedule.saves(run.now):
      self._save()

  def _validate(self, report: progress_lib.Progress) -> None:
    run = self._run
    with run.checkpoints.as_saved():
      ranking = rankings.rank(run.model, run.validation, self._validations.ks)
    metrics = rankings.means_with_parts(ranking, run.validation.warm)
    # Every worker has ranked, but rounding may differ between machines.
    values = run.workers.of_chief(*metrics.values())
    row = self._row("validation") | dict(zip(metrics, values, strict=True))
    is_best = self._validations.is_best(row)
    if is_best:
      run.checkpoints.save_best(run.now)
    # Written after the checkpoint, so that no row refers to a missing one.
    self._log.write(row)
    self._validations.add(row)
    report.write(self._validations.line(row, is_best))
    self._pauses = self._asks_to_pause()

  def _save(self) -> None:
    self._require_finite_weights()
    self._run.checkpoints.save(self._run.now)
    self._saved_step = self._run.now

  def _require_finite_weights(self) -> None:
    # A finite loss can cause an update that is not finite; it must not replace
    # the last good checkpoint.
    bad = health.not_finite(self._run.model.trainable_variables)
    if bad:
      self._diverged(f"{bad[0]} is not finite after step {self._run.now}")

  def _diverged(self, what: str) -> None:
    kept = self._run.checkpoints.newest or "none yet"
    raise health.TrainingDiverged(
      f"{what} (epoch {self._epoch():.2f}). "
      f"{health.advice(self._run.model, self._learning_rate())} "
      f"Last good checkpoint: {kept}. Losses: "
      f"{self._run.directory.path / runs.METRICS}."
    )


class _Log:
  """Writes rows of metrics to metrics.jsonl and to TensorBoard events."""

  def __init__(self, directory: runs.RunDir) -> None:
    self._directory = directory
    self._events = directory.event_writer()

  def write(self, row: dict[str, Any]) -> None:
    self._directory.append_metrics(row)
    with self._events.as_default(step=row["step"]):
      for name, value in row.items():
        if name not in ("kind", "step"):
          tf.summary.scalar(f"{row['kind']}/{name}", value)
    self._events.flush()

  def close(self) -> None:
    self._events.close()


def _run_steps(strategy, train_on, step, batches_, num_steps):
  """Runs `num_steps` steps in one graph call; returns losses [num_steps]."""

  def run_step(i, losses):
    metrics = strategy.run(train_on, args=(next(batches_),))
    # Each replica has its share of the global mean.
    loss = strategy.reduce(
      tf.distribute.ReduceOp.SUM, metrics["loss"], axis=None
    )
    step.assign_add(1)
    return i + 1, losses.write(i, tf.cast(loss, tf.float32))

  losses = tf.TensorArray(tf.float32, size=num_steps)
  _, losses = tf.while_loop(
    lambda i, _: i < num_steps, run_step, (tf.constant(0), losses)
  )
  return losses.stack()


@contextlib.contextmanager
def _interrupts() -> Iterator[threading.Event]:
  """Yields an event that the first Ctrl-C (or SIGTERM) sets."""
  wish = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield wish
    return

  def stop(number, unused_frame):
    wish.set()
    # The second one stops immediately.
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
