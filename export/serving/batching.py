"""Batches simultaneous calls and splits their answers."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent import futures

import numpy as np

from export.serving import tensors

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass
class _Call:
  inputs: Arrays
  rows: int
  answer: asyncio.Future


_Answer = tuple[_Call, Arrays | Exception]


@dataclasses.dataclass
class _Batch:
  timer: asyncio.TimerHandle
  calls: list[_Call] = dataclasses.field(default_factory=list)

  @property
  def rows(self) -> int:
    return sum(call.rows for call in self.calls)


class Batcher:
  """Runs calls with equal keys together, in a pool of threads.

  A batch runs when it has `max_rows` rows or its first call has waited for
  `timeout`. A call with more than `max_rows` rows runs alone.
  """

  def __init__(
    self,
    run: Callable[[Hashable, Arrays], Arrays],
    pool: futures.Executor,
    max_rows: int,
    timeout: float,
  ):
    """Creates a batcher for one event loop.

    Args:
      run: Maps key and inputs to outputs. The first axis of every output, and
        of every input with axes, is the rows.
      pool: Runs `run`.
      max_rows: Maximum rows of a batch, positive.
      timeout: Seconds that a call waits for others, not negative.
    """
    self._run = run
    self._pool = pool
    self._max_rows = max_rows
    self._timeout = timeout
    self._waiting: dict[Hashable, _Batch] = {}

  async def call(self, key: Hashable, inputs: Arrays) -> Arrays:
    """Returns `run(key, inputs)`, possibly computed in a batch.

    Args:
      key: Calls with equal keys may be joined, so their inputs without axes
        must be equal.
      inputs: Arrays by name. If sizes of the second axis differ, the shorter
        arrays are padded with "", -1 or NaN.

    Raises:
      Exception: The exception of `run` for these inputs alone.
    """
    loop = asyncio.get_running_loop()
    rows = tensors.num_rows(inputs)
    batch = self._waiting.get(key)
    if batch and batch.rows + rows > self._max_rows:
      self._start(key)
      batch = None
    if batch is None:
      timer = loop.call_later(self._timeout, self._start, key)
      batch = self._waiting[key] = _Batch(timer)
    call = _Call(inputs, rows, loop.create_future())
    batch.calls.append(call)
    if batch.rows >= self._max_rows:
      self._start(key)
    return await call.answer

  def _start(self, key: Hashable) -> None:
    batch = self._waiting.pop(key)
    batch.timer.cancel()
    done = asyncio.get_running_loop().run_in_executor(
      self._pool, self._answer, key, batch.calls
    )
    done.add_done_callback(_deliver)

  def _answer(self, key: Hashable, calls: list[_Call]) -> list[_Answer]:
    # Clients may have disconnected while the pool was busy.
    calls = [call for call in calls if not call.answer.done()]
    if not calls:
      return []
    answers = self._compute(key, [call.inputs for call in calls])
    return list(zip(calls, answers, strict=True))

  def _compute(
    self, key: Hashable, parts: list[Arrays]
  ) -> list[Arrays | Exception]:
    try:
      outputs = self._run(key, join(parts))
      return cut(outputs, [tensors.num_rows(part) for part in parts])
    except Exception as error:
      if len(parts) == 1:
        return [error]
      # One call failed: the others must not fail with it.
      return [self._compute(key, [part])[0] for part in parts]


def join(parts: Sequence[Arrays]) -> Arrays:
  """Concatenates inputs; takes those without axes from the first part."""
  if len(parts) == 1:
    return parts[0]
  joined = {}
  for name, first in parts[0].items():
    arrays = [part[name] for part in parts]
    if first.ndim > 1:
      width = max(x.shape[1] for x in arrays)
      arrays = [_widen(x, width) for x in arrays]
    joined[name] = np.concatenate(arrays) if first.ndim else first
  return joined


def cut(outputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
  """Splits outputs into parts of the given rows; the reverse of `join`."""
  places = np.cumsum(rows)[:-1]
  pieces = {name: np.split(x, places) for name, x in outputs.items()}
  return [
    {name: piece[part] for name, piece in pieces.items()}
    for part in range(len(rows))
  ]


def _widen(array: np.ndarray, width: int) -> np.ndarray:
  missing = width - array.shape[1]
  if not missing:
    return array
  shape = (len(array), missing, *array.shape[2:])
  filling = np.full(shape, tensors.PADDING[array.dtype.kind], array.dtype)
  return np.concatenate([array, filling], axis=1)


def _deliver(done: asyncio.Future[list[_Answer]]) -> None:
  for call, answer in done.result():
    if call.answer.done():  # The client has disconnected.
      continue
    if isinstance(answer, Exception):
      call.answer.set_exception(answer)
    else:
      call.answer.set_result(answer)
