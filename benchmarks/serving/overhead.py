"""What the server adds to one image: raw-bytes clients over one kept connection, and in process.

Beside them the same bytes go to an echo, which answers at once and computes nothing: what it takes
is the client's and the sockets' own share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np

from prunion.benchmarks.serving.clients import Traffic, connected
from prunion.benchmarks.serving.compare import Settings
from prunion.benchmarks.serving.networks import Network, bundle_of, filled, traffic_of
from prunion.benchmarks.serving.rows import Row
from prunion.benchmarks.serving.servers import free_port, prunion_command, started
from prunion.runtime.base import time_interleaved
from prunion.runtime.protocol import schema

__all__ = ["main", "overhead"]

METHOD = "/inference.GRPCInferenceService/ModelInfer"
ECHO_BYTES = 4096


def overhead(network: Network, settings: Settings) -> Row:
    """Milliseconds of one image by each way, interleaved."""
    bundle = bundle_of(network, settings.folder)
    model = filled(bundle, (), settings.threads)
    traffic = traffic_of(model)
    image, row = traffic.image(0), np.zeros(1, np.int64)
    request, message = traffic.requests("oip")[0], grpc_bytes(traffic, 0)
    ports = [free_port() for _ in range(4)]
    command = prunion_command(
        bundle, ports[0], "--grpc-port", ports[1], "--threads", settings.threads, *settings.options
    )
    with contextlib.ExitStack() as held:
        held.enter_context(started(command, ports[0], log=settings.folder / "overhead.log"))
        held.enter_context(_echo(ports[2], ports[3], len(request)))
        http, http_echo = (held.enter_context(connected(port)) for port in (ports[0], ports[2]))
        call, call_echo = (held.enter_context(_channel(port)) for port in (ports[1], ports[3]))
        answer = http(request)
        assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
        cases: dict[str, Callable[[], object]] = {
            "in process": partial(model.logits, image, row),
            "HTTP": partial(http, request),
            "gRPC": partial(call, message),
            "HTTP echo": partial(http_echo, request),
            "gRPC echo": partial(call_echo, message),
        }
        time_interleaved(cases, seconds=settings.seconds / 2)  # until the session is made
        timings = time_interleaved(cases, seconds=settings.seconds)
    model.close()
    return {
        "what": "overhead",
        "network": network.name,
        "request_bytes": len(request),
        "options": settings.options,
        "ms": {
            name: {"p50": x.p50_ms, "p90": x.p90_ms, "p99": x.p99_ms, "least": x.min_ms}
            for name, x in timings.items()
        },
    }


def grpc_bytes(traffic: Traffic, domain: int) -> bytes:
    """The message of a request."""
    image, name = traffic.image(domain), traffic.names[domain].encode()
    message = schema().messages["ModelInferRequest"](model_name=traffic.model)
    message.inputs.add(name="image", datatype="FP32", shape=image.shape)
    message.inputs.add(name="domain", datatype="BYTES", shape=[1])
    message.raw_input_contents.extend([image.tobytes(), len(name).to_bytes(4, "little") + name])
    found: bytes = message.SerializeToString()
    return found


@contextmanager
def _channel(port: int) -> Iterator[Callable[[bytes], Any]]:
    """The same over gRPC, without reading the answer's message."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield channel.unary_unary(METHOD)


@contextmanager
def _echo(http: int, rpc: int, size: int) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(http), str(rpc), str(size)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        for port in (http, rpc):
            ends = time.monotonic() + 30
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert time.monotonic() < ends, "the echo did not start"
                time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


class _Echo(asyncio.Protocol):
    """Answers every `size` bytes with a fixed answer."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.got = 0
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Count."""
        self.got += len(data)
        if self.got >= self.size:
            self.got -= self.size
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {ECHO_BYTES}\r\n\r\n".encode()
            self.transport.write(head + bytes(ECHO_BYTES))


async def _serve_echo(http: int, rpc: int, size: int) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        return bytes(ECHO_BYTES)

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    service, method = METHOD.strip("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"127.0.0.1:{rpc}")
    await server.start()
    await asyncio.get_running_loop().create_server(lambda: _Echo(size), "127.0.0.1", http)
    await server.wait_for_termination()


def main() -> None:
    """Be the echo: HTTP port, gRPC port, bytes of a request."""
    asyncio.run(_serve_echo(*map(int, sys.argv[1:4])))


if __name__ == "__main__":
    main()
