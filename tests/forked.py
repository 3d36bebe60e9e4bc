"""Starts programs without the seconds that each takes to load TensorFlow.

    with forked.programs(environment) as faster:
      subprocess.run("python -m pipelines.prepare ...", shell=True, env=faster)

In the block, a server process has loaded TensorFlow and the library. The
commands `python` and `xir-tfrs`, first in the PATH of `faster`, make it fork a
child for each program, with its arguments, folder, environment, files, signals
and exit status: 128 + N if signal N ends it. A child is killed when its command
is. Anything else runs in the real Python: a sample must not profit from what is
loaded here.
The fixture `fast` has such an environment for all tests of a process.

No TensorFlow op has run before a fork, so children share no state. Tests of the
imports of a program need a real process.
"""

import atexit
import contextlib
import gc
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

_ROOT = pathlib.Path(__file__).parents[1]
_COMMAND = "xir_tfrs.programs.command"
_PROGRAMS = ("pipelines.", "export.", "benchmarks.", "tests.", _COMMAND)


def environment_of(checkout: os.PathLike[str]) -> dict[str, str]:
  """The environment of a user in a checkout."""
  inherited = {
    name: value
    for name, value in os.environ.items()
    # Variables that tests/conftest.py or xdist set, but a user does not.
    if name not in ("TF_USE_LEGACY_KERAS", "PYTEST_XDIST_WORKER")
  }
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  return inherited | {"PYTHONPATH": str(checkout), "PATH": path}


@contextlib.contextmanager
def programs(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
  """Yields an environment in which programs start quickly."""
  with tempfile.TemporaryDirectory(prefix="xir-python-") as folder:
    address = os.path.join(folder, "socket")
    for name, first in (("python", ""), ("xir-tfrs", f"-m {_COMMAND}")):
      stub = pathlib.Path(folder, name)
      stub.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -ISB "{__file__}" ask "{address}"'
        f' {first} "$@"\n'
      )
      stub.chmod(0o755)
    server = subprocess.Popen(
      [sys.executable, __file__, "serve", address, f"{folder}/python"],
      env=environment | {"PYTHONPATH": str(_ROOT)},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    try:
      assert server.stdout.readline() == b"ready\n"
      yield {**environment, "PATH": f"{folder}:{environment['PATH']}"}
    finally:
      server.stdin.close()  # Ends the server, as the end of this process would.
      server.wait()
      server.stdout.close()


def _ask(address: str, arguments: Sequence[str]) -> int:
  """Runs a program in the server; returns its exit status."""
  if arguments[:1] != ["-m"] or not arguments[1].startswith(_PROGRAMS):
    os.execv(sys.executable, [sys.executable, *arguments])
  request = json.dumps([os.getcwd(), dict(os.environ), arguments[1:]]).encode()
  with socket.socket(socket.AF_UNIX) as server:
    server.connect(address)
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    process = int(server.recv(16))
    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, lambda number, _: os.kill(process, number))
    status = int(server.recv(16))
  return status if status >= 0 else 128 - status


def _reap(*_: object) -> None:
  with contextlib.suppress(ChildProcessError):
    while os.waitpid(-1, os.WNOHANG)[0]:
      pass


def _serve(address: str, python: str) -> None:
  """Forks a child for each program until stdin ends.

  Args:
    address: The socket of the requests.
    python: The Python with which programs start others.
  """
  import export.bundle.from_model  # noqa: F401
  import pipelines.preparation.convert  # noqa: F401
  import xir_tfrs

  for part in xir_tfrs.__all__:
    getattr(xir_tfrs, part)
  # Garbage collection would copy these pages of memory into each child.
  gc.collect()
  gc.freeze()
  signal.signal(signal.SIGCHLD, _reap)
  with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
      ready, _, _ = select.select([listener, sys.stdin], [], [])
      if sys.stdin in ready:
        return
      connection, _ = listener.accept()
      if not os.fork():
        break
      connection.close()
  signal.signal(signal.SIGCHLD, signal.SIG_DFL)
  header, files, *_ = socket.recv_fds(connection, 8, 3)
  with connection.makefile("rb") as stream:
    request = stream.read(int.from_bytes(header, "big"))
  process = os.fork()
  if process:
    for file in (0, 1, 2, *files):
      os.close(file)
    # 16 bytes, because the status may follow before the command reads it.
    connection.sendall(f"{process:16}".encode())
    ended = os.pidfd_open(process)
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:  # The command was killed: it never writes again.
      os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(BrokenPipeError):
      connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)
  connection.close()
  for place, file in enumerate(files):
    os.dup2(file, place)
    os.close(file)
  folder, environment, sys.argv = json.loads(request)
  os.chdir(folder)
  os.environ.clear()
  os.environ.update(environment)
  sys.path[0] = folder
  sys.executable = python
  try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
  except SystemExit as end:
    _end(end.code)
  _end(None)


def _end(code: object) -> NoReturn:
  """Exits like Python, but without freeing all modules, which takes 1 s."""
  if not (code is None or isinstance(code, int)):
    print(code, file=sys.stderr)
    code = 1
  threading._shutdown()
  atexit._run_exitfuncs()
  for stream in (sys.stdout, sys.stderr):
    stream.flush()
  os._exit(code or 0)


if __name__ == "__main__":
  if sys.argv[1] == "serve":
    sys.exit(_serve(*sys.argv[2:]))
  sys.exit(_ask(sys.argv[2], sys.argv[3:]))
