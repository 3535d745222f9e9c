"""The protocol over gRPC: the same service, the same limits, on the same event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from prunion.runtime.errors import ConfigError, InputError, OverloadError
from prunion.runtime.protocol import grpc_request, grpc_response, schema
from prunion.runtime.serve.guard import ApiKeys, Gate, refusal_of
from prunion.runtime.serve.options import ServeOptions
from prunion.runtime.serve.repository import Repository
from prunion.runtime.serve.service import Service

__all__ = ["make_grpc_server"]

INLINE = 1 << 18  # bytes that are unpacked on the event loop; more go to a thread
FOREVER = 1e9
SPARE = 1 << 16  # bytes of a message beside its tensors
OPEN = ("ServerLive", "ServerReady")  # no key, no limit: an orchestrator asks
Call = Callable[[Any, Any], Awaitable[Any]]
logger = logging.getLogger("prunion.serve")
requests_log = logging.getLogger("prunion.serve.requests")


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
        codec = {
            "request_deserializer": found.messages[method.request].FromString,
            "response_serializer": found.messages[method.response].SerializeToString,
        }
        if method.stream:
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(calls.stream, **codec)
        else:
            call = calls.guarded(method.name, getattr(calls, method.name))
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(call, **codec)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(found.service, handlers),)
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

    def guarded(self, name: str, call: Call) -> Call:
        """A call behind the key and the gate, whose errors have the protocol's codes."""

        async def run(request: Any, context: Any) -> Any:
            begun, code = time.perf_counter(), "OK"
            client = _address(context)
            try:
                if name in OPEN:
                    return await call(request, context)
                client = await self._client(context)
                with self.gate.enter(client):
                    return await call(request, context)
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except grpc.aio.AbortError:
                code = "UNAUTHENTICATED"
                raise
            except Exception as exc:
                refusal = refusal_of(exc)
                code = refusal.code
                if refusal.reason in ("requests", "client"):
                    self.service.statistics.record_refusal(refusal.reason)
                if code == "INTERNAL":
                    logger.exception("a bug answered %s", name)
                trailing = []
                if refusal.retry_after is not None:
                    trailing = [("retry-after", str(refusal.retry_after))]
                await context.abort(grpc.StatusCode[code], refusal.text, tuple(trailing))
            finally:
                self._log(name, client, code, 1000 * (time.perf_counter() - begun))

        return run

    async def stream(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Answers in the order of the requests; an error is an answer, and the stream goes on."""
        client = await self._client(context)
        response = self.messages["ModelStreamInferResponse"]
        async for request in requests:
            try:
                with self.gate.enter(client):
                    yield response(infer_response=await self.ModelInfer(request, context))
            except Exception as exc:
                refusal = refusal_of(exc)
                if refusal.code == "INTERNAL":
                    logger.exception("a bug answered ModelStreamInfer")
                answer = response(error_message=refusal.text)
                answer.infer_response.id = request.id
                yield answer

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
        wait = FOREVER if left is None else left
        return grpc_response(await self.service.infer(name, version, parsed, arrived, wait))

    async def _client(self, context: Any) -> str:
        """Who asks: the key's owner, else the address. Aborts the call where no key is known."""
        if self.keys is None:
            return _address(context)
        sent = dict(iter(context.invocation_metadata() or ()))
        owner = self.keys.owner(sent.get("authorization"), sent.get("x-api-key"))
        if owner is None:
            text = "no API key that is known: send the metadata `authorization: Bearer KEY`"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, text)
        return str(owner)

    def _filled(self, message: str, value: dict[str, Any]) -> Any:
        return json_format.ParseDict(value, self.messages[message](), ignore_unknown_fields=True)

    def _log(self, name: str, client: str, code: str, ms: float) -> None:
        if requests_log.isEnabledFor(logging.INFO):
            fields = {"client": client, "method": name, "status": code, "ms": round(ms, 3)}
            requests_log.info("%s %s", name, code, extra={"fields": fields})


def _address(context: Any) -> str:
    """The client's address without its port, which changes from one connection to the next."""
    return str(context.peer()).rpartition(":")[0]
