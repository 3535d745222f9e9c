"""The benchmarks' commands: `prunion demo` and `prunion report`."""

from __future__ import annotations

import click

from prunion.runtime.cli import force

__all__ = ["demo", "report"]


@click.command()
@click.option(
    "-o", "--output", default="./prunion-demo", show_default=True, type=click.Path(), help="Folder."
)
@click.option("--baseline", is_flag=True, help="Also train it with every channel, to compare.")
@force
def demo(output: str, baseline: bool, force: bool) -> None:
    """Run the whole line on small real images; no download, no GPU."""
    from prunion.benchmarks.demo import run_demo

    run_demo(output, force=force, baseline=baseline)


@click.command()
@click.argument("sources", metavar="RUN_OR_BUNDLE...", nargs=-1, required=True, type=click.Path())
@click.option(
    "-o", "--output", default="report.html", show_default=True, type=click.Path(), help="The page."
)
@click.option(
    "--pictures", type=click.Path(), metavar="DIR", help="The same pictures as SVG and PNG files."
)
@force
def report(sources: tuple[str, ...], output: str, pictures: str | None, force: bool) -> None:
    """Show runs and bundles on one page: accuracy, channels, curves, mistakes.

    Takes run folders, bundles, and the files of `prunion eval -o` and `prunion bench --json`.
    """
    from prunion.benchmarks.report import write_report

    write_report(sources, output, pictures=pictures, force=force)
    click.echo(output)
