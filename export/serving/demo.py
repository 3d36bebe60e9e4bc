"""A page to try the bundle, and the requests that it sends.

The page is a single file without external resources. Browsers only run its own
script, whose hash is in the Content-Security-Policy.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import pathlib
import re
from collections.abc import Awaitable, Callable

import msgspec
from starlette import requests, responses, routing

from export.serving import bodies, models, service, tensors
from export.serving import metrics as metrics_lib
from export.serving.catalogue import Catalogue

_PAGE = pathlib.Path(__file__).with_name("page.html")
_MOST_FOUND = 20
_MOST_HISTORY = 50
_MOST_ANSWERS = 100
# Look-ups may take as long as reading a large body: not in the event loop.
_SLOW = 1 << 20

_Handler = Callable[[requests.Request], Awaitable[responses.Response]]


class Question(msgspec.Struct, forbid_unknown_fields=True):
  """A request of the page.

  Attributes:
    query: Id of a query; "" for a history alone.
    history: Ids of items, newest last.
    history_times: Their times; used only if `time` is given.
    time: Time of the request; None if it is unknown.
    similar: Id of an item to find similar items for, instead of both.
    exclude: Ids of items to leave out.
    k: Number of answers.
    unseen: Whether to leave out the query's training candidates.
  """

  query: str = ""
  history: list[str] = []
  history_times: list[int | None] = []
  time: int | None = None
  similar: str = ""
  exclude: list[str] = []
  k: int = 10
  unseen: bool = False


def routes(serve: service.Service) -> list[routing.Route]:
  """The page, and the endpoints that it calls."""
  content = _PAGE.read_bytes()
  headers = {
    "Content-Security-Policy": policy(content.decode()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
  }

  async def page(request: requests.Request) -> responses.Response:
    return responses.Response(content, headers=headers, media_type="text/html")

  async def about(request: requests.Request) -> responses.Response:
    model = serve.model(serve.name, None)
    found = await serve.convert(_SLOW, lambda: model.catalogue.describe())
    return _json({"name": serve.name, "version": model.version, **found})

  def look_up(find: Callable, parameter: str, most: int) -> _Handler:
    """A handler that calls a method of the catalogue with a parameter."""

    async def found(request: requests.Request) -> responses.Response:
      model = serve.model(serve.name, None)
      text = request.query_params.get(parameter, "")
      return _json(
        await serve.convert(_SLOW, lambda: find(model.catalogue, text, most))
      )

    return found

  async def ask(request: requests.Request) -> responses.Response:
    answer = functools.partial(_answer, serve)
    return _json(await bodies.handle(request, serve, "page", answer))

  return [
    routing.Route("/", page),
    routing.Route("/demo/about", about),
    routing.Route(
      "/demo/items", look_up(Catalogue.find_items, "text", _MOST_FOUND)
    ),
    routing.Route(
      "/demo/queries", look_up(Catalogue.find_queries, "text", _MOST_FOUND)
    ),
    routing.Route(
      "/demo/history", look_up(Catalogue.history, "query", _MOST_HISTORY)
    ),
    routing.Route("/demo/ask", ask, methods=["POST"]),
  ]


def policy(page: str) -> str:
  """The page may only run its own script and style and call its server."""
  allowed = {
    f"{kind}-src": " ".join(
      f"'sha256-{_digest(text)}'"
      for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    )
    for kind, tag in (("script", "script"), ("style", "style"))
  }
  allowed |= {"default-src": "'none'", "connect-src": "'self'"}
  allowed["img-src"] = "data:"  # The icon, which is empty.
  for name in ("base-uri", "form-action", "frame-ancestors"):
    allowed[name] = "'none'"
  return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _digest(text: str) -> str:
  return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


async def _answer(
  serve: service.Service, call: metrics_lib.Call, body: bytes
) -> dict:
  try:
    question = msgspec.json.decode(body, type=Question)
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
    raise tensors.invalid(f"the question cannot be read: {error}") from None
  model = serve.model(serve.name, None)
  # Looks up ids; the first call reads all names.
  signature, inputs = await serve.convert(
    _SLOW, lambda: _request(question, model)
  )

  def write(model: models.Model, outputs: tensors.Inputs) -> dict:
    found = int(outputs["num_found"][0])
    names, scores = outputs["candidate_ids"][0], outputs["scores"][0]
    return {
      "items": [
        model.catalogue.item(x.decode() if isinstance(x, bytes) else str(x))
        | {"score": float(score)}
        for x, score in zip(names[:found], scores[:found], strict=True)
      ],
      "known": bool(outputs.get("known", [True])[0]),
      "popular": bool(outputs.get("popular", [False])[0]),
      "unused_history": bool(question.history and "history" not in inputs),
      "request": {"signature_name": signature, "inputs": inputs},
    }

  return await serve.predict(
    call,
    serve.name,
    None,
    signature,
    len(body),
    lambda spec: tensors.from_json({"inputs": inputs}, spec),
    write,
  )


def _request(
  question: Question, model: models.Model
) -> tuple[str, dict[str, object]]:
  """Signature and inputs of the predict call that answers a question."""
  k = min(question.k, _MOST_ANSWERS, model.max_k)
  if question.similar:
    return "similar_items", {
      "ids": [_id(question.similar, "item", model)],
      "k": k,
    }
  signature = "recommend_unseen" if question.unseen else "recommend"
  takes_history = "history" in model.signatures[signature]["inputs"]
  is_known = model.catalogue.history(question.query, 1) is not None
  # Without a history tower, the vector alone answers a known query.
  if not question.query or (
    question.history and not takes_history and not is_known
  ):
    signature, takes_history = "recommend_session", True
  inputs: dict[str, object] = {}
  if signature != "recommend_session":
    inputs["query_id"] = [_id(question.query, "query", model)]
  if takes_history:
    inputs["history"] = [[_id(x, "item", model) for x in question.history]]
  if question.time is not None:
    inputs["history_times"] = [question.history_times]
    inputs["time"] = [question.time]
  inputs["k"] = k
  inputs["exclude_ids"] = [[_id(x, "item", model) for x in question.exclude]]
  return signature, inputs


def _id(text: str, kind: str, model: models.Model) -> str | int:
  """Converts an id to the type of the bundle's ids."""
  types = model.bundle.manifest.id_types
  if (types.query if kind == "query" else types.candidate) == "string":
    return text
  try:
    return int(text)
  except ValueError:
    raise tensors.invalid(
      f"{kind} ids must be integers. Received: {tensors.short(text)}"
    ) from None


def _json(content: object) -> responses.Response:
  return responses.Response(
    msgspec.json.encode(content),
    headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"},
    media_type="application/json",
  )
