"""A group of worker processes in plain Python that load no bundle.

serve_test tests workers with TensorFlow.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from export.serving import ports
from xir_tfrs.data import errors

ROOT = pathlib.Path(__file__).parents[2]

# A file per worker records its loads and messages.
_PROGRAM = """
import asyncio, os, pathlib, signal, sys
from absl import logging
from export.serving import options, workers
from xir_tfrs.data import errors
folder = pathlib.Path(sys.argv[1])
logging.set_verbosity(logging.INFO)
workers._PAUSE_SECONDS = 0.1

def write(name, *words):
  with (folder / f"{name}-{os.getpid()}").open("a") as file:
    print(*words, file=file)

async def load(version):
  names = "broken", f"broken-{os.getpid()}"
  if any((folder / name).exists() for name in names):
    raise errors.DataError("the bundle is broken")
  await asyncio.sleep(0.05)
  write("loaded", version)

async def main(options, member):
  await load(member.version)
  async def ask(join):
    try:
      write("told", await member.reload(join))
    except errors.DataError as error:
      write("told", error)
  loop = asyncio.get_running_loop()
  stop = asyncio.Event()
  loop.add_signal_handler(signal.SIGTERM, stop.set)
  for number, join in ((signal.SIGUSR1, False), (signal.SIGUSR2, True)):
    loop.add_signal_handler(
      number, lambda join=join: asyncio.ensure_future(ask(join)))
  member.ready()
  listening = asyncio.ensure_future(member.listen(load))
  stopping = asyncio.ensure_future(stop.wait())
  await asyncio.wait(
    [listening, stopping], return_when=asyncio.FIRST_COMPLETED)

try:
  workers.run(
    options.ServeOptions(bundle="b", workers=2, port=0, grpc_port=0),
    lambda options, member: asyncio.run(main(options, member)))
except errors.DataError as error:
  sys.exit(f"Error: {error}")
print("the end")
assert "tensorflow" not in sys.modules
"""


class Group:
  """The program and its workers."""

  def __init__(self, folder):
    self.folder = folder
    self.log = folder / "log"
    with self.log.open("wb") as stderr:
      self.process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, folder],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=stderr,
      )

  def loaded(self):
    """Process id -> loaded versions, for workers that run."""
    found = {}
    for path in self.folder.glob("loaded-*"):
      process = int(path.name.partition("-")[2])
      with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        found[process] = [int(x) for x in path.read_text().split()]
    return found

  def told(self, process):
    path = self.folder / f"told-{process}"
    return path.read_text().splitlines() if path.exists() else []

  def wait(self, condition):
    end = time.monotonic() + 60
    while not condition():
      assert time.monotonic() < end, self.log.read_text()[-2000:]
      time.sleep(0.02)

  def wait_for_versions(self, *versions):
    self.wait(lambda: sorted(self.loaded().values()) == sorted(versions))


@pytest.fixture
def group(tmp_path):
  made = Group(tmp_path)
  yield made
  if made.process.poll() is None:
    made.process.kill()
  made.process.communicate()


def test_workers_load_alike_are_replaced_and_end_together(group):
  group.wait(lambda: "All 2 workers are ready." in group.log.read_text())
  group.wait_for_versions([1], [1])
  one, other = sorted(group.loaded())
  # All workers load on request of one. A request by an operator during a load
  # starts another load; one by a worker that found a new bundle joins it.
  os.kill(one, signal.SIGUSR1)
  group.wait(lambda: group.told(one) == ["2"])
  group.wait_for_versions([1, 2], [1, 2])
  os.kill(one, signal.SIGUSR2)
  os.kill(other, signal.SIGUSR2)
  group.wait(lambda: [*group.told(one)[1:], *group.told(other)] == ["3", "3"])
  os.kill(one, signal.SIGUSR1)
  group.wait(lambda: len(group.loaded()[one]) == 4)
  # A bundle that one worker cannot use: it keeps the old one, and the error is
  # reported.
  (group.folder / f"broken-{one}").touch()
  os.kill(other, signal.SIGUSR1)
  group.wait(lambda: group.told(other)[1:] == ["the bundle is broken"])
  group.wait_for_versions([1, 2, 3, 4], [1, 2, 3, 4, 5])
  # A bundle that no worker can use does not use up a version.
  (group.folder / "broken").touch()
  os.kill(other, signal.SIGUSR1)
  group.wait(lambda: len(group.told(other)) == 3)
  # A killed worker is replaced by one with the version of the others.
  (group.folder / "broken").unlink()
  os.kill(one, signal.SIGKILL)
  group.wait_for_versions([5], [1, 2, 3, 4, 5])
  assert f"Worker {one} ended with status -9" in group.log.read_text()
  group.process.send_signal(signal.SIGTERM)
  output, _ = group.process.communicate(timeout=60)
  assert (group.process.returncode, output) == (0, b"the end\n")
  assert not group.loaded()


def test_workers_end_when_their_parent_is_killed(group):
  group.wait_for_versions([1], [1])
  group.process.kill()
  group.wait(lambda: not group.loaded())


def test_a_bundle_that_cannot_be_used_ends_the_group(tmp_path):
  (tmp_path / "broken").touch()
  group = Group(tmp_path)
  group.process.communicate(timeout=60)
  assert group.process.returncode == 1
  lines = group.log.read_text().splitlines()
  assert lines[-1] == "Error: the bundle is broken" and len(lines) == 2


def test_a_port_that_is_taken_is_named():
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    message = f"--port {port} of 127.0.0.1: .*; choose another one"
    with pytest.raises(errors.DataError, match=message):
      with ports.held("127.0.0.1", port, "--port"):
        pass


def test_a_held_port_may_be_shared():
  with ports.held("127.0.0.1", 0, "--port") as port:
    shared = [ports.bind("127.0.0.1", port, "--port", True) for _ in range(2)]
    for each in shared:
      with each:
        each.listen()
