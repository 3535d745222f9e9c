"""Kept HTTP connections, of the load and of one caller: bytes out, an answer in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import numpy as np

__all__ = ["Connection", "connected", "logits_of", "status_of"]

LENGTH = b"content-length:"
JSON_LENGTH = b"inference-header-content-length:"
Answered = Callable[["Connection", int, bytes, bytes], None]


class Connection(asyncio.Protocol):
    """Tells `answered` of every answer (status, head, body), and `lost` when it ends without."""

    def __init__(self, answered: Answered, lost: Callable[[Connection], None]) -> None:
        self.answered = answered
        self.lost = lost
        self.open = False
        self.waiting = False
        self.domain = 0
        self.begun = 0.0
        self.done: asyncio.Future[None] | None = None  # what a client of a closed loop awaits
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def send(self, data: bytes, domain: int, begun: float) -> None:
        """One request; the next may follow when it is answered."""
        self.domain, self.begun, self.waiting = domain, begun, True
        assert self._transport is not None
        self._transport.write(data)

    def close(self) -> None:
        """End it; nothing is told any more."""
        self.waiting = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        """Some of an answer, or all."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[: end + 2].lower()
        size = _number(head, LENGTH)
        if len(self._buffer) < end + 4 + size:
            return
        body = self._buffer[end + 4 : end + 4 + size]
        self._buffer = b""
        self.waiting = False
        if b"\r\nconnection: close" in head:
            self.open = False
        self.answered(self, status_of(head), head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self.open = False
        if self.waiting:
            self.waiting = False
            self.lost(self)


@contextmanager
def connected(port: int) -> Iterator[Callable[[bytes], bytes]]:
    """A call that sends a request and gives its answer, over one connection."""
    with socket.create_connection(("127.0.0.1", port)) as found:
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask(request: bytes) -> bytes:
            found.sendall(request)
            buffer = b""
            while True:
                part = found.recv(1 << 16)
                if not part:
                    raise ConnectionError("the server hung up")
                buffer += part
                end = buffer.find(b"\r\n\r\n")
                if end >= 0:
                    head = buffer[:end].lower()
                    place = head.index(b"\r\ncontent-length:") + 17
                    if len(buffer) >= end + 4 + int(head[place:].split(b"\r\n", 1)[0]):
                        return buffer

        yield ask


def status_of(head: bytes) -> int:
    """The status of an answer."""
    return int(head[9:12])


def logits_of(head: bytes, body: bytes) -> np.ndarray:
    """`[C]` float32: what follows the JSON, or all of it where there is none."""
    place = head.find(JSON_LENGTH)
    return np.frombuffer(body[_number(head, JSON_LENGTH) if place >= 0 else 0 :], "<f4")


def _number(head: bytes, key: bytes) -> int:
    place = head.find(b"\r\n" + key)
    if place < 0:
        return 0
    start = place + 2 + len(key)
    return int(head[start : head.index(b"\r", start)])
