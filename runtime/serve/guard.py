"""Who may ask, how many at once, and what a refusal looks like on either transport."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from prunion.runtime.batching import RefusedPackError, UnreadError
from prunion.runtime.errors import (
    BackendError,
    BundleError,
    ConfigError,
    DomainError,
    EngineError,
    InputError,
    MissingDependencyError,
    OverloadError,
    PrunionError,
    UnsupportedGraphError,
)

__all__ = ["ApiKeys", "Gate", "Refusal", "is_servers_own", "read_keys", "refusal_of", "request_id"]

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
LINE = re.compile(r"(\S{1,100})\s+([0-9a-fA-F]{64})")
GrpcCode = Literal[
    "NOT_FOUND",
    "INVALID_ARGUMENT",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "INTERNAL",
]


@dataclass(frozen=True)
class ApiKeys:
    """The names of those who may ask, and the SHA-256 of the key of each."""

    digests: tuple[tuple[str, bytes], ...]

    def owner(self, authorization: str | None, api_key: str | None = None) -> str | None:
        """Whose key was sent, as `Authorization: Bearer KEY` or `X-API-Key: KEY`; None if nobody's.

        Every key is compared, each in constant time, so that the time tells nothing.
        """
        key = api_key
        if authorization is not None and authorization[:7].lower() == "bearer ":
            key = authorization[7:].strip()
        digest = hashlib.sha256((key or "").encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, known in self.digests:
            if hmac.compare_digest(digest, known) and key:
                found = name
        return found


def read_keys(path: Path) -> ApiKeys:
    """Keys from a file: `NAME SHA256` a line, `#` before a remark. Raises ConfigError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as exc:
        raise ConfigError(
            f"the file of API keys cannot be read ({exc}): check --api-keys"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"{path} line {number} is no `NAME SHA256`: write a name and the SHA-256 of its key"
            )
        found.append((match[1], bytes.fromhex(match[2])))
    if not found:
        raise ConfigError(f"{path} holds no key: nobody could ask")
    return ApiKeys(tuple(found))


def request_id(given: str) -> str:
    """The client's id of a request, if it can stand in a log and a header; else a new one."""
    return given if REQUEST_ID.fullmatch(given) else os.urandom(16).hex()


class Gate:
    """Counts the requests that are inside; of one event loop, so it needs no lock."""

    def __init__(self, requests: int, client_requests: int) -> None:
        self.requests = requests
        self.client_requests = client_requests
        self.inside = 0
        self.clients: Counter[str] = Counter()

    def refusal(
        self, client: str, coming: Mapping[str, int] = MappingProxyType({})
    ) -> OverloadError | None:
        """Why one more request of a client is not let in, if it is not.

        `coming` are requests, by client, that were let in and have not entered yet.
        """
        if self.inside + sum(coming.values()) >= self.requests:
            return OverloadError(
                f"the server is at {self.requests} requests already: try again later", "requests"
            )
        if self.clients[client] + coming.get(client, 0) >= self.client_requests:
            return OverloadError(
                f"you have {self.client_requests} requests here already: wait for them", "client"
            )
        return None

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Be inside while the block runs. Raises OverloadError."""
        refusal = self.refusal(client)
        if refusal is not None:
            raise refusal
        self.inside += 1
        self.clients[client] += 1
        try:
            yield
        finally:
            self.inside -= 1
            self.clients[client] -= 1
            if not self.clients[client]:
                del self.clients[client]


@dataclass(frozen=True)
class Refusal:
    """An error as it is told: HTTP status, gRPC code, text; seconds until a retry makes sense."""

    status: int
    code: GrpcCode
    text: str
    retry_after: int | None = None
    reason: str = ""


def is_servers_own(error: Exception) -> bool:
    """Whether it is the served bundle or its backend that fails, whoever asks.

    Of these the log tells, and a client nothing: their messages name the server's files.
    """
    if isinstance(error, (RefusedPackError, UnreadError)):  # which name a pack, and no folder
        return False
    return isinstance(error, (BundleError, BackendError, EngineError, UnsupportedGraphError))


def refusal_of(error: Exception) -> Refusal:
    """What a client is told: of a bug, which is any other exception, nothing but that."""
    text = " ".join(str(error).split())
    if isinstance(error, OverloadError):
        after = max(1, math.ceil(min(error.retry_after, 600)))
        status = 429 if error.reason == "client" else 503
        code: GrpcCode = "DEADLINE_EXCEEDED" if error.reason == "deadline" else "UNAVAILABLE"
        return Refusal(status, code, text, after, error.reason)
    if isinstance(error, DomainError):
        return Refusal(404, "NOT_FOUND", text)
    if isinstance(error, UnreadError):
        return Refusal(503, "UNAVAILABLE", text, 5)
    if isinstance(error, RefusedPackError):  # the server's own file, whoever asks
        return Refusal(503, "UNAVAILABLE", text)
    if is_servers_own(error):
        own = "the server's own bundle or backend fails, whatever is asked: its log says why"
        return Refusal(503, "UNAVAILABLE", own)
    if isinstance(error, InputError):
        return Refusal(400, "INVALID_ARGUMENT", text)
    if isinstance(error, MissingDependencyError):
        return Refusal(501, "UNIMPLEMENTED", text)
    if isinstance(error, PrunionError):
        return Refusal(500, "INTERNAL", text)
    if isinstance(error, MemoryError):
        return Refusal(503, "UNAVAILABLE", "the server is out of memory: send less", 5, "memory")
    return Refusal(500, "INTERNAL", "internal error: see the server's log")
