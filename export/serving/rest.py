"""TensorFlow Serving's REST interface, and endpoints for operators."""

from __future__ import annotations

import ipaddress
import urllib.parse
from collections.abc import Awaitable, Callable

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

from export.serving import access, bodies, demo, protos, service, tensors
from export.serving import metrics as metrics_lib
from xir_tfrs.data import errors

_STATUS = {
  "INVALID_ARGUMENT": 400,
  "NOT_FOUND": 404,
  "CANCELLED": 499,  # The client has disconnected; nobody reads this.
  "INTERNAL": 500,
  "RESOURCE_EXHAUSTED": 429,
  "UNAVAILABLE": 503,
}


class _ModelName(convertors.StringConvertor):
  """A name without a colon, which starts the method.

  Otherwise GET of `NAME:predict` would ask for the status of that model.
  """

  regex = "[^/:]+"


convertors.register_url_convertor("model", _ModelName())


def application(
  serve: service.Service,
  host: str,
  tokens: access.Tokens | None = None,
  with_demo: bool = False,
) -> applications.Starlette:
  """The web application of a service.

  Args:
    serve: The service.
    host: Address of the server, which an operator's requests name.
    tokens: Tokens that requests must have; None allows all requests.
    with_demo: Whether to serve the page to try the bundle.
  """

  async def predict(request: requests.Request) -> responses.Response:
    answer = await bodies.handle(
      request,
      serve,
      "rest",
      lambda call, body: _answer(serve, call, request.path_params, body),
    )
    return responses.Response(answer, media_type="application/json")

  async def status(request: requests.Request) -> responses.Response:
    path = request.path_params
    model = serve.model(path["name"], path.get("version"))
    return bodies.answer(_to_dict(protos.status(model)))

  async def metadata(request: requests.Request) -> responses.Response:
    path = request.path_params
    model = serve.model(path["name"], path.get("version"))
    return bodies.answer(
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
      return bodies.answer(
        {"error": "web pages may not reload the bundle"}, 403
      )
    try:
      version = await serve.reload()
    except errors.DataError as error:
      return bodies.answer({"error": " ".join(str(error).split())}, 500)
    return bodies.answer({"version": str(version)})

  layers = [middleware.Middleware(_closing_connections, serve=serve)]
  if tokens is not None:
    layers.append(
      middleware.Middleware(
        access.WebGuard, tokens=tokens, metrics=serve.metrics
      )
    )
  return applications.Starlette(
    routes=[
      *_for_versions(":predict", predict, "POST"),
      *_for_versions("/metadata", metadata, "GET"),
      *_for_versions("", status, "GET"),
      routing.Route("/healthz", healthz),
      routing.Route("/readyz", readyz),
      routing.Route("/metrics", metrics),
      routing.Route("/-/reload", reload, methods=["POST"]),
      *(demo.routes(serve) if with_demo else ()),
    ],
    middleware=layers,
    exception_handlers={
      tensors.RequestError: _refuse,
      exceptions.HTTPException: _no_such_page,
    },
  )


def _closing_connections(
  app: types.ASGIApp, serve: service.Service
) -> types.ASGIApp:
  """At shutdown, tells clients to use another connection."""

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
  """Whether a web page in the operator's browser may have sent a request.

  Browsers send the `Origin` of the page. If the page's own name resolves to
  this server (DNS rebinding), they send no `Origin`, but that name as the
  `Host`.
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
  return await serve.predict(
    call,
    path["name"],
    path.get("version"),
    content.get("signature_name", ""),
    len(body),
    lambda spec: tensors.from_json(content, spec),
    lambda _, outputs: tensors.to_json(outputs, rows="instances" in content),
  )


def _to_dict(message: json_format.Message) -> dict:
  return json_format.MessageToDict(
    message,
    preserving_proto_field_name=True,
    always_print_fields_with_no_presence=True,
  )


async def _refuse(
  request: requests.Request, error: tensors.RequestError
) -> responses.Response:
  headers = {}
  if error.code in service.RETRY_CODES:
    headers["Retry-After"] = str(service.RETRY_SECONDS)
  return bodies.answer({"error": str(error)}, _STATUS[error.code], headers)


async def _no_such_page(
  request: requests.Request, error: exceptions.HTTPException
) -> responses.Response:
  path = tensors.short(request.url.path)
  content = {"error": f"{request.method} {path}: {error.detail}"}
  return bodies.answer(content, error.status_code)
