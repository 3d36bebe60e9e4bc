"""The server as a whole: REST and gRPC in one event loop, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import resource
import signal
import socket
import sys
import typing
from collections.abc import Coroutine, Iterator
from concurrent import futures

import grpc
import uvicorn
from absl import logging
from grpc_health.v1 import health, health_pb2

from export.serving import (
  batching,
  connections,
  models,
  rest,
  rpc,
  service,
)
from export.serving import metrics as metrics_lib
from export.serving import options as options_lib
from xir_tfrs.data import errors

# Longer than load balancers keep a connection that is idle: they must be the
# ones to close it, or a request may meet a closing connection.
_KEEP_ALIVE_SECONDS = 75
# The health service's name for the server as a whole.
_ALL = ""
# Connections that are accepted before the first of them makes room.
_BACKLOG = 64
# Besides those of REST connections: TensorFlow's, and those of gRPC.
_OTHER_FILES = _BACKLOG + 128


def run(options: options_lib.ServeOptions) -> None:
  """Serves until SIGTERM or SIGINT, and ends the process then.

  Raises:
    DataError: the bundle or a port cannot be used.
  """
  asyncio.run(_serve_until_signal(options))
  # A bundle that is being loaded, or an answer that takes longer than
  # `shutdown_seconds`, would hold up the end of the interpreter.
  logging.flush()
  sys.stdout.flush()
  os._exit(0)


async def _serve_until_signal(options: options_lib.ServeOptions) -> None:
  stop = asyncio.Event()
  for number in (signal.SIGTERM, signal.SIGINT):
    asyncio.get_running_loop().add_signal_handler(number, stop.set)
  await serve(options, stop)


async def serve(options: options_lib.ServeOptions, stop: asyncio.Event) -> None:
  """Serves until `stop` is set.

  Raises:
    DataError: the bundle or a port cannot be used.
  """
  metrics = metrics_lib.Metrics()
  pool = futures.ThreadPoolExecutor(options.threads, "inference")
  answering = service.Service(
    options.model_name,
    models.Holder(options.bundle, options.index, metrics),
    metrics,
    lambda compute: batching.Batcher(
      compute, pool, options.max_batch_size, options.batch_timeout_ms / 1000
    ),
    options.limits,
  )
  listening = _listen(options.host, options.port)
  web = _WebServer(
    uvicorn.Config(
      rest.application(answering, options.host),
      http=_connections(options.limits),
      lifespan="off",
      log_config=None,
      log_level="error",
      access_log=False,
      backlog=_BACKLOG,
      timeout_keep_alive=_KEEP_ALIVE_SECONDS,
      timeout_graceful_shutdown=options.shutdown_seconds,
    )
  )
  calls, healthy = rpc.server(answering)
  await healthy.set(_ALL, health_pb2.HealthCheckResponse.NOT_SERVING)
  grpc_port = _bind(calls, options.host, options.grpc_port)
  await calls.start()
  serving = asyncio.create_task(web.serve([listening]))
  watching = asyncio.create_task(_watch_clients(web, options.limits))
  logging.info(
    "Loads %s; REST on port %d, gRPC on port %d of %s.",
    options.bundle,
    listening.getsockname()[1],
    grpc_port,
    options.host,
  )
  try:
    await _until(stop, _load_and_watch(answering, healthy, options))
  finally:
    answering.stopping = True
    await healthy.enter_graceful_shutdown()
    if stop.is_set():
      await asyncio.sleep(options.drain_seconds)
    web.should_exit = True
    await calls.stop(options.shutdown_seconds)
    await serving
    watching.cancel()
  logging.info("Stopped.")


async def _load_and_watch(
  answering: service.Service,
  healthy: health.aio.HealthServicer,
  options: options_lib.ServeOptions,
) -> None:
  model = await answering.holder.reload()
  await healthy.set(_ALL, health_pb2.HealthCheckResponse.SERVING)
  logging.info(
    "Ready as %s with version %d, index %s.",
    options.model_name,
    model.version,
    model.bundle.index,
  )
  await answering.holder.watch(options.watch_seconds)


async def _until(stop: asyncio.Event, work: Coroutine) -> None:
  """Runs `work` until it fails or `stop` is set."""
  tasks = [asyncio.create_task(work), asyncio.create_task(stop.wait())]
  done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
  for task in tasks:
    task.cancel()
  for task in done:
    task.result()


async def _watch_clients(
  web: uvicorn.Server, limits: options_lib.Limits
) -> None:
  shortest = min(limits.request_seconds, limits.answer_seconds)
  while True:
    await asyncio.sleep(min(1.0, shortest / 4))
    for connection in list(web.server_state.connections):
      connection.check_time()


def _connections(limits: options_lib.Limits) -> type[asyncio.Protocol]:
  """Of as many connections as there may be files."""
  _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
  if 0 <= most < limits.max_connections + _OTHER_FILES:
    logging.warning(
      "Takes %d connections, not %d: the system allows %d open files (see "
      "ulimit -n).",
      allowed := max(1, most - _OTHER_FILES),
      limits.max_connections,
      most,
    )
    limits = dataclasses.replace(limits, max_connections=allowed)
  made = functools.partial(connections.Connection, limits=limits)
  return typing.cast(type[asyncio.Protocol], made)


class _WebServer(uvicorn.Server):
  """Leaves the signals to the program: gRPC has to stop as well."""

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    yield


def _listen(host: str, port: int) -> socket.socket:
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  try:
    listening = socket.create_server((host, port), family=family)
  except OSError as error:
    raise errors.DataError(
      f"--port {port} of {host}: {error.strerror}; choose another one"
    ) from None
  # Accepted connections inherit it. Without it an answer of two packets on a
  # kept connection waits 40 ms for the client's acknowledgement; asyncio sets
  # it only for sockets that name their protocol, which those of
  # `create_server` do not.
  listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  return listening


def _bind(calls: grpc.aio.Server, host: str, port: int) -> int:
  address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
  try:
    return calls.add_insecure_port(address)
  except RuntimeError:
    raise errors.DataError(
      f"--grpc_port {port} of {host}: cannot be used; choose another one"
    ) from None
