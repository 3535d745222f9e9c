"""gRPC's own health protocol, which Kubernetes and load balancers ask: `grpc.health.v1.Health`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from prunion.runtime.serve.models import Service

__all__ = ["health_handler"]

NAME = "grpc.health.v1.Health"
SERVING, NOT_SERVING, UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"  # field 1 of the answer
EVERY = 0.2  # seconds


def health_handler(service: Service, served: str) -> Any:
    """Answers for the server, the name empty, and for the service `served`."""

    def state_of(request: bytes) -> bytes:
        if _name_of(request) not in ("", served):
            return UNKNOWN
        return SERVING if service.ready else NOT_SERVING

    async def check(request: bytes, context: Any) -> bytes:
        state = state_of(request)
        if state == UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"only {served} is served here")
        return state

    async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        state = state_of(request)
        yield state
        while state == SERVING:
            await asyncio.sleep(EVERY)
            state = state_of(request)
        if state == NOT_SERVING:
            yield state  # the last: a server that stops does not come back

    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    return grpc.method_handlers_generic_handler(NAME, handlers)


def _name_of(request: bytes) -> str | None:
    """Field 1 of a HealthCheckRequest, its only one; None for what is none."""
    if not request:
        return ""
    if request[0] != 10 or len(request) < 2 or request[1] > 127 or len(request) != 2 + request[1]:
        return None
    return request[2:].decode("utf-8", "replace")
