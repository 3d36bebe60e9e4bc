"""Answers requests; the part that REST and gRPC share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from typing import TypeVar

import tensorflow as tf
from absl import logging

from export.serving import batching, models, tensors, workers
from export.serving import metrics as metrics_lib
from export.serving import options as options_lib

DEFAULT_SIGNATURE = "serving_default"
# Smaller bodies are read and written in the event loop, where they take less
# time than a switch of threads.
_SMALL_BYTES = 1 << 14
# Calls with a longer list only share batches with each other: all lists of a
# batch are padded to the longest one.
_WIDE = 1 << 10
# Only `_LARGE_CALLS` calls with more answers than this run at a time: until the
# answers are written, each takes up to a hundred times their memory.
_LARGE_ANSWERS = 1 << 13
_LARGE_CALLS = 4
# After this time, a client refused with one of these codes may retry.
RETRY_SECONDS = 1
RETRY_CODES = ("RESOURCE_EXHAUSTED", "UNAVAILABLE")

_T = TypeVar("_T")


class Share:
  """Divides a limited amount among clients."""

  def __init__(self, limit: int, what: str):
    """Starts with nothing taken.

    Args:
      limit: The amount to divide.
      what: Completes "the server ..." in a refusal.
    """
    self._limit = limit
    self._what = what
    self._taken = 0

  @contextlib.contextmanager
  def part(self) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes an amount; returns all of it at the end.

    The function raises `tensors.RequestError` if too little is left.
    """
    mine = 0

    def take(amount: int) -> None:
      nonlocal mine
      if self._taken + amount > self._limit:
        raise tensors.RequestError(
          "RESOURCE_EXHAUSTED", f"the server {self._what}; try again later"
        )
      self._taken += amount
      mine += amount

    try:
      yield take
    finally:
      self._taken -= mine


class Service:
  """Answers predict calls.

  Attributes:
    name: Name of the model in requests.
    holder: Holds the model.
    metrics: Metrics of the server.
    limits: Limits of the calls.
    calls: Limits the calls that wait or run.
    bodies: Limits the bytes of bodies in memory.
    member: Membership in a group of processes that serve the bundle; None for a
      single process.
    stopping: Whether the server is stopping.
  """

  def __init__(
    self,
    name: str,
    holder: models.Holder,
    metrics: metrics_lib.Metrics,
    make_batcher: Callable[[Callable], batching.Batcher],
    limits: options_lib.Limits,
    member: workers.Member | None = None,
  ):
    """Creates a service; `make_batcher` makes a batcher that runs a function.

    The other arguments are the attributes.
    """
    self.name = name
    self.member = member
    self.holder = holder
    self.metrics = metrics
    self.limits = limits
    self.calls = Share(limits.max_calls, "has too many calls")
    self.bodies = Share(
      limits.max_pending_bytes, "has no memory for this request"
    )
    self.stopping = False
    self._batcher = make_batcher(self._run)
    self._large = asyncio.Semaphore(_LARGE_CALLS)
    # Not the pool that calls TensorFlow, which may be busy. One thread, because
    # Python runs only one at a time of this work.
    self._pool = futures.ThreadPoolExecutor(1, "codec")

  async def reload(self, join: bool = False) -> int:
    """Loads the bundle again, in all processes that serve it.

    Args:
      join: Whether a load that is in progress is enough.

    Returns:
      The new version.

    Raises:
      DataError: The bundle cannot be used; the old one stays.
    """
    if self.member is not None:
      return await self.member.reload(join)
    return (await self.holder.reload()).version

  async def convert(self, size: int, work: Callable[[], _T]) -> _T:
    """Returns the result of `work`, which reads or writes a body.

    Args:
      size: Bytes of the body; a large one does not block the event loop.
      work: The function.
    """
    if size <= _SMALL_BYTES:
      return work()
    return await asyncio.get_running_loop().run_in_executor(self._pool, work)

  async def in_time(self, work: Awaitable[_T]) -> _T:
    """Returns the result of `work`; cancels it if it takes too long.

    Raises:
      tensors.RequestError: It takes longer than `call_seconds`.
    """
    try:
      return await asyncio.wait_for(work, self.limits.call_seconds)
    except asyncio.TimeoutError:
      raise tensors.RequestError(
        "UNAVAILABLE",
        f"the server is busy: no answer in {self.limits.call_seconds:g} s; "
        "try again later",
      ) from None

  @property
  def ready(self) -> bool:
    """Whether it has a bundle and is not stopping."""
    return self.holder.model is not None and not self.stopping

  def model(self, name: str, version: int | None) -> models.Model:
    """Returns the model, if name and version match.

    Raises:
      tensors.RequestError: They do not match, or no bundle is loaded yet.
    """
    if name != self.name:
      raise tensors.RequestError(
        "NOT_FOUND",
        f"there is no model {tensors.short(name)!r}, only {self.name!r}",
      )
    model = self.holder.model
    if model is None:
      raise tensors.RequestError("UNAVAILABLE", "the bundle is being loaded")
    if version not in (None, model.version):
      raise tensors.RequestError(
        "NOT_FOUND",
        f"there is no version {version} of {name!r}, only {model.version}",
      )
    return model

  async def predict(
    self,
    call: metrics_lib.Call,
    name: str,
    version: int | None,
    signature: str,
    size: int,
    read: Callable[[tensors.Spec], tensors.Inputs],
    write: Callable[[models.Model, tensors.Inputs], _T],
  ) -> _T:
    """Answers a call.

    Args:
      call: Receives the name of the signature.
      name: Name of the model.
      version: Version of the model; None for the current one.
      signature: Name of the signature; "" for the default one.
      size: Bytes of the request.
      read: Converts the request to arrays.
      write: Makes the answer from the model and the outputs.

    Returns:
      The answer.

    Raises:
      tensors.RequestError: The call is refused or fails.
    """
    model = self.model(name, version)
    signature = signature or DEFAULT_SIGNATURE
    if signature not in model.signatures:
      raise tensors.RequestError(
        "NOT_FOUND",
        f"there is no signature {tensors.short(signature)!r}, only "
        + ", ".join(sorted(model.signatures)),
      )
    call.signature = signature
    spec = model.signatures[signature]["inputs"]
    inputs = await self.convert(size, lambda: read(spec))
    tensors.check(inputs, spec, model.max_k, self.limits)
    inputs = tensors.fill(inputs, spec)
    rows = tensors.num_rows(inputs)
    is_large = rows * int(inputs.get("k", 1)) > _LARGE_ANSWERS
    async with self._large if is_large else contextlib.nullcontext():
      outputs = await self._compute(model, signature, inputs)
      size = sum(x.nbytes for x in outputs.values())
      return await self.convert(size, lambda: write(model, outputs))

  async def _compute(
    self, model: models.Model, signature: str, inputs: tensors.Inputs
  ) -> tensors.Inputs:
    """Computes the outputs of the model, possibly in a batch."""
    scalars = tuple(x.item() for x in inputs.values() if not x.ndim)
    wide = any(size > _WIDE for x in inputs.values() for size in x.shape[1:])
    try:
      return await self._batcher.call((model, signature, scalars, wide), inputs)
    except tf.errors.InvalidArgumentError as error:
      raise tensors.invalid(error.message.splitlines()[0]) from None
    except Exception as error:
      logging.error("%s failed: %s: %s", signature, type(error).__name__, error)
      raise tensors.RequestError(
        "INTERNAL", "the server failed; see its log"
      ) from error

  def _run(
    self, key: tuple[models.Model, str, tuple, bool], inputs: tensors.Inputs
  ) -> tensors.Inputs:
    model, signature, *_ = key
    rows = tensors.num_rows(inputs)
    self.metrics.batch_rows.labels(signature).observe(rows)
    return model.run(signature, inputs)
