"""What a server is told when it starts: its bundle, where it listens, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prunion.runtime.base import Backend, Precision
from prunion.runtime.errors import ConfigError

__all__ = ["Limits", "LoadOptions", "ServeOptions"]

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one request, one client and all of them together may take.

    Attributes:
        body: most bytes of a body, unpacked.
        json: most bytes of JSON in it, which takes many times its size to read.
        rows: most images of a request.
        max_pixels, pixels: of one encoded image, and of all that are decoded at a time, where a
            WebP's count twice.
        queue_rows: most images that wait for the network.
        requests: requests at a time; more get 503 at once.
        client_requests: requests at a time of one client; more get 429 at once.
        connections: HTTP connections at a time; more are closed.
        deadline: seconds after which a request that still waits is refused.
        header_seconds, body_seconds: in which a request's head, and then its body, must arrive.
        idle_seconds: for which a connection may stay without a request.
    """

    body: int = 64 * MIB
    json: int = 16 * MIB
    rows: int = 256
    max_pixels: int = 25_000_000
    pixels: int = 50_000_000
    queue_rows: int = 1024
    requests: int = 512
    client_requests: int = 256
    connections: int = 1000
    deadline: float = 30.0
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    idle_seconds: float = 75.0


@dataclass(frozen=True)
class LoadOptions:
    """How the bundle is loaded, as `load` has it."""

    backend: Backend = "auto"
    precision: Precision = "fp32"
    threads: int | None = None
    memory_limit: int | None = None
    engine: Path | str | None = None


@dataclass(frozen=True)
class ServeOptions:
    """All of it.

    Attributes:
        grpc_port: None for no gRPC.
        uds: a Unix socket's path; HTTP is served there, and not at `host` and `port`.
        packs: packs that are served beside the bundle's from the start.
        folders: where the control API may load packs from.
        watch: a folder whose packs are served as they come and go.
        pack_folder: a folder whose packs are read when they are first asked for.
        pack_memory: bytes that those may take together.
        keep: which of them never leave.
        weights: how much of a busy server a domain gets, by name; 1 if it is not named.
        max_batch, delay: as `BatchOptions` has them.
        decode_threads: images decoded at a time; None for the cores that the process may use.
        control: whether models may be loaded and unloaded over the network.
        api_keys: a file of `NAME SHA256` lines; None lets everybody ask.
        allow_origins: sites whose pages a browser lets use the server, as `https://HOST`.
        certificate, private_key: of TLS, PEM files; `client_ca` also asks clients for theirs.
        workers: processes that share the ports.
        ready_seconds: for which a server that was told to stop goes on answering, not ready.
        drain_seconds: after that, the most it takes for requests that run.
        otlp: address of the collector that traces go to; None for what `OTEL_*` variables say.
        log: one line a request, as JSON or text; or none.
        page: whether the root is a page to try the server in a browser.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    uds: Path | None = None
    load: LoadOptions = LoadOptions()
    limits: Limits = Limits()
    packs: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()
    watch: Path | None = None
    pack_folder: Path | None = None
    pack_memory: int = 256 * MIB
    keep: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    max_batch: int = 32
    delay: float | None = None
    decode_threads: int | None = None
    control: bool = False
    api_keys: Path | None = None
    allow_origins: tuple[str, ...] = ()
    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = None
    workers: int = 1
    ready_seconds: float = 1.0
    drain_seconds: float = 30.0
    otlp: str | None = None
    log: Literal["json", "text", "off"] = "json"
    page: bool = True

    def __post_init__(self) -> None:
        """Raises ConfigError for an empty host, which a socket takes for every address."""
        if not self.host:
            raise ConfigError(
                "the host is empty: give an address to listen on, such as 127.0.0.1, or 0.0.0.0 "
                "for all of the machine's"
            )
