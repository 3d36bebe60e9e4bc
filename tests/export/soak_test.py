"""The clients of the soak test, for two seconds, on a server in-process."""

import pytest

from benchmarks import soak
from tests.export import fake_server


@pytest.fixture(scope="module")
def running(tmp_path_factory):
  directory = tmp_path_factory.mktemp("none")
  with fake_server.run(directory, drain_seconds=0.0) as made:
    yield made


def drive(running, answers, seconds, clients):
  """Two bundles, of which the first was replaced long ago."""
  record = soak.Record()
  server = soak.Server(running.port, running.grpc_port)
  server.publish(1)
  server.taken_over()
  cases = [soak.Case("look_up", {"x": [7, 8], "k": 2}, answers)]
  soak.drive(
    server, cases, record, clients=clients, pause=0.02, seconds=seconds
  )
  return record


def test_good_clients_get_right_answers_among_hostile_ones(running):
  right = {"ids": [["7", "7"], ["8", "8"]]}
  record = drive(running, [{"ids": []}, right], 2.0, clients=8)
  assert not record.problems
  calls = {name: len(times) for name, times in record.seconds.items()}
  assert min(calls.values()) > 2 and record.counts["hostile"]
  assert record.counts["right"] == sum(calls.values())
  memory = [(second / 10, 100.0 + second) for second in range(20)]
  found = soak.summarise(record, memory, 90.0, 2, 2.0)
  assert found["memory_mb"] == {
    **{"second_quarter": 107, "last_quarter": 117, "peak": 119, "after": 90},
    "growth": round(117 / 107, 3),
  }
  assert found["calls"] == calls and found["latency_ms"]["grpc"]["p99"] > 0


def test_wrong_and_stale_answers_are_detected(running):
  right = {"ids": [["7", "7"], ["8", "8"]]}
  for answers in ([right, {"ids": []}], [{"ids": []}, {"ids": [["7"]]}]):
    record = drive(running, answers, 0.3, clients=2)
    assert record.counts["problems"] and not record.counts["right"]
    assert record.problems[0].startswith("wrong: look_up")
