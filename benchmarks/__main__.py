"""`python -m prunion.benchmarks`: the tables' commands, their history, and a nightly check."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from prunion.benchmarks.suite import (
    CASES,
    MOST,
    TABLES,
    check_against_checkout,
    check_run,
    find_tables,
    regressed,
    run_table,
)
from prunion.runtime.cli import FilePath, FiniteRange, OneLineGroup
from prunion.runtime.errors import InputError


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure again what the pages claim."""


@main.command("list")
def list_command() -> None:
    """Name every table, its command, and about how long it takes."""
    for table in TABLES:
        needs = f", needs {table.needs}" if table.needs else ""
        click.echo(f"{table.name}  ({table.page}, about {table.minutes:g} min{needs})")
        click.echo(f"    python -m {table.command}")


@main.command("run")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-o", "--output", required=True, type=FilePath(dir_okay=False, path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="WORD=VALUE", help="As in DATA=folder.")
@click.option("--resume", is_flag=True, help="Go on with tables' own files of rows.")
def run_command(
    names: tuple[str, ...], output: Path, settings: tuple[str, ...], resume: bool
) -> None:
    """Run tables' commands; append a row for each to a history of JSON lines."""
    given = dict(_pair(x) for x in settings)
    failed = []
    try:
        tables = find_tables(names)
    except InputError as exc:
        raise click.UsageError(str(exc)) from None
    check_run(tables, given, output, resume=resume)
    for table in tables:
        click.echo(f"{table.name}: about {table.minutes:g} min", err=True)
        row = run_table(table, given, output)
        click.echo(f"{table.name}: {row['seconds']:g} s, exit code {row['exit_code']}", err=True)
        if row["exit_code"]:
            failed.append(table.name)
    if failed:
        sys.exit(1)


@main.command("check")
@click.option("--before", required=True, type=FilePath(file_okay=False, path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(CASES), help="Only these cases.")
@click.option(
    "--most",
    default=MOST,
    show_default=True,
    type=FiniteRange(0, 1000),
    help="Share that may be lost.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check_command(before: Path, only: tuple[str, ...], most: float, as_json: bool) -> None:
    """Is this checkout slower than the one in BEFORE? Exit code 1 where that is certain."""
    if not most >= 0:  # no number is within click's range too
        raise click.UsageError(f"--most {most}: give a share of 0 or more")
    found = check_against_checkout(
        before, only or CASES, tell=lambda text: click.echo(text, err=True)
    )
    worse = {x.session for x in regressed(found, most)}
    if as_json:
        rows = [{**asdict(x), "regressed": x.session in worse} for x in found]
        click.echo(json.dumps(rows, indent=1))
    else:
        for x in found:
            interval = "too few blocks" if x.low is None else f"{x.low:.3f} … {x.high:.3f}"
            mark = "REGRESSED" if x.session in worse else x.verdict
            click.echo(f"{x.session:<16} {x.ratio:.3f} of the time ({interval})  {mark}")
            if x.note:
                click.echo(f"  note: {x.note}")
    if worse or not found:
        sys.exit(1)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise click.UsageError(f"--set {text} is no setting: give WORD=VALUE")
    return name, value


if __name__ == "__main__":
    main()
