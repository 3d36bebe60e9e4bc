"""What REST and gRPC have in common: from a request to an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent import futures
from typing import TypeVar

import tensorflow as tf
from absl import logging

from export.serving import batching, models, tensors
from export.serving import metrics as metrics_lib

DEFAULT_SIGNATURE = "serving_default"
# Smaller bodies are read and written in the event loop: they take less time
# there than a change of threads.
_SMALL_BYTES = 1 << 14

_T = TypeVar("_T")


class Service:
  """Answers predict calls.

  Attributes:
    name: of the model, in the addresses.
    holder: of the model.
    metrics: of the server.
    stopping: whether the server is about to end.
  """

  def __init__(
    self,
    name: str,
    holder: models.Holder,
    metrics: metrics_lib.Metrics,
    make_batcher: Callable[[Callable], batching.Batcher],
  ):
    """Makes it.

    Args:
      name: of the model, in the addresses.
      holder: of the model.
      metrics: of the server.
      make_batcher: makes one that runs the function it is given.
    """
    self.name = name
    self.holder = holder
    self.metrics = metrics
    self.stopping = False
    self._batcher = make_batcher(self._run)
    # Apart from the one that calls TensorFlow, which has work that is waited
    # for; one thread, as Python runs no more of this at a time.
    self._pool = futures.ThreadPoolExecutor(1, "codec")

  async def convert(self, size: int, work: Callable[[], _T]) -> _T:
    """What `work` returns, which reads or writes a body.

    Args:
      size: of the body, in bytes; the event loop goes on during a large one.
      work: the function.
    """
    if size <= _SMALL_BYTES:
      return work()
    return await asyncio.get_running_loop().run_in_executor(self._pool, work)

  @property
  def ready(self) -> bool:
    """Whether it has a bundle and goes on."""
    return self.holder.model is not None and not self.stopping

  def model(self, name: str, version: int | None) -> models.Model:
    """The model, if it is the one that is asked for.

    Raises:
      tensors.RequestError: it is another one, or none is loaded yet.
    """
    if name != self.name:
      raise tensors.RequestError(
        "NOT_FOUND", f"there is no model {name!r}, only {self.name!r}"
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
  ) -> tuple[models.Model, tensors.Inputs]:
    """Answers one call.

    Args:
      call: gets the name of the signature.
      name: of the model.
      version: of the model, None for the one there is.
      signature: its name, "" for the default one.
      size: of the request, in bytes.
      read: makes arrays from the request.

    Returns:
      The model, and the outputs.

    Raises:
      tensors.RequestError: there is no answer.
    """
    model = self.model(name, version)
    signature = signature or DEFAULT_SIGNATURE
    if signature not in model.signatures:
      raise tensors.RequestError(
        "NOT_FOUND",
        f"there is no signature {signature!r}, only "
        + ", ".join(sorted(model.signatures)),
      )
    call.signature = signature
    spec = model.signatures[signature]["inputs"]
    inputs = await self.convert(size, lambda: read(spec))
    tensors.check(inputs, spec, model.max_k)
    scalars = tuple(x.item() for x in inputs.values() if not x.ndim)
    try:
      outputs = await self._batcher.call((model, signature, scalars), inputs)
    except tf.errors.InvalidArgumentError as error:
      raise tensors.invalid(error.message.splitlines()[0]) from None
    except Exception as error:
      logging.error("%s failed: %s: %s", signature, type(error).__name__, error)
      raise tensors.RequestError(
        "INTERNAL", "the server failed; see its log"
      ) from error
    return model, outputs

  def _run(
    self, key: tuple[models.Model, str, tuple], inputs: tensors.Inputs
  ) -> tensors.Inputs:
    model, signature, _ = key
    rows = max(len(x) for x in inputs.values() if x.ndim)
    self.metrics.batch_rows.labels(signature).observe(rows)
    return model.run(signature, inputs)
