"""The command that makes TensorRT engines: `build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunion.runtime.cli.options import FilePath, bundle_argument, force, numbers, precision

if TYPE_CHECKING:
    from prunion.runtime.base import Precision, Target
    from prunion.runtime.tensorrt import BuildOptions

__all__ = ["build"]


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
@click.option("-o", "--output", type=FilePath(), help="Engine file  [default: named by its key].")
@force
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Most scratch memory.")
@click.option("--dla", type=click.IntRange(0), metavar="CORE", help="A Jetson's DLA core to use.")
@click.option(
    "--timing-cache",
    type=FilePath(dir_okay=False),
    help="Measured kernels, read and written: later builds are faster.",
)
@click.option(
    "--print-trtexec", is_flag=True, help="Write the graph for trtexec and print its command line."
)
def build(
    bundle: str,
    target: Target,
    sms: tuple[int, ...],
    precision: Precision,
    profile: list[int],
    output: str | None,
    force: bool,
    workspace: int | None,
    dla: int | None,
    timing_cache: str | None,
    print_trtexec: bool,
) -> None:
    """Build a TensorRT engine; tensorrt-rtx needs no GPU to build for the --sm given.

    An engine for this machine's GPU is held to a probe at once, any other when it is first loaded.
    """
    from prunion.runtime.tensorrt import BuildOptions

    low, best, high = profile
    options = BuildOptions(
        (low, best, high),
        workspace=None if workspace is None else workspace << 20,
        dla=dla,
        timing_cache=None if timing_cache is None else Path(timing_cache),
    )
    if print_trtexec:
        _print_trtexec(bundle, target, sms, precision, options, output, force)
    else:
        _build(bundle, target, sms, precision, options, output, force)


def _build(
    bundle: str,
    target: Target,
    sms: tuple[int, ...],
    precision: Precision,
    options: BuildOptions,
    output: str | None,
    force: bool,
) -> None:
    from prunion.runtime.backends import SessionOptions
    from prunion.runtime.bundle import open_bundle
    from prunion.runtime.model import check_beside, open_pool
    from prunion.runtime.tensorrt import build_engine, device_sm

    opened = open_bundle(bundle)
    check_beside(opened, precision, SessionOptions("cpu"))  # an engine would be refused when loaded
    result = build_engine(
        opened,
        target=target,
        sms=sms,
        precision=precision,
        options=options,
        output=output,
        force=force,
    )
    size = result.path.stat().st_size
    click.echo(f"{result.path}  {size:,} bytes, built in {result.seconds:.1f} s")
    click.echo(f"{result.key_path}  what it was built from")
    counts = ", ".join(f"{n} in {kind}" for kind, n in result.convolutions.items())
    click.echo(f"the graph's convolutions: {counts}")
    if device_sm() in result.key.sms:  # elsewhere the first load compares
        open_pool(opened, SessionOptions(target), precision, engine=result.path).mixed()


def _print_trtexec(
    bundle: str,
    target: Target,
    sms: tuple[int, ...],
    precision: Precision,
    options: BuildOptions,
    output: str | None,
    force: bool,
) -> None:
    """Write the graph whose tables are plain inputs, and print the line that builds it."""
    from prunion.runtime.base import check_output, replace_file
    from prunion.runtime.bundle import check_one_trunk, open_bundle
    from prunion.runtime.graph import form_of, no_graph
    from prunion.runtime.tensorrt import (
        check_outside,
        default_name,
        engine_graph,
        engine_key,
        trtexec_command,
    )

    opened = open_bundle(bundle)
    check_one_trunk(opened, "an engine")
    form_of(opened, precision)  # the graph is checked
    key = engine_key(opened, target, "", sms, precision, options)
    engine = Path(output) if output else Path(default_name(opened, key))
    graph = engine.with_suffix(".onnx")
    check_outside(opened, graph)
    was = check_output(graph, force=force, wrote=no_graph)
    with replace_file(graph, was) as temporary:
        temporary.write_bytes(engine_graph(opened.held_graph(precision).read(), key))
    click.echo(trtexec_command(opened, key, graph, engine, options.timing_cache))
