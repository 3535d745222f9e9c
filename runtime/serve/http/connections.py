"""HTTP connections with limits: how many there are, and how long one may take over a request's
head or stay without one."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from prunion.runtime.serve.options import Limits

__all__ = ["most_connections", "protocol_of"]

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: 44\r\n\r\n"
    b'{"error":"too many connections: close some"}'
)
SHARE = 0.8  # of the descriptors that the process may have


def most_connections(limits: Limits) -> int:
    """The limit, or what the process's descriptors allow: without one left, `accept` fails in a
    loop."""
    try:
        import resource
    except ImportError:  # Windows
        return limits.connections
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(limits.connections, max(1, int(SHARE * descriptors) - 20))


def protocol_of(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol with these limits."""
    most = most_connections(limits)

    class Guarded(H11Protocol):
        """Closes what is one too many, and what keeps silent."""

        _silence: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.write(BUSY)
                transport.close()
                return
            self._await_head(limits.header_seconds)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._between_requests():
                if self._silence is None:  # the first bytes of a head: they do not start it anew
                    self._await_head(limits.header_seconds)
            else:
                self._hear()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._between_requests() and not self.transport.is_closing():
                self._hear()

        def connection_lost(self, exc: Exception | None) -> None:
            self._hear()
            super().connection_lost(exc)

        def _between_requests(self) -> bool:
            return self.conn.their_state is h11.IDLE

        def _await_head(self, seconds: float) -> None:
            self._silence = self.loop.call_later(seconds, self._give_up)

        def _hear(self) -> None:
            if self._silence is not None:
                self._silence.cancel()
                self._silence = None

        def _give_up(self) -> None:
            self._silence = None
            if not self.transport.is_closing():
                self.transport.close()

    return Guarded
