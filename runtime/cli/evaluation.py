"""`prunion eval`: what a bundle answers for labelled images, counted."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prunion.runtime.cli.options import (
    FilePath,
    as_json,
    backends,
    bundle_argument,
    echo_json,
    force,
    packs,
    precision,
)

if TYPE_CHECKING:
    from prunion.runtime.base import Backend, Precision

__all__ = ["evaluate", "told_progress"]

BETWEEN_LINES = 10.0  # seconds, in a log


@click.command()
@bundle_argument
@click.argument("data", metavar="DATA...", nargs=-1, required=True, type=FilePath())
@click.option("-d", "--domain", help="Whose images they are; of one domain, that one.")
@packs
@precision
@click.option("--backend", default="auto", show_default=True, type=backends, help="What answers.")
@click.option("--threads", type=click.IntRange(1), help="Threads  [default: all cores].")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(1), help="Batch size.")
@click.option(
    "--image-column", default="image", show_default=True, help="Of Parquet, tars and tables."
)
@click.option(
    "--label-column", default="label", show_default=True, help="Of Parquet, tars and tables."
)
@click.option("--skip-unknown", is_flag=True, help="Leave out classes the bundle does not know.")
@click.option(
    "-o", "--output", type=FilePath(), metavar="FILE", help="Every image's answer, as JSON."
)
@force
@as_json
def evaluate(
    bundle: str,
    data: tuple[str, ...],
    domain: str | None,
    packs: tuple[str, ...],
    precision: Precision,
    backend: Backend,
    threads: int | None,
    batch: int,
    image_column: str,
    label_column: str,
    skip_unknown: bool,
    output: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure accuracy on labelled images: class folders, Parquet files, tars or tables."""
    from prunion.runtime.base import check_output, write_json
    from prunion.runtime.measure import evaluate, evaluation_lines, foreign_to_evaluation

    _check_columns(data)
    was = None
    if output is not None:
        was = check_output(output, force=force, wrote=foreign_to_evaluation, inputs=[bundle, *data])
    with told_progress() as progress:
        result = evaluate(
            bundle,
            data,
            domain,
            backend=backend,
            precision=precision,
            threads=threads,
            packs=packs,
            columns=(image_column, label_column),
            batch_size=batch,
            skip_unknown=skip_unknown,
            progress=progress,
        )
    try:  # neither a full disk nor a closed pipe costs what the other was to get
        if as_json:
            echo_json(result.to_json())
        else:
            click.echo("\n".join(evaluation_lines(result)))
    finally:
        if output is not None:
            write_json(output, result.record(), was)


def _check_columns(data: tuple[str, ...]) -> None:
    """No option is taken and does nothing."""
    context, by_user = click.get_current_context(), click.core.ParameterSource.COMMANDLINE
    for name in ("image_column", "label_column"):
        if context.get_parameter_source(name) == by_user:
            from prunion.runtime.images import image_files

            first = image_files([Path(data[0])])[0]
            if first.is_dir():
                raise click.UsageError(
                    f"--{name.replace('_', '-')} is for Parquet, tars and tables, but {first} is a "
                    "folder of class folders: leave it out"
                )


@contextmanager
def told_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, now and then a line in a log; on standard error."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def line(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > BETWEEN_LINES:
                last = time.monotonic()
                click.echo(f"{done:,} of {total:,} images", err=True)

        yield line
        return
    with click.progressbar(length=1, label="images", file=sys.stderr, show_pos=True) as bar:

        def step(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield step
