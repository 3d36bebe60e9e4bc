"""Several processes that serve one bundle on the same ports.

The parent loads nothing: it holds the ports, starts the workers, and replaces
workers that end. Workers are forked from it, and load TensorFlow and the bundle
afterwards, because neither survives a fork. The system distributes new
connections among them (SO_REUSEPORT).

All workers load a new bundle, with the same version:

    worker -> parent    Reload(ask, join)    on request, or for a new bundle
    parent -> workers   Load(version)
    workers -> parent   Loaded(error)
    parent -> worker    Reloaded(ask, version, error)    after all answers

This module does not need TensorFlow.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing import connection

from absl import logging

from export.serving import options as options_lib
from export.serving import ports
from xir_tfrs.data import errors

# A variable of prometheus_client, which reads it at import. So
# export.serving.metrics must not be imported before the fork.
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Between a worker's end and its successor's start.
_PAUSE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Ready:
  """A worker is listening."""

  version: int


@dataclasses.dataclass(frozen=True)
class Failed:
  """A worker cannot start and ends."""

  error: str


@dataclasses.dataclass(frozen=True)
class Reload:
  """A worker asks all workers to load the bundle again.

  Attributes:
    ask: Number of the request, which the answer repeats.
    join: Whether a load that is in progress is enough.
  """

  ask: int
  join: bool


@dataclasses.dataclass(frozen=True)
class Load:
  """A worker must load the bundle as this version."""

  version: int


@dataclasses.dataclass(frozen=True)
class Loaded:
  """The result of `Load`."""

  error: str | None


@dataclasses.dataclass(frozen=True)
class Reloaded:
  """The result of `Reload` for all workers."""

  ask: int
  version: int
  error: str | None


class Member:
  """A worker's connection to the parent.

  Attributes:
    version: Version of the bundle that the worker loads first.
  """

  def __init__(self, version: int, pipe: connection.Connection):
    self.version = version
    self._pipe = pipe
    self._asked = itertools.count()
    self._waiting: dict[int, asyncio.Future[int]] = {}

  def ready(self) -> None:
    """Tells the parent that this worker is listening."""
    self._pipe.send(Ready(self.version))

  async def reload(self, join: bool = False) -> int:
    """Makes all workers load the bundle again.

    Args:
      join: Whether a load that is in progress is enough.

    Returns:
      The version of the bundle.

    Raises:
      DataError: A worker cannot load the bundle.
    """
    ask = next(self._asked)
    self._waiting[ask] = asyncio.get_running_loop().create_future()
    self._pipe.send(Reload(ask, join))
    return await self._waiting[ask]

  async def listen(self, load: Callable[[int], Awaitable[object]]) -> None:
    """Handles messages of the parent; returns when the parent has ended.

    Args:
      load: Loads the bundle as a version, or raises `DataError`.
    """
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    loop.add_reader(self._pipe.fileno(), heard.set)
    try:
      while True:
        await heard.wait()
        heard.clear()
        while self._pipe.poll():
          await self._handle(self._pipe.recv(), load)
    except (EOFError, ConnectionError):
      logging.error("The parent process has ended.")
    finally:
      loop.remove_reader(self._pipe.fileno())

  async def _handle(
    self, message: object, load: Callable[[int], Awaitable[object]]
  ) -> None:
    if isinstance(message, Load):
      error = None
      try:
        await load(message.version)
      except errors.DataError as failure:
        error = str(failure)
      self._pipe.send(Loaded(error))
    elif isinstance(message, Reloaded):
      answer = self._waiting.pop(message.ask)
      if answer.done():  # The client has disconnected.
        return
      if message.error is None:
        answer.set_result(message.version)
      else:
        answer.set_exception(errors.DataError(message.error))


# Serves, in its own process.
Work = Callable[[options_lib.ServeOptions, Member], None]


@dataclasses.dataclass(eq=False)
class _Worker:
  process: multiprocessing.process.BaseProcess
  pipe: connection.Connection
  ready: bool = False


class Group:
  """The workers, as the parent sees them."""

  def __init__(self, options: options_lib.ServeOptions, work: Work):
    """Starts nothing yet.

    Args:
      options: Settings with reserved ports.
      work: The work of each worker.
    """
    self._options = options
    self._work = work
    self._workers: list[_Worker] = []
    self._version = 1
    # The load in progress: workers that have not answered, number of workers
    # asked, errors, and requests to answer. Then requests for the next load.
    self._loading: set[_Worker] = set()
    self._told = 0
    self._errors: list[str] = []
    self._askers: list[tuple[_Worker, int]] = []
    self._next_askers: list[tuple[_Worker, int]] = []
    self._may_start = 0.0  # Time before which no worker is started again.
    self._was_ready = False
    self._stopping = False

  def run(self) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
      DataError: The bundle cannot be used at the start.
    """
    for number in _SIGNALS:
      signal.signal(number, lambda *_: self._stop())
    try:
      while not self._stopping or self._workers:
        self._fill_up()
        self._wait()
    finally:
      self._stop()
      for worker in self._workers:
        worker.process.join()

  def _stop(self) -> None:
    self._stopping = True
    for worker in self._workers:
      worker.process.terminate()

  def _fill_up(self) -> None:
    missing = self._options.workers - len(self._workers)
    if self._stopping or time.monotonic() < self._may_start:
      return
    for _ in range(missing):
      self._workers.append(self._start())

  def _start(self) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    # A worker that held these pipes would not notice the end of the parent.
    others = [ours, *(worker.pipe for worker in self._workers)]
    process = multiprocessing.get_context("fork").Process(
      target=self._run_worker, args=(Member(self._version, theirs), others)
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
      process.start()
    finally:
      signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    theirs.close()
    return _Worker(process, ours)

  def _run_worker(
    self, member: Member, others: list[connection.Connection]
  ) -> None:
    """Runs in the worker's process."""
    for number in _SIGNALS:
      signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for pipe in others:
      pipe.close()
    try:
      self._work(self._options, member)
    except errors.DataError as error:
      member._pipe.send(Failed(str(error)))

  def _wait(self) -> None:
    """Waits up to half a second for messages and ended workers."""
    sources: list = [worker.pipe for worker in self._workers]
    sources += [worker.process.sentinel for worker in self._workers]
    happened = connection.wait(sources, timeout=0.5)
    for worker in list(self._workers):
      if worker.pipe in happened:
        self._read(worker)
      if worker.process.sentinel in happened:
        self._read(worker)
        self._bury(worker)
    self._go_on_with_loads()

  def _read(self, worker: _Worker) -> None:
    with contextlib.suppress(EOFError, ConnectionError):
      while worker.pipe.poll():
        self._handle(worker, worker.pipe.recv())

  def _handle(self, worker: _Worker, message: object) -> None:
    if isinstance(message, Failed):
      if not self._was_ready and not self._stopping:
        raise errors.DataError(message.error)
      logging.error("A worker cannot start: %s", message.error)
    elif isinstance(message, Ready):
      worker.ready = True
      if message.version != self._version:
        self._send(worker, Load(self._version))
      if not self._was_ready and all(x.ready for x in self._workers):
        self._was_ready = True
        logging.info("All %d workers are ready.", len(self._workers))
    elif isinstance(message, Loaded):
      if message.error is not None:
        self._errors.append(message.error)
      self._loading.discard(worker)
    elif isinstance(message, Reload):
      join = message.join and self._told
      askers = self._askers if join else self._next_askers
      askers.append((worker, message.ask))

  def _go_on_with_loads(self) -> None:
    """Ends a load that all workers have answered, and starts the next one."""
    if self._loading:
      return
    if self._told:
      if len(self._errors) < self._told:
        self._version += 1
      error = self._errors[0] if self._errors else None
      for worker, ask in self._askers:
        self._send(worker, Reloaded(ask, self._version, error))
    self._askers, self._next_askers = self._next_askers, []
    self._errors = []
    self._loading = {x for x in self._workers if x.ready and self._askers}
    self._told = len(self._loading)
    for worker in self._loading:
      self._send(worker, Load(self._version + 1))

  def _send(self, worker: _Worker, message: object) -> None:
    with contextlib.suppress(OSError):  # It has ended; `_wait` handles that.
      worker.pipe.send(message)

  def _bury(self, worker: _Worker) -> None:
    """Removes a worker that has ended."""
    worker.process.join()
    self._workers.remove(worker)
    worker.pipe.close()
    if worker in self._loading:
      self._loading.discard(worker)
      self._errors.append("a worker ended while it loaded the bundle")
    _forget(worker.process.pid)
    if self._stopping:
      return
    status = worker.process.exitcode
    if not self._was_ready:
      raise errors.DataError(
        f"a worker ended with status {status}; see its output above"
      )
    logging.error(
      "Worker %d ended with status %d; another one starts.",
      worker.process.pid,
      status,
    )
    self._may_start = time.monotonic() + _PAUSE_SECONDS


def _forget(process: int | None) -> None:
  """Removes metrics of the calls in progress of an ended worker."""
  for path in pathlib.Path(os.environ[METRICS_FOLDER]).glob(
    f"gauge_live*_{process}.db"
  ):
    path.unlink(missing_ok=True)


def run(options: options_lib.ServeOptions, work: Work) -> None:
  """Serves with `options.workers` processes until SIGTERM or SIGINT.

  Raises:
    DataError: The bundle or a port cannot be used.
  """
  with (
    tempfile.TemporaryDirectory(prefix="metrics-") as folder,
    ports.held(options.host, options.port, "--port") as port,
    ports.held(options.host, options.grpc_port, "--grpc_port") as grpc_port,
  ):
    os.environ[METRICS_FOLDER] = folder
    logging.info(
      "%d workers load %s; REST on port %d, gRPC on port %d of %s.",
      options.workers,
      options.bundle,
      port,
      grpc_port,
      options.host,
    )
    Group(
      dataclasses.replace(options, port=port, grpc_port=grpc_port), work
    ).run()
  logging.info("Stopped.")
