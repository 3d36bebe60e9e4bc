"""Hostile clients of a server in this process, with a model in plain Python.

Requests beyond the limits of size and time are refused with a message, and
other clients still get answers.
"""

import contextlib
import gzip
import http.client
import json
import select
import socket

import grpc
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
  predict_pb2,
  prediction_service_pb2_grpc,
)

from export.serving import connections, options, server
from tests.export import fake_server
from tests.export.fake_server import PREDICT, body, raw, wait_for

LIMITS = options.Limits(
  max_calls=4,
  max_body_mb=2.0,
  max_pending_mb=3.0,
  max_answers=100_000,
  max_connections=20,
  request_seconds=3.0,
  answer_seconds=3.0,
)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
  directory = tmp_path_factory.mktemp("none")
  with fake_server.run(directory, drain_seconds=1.0, limits=LIMITS) as made:
    yield made


@pytest.fixture
def busy(running):
  """The only thread of the model is busy until the test ends."""
  running.model.gate.clear()
  first = running.grpc("wait")
  wait_for(lambda: running.model.waiting)
  running.model.runs.clear()
  yield running
  running.model.gate.set()
  first.result()
  wait_for(lambda: running.in_flight() == 0)


def test_calls_are_answered_by_both(running):
  status, content, _ = running.rest(x=[7, 8], k=2)
  assert (status, content) == (200, {"outputs": [["7", "7"], ["8", "8"]]})
  outputs = running.grpc(x=[7]).result().outputs
  assert tf.make_ndarray(outputs["ids"]).tolist() == [[b"7"]]


def test_calls_over_the_limit_are_refused_with_retry_after(busy):
  others = [busy.grpc(x=[n]) for n in range(LIMITS.max_calls - 1)]
  wait_for(lambda: busy.in_flight() == LIMITS.max_calls)
  status, content, headers = busy.rest()
  assert (status, headers["Retry-After"]) == (429, "1")
  assert "has too many calls; try again later" in content["error"]
  refused = busy.grpc()
  assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
  assert ("grpc-retry-pushback-ms", "1000") in refused.trailing_metadata()
  assert busy.status("/healthz") == 200
  busy.model.gate.set()
  for n, call in enumerate(others):
    outputs = call.result().outputs
    assert tf.make_ndarray(outputs["ids"]).tolist() == [[b"%d" % n]]
  assert busy.rest()[0] == 200


def test_calls_of_disconnected_clients_are_not_run(busy):
  left = busy.connect(raw(body(x=[1]))), busy.grpc(x=[2])
  wait_for(lambda: busy.in_flight() == 3)
  left[0].close()
  left[1].cancel()
  wait_for(lambda: busy.in_flight() == 1)
  stays = busy.grpc(x=[3])
  wait_for(lambda: busy.in_flight() == 2)
  busy.model.gate.set()
  stays.result()
  assert busy.model.runs == [("look_up", [3])]


def test_bodies_that_are_too_large_or_too_many_are_refused(running):
  """Each fits into `max_body_mb`, but two exceed `max_pending_mb`."""
  content = body() + b" " * (7 << 18)
  assert running.http("POST", PREDICT, content)[0] == 200
  with running.connect(raw(content)[:-1]):
    wait_for(lambda: running.in_flight() == 1)
    status = wait_for(
      lambda: (found := running.http("POST", PREDICT, content))[0] == 429
      and found
    )
    assert "has no memory for this request" in status[1]
    assert running.rest()[0] == 200
  wait_for(lambda: running.in_flight() == 0)
  assert running.http("POST", PREDICT, content)[0] == 200
  status, text, _ = running.http("POST", PREDICT, content + b" " * (1 << 18))
  assert status == 400 and "more than 2097152 bytes" in text
  status, content, _ = running.rest(x=[7] * 11, k=10_000)
  assert status == 400 and "must be at most 100000" in content["error"]


def test_compressed_bodies_are_taken_up_to_their_limit(running):
  def post(content, encoding="gzip"):
    headers = {"Content-Encoding": encoding}
    status, text, _ = running.http("POST", PREDICT, content, headers)
    return status, text

  packed = gzip.compress(body(x=[7]))
  assert post(packed) == (200, '{"outputs": [["7"]]}')
  bomb = gzip.compress(body(x=[7]) + b" " * (64 << 20))
  assert len(bomb) < 100_000
  for content, encoding, message in (
    (bomb, "gzip", "more than 2097152 bytes"),
    (bomb[:-9], "gzip", "more than 2097152 bytes"),
    (packed[:-9], "gzip", "the body is not gzip"),
    (packed[:20] + b"x" + packed[21:], "gzip", "the body is not gzip"),
    (body(x=[7]), "gzip", "the body is not gzip"),
    (packed, "br", "`Content-Encoding` must be gzip. Received: br"),
  ):
    status, text = post(content, encoding)
    assert status == 400 and message in text


def test_compressed_messages_are_bounded_too(running):
  request = predict_pb2.PredictRequest()
  request.inputs["x"].tensor_content = bytes(64 << 20)
  stub = prediction_service_pb2_grpc.PredictionServiceStub(running.channel)
  with pytest.raises(grpc.RpcError) as caught:
    stub.Predict(request, timeout=30, compression=grpc.Compression.Gzip)
  assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_answers_do_not_repeat_long_names(running):
  name = "n" * (1 << 20)
  for status, text, _ in (
    running.http("POST", PREDICT, body(name)),
    running.http("POST", f"/v1/models/{name[:9000]}:predict", body()),
    running.http("POST", f"/{name[:9000]}", b""),
    running.http("POST", PREDICT, json.dumps({name: 1})),
    running.http("POST", PREDICT, json.dumps({"inputs": {name: 1}})),
  ):
    assert status in (400, 404) and len(text) < 400
  call = running.grpc(name)
  assert call.code() == grpc.StatusCode.NOT_FOUND
  assert len(call.details()) < 400


def _is_cut_off(connection):
  poll = select.poll()
  poll.register(connection, select.POLLRDHUP)
  return bool(poll.poll(0))


def test_clients_that_keep_the_server_waiting_are_cut_off(running):
  kept = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
  kept.request("GET", "/healthz")
  kept.getresponse().read()
  refused = raw(b"", "Content-Length: 9").replace(b":predict", b":classify")
  slow = [
    running.connect(),
    running.connect(b"POST "),
    running.connect(raw(body(), "Content-Length: 100000")),
    running.connect(raw(body()) + b"POST "),
    running.connect(refused),
    socket.create_connection(("127.0.0.1", running.grpc_port), 30),
  ]
  with contextlib.ExitStack() as stack:
    for connection in slow:
      stack.enter_context(connection)

    def all_are_cut_off():
      for connection in slow[1:3]:
        with contextlib.suppress(OSError):
          connection.sendall(b" ")  # A slow client is not idle.
      return all(map(_is_cut_off, slow[:5]))

    wait_for(all_are_cut_off)
    slow[5].settimeout(30)
    with contextlib.suppress(ConnectionError):
      while slow[5].recv(4096):  # gRPC sends a greeting, and then closes.
        pass
  # A connection that is idle between two requests is not late.
  kept.request("GET", "/healthz")
  assert kept.getresponse().read() == b"ok\n"
  kept.close()


_connection_made = connections.Connection.connection_made


def _keep_little(self, transport):
  """The kernel itself buffers up to 4 MB that a client does not read."""
  accepted = transport.get_extra_info("socket")
  accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 15)
  _connection_made(self, transport)


def test_clients_that_do_not_read_are_cut_off_the_oldest_at_once(
  running, monkeypatch
):
  """Each client leaves 1.4 MB unread; together they exceed the limit."""
  content = raw(body(x=[10**9] * 10, k=10_000)) * 5
  with contextlib.ExitStack() as stack:
    unread = []
    patch = stack.enter_context(monkeypatch.context())
    patch.setattr(connections.Connection, "check_time", lambda self: None)
    patch.setattr(connections.Connection, "connection_made", _keep_little)
    for _ in range(12):
      connection = stack.enter_context(socket.socket())
      connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
      connection.connect(("127.0.0.1", running.port))
      connection.sendall(content)
      assert select.select([connection], [], [], 30)[0]
      unread.append(connection)
    wait_for(lambda: _is_cut_off(unread[0]))
    patch.undo()
    assert running.rest()[0] == 200
    unread[-1].settimeout(30)
    answers = b""
    while answers.count(b"HTTP/1.1 200") < 5:
      answers += unread[-1].recv(1 << 20)
    wait_for(lambda: _is_cut_off(unread[-2]))


def test_idle_connections_do_not_block_new_clients(busy):
  working = busy.connect(raw(body(x=[5])))
  wait_for(lambda: busy.in_flight() == 2)
  idle = [busy.connect() for _ in range(3 * LIMITS.max_connections)]
  assert busy.status("/healthz") == 200
  assert busy.rest(signature="none")[0] == 404
  wait_for(lambda: sum(map(_is_cut_off, idle)) > LIMITS.max_connections)
  assert not _is_cut_off(idle[-1])
  busy.model.gate.set()
  assert working.recv(4096).startswith(b"HTTP/1.1 200")
  for connection in (working, *idle):
    connection.close()


def test_connections_are_limited_by_open_files(monkeypatch):
  """A burst of connections exceeds the limit before any is closed."""
  given = []
  monkeypatch.setattr(server.resource, "getrlimit", lambda kind: (100, 256))
  monkeypatch.setattr(
    server.resource, "setrlimit", lambda kind, limits: given.append(limits)
  )
  made = server._connections(options.Limits())
  assert given == [(256, 256)]
  allowed = made.keywords["limits"].max_connections
  assert allowed + server._BACKLOG <= 128
  assert server._connections(LIMITS).keywords["limits"] is LIMITS


@pytest.mark.parametrize(
  "headers",
  [
    {"Origin": "http://attacker.example"},
    {"Origin": "null"},
    {"Host": "attacker.example"},
    {"Host": "127.0.0.1.attacker.example:80"},
    {"Host": "[::1"},
    {"Host": ""},
  ],
)
def test_web_pages_cannot_ask_for_a_reload(running, headers):
  assert running.http("POST", "/-/reload", b"", headers)[0] == 403


def test_operators_can_ask_for_a_reload(running):
  for host in ("localhost:1", "[::1]:1"):
    assert running.http("POST", "/-/reload", b"", {"Host": host})[0] == 200


def test_a_stop_closes_connections_after_an_answer(running):
  """The last test, because it stops the server."""
  kept = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)

  def ask(path):
    kept.request("GET", path)
    response = kept.getresponse()
    response.read()
    return response.status, response.headers["Connection"]

  health = health_pb2_grpc.HealthStub(running.channel)
  check = health_pb2.HealthCheckRequest()
  assert ask("/readyz") == (200, None)
  assert health.Check(check).status == health_pb2.HealthCheckResponse.SERVING
  running.begin_stop()
  status, connection = wait_for(
    lambda: (answer := ask("/readyz"))[0] == 503 and answer
  )
  assert connection == "close"
  found = health.Check(check).status
  assert found == health_pb2.HealthCheckResponse.NOT_SERVING
  running.stop()
  assert running.status() is None
