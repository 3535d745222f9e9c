"""gRPC beside conformance: keys, limits, deadlines, TLS, and messages that are nonsense."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.runtime.model import Model

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
grpc = pytest.importorskip("grpc", reason="needs prunion[serve]")
from prunion.runtime.protocol import schema  # noqa: E402
from prunion.runtime.serve import Limits, ServeOptions  # noqa: E402
from prunion.runtime.serve.grpc.server import make_grpc_server  # noqa: E402
from prunion.runtime.serve.guard import ApiKeys, Gate  # noqa: E402
from prunion.runtime.serve.models.service import Service  # noqa: E402
from tests.support.waiting import LONG, until_async  # noqa: E402

SERVICE = schema().service
MESSAGES = schema().messages
LIMITS = Limits(rows=8, body=1 << 20)


def request(rows: int = 1, model: str = "toy") -> Any:
    message = MESSAGES["ModelInferRequest"](model_name=model)
    message.inputs.add(name="image", datatype="FP32", shape=[rows, 3, 12, 10])
    message.inputs.add(name="domain", datatype="INT64", shape=[rows])
    image, domain = np.zeros((rows, 3, 12, 10), np.float32), np.ones(rows, np.int64)
    message.raw_input_contents.extend([image.tobytes(), domain.tobytes()])
    return message


def session(
    model: Model,
    scene: Callable[[Service, Any], Awaitable[None]],
    limits: Limits = LIMITS,
    keys: ApiKeys | None = None,
    channel: Callable[[int], Any] | None = None,
    **options: Any,
) -> Service:
    """A server and a scene with a call to it, on one event loop."""
    service = Service(model, ServeOptions(limits=limits, grpc_port=0, **options))

    async def run() -> None:
        gate = Gate(limits.requests, limits.client_requests)
        server, port = make_grpc_server(service, gate, keys)
        await server.start()
        made = channel(port) if channel else grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        async with made as found:

            async def call(name: str, message: Any, **more: Any) -> Any:
                method = next(x for x in schema().methods if x.name == name)
                stub = found.unary_unary(
                    f"/{SERVICE}/{name}",
                    request_serializer=lambda m: (
                        m if isinstance(m, bytes) else m.SerializeToString()
                    ),
                    response_deserializer=MESSAGES[method.response].FromString,
                )
                return await stub(message, timeout=more.pop("timeout", LONG), **more)

            call.gate = gate  # type: ignore[attr-defined]
            await scene(service, call)
        await server.stop(1)

    asyncio.run(run())
    return service


def held(go: threading.Event, answer: Callable[..., np.ndarray]) -> Any:
    """A model that answers when it may."""
    return type("Held", (), {"answer": lambda self, *a: go.wait(LONG) and answer(*a)})()


async def code_of(awaited: Awaitable[Any]) -> Any:
    try:
        await awaited
    except grpc.aio.AioRpcError as exc:
        return exc.code()
    return grpc.StatusCode.OK


def test_contents_in_fields_of_their_own(model: Model) -> None:
    async def scene(service: Service, call: Any) -> None:
        raw = await call("ModelInfer", request(2))
        message = request(2)
        del message.raw_input_contents[:]
        message.inputs[0].contents.fp32_contents.extend([0.0] * 720)
        message.inputs[1].contents.int64_contents.extend([1, 1])
        filled = await call("ModelInfer", message)
        assert filled.raw_output_contents == raw.raw_output_contents
        message.inputs[0].contents.int64_contents.append(1)
        assert await code_of(call("ModelInfer", message)) == grpc.StatusCode.INVALID_ARGUMENT
        message.inputs[0].contents.ClearField("int64_contents")
        message.inputs[1].contents.int64_contents.append(1)
        assert await code_of(call("ModelInfer", message)) == grpc.StatusCode.INVALID_ARGUMENT

    session(model, scene)


def test_keys(model: Model) -> None:
    keys = ApiKeys((("shop", hashlib.sha256(b"secret").digest()),))

    async def scene(service: Service, call: Any) -> None:
        assert (await call("ServerReady", MESSAGES["ServerReadyRequest"]())).ready
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            code = await code_of(call("ModelInfer", request(), metadata=metadata))
            assert code == grpc.StatusCode.UNAUTHENTICATED
        good = (("authorization", "Bearer secret"),)
        assert await code_of(call("ModelInfer", request(), metadata=good)) == grpc.StatusCode.OK

    session(model, scene, keys=keys)


def test_the_health_protocol_of_grpc(model: Model) -> None:
    async def run() -> None:
        service = Service(model, ServeOptions(grpc_port=0))
        server, port = make_grpc_server(service, Gate(9, 9), None)
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
            named = b"\n" + bytes([len(SERVICE)]) + SERVICE.encode()
            for asked in (b"", named):
                assert await check(asked, timeout=LONG) == b"\x08\x01", "SERVING"
            assert await code_of(check(b"\n\1x", timeout=LONG)) == grpc.StatusCode.NOT_FOUND
            assert await code_of(check(b"\n\xff", timeout=LONG)) == grpc.StatusCode.NOT_FOUND
            states = watch(b"", timeout=LONG)
            assert await states.read() == b"\x08\x01"
            service.ready = False
            assert await states.read() == b"\x08\x02"
            assert await states.read() == grpc.aio.EOF, "and does not keep the server from ending"
            assert await check(b"", timeout=LONG) == b"\x08\x02", "NOT_SERVING"
        await server.stop(1)

    asyncio.run(run())


def test_calls_are_logged_with_their_ids(model: Model, caplog: Any) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    sent = (("x-request-id", "abc-1"), ("traceparent", f"00-{trace}-00f067aa0ba902b7-01"))

    async def scene(service: Service, call: Any) -> None:
        await call("ModelInfer", request(), metadata=sent)
        await code_of(call("ModelInfer", b"\xff\xff"))

    with caplog.at_level("INFO", "prunion.serve.requests"):
        session(model, scene)
    first, second = (record.fields for record in caplog.records if hasattr(record, "fields"))
    assert (first["id"], first["trace_id"], first["status"]) == ("abc-1", trace, "OK")
    assert len(second["id"]) == 32 and second["status"] == "INVALID_ARGUMENT"


def test_requests_of_one_stream_share_batches(model: Model) -> None:
    async def run() -> None:
        service = Service(model, ServeOptions(grpc_port=0))
        server, port = make_grpc_server(service, Gate(99, 99), None)
        await server.start()
        batcher, go = service.serving.batcher, threading.Event()
        answer = model.answer
        batcher.model = held(go, answer)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(timeout=LONG)
            for number in range(9):
                message = request()
                message.id = str(number)
                await call.write(message.SerializeToString())
            await until_async(lambda: batcher.rows == 9)
            go.set()
            await call.done_writing()
            found = [MESSAGES["ModelStreamInferResponse"].FromString(x) async for x in call]
        assert [x.infer_response.id for x in found] == [str(n) for n in range(9)]
        assert service.statistics.total.execution_count <= 3
        await server.stop(1)

    asyncio.run(run())


def test_a_stream_that_is_given_up_leaves_the_queue(model: Model) -> None:
    async def run() -> None:
        service = Service(model, ServeOptions(grpc_port=0))
        gate = Gate(99, 99)
        server, port = make_grpc_server(service, gate, None)
        await server.start()
        batcher, go, answer = service.serving.batcher, threading.Event(), model.answer
        batcher.model = held(go, answer)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
            for _ in range(40):  # more than are worked on at a time
                await call.write(request().SerializeToString())
            await until_async(lambda: gate.inside == 32)
            call.cancel()
            await until_async(lambda: gate.inside == 0)
            go.set()
            await until_async(lambda: batcher.rows == 0)
        await server.stop(1)

    asyncio.run(run())


def test_overload_and_deadlines(model: Model) -> None:
    go = threading.Event()
    answer = model.answer

    async def scene(service: Service, call: Any) -> None:
        batcher = service.serving.batcher
        batcher.model = held(go, answer)
        first = asyncio.ensure_future(call("ModelInfer", request()))
        await until_async(lambda: batcher._running == 1)
        late = asyncio.ensure_future(
            code_of(call("ModelInfer", request(), timeout=2))  # short: it is to be late
        )
        await until_async(lambda: batcher.rows == 2)
        assert await late == grpc.StatusCode.DEADLINE_EXCEEDED
        # The client knows that it is late before the server does.
        await until_async(lambda: call.gate.inside == 1 and batcher.rows == 1)
        second = asyncio.ensure_future(call("ModelInfer", request()))
        await until_async(lambda: batcher.rows == 2)
        try:
            await call("ModelInfer", request())
        except grpc.aio.AioRpcError as exc:
            assert exc.code() == grpc.StatusCode.UNAVAILABLE
            assert ("retry-after", "1") in list(exc.trailing_metadata())
        else:
            raise AssertionError
        second.cancel()
        # Who is late or gone has left the queue.
        await until_async(lambda: call.gate.inside == 1 and batcher.rows == 1)
        go.set()
        assert (await first).model_name == "toy"
        assert await code_of(call("ModelInfer", request(9))) == grpc.StatusCode.INVALID_ARGUMENT

    service = session(model, scene, limits=replace(LIMITS, client_requests=2))
    assert service.statistics.refused["client"] == 1


def test_nonsense_is_refused_and_nothing_breaks(model: Model) -> None:
    """Mutated messages: an answer or an error with a fair code, and no bug's."""
    random.seed(0)
    whole = request(2).SerializeToString()
    fair = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}

    async def scene(service: Service, call: Any) -> None:
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(random.choice((1, 3, 20))):
                place = random.randrange(min(len(data), 120))
                data[place] = random.randrange(256)
            if random.random() < 0.2:
                del data[random.randrange(len(data)) :]
            assert (await code_of(call("ModelInfer", bytes(data)))).name in fair
        assert await code_of(call("ModelInfer", request())) == grpc.StatusCode.OK

    session(model, scene)


def test_tls_with_certificates_of_both_sides(model: Model, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files_made = ["-keyout", str(key), "-out", str(certificate)]
    made = subprocess.run([*command.split(), *names, *files_made], capture_output=True)
    if made.returncode:
        pytest.skip("needs openssl")
    pem, secret = certificate.read_bytes(), key.read_bytes()

    async def good(service: Service, call: Any) -> None:
        assert await code_of(call("ModelInfer", request())) == grpc.StatusCode.OK

    async def bad(service: Service, call: Any) -> None:
        code = await code_of(call("ModelInfer", request(), timeout=1))  # short: it is to fail
        assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

    files = {"certificate": certificate, "private_key": key, "client_ca": certificate}
    for own, scene in (((secret, pem), good), ((None, None), bad)):
        credentials = grpc.ssl_channel_credentials(pem, *own)
        session(
            model,
            scene,
            channel=lambda port, c=credentials: grpc.aio.secure_channel(f"localhost:{port}", c),
            host="localhost",
            **files,
        )
