"""TensorFlow Serving's REST interface, and pages for those who operate it."""

from __future__ import annotations

import asyncio
import gzip
import io
import ipaddress
import json
import urllib.parse
import zlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf import json_format
from starlette import (
  applications,
  convertors,
  exceptions,
  middleware,
  requests,
  responses,
  routing,
  types,
)

from export.serving import metrics as metrics_lib
from export.serving import protos, service, tensors
from xir_tfrs.data import errors

_T = TypeVar("_T")
_STATUS = {
  "INVALID_ARGUMENT": 400,
  "NOT_FOUND": 404,
  "CANCELLED": 499,  # The client has gone; nobody reads this.
  "INTERNAL": 500,
  "RESOURCE_EXHAUSTED": 429,
  "UNAVAILABLE": 503,
}


class _ModelName(convertors.StringConvertor):
  """A name without the colon that begins a verb.

  Otherwise GET of `NAME:predict` would be the status of a model of that name.
  """

  regex = "[^/:]+"


convertors.register_url_convertor("model", _ModelName())


def application(serve: service.Service, host: str) -> applications.Starlette:
  """The web application of a service.

  Args:
    serve: the service.
    host: of the server, under which its operator asks it.
  """

  async def predict(request: requests.Request) -> responses.Response:
    with (
      serve.metrics.request("rest") as call,
      serve.bodies.part() as take_bytes,
      serve.calls.part() as take_calls,
    ):
      body = await _body(request, serve, take_bytes)
      take_calls(1)
      work = serve.in_time(_answer(serve, call, request.path_params, body))
      answer = await _unless_gone(request, work)
    return responses.Response(answer, media_type="application/json")

  async def status(request: requests.Request) -> responses.Response:
    path = request.path_params
    model = serve.model(path["name"], path.get("version"))
    return _json(_to_dict(protos.status(model)))

  async def metadata(request: requests.Request) -> responses.Response:
    path = request.path_params
    model = serve.model(path["name"], path.get("version"))
    return _json(
      {
        "model_spec": _to_dict(protos.model_spec(serve.name, model, "")),
        "metadata": {"signature_def": _to_dict(protos.signatures(model))},
      }
    )

  async def healthz(request: requests.Request) -> responses.Response:
    return responses.PlainTextResponse("ok\n")

  async def readyz(request: requests.Request) -> responses.Response:
    if serve.ready:
      return responses.PlainTextResponse("ready\n")
    reason = "stopping\n" if serve.stopping else "loading\n"
    return responses.PlainTextResponse(reason, 503)

  async def metrics(request: requests.Request) -> responses.Response:
    return responses.Response(
      serve.metrics.text(), media_type="text/plain; version=0.0.4"
    )

  async def reload(request: requests.Request) -> responses.Response:
    if _is_foreign(request, host):
      return _json({"error": "no web page may ask for this"}, 403)
    try:
      model = await serve.holder.reload()
    except errors.DataError as error:
      return _json({"error": " ".join(str(error).split())}, 500)
    return _json({"version": str(model.version)})

  return applications.Starlette(
    routes=[
      *_for_versions(":predict", predict, "POST"),
      *_for_versions("/metadata", metadata, "GET"),
      *_for_versions("", status, "GET"),
      routing.Route("/healthz", healthz),
      routing.Route("/readyz", readyz),
      routing.Route("/metrics", metrics),
      routing.Route("/-/reload", reload, methods=["POST"]),
    ],
    middleware=[middleware.Middleware(_closing_connections, serve=serve)],
    exception_handlers={
      tensors.RequestError: _refuse,
      exceptions.HTTPException: _no_such_page,
    },
  )


def _closing_connections(
  app: types.ASGIApp, serve: service.Service
) -> types.ASGIApp:
  """Tells clients at the end to go on with another connection."""

  async def wrapped(
    scope: types.Scope, receive: types.Receive, send: types.Send
  ) -> None:
    async def close(message: types.Message) -> None:
      if serve.stopping and message["type"] == "http.response.start":
        headers = [*message["headers"], (b"connection", b"close")]
        message = {**message, "headers": headers}
      await send(message)

    await app(scope, receive, close)

  return wrapped


def _is_foreign(request: requests.Request, host: str) -> bool:
  """Whether a page that the operator looks at may have sent it.

  Browsers tell the page's `Origin`. A page whose own name leads to this
  server, which needs none, has that name as the `Host`.
  """
  try:
    name = urllib.parse.urlsplit(f"//{request.headers['host']}").hostname
    if name not in ("localhost", host):
      ipaddress.ip_address(name or "")
  except (KeyError, ValueError):
    return True
  return "origin" in request.headers


def _for_versions(
  ending: str,
  endpoint: Callable[[requests.Request], Awaitable[responses.Response]],
  method: str,
) -> list[routing.Route]:
  path = "/v1/models/{name:model}"
  return [
    routing.Route(start + ending, endpoint, methods=[method])
    for start in (path, path + "/versions/{version:int}")
  ]


async def _answer(
  serve: service.Service, call: metrics_lib.Call, path: dict, body: bytes
) -> bytes:
  content = await serve.convert(len(body), lambda: tensors.parse_json(body))
  _, outputs = await serve.predict(
    call,
    path["name"],
    path.get("version"),
    content.get("signature_name", ""),
    len(body),
    lambda spec: tensors.from_json(content, spec),
  )
  return await serve.convert(
    sum(x.nbytes for x in outputs.values()),
    lambda: tensors.to_json(outputs, rows="instances" in content),
  )


async def _unless_gone(request: requests.Request, work: Awaitable[_T]) -> _T:
  """What `work` gives; it is cancelled when the client goes."""

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


async def _body(
  request: requests.Request,
  serve: service.Service,
  take: Callable[[int], None],
) -> bytes:
  """The body, which has been decompressed, and taken by its size."""
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
  return tensors.RequestError("CANCELLED", "the client broke off the request")


def _to_dict(message: json_format.Message) -> dict:
  return json_format.MessageToDict(
    message,
    preserving_proto_field_name=True,
    always_print_fields_with_no_presence=True,
  )


def _json(
  content: dict, status: int = 200, headers: dict[str, str] | None = None
) -> responses.Response:
  text = json.dumps(content, indent=1)
  return responses.Response(
    text + "\n", status, headers, media_type="application/json"
  )


async def _refuse(
  request: requests.Request, error: tensors.RequestError
) -> responses.Response:
  headers = {}
  if error.code in service.RETRY_CODES:
    headers["Retry-After"] = str(service.RETRY_SECONDS)
  return _json({"error": str(error)}, _STATUS[error.code], headers)


async def _no_such_page(
  request: requests.Request, error: exceptions.HTTPException
) -> responses.Response:
  path = tensors.short(request.url.path)
  content = {"error": f"{request.method} {path}: {error.detail}"}
  return _json(content, error.status_code)
