"""A server in this process, with a model of plain Python."""

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
import types

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
  predict_pb2,
  prediction_service_pb2_grpc,
)

from export.serving import models, options, server

PREDICT = "/v1/models/retriever:predict"
GRPC_OPTIONS = [("grpc.enable_retries", 0)]


class Model:
  """Answers `look_up` immediately, and `wait` when `gate` opens."""

  version, max_k = 1, 10_000
  bundle = types.SimpleNamespace(index="none")
  signatures = {
    name: {
      "inputs": {
        "x": {"dtype": "int32", "shape": [None]},
        "k": {"dtype": "int32", "shape": []},
      },
      "outputs": {"ids": {"dtype": "string", "shape": [None, None]}},
    }
    for name in ("look_up", "wait")
  }

  def __init__(self):
    self.gate, self.waiting, self.runs = threading.Event(), 0, []

  def run(self, signature, inputs):
    self.runs.append((signature, inputs["x"].tolist()))
    if signature == "wait":
      self.waiting += 1
      assert self.gate.wait(30)
      self.waiting -= 1
    rows = [[b"%d" % x] * int(inputs["k"]) for x in inputs["x"]]
    return {"ids": np.array(rows, object)}


class Running:
  """A server in its own thread, and its clients."""

  def __init__(self, model, directory, certificate=None, **changes):
    """Takes the file of a `certificate` to trust."""
    self.model = model
    self.port, self.grpc_port = _free_port(), _free_port()
    self._options = options.ServeOptions(
      bundle=str(directory),
      port=self.port,
      grpc_port=self.grpc_port,
      batch_timeout_ms=0.0,
      threads=1,
      **changes,
    )
    self._certificate = certificate
    self._thread = threading.Thread(target=asyncio.run, args=[self._serve()])
    self._thread.start()
    wait_for(lambda: self.status() == 200)
    self.channel = self.open_channel()

  def open_channel(self):
    address = f"localhost:{self.grpc_port}"
    if self._certificate is None:
      return grpc.insecure_channel(address, GRPC_OPTIONS)
    content = self._certificate.read_bytes()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(content))

  async def _serve(self):
    self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
    await server.serve(self._options, self._stop)

  def begin_stop(self):
    self._loop.call_soon_threadsafe(self._stop.set)

  def stop(self):
    if self._thread.is_alive():
      self.channel.close()
      self.begin_stop()
      self._thread.join()

  def status(self, path="/readyz"):
    with contextlib.suppress(OSError):
      return self.http("GET", path)[0]

  def open_http(self):
    if self._certificate is None:
      return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
    context = ssl.create_default_context(cafile=str(self._certificate))
    return http.client.HTTPSConnection(
      "localhost", self.port, timeout=30, context=context
    )

  def http(self, method, path, body=None, headers=None):
    """Returns status, text and headers."""
    connection = self.open_http()
    with contextlib.closing(connection):
      connection.request(method, path, body, headers or {})
      response = connection.getresponse()
      return response.status, response.read().decode(), response.headers

  def rest(self, signature="look_up", x=(7,), k=1):
    """Returns status, content and headers."""
    status, text, headers = self.http("POST", PREDICT, body(signature, x, k))
    return status, json.loads(text), headers

  def grpc(self, signature="look_up", x=(7,), k=1):
    """Starts a call, which the caller may await or cancel."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "retriever"
    request.model_spec.signature_name = signature
    for name, value in (("x", x), ("k", k)):
      request.inputs[name].CopyFrom(tf.make_tensor_proto(value, tf.int32))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
    return stub.Predict.future(request, timeout=30)

  def connect(self, content=b""):
    """Opens a connection and sends `content`."""
    connection = socket.create_connection(("127.0.0.1", self.port), 30)
    connection.sendall(content)
    return connection

  def in_flight(self):
    text = self.http("GET", "/metrics")[1]
    return float(text.split("\nretriever_requests_in_flight ")[1].split()[0])


def body(signature="look_up", x=(7,), k=1):
  inputs = {"x": list(x), "k": k}
  return json.dumps({"signature_name": signature, "inputs": inputs}).encode()


def raw(content, *headers):
  """The bytes of a predict call."""
  lines = [f"POST {PREDICT} HTTP/1.1", "Host: x", *headers]
  if not any(x.startswith("Content-Length") for x in headers):
    lines.append(f"Content-Length: {len(content)}")
  return "\r\n".join([*lines, "", ""]).encode() + content


def wait_for(find, seconds=30):
  end = time.monotonic() + seconds
  while not (found := find()):
    assert time.monotonic() < end
    time.sleep(0.01)
  return found


def _free_port():
  with socket.create_server(("127.0.0.1", 0)) as listening:
    return listening.getsockname()[1]


@contextlib.contextmanager
def run(directory, model=None, **changes):
  """A server of a `Model`, or of the given model."""
  model = model or Model()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models.Holder, "_load", lambda self, version: (model, None))
    made = Running(model, directory, **changes)
    try:
      yield made
    finally:
      model.gate.set()
      made.stop()
