"""A plain POST, from its head to its answer, past the parser of all of HTTP.

h11 looks at every line in Python, several times, which takes a small request longer than the
sockets do. A head that holds nothing but a request line, plain headers and one length says all of
itself at one look. Whatever holds more than that is h11's, and so is whatever is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message
from uvicorn.protocols.http.flow_control import FlowControl

__all__ = ["Exchange", "PlainHead", "plain_head"]

MOST = 16 * 1024  # bytes of a head
HEAD = re.compile(rb"POST (/[!-~]*) HTTP/1\.1\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n)+\r\n")
LENGTH = re.compile(rb"[0-9]{1,18}")
# What says how the message goes on, or asks for more than an answer.
FRAMING = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"connection", b"http2-settings"))
NO_BODY = (204, 304)
PHRASES = {status.value: status.phrase for status in HTTPStatus}
Headers = list[tuple[bytes, bytes]]
logger = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class PlainHead:
    """A request's head: `size` bytes, before a body of `length` bytes."""

    target: bytes
    headers: Headers
    length: int
    size: int


def plain_head(data: bytes) -> PlainHead | None:
    """The head that `data` begins with; None where it is not whole, or not plain."""
    size = data.find(b"\r\n\r\n", 0, MOST) + 4
    match = HEAD.fullmatch(data, 0, size) if size > 4 else None
    if match is None:
        return None
    headers: Headers = []
    for line in data[match.end(1) + 11 : size - 4].split(b"\r\n"):
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    hosts, length = 0, None
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            if length is not None or LENGTH.fullmatch(value) is None:
                return None
            length = int(value)
        elif name in FRAMING and (name != b"connection" or value.lower() != b"keep-alive"):
            return None
    if hosts != 1 or length is None:
        return None
    return PlainHead(match[1], headers, length, size)


class Exchange:
    """One plain request and its answer: what an ASGI application receives and sends.

    Args:
        transport: where the answer goes, in one piece where the application gives it in one.
        flow: tells whether the client reads.
        headers: of every answer.
        left: bytes of the body that are still to come.
        done: called when the answer is written and the application is done with the request.

    Attributes:
        keeps: whether the connection stays open after the answer.
        gone: whether the client has hung up.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        flow: FlowControl,
        headers: Headers,
        left: int,
        done: Callable[[], None],
    ) -> None:
        self.transport = transport
        self.flow = flow
        self.left = left
        self.keeps = True
        self.gone = self.answered = False
        self._headers = headers
        self._done = done
        self._parts: list[bytes] = []
        self._start: Message | None = None
        self._begun = self._read = False
        self._owed: int | None = None  # bytes of the answer that were told and not yet given
        self._waiter: asyncio.Future[None] | None = None

    def feed(self, data: bytes) -> bytes:
        """Take of `data` what is of the body; returns the rest."""
        rest = b""
        if len(data) > self.left:
            data, rest = data[: self.left], data[self.left :]
        if data:
            self._parts.append(data)
            self.left -= len(data)
        if not self.left:
            self._wake()
        return rest

    def hang_up(self) -> None:
        """The client has gone."""
        self.gone = True
        self._wake()

    async def run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        """Have the application answer; a bug of it closes the connection, if not with a 500."""
        try:
            await self._run(app, scope)
        finally:
            if self.answered:  # not sooner: what came behind it would be one more at a time
                self._done()

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self.receive, self.send)
            if not self.answered and not self.gone:
                logger.error("The ASGI application returned without a whole answer")
                self._break_off()
        except asyncio.CancelledError:
            logger.error("an answer was cut off: the server stops")
            self._break_off()
        except BaseException as exc:
            logger.error("Exception in ASGI application\n", exc_info=exc)
            self._break_off()
        if self._begun or self.gone:
            return
        self._start = None
        close = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        await self.send({"type": "http.response.start", "status": 500, "headers": close})
        await self.send({"type": "http.response.body", "body": b"Internal Server Error"})

    def _break_off(self) -> None:
        """Let go of a client that has part of an answer, and cannot take it for a whole one."""
        if self.answered:
            return  # the client has all of it, and the next answer may be on its way
        if self._begun and self._owed is None:
            self.transport.abort()  # only the connection's end would have told the answer's
        elif self._begun:
            self.transport.close()

    async def receive(self) -> Message:
        """The whole body at once; then nothing until the client has gone, or the answer has."""
        while not self._read and self.left and not self.gone:
            await self._wait()
        if not self._read and not self.gone:
            self._read, parts = True, self._parts
            self._parts = []
            return {"type": "http.request", "body": b"".join(parts), "more_body": False}
        while not self.gone and not self.answered:
            await self._wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Part of the answer. Raises RuntimeError for what would be read as part of the next."""
        if self.flow.write_paused and not self.gone:
            await self.flow.drain()
        if self.gone:
            return
        kind, told = message["type"], self._start is not None or self._begun
        if self.answered or kind != ("http.response.body" if told else "http.response.start"):
            raise RuntimeError(f"{kind} does not follow what was sent of this answer")
        if kind == "http.response.start":
            self._start = message
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        head = b""
        if self._start is not None:
            head = self._head(self._start, None if more else len(body))
        if self._owed is not None:
            self._owed -= len(body)
            if self._owed < 0 or (self._owed and not more):
                raise RuntimeError("the answer is not as long as its content-length")
        self._start, self._begun = None, True
        self.transport.write(head + body)
        if not more:
            self.answered = True
            self._wake()
            if not self.keeps:
                self.transport.close()

    def _head(self, start: Message, length: int | None) -> bytes:
        status = start["status"]
        lines = [b"HTTP/1.1 %d %b" % (status, PHRASES.get(status, "").encode())]
        told = status in NO_BODY
        self._owed = 0 if told else length
        for name, value in (*self._headers, *start["headers"]):
            if b"\r" in value or b"\n" in value:
                raise RuntimeError(f"the header {name!r} holds a line's end")
            if name == b"connection" and value == b"close":
                self.keeps = False
                continue
            if name == b"transfer-encoding":
                continue  # nothing is sent in chunks here
            if name == b"content-length":
                self._owed = self._owed if status in NO_BODY else int(value)
                told = True
            lines.append(b"%b: %b" % (name, value))
        if not told and length is not None:
            lines.append(b"content-length: %d" % length)
        elif not told:
            self.keeps = False  # its end is the answer's
        if not self.keeps:
            lines.append(b"connection: close")
        return b"\r\n".join([*lines, b"", b""])

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
