"""Real processes for tests: workers of a cluster on this machine.

    results = cluster.run("tests.distributed.worker", ["--out", folder])

    with cluster.start("pipelines.train", flags) as workers:
      workers[0].wait_for("step 20")
      workers[1].kill()

Several workers find each other through TF_CONFIG, as on separate machines. No
process is left behind, even after errors.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# Time for the other workers to end by themselves after one has failed.
_GRACE_SECONDS = 5.0


class ClusterError(AssertionError):
  """A worker failed or did not end in time."""


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a worker.

  Attributes:
    returncode: Its exit status; if negative, the signal that killed it.
    output: What it wrote to stdout and stderr.
  """

  returncode: int
  output: str


class Worker:
  """A process and its children."""

  def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
    # A file, because a process blocks if nobody reads its pipe.
    self._log = tempfile.TemporaryFile()
    self._process = subprocess.Popen(
      command,
      cwd=_ROOT,
      env=dict(env),
      stdin=subprocess.DEVNULL,
      stdout=self._log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )

  @property
  def returncode(self) -> int | None:
    """The exit status; None while it runs."""
    return self._process.poll()

  def output(self) -> str:
    """The output so far."""
    size = os.fstat(self._log.fileno()).st_size
    return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

  def wait_for(self, text: str, timeout: float = 60.0) -> None:
    """Waits until the worker has written `text`.

    Raises:
      ClusterError: It ended before that, or time ran out.
    """
    deadline = time.monotonic() + timeout
    while text not in self.output():
      ended = self.returncode is not None
      # It may have written the text and ended since the check above.
      if text not in self.output() and (ended or time.monotonic() > deadline):
        raise ClusterError(
          f"{text!r} was not written within {timeout:.0f} s.\n" + _show([self])
        )
      time.sleep(0.05)

  def interrupt(self) -> None:
    """Sends SIGTERM, as on a machine that is preempted."""
    self._signal(signal.SIGTERM)

  def kill(self) -> None:
    """Sends SIGKILL and waits until the process has ended."""
    self._signal(signal.SIGKILL)
    self._process.wait()

  def close(self) -> None:
    self.kill()
    self._log.close()

  def _signal(self, number: int) -> None:
    # Not after it ended: another process may have the number by now.
    if self._process.poll() is None:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._process.pid, number)


class Workers(list[Worker]):
  """The workers of a cluster, by task index."""

  def wait(self, timeout: float = 120.0, check: bool = True) -> list[Result]:
    """Waits until all have ended.

    After one has failed, the others, which may wait for it forever, have a few
    seconds to end.

    Args:
      timeout: Seconds until workers that still run are killed.
      check: Whether a failed or late worker is an error.

    Returns:
      Their results, by task index.

    Raises:
      ClusterError: With `check`, and the output of all workers.
    """
    start = time.monotonic()
    deadline = start + timeout
    failed = False
    while (running := [w for w in self if w.returncode is None]) and (
      time.monotonic() < deadline
    ):
      if not failed and any(w.returncode for w in self):
        failed = True
        deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
      time.sleep(0.05)
    for worker in running:
      worker.kill()
    if check and any(w.returncode for w in self):
      late = f"; killed after {time.monotonic() - start:.0f} s" * bool(running)
      raise ClusterError(
        f"exit statuses {[w.returncode for w in self]}{late}\n" + _show(self)
      )
    return [Result(w.returncode, w.output()) for w in self]


def run(
  target: str,
  arguments: Sequence[str] = (),
  *,
  num_workers: int = 2,
  timeout: float = 120.0,
  env: Mapping[str, str] | None = None,
  check: bool = True,
) -> list[Result]:
  """Runs a script or a module in all workers and waits for them.

  Args:
    target: Path of a script from the root of the checkout, or a module name.
    arguments: Its command line, the same for all workers.
    num_workers: Number of processes; a single one gets no TF_CONFIG.
    timeout: Seconds until workers that still run are killed.
    env: Environment variables to add to those of this process. With those of
      the fixture `fast`, modules start quickly.
    check: Whether a worker that fails is an error.

  Returns:
    Results by task index.

  Raises:
    ClusterError: With `check`, and the output of all workers.
  """
  with start(target, arguments, num_workers=num_workers, env=env) as workers:
    return workers.wait(timeout, check)


@contextlib.contextmanager
def start(
  target: str,
  arguments: Sequence[str] = (),
  *,
  num_workers: int = 2,
  env: Mapping[str, str] | None = None,
) -> Iterator[Workers]:
  """Starts workers, and kills those that still run at the end of the block.

  Args:
    target: As in `run`.
    arguments: As in `run`.
    num_workers: As in `run`.
    env: As in `run`.

  Yields:
    The workers, by task index.
  """
  what = [target] if target.endswith(".py") else ["-m", target]
  # Popen looks for a name in the PATH of `env`.
  python = "python" if env and "PATH" in env else sys.executable
  command = [python, *what, *map(str, arguments)]
  with contextlib.ExitStack() as stack:
    addresses = [stack.enter_context(_address()) for _ in range(num_workers)]
    workers = Workers()
    for index in range(num_workers):
      own = dict(os.environ)
      own.pop("TF_CONFIG", None)
      own |= {
        "PYTHONPATH": str(_ROOT),
        "PYTHONUNBUFFERED": "1",
        "TF_USE_LEGACY_KERAS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # Only on the CPU, with two threads each.
        "CUDA_VISIBLE_DEVICES": "-1",
        "OMP_NUM_THREADS": "2",
        "TF_NUM_INTRAOP_THREADS": "2",
        "TF_NUM_INTEROP_THREADS": "2",
      }
      if num_workers > 1:
        own["TF_CONFIG"] = json.dumps(
          {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
          }
        )
      worker = Worker(command, own | dict(env or {}))
      stack.callback(worker.close)
      workers.append(worker)
    yield workers


@contextlib.contextmanager
def _address() -> Iterator[str]:
  """Reserves a loopback address while the block runs.

  The socket is bound but does not listen: the kernel does not give the port to
  others that ask for a free one, but TensorFlow's server can listen on it,
  because both allow reuse.
  """
  with socket.socket() as reserved:
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    yield f"127.0.0.1:{reserved.getsockname()[1]}"


def _show(workers: Sequence[Worker]) -> str:
  return "\n".join(
    f"--- worker {index}, exit status {worker.returncode}\n"
    f"{worker.output()[-8000:]}"
    for index, worker in enumerate(workers)
  )
