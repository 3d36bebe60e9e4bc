"""Access to the server: TLS and bearer tokens, for REST and gRPC."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import ssl
from collections.abc import Awaitable, Callable

import grpc
from absl import logging
from starlette import datastructures, responses, types

from export.serving import metrics as metrics_lib
from export.serving import options as options_lib
from xir_tfrs.data import errors

# Paths that need no token: probes, and the page, which asks the user for one.
_OPEN_PATHS = ("/healthz", "/readyz", "/")
_OPEN_METHODS = "/grpc.health.v1.Health/"
_SHORTEST_TOKEN = 16
_REFUSAL = "a token is required: Authorization: Bearer TOKEN"


class Tokens:
  """The tokens in a file, one per line; empty lines and `#` are skipped."""

  def __init__(self, path: str | os.PathLike[str]):
    """Reads the tokens.

    Raises:
      DataError: The file cannot be read, or a token is missing or unusable.
    """
    try:
      text = pathlib.Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
      raise errors.DataError(
        f"--token_file {path}: cannot be read: {error}"
      ) from None
    lines = [line.strip() for line in text.splitlines()]
    tokens = [line for line in lines if line and not line.startswith("#")]
    for number, line in enumerate(lines, 1):
      if line in tokens and (len(line) < _SHORTEST_TOKEN or " " in line):
        raise errors.DataError(
          f"--token_file {path}: line {number}: a token has at least "
          f"{_SHORTEST_TOKEN} characters and no space"
        )
    if not tokens:
      raise errors.DataError(f"--token_file {path}: has no token")
    self._digests = [_digest(token.encode()) for token in tokens]

  def accept(self, authorization: str | bytes | None) -> bool:
    """Whether the value of an `authorization` header has a valid token."""
    content = authorization or b""
    if isinstance(content, str):
      content = content.encode("utf-8", "replace")
    scheme, _, token = content.partition(b" ")
    given = _digest(token.strip())
    # Compares with all tokens, so that the time does not depend on them.
    found = [hmac.compare_digest(given, known) for known in self._digests]
    return scheme.lower() == b"bearer" and any(found)


def _digest(token: bytes) -> bytes:
  return hashlib.sha256(token).digest()


class WebGuard:
  """Answers 401 to requests without a token, before their bodies are read."""

  def __init__(
    self, app: types.ASGIApp, tokens: Tokens, metrics: metrics_lib.Metrics
  ):
    self._app, self._tokens, self._metrics = app, tokens, metrics

  async def __call__(
    self, scope: types.Scope, receive: types.Receive, send: types.Send
  ) -> None:
    """Handles one request."""
    app = self._app
    header = datastructures.Headers(scope=scope).get("authorization")
    if scope["path"] not in _OPEN_PATHS and not self._tokens.accept(header):
      self._metrics.refused("rest", "UNAUTHENTICATED")
      app = responses.Response(
        json.dumps({"error": _REFUSAL}) + "\n",
        status_code=401,
        headers={"WWW-Authenticate": "Bearer"},
        media_type="application/json",
      )
    await app(scope, receive, send)


class CallGuard(grpc.aio.ServerInterceptor):
  """Answers UNAUTHENTICATED to calls without a token."""

  def __init__(self, tokens: Tokens, metrics: metrics_lib.Metrics):
    self._tokens, self._metrics = tokens, metrics

  async def intercept_service(
    self,
    continuation: Callable[
      [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]
    ],
    handler_call_details: grpc.HandlerCallDetails,
  ) -> grpc.RpcMethodHandler:
    """Returns the handler of a call, or a handler that refuses it."""
    given = dict(handler_call_details.invocation_metadata)
    if handler_call_details.method.startswith(
      _OPEN_METHODS
    ) or self._tokens.accept(given.get("authorization")):
      return await continuation(handler_call_details)
    return grpc.unary_unary_rpc_method_handler(self._refuse)

  async def _refuse(
    self, request: bytes, context: grpc.aio.ServicerContext
  ) -> None:
    self._metrics.refused("grpc", "UNAUTHENTICATED")
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)


class Certificate:
  """A certificate with its key, which can be renewed without a restart.

  Attributes:
    context: The TLS context of REST connections.
  """

  def __init__(self, access: options_lib.Access):
    """Reads the files.

    Raises:
      DataError: The files cannot be used.
    """
    self._paths = access.tls_certificate, access.tls_key
    self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
      self._load()
    except (OSError, ssl.SSLError) as error:
      raise errors.DataError(
        f"--tls_certificate {self._paths[0]} and --tls_key {self._paths[1]}: "
        f"cannot be used: {error}"
      ) from None

  def for_grpc(self) -> grpc.ServerCredentials:
    """Returns the credentials of gRPC connections."""
    return grpc.dynamic_ssl_server_credentials(
      self._configuration, lambda: self._configuration
    )

  def renew(self) -> None:
    """Reads the files again if they have changed; call it regularly."""
    # If only one of the files is new, the old pair stays in use.
    with contextlib.suppress(OSError, ssl.SSLError):
      if self._state() != self._loaded:
        self._load()
        logging.info("Uses the new certificate %s.", self._paths[0])

  def _load(self) -> None:
    state = self._state()
    certificate, key = (pathlib.Path(path).read_bytes() for path in self._paths)
    # Checks the pair in another context: a context that fails is unusable.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._paths)
    self.context.load_cert_chain(*self._paths)
    self._configuration = grpc.ssl_server_certificate_configuration(
      [(key, certificate)]
    )
    self._loaded = state

  def _state(self) -> list[tuple[int, int]]:
    found = [os.stat(path) for path in self._paths]
    return [(x.st_mtime_ns, x.st_ino) for x in found]
