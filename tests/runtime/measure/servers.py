"""Servers that answer `bench --url` with logits, a refusal or anything else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from typing import Any

import pytest

from prunion.runtime.protocol import InferRequest, grpc_request, http_request, schema


@contextmanager
def server(
    status: int | Iterator[int],
    seen: list[tuple[str, InferRequest]],
    parameters: dict[str, Any] | None = None,
    answer: bytes | None = None,
) -> Iterator[str]:
    """Of logits, or of one `answer` to all."""
    statuses = repeat(status) if isinstance(status, int) else status

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            head = int(self.headers["Inference-Header-Content-Length"])
            request = http_request(body, head)
            seen.append((self.path, request))
            rows = len(request.tensors["image"].data)
            told = {
                "name": "logits",
                "datatype": "FP32",
                "shape": [rows, 2],
                "data": [0.5] * 2 * rows,
            }
            content = json.dumps({"outputs": [told]}).encode() if answer is None else answer
            self.send_response(next(statuses))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            content = json.dumps({"parameters": parameters}).encode()
            self.send_response(404 if parameters is None else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


@contextmanager
def grpc_server(
    refuse: bool, seen: list[InferRequest], logits: bool = True, raw: bool = True
) -> Iterator[str]:
    grpc = pytest.importorskip("grpc")
    known = schema()

    def infer(message: Any, context: Any) -> bytes:
        seen.append(grpc_request(message))
        if refuse:
            context.set_trailing_metadata((("retry-after", "1"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")
        if not logits:
            return b""
        answer = known.messages["ModelInferResponse"]()
        rows = message.inputs[0].shape[0]
        output = answer.outputs.add(name="logits", shape=[rows, 2])
        if raw:
            answer.raw_output_contents.append(bytes(8 * rows))
        else:
            output.contents.fp32_contents.extend([0.5] * 2 * rows)
        return bytes(answer.SerializeToString())

    read = known.messages["ModelInferRequest"].FromString
    handler = grpc.unary_unary_rpc_method_handler(infer, request_deserializer=read)
    methods = grpc.method_handlers_generic_handler(known.service, {"ModelInfer": handler})
    made = grpc.server(ThreadPoolExecutor(1), handlers=(methods,))
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        made.stop(None).wait()
