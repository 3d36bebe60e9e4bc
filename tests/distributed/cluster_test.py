"""The cluster harness reports failures and leaves no process behind."""

import json
import os
import socket
import time

import pytest

from tests.distributed import cluster


@pytest.fixture
def script(tmp_path):
  """Writes a script, in which `index` is the number of its worker."""

  def write(*lines):
    path = tmp_path / "script.py"
    path.write_text(
      "\n".join(
        [
          "import json, os, subprocess, sys, time",
          "config = json.loads(os.environ.get('TF_CONFIG', '{}'))",
          "index = config.get('task', {}).get('index', 0)",
          *lines,
        ]
      )
    )
    return str(path)

  return write


def _is_running(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  # A zombie may still be listed, but no longer runs.
  with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
    return stat.read().rpartition(")")[2].split()[0] != "Z"


def _wait_until(condition):
  deadline = time.monotonic() + 20
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.02)
  assert condition()


def test_results_come_by_index(script):
  results = cluster.run(
    script("print(index, sys.argv[1:], os.environ['EXTRA'])"),
    ["a", 1],
    num_workers=3,
    env={"EXTRA": "x"},
  )
  assert [r.output for r in results] == [
    f"{index} ['a', '1'] x\n" for index in range(3)
  ]


def test_workers_get_tf_config(script):
  results = cluster.run(script("print(json.dumps(config))"))
  first, second = (json.loads(r.output) for r in results)
  assert first["cluster"] == second["cluster"]
  assert len(set(first["cluster"]["worker"])) == 2
  assert second["task"] == {"type": "worker", "index": 1}


def test_a_single_worker_gets_no_tf_config(script):
  (result,) = cluster.run(script("print(config)"), num_workers=1)
  assert result.output == "{}\n"


def test_modules_can_be_run():
  (result,) = cluster.run("json.tool", ["--help"], num_workers=1)
  assert "json" in result.output


def test_ports_are_kept_for_the_workers(script):
  with cluster.start(script("print(json.dumps(config))")) as workers:
    workers.wait()
    addresses = json.loads(workers[0].output())["cluster"]["worker"]
    for address in addresses:
      host, port = address.split(":")
      # Only sockets that allow reuse can bind it, such as those of TensorFlow.
      with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((host, int(port)))
      with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, int(port)))
        server.listen()


def test_a_failure_shows_the_output_of_all_workers(script, monkeypatch):
  monkeypatch.setattr(cluster, "_GRACE_SECONDS", 0.5)
  path = script(
    "print('I am', index, flush=True)",
    "if index: sys.exit('broken pipe dream')",
    "time.sleep(600)",
  )
  start = time.monotonic()
  with pytest.raises(cluster.ClusterError) as error:
    cluster.run(path, timeout=300)
  # The other worker waits forever, but the test does not wait for it.
  assert time.monotonic() - start < 60
  for text in ("I am 0", "I am 1", "broken pipe dream", "[-9, 1]"):
    assert text in str(error.value)


def test_failures_can_be_expected(script):
  results = cluster.run(script("sys.exit(3 + index)"), check=False)
  assert [r.returncode for r in results] == [3, 4]


def test_a_timeout_ends_workers(script):
  with pytest.raises(cluster.ClusterError, match="killed after"):
    cluster.run(script("time.sleep(600)"), num_workers=1, timeout=0.5)


def test_no_process_is_left_behind(script):
  path = script(
    "child = subprocess.Popen([sys.executable, '-c',",
    "  'import time; time.sleep(600)'])",
    "print(os.getpid(), child.pid, 'started', flush=True)",
    "time.sleep(600)",
  )
  with (
    pytest.raises(RuntimeError, match="test"),
    cluster.start(path) as workers,
  ):
    for worker in workers:
      worker.wait_for("started", timeout=30)
    ids = [int(x) for w in workers for x in w.output().split()[:2]]
    assert len(ids) == 4 and all(_is_running(pid) for pid in ids)
    raise RuntimeError("in the middle of a test")
  _wait_until(lambda: not any(_is_running(pid) for pid in ids))


def test_one_worker_can_be_killed_while_others_continue(script):
  path = script(
    "print('ready', flush=True)",
    "time.sleep(600 if index else 1)",
    "print('done')",
  )
  with cluster.start(path) as workers:
    workers[1].wait_for("ready", timeout=30)
    workers[1].kill()
    assert workers[1].returncode == -9
    workers[0].wait_for("done", timeout=30)


def test_waiting_for_missing_output_fails(script):
  with cluster.start(script("print('the end')"), num_workers=1) as workers:
    with pytest.raises(cluster.ClusterError, match="the end"):
      workers[0].wait_for("something else", timeout=60)
