"""An answer beside h11: whole, in pieces, too short or too long, none runs into the next."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
from uvicorn.protocols.http.flow_control import FlowControl

from prunion.runtime.model import load
from prunion.runtime.serve import Service
from prunion.runtime.serve.guard import Gate
from prunion.runtime.serve.http.app import http_app
from prunion.runtime.serve.http.lane import Exchange


class Wire:
    """A transport that notes what happens to it."""

    def __init__(self) -> None:
        self.sent, self.end = b"", ""

    def write(self, data: bytes) -> None:
        assert not self.end, "nothing is written behind the end"
        self.sent += data

    def close(self) -> None:
        self.end = self.end or "closed"

    def abort(self) -> None:
        self.end = "aborted"


def begin(*headers: tuple[bytes, bytes], status: int = 200) -> Any:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def part(content: bytes, more: bool = False) -> Any:
    return {"type": "http.response.body", "body": content, "more_body": more}


FIVE = (b"content-length", b"5")


@pytest.mark.parametrize(
    ("messages", "sent", "end"),
    [
        ([begin(), part(b"whole")], b"whole", ""),
        ([begin(FIVE), part(b"wh", True), part(b"ole")], b"whole", ""),
        ([begin(), part(b"wh", True), part(b"ole")], b"whole", "closed"),
        # What is not whole may not be taken for it.
        ([begin(FIVE), part(b"wh", True)], b"wh", "closed"),
        ([begin(), part(b"wh", True)], b"wh", "aborted"),
        ([begin(FIVE), part(b"wh", True), part(b"o")], b"wh", "closed"),
        # What comes after the whole is not sent; the next answer may be on its way by then.
        ([begin(), part(b"whole"), part(b"more")], b"whole", ""),
        ([begin(), part(b"whole"), begin(), part(b"more")], b"whole", ""),
        # What is too much would be read as the next answer.
        ([begin(FIVE), part(b"wh", True), part(b"ole, and more")], b"wh", "closed"),
        ([begin(FIVE), part(b"wh", True), begin(), part(b"ole")], b"wh", "closed"),
        # Where nothing was sent the client is told of it.
        ([], b"Internal Server Error", "closed"),
        ([begin()], b"Internal Server Error", "closed"),
        ([part(b"whole")], b"Internal Server Error", "closed"),
        ([begin(FIVE), part(b"wh")], b"Internal Server Error", "closed"),
        ([begin(status=204), part(b"whole")], b"Internal Server Error", "closed"),
        ([begin(), begin(), part(b"whole")], b"Internal Server Error", "closed"),
        # Nobody would write the lengths of its chunks.
        ([begin((b"transfer-encoding", b"chunked")), part(b"a", True), part(b"")], b"a", "closed"),
    ],
)
def test_no_answer_runs_into_the_next(messages: list[Any], sent: bytes, end: str) -> None:
    wire, done = Wire(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def run() -> None:
        flow = FlowControl(wire)  # type: ignore[arg-type]
        await Exchange(wire, flow, [], 0, lambda: done.append(1)).run(app, {})  # type: ignore[arg-type]

    asyncio.run(run())
    head, _, content = wire.sent.partition(b"\r\n\r\n")
    assert (content, wire.end) == (sent, end)
    assert head.count(b"HTTP/1.1 ") == 1 and b"chunked" not in head
    if not end or b"500" in head:
        assert len(done) == 1 and f"content-length: {len(sent)}".encode() in head


def test_a_request_that_the_end_of_the_drain_cuts_off_is_told(
    bundle_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of its body has come, say: it got a 500 as of a bug, and the log a traceback."""
    wire = Wire()
    head = {"type": "http", "method": "POST", "path": "/v2/models/toy/infer", "headers": []}
    scope = {**head, "client": ("1.2.3.4", 5), "query_string": b"", "root_path": ""}

    async def run(service: Service, gate: Gate) -> None:
        found = Exchange(wire, FlowControl(wire), [], 9, lambda: None)  # type: ignore[arg-type]
        task = asyncio.create_task(found.run(http_app(service, gate), scope))
        await asyncio.sleep(0.01)
        service.ready = False
        task.cancel()
        await task

    with load(bundle_path, backend="cpu", threads=1) as model:
        service = Service(model)
        asyncio.run(run(service, Gate(8, 8)))
        service.close()
    head, _, content = wire.sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in head and wire.end == "closed"
    assert json.loads(content) == {"error": "the server stops: ask another one, or later"}
    (line,) = caplog.records
    assert line.getMessage() == "POST /v2/models/toy/infer was cut off: the server stops"
    assert line.exc_info is None
