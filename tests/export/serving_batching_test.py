"""The batcher alone: which calls it joins, and how it splits answers."""

import asyncio
import threading
from concurrent import futures

import numpy as np
import pytest

from export.serving import batching

LONG = 60.0


class Doubler:
  """Doubles numbers, records its calls, and fails for 13."""

  def __init__(self):
    self.calls = []

  def __call__(self, key, inputs):
    self.calls.append((key, {name: x.copy() for name, x in inputs.items()}))
    if (inputs["x"] == 13).any():
      raise ValueError("thirteen")
    return {"y": 2 * inputs["x"], "place": np.arange(len(inputs["x"]))}


def _inputs(*values, **others):
  return {"x": np.array(values, np.int64), **others}


def _gather(run, calls, max_rows=64, timeout=LONG, threads=1):
  """Results or exceptions of simultaneous calls."""

  async def main():
    with futures.ThreadPoolExecutor(threads) as pool:
      batcher = batching.Batcher(run, pool, max_rows, timeout)
      return await asyncio.wait_for(
        asyncio.gather(
          *(batcher.call(*call) for call in calls), return_exceptions=True
        ),
        10,
      )

  return asyncio.run(main())


def test_calls_are_joined_and_cut_apart():
  run = Doubler()
  found = _gather(
    run,
    [("a", _inputs(1, 2)), ("a", _inputs(3)), ("a", _inputs(4, 5, 6))],
    max_rows=6,
  )
  assert len(run.calls) == 1
  assert [x["y"].tolist() for x in found] == [[2, 4], [6], [8, 10, 12]]
  assert [x["place"].tolist() for x in found] == [[0, 1], [2], [3, 4, 5]]


def test_a_full_batch_does_not_wait_and_others_wait_for_the_timeout():
  run = Doubler()
  found = _gather(
    run,
    [("a", _inputs(1, 2)), ("a", _inputs(3, 4)), ("a", _inputs(5, 6))],
    max_rows=4,
    timeout=0.05,
  )
  assert [x["y"].tolist() for x in found] == [[2, 4], [6, 8], [10, 12]]
  assert [len(inputs["x"]) for _, inputs in run.calls] == [4, 2]


def test_a_call_that_does_not_fit_starts_the_waiting_ones():
  run = Doubler()
  _gather(
    run, [("a", _inputs(1, 2)), ("a", _inputs(3, 4, 5))], max_rows=4, timeout=0
  )
  assert [len(inputs["x"]) for _, inputs in run.calls] == [2, 3]


def test_a_call_larger_than_a_batch_is_run():
  run = Doubler()
  (found,) = _gather(run, [("a", _inputs(1, 2, 3))], max_rows=2)
  assert found["y"].tolist() == [2, 4, 6]


def test_different_keys_are_not_joined():
  run = Doubler()
  _gather(run, [("a", _inputs(1)), ("b", _inputs(2))], max_rows=2, timeout=0)
  assert sorted(key for key, _ in run.calls) == ["a", "b"]


def test_rows_are_filled_up_to_the_longest():
  run = Doubler()

  def texts(*rows):
    return np.array(rows, object).reshape(len(rows), -1)

  calls = [
    _inputs(
      1,
      k=np.array(5),
      texts=texts([b"a", b"b"]),
      numbers=np.array([[7]]),
      floats=np.zeros([1, 0], np.float32),
    ),
    _inputs(
      2,
      k=np.array(5),
      texts=np.empty([1, 0], object),
      numbers=np.array([[8, 9]]),
      floats=np.ones([1, 1], np.float32),
    ),
  ]
  _gather(run, [("a", call) for call in calls], max_rows=2)
  ((_, inputs),) = run.calls
  assert inputs["k"].shape == ()
  assert inputs["texts"].tolist() == [[b"a", b"b"], [b"", b""]]
  assert inputs["numbers"].tolist() == [[7, -1], [8, 9]]
  np.testing.assert_array_equal(inputs["floats"], [[np.nan], [1]])
  assert inputs["floats"].dtype == np.float32


def test_a_failing_call_fails_alone():
  run = Doubler()
  found = _gather(
    run, [("a", _inputs(1)), ("a", _inputs(13)), ("a", _inputs(2))], max_rows=3
  )
  assert found[0]["y"].tolist() == [2] and found[2]["y"].tolist() == [4]
  with pytest.raises(ValueError, match="thirteen"):
    raise found[1]


def test_a_cancelled_call_is_not_run_and_its_neighbour_is():
  run = Doubler()

  async def main():
    with futures.ThreadPoolExecutor(1) as pool:
      batcher = batching.Batcher(run, pool, 3, LONG)
      gone = asyncio.create_task(batcher.call("a", _inputs(1)))
      stays = asyncio.create_task(batcher.call("a", _inputs(2)))
      await asyncio.sleep(0)
      gone.cancel()
      await asyncio.sleep(0)
      last = await batcher.call("a", _inputs(3))
      return gone.cancelled(), await stays, last

  cancelled, stays, last = asyncio.run(main())
  assert cancelled
  assert stays["y"].tolist() == [4] and last["y"].tolist() == [6]
  assert [inputs["x"].tolist() for _, inputs in run.calls] == [[2, 3]]


def test_a_call_cancelled_while_it_runs_leaves_the_others():
  release = threading.Event()
  doubler = Doubler()

  def run(key, inputs):
    assert release.wait(10)
    return doubler(key, inputs)

  async def main():
    with futures.ThreadPoolExecutor(1) as pool:
      batcher = batching.Batcher(run, pool, 2, LONG)
      calls = [
        asyncio.create_task(batcher.call("a", _inputs(x))) for x in (1, 2)
      ]
      await asyncio.sleep(0.05)
      calls[0].cancel()
      release.set()
      return await asyncio.wait_for(calls[1], 10)

  assert asyncio.run(main())["y"].tolist() == [4]


def test_calls_run_beside_each_other():
  together = threading.Barrier(2, timeout=10)

  def run(key, inputs):
    together.wait()
    return inputs

  found = _gather(
    run, [("a", _inputs(1)), ("b", _inputs(2))], max_rows=1, threads=2
  )
  assert [x["x"].tolist() for x in found] == [[1], [2]]
