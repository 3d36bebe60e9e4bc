r"""Loads a server for some minutes, with valid and hostile clients.

    python -m benchmarks.soak --minutes 30 --clients 32 [--workers 2]

Valid clients call REST and gRPC on persistent connections and compare every
answer with that of the bundle, loaded in this process. Hostile clients, a
quarter of all, send broken, oversized or slow requests, make the largest
allowed requests, and disconnect. Every minute a new bundle replaces the old
one.

Prints JSON: numbers of calls and refusals, wrong answers, latency, and memory
of the server's processes. Exits with status 1 if an answer is wrong, a call
fails, a bundle is not loaded, or the memory in the last quarter of the time is
more than 5 % above that in the second quarter.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.client
import json
import pathlib
import random
import re
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from absl import app, flags
from tensorflow_serving.apis import predict_pb2

from benchmarks import harness, serving
from xir_tfrs.serving import bundle as bundles
from xir_tfrs.serving import manifest as manifests

_ROOT = pathlib.Path(__file__).parents[1]
_SIZES = {
  "minutes": (10, "Duration."),
  "clients": (32, "Concurrent clients, a quarter of them hostile."),
  "workers": (1, "Worker processes of the server."),
  "bundle_seconds": (60, "Time between two bundles."),
  "pause_ms": (50, "Mean pause between two calls of a client."),
  "size": (20_000, "Candidates."),
  "dim": (32, "Size of the vectors."),
  "queries": (200, "Known queries."),
}
_BUNDLES = 3
_CASES = 60
_PREDICT = "/v1/models/retriever:predict"
_RPC = "/tensorflow.serving.PredictionService/Predict"
_REFUSED = (429, 503)
_REFUSED_CODES = (
  grpc.StatusCode.RESOURCE_EXHAUSTED,
  grpc.StatusCode.UNAVAILABLE,
)
_GROWTH = 1.05


@dataclasses.dataclass(frozen=True)
class Case:
  """A request, and the correct answer of each bundle.

  Attributes:
    signature: The signature to call.
    inputs: Its inputs by name.
    answers: For each bundle, its outputs by name, as nested lists.
  """

  signature: str
  inputs: Mapping[str, Any]
  answers: Sequence[Mapping[str, Any]]

  def json(self) -> bytes:
    """The body of a REST call."""
    request = {"signature_name": self.signature, "inputs": self.inputs}
    return json.dumps(request).encode()

  def proto(self) -> bytes:
    """The message of a gRPC call."""
    return message(self.signature, self.inputs)


def message(signature: str, inputs: Mapping[str, Any]) -> bytes:
  """A PredictRequest."""
  request = predict_pb2.PredictRequest()
  request.model_spec.name = "retriever"
  request.model_spec.signature_name = signature
  for name, value in inputs.items():
    dtype = tf.int32 if name == "k" else None
    request.inputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
  return request.SerializeToString()


def same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
  """Whether an answer is correct; scores differ slightly with the batch."""
  for name, right in expected.items():
    if name == "scores":
      if not np.allclose(found[name], right, rtol=1e-4, atol=1e-5):
        return False
    elif found[name] != right:
      return False
  return True


class Record:
  """Counts, latencies and problems, which all clients share."""

  def __init__(self):
    self.counts: collections.Counter[str] = collections.Counter()
    self.problems: list[str] = []
    self.seconds: dict[str, list[float]] = {"rest": [], "grpc": []}

  def problem(self, text: str) -> None:
    """Records a problem; only the first ten texts are kept."""
    self.counts["problems"] += 1
    if len(self.problems) < 10:
      self.problems.append(text[:500])


class Server:
  """The addresses of the server, and the bundles that may answer."""

  def __init__(self, port: int, grpc_port: int):
    self.port, self.grpc_port = port, grpc_port
    self.stop = threading.Event()
    self._published = [0]  # Numbers of bundles, in order of publication.
    self._oldest = 0  # Index of the oldest bundle that may answer.

  def publish(self, number: int) -> None:
    """From now on, a new bundle may answer, and so may the previous one."""
    self._published.append(number)

  def taken_over(self) -> None:
    """From now on, only the newest bundle may answer new calls."""
    self._oldest = len(self._published) - 1

  def now(self) -> int:
    """Returns the start of a call, for `may_answer`."""
    return self._oldest

  def may_answer(self, start: int) -> list[int]:
    """Returns the bundles that may answer a call that started at `start`."""
    return self._published[start:]

  def connect(self) -> http.client.HTTPConnection:
    """A REST connection."""
    return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

  def channel(self) -> grpc.Channel:
    """A gRPC connection that no other client shares."""
    return grpc.insecure_channel(
      f"127.0.0.1:{self.grpc_port}",
      [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)],
    )


def good_rest(
  server: Server, cases: Sequence[Case], record: Record, pause: float, seed: int
) -> None:
  """Calls REST until `server.stop`."""
  choose = random.Random(seed)
  bodies = [case.json() for case in cases]
  connection = server.connect()
  while not server.stop.wait(choose.expovariate(1 / pause)):
    number = choose.randrange(len(cases))
    first, start = server.now(), time.perf_counter()
    try:
      connection.request("POST", _PREDICT, bodies[number])
      response = connection.getresponse()
      text = response.read()
    except (OSError, http.client.HTTPException) as error:
      # The server may close the connection that has been idle the longest.
      record.counts["rest reconnected"] += 1
      connection.close()
      if record.counts["rest reconnected"] > 1000:
        record.problem(f"REST: {error!r}")
      continue
    if response.status in _REFUSED:
      record.counts["rest refused"] += 1
    elif response.status != 200:
      record.problem(f"REST: {response.status} {text.decode()}")
    else:
      record.seconds["rest"].append(time.perf_counter() - start)
      check(server, cases[number], json.loads(text)["outputs"], first, record)
  connection.close()


def good_grpc(
  server: Server, cases: Sequence[Case], record: Record, pause: float, seed: int
) -> None:
  """Calls gRPC until `server.stop`."""
  choose = random.Random(seed)
  protos = [case.proto() for case in cases]
  with server.channel() as channel:
    ask = channel.unary_unary(
      _RPC, response_deserializer=predict_pb2.PredictResponse.FromString
    )
    while not server.stop.wait(choose.expovariate(1 / pause)):
      number = choose.randrange(len(cases))
      first, start = server.now(), time.perf_counter()
      try:
        response = ask(protos[number], timeout=60)
      except grpc.RpcError as error:
        if error.code() in _REFUSED_CODES:
          record.counts["grpc refused"] += 1
        else:
          record.problem(f"gRPC: {error.code()} {error.details()}")
        continue
      record.seconds["grpc"].append(time.perf_counter() - start)
      found = {
        name: as_lists(tf.make_ndarray(x))
        for name, x in response.outputs.items()
      }
      check(server, cases[number], found, first, record)


def as_lists(array: np.ndarray) -> list:
  """Converts to nested lists, and bytes to text."""
  if array.dtype == object:
    flat = [x.decode() if isinstance(x, bytes) else x for x in array.ravel()]
    array = np.array(flat, object).reshape(array.shape)
  return array.tolist()


def check(
  server: Server,
  case: Case,
  found: Mapping[str, Any] | list,
  first: int,
  record: Record,
) -> None:
  """Counts an answer as correct or records a problem."""
  if not isinstance(found, Mapping):  # In REST, a single output has no name.
    found = {next(iter(case.answers[0])): found}
  record.counts["right"] += 1
  for number in set(server.may_answer(first)):
    if same(found, case.answers[number]):
      return
  record.counts["right"] -= 1
  record.problem(f"wrong: {case.signature} {case.inputs}: {found}")


def hostile(
  server: Server, cases: Sequence[Case], record: Record, pause: float, seed: int
) -> None:
  """Misbehaves in random ways until `server.stop`."""
  choose = random.Random(seed)
  deeds: list[Callable[[Server, random.Random, Case], int | None]] = [
    *(_send_junk, _send_mutant, _send_too_much, _send_slowly),
    *(_leave_at_once, _do_not_read, _ask_for_much_and_leave, _send_bad_call),
  ]
  while not server.stop.wait(choose.expovariate(1 / pause)):
    deed = choose.choice(deeds)
    status = None
    # The server may close such connections at any time.
    with contextlib.suppress(OSError, http.client.HTTPException):
      status = deed(server, choose, choose.choice(cases))
    record.counts["hostile"] += 1
    if status is not None and status >= 500 and status not in _REFUSED:
      record.problem(f"hostile: {deed.__name__} got status {status}")


def _post(server: Server, body: bytes, headers: Mapping[str, str]) -> int:
  with contextlib.closing(server.connect()) as connection:
    connection.request("POST", _PREDICT, body, dict(headers))
    response = connection.getresponse()
    response.read()
    return response.status


def _send_junk(server: Server, choose: random.Random, case: Case) -> int:
  bodies = (choose.randbytes(100), b"[" * 100_000, b"{}", b"")
  headers = choose.choice(({}, {"Content-Encoding": "gzip"}))
  return _post(server, choose.choice(bodies), headers)


def _send_mutant(server: Server, choose: random.Random, case: Case) -> int:
  body = bytearray(case.json())
  for _ in range(choose.randrange(1, 4)):
    body[choose.randrange(len(body))] = choose.randrange(256)
  return _post(server, bytes(body), {})


def _send_too_much(server: Server, choose: random.Random, case: Case) -> int:
  body = b'{"inputs": {"query_id": [' + b'"x",' * (3 << 20) + b'"x"], "k": 3}}'
  return _post(server, body, {})


def _raw(server: Server, content: bytes) -> socket.socket:
  connection = socket.create_connection(("127.0.0.1", server.port), 60)
  connection.sendall(content)
  return connection


def _head(length: int) -> bytes:
  return (
    f"POST {_PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
  ).encode()


def _send_slowly(server: Server, choose: random.Random, case: Case) -> None:
  with _raw(server, _head(1000)) as connection:
    for _ in range(10):
      connection.sendall(b" ")
      if server.stop.wait(0.2):
        return


def _leave_at_once(server: Server, choose: random.Random, case: Case) -> None:
  body = case.json()
  _raw(server, _head(len(body)) + body).close()


def _do_not_read(server: Server, choose: random.Random, case: Case) -> None:
  body = case.json()
  with socket.socket() as connection:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.settimeout(5)
    connection.sendall((_head(len(body)) + body) * 20)
    server.stop.wait(1)
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def _ask_for_much_and_leave(
  server: Server, choose: random.Random, case: Case
) -> None:
  inputs = {"query_id": ["query 1"] * 256, "k": 500}
  with server.channel() as channel:
    call = channel.unary_unary(_RPC).future(message("recommend", inputs))
    server.stop.wait(choose.random() / 5)
    call.cancel()


def _send_bad_call(
  server: Server, choose: random.Random, case: Case
) -> int | None:
  body = bytearray(case.proto())
  body[choose.randrange(len(body))] = choose.randrange(256)
  with server.channel() as channel:
    try:
      channel.unary_unary(_RPC)(bytes(body), timeout=60)
    except grpc.RpcError as error:
      # gRPC itself returns INTERNAL for bytes that are not a message.
      if error.code() is grpc.StatusCode.INTERNAL and "server failed" in (
        error.details() or ""
      ):
        return 500
  return None


def make_cases(paths: Sequence[str]) -> list[Case]:
  """Requests of all kinds; each bundle gives another answer."""
  choose = random.Random(0)
  loaded = [bundles.Bundle.load(path) for path in paths]
  queries, items = loaded[0].query_ids, loaded[0].candidate_ids
  cases = []
  for number in range(_CASES):
    n, k = choose.randrange(1, 5), choose.choice((3, 10))
    exclude = [choose.choices(items, k=3) for _ in range(n)]
    signature, inputs = (
      ("recommend", {"query_id": [*choose.choices(queries, k=n)]}),
      ("recommend_unseen", {"query_id": [*choose.choices(queries, k=n)]}),
      ("recommend_session", {"history": [choose.choices(items, k=4)] * n}),
      ("similar_items", {"ids": choose.choices(items, k=n)}),
    )[number % 4]
    inputs = {name: _plain(value) for name, value in inputs.items()}
    inputs["k"] = k
    if signature != "similar_items":
      inputs["exclude_ids"] = _plain(exclude)
    answers = [_answer(each, signature, inputs) for each in loaded]
    cases.append(Case(signature, inputs, answers))
  return cases


def _plain(value: Any) -> Any:
  if isinstance(value, list):
    return [_plain(x) for x in value]
  return str(value)


def _answer(
  loaded: bundles.Bundle, signature: str, inputs: Mapping[str, Any]
) -> dict[str, Any]:
  if signature == "similar_items":
    found = loaded.similar_items(inputs["ids"], inputs["k"])
  else:
    found = loaded.recommend(
      inputs.get("query_id"),
      inputs.get("history"),
      k=inputs["k"],
      exclude_ids=inputs["exclude_ids"],
      exclude_seen=signature == "recommend_unseen",
    )
  return {
    "candidate_ids": found.ids.tolist(),
    "scores": found.scores.tolist(),
    "num_found": found.num_found.tolist(),
  }


def drive(
  server: Server,
  cases: Sequence[Case],
  record: Record,
  *,
  clients: int,
  pause: float,
  seconds: float,
  tick: Callable[[float], None] = lambda elapsed: None,
) -> None:
  """Runs clients for some time.

  Args:
    server: The server.
    cases: Requests of the valid clients.
    record: Results to add to.
    clients: Number of clients; every fourth one is hostile.
    pause: Mean seconds between two calls of a client.
    seconds: Duration.
    tick: Called about once a second, with the seconds since the start.
  """

  def work(number: int) -> None:
    kind = (good_rest, good_grpc, good_rest, hostile)[number % 4]
    if number % 8 == 2:
      kind = good_grpc
    try:
      kind(server, cases, record, pause, number)
    except BaseException as error:  # Otherwise the thread ends silently.
      record.problem(f"{kind.__name__}: {error!r}")

  threads = [
    threading.Thread(target=work, args=[number]) for number in range(clients)
  ]
  for thread in threads:
    thread.start()
  start = time.monotonic()
  try:
    while (elapsed := time.monotonic() - start) < seconds:
      tick(elapsed)
      time.sleep(min(1.0, seconds - elapsed))
  finally:
    server.stop.set()
    for thread in threads:
      thread.join()


def run(sizes: Mapping[str, int]) -> dict[str, Any]:
  """Runs the benchmark; the keys of `sizes` are those of `_SIZES`."""
  record = Record()
  with tempfile.TemporaryDirectory() as root:
    paths = [f"{root}/bundle{number}" for number in range(_BUNDLES)]
    made = {**sizes, "clusters": 200, "batch": 1, "batches": 1}
    for number, path in enumerate(paths):
      serving.generate(path, made, seed=number)
    cases = make_cases(paths)
    live = pathlib.Path(root, "live")
    _publish(live, paths[0])
    with _started(live, sizes["workers"]) as (process, server):
      rotation = _Rotation(server, live, paths, sizes)
      memory: list[tuple[float, float]] = []

      def tick(elapsed: float) -> None:
        memory.append((elapsed, _megabytes(process)))
        rotation.tick(elapsed)

      drive(
        server,
        cases,
        record,
        clients=sizes["clients"],
        pause=sizes["pause_ms"] / 1000,
        seconds=60.0 * sizes["minutes"],
        tick=tick,
      )
      if not rotation.ends():
        record.problem(f"bundle {rotation.published} was not loaded")
      time.sleep(15)
      memory_after = _megabytes(process)
  return summarise(
    record,
    memory,
    memory_after,
    rotation.published,
    60.0 * sizes["minutes"],
  )


class _Rotation:
  """Publishes one bundle after another at the served path.

  Attributes:
    published: Number of published bundles, without the first.
  """

  def __init__(
    self,
    server: Server,
    live: pathlib.Path,
    paths: Sequence[str],
    sizes: Mapping[str, int],
  ):
    self.published = 0
    self._server, self._live, self._paths = server, live, paths
    self._every = sizes["bundle_seconds"]
    # Leaves time to load the last bundle.
    self._last = 60 * sizes["minutes"] - self._every / 2

  def tick(self, elapsed: float) -> None:
    """Publishes the next bundle if it is due and the previous one is loaded."""
    if _metric(self._server, "bundle_version") != self.published + 1:
      return
    self._server.taken_over()
    if min(elapsed, self._last) < (self.published + 1) * self._every:
      return
    self.published += 1
    number = self.published % len(self._paths)
    self._server.publish(number)
    _publish(self._live, self._paths[number])

  def ends(self) -> bool:
    """Whether the last bundle is loaded within five minutes."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
      if _metric(self._server, "bundle_version") == self.published + 1:
        return True
      time.sleep(1)
    return False


def summarise(
  record: Record,
  memory: Sequence[tuple[float, float]],
  memory_after: float,
  published: int,
  seconds: float,
) -> dict[str, Any]:
  """Returns the results to print."""
  quarters = [
    statistics.median(mb for at, mb in memory if low <= at / seconds < high)
    for low, high in ((0.25, 0.5), (0.75, 1.0))
  ]
  return {
    "seconds": seconds,
    "calls": {name: len(times) for name, times in record.seconds.items()},
    "counts": dict(record.counts),
    "problems": record.problems,
    "bundles": published,
    "latency_ms": {
      name: {
        f"p{p}": round(1e3 * float(np.percentile(times, p)), 2)
        for p in (50, 95, 99)
      }
      for name, times in record.seconds.items()
      if times
    },
    "memory_mb": {
      "second_quarter": round(quarters[0]),
      "last_quarter": round(quarters[1]),
      "peak": round(max(mb for _, mb in memory)),
      "after": round(memory_after),
      "growth": round(quarters[1] / quarters[0], 3),
    },
  }


def _publish(live: pathlib.Path, source: str) -> None:
  with manifests.new_bundle(live, overwrite=True) as partial:
    shutil.copytree(source, partial, dirs_exist_ok=True)


@contextlib.contextmanager
def _started(
  live: pathlib.Path, workers: int
) -> Iterator[tuple[subprocess.Popen, Server]]:
  """Starts a server of the bundle and waits until it is ready."""
  log = live.with_name("log")
  with log.open("wb") as stderr:
    process = subprocess.Popen(
      [sys.executable, "-m", "export.serve", f"--bundle={live}"]
      + [f"--workers={workers}", "--port=0", "--grpc_port=0"],
      cwd=_ROOT,
      stderr=stderr,
    )
  try:
    ready = "workers are ready" if workers > 1 else "Ready as"
    while ready not in (said := log.read_text(errors="replace")):
      if process.poll() is not None:
        raise RuntimeError("the server ended: " + said[-2000:])
      time.sleep(0.1)
    found = re.search(r"REST on port (\d+), gRPC on port (\d+)", said)
    assert found
    yield process, Server(int(found[1]), int(found[2]))
  finally:
    process.terminate()
    process.wait()


def _megabytes(process: subprocess.Popen) -> float:
  """Resident memory of the server's processes."""
  folder = pathlib.Path("/proc", str(process.pid))
  pages = 0
  with contextlib.suppress(OSError):  # The process may have ended.
    children = (folder / "task" / folder.name / "children").read_text().split()
    for name in (folder.name, *children):
      with contextlib.suppress(OSError):
        pages += int(
          pathlib.Path("/proc", name, "statm").read_text().split()[1]
        )
  return pages * resource.getpagesize() / 2**20


def _metric(server: Server, name: str) -> float:
  """Sum of a metric; NaN if the server refuses the connection."""
  try:
    with contextlib.closing(server.connect()) as connection:
      connection.request("GET", "/metrics")
      text = connection.getresponse().read().decode()
  except (OSError, http.client.HTTPException):
    return float("nan")
  found = re.findall(rf"^retriever_{name} (\S+)$", text, re.MULTILINE)
  return sum(map(float, found))


def main(argv: list[str]) -> None:
  del argv
  sizes = harness.given(_SIZES)
  results = run(sizes)
  print(json.dumps(results, indent=1))
  path = harness.write_json(flags.FLAGS.output, "soak", sizes, results)
  print(f"Written to {path}", file=sys.stderr)
  grown = results["memory_mb"]["growth"] > _GROWTH
  if grown or results["counts"].get("problems"):
    sys.exit(1)


if __name__ == "__main__":
  harness.define_flags(_SIZES)
  app.run(main)
