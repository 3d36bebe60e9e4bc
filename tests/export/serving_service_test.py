"""Holder, service and web application, in this process."""

import asyncio
import json
import threading
import weakref
from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf

from export.serving import (
  batching,
  metrics,
  models,
  options,
  rest,
  service,
  tensors,
)
from xir_tfrs import indexes
from xir_tfrs.data import errors
from xir_tfrs.serving import bundle

LIMITS = options.Limits()


def _service(directory, pool, limits=LIMITS):
  counted = metrics.Metrics()
  return service.Service(
    "retriever",
    models.Holder(directory, "brute_force", counted),
    counted,
    lambda run: batching.Batcher(run, pool, 64, 0.01),
    limits,
  )


async def _predict(serve, inputs, signature=""):
  request = tensors.parse_json(json.dumps({"inputs": inputs}).encode())
  call = metrics.Call()
  return await serve.predict(
    call,
    "retriever",
    None,
    signature,
    0,
    lambda spec: tensors.from_json(request, spec),
    lambda model, outputs: (model.version, outputs),
  )


def test_integer_ids(numbered):
  loaded = bundle.Bundle.load(numbered, "brute_force", check_hashes=False)
  queries = [10**12 + 3, 7]  # The second is unknown.
  expected = loaded.recommend(queries, k=4, exclude_ids=[[5, 10], [15]])

  async def main():
    with futures.ThreadPoolExecutor(2) as pool:
      serve = _service(numbered, pool)
      await serve.holder.reload()
      lists = ([[5, 10]], [[15]])  # Of different widths, padded with -1.
      return await asyncio.gather(
        *(
          _predict(
            serve,
            {"query_id": [x], "k": 4, "exclude_ids": y, "allow_ids": [[-1]]},
          )
          for x, y in zip(queries, lists, strict=True)
        )
      )

  for row, (version, found) in enumerate(asyncio.run(main())):
    assert version == 1
    np.testing.assert_array_equal(found["candidate_ids"][0], expected.ids[row])
    np.testing.assert_allclose(
      found["scores"][0], expected.scores[row], rtol=1e-5
    )
    assert found["known"] == [row == 0]


@pytest.mark.slow
def test_the_memory_of_an_old_bundle_is_freed(exported):
  async def main():
    holder = models.Holder(exported, "scann", metrics.Metrics())
    first = await holder.reload()
    old, gone = first.bundle, [weakref.ref(first)]
    del first
    (state,) = (
      x
      for x in tf.train.TrackableView(old._model).descendants()
      if hasattr(x, "recreate_handle")
    )
    searcher = indexes.load_ops().ScannSearcher(state.recreate_handle())
    look_up = old.signatures["encode_query"]
    vector = look_up(query_id=tf.constant([old.query_ids[0]]))["embedding"]
    searcher.search_batched(vector, 1)
    gone.append(weakref.ref(await holder.reload()))
    new = await holder.reload()
    assert [x() for x in gone] == [None, None]
    holder._loader.shutdown()
    with pytest.raises(tf.errors.OpError):
      searcher.search_batched(vector, 1)
    with pytest.raises(tf.errors.OpError):
      look_up(query_id=tf.constant([old.query_ids[0]]))
    return new.bundle.recommend([new.bundle.query_ids[0]], k=3), old.query_ids[
      0
    ]

  found, query = asyncio.run(main())
  fresh = bundle.Bundle.load(exported, "scann", check_hashes=False)
  np.testing.assert_array_equal(found.ids, fresh.recommend([query], k=3).ids)


class _Faulty:
  """A model whose signature raises."""

  version, max_k = 1, 10
  signatures = {"rank": {"inputs": {"x": {"dtype": "int32", "shape": [None]}}}}

  def __init__(self, error):
    self._error = error

  def run(self, signature, inputs):
    raise self._error


@pytest.mark.parametrize(
  "error, code, message",
  [
    (RuntimeError("secret"), "INTERNAL", "the server failed; see its log"),
    (
      tf.errors.InvalidArgumentError(None, None, "no such x\nin a node"),
      "INVALID_ARGUMENT",
      "no such x",
    ),
  ],
)
def test_errors_of_the_model_become_status_codes(
  tmp_path, caplog, error, code, message
):
  async def main():
    with futures.ThreadPoolExecutor(1) as pool:
      serve = _service(tmp_path, pool)
      serve.holder.model = _Faulty(error)
      await _predict(serve, [1, 2], "rank")

  with pytest.raises(tensors.RequestError) as caught:
    asyncio.run(main())
  assert (caught.value.code, str(caught.value)) == (code, message)
  assert ("rank failed: RuntimeError: secret" in caplog.text) == (
    code == "INTERNAL"
  )


def test_work_that_takes_too_long_is_given_up(tmp_path):
  cancelled = []

  async def work():
    try:
      await asyncio.Event().wait()
    except asyncio.CancelledError:
      cancelled.append(True)
      raise

  async def main():
    limits = options.Limits(call_seconds=0.01)
    with futures.ThreadPoolExecutor(1) as pool:
      await _service(tmp_path, pool, limits).in_time(work())

  with pytest.raises(
    tensors.RequestError, match="no answer in 0.01 s"
  ) as found:
    asyncio.run(main())
  assert cancelled and found.value.code == "UNAVAILABLE"


def test_calls_with_long_lists_are_batched_separately(tmp_path):
  shapes = []

  class Model(_Faulty):
    signatures = {
      "rank": {"inputs": {"x": {"dtype": "int32", "shape": [None, None]}}}
    }

    def run(self, signature, inputs):
      shapes.append(inputs["x"].shape)
      return inputs

  async def main():
    with futures.ThreadPoolExecutor(1) as pool:
      serve = _service(tmp_path, pool)
      serve.holder.model = Model(None)
      await asyncio.gather(
        *(_predict(serve, [[1] * n], "rank") for n in (1, 1500, 2, 1100))
      )

  asyncio.run(main())
  assert sorted(shapes) == [(2, 2), (2, 1500)]


def test_large_answers_are_made_and_written_one_after_another(
  tmp_path, monkeypatch
):
  """Otherwise all waiting calls would be in memory at the same time."""
  monkeypatch.setattr(service, "_LARGE_CALLS", 1)
  monkeypatch.setattr(service, "_LARGE_ANSWERS", 100)
  events = []

  class Model(_Faulty):
    def run(self, signature, inputs):
      events.append("run")
      return inputs

  async def ask(serve, rows):
    return await serve.predict(
      metrics.Call(),
      *("retriever", None, "rank", 0),
      lambda spec: {"x": np.zeros(rows, np.int32)},
      lambda model, outputs: events.append("written"),
    )

  async def main(rows):
    events.clear()
    with futures.ThreadPoolExecutor(2) as pool:
      serve = _service(tmp_path, pool)
      serve.holder.model = Model(None)
      await asyncio.gather(*(ask(serve, rows) for _ in range(3)))
    return list(events)

  assert asyncio.run(main(101)) == ["run", "written"] * 3
  assert asyncio.run(main(20)) == ["run", *["written"] * 3]


def test_nothing_is_answered_before_a_bundle_is_loaded(tmp_path):
  async def main():
    with futures.ThreadPoolExecutor(1) as pool:
      await _predict(_service(tmp_path, pool), [1])

  with pytest.raises(tensors.RequestError) as caught:
    asyncio.run(main())
  assert caught.value.code == "UNAVAILABLE"


async def _http(serve, method, path, body=b""):
  """Calls the web application directly and returns the status."""
  sent = []
  parts = iter([{"type": "http.request", "body": body, "more_body": False}])

  async def receive():
    for part in parts:
      return part
    await asyncio.Event().wait()  # The client stays connected.

  async def send(message):
    sent.append(message)

  scope = {
    "type": "http",
    "method": method,
    "path": path,
    "query_string": b"",
    "headers": [],
  }
  await rest.application(serve, "127.0.0.1")(scope, receive, send)
  return sent[0]["status"]


@pytest.mark.parametrize("work", ["parse_json", "from_json", "to_json"])
def test_health_is_answered_while_a_large_body_is_worked_on(
  tmp_path, monkeypatch, work
):
  """The health check is answered before the work on a body ends."""
  began, answered = threading.Event(), threading.Event()
  original = getattr(tensors, work)

  def wait(*args, **kwargs):
    began.set()
    assert answered.wait(20)
    return original(*args, **kwargs)

  class Echo(_Faulty):
    def run(self, signature, inputs):
      return inputs

  monkeypatch.setattr(tensors, work, wait)

  async def main():
    with futures.ThreadPoolExecutor(1) as pool:
      serve = _service(tmp_path, pool)
      serve.holder.model = Echo(None)
      content = {"signature_name": "rank", "inputs": [7] * 1000}
      body = json.dumps(content, indent=20).encode()
      path = "/v1/models/retriever:predict"
      monkeypatch.setattr(service, "_SMALL_BYTES", 1000)
      large = asyncio.create_task(_http(serve, "POST", path, body))
      while not began.is_set():
        await asyncio.sleep(0.001)
      assert await _http(serve, "GET", "/healthz") == 200
      answered.set()
      assert await large == 200

  asyncio.run(main())


def test_a_bundle_that_failed_is_loaded_again_only_when_a_file_changes(
  tmp_path, monkeypatch
):
  (tmp_path / "manifest.json").write_text("{}")
  holder = models.Holder(tmp_path, None, metrics.Metrics())
  loads, looks = [], []

  def load(version):
    loads.append(version)
    raise errors.DataError("broken")

  files = holder._files

  def look():
    looks.append(1)
    return files()

  monkeypatch.setattr(holder, "_load", load)
  monkeypatch.setattr(holder, "_files", look)

  async def until(number_of_loads):
    while len(loads) < number_of_loads:
      await asyncio.sleep(0.001)
    seen = len(looks)
    while len(looks) < seen + 5:
      await asyncio.sleep(0.001)
    assert len(loads) == number_of_loads

  async def main():
    watching = asyncio.create_task(holder.watch(0.001, holder.reload))
    await until(1)
    (tmp_path / "variables").write_text("copied later")
    await until(2)
    with pytest.raises(errors.DataError):
      await holder.reload()  # An explicit reload tries again.
    assert len(loads) == 3
    watching.cancel()

  asyncio.run(main())
