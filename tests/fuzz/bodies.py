"""Broken REST and gRPC requests to a server that runs in this process."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import pathlib
from concurrent import futures
from typing import Any

import grpc
import tensorflow as tf
from google.protobuf import message
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2

from export.serving import (
  batching,
  metrics,
  models,
  options,
  rest,
  rpc,
  service,
)
from tests.export import conftest as worlds
from tests.fuzz import mutants
from tests.fuzz import targets as targets_lib
from xir_tfrs.data import errors

_NAME = "retriever"
_LIMITS = options.Limits(max_rows=64, max_answers=4096, max_width=256)
_REFUSALS = (400, 404, 405, 413, 429)


class _Refused(errors.DataError):
  """The server refused a request, with a reason."""


def targets(
  world: worlds.World, bundle: pathlib.Path
) -> list[targets_lib.Target]:
  """REST and gRPC targets that serve the same bundle."""
  server = _Server(world, bundle)
  bodies = [json.dumps(request).encode() for request in _requests(world)]
  protos = [_proto(request).SerializeToString() for request in _requests(world)]
  return [
    targets_lib.Target(
      "REST bodies",
      st.one_of(mutants.of_bytes(bodies), mutants.of_json(bodies)),
      server.rest,
    ),
    targets_lib.Target("gRPC bodies", mutants.of_bytes(protos), server.grpc),
    targets_lib.Target("gRPC inputs", _inputs(world), server.grpc),
  ]


def _requests(world: worlds.World) -> list[dict[str, Any]]:
  queries = [*world.query_ids[:2], "nobody"]
  none = [[] for _ in queries]
  inputs = {
    "query_id": queries,
    "k": 5,
    "exclude_ids": [["item 1", ""], ["item 2", "item 3"], ["", ""]],
    "allow_ids": none,
  }
  row = {"query_id": world.query_ids[3], "k": 3, "exclude_ids": ["item 0"]}
  return [
    {"inputs": inputs},
    {"signature_name": "recommend", "inputs": inputs},
    {"instances": [{**row, "allow_ids": []}, {**row, "allow_ids": []}]},
    {
      "signature_name": "similar_items",
      "inputs": {"ids": ["item 5", "nothing"], "k": 4},
    },
    {
      "signature_name": "encode_query",
      "inputs": {"query_id": [world.query_ids[1]]},
    },
  ]


def _proto(request: dict[str, Any]) -> predict_pb2.PredictRequest:
  made = predict_pb2.PredictRequest()
  made.model_spec.name = _NAME
  made.model_spec.signature_name = request.get("signature_name", "")
  inputs = request.get("inputs")
  if inputs is None:
    rows = request["instances"]
    inputs = {name: [row[name] for row in rows] for name in rows[0]}
    inputs["k"] = rows[0]["k"]
  for name, value in inputs.items():
    dtype = tf.int32 if name == "k" else tf.string
    made.inputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
  return made


def _inputs(world: worlds.World) -> st.SearchStrategy[bytes]:
  """Requests whose tensors have any type, shape and number of values."""
  sizes = st.sampled_from([-2, -1, 0, 1, 2, 3, 64, 65, 2**20, 2**31, 2**62])
  types = st.sampled_from([*range(0, 30), 101, 2**31 - 1])
  strings = st.lists(
    st.sampled_from([b"", b"\xff", "é".encode(), b"item 1", b"x" * 300]),
    max_size=4,
  )
  numbers = st.lists(st.sampled_from([-1, 0, 1, 5, 10**9]), max_size=3)

  @st.composite
  def request(draw) -> bytes:
    made = _proto(draw(st.sampled_from(_requests(world))))
    for name in draw(st.sets(st.sampled_from(sorted(made.inputs)))):
      proto = made.inputs[name]
      if draw(st.booleans()):
        proto.dtype = draw(types)
      if draw(st.booleans()):
        del proto.tensor_shape.dim[:]
        for size in draw(st.lists(sizes, max_size=4)):
          proto.tensor_shape.dim.add().size = size
      if draw(st.booleans()):
        proto.tensor_content = draw(st.binary(max_size=12))
      if draw(st.booleans()):
        del proto.string_val[:]
        proto.string_val.extend(draw(strings))
      if draw(st.booleans()):
        del proto.int_val[:]
        proto.int_val.extend(draw(numbers))
    if draw(st.booleans()):
      made.output_filter.extend(draw(st.lists(st.sampled_from(["x", ""]))))
    return made.SerializeToString()

  return request()


class _Server:
  """Answers requests without a network."""

  def __init__(self, world: worlds.World, bundle: pathlib.Path):
    self._world = world
    self._loop = asyncio.new_event_loop()
    pool = futures.ThreadPoolExecutor(1)
    counted = metrics.Metrics()

    async def make() -> service.Service:
      holder = models.Holder(bundle, "brute_force", counted)
      made = service.Service(
        _NAME,
        holder,
        counted,
        lambda run: batching.Batcher(run, pool, 64, 0.0),
        _LIMITS,
      )
      await holder.reload()
      return made

    self._service = self._loop.run_until_complete(make())
    self._app = rest.application(self._service, "127.0.0.1")
    self._predict = rpc._Prediction(self._service).Predict

  def rest(self, body: bytes) -> None:
    status, content = self._loop.run_until_complete(self._post(body))
    answer = json.loads(content)
    if status != 200:
      assert status in _REFUSALS, (status, answer)
      assert set(answer) == {"error"} and answer["error"], answer
      raise _Refused(answer["error"].replace("\n", " "))
    request = json.loads(body)
    if "inputs" in request:
      self._check(request, request["inputs"], answer["outputs"])
      return
    outputs = answer["predictions"]
    if outputs and isinstance(outputs[0], dict):
      columns = {k: [row[k] for row in outputs] for k in outputs[0]}
      rows = request["instances"]
      names = {name for row in rows for name in row}
      inputs = {name: [row.get(name) for row in rows] for name in names}
      inputs = {name: x for name, x in inputs.items() if any(x)}
      self._check(request, inputs, columns)

  def grpc(self, body: bytes) -> None:
    try:
      request = predict_pb2.PredictRequest.FromString(body)
    except message.DecodeError as error:
      raise _Refused("gRPC itself refuses it") from error
    try:
      answer = self._loop.run_until_complete(self._predict(request, _Context()))
    except _Aborted as error:
      assert error.code.name in ("INVALID_ARGUMENT", "NOT_FOUND"), error.args
      raise _Refused(error.args[0].replace("\n", " ")) from None
    inputs = {
      name: tf.make_ndarray(proto).tolist()
      for name, proto in request.inputs.items()
    }
    outputs = {
      name: tf.make_ndarray(proto).tolist()
      for name, proto in answer.outputs.items()
    }
    spec = request.model_spec
    self._check({"signature_name": spec.signature_name}, inputs, outputs)

  def _check(self, request: dict, inputs: Any, outputs: Any) -> None:
    """Compares answers to known queries with a ranking by NumPy."""
    name = request.get("signature_name") or "recommend"
    if name not in ("recommend", "serving_default"):
      return
    for place, query in enumerate(map(_text, inputs["query_id"])):
      ids = [_text(x) for x in outputs["candidate_ids"][place]]
      excluded = _listed(inputs.get("exclude_ids"), place)
      allowed = _listed(inputs.get("allow_ids"), place)
      found = [x for x in ids if x]
      assert outputs["num_found"][place] == len(found)
      assert not excluded & set(found) and len(set(found)) == len(found)
      assert not allowed or set(found) <= allowed, (allowed, found)
      known = query in self._world.query_ids[:-1]
      assert outputs["known"][place] == known, query
      if known:
        row = self._world.query_ids.index(query)
        right = [
          x
          for x in self._world.ranking(row, excluded)
          if not allowed or x in allowed
        ]
        assert found == right[: len(ids)], (query, found, right[: len(ids)])
      scores = [x for x in outputs["scores"][place] if x != -math.inf]
      assert scores == sorted(scores, reverse=True)

  async def _post(self, body: bytes) -> tuple[int, bytes]:
    sent: list[dict] = []
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict:
      for part in parts:
        return part
      await asyncio.Event().wait()
      raise AssertionError

    async def send(part: dict) -> None:
      sent.append(part)

    path = f"/v1/models/{_NAME}:predict"
    scope = {
      "type": "http",
      "method": "POST",
      "path": path,
      "raw_path": path.encode(),
      "query_string": b"",
      "root_path": "",
      "headers": [],
      "http_version": "1.1",
      "scheme": "http",
      "server": ("127.0.0.1", 1),
      "client": ("127.0.0.1", 2),
    }
    await self._app(scope, receive, send)
    content = b"".join(part.get("body", b"") for part in sent)
    return sent[0]["status"], content


class _Aborted(Exception):
  def __init__(self, code: grpc.StatusCode, text: str):
    super().__init__(text)
    self.code = code


class _Context:
  """The part of a gRPC context that the server uses."""

  async def abort(self, code, text, metadata=()) -> None:
    raise _Aborted(code, text)


def _listed(lists: Any, place: int) -> set[str]:
  """Returns the ids in a row; lists, rows and ids may be null."""
  return {_text(x) for x in (lists or {place: ()})[place] or ()} - {"", None}


def _text(value: Any) -> Any:
  """Converts an id to text; None, the padding, stays None."""
  if isinstance(value, dict):  # {"b64": ...}
    value = base64.b64decode(value["b64"])
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
