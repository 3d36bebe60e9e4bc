"""Reads bodies of REST calls within limits, and writes them as JSON."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette import requests, responses

from export.serving import metrics as metrics_lib
from export.serving import service, tensors

_T = TypeVar("_T")


async def handle(
  request: requests.Request,
  serve: service.Service,
  protocol: str,
  answer: Callable[[metrics_lib.Call, bytes], Awaitable[_T]],
) -> _T:
  """Answers a predict call within all limits.

  Args:
    request: The request.
    serve: The service.
    protocol: Name in the metrics.
    answer: Makes the answer, given the call and the body of the request.
  """
  with (
    serve.metrics.request(protocol) as call,
    serve.bodies.part() as take_bytes,
    serve.calls.part() as take_calls,
  ):
    body = await _read(request, serve, take_bytes)
    take_calls(1)
    return await _unless_gone(request, serve.in_time(answer(call, body)))


async def _unless_gone(request: requests.Request, work: Awaitable[_T]) -> _T:
  """Returns the result of `work`; cancels it if the client disconnects."""

  async def gone() -> None:
    while (await request.receive())["type"] != "http.disconnect":
      pass

  tasks = working, leaving = (
    asyncio.ensure_future(work),
    asyncio.create_task(gone()),
  )
  try:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
      return working.result()
  finally:
    working.cancel()
    leaving.cancel()
  raise _gone_error()


async def _read(
  request: requests.Request,
  serve: service.Service,
  take: Callable[[int], None],
) -> bytes:
  """Reads and decompresses the body, and reserves memory for its size."""
  limit = serve.limits.max_body_bytes
  body = bytearray()
  try:
    async for chunk in request.stream():
      take(len(chunk))
      body += chunk
      if len(body) > limit:
        raise tensors.invalid(f"the body has more than {limit} bytes")
  except requests.ClientDisconnect:
    raise _gone_error() from None
  packed = bytes(body)
  encoding = request.headers.get("content-encoding", "identity").lower()
  if encoding == "identity":
    return packed
  if encoding != "gzip":
    raise tensors.invalid(
      f"`Content-Encoding` must be gzip. Received: {tensors.short(encoding)}"
    )
  content = await serve.convert(limit, lambda: _decompress(packed, limit))
  take(len(content))
  return content


def _decompress(packed: bytes, limit: int) -> bytes:
  try:
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
      content = file.read(limit + 1)
  except (OSError, EOFError, zlib.error) as error:
    raise tensors.invalid(f"the body is not gzip: {error}") from None
  if len(content) > limit:
    raise tensors.invalid(f"the body has more than {limit} bytes")
  return content


def _gone_error() -> tensors.RequestError:
  return tensors.RequestError("CANCELLED", "the client cancelled the request")


def answer(
  content: dict, status: int = 200, headers: dict[str, str] | None = None
) -> responses.Response:
  text = json.dumps(content, indent=1)
  return responses.Response(
    text + "\n", status, headers, media_type="application/json"
  )
