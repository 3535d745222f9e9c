"""Requests as OpenTelemetry spans: the whole, its decoding, its queue, its run of the network.

opentelemetry is imported only where traces are asked for; else None stands in its place.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from prunion.runtime.base import install_hint
from prunion.runtime.batching.queue import Job
from prunion.runtime.errors import ConfigError, MissingDependencyError

__all__ = ["Tracing", "make_tracing", "trace_id_of"]

NAMED = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
LAST = 3.0  # seconds in which a server that ends sends what it still holds
PARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}.*")
logger = logging.getLogger("prunion.serve")


def trace_id_of(traceparent: str) -> str:
    """The trace's id in a W3C `traceparent`; empty if that is none."""
    match = PARENT.fullmatch(traceparent)
    return match[1] if match is not None else ""


def make_tracing(url: str | None) -> Tracing | None:
    """Spans to the collector at `url`, else where the `OTEL_*` variables say; None if neither does.

    Raises ConfigError for no address, MissingDependencyError without `prunion[otel]` where it was
    asked for by `url`: the variables alone may be meant for other programs.
    """
    if url is None:
        off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        off = off or os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() == "none"
        if off or not any(os.environ.get(name) for name in NAMED):
            return None
    elif urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ConfigError(f"{url!r} is no collector's address: give http://HOST:4318")
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(url)
    except ImportError:
        text = f"OpenTelemetry is not installed: {install_hint('otel')}"
        if url is None:
            logger.warning("no traces are sent: %s", text)
            return None
        raise MissingDependencyError(text) from None
    return Tracing(BatchSpanProcessor(exporter))


def _exporter(url: str | None) -> Any:
    kind = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), "http/protobuf")
    if kind == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=url)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
        OTLPSpanExporter as HttpExporter,
    )

    if url is not None and not urlsplit(url).path.endswith("/v1/traces"):
        url = f"{url.rstrip('/')}/v1/traces"
    return HttpExporter(endpoint=url)


class Tracing:
    """Where spans go; `processor` is one of opentelemetry's span processors."""

    def __init__(self, processor: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create()  # with OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "prunion"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("prunion")

    @contextmanager
    def request(
        self, name: str, sent: Mapping[str, str], attributes: Mapping[str, Any]
    ) -> Iterator[Any]:
        """The span of a request, current while the block runs.

        `sent` are the client's headers or metadata, which may name the trace that it belongs to.
        """
        from opentelemetry import context, propagate, trace

        outer = propagate.extract(sent, context.Context())
        span = self._tracer.start_span(name, outer, trace.SpanKind.SERVER, dict(attributes))
        token = context.attach(trace.set_span_in_context(span, outer))
        try:
            yield span
        finally:
            context.detach(token)
            span.end()

    @staticmethod
    def trace_id(span: Any) -> str:
        """The id of a span's trace, 32 hexadecimal digits."""
        return format(span.get_span_context().trace_id, "032x")

    @staticmethod
    def failed(span: Any, reason: str) -> None:
        """Mark a request's span as the server's failure."""
        from opentelemetry.trace import StatusCode

        span.set_status(StatusCode.ERROR)
        span.set_attribute("error.type", reason)

    def record(self, job: Job, arrived: int, decoded: int) -> None:
        """The parts of a request that was answered, as children of the current span.

        `arrived` and `decoded` are of `perf_counter_ns`, as the job's own times are.
        """
        from opentelemetry import trace

        if not trace.get_current_span().is_recording():
            return
        offset = time.time_ns() - time.perf_counter_ns()
        rows, domains = job.batch
        compute = {"prunion.batch.rows": rows, "prunion.batch.domains": domains}
        parts: tuple[tuple[str, int, int, dict[str, Any]], ...] = (
            ("decode", arrived, decoded, {}),
            ("queue", job.arrived, max(job.arrived, job.started), {}),
            ("compute", job.started, job.ended, compute),
        )
        for name, begin, end, attributes in parts:
            span = self._tracer.start_span(
                name,
                attributes={"prunion.rows": job.rows, **attributes},
                start_time=begin + offset,
            )
            span.end(end + offset)

    def close(self) -> None:
        """Send what is held; a collector that is not there is not waited for."""
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        thread.join(LAST)
