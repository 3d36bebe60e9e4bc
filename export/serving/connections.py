"""Limits on the number of REST connections and on slow clients."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import h11
from uvicorn.protocols.http import h11_impl

from export.serving import options

# A socket closed with this sends nothing more and frees its memory at once.
_FORGET = struct.pack("ii", 1, 0)


class Connection(h11_impl.H11Protocol):
  """A connection of Uvicorn that closes if its client is too slow.

  Uvicorn itself closes connections that are idle between two requests.
  """

  def __init__(self, *args: Any, limits: options.Limits, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self._limits = limits
    self._heard = self.loop.time()  # When the client last sent anything.
    # What the server waits for, for which request, and since when.
    self._waits: tuple[str, object] | None = None
    self._since = self._heard

  def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
    """Closes the connection idle the longest if there are too many."""
    super().connection_made(transport)
    if len(self.connections) <= self._limits.max_connections:
      return
    others = [x for x in self.connections if x is not self and not x._works()]
    min(others, key=lambda x: x._heard, default=self)._cut_off()

  def data_received(self, data: bytes) -> None:
    self._heard = self.loop.time()
    super().data_received(data)

  def pause_writing(self) -> None:
    """Called when the client does not read; limits what is not read."""
    super().pause_writing()
    unread = [x for x in self.connections if x.flow.write_paused]
    size = sum(x.transport.get_write_buffer_size() for x in unread)
    for one in sorted(unread, key=lambda x: x._heard):
      if size <= self._limits.max_pending_bytes:
        break
      size -= one.transport.get_write_buffer_size()
      one._cut_off()

  def check_time(self) -> None:
    """Closes the connection if the client is late; call it regularly."""
    waits, now = self._waits_for(), self.loop.time()
    if waits != self._waits:
      self._waits, self._since = waits, now
    if waits is None:
      return
    limit = {
      "request": self._limits.request_seconds,
      "reading": self._limits.answer_seconds,
    }[waits[0]]
    if now - self._since > limit:
      self._cut_off()

  def _waits_for(self) -> tuple[str, object] | None:
    """None while the connection is idle or the server works on an answer."""
    if self.transport.is_closing() or self.flow.write_paused:
      return "reading", self.cycle
    if self._works():
      return None
    begun = bool(self.conn.trailing_data[0])
    if begun or self.cycle is None or self.conn.their_state is h11.SEND_BODY:
      return "request", self.cycle
    return None

  def _works(self) -> bool:
    """Whether the client waits for the server."""
    return (
      self.cycle is not None
      and not self.cycle.response_complete
      and not self.cycle.more_body
      and not self.flow.write_paused
    )

  def _cut_off(self) -> None:
    connected = self.transport.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)
    self.connections.discard(self)
    self.transport.abort()
