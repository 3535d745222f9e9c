"""The calls of the protocol over gRPC, and the server that takes them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from prunion.runtime.errors import ConfigError, InputError, OverloadError
from prunion.runtime.protocol import grpc_request, grpc_response, schema
from prunion.runtime.serve.grpc.health import health_handler
from prunion.runtime.serve.grpc.told import Told, told_of
from prunion.runtime.serve.guard import ApiKeys, Gate, Refusal, refusal_of
from prunion.runtime.serve.models import Repository, Service
from prunion.runtime.serve.options import ServeOptions

__all__ = ["make_grpc_server"]

INLINE = 1 << 18  # bytes that are unpacked on the event loop; more go to a thread
SPARE = 1 << 16  # bytes of a message beside its tensors
OPEN = ("ServerLive", "ServerReady")  # no key, no limit: an orchestrator asks
STREAM, AT_A_TIME = "ModelStreamInfer", 32
Call = Callable[[Any, Any], Awaitable[Any]]
logger = logging.getLogger("prunion.serve")


def make_grpc_server(service: Service, gate: Gate, keys: ApiKeys | None) -> tuple[Any, int]:
    """A `grpc.aio` server that is not started, and the port that it has.

    Raises ConfigError where it cannot listen.
    """
    options, found = service.options, schema()
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", options.limits.body + SPARE),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 1 if options.workers > 1 else 0),
            ("grpc.max_connection_idle_ms", int(10_000 * options.limits.idle_seconds)),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ]
    )
    calls = _Calls(service, gate, keys)
    handlers = {}
    for method in found.methods:
        # Requests come as bytes: what cannot be read is then refused here, with the code and the
        # log line of every other wrong request, and none is read before its key was.
        codec = {"response_serializer": found.messages[method.response].SerializeToString}
        if method.stream:
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(calls.stream, **codec)
        else:
            call = calls.guarded(method.name, method.request, getattr(calls, method.name))
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(call, **codec)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(found.service, handlers),
            health_handler(service, found.service),
        )
    )
    address = f"{options.host}:{options.grpc_port}"
    if ":" in options.host:
        address = f"[{options.host}]:{options.grpc_port}"
    try:
        if options.certificate is None:
            return server, server.add_insecure_port(address)
        return server, server.add_secure_port(address, _credentials(options))
    except RuntimeError as exc:
        raise ConfigError(f"cannot listen on {address}: choose another --grpc-port") from exc


def _credentials(options: ServeOptions) -> Any:
    assert options.certificate is not None and options.private_key is not None
    pair = (_pem(options.private_key), _pem(options.certificate))
    roots = None if options.client_ca is None else _pem(options.client_ca)
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read ({exc.strerror}): check the TLS files") from None


class _Calls:
    """One method for each of the service's, named as it is there."""

    def __init__(self, service: Service, gate: Gate, keys: ApiKeys | None) -> None:
        self.service = service
        self.gate = gate
        self.keys = keys
        self.repository = Repository(service)
        self.messages = schema().messages

    def guarded(self, name: str, kind: str, call: Call) -> Any:
        """A call behind the key and the gate, whose errors have the protocol's codes."""

        tracing = None if name in OPEN else self.service.tracing

        async def run(data: bytes, context: Any) -> Any:
            with told_of(name, context, tracing) as told:
                try:
                    if name in OPEN:
                        return await call(await self._read(kind, data), context)
                    client = await self._client(context, told)
                    with self.gate.enter(client):
                        return await call(await self._read(kind, data), context)
                except asyncio.CancelledError:
                    told.code = "CANCELLED"
                    raise
                except grpc.aio.AbortError:
                    raise
                except Exception as exc:
                    refusal = self._refusal(exc, told)
                    trailing = []
                    if refusal.retry_after is not None:
                        trailing = [("retry-after", str(refusal.retry_after))]
                    code = grpc.StatusCode[refusal.code]
                    await context.abort(code, refusal.text, tuple(trailing))

        return run

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        """Answers in the order of the requests; an error is an answer, and the stream goes on.

        Several are worked on at a time, so that those of one stream share batches too.
        """
        client = await self._client(context, Told.of(STREAM, context))
        answers: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()
        room = asyncio.Semaphore(AT_A_TIME)

        async def feed() -> None:
            try:
                async for data in requests:
                    await room.acquire()
                    work = self._streamed(data, client, context)
                    answers.put_nowait(asyncio.ensure_future(work))
            finally:
                answers.put_nowait(None)  # however it ends, nobody waits for more

        feeding = asyncio.ensure_future(feed())
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
                room.release()
            await feeding
        finally:
            feeding.cancel()
            while not answers.empty():
                left = answers.get_nowait()
                if left is not None:
                    left.cancel()

    async def _streamed(self, data: bytes, client: str, context: Any) -> Any:
        response, request = self.messages["ModelStreamInferResponse"], None
        with told_of(STREAM, context, self.service.tracing) as told:
            told.client = client
            try:
                with self.gate.enter(client):
                    request = await self._read("ModelInferRequest", data)
                    return response(infer_response=await self.ModelInfer(request, context))
            except Exception as exc:
                answer = response(error_message=self._refusal(exc, told).text)
                answer.infer_response.id = "" if request is None else request.id
                return answer

    async def _read(self, kind: str, data: bytes) -> Any:
        """A message from its bytes. Raises InputError."""
        parse = self.messages[kind].FromString
        try:
            return (
                parse(data) if len(data) <= INLINE else await self.service.decoder.run(parse, data)
            )
        except DecodeError:
            raise InputError(
                f"the bytes are no {kind}: send it as the Open Inference Protocol has it"
            ) from None

    def _refusal(self, error: Exception, told: Told) -> Refusal:
        refusal = refusal_of(error)
        told.code = refusal.code
        if refusal.reason in ("requests", "client"):
            self.service.statistics.record_refusal(refusal.reason)
        if refusal.code == "INTERNAL":
            logger.error("a bug answered %s", told.name, exc_info=error)
        return refusal

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return self.messages["ServerLiveResponse"](live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return self.messages["ServerReadyResponse"](ready=self.service.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        try:
            ready = self.repository.is_ready(request.name, request.version)
        except Exception as exc:
            if refusal_of(exc).code != "NOT_FOUND":
                raise
            ready = False  # clients take an error of this call for a broken server
        return self.messages["ModelReadyResponse"](ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return self._filled("ServerMetadataResponse", self.repository.metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        value = self.repository.metadata(request.name, request.version)
        return self._filled("ModelMetadataResponse", value)

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        value = {"config": self.repository.config(request.name, request.version)}
        return self._filled("ModelConfigResponse", value)

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        value = self.repository.statistics(request.name, request.version)
        return self._filled("ModelStatisticsResponse", value)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        value = {"models": self.repository.index(request.ready)}
        return self._filled("RepositoryIndexResponse", value)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        if request.parameters:
            raise InputError("load takes no parameters: packs come from the folders named at start")
        await self.repository.load(request.model_name)
        return self.messages["RepositoryModelLoadResponse"]()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        await self.repository.unload(request.model_name)
        return self.messages["RepositoryModelUnloadResponse"]()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        arrived = time.perf_counter_ns()
        self.repository.describe(request.model_name, request.model_version)
        left = context.time_remaining()
        if left is not None and left <= 0:
            raise OverloadError("the request's deadline is over", "deadline")
        if request.ByteSize() <= INLINE or request.raw_input_contents:
            parsed = grpc_request(request)
        else:
            parsed = await self.service.decoder.run(grpc_request, request)
        name, version = request.model_name, request.model_version
        wait = math.inf if left is None else left
        return grpc_response(await self.service.infer(name, version, parsed, arrived, wait))

    async def _client(self, context: Any, told: Told) -> str:
        """Who asks: the key's owner, else the address. Aborts the call where no key is known."""
        if self.keys is not None:
            owner = self.keys.owner(told.sent.get("authorization"), told.sent.get("x-api-key"))
            if owner is None:
                told.code = "UNAUTHENTICATED"
                text = "no API key that is known: send the metadata `authorization: Bearer KEY`"
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)
            told.client = str(owner)
        return told.client

    def _filled(self, message: str, value: dict[str, Any]) -> Any:
        return json_format.ParseDict(value, self.messages[message](), ignore_unknown_fields=True)
