"""Commands that use a bundle or look at a machine: thin, each calls the runtime."""

from __future__ import annotations

from typing import Any

import click

from prunion.runtime.cli.options import (
    as_json,
    bundle_argument,
    call,
    force,
    numbers,
    packs,
    precision,
)

__all__ = ["bench", "build", "doctor", "inspect", "predict", "profile", "serve"]


@click.command()
@bundle_argument
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path())
@click.option("-d", "--domain", required=True, help="The domain the images belong to.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes shown.")
@packs
@precision
@click.option("--backend", default="auto", show_default=True, help="What answers.")
@as_json
def predict(
    bundle: str,
    images: tuple[str, ...],
    domain: str,
    top: int,
    packs: tuple[str, ...],
    precision: str,
    backend: str,
    as_json: bool,
) -> None:
    """Classify images of one domain."""
    place = "prunion.runtime.cli.actions:predict_command"
    call(place, bundle, images, domain, top, as_json, precision, backend, packs)


@click.command()
@bundle_argument
@click.option("--batch", default="1,8", show_default=True, callback=numbers, help="Batch sizes.")
@click.option(
    "--seconds",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.01, 3600),
    help="Time for each session and batch size.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads  [default: all cores].")
@click.option("--domains", default="mixed", show_default=True, help="mixed, or one domain's name.")
@precision
@click.option("--backend", default="cpu", show_default=True, help="What answers.")
@as_json
def bench(
    bundle: str,
    batch: list[int],
    seconds: float,
    threads: int | None,
    domains: str,
    precision: str,
    backend: str,
    as_json: bool,
) -> None:
    """Measure latency, throughput and memory on this machine."""
    place = "prunion.runtime.cli.actions:bench_command"
    call(place, bundle, batch, seconds, threads, domains, as_json, precision, backend)


@click.command()
@bundle_argument
@click.option(
    "--target",
    required=True,
    type=click.Choice(["tensorrt-rtx", "tensorrt"]),
    help="The library that will run the engine.",
)
@click.option(
    "--sm", "sms", multiple=True, type=click.IntRange(50, 999), help="GPU generation, such as 86."
)
@precision
@click.option(
    "--batch",
    "profile",
    default="1,8,32",
    show_default=True,
    callback=numbers,
    metavar="MIN,OPT,MAX",
    help="Batch sizes to build for.",
)
@click.option("-o", "--output", type=click.Path(), help="Engine file  [default: named by its key].")
@force
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Most scratch memory.")
@click.option("--dla", type=click.IntRange(0), metavar="CORE", help="A Jetson's DLA core to use.")
@click.option(
    "--timing-cache",
    type=click.Path(dir_okay=False),
    help="Measured kernels, read and written: later builds are faster.",
)
@click.option(
    "--print-trtexec", is_flag=True, help="Write the graph for trtexec and print its command line."
)
def build(
    bundle: str,
    target: str,
    sms: tuple[int, ...],
    precision: str,
    profile: list[int],
    output: str | None,
    force: bool,
    workspace: int | None,
    dla: int | None,
    timing_cache: str | None,
    print_trtexec: bool,
) -> None:
    """Build a TensorRT engine; tensorrt-rtx needs no GPU to build for the --sm given."""
    place = "prunion.runtime.cli.actions:build_command"
    if print_trtexec:
        place = "prunion.runtime.cli.actions:trtexec_command"
    more = (workspace, dla, timing_cache)
    call(place, bundle, target, sms, precision, profile, output, force, *more)


@click.command()
@click.argument("source", metavar="BUNDLE|RUN.toml", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(), help="Profile to write (JSON).")
@click.option("--backend", default="cpu", show_default=True, help="cpu, cuda, openvino or auto.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1, 65536))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024))
@click.option(
    "--seconds",
    default=0.024,
    show_default=True,
    type=click.FloatRange(0.001, 60),
    help="For each graph of each layer's width.",
)
@force
@as_json
def profile(source: str, output: str, **options: Any) -> None:
    """Measure what layers cost here over their widths, for a latency budget.

    BUNDLE is one that `export RUN.toml --untrained` wrote; RUN.toml itself needs torch.
    """
    if source.endswith(".toml"):
        call("prunion.exporter.bundle.whole:profile_run_command", source, output, options)
    else:
        call("prunion.runtime.measure.profile:profile_command", source, output, options)


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Say what this machine can run, what is missing and how to install it."""
    call("prunion.runtime.measure.doctor:doctor_command", as_json)


@click.command()
@bundle_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@packs
@precision
def serve(bundle: str, host: str, port: int, packs: tuple[str, ...], precision: str) -> None:
    """Answer predictions over HTTP (Open Inference Protocol v2)."""
    call("prunion.runtime.cli.actions:serve_command", bundle, host, port, precision, packs)


@click.command()
@bundle_argument
@as_json
def inspect(bundle: str, as_json: bool) -> None:
    """Show what a bundle holds, after checking every file's hash."""
    call("prunion.runtime.cli.actions:inspect_command", bundle, as_json)
