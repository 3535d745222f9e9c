"""A gRPC call as the log and the trace tell it, when it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from prunion.runtime.batching import Tracing, trace_id_of
from prunion.runtime.protocol import schema
from prunion.runtime.serve.guard import request_id

__all__ = ["Told", "told_of"]

FAILURES = ("INTERNAL", "UNAVAILABLE")  # the server's, not the client's
requests_log = logging.getLogger("prunion.serve.requests")


@dataclass
class Told:
    """What there is to tell; `sent` is the client's metadata, `code` the status it ends with."""

    name: str
    client: str
    sent: Mapping[str, str]
    code: str = "OK"
    trace: str = ""
    begun: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, name: str, context: Any) -> Told:
        """A call that begins; its client is an address, without the port that changes."""
        found = context.invocation_metadata() or ()
        sent = {key: value for key, value in found if isinstance(value, str)}
        return cls(name, str(context.peer()).rpartition(":")[0], sent)

    def log(self) -> None:
        """One line."""
        if requests_log.isEnabledFor(logging.INFO):
            fields: dict[str, Any] = {
                "id": request_id(self.sent.get("x-request-id", "")),
                "client": self.client,
                "method": self.name,
                "status": self.code,
                "ms": round(1000 * (time.perf_counter() - self.begun), 3),
            }
            trace = self.trace or trace_id_of(self.sent.get("traceparent", ""))
            if trace:
                fields["trace_id"] = trace
            requests_log.info("%s %s", self.name, self.code, extra={"fields": fields})


@contextmanager
def told_of(name: str, context: Any, tracing: Tracing | None) -> Iterator[Told]:
    """One call, which is logged when the block ends, and is a span where traces are sent."""
    told = Told.of(name, context)
    try:
        if tracing is None:
            yield told
            return
        attributes = {"rpc.system": "grpc", "rpc.method": name}
        with tracing.request(f"{schema().service}/{name}", told.sent, attributes) as span:
            told.trace = tracing.trace_id(span)
            try:
                yield told
            finally:
                span.set_attribute("rpc.grpc.status_code", grpc.StatusCode[told.code].value[0])
                if told.code in FAILURES:
                    tracing.failed(span, told.code)
    finally:
        told.log()
