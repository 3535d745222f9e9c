"""HTTP connections with limits: how many there are, and how long one may take over a request's
head or stay without one."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from prunion.runtime.serve.http.door import Door
from prunion.runtime.serve.http.lane import Exchange, PlainHead, plain_head
from prunion.runtime.serve.options import Limits

__all__ = ["most_connections", "protocol_of"]

BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: 44\r\n\r\n"
    b'{"error":"too many connections: close some"}'
)
UNREADABLE = b'{"error":"this is no HTTP/1.1 request: see its first line, headers and lengths"}'
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


def protocol_of(limits: Limits, door: Door | None = None) -> type[H11Protocol]:
    """uvicorn's protocol with these limits; `door` refuses what is too much before it is read."""
    own = {"limits": limits, "most": most_connections(limits), "door": door}
    return type(Guarded.__name__, (Guarded,), own)


class Guarded(H11Protocol):
    """Closes what is one too many, and what keeps silent; `protocol_of` sets the limits.

    uvicorn makes one for each connection, and gives it nothing but its own settings.
    """

    limits: Limits
    most: int  # connections at a time
    door: Door | None

    _close_timer: asyncio.TimerHandle | None = None  # runs out where a client keeps silent
    _idle = False  # whether that is the patience with who asks nothing
    _unread_timer: asyncio.TimerHandle | None = None  # runs out where it reads no answers
    _thrown = 0  # bytes still to come of a request that was refused, or answered before its end
    _exchange: Exchange | None = None  # the plain request that is being answered
    _early = b""  # what came after it

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.write(BUSY)
            transport.close()
            return
        self._close_after(self.limits.header_seconds)

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None:
            rest = self._exchange.feed(data)
            if rest:
                self._early += rest
                self.flow.pause_reading()
            return
        if self._thrown:
            part = min(self._thrown, len(data))
            self._thrown -= part
            data = data[part:]
            if not self._thrown:
                self._close_after(self.limits.idle_seconds, idle=True)
            if not data:
                return
        if self.door is not None and self._starts():
            refused = self.door.refuse(str(self.client[0]) if self.client else "?", data)
            if refused is not None:
                answer, self._thrown = refused
                self._unset_keepalive_if_required()
                if self._thrown:
                    self._close_after(self.limits.body_seconds)
                else:
                    self._close_after(self.limits.idle_seconds, idle=True)
                self.transport.write(answer)
                return
        head = plain_head(data) if self._starts() else None
        if head is not None and head.length <= self.limits.body:
            self._answer(head, data)
            return
        super().data_received(data)
        if self._between_requests():
            if self._close_timer is None or self._idle:  # the first bytes of a head, and no others
                self._close_after(self.limits.header_seconds)
        elif not self._unwanted():
            self._stop_close_timer()

    def _answer(self, head: PlainHead, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._stop_close_timer()
        path, _, query = head.target.partition(b"?")
        root = self.root_path
        scope = {
            "type": "http",
            "asgi": {"version": self.config.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": "POST",
            "root_path": root,
            "path": root + unquote(path.decode("ascii")),
            "raw_path": root.encode("ascii") + path,
            "query_string": query,
            "headers": head.headers,
            "state": self.app_state.copy(),
        }
        found = Exchange(
            self.transport,
            self.flow,
            self.server_state.default_headers,
            head.length,
            self._answered,
        )
        self._exchange = found
        task = self.loop.create_task(found.run(self.app, scope))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.data_received(data[head.size :])

    def _answered(self) -> None:
        found, self._exchange = self._exchange, None
        early, self._early = self._early, b""
        self._thrown = 0 if found is None else found.left
        self.on_response_complete()
        if self.transport.is_closing():
            return
        if self._thrown:
            self._unset_keepalive_if_required()
            self._close_after(self.limits.body_seconds)
        elif early:
            self.data_received(early)

    def shutdown(self) -> None:
        if self._exchange is None or self._exchange.answered:
            super().shutdown()
        else:
            self._exchange.keeps = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._unwanted():  # bytes that trickle in would hold the connection for ever
            self._close_after(self.limits.body_seconds)
        elif self._between_requests():
            self._stop_close_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_close_timer()
        self._stop_unread_timer()
        if self._exchange is not None:
            self._exchange.hang_up()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What cannot be read gets an error of the same form as every other."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the body broke off: its request is not answered
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # an answer is being written, or was
            return
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(UNREADABLE)),
            (b"connection", b"close"),
        ]
        events = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=UNREADABLE),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # as if it had not been asked for, as HTTP has it

    def _unwanted(self) -> bool:
        """Whether a request was answered whose body is still on its way."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _starts(self) -> bool:
        """Whether what comes now is the beginning of a request."""
        idle = self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE
        return idle and not self.conn.trailing_data[0] and not self.transport.is_closing()

    def _between_requests(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _close_after(self, seconds: float, *, idle: bool = False) -> None:
        self._stop_close_timer()
        self._close_timer = self.loop.call_later(seconds, self._close_now)
        self._idle = idle

    def _stop_close_timer(self) -> None:
        self._idle = False
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None

    def pause_writing(self) -> None:
        """A client that does not read its answers holds a place among the requests."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(self.limits.body_seconds, self._abort_now)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread_timer()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _abort_now(self) -> None:
        self._unread_timer = None
        self.transport.abort()

    def _close_now(self) -> None:
        self._close_timer = None
        if self.transport.get_write_buffer_size():  # closing would wait until it is read
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.close()
