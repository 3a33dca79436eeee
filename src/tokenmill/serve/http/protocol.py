"""The connection: uvicorn's h11 protocol with a clock on what a peer may delay.

A header block must be complete `header_s` after its first byte (or the connection's start); so must the rest of a body
whose request was answered already. A reader that leaves more than `write_buffer_bytes` untaken for `write_stall_s` is
cut off, which the application sees as a disconnect.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from tokenmill.serve.http.options import TransportLimits


def protocol_class(limits: TransportLimits) -> type[H11Protocol]:
    """The protocol with these limits bound, as uvicorn builds protocols by class."""

    class BoundProtocol(TimedProtocol):
        transport_limits = limits

    return BoundProtocol


class TimedProtocol(H11Protocol):
    transport_limits = TransportLimits()

    def __init__(self, config: Config, server_state: Any, app_state: dict[str, Any], **loop: Any) -> None:
        super().__init__(config, server_state, app_state, **loop)
        self._header_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._rest_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=self.transport_limits.write_buffer_bytes)
        self._await_header()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._await_header()
        else:
            _cancel(self._header_timer)
            self._header_timer = None
        if self.conn.their_state is not h11.SEND_BODY:
            _cancel(self._rest_timer)
            self._rest_timer = None

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY and self._rest_timer is None:
            # Not at once: a client that is still sending would lose the answer to a reset.
            self._rest_timer = self.loop.call_later(self.transport_limits.header_s, self.transport.close)
        super().on_response_complete()
        # Idle between requests is uvicorn's keep-alive timer; ours starts with the next request's first byte.
        if self.conn.their_state is not h11.IDLE:
            _cancel(self._header_timer)
            self._header_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._header_timer)
        self._header_timer = None
        _cancel(self._stall_timer)
        self._stall_timer = None
        _cancel(self._rest_timer)
        self._rest_timer = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self.transport_limits.write_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._stall_timer)
        self._stall_timer = None

    def _await_header(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.transport_limits.header_s, self._header_late)

    def _header_late(self) -> None:
        self._header_timer = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
