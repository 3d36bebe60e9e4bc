"""The current bundle, and its replacement by a new one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import os
import pathlib
import weakref
from collections.abc import Awaitable, Callable
from concurrent import futures

import numpy as np
import tensorflow as tf
from absl import logging

from export.serving import catalogue, tensors
from export.serving import metrics as metrics_lib
from xir_tfrs.data import errors
from xir_tfrs.serving import bundle as bundles
from xir_tfrs.serving import manifest as manifests

_WARM_UP_K = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A loaded bundle.

  Attributes:
    version: Counts the bundles since the start, from 1.
    bundle: The bundle.
    signatures: name -> {"inputs": ..., "outputs": ...}.
  """

  version: int
  bundle: bundles.Bundle

  @property
  def signatures(self) -> dict[str, dict]:
    return self.bundle.manifest.signatures[self.bundle.index]

  @property
  def max_k(self) -> int:
    return self.bundle.manifest.max_k

  @functools.cached_property
  def catalogue(self) -> catalogue.Catalogue:
    """The catalogue for the page; built at its first use."""
    return catalogue.Catalogue(self.bundle)

  def run(self, signature: str, inputs: tensors.Inputs) -> tensors.Inputs:
    """Calls a signature with valid inputs."""
    spec = self.signatures[signature]["inputs"]
    outputs = self.bundle.signatures[signature](
      **{
        name: tf.constant(inputs[name], wanted["dtype"])
        for name, wanted in spec.items()
      }
    )
    names = self.signatures[signature]["outputs"]
    return {name: outputs[name].numpy() for name in names}


class Holder:
  """Holds the current model and follows the bundle on disk.

  Attributes:
    model: None until the first `reload`.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    index: str | None,
    metrics: metrics_lib.Metrics,
  ):
    """Loads nothing yet.

    Args:
      directory: The bundle, or a symbolic link to it.
      index: As for `Bundle.load`.
      metrics: Counts the switches.
    """
    self.model: Model | None = None
    self._directory = pathlib.Path(directory)
    self._index = index
    self._metrics = metrics
    self._identity: tuple | None = None
    # The files of a bundle that failed, so that it is not loaded again.
    self._unusable: tuple | None = None
    self._lock = asyncio.Lock()
    # Not asyncio's executor: the program would wait for it at exit.
    self._loader = futures.ThreadPoolExecutor(1, "loader")

  async def reload(self, version: int | None = None) -> Model:
    """Loads the bundle on disk and then switches to it.

    Args:
      version: Version of the new model; None for the next one.

    Raises:
      DataError: The bundle cannot be used; the old one stays.
    """
    loop = asyncio.get_running_loop()
    async with self._lock:
      if version is None:
        version = self.model.version + 1 if self.model else 1
      found = await loop.run_in_executor(self._loader, self._files)
      try:
        model, identity = await loop.run_in_executor(
          self._loader, self._load, version
        )
      except Exception as error:
        # TensorFlow may raise anything for a broken file: the old bundle stays.
        self._unusable = found
        raise self._failed(error) from None
      if self.model:
        self._metrics.switches.inc()
        logging.info("Switches to version %d.", version)
      self.model, self._identity = model, identity
      self._metrics.version.set(version)
    # Futures and their results, such as the old model, form reference cycles.
    await loop.run_in_executor(self._loader, gc.collect)
    return model

  async def watch(
    self, seconds: float, reload: Callable[[], Awaitable[object]]
  ) -> None:
    """Checks for a new bundle repeatedly, until cancelled.

    A bundle that failed is tried again when any of its files changes.

    Args:
      seconds: Time between two checks.
      reload: Loads the bundle in all processes, or raises `DataError`.
    """
    loop = asyncio.get_running_loop()
    while True:
      await asyncio.sleep(seconds)
      if manifests.identity(self._directory) == self._identity:
        continue
      found = await loop.run_in_executor(self._loader, self._files)
      if found == self._unusable:
        continue
      with contextlib.suppress(errors.DataError):  # Already logged.
        await reload()

  def _files(self) -> tuple:
    """Returns a value that changes with any file of the bundle."""
    found = [manifests.identity(self._directory)]
    for folder, _, names in os.walk(self._directory.resolve()):
      for path in (pathlib.Path(folder, name) for name in names):
        with contextlib.suppress(OSError):
          status = path.stat()
          found.append((path, status.st_size, status.st_mtime_ns))
    return tuple(found)

  def _failed(self, error: Exception) -> errors.DataError:
    if not isinstance(error, errors.DataError):
      error = errors.DataError(
        f"{self._directory}: {type(error).__name__}: {error}"
      )
    if self.model:
      self._metrics.failed_switches.inc()
      logging.error(
        "Stays with version %d: %s",
        self.model.version,
        " ".join(str(error).split()),
      )
    return error

  def _load(self, version: int) -> tuple[Model, tuple | None]:
    # Before the load: if it was replaced meanwhile, `watch` loads it again.
    identity = manifests.identity(self._directory)
    model = Model(version, bundles.Bundle.load(self._directory, self._index))
    # Called after the last call that uses the model.
    weakref.finalize(model, self._dispose, model.bundle).atexit = False
    for name, signature in model.signatures.items():
      model.run(name, _example(model, signature["inputs"]))
    return model, identity

  def _dispose(self, bundle: bundles.Bundle) -> None:
    self._loader.submit(bundle.close)
    # Loaded functions form reference cycles.
    self._loader.submit(gc.collect)


def _example(model: Model, spec: tensors.Spec) -> tensors.Inputs:
  """Returns one row: a known query, without other inputs."""
  empty = {"string": b"", "int32": -1, "int64": -1, "float32": 0.0}
  k = min(_WARM_UP_K, model.max_k)
  values = {"k": k, "query_id": model.bundle.query_ids[0]}
  return {
    name: np.full(
      [1 if axis == 0 else size or 0 for axis, size in enumerate(x["shape"])],
      values.get(name, empty[x["dtype"]]),
      tf.as_dtype(x["dtype"]).as_numpy_dtype,
    )
    for name, x in spec.items()
  }
