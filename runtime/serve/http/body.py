"""Bodies read within limits: of size, also when unpacked, of time, and of what JSON may hold."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from prunion.runtime.errors import InputError
from prunion.runtime.serve.options import Limits
from prunion.runtime.serve.waiting import Stop, within

__all__ = ["ClientGone", "check_json", "packed", "packing", "read_body", "unless_gone", "unpacked"]

Result = TypeVar("Result")

CLOSE = {"connection": "close"}
ENCODINGS = {"gzip": 31, "deflate": 15}  # zlib's window bits
SMALL = 1400  # bytes that fit one packet anyway
SPARE = 10_000  # values of a request beside its images'
QUICK = (
    0.02  # seconds in which most requests are answered, before it is worth to look for a hang-up
)


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def read_body(request: Request, limits: Limits) -> bytes:
    """A body as it was sent. Raises HTTPException 400, 408 or 413; ClientGone."""
    headers, limit = request.headers, limits.body
    if "content-length" in headers and "transfer-encoding" in headers:
        raise HTTPException(400, "Content-Length and Transfer-Encoding: send one", CLOSE)
    length = headers.get("content-length", "")
    if length.isdigit() and (len(length) > 18 or int(length) > limit):
        raise HTTPException(413, f"the body is larger than {limit} bytes: send less", CLOSE)
    try:
        return await within(limits.body_seconds, _collected(request, limit))
    except asyncio.TimeoutError:
        seconds = f"{limits.body_seconds:g} s"
        raise HTTPException(
            408, f"the body took longer than {seconds}: send it faster", CLOSE
        ) from None
    except ClientDisconnect:
        raise ClientGone from None


async def _collected(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise HTTPException(413, f"the body is larger than {limit} bytes: send less", CLOSE)
        parts.append(part)
    return b"".join(parts)


def unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    """A body without its `Content-Encoding`: gzip, deflate, or none. Raises HTTPException.

    No more than `limit` bytes are ever made of it, whatever it says of itself.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ENCODINGS:
        raise HTTPException(415, "Content-Encoding must be gzip or deflate")
    bits = ENCODINGS[encoding]
    # "deflate" means a zlib stream, but clients that send it bare have always been about.
    if encoding == "deflate" and body[:1] and (body[0] & 15 != 8 or body[0] >> 4 > 7):
        bits = -15
    packer = zlib.decompressobj(bits)
    try:
        found = packer.decompress(body, limit + 1)
    except zlib.error:
        raise HTTPException(400, f"the body is no {encoding}") from None
    if len(found) > limit:
        raise HTTPException(413, f"the body unpacks to more than {limit} bytes: send less")
    if not packer.eof or packer.unused_data:
        raise HTTPException(400, f"the body is no whole {encoding} stream")
    return found


def packing(accepted: str, size: int) -> str:
    """How an answer of `size` bytes is packed for who sent this `Accept-Encoding`; "" for not."""
    if size < SMALL:
        return ""
    for part in accepted.lower().split(","):
        name, _, weight = part.replace(" ", "").partition(";q=")
        if name in ENCODINGS and (not weight or weight.strip("0.")):
            return name
    return ""


def packed(content: bytes, encoding: str) -> bytes:
    """The bytes in `gzip` or `deflate`, as fast as that goes."""
    packer = zlib.compressobj(1, wbits=ENCODINGS[encoding])
    return packer.compress(content) + packer.flush()


def check_json(text: bytes, limits: Limits, shape: tuple[int, int, int]) -> None:
    """Refuse JSON that would take far more memory than any request of images needs.

    A list takes 60 bytes for the two of `[]`. `shape` is that of one image. Raises InputError,
    HTTPException 413.
    """
    if len(text) > limits.json:
        raise HTTPException(
            413,
            f"the JSON is larger than {limits.json} bytes: send tensors as binary data, or images "
            "as files",
        )
    first, second, third = shape
    lists = text.count(b"[") + text.count(b"{")
    if lists > limits.rows * (1 + first + first * second) + SPARE:
        raise InputError(f"the JSON holds {lists} lists and objects: no request needs so many")
    values = text.count(b",")
    if values > limits.rows * first * second * third + SPARE:
        raise InputError(f"the JSON holds {values} values: more than {limits.rows} images have")


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """What `work` gives; it is cancelled when the client hangs up, and ClientGone raised."""
    stop = Stop()
    watch: asyncio.Future[None] | None = None

    def begin() -> None:
        nonlocal watch
        watch = asyncio.ensure_future(_hang_up(request, stop))

    timer = asyncio.get_running_loop().call_later(QUICK, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if stop.took_back():
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        if watch is not None:
            watch.cancel()


async def _hang_up(request: Request, stop: Stop) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    stop()
