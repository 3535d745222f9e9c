"""Traces: what spans a request leaves, whose children they are, and that they are sent."""

from __future__ import annotations

import http.client
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.runtime.errors import ConfigError
from prunion.runtime.model import Model
from tests.runtime.serve.running import running
from tests.support.waiting import LONG

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
grpc = pytest.importorskip("grpc", reason="needs prunion[serve]")
testclient = pytest.importorskip("starlette.testclient", reason="needs httpx")
exporting = pytest.importorskip("opentelemetry.sdk.trace.export", reason="needs prunion[otel]")
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (  # noqa: E402
    InMemorySpanExporter,
)

from prunion.runtime.batching import Tracing, make_tracing, trace_id_of  # noqa: E402
from prunion.runtime.protocol import schema  # noqa: E402
from prunion.runtime.serve import ServeOptions  # noqa: E402
from prunion.runtime.serve.grpc.server import make_grpc_server  # noqa: E402
from prunion.runtime.serve.guard import Gate  # noqa: E402
from prunion.runtime.serve.http.app import http_app  # noqa: E402
from prunion.runtime.serve.models.service import Service  # noqa: E402

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
INFER = "/v2/models/toy/infer"


@pytest.fixture
def found() -> Any:
    return InMemorySpanExporter()


@pytest.fixture
def service(model: Model, found: Any) -> Service:
    tracing = Tracing(exporting.SimpleSpanProcessor(found))
    return Service(model, ServeOptions(grpc_port=0), tracing)


def body() -> dict[str, Any]:
    image = {"name": "image", "datatype": "FP32", "shape": [2, 3, 12, 10], "data": [0.0] * 720}
    domain = {"name": "domain", "datatype": "BYTES", "shape": [2], "data": ["signs", "flowers"]}
    return {"inputs": [image, domain]}


def tree(found: Any) -> tuple[Any, dict[str, Any]]:
    """The request's span and its children by name, from oldest to newest."""
    spans = found.get_finished_spans()
    (root,) = (x for x in spans if x.kind.name == "SERVER")
    children = sorted((x for x in spans if x is not root), key=lambda x: x.start_time)
    assert all(x.parent.span_id == root.context.span_id for x in children)
    assert all(root.start_time - 5e6 <= x.start_time <= x.end_time for x in children)
    return root, {x.name: x for x in children}


def test_a_request_over_http(service: Service, found: Any, caplog: Any) -> None:
    client = testclient.TestClient(http_app(service, Gate(9, 9)))
    with caplog.at_level("INFO", "prunion.serve.requests"):
        client.post(INFER, json=body(), headers={"traceparent": TRACEPARENT})
    root, parts = tree(found)
    assert root.name == "POST /v2/models/{name}/infer"
    assert format(root.context.trace_id, "032x") == TRACE
    assert format(root.parent.span_id, "016x") == PARENT
    assert root.attributes["http.response.status_code"] == 200
    assert list(parts) == ["decode", "queue", "compute"]
    assert parts["compute"].attributes["prunion.batch.rows"] == 2
    assert parts["compute"].attributes["prunion.batch.domains"] == 2
    assert parts["queue"].end_time <= parts["compute"].start_time + 1e5
    (line,) = (x.fields for x in caplog.records if hasattr(x, "fields"))
    assert line["trace_id"] == TRACE
    found.clear()
    client.get("/v2/health/ready")
    client.get("/v2/models/none")
    (root,) = found.get_finished_spans()
    assert root.attributes["http.response.status_code"] == 404 and root.status.is_ok is not False
    assert root.parent is None, "a trace of its own"


def test_a_request_over_grpc(service: Service, found: Any) -> None:
    import asyncio

    message = schema().messages["ModelInferRequest"](model_name="toy")
    message.inputs.add(name="image", datatype="FP32", shape=[1, 3, 12, 10])
    message.inputs.add(name="domain", datatype="INT64", shape=[1])
    raw = [np.zeros(360, np.float32).tobytes(), np.ones(1, np.int64).tobytes()]
    message.raw_input_contents.extend(raw)

    async def run() -> None:
        server, port = make_grpc_server(service, Gate(9, 9), None)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(f"/{schema().service}/ModelInfer")
            sent = (("traceparent", TRACEPARENT),)
            await call(message.SerializeToString(), metadata=sent, timeout=LONG)
        await server.stop(1)

    asyncio.run(run())
    root, parts = tree(found)
    assert root.name == "inference.GRPCInferenceService/ModelInfer"
    assert format(root.context.trace_id, "032x") == TRACE
    assert root.attributes["rpc.grpc.status_code"] == 0
    assert list(parts) == ["decode", "queue", "compute"]


def test_a_client_may_name_its_trace_without_any_tracing(model: Model, caplog: Any) -> None:
    client = testclient.TestClient(http_app(Service(model), Gate(9, 9)))
    with caplog.at_level("INFO", "prunion.serve.requests"):
        client.get("/v2", headers={"traceparent": TRACEPARENT})
        client.get("/v2", headers={"traceparent": "00-x"})
    first, second = (x.fields for x in caplog.records if hasattr(x, "fields"))
    assert first["trace_id"] == TRACE and "trace_id" not in second
    assert trace_id_of(f"00-{'0' * 32}-{PARENT}-01") == ""


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A receiver of OTLP over HTTP: its address, and the path and body of what it got."""
    got: list[tuple[str, bytes]] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()
        server.server_close()


def test_spans_reach_a_collector(bundle_path: Path) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with collector() as (url, got), running(bundle_path, "--otlp", url) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=LONG)
        headers = {"traceparent": TRACEPARENT}
        connection.request("POST", INFER, json.dumps(body()), headers)
        assert connection.getresponse().status == 200
        connection.close()
        assert server.end() == 0, "what is held is sent at the end"
        (path, data), *_ = got
        assert path == "/v1/traces"
        (resource,) = ExportTraceServiceRequest.FromString(data).resource_spans
        names = {x.key: x.value.string_value for x in resource.resource.attributes}
        assert names["service.name"] == "prunion"
        spans = resource.scope_spans[0].spans
        assert {x.trace_id.hex() for x in spans} == {TRACE}
        assert {x.name for x in spans} >= {"decode", "queue", "compute"}
        assert any(x.get("trace_id") == TRACE for x in server.lines)


def test_where_traces_go(monkeypatch: Any) -> None:
    assert make_tracing(None) is None
    for url in ("here", "ftp://x", "http://"):
        with pytest.raises(ConfigError, match="4318"):
            make_tracing(url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert make_tracing(None) is None
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")
    for protocol in ("http/protobuf", "grpc"):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        tracing = make_tracing(None)
        assert tracing is not None
        tracing.close()


def test_a_server_without_traces_does_not_import_them() -> None:
    code = (
        "import sys, prunion.runtime.serve.http.app, prunion.runtime.serve.grpc.server\n"
        "from prunion.runtime.batching import make_tracing\n"
        "print(make_tracing(None), 'opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]
