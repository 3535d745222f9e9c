"""The command that serves a bundle: `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from prunion.runtime.cli.options import (
    FilePath,
    FiniteRange,
    backends,
    bundle_argument,
    packs,
    precision,
)

if TYPE_CHECKING:
    from prunion.runtime.base import Backend, Precision

__all__ = ["serve"]

MIB = 1 << 20
PORT = click.IntRange(0, 65535)
FOLDER = FilePath(path_type=Path)
SECONDS = FiniteRange(0.05, 3600)


def _weights(_: click.Context, option: click.Parameter, value: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in value:
        name, _sign, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = 0.0
        if not name or not 0.001 <= found[name] <= 1000:
            raise click.BadParameter(f"{text!r}: give NAME=WEIGHT, such as flowers=2")
    return found


@click.command()
@bundle_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=PORT, help="HTTP; 0 for a free one.")
@click.option("--grpc-port", type=PORT, help="gRPC too; 0 for a free one.")
@click.option("--uds", type=FOLDER, metavar="PATH", help="HTTP on a Unix socket, not on a port.")
@packs
@click.option("--packs", "pack_folder", type=FOLDER, metavar="DIR", help="Read packs on demand.")
@click.option(
    "--packs-memory",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    metavar="MIB",
    help="Most memory for those.",
)
@click.option("--keep", multiple=True, metavar="NAME", help="A domain of --packs never to leave.")
@click.option("--watch", type=FOLDER, metavar="DIR", help="Serve packs as they come and go.")
@click.option("--control", is_flag=True, help="Let clients load and unload models.")
@click.option(
    "--allow",
    "folders",
    multiple=True,
    type=FOLDER,
    metavar="DIR",
    help="Its packs; repeatable.",
)
@precision
@click.option("--backend", default="auto", show_default=True, type=backends, help="What answers.")
@click.option("--threads", type=click.IntRange(1), help="Threads of an operator [default: all].")
@click.option(
    "--memory-limit", type=click.IntRange(0), metavar="MIB", help="Of sessions of single domains."
)
@click.option("--engine", type=FOLDER, metavar="FILE", help="An engine of `prunion build`.")
@click.option(
    "--max-batch", default=32, show_default=True, type=click.IntRange(1, 4096), help="Images a run."
)
@click.option(
    "--max-delay",
    type=FiniteRange(0, 1000),
    metavar="MS",
    help="Wait for a fuller batch [default: only where batches are faster here].",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    callback=_weights,
    metavar="NAME=WEIGHT",
    help="A domain's share of a busy server; 1 if not named.",
)
@click.option(
    "--queue", default=1024, show_default=True, type=click.IntRange(1), help="Images that wait."
)
@click.option(
    "--deadline",
    default=30.0,
    show_default=True,
    type=FiniteRange(0.001, 3600),
    metavar="SECONDS",
    help="Refuse what waited longer.",
)
@click.option(
    "--max-requests", default=512, show_default=True, type=click.IntRange(1), help="At a time."
)
@click.option(
    "--max-client-requests",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="At a time, of one client.",
)
@click.option("--max-body", default=64, show_default=True, type=click.IntRange(1), metavar="MIB")
@click.option(
    "--max-pixels",
    default=25.0,
    show_default=True,
    type=FiniteRange(0.001, 64),
    metavar="MILLIONS",
    help="Of one image file.",
)
@click.option(
    "--head-seconds",
    default=10.0,
    show_default=True,
    type=SECONDS,
    metavar="S",
    help="In which a request's head arrives.",
)
@click.option(
    "--body-seconds", default=60.0, show_default=True, type=SECONDS, metavar="S", help="Its body."
)
@click.option(
    "--idle-seconds",
    default=75.0,
    show_default=True,
    type=SECONDS,
    metavar="S",
    help="An open connection without a request.",
)
@click.option("--api-keys", type=FOLDER, metavar="FILE", help="Who may ask: NAME SHA256 a line.")
@click.option(
    "--allow-origin", "allow_origins", multiple=True, metavar="URL", help="A site's pages may ask."
)
@click.option("--certificate", type=FOLDER, metavar="PEM", help="Serve over TLS.")
@click.option("--private-key", type=FOLDER, metavar="PEM", help="The certificate's.")
@click.option("--client-ca", type=FOLDER, metavar="PEM", help="Clients must show a certificate.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256))
@click.option(
    "--ready-seconds",
    default=1.0,
    show_default=True,
    type=FiniteRange(0, 3600),
    metavar="S",
    help="Go on, not ready, when told to stop.",
)
@click.option(
    "--drain-seconds",
    default=30.0,
    show_default=True,
    type=FiniteRange(0, 3600),
    metavar="S",
    help="Then finish what runs.",
)
@click.option("--otlp", metavar="URL", help="Send traces there [default: as OTEL_* says].")
@click.option(
    "--page/--no-page", default=True, show_default=True, help="A page to try it, at the root."
)
@click.option(
    "--log", default="json", show_default=True, type=click.Choice(["json", "text", "off"])
)
def serve(
    bundle: str,
    host: str,
    port: int,
    packs: tuple[str, ...],
    precision: Precision,
    backend: Backend,
    threads: int | None,
    memory_limit: int | None,
    engine: Path | None,
    max_delay: float | None,
    queue: int,
    deadline: float,
    max_requests: int,
    max_client_requests: int,
    max_body: int,
    max_pixels: float,
    head_seconds: float,
    body_seconds: float,
    idle_seconds: float,
    packs_memory: int,
    log: Literal["json", "text", "off"],
    **others: Any,
) -> None:
    """Answer predictions over HTTP and gRPC (Open Inference Protocol v2)."""
    from prunion.runtime.serve import Limits, LoadOptions, ServeOptions, serve_with

    limits = Limits(
        body=max_body * MIB,
        max_pixels=int(max_pixels * 1e6),
        pixels=int(2e6 * max_pixels),
        queue_rows=queue,
        requests=max_requests,
        client_requests=max_client_requests,
        deadline=deadline,
        header_seconds=head_seconds,
        body_seconds=body_seconds,
        idle_seconds=idle_seconds,
    )
    limit = None if memory_limit is None else memory_limit * MIB
    options = ServeOptions(
        host=host,
        port=port,
        load=LoadOptions(backend, precision, threads, limit, engine),
        limits=limits,
        packs=tuple(Path(pack) for pack in packs),
        pack_memory=packs_memory * MIB,
        delay=None if max_delay is None else max_delay / 1000,
        log=log,
        **others,
    )
    serve_with(bundle, options)
