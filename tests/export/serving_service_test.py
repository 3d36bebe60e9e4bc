"""Holder and service in this process: integer ids, and faults of the model."""

import asyncio
import json
import weakref
from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf

from export.serving import batching, metrics, models, service, tensors
from xir_tfrs import indexes
from xir_tfrs.serving import bundle


def _service(directory, pool):
  counted = metrics.Metrics()
  return service.Service(
    "retriever",
    models.Holder(directory, "brute_force", counted),
    counted,
    lambda run: batching.Batcher(run, pool, 64, 0.01),
  )


async def _predict(serve, inputs, signature=""):
  request = tensors.parse_json(json.dumps({"inputs": inputs}).encode())
  call = metrics.Call()
  model, outputs = await serve.predict(
    call,
    "retriever",
    None,
    signature,
    lambda spec: tensors.from_json(request, spec),
  )
  return model.version, outputs


def test_integer_ids(numbered):
  loaded = bundle.Bundle.load(numbered, "brute_force", check_hashes=False)
  queries = [10**12 + 3, 7]  # The second is unknown.
  expected = loaded.recommend(queries, 4, [[5, 10], [15]])

  async def main():
    with futures.ThreadPoolExecutor(2) as pool:
      serve = _service(numbered, pool)
      await serve.holder.reload()
      lists = ([[5, 10]], [[15]])  # Of different width: filled up with -1.
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
    return new.bundle.recommend([new.bundle.query_ids[0]], 3), old.query_ids[0]

  found, query = asyncio.run(main())
  fresh = bundle.Bundle.load(exported, "scann", check_hashes=False)
  np.testing.assert_array_equal(found.ids, fresh.recommend([query], 3).ids)


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
def test_faults_of_the_model(tmp_path, caplog, error, code, message):
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


def test_nothing_is_answered_before_a_bundle_is_loaded(tmp_path):
  async def main():
    with futures.ThreadPoolExecutor(1) as pool:
      await _predict(_service(tmp_path, pool), [1])

  with pytest.raises(tensors.RequestError) as caught:
    asyncio.run(main())
  assert caught.value.code == "UNAVAILABLE"
