"""From a bundle's path to a running server, and from SIGTERM to its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import select
import signal
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn

from prunion.runtime.base import Precision
from prunion.runtime.batching import make_tracing
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.runtime.serve.guard import Gate, read_keys
from prunion.runtime.serve.http.app import http_app
from prunion.runtime.serve.http.connections import protocol_of
from prunion.runtime.serve.http.door import Door
from prunion.runtime.serve.listening.addresses import (
    bind_path,
    bind_port,
    check_path,
    file_identity,
    hold_port,
    listen,
    remove_path,
)
from prunion.runtime.serve.listening.signals import hangup_held_back, on_signal, tell_systemd
from prunion.runtime.serve.listening.workers import run_workers, what_lies
from prunion.runtime.serve.logs import logging_of
from prunion.runtime.serve.models import Service, load_model
from prunion.runtime.serve.options import LoadOptions, ServeOptions
from prunion.runtime.serve.waiting import leave, unless_stopped

__all__ = ["serve", "serve_with"]

BACKLOG = 2048
PATIENCE = 200  # milliseconds of emptying the queue of connections before it is closed
LAST = 1.0  # seconds to close what is idle, however long it took to get there
SETTLE = 0.25  # seconds in which a connection that was accepted last sends its request
STOP = (signal.SIGTERM, signal.SIGINT)
logger = logging.getLogger("prunion.serve")


def serve(
    bundle: Path | str,
    host: str = "127.0.0.1",
    port: int = 8000,
    precision: Precision = "fp32",
    packs: Sequence[Path | str] = (),
) -> None:
    """Serve a bundle over HTTP, and the domains of `packs`, until interrupted.

    Raises BundleError or InputError before it listens.
    """
    paths = tuple(Path(pack) for pack in packs)
    how = LoadOptions(precision=precision)
    serve_with(bundle, ServeOptions(host=host, port=port, load=how, packs=paths))


def serve_with(bundle: Path | str, options: ServeOptions) -> None:
    """Serve a bundle until SIGTERM or SIGINT; SIGHUP serves the bundle that lies there by then.

    Raises PrunionError before it listens.
    """
    _check(options)
    if options.workers == 1:
        with logging_of(options), hangup_held_back():
            asyncio.run(_run(bundle, options, options.port))
        return
    with logging_of(options), contextlib.ExitStack() as held:
        # Held but not listened on, so that the workers share what this process was given.
        host, grpc_port = options.host, options.grpc_port
        ports = [held.enter_context(hold_port(host, options.port))]
        if grpc_port is not None:
            ports.append(held.enter_context(hold_port(host, grpc_port, "grpc-port")))
        numbers = [x.getsockname()[1] for x in ports]
        shared = replace(options, port=numbers[0])
        if grpc_port is not None:
            shared = replace(shared, grpc_port=numbers[1])
        run_workers(
            options.workers,
            lambda: asyncio.run(_run(bundle, shared, shared.port)),
            lambda: what_lies(Path(bundle)),
        )


async def _run(bundle: Path | str, options: ServeOptions, port: int) -> None:
    begun = time.perf_counter()
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for name in STOP:
        on_signal(loop, name, stop.set)
    gate = Gate(options.limits.requests, options.limits.client_requests)
    async with contextlib.AsyncExitStack() as held:
        # What is wrong with the keys or the address is told before the bundle takes its time.
        keys = None if options.api_keys is None else read_keys(options.api_keys)
        listening = None if options.uds is not None else _bound(options, port)
        if listening is not None:
            held.callback(listening.close)
        if options.uds is not None:
            check_path(options.uds)
        tracing = make_tracing(options.otlp)
        if tracing is not None:
            held.push_async_callback(asyncio.to_thread, tracing.close)
        service = await unless_stopped(stop, lambda: _started(bundle, options, tracing))
        # However this ends: a session that a thread still makes would abort the process.
        held.push_async_callback(service.stop)
        gc.collect()
        gc.freeze()  # what is here now stays: looking through it again would hold up requests
        _follow_hangups(loop, service, Path(bundle))
        if options.uds is not None:
            listening = bind_path(options.uds)
            identity = file_identity(options.uds)
            held.callback(remove_path, options.uds, identity)
            held.callback(listening.close)
        assert listening is not None
        listen(listening, BACKLOG)
        http = _Http(_config(service, gate, keys))
        rpc: Any = None
        where: dict[str, int | Path] = {
            "http": listening.getsockname()[1] if options.uds is None else options.uds
        }
        if options.grpc_port is not None:
            from prunion.runtime.serve.grpc.server import make_grpc_server

            rpc, where["grpc"] = make_grpc_server(service, gate, keys)
            await rpc.start()
        running = asyncio.ensure_future(http.serve(sockets=[listening]))
        logger.info(
            "serving %s on %s, %s, after %.1f s",
            service.serving.name,
            options.host,
            ", ".join(f"{name} {number}" for name, number in where.items()),
            time.perf_counter() - begun,
        )
        tell_systemd("READY=1")
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not await _drain(service, http, rpc, running):
            if options.uds is not None:
                remove_path(options.uds, identity)
            leave(f"what was being loaded is given up after {options.drain_seconds:g} s")


def _started(bundle: Path | str, options: ServeOptions, tracing: Any) -> Service:
    service = Service(load_model(bundle, options.load), options, tracing)
    try:
        service.start()
    except BaseException:
        service.close()
        raise
    return service


def _bound(options: ServeOptions, port: int) -> socket.socket:
    """The socket of HTTP, which has its port and does not listen yet. Raises ConfigError.

    That of gRPC, which listens at once, is tried only.
    """
    found = bind_port(options.host, port, shared=options.workers > 1)
    if options.grpc_port and options.workers == 1:  # several hold theirs
        try:
            bind_port(options.host, options.grpc_port, "grpc-port").close()
        except ConfigError:
            found.close()
            raise
    return found


def _follow_hangups(loop: asyncio.AbstractEventLoop, service: Service, bundle: Path) -> None:
    """Serve the bundle that lies there, whenever a SIGHUP comes."""
    if not hasattr(signal, "SIGHUP"):
        return
    tasks: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.ensure_future(_reloaded(service, bundle))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    on_signal(loop, signal.SIGHUP, reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])


async def _drain(
    service: Service, http: uvicorn.Server, rpc: Any, running: asyncio.Future[None]
) -> bool:
    """Not ready at once; answer a while longer; then take no more, and finish what was taken.

    Returns whether all that was begun came to its end in that time.
    """
    options = service.options
    service.ready = False
    tell_systemd("STOPPING=1")
    logger.info("stopping: not ready any more")
    if not running.done():
        await asyncio.sleep(options.ready_seconds)
    http.should_exit = True
    until = time.monotonic() + options.drain_seconds
    if rpc is not None:
        await asyncio.gather(running, rpc.stop(options.drain_seconds))
    await running
    ending = asyncio.ensure_future(service.stop())
    await asyncio.wait({ending}, timeout=max(until - time.monotonic(), LAST))
    if not ending.done():
        return False
    await ending
    logger.info("stopped")
    return True


async def _reloaded(service: Service, bundle: Path) -> None:
    try:
        await service.replace(bundle)
    except PrunionError as exc:
        logger.error("the bundle is served as it was: %s", exc)


class _Http(uvicorn.Server):
    """uvicorn without its own signal handlers: stopping is told to both transports here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take in who has connected, listen no more, and hear out those who have yet to ask."""
        listening = [x for x in sockets or [] if x.fileno() >= 0]
        for _ in range(PATIENCE):
            await asyncio.sleep(0.001)
            # What the system has accepted and we have not would be cut off by closing.
            if not select.select(listening, [], [], 0)[0]:
                break
        for server in self.servers:
            server.close()
        await asyncio.sleep(SETTLE)
        await super().shutdown(sockets)


def _config(service: Service, gate: Gate, keys: Any) -> uvicorn.Config:
    options = service.options
    door = None
    if keys is None:  # or who asks is known only when the head was read
        door = Door(gate, service)
    return uvicorn.Config(
        http_app(service, gate, keys),
        loop="asyncio",
        http=protocol_of(options.limits, door),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=math.ceil(options.limits.idle_seconds),
        timeout_graceful_shutdown=round(options.drain_seconds),
        ssl_certfile=_text(options.certificate),
        ssl_keyfile=_text(options.private_key),
        ssl_ca_certs=_text(options.client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if options.client_ca is None else ssl.CERT_REQUIRED,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _check(options: ServeOptions) -> None:
    for path in (*options.folders, options.watch, options.pack_folder):
        if path is not None and not path.is_dir():
            raise ConfigError(f"{path} is no folder: name one that holds packs")
    if options.folders and not options.control:
        raise ConfigError("--allow means nothing without --control: give both")
    if (options.certificate is None) != (options.private_key is None):
        raise ConfigError("TLS takes a certificate and its private key: give both")
    if options.client_ca is not None and options.certificate is None:
        raise ConfigError("clients show certificates over TLS only: give --certificate too")
    if options.workers > 1 and not hasattr(os, "fork"):
        raise ConfigError("this system cannot share a port between processes: use one worker")
    if options.uds is not None and not hasattr(socket, "AF_UNIX"):
        raise ConfigError("this system has no Unix sockets: use --port")
    if options.uds is not None and options.workers > 1:
        raise ConfigError("workers share a port, not a Unix socket: use --port, or one worker")
    if options.workers > 1 and options.control:
        raise ConfigError(
            "--control reaches one process of several: use --watch with --workers, which all follow"
        )
