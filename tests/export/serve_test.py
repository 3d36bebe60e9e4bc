"""The server as clients see it: in another process, over the network."""

import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
  get_model_metadata_pb2,
  get_model_status_pb2,
  model_service_pb2_grpc,
  predict_pb2,
  prediction_service_pb2_grpc,
)

from export import export_retriever, serve
from export.serving import server as serving_server
from xir_tfrs.data import errors
from xir_tfrs.serving import bundle
from xir_tfrs.serving import manifest as manifests

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = float(os.environ.get("XIR_SOAK_SECONDS", "3"))
THREADS = 8
# A call with less than a full batch waits this long, so it is in flight.
SLOW_MS = 3000
WORKERS = 2


class Server:
  """A running `python -m export.serve`, and its clients."""

  def __init__(self, directory, log, *flags):
    self.log = pathlib.Path(log)
    with self.log.open("wb") as stderr:
      self.process = subprocess.Popen(
        [sys.executable, "-m", "export.serve", f"--bundle={directory}"]
        + ["--port=0", "--grpc_port=0", *flags],
        cwd=ROOT,
        stderr=stderr,
      )
    self.port, self.grpc_port = map(
      int, self.wait_for_line(r"REST on port (\d+), gRPC on port (\d+)")
    )
    self.channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}")
    self.stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)

  def wait_for_line(self, pattern):
    def find():
      assert self.process.poll() is None, self.log.read_text()[-2000:]
      return re.search(pattern, self.log.read_text())

    return wait_for(find).groups()

  def http(self, path, body=None, connection=None):
    """Returns status and text; sends POST if there is a body."""
    connection = connection or http.client.HTTPConnection(
      "127.0.0.1", self.port, timeout=180
    )
    connection.request("GET" if body is None else "POST", path, body)
    response = connection.getresponse()
    return response.status, response.read().decode()

  def rest(self, inputs, signature="recommend", connection=None):
    request = {"signature_name": signature, "inputs": inputs}
    status, text = self.http(
      "/v1/models/retriever:predict", json.dumps(request), connection
    )
    assert status == 200, text
    return json.loads(text)["outputs"]

  def grpc(self, inputs, signature="recommend", **spec):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = spec.get("name", "retriever")
    request.model_spec.signature_name = signature
    if "version" in spec:
      request.model_spec.version.value = spec["version"]
    for name, value in inputs.items():
      request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    request.output_filter.extend(spec.get("output_filter", ()))
    response = self.stub.Predict(request, timeout=spec.get("timeout", 30))
    return {
      name: _as_lists(tf.make_ndarray(x))
      for name, x in response.outputs.items()
    }, response.model_spec

  def metric(self, name):
    """The sum of a metric over its labels."""
    lines = self.http("/metrics")[1].splitlines()
    found = [x for x in lines if re.match(rf"retriever_{name}[ {{]", x)]
    assert found, name
    return sum(float(x.rpartition(" ")[2]) for x in found)

  def version(self):
    """The oldest version that any worker answers with."""
    return self.metric("bundle_version")

  def worker_ids(self):
    children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
    return pathlib.Path(children).read_text().split()

  def stop(self):
    self.channel.close()
    if self.process.poll() is None:
      self.process.kill()
    self.process.wait()


def wait_for(find, seconds=180):
  end = time.monotonic() + seconds
  while not (found := find()):
    assert time.monotonic() < end
    time.sleep(0.05)
  return found


def _as_lists(array):
  if array.dtype == object:
    array = np.vectorize(bytes.decode, [object])(array)
  return array.tolist()


def _inputs(query_ids, k, exclude=None, allow=None):
  nothing = [[""]] * len(query_ids)
  return {
    "query_id": list(query_ids),
    "k": k,
    "exclude_ids": exclude or nothing,
    "allow_ids": allow or nothing,
  }


def _expected(found):
  """Converts an answer of `Bundle` to that of the server."""
  answer = {
    "candidate_ids": found.ids.tolist(),
    "scores": found.scores.tolist(),
    "num_found": found.num_found.tolist(),
    "titles": found.titles.tolist(),
  }
  if hasattr(found, "known"):
    answer["known"] = found.known.tolist()
    answer["popular"] = found.popular.tolist()
  return answer


def _expected_of_sessions(found):
  """The same for the signature `recommend_session`."""
  answer = _expected(found)
  del answer["known"]
  return {**answer, "num_history": found.num_history.tolist()}


def _same(found, expected):
  """Whether answers are the same; scores differ slightly with the batch."""
  return (
    found.keys() == expected.keys()
    and all(found[x] == expected[x] for x in expected if x != "scores")
    and np.allclose(found["scores"], expected["scores"], rtol=1e-5, atol=1e-6)
  )


class Clients:
  """Runs `work(number)` in threads."""

  def __init__(self, work, count):
    self._work = work
    self._failures = []
    self._threads = [
      threading.Thread(target=self._run, args=(i,)) for i in range(count)
    ]
    for thread in self._threads:
      thread.start()

  def _run(self, number):
    try:
      self._work(number)
    except BaseException as error:
      self._failures.append(error)

  def check(self):
    """Raises the first exception of the threads."""
    if self._failures:
      raise self._failures[0]

  def join(self):
    for thread in self._threads:
      thread.join()
    self.check()


@pytest.fixture(scope="module")
def server(exported, tmp_path_factory):
  log = tmp_path_factory.mktemp("server") / "log"
  running = Server(exported, log, "--batch_timeout_ms=5")
  try:
    # The ports open before the bundle is loaded.
    running.first_looks = running.http("/healthz"), running.http("/readyz")
    running.wait_for_line("Ready as retriever with version 1, (index scann)")
    yield running
  finally:
    running.stop()


@pytest.fixture(scope="module")
def loaded(exported):
  return bundle.Bundle.load(exported, check_hashes=False)


def test_health_and_readiness(server):
  assert server.first_looks == ((200, "ok\n"), (503, "loading\n"))
  assert server.http("/readyz") == (200, "ready\n")


def test_rest_and_grpc_answer_as_the_bundle_does(server, loaded, world):
  queries = [world.query_ids[3], "nobody", world.query_ids[38]]
  exclude = [["item 1", world.ranking(3)[0]], ["item 0", ""], ["", ""]]
  allow = [["", ""], ["", ""], ["item 5", "item 8"]]
  inputs = _inputs(queries, 4, exclude, allow)
  allowed = [[x for x in row if x] for row in allow]
  expected = _expected(
    loaded.recommend(queries, k=4, exclude_ids=exclude, allow_ids=allowed)
  )
  assert expected["known"] == [True, False, True]
  assert expected["num_found"] == [4, 4, 2]
  assert expected["scores"][2][2:] == [-np.inf] * 2
  found = server.rest(inputs)
  assert _same(found, expected)
  assert list(found) == list(expected)
  answer, spec = server.grpc(inputs)
  assert _same(answer, expected)
  assert (spec.name, spec.version.value, spec.signature_name) == (
    *("retriever", 1),
    "recommend",
  )
  # The default signature gives the same answer.
  status, text = server.http(
    "/v1/models/retriever/versions/1:predict", json.dumps({"inputs": inputs})
  )
  assert (status, _same(json.loads(text)["outputs"], expected)) == (200, True)
  answer, spec = server.grpc(inputs, "", version=1)
  assert _same(answer, expected) and spec.signature_name == "serving_default"


def test_every_signature(server, loaded, world):
  queries = world.query_ids[:2]
  unseen = loaded.recommend(queries, k=5, exclude_seen=True)
  assert _same(
    server.rest(_inputs(queries, 5), "recommend_unseen"), _expected(unseen)
  )
  similar = _expected(loaded.similar_items(["item 7", "item 8"], 3))
  items = {"ids": ["item 7", "item 8"], "k": 3}
  assert _same(server.rest(items, "similar_items"), similar)
  vectors = server.rest({"query_id": queries}, "encode_query")["embedding"]
  np.testing.assert_allclose(vectors, world.query_vectors[:2], rtol=1e-5)
  nothing = _inputs(queries, 5)
  del nothing["query_id"]
  search = server.rest({"query_embeddings": vectors, **nothing}, "search")
  recommended = _expected(loaded.recommend(queries, k=5))
  assert search["candidate_ids"] == recommended["candidate_ids"]
  features = {
    "tag": ["a", ""],
    "words": [["w", "x"], ["y", ""]],
    "price": np.array([1, np.nan], np.float32),
    "blurb": ["Ärgerlich neu", ""],
    "place": np.array([[1, 2], [np.nan] * 2], np.float32),
  }
  names = ["item 3", "no item"]
  expected = loaded.encode_candidates(
    names, {name: list(x) for name, x in features.items()}
  )
  answer, _ = server.grpc(
    {"candidate_id": names, **features}, "encode_candidate"
  )
  np.testing.assert_allclose(answer["embedding"], expected, rtol=1e-5)


def test_lists_and_side_features_may_be_left_out(server, loaded, world):
  queries = world.query_ids[:2]
  expected = _expected(loaded.recommend(queries, k=4))
  assert _same(server.rest({"query_id": queries, "k": 4}), expected)
  assert _same(server.grpc({"query_id": queries, "k": 4})[0], expected)
  names = ["item 3", "item 8"]
  features = {"price": [None, 7.0]}
  found = server.rest({"candidate_id": names, **features}, "encode_candidate")
  np.testing.assert_allclose(
    found["embedding"],
    loaded.encode_candidates(names, features),
    rtol=1e-5,
  )


def test_row_format(server, loaded, world):
  queries = world.query_ids[:3]
  instances = [
    {"query_id": x, "k": 2, "exclude_ids": ["item 1"], "allow_ids": [""]}
    for x in queries
  ]
  status, text = server.http(
    "/v1/models/retriever:predict", json.dumps({"instances": instances})
  )
  assert status == 200
  rows = json.loads(text)["predictions"]
  columns = {name: [row[name] for row in rows] for name in rows[0]}
  expected = loaded.recommend(queries, k=2, exclude_ids=[["item 1"]] * 3)
  assert _same(columns, _expected(expected))


def test_output_filter(server, world):
  inputs = _inputs(world.query_ids[:1], 3)
  answer, _ = server.grpc(inputs, output_filter=["scores"])
  assert list(answer) == ["scores"]


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"k": 0}, "`k` must be from 1 to 10000. Received: 0"),
    ({"k": 10_001}, "`k` must be from 1 to 10000. Received: 10001"),
    ({"query_id": None}, "`query_id` is missing; it must be string [n]"),
    ({"query": ["a"]}, "`query` is not an input of the signature; its inputs"),
    ({"query_id": [7]}, "`query_id` must be string [n]. Received: "),
    ({"query_id": [["a"]]}, "`query_id` must be string [n]. Received: "),
    ({"query_id": ["a", "b"]}, "`exclude_ids` must have as many rows as"),
  ],
)
def test_wrong_inputs_are_400_and_named(server, changes, message):
  inputs = {**_inputs(["a"], 3), **changes}
  inputs = {name: x for name, x in inputs.items() if x is not None}
  status, text = server.http(
    "/v1/models/retriever:predict", json.dumps({"inputs": inputs})
  )
  assert status == 400 and message in json.loads(text)["error"]
  with pytest.raises(grpc.RpcError) as caught:
    server.grpc(inputs)
  assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
  assert message in caught.value.details()


def test_unknown_model_version_signature_or_verb_is_404(server):
  good = _inputs(["a"], 3)
  for path, request in (
    ("retriever:predict", {"inputs": good, "signature_name": "rank"}),
    ("retriever/versions/2:predict", {"inputs": good}),
    ("other:predict", {"inputs": good}),
    ("retriever:classify", {"inputs": good}),
    ("retriever/versions/1:classify", {"inputs": good}),
  ):
    status, text = server.http(f"/v1/models/{path}", json.dumps(request))
    assert status == 404 and json.loads(text)["error"], path
  for path in ("other", "retriever/versions/2", "other/metadata"):
    status, text = server.http(f"/v1/models/{path}")
    assert status == 404 and json.loads(text)["error"], path
  for spec in ({"name": "other"}, {"version": 2}, {"signature": "rank"}):
    with pytest.raises(grpc.RpcError) as caught:
      server.grpc(good, **spec)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "there is no" in caught.value.details()


@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_get_of_a_predict_address_is_405(server, version):
  status, text = server.http(f"/v1/models/retriever{version}:predict")
  assert status == 405 and "GET" in json.loads(text)["error"]
  assert server.http(f"/v1/models/retriever{version}")[0] == 200
  assert server.http(f"/v1/models/retriever{version}", "{}")[0] == 405


def test_connections_send_small_packets_at_once():
  """Otherwise answers on persistent connections wait for acknowledgements."""
  with serving_server._listen("127.0.0.1", 0) as listening:
    with socket.create_connection(listening.getsockname()):
      accepted, _ = listening.accept()
      with accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_client_that_breaks_off_its_request_is_cancelled_without_a_word(server):
  def count(status):
    text = server.http("/metrics")[1]
    return sum(
      float(x.rpartition(" ")[2])
      for x in text.splitlines()
      if x.startswith("retriever_requests_total") and f'"{status}"' in x
    )

  before = count("CANCELLED"), count("INTERNAL"), server.log.read_text()
  with socket.create_connection(("127.0.0.1", server.port)) as connection:
    connection.sendall(
      b"POST /v1/models/retriever:predict HTTP/1.1\r\nHost: x\r\n"
      b'Content-Length: 1000\r\n\r\n{"inputs": '
    )
    wait_for(lambda: server.metric("requests_in_flight") == 1)
  wait_for(lambda: count("CANCELLED") == before[0] + 1)
  assert (count("INTERNAL"), server.log.read_text()) == before[1:]
  assert server.http("/healthz") == (200, "ok\n")


def test_body_that_is_not_json_is_400(server):
  for body in (b"", b"{", b"\xff", b"[" * 100_000, b'{"\\ud800": 1}'):
    status, text = server.http("/v1/models/retriever:predict", body)
    assert status == 400 and json.loads(text)["error"], body[:9]


def test_status_and_metadata(server, loaded):
  status, text = server.http("/v1/models/retriever")
  assert (status, json.loads(text)) == (
    200,
    {
      "model_version_status": [
        {
          "version": "1",
          "state": "AVAILABLE",
          "status": {"error_code": "OK", "error_message": ""},
        }
      ]
    },
  )
  request = get_model_status_pb2.GetModelStatusRequest()
  request.model_spec.name = "retriever"
  stub = model_service_pb2_grpc.ModelServiceStub(server.channel)
  (found,) = stub.GetModelStatus(request).model_version_status
  assert (found.version, found.state) == (1, 30)

  metadata = json.loads(server.http("/v1/models/retriever/metadata")[1])
  assert metadata["model_spec"]["version"] == "1"
  described = metadata["metadata"]["signature_def"]["signature_def"]
  assert described.keys() == loaded.signatures.keys()
  exclude = described["recommend"]["inputs"]["exclude_ids"]
  assert exclude["dtype"] == "DT_STRING"
  assert [x["size"] for x in exclude["tensor_shape"]["dim"]] == ["-1", "-1"]
  request = get_model_metadata_pb2.GetModelMetadataRequest()
  request.model_spec.name = "retriever"
  request.metadata_field.append("signature_def")
  packed = server.stub.GetModelMetadata(request).metadata["signature_def"]
  signatures = get_model_metadata_pb2.SignatureDefMap()
  assert packed.Unpack(signatures)
  vectors = signatures.signature_def["search"].inputs["query_embeddings"]
  assert [x.size for x in vectors.tensor_shape.dim] == [
    -1,
    loaded.vectors.shape[1],
  ]


def test_metrics_count(server, world):
  def count(labels):
    text = server.http("/metrics")[1]
    found = re.search(rf"requests_total{{{labels}}} (\d+)", text)
    return int(found[1]) if found else 0

  good = 'protocol="rest",signature="similar_items",status="OK"'
  bad = good.replace("OK", "INVALID_ARGUMENT")
  before = count(good), count(bad)
  server.rest({"ids": ["item 7"], "k": 3}, "similar_items")
  with pytest.raises(AssertionError):
    server.rest({"ids": ["item 7"], "k": 0}, "similar_items")
  assert (count(good), count(bad)) == (before[0] + 1, before[1] + 1)
  assert server.metric("bundle_version") == 1
  assert server.metric("requests_in_flight") == 0
  assert server.metric("request_seconds_count") == server.metric(
    "requests_total"
  )


def _cases(loaded, world):
  """Requests of all kinds, with the correct answers."""
  rng = np.random.default_rng(5)
  signatures = (
    *("recommend", "recommend_unseen", "similar_items"),
    "recommend_session",
  )
  for number in range(60):
    n, k = int(rng.integers(1, 5)), (3, 8)[number // 2 % 2]
    signature = signatures[number % 4]
    names = rng.choice(world.candidate_ids, n).tolist()
    if signature == "similar_items":
      found = loaded.similar_items(names, k)
      yield signature, {"ids": names, "k": k}, _expected(found)
      continue
    queries = rng.choice([*world.query_ids, "nobody"], n).tolist()
    width = int(rng.integers(0, 6))
    exclude = rng.choice(world.candidate_ids, [n, width]).tolist()
    if signature == "recommend_session":
      width = int(rng.integers(1, 6))
      history = rng.choice([*world.candidate_ids, "none"], [n, width]).tolist()
      found = loaded.recommend(history=history, k=k, exclude_ids=exclude)
      inputs = _inputs(queries, k, exclude)
      del inputs["query_id"]
      inputs["history"] = history
      yield signature, inputs, _expected_of_sessions(found)
      continue
    unseen = signature == "recommend_unseen"
    found = loaded.recommend(
      queries, k=k, exclude_ids=exclude, exclude_seen=unseen
    )
    yield signature, _inputs(queries, k, exclude), _expected(found)


def test_many_clients_at_once_get_right_answers(server, loaded, world):
  cases = list(_cases(loaded, world))
  before = server.metric("requests_total"), server.metric("batch_rows_count")
  asked = itertools.count()
  end = time.monotonic() + SECONDS

  def client(number):
    rng = np.random.default_rng(number)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    while time.monotonic() < end:
      signature, inputs, expected = cases[rng.integers(len(cases))]
      if number % 2:
        found = server.rest(inputs, signature, connection)
      else:
        n = len(expected["num_found"])
        if "exclude_ids" in inputs:
          lists = np.array(inputs["exclude_ids"], object).reshape(n, -1)
          inputs = {**inputs, "exclude_ids": tf.constant(lists, tf.string)}
        found, _ = server.grpc(inputs, signature)
      assert _same(found, expected), (signature, inputs, found, expected)
      next(asked)

  Clients(client, THREADS).join()
  answered = server.metric("requests_total") - before[0]
  batches = server.metric("batch_rows_count") - before[1]
  print(f"{answered / SECONDS:.0f} answers per second, {batches:.0f} batches")
  assert answered == next(asked) > 10 * SECONDS
  assert batches < answered  # Some were joined.


def test_clients_in_the_documentation_print_the_answers(server, loaded, world):
  text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
  query = world.query_ids[3]
  expected = loaded.recommend([query], k=10)
  lines = [
    f"{name}\t{round(float(score), 4)}"
    for name, score in zip(expected.ids[0], expected.scores[0], strict=True)
  ]
  for name, port in (("rest", server.port), ("grpc", server.grpc_port)):
    (program,) = re.findall(
      rf'```python\n("""{name}_client\.py .*?)```', text, re.DOTALL
    )
    run = subprocess.run(
      [sys.executable, "-c", program, f"127.0.0.1:{port}", query],
      capture_output=True,
      encoding="utf-8",
      timeout=60,
    )
    assert run.stdout.splitlines() == lines, run.stderr[-2000:]


def test_unusable_bundle_or_port_is_named(
  server, exported, tmp_path, monkeypatch
):
  monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("it went on"))
  options = serve.ServeOptions(
    bundle=str(tmp_path),
    index=None,
    host="127.0.0.1",
    port=0,
    grpc_port=0,
    model_name="retriever",
    max_batch_size=1,
    batch_timeout_ms=0.0,
    threads=1,
    watch_seconds=1,
    shutdown_seconds=1,
  )
  taken = {"port": server.port, "grpc_port": server.grpc_port}
  for changes, message in (
    ({}, "manifest.json: not found"),
    ({"port": taken["port"]}, f"--port {taken['port']} of 127.0.0.1: "),
    (
      {"grpc_port": taken["grpc_port"]},
      f"--grpc_port {taken['grpc_port']} of 127.0.0.1: ",
    ),
  ):
    with pytest.raises(errors.DataError, match=message):
      serving_server.run(dataclasses.replace(options, **changes))


def test_missing_extra_says_what_to_install(monkeypatch):
  monkeypatch.delattr("export.serving.server")
  monkeypatch.setitem(sys.modules, "export.serving.server", None)
  with pytest.raises(errors.DataError, match="pip install .*serving"):
    serve.serve(serve.ServeOptions(bundle="b"))


@pytest.fixture(scope="module")
def other(world, tmp_path_factory):
  """A bundle over the same ids with other answers."""
  root = tmp_path_factory.mktemp("other")
  model_dir = root / "model"
  shutil.copytree(world.model_dir, model_dir)
  shutil.rmtree(model_dir / "best")
  shutil.copytree(model_dir / "checkpoints", model_dir / "best")
  export_retriever.export_retriever(
    export_retriever.ExportOptions(
      data=str(world.data),
      model_dir=str(model_dir),
      output=str(root / "bundle"),
      indexes=("brute_force",),
    )
  )
  return root / "bundle"


@pytest.fixture(scope="module")
def switching(exported, tmp_path_factory):
  """Workers whose bundle may be replaced; full batches run at once."""
  root = tmp_path_factory.mktemp("switching")
  shutil.copytree(exported, root / "live")
  running = Server(
    root / "live",
    root / "log",
    "--index=brute_force",
    "--watch_seconds=0.1",
    "--max_batch_size=4",
    f"--batch_timeout_ms={SLOW_MS}",
    "--drain_seconds=0",
    f"--workers={WORKERS}",
  )
  running.directory = root / "live"
  try:
    running.wait_for_line(f"(All {WORKERS} workers are ready)")
    yield running
  finally:
    running.stop()


def _replace(directory, source):
  with manifests.new_bundle(directory, overwrite=True) as partial:
    shutil.copytree(source, partial, dirs_exist_ok=True)


def test_new_bundles_take_over_without_a_wrong_answer(
  switching, exported, other, world
):
  queries = world.query_ids[:4]
  answers = {
    source: _expected(
      bundle.Bundle.load(source, "brute_force", False).recommend(queries, k=5)
    )
    for source in (exported, other)
  }
  assert not _same(answers[exported], answers[other])
  first, before = switching.version(), switching.worker_ids()
  assert len(before) == WORKERS
  sources = [exported]  # Bundles of the versions from `first` on.
  range_now = (0, 0)  # The oldest and newest version that may answer.
  stop = threading.Event()
  asked = itertools.count()

  def client(number):
    connection = http.client.HTTPConnection("127.0.0.1", switching.port)
    while not stop.is_set():
      oldest = range_now[0]
      if number % 2:
        found = switching.rest(_inputs(queries, 5), connection=connection)
      else:
        found, _ = switching.grpc(_inputs(queries, 5))
      allowed = sources[oldest : range_now[1] + 1]
      assert any(_same(found, answers[x]) for x in allowed), found
      next(asked)
      time.sleep(0.01)

  def replace_link(source):
    """A bundle may also be a symbolic link that changes."""
    moved = switching.directory.with_name("moved")
    if not switching.directory.is_symlink():
      switching.directory.rename(moved)
      switching.directory.symlink_to(moved)
    link = switching.directory.with_name("link")
    link.symlink_to(source)
    os.replace(link, switching.directory)

  def take_over(change, source):
    nonlocal range_now
    sources.append(source)
    last = len(sources) - 1
    range_now = (last - 1, last)
    change(source)
    wait_for(lambda: clients.check() or switching.version() == first + last)
    range_now = (last, last)
    before = next(asked)
    wait_for(lambda: clients.check() or next(asked) > before + 20)

  clients = Clients(client, 4)
  try:
    take_over(lambda source: _replace(switching.directory, source), other)
    take_over(replace_link, exported)
  finally:
    stop.set()
  clients.join()
  assert switching.metric("bundle_switches_total") == WORKERS * (first + 1)
  assert switching.worker_ids() == before


def test_a_broken_bundle_leaves_the_old_one(
  switching, exported, other, world, tmp_path
):
  link = switching.directory
  if not link.is_symlink():
    link.rename(link.with_name("moved"))
    link.symlink_to(link.with_name("moved"))
  broken = tmp_path / "broken"
  shutil.copytree(exported, broken)
  variables = next((broken / "brute_force").rglob("variables.data*"))
  content = bytearray(variables.read_bytes())
  content[len(content) // 2] ^= 1
  variables.write_bytes(content)
  version = switching.version()
  inputs = _inputs(world.query_ids[:4], 5)
  answer = switching.rest(inputs)
  failed = switching.metric("bundle_failed_switches_total")

  def point_to(source):
    new = link.with_name("new")
    new.symlink_to(source)
    os.replace(new, link)

  point_to(broken)
  wait_for(
    lambda: (
      switching.metric("bundle_failed_switches_total") == failed + WORKERS
    )
  )
  assert switching.version() == version
  assert _same(switching.rest(inputs), answer)
  (line,) = set(  # From each worker.
    re.findall(r"Stays with version \d+: (.*)", switching.log.read_text())
  )
  assert "variables.data" in line
  status, text = switching.http("/-/reload", b"")
  assert status == 500 and "variables.data" in json.loads(text)["error"]
  # One failure of the check, which skips an unchanged bundle, and one of the
  # request.
  assert (
    switching.metric("bundle_failed_switches_total") == failed + 2 * WORKERS
  )
  point_to(other)
  wait_for(lambda: switching.version() == version + 1)
  status, text = switching.http("/-/reload", b"")
  assert (status, json.loads(text)) == (200, {"version": str(int(version) + 2)})


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(switching, world):
  first, _ = switching.worker_ids()
  version = switching.version()
  os.kill(int(first), signal.SIGKILL)
  # Its connections are lost; new ones reach the other worker.
  wait_for(lambda: first not in switching.worker_ids())
  right = _inputs(world.query_ids[:4], 3)
  expected = switching.rest(right)
  wait_for(lambda: switching.log.read_text().count("Ready as") == WORKERS + 1)
  assert switching.version() == version
  for _ in range(20):
    assert _same(switching.rest(right), expected)


def test_call_past_its_deadline_counts_as_cancelled(switching, world):
  with pytest.raises(grpc.RpcError) as caught:
    switching.grpc(_inputs(world.query_ids[:1], 3), timeout=0.2)
  assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
  wait_for(lambda: 'status="CANCELLED"} 1.0' in switching.http("/metrics")[1])
  assert switching.metric("requests_in_flight") == 0


def test_a_stop_lets_requests_in_flight_finish(switching, world):
  """The last test, because it stops the server."""
  inputs = _inputs(world.query_ids[:1], 3)
  right = _inputs(world.query_ids[:1] * 4, 3)
  expected = {name: x[:1] for name, x in switching.rest(right).items()}
  answers = []

  def client(number):
    if number:
      answers.append(switching.rest(inputs))
    else:
      answers.append(switching.grpc(inputs)[0])

  clients = Clients(client, 2)
  wait_for(lambda: switching.metric("requests_in_flight") == 2)
  switching.process.send_signal(signal.SIGTERM)

  def refuses():
    with contextlib.closing(socket.socket()) as attempt:
      return attempt.connect_ex(("127.0.0.1", switching.port)) != 0

  wait_for(refuses)
  assert not answers and switching.process.poll() is None
  clients.join()
  assert len(answers) == 2
  assert all(_same(answer, expected) for answer in answers)
  assert switching.process.wait(20) == 0
  assert "Traceback" not in switching.log.read_text()
