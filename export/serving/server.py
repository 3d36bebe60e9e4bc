"""Runs the server: REST and gRPC in one event loop, until a signal."""

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
  access,
  batching,
  connections,
  memory,
  models,
  ports,
  rest,
  rpc,
  service,
  workers,
)
from export.serving import metrics as metrics_lib
from export.serving import options as options_lib
from xir_tfrs.data import errors

# Longer than load balancers keep an idle connection. They must close it first,
# otherwise a request may arrive on a closing connection.
_KEEP_ALIVE_SECONDS = 75
# The health service's name for the server as a whole.
_ALL = ""
# Connections that wait to be accepted.
_BACKLOG = 64
# Time between two returns of freed memory.
_MEMORY_SECONDS = 10
# Open files besides REST connections: those of TensorFlow and gRPC.
_OTHER_FILES = _BACKLOG + 128


def run(
  options: options_lib.ServeOptions, member: workers.Member | None = None
) -> None:
  """Serves until SIGTERM or SIGINT, then ends the process.

  Args:
    options: The settings.
    member: Membership in a group of processes that share the ports; None for a
      single process.

  Raises:
    DataError: The bundle or a port cannot be used.
  """
  memory.keep_little()
  asyncio.run(_serve_until_signal(options, member))
  # A normal exit would wait for a bundle that is being loaded, or for an answer
  # that takes longer than `shutdown_seconds`.
  logging.flush()
  sys.stdout.flush()
  os._exit(0)


async def _serve_until_signal(
  options: options_lib.ServeOptions, member: workers.Member | None
) -> None:
  stop = asyncio.Event()
  for number in (signal.SIGTERM, signal.SIGINT):
    asyncio.get_running_loop().add_signal_handler(number, stop.set)
  await serve(options, stop, member)


async def serve(
  options: options_lib.ServeOptions,
  stop: asyncio.Event,
  member: workers.Member | None = None,
) -> None:
  """Serves until `stop` is set.

  Raises:
    DataError: The bundle, a port, a certificate or a token cannot be used.
  """
  given = options.access
  tokens = access.Tokens(given.token_file) if given.token_file else None
  certificate = access.Certificate(given) if given.tls_certificate else None
  answering = _service(options, member)
  if member is not None:
    # Loads before listening, because other workers already answer.
    await _first_of(answering.holder.reload(member.version), stop.wait())
    if stop.is_set():
      return
  listening = _listen(options.host, options.port, shared=member is not None)
  web = _web_server(options, answering, tokens, certificate)
  calls, healthy = rpc.server(answering, tokens)
  await healthy.set(_ALL, health_pb2.HealthCheckResponse.NOT_SERVING)
  grpc_port = _bind(calls, options.host, options.grpc_port, certificate)
  await calls.start()
  serving = asyncio.create_task(web.serve([listening]))
  watching = asyncio.create_task(
    _watch_clients(web, options.limits, certificate)
  )
  tidying = asyncio.create_task(_give_memory_back())
  logging.info(
    "Loads %s; REST on port %d, gRPC on port %d of %s.",
    options.bundle,
    listening.getsockname()[1],
    grpc_port,
    options.host,
  )
  try:
    port = listening.getsockname()[1]
    work = _load_and_watch(answering, healthy, options, port)
    await _first_of(work, stop.wait())
  finally:
    answering.stopping = True
    await healthy.enter_graceful_shutdown()
    if stop.is_set():
      await asyncio.sleep(options.drain_seconds)
    web.should_exit = True
    await calls.stop(options.shutdown_seconds)
    await serving
    watching.cancel()
    tidying.cancel()
  logging.info("Stopped.")


def _service(
  options: options_lib.ServeOptions, member: workers.Member | None
) -> service.Service:
  metrics = metrics_lib.Metrics()
  pool = futures.ThreadPoolExecutor(options.threads, "inference")
  return service.Service(
    options.model_name,
    models.Holder(options.bundle, options.index, metrics),
    metrics,
    lambda compute: batching.Batcher(
      compute, pool, options.max_batch_size, options.batch_timeout_ms / 1000
    ),
    options.limits,
    member,
  )


def _web_server(
  options: options_lib.ServeOptions,
  answering: service.Service,
  tokens: access.Tokens | None,
  certificate: access.Certificate | None,
) -> _WebServer:
  config = uvicorn.Config(
    rest.application(answering, options.host, tokens, options.demo),
    http=_connections(options.limits),
    lifespan="off",
    log_config=None,
    log_level="error",
    access_log=False,
    backlog=_BACKLOG,
    timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    timeout_graceful_shutdown=options.shutdown_seconds,
  )
  config.load()
  if certificate is not None:
    config.ssl = certificate.context
  return _WebServer(config)


async def _load_and_watch(
  answering: service.Service,
  healthy: health.aio.HealthServicer,
  options: options_lib.ServeOptions,
  port: int,
) -> None:
  holder, member = answering.holder, answering.member
  model = holder.model or await holder.reload()
  await healthy.set(_ALL, health_pb2.HealthCheckResponse.SERVING)
  logging.info(
    "Ready as %s with version %d, index %s.",
    options.model_name,
    model.version,
    model.bundle.index,
  )
  if options.demo:
    scheme = "https" if options.access.tls_certificate else "http"
    host = f"[{options.host}]" if ":" in options.host else options.host
    logging.info("A page to try it: %s://%s:%d/", scheme, host, port)
  work = [
    holder.watch(
      options.watch_seconds, functools.partial(answering.reload, join=True)
    )
  ]
  if member is not None:
    member.ready()
    work.append(member.listen(holder.reload))
  await _first_of(*work)


async def _first_of(*work: Coroutine) -> None:
  """Runs coroutines until one of them ends or fails."""
  tasks = [asyncio.create_task(each) for each in work]
  done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
  for task in tasks:
    task.cancel()
  for task in done:
    task.result()


async def _watch_clients(
  web: uvicorn.Server,
  limits: options_lib.Limits,
  certificate: access.Certificate | None,
) -> None:
  shortest = min(limits.request_seconds, limits.answer_seconds)
  while True:
    await asyncio.sleep(min(1.0, shortest / 4))
    for connection in list(web.server_state.connections):
      connection.check_time()
    if certificate is not None:
      certificate.renew()


async def _give_memory_back() -> None:
  loop = asyncio.get_running_loop()
  while True:
    await asyncio.sleep(_MEMORY_SECONDS)
    await loop.run_in_executor(None, memory.give_back)


def _connections(limits: options_lib.Limits) -> type[asyncio.Protocol]:
  """The class of connections, limited by the number of open files."""
  _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
  if 0 <= most < limits.max_connections + _OTHER_FILES:
    logging.warning(
      "Accepts %d connections instead of %d: the system allows %d open files "
      "(see ulimit -n).",
      allowed := max(1, most - _OTHER_FILES),
      limits.max_connections,
      most,
    )
    limits = dataclasses.replace(limits, max_connections=allowed)
  made = functools.partial(connections.Connection, limits=limits)
  return typing.cast(type[asyncio.Protocol], made)


class _WebServer(uvicorn.Server):
  """Leaves signals to the program, which also has to stop gRPC."""

  @contextlib.contextmanager
  def capture_signals(self) -> Iterator[None]:
    yield


def _listen(host: str, port: int, shared: bool = False) -> socket.socket:
  listening = ports.bind(host, port, "--port", shared)
  # Accepted connections inherit TCP_NODELAY. Without it, an answer of two
  # packets on a persistent connection waits 40 ms for the client's
  # acknowledgement. asyncio sets it only for sockets that name their protocol;
  # these do not.
  listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
  listening.listen(_BACKLOG)
  return listening


def _bind(
  calls: grpc.aio.Server,
  host: str,
  port: int,
  certificate: access.Certificate | None,
) -> int:
  address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
  try:
    if certificate is None:
      return calls.add_insecure_port(address)
    return calls.add_secure_port(address, certificate.for_grpc())
  except RuntimeError:
    raise errors.DataError(
      f"--grpc_port {port} of {host}: cannot be used; choose another one"
    ) from None
