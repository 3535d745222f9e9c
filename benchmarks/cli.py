"""The benchmarks' command: `prunion demo`."""

from __future__ import annotations

import click

from prunion.runtime.cli import force

__all__ = ["demo"]


@click.command()
@click.option(
    "-o", "--output", default="./prunion-demo", show_default=True, type=click.Path(), help="Folder."
)
@force
def demo(output: str, force: bool) -> None:
    """Run the whole line on small real images; no download, no GPU."""
    from prunion.benchmarks.demo import run_demo

    run_demo(output, force=force)
