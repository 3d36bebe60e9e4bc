"""Binds ports, which several processes may share."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from xir_tfrs.data import errors


@contextlib.contextmanager
def held(host: str, port: int, flag: str) -> Iterator[int]:
  """Reserves a port that other sockets of this user may share."""
  with bind(host, port, flag) as free:
    port = free.getsockname()[1]
  with bind(host, port, flag, shared=True):
    yield port


def bind(
  host: str, port: int, flag: str, shared: bool = False
) -> socket.socket:
  """Returns a bound socket that does not listen yet.

  Args:
    host: The address.
    port: The port; 0 for a free one.
    flag: Name of the port's flag, for errors.
    shared: Whether other sockets may use the same port.

  Raises:
    DataError: The port cannot be used.
  """
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  bound = socket.socket(family)
  try:
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
      bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if family == socket.AF_INET6:
      bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    bound.bind((host, port))
  except OSError as error:
    bound.close()
    raise errors.DataError(
      f"{flag} {port} of {host}: {error.strerror}; choose another one"
    ) from None
  return bound
