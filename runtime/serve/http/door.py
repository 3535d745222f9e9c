"""Requests that are one too many, refused before they are read.

A refusal that costs as much as an answer does not help a server that has too much to do. So what
the gate would turn away is told so from its head alone: no task is made, no body is looked at,
and the connection stays open, because a new one would cost more than the refusal.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from http import HTTPStatus

from prunion.runtime.serve.guard import Gate, refusal_of
from prunion.runtime.serve.models import Service

__all__ = ["Door"]

HEAD = re.compile(rb"POST [^\r\n]+ HTTP/1\.1\r\n")
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
# What asks for more than a plain answer goes the long way.
# So does what others may read as other lines, and a page's script, which is told more than this.
OTHER = re.compile(
    rb"\r\n(?:transfer-encoding|expect|upgrade|origin|connection:[ \t]*close|[ \t])"
    rb"|(?<!\r)\n|\r(?!\n)",
    re.IGNORECASE,
)
NAMED = re.compile(rb"\r\ncontent-length", re.IGNORECASE)


class Door:
    """Of one event loop.

    Args:
        gate: what counts the requests that are inside.
        service: what answers, and counts refusals; one here has no line in the log. What comes to a
            service that stops is let in, to be told to close.
    """

    def __init__(self, gate: Gate, service: Service) -> None:
        self.gate = gate
        self.service = service
        self.coming: Counter[str] = Counter()  # let in, and not yet counted by the gate

    def refuse(self, client: str, data: bytes) -> tuple[bytes, int] | None:
        """The answer to a request that begins with `data`, and how many bytes of it are still to
        come, to be thrown away; None where it is let in.

        Whatever is not a whole head of a POST that tells its length is let in: it is refused later.
        """
        end = data.find(b"\r\n\r\n")
        if end < 0 or not self.service.ready or HEAD.match(data) is None:
            return None
        error = self.gate.refusal(client, self.coming)
        if error is None:
            self.coming[client] += 1
            asyncio.get_running_loop().call_soon(self._arrived, client)
            return None
        head = data[: end + 2]
        lengths = LENGTH.findall(head)
        if len(lengths) != 1 or len(NAMED.findall(head)) != 1 or OTHER.search(head) is not None:
            return None
        left = int(lengths[0]) - (len(data) - end - 4)
        if not 0 <= left <= self.service.options.limits.body:
            return None
        refusal = refusal_of(error)
        self.service.statistics.record_refusal(refusal.reason)
        body = json.dumps({"error": refusal.text}).encode()
        status = HTTPStatus(refusal.status)
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"retry-after: {refusal.retry_after}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return lines.encode() + body, left

    def _arrived(self, client: str) -> None:
        self.coming[client] -= 1
        if not self.coming[client]:
            del self.coming[client]
