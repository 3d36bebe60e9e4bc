"""Training runs in separate processes, which ask whether to continue.

A process is forked from one that has loaded TensorFlow but not used it, so it
starts fast. Its memory is free when it ends, and a crash affects nothing else.
It sends the values of its validations and learns after each whether to stop. It
dies with the process that started it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import forkserver
from typing import Any

import tqdm

from pipelines.training import config as configs

# The output of a trial, in the directory of its run.
LOG = "log.txt"


@dataclasses.dataclass(frozen=True)
class Validated:
  """A trial was validated and waits for the answer whether to stop.

  Attributes:
    values: The metric by epoch, of all validations so far.
  """

  values: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Ended:
  """A trial has ended.

  Attributes:
    outcome: As in `loop.TrainResult`; or `"failed"`, for this trial alone; or
      `"broken"`, which would affect all trials.
    value: The best value of the metric, or None.
    epoch: The epoch of the best value.
    epochs: Epochs trained.
    seconds: Time of training, over all sessions, without validation.
    message: The reason of a failure.
  """

  outcome: str
  value: float | None = None
  epoch: int = 0
  epochs: int = 0
  seconds: float = 0.0
  message: str = ""


class Trials:
  """The running trials; a context manager, which ends them."""

  def __init__(self, jobs: int) -> None:
    """Sets the number of parallel trials."""
    self._jobs = jobs
    self._started: dict[multiprocessing.connection.Connection, Any] = {}

  def __len__(self) -> int:
    return len(self._started)

  def start(self, number: int, config: configs.TrainConfig) -> None:
    """Starts or resumes a trial."""
    threads = None
    if self._jobs > 1:
      cores = len(os.sched_getaffinity(0))
      threads = max(cores // self._jobs, 1)
    ours, theirs = multiprocessing.Pipe()
    process = start_process(_main, (theirs, config, threads))
    theirs.close()
    self._started[ours] = number, process, config

  def messages(self) -> Iterator[tuple[int, Validated | Ended, Callable]]:
    """Waits for messages; yields the trial's number, message and `answer`."""
    for connection in multiprocessing.connection.wait(list(self._started)):
      number, process, config = self._started[connection]
      try:
        message = connection.recv()
      except (EOFError, ConnectionError):
        process.join()
        message = _death(process.exitcode, config)
      if isinstance(message, Ended):
        process.join()
        connection.close()
        del self._started[connection]
      yield number, message, functools.partial(_answer, connection)

  def __enter__(self) -> Trials:
    return self

  def __exit__(self, *unused_exception: object) -> None:
    for connection, (_, process, _) in self._started.items():
      # Steps since the last checkpoint are repeated later.
      process.kill()
      process.join()
      connection.close()


def _answer(connection, stop: bool) -> None:
  with contextlib.suppress(ConnectionError):  # The trial has died.
    connection.send(stop)


def _death(status: int, config: configs.TrainConfig) -> Ended:
  log = pathlib.Path(config.model_dir) / LOG
  if status == -signal.SIGKILL:
    text = "it was killed, perhaps because memory ran out"
    return Ended("failed", message=text)
  return Ended("broken", message=f"it ended with status {status}; see {log}")


def start_process(target: Callable[..., None], arguments: tuple) -> Any:
  """Starts a process with TensorFlow loaded that runs `target`."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["pipelines.training.loop"])
  _ensure_fork_server()
  process = context.Process(target=target, args=arguments)
  process.start()
  return process


def _ensure_fork_server() -> None:
  """Starts the process that all others are forked from, unless it runs."""
  # It inherits that Ctrl-C is ignored. Otherwise Ctrl-C of the terminal would
  # make it print a traceback while it loads TensorFlow.
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  try:
    forkserver.ensure_running()
  finally:
    signal.signal(signal.SIGINT, before)


def _main(connection, config: configs.TrainConfig, threads: int | None) -> None:
  """The main function of a trial's process."""
  # Ignores Ctrl-C of the terminal: the program ends its trials.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  threading.Thread(target=_die_with_parent, daemon=True).start()
  # Without tqdm's process lock, which is a system object that outlives a killed
  # process.
  tqdm.tqdm.set_lock(threading.RLock())
  model_dir = pathlib.Path(config.model_dir)
  model_dir.mkdir(parents=True, exist_ok=True)
  with open(model_dir / LOG, "a", encoding="utf-8") as log:
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
  if threads is not None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
  run(connection, config)


def _die_with_parent() -> None:
  parent = multiprocessing.parent_process()
  multiprocessing.connection.wait([parent.sentinel])
  os._exit(1)


def run(connection, config: configs.TrainConfig) -> None:
  """Trains and reports through a connection."""
  from pipelines.training import health, loop
  from xir_tfrs.data import errors
  from xir_tfrs.programs import main, settings

  def ask(rows: Sequence[Mapping[str, Any]]) -> bool:
    connection.send(
      Validated({int(row["epoch"]): row[config.metric] for row in rows})
    )
    return connection.recv()

  try:
    result = loop.train(config, resume=True, progress=False, watch=ask)
    ended = _ended(config, result)
  except (health.TrainingDiverged, settings.SettingsError) as error:
    ended = Ended("failed", message=errors.first_line(error))
  except (errors.DataError, main.ProgramError) as error:
    ended = Ended("broken", message=errors.first_line(error))
  connection.send(ended)
  connection.close()


def _ended(config: configs.TrainConfig, result) -> Ended:
  from xir_tfrs.data import runs

  rows = runs.RunDir(config.model_dir).read_metrics()
  trained = [row for row in rows if row["kind"] == "train"]
  seconds, before = 0.0, 0
  for row in trained:
    examples = (row["step"] - before) * config.global_batch_size
    seconds += examples / max(row["examples_per_second"], 1)
    before = row["step"]
  return Ended(
    outcome=result.outcome,
    value=result.validation[config.metric],
    epoch=int(result.validation["epoch"]),
    epochs=int(trained[-1]["epoch"]),
    seconds=seconds,
  )
