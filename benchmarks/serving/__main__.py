"""The server under load, beside what one would run instead: a row is written as it ends.

    python -m prunion.benchmarks.serving -o serving.jsonl --litserve-python PYTHON ROW …
    python -m prunion.benchmarks.serving -o serving.jsonl --markdown

Without a name all rows are measured, the short ones first. A row that is in the output already is
not measured again, and refused if it was measured with other options: begin a new file for these,
and when the code or the machine changes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from prunion.benchmarks.cost import check_asked
from prunion.benchmarks.serving.clients import make_traffic
from prunion.benchmarks.serving.compare import Settings, compare
from prunion.benchmarks.serving.endurance import (
    EXCHANGED,
    answer_after_kill,
    exchange_packs,
    overload,
    stop_under_load,
)
from prunion.benchmarks.serving.memory import memory, packs
from prunion.benchmarks.serving.networks import Network, bundle_of, filled, traffic_of
from prunion.benchmarks.serving.overhead import overhead
from prunion.benchmarks.serving.rows import Row, markdown, read_rows, write_row
from prunion.benchmarks.serving.servers import free_port, prunion_command, started
from prunion.runtime.bundle import open_bundle
from prunion.runtime.cli import FilePath, FiniteRange, OneLineCommand, seconds_option

__all__ = ["main", "row_calls"]

DEADLINE = 1  # seconds: of the server that gets twice what it can do
PATH = FilePath(path_type=Path)
Rows = dict[str, Callable[[], Row]]


@click.command(cls=OneLineCommand)
@click.argument("rows", nargs=-1)
@click.option("-o", "--output", type=PATH, required=True, help="JSONL, one row a line.")
@click.option("--folder", type=PATH, default=Path("runs/serving"), help="Where networks are kept.")
@click.option("--litserve-python", type=PATH, help="A Python that has litserve and onnxruntime.")
@click.option("--threads", default=1, show_default=True, help="Threads of an operator, everywhere.")
@seconds_option(5.0, "A measurement.")
@click.option("--rounds", default=3, show_default=True, help="Measurements of each case.")
@click.option(
    "--minutes",
    type=FiniteRange(0, 100_000, min_open=True),
    default=10.0,
    show_default=True,
    help="Of `soak`; `exchange` has half.",
)
@click.option("--option", "options", multiple=True, help="More for prunion serve.")
@click.option("--quick", is_flag=True, help="Small networks and short rounds: under two minutes.")
@click.option("--markdown", "as_table", is_flag=True, help="Print what the output holds.")
@click.option("--list", "as_list", is_flag=True, help="Name the rows.")
def main(
    rows: tuple[str, ...],
    output: Path,
    folder: Path,
    litserve_python: Path | None,
    threads: int,
    seconds: float,
    rounds: int,
    minutes: float,
    options: tuple[str, ...],
    quick: bool,
    as_table: bool,
    as_list: bool,
) -> None:
    """Measure the named ROWS one after the other."""
    if as_table:
        click.echo(markdown(read_rows(output)))
        return
    settings = Settings(
        folder, seconds, rounds, threads, (1, 8, 32), litserve_python, options=options
    )
    if quick:
        settings = dataclasses.replace(settings, seconds=0.5, rounds=1, clients=(1, 8))
        minutes = 0.1
    known = row_calls(settings, minutes, quick)
    if as_list:
        click.echo("\n".join(known))
        return
    if unknown := set(rows) - set(known):
        raise click.UsageError(f"no row {', '.join(sorted(unknown))}: see --list")
    asked = {name: _asked(name, settings, minutes, quick=quick) for name in rows or known}
    for known_row in read_rows(output):
        name = known_row["key"]
        if name in asked and "asked" in known_row:  # an earlier version did not note it
            check_asked([known_row], asked[name], output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in asked:
        row = write_row(output, name, threads, known[name], asked[name])
        click.echo(f"{name}: in {output} already" if row is None else markdown([row]))


def row_calls(settings: Settings, minutes: float, quick: bool) -> Rows:
    """Every row by its name."""
    if quick:
        small = Network("resnet18", 32)
        few, many, count = 6, 12, (10, 40)
        sizes = [small]
        whole: list[Network] = []
    else:
        small = Network("resnet18", 96)
        few, many, count = 6, 100, (10, 1000)
        sizes = [Network("resnet18", 48), small, Network("resnet18", 224)]
        whole = [Network("resnet50", 224)]  # half of every width: a quarter of the MACs
    light = small if quick else Network("mobilenet_v2", 96)
    found: Rows = {f"overhead/{x.name}": partial(overhead, x, settings) for x in sizes}
    union = dataclasses.replace(small, own=1.0)
    if not quick:
        found[f"load/{union.name}/{few}"] = partial(compare, union, few, settings)
    for network in dict.fromkeys((small, light)):
        for domains in (many,) if quick else (few, many):
            found[f"load/{network.name}/{domains}"] = partial(compare, network, domains, settings)
    for network in whole:
        unpruned = dataclasses.replace(settings, unpruned=True)
        found[f"load/{network.name}/unpruned"] = partial(compare, network, 6, unpruned)
    large = small if quick else Network("resnet50", 224)
    found[f"memory/{large.name}/{many}"] = partial(memory, large, many, settings)
    found[f"packs/{small.name}/{count[-1]}"] = partial(packs, small, count, settings)
    found["stop"] = partial(_stop, small, settings, 3 if quick else 20)
    found["kill"] = partial(_kill, small, settings, 1 if quick else 3)
    found["exchange"] = partial(_exchange, small, settings, 30 * minutes)
    found["soak"] = partial(_soak, small, settings, 60 * minutes)
    return found


def _asked(name: str, settings: Settings, minutes: float, *, quick: bool) -> dict[str, Any]:
    """Of the options those that a row depends on, of which its name says nothing."""
    common = {"quick": quick, "threads": settings.threads, "options": list(settings.options)}
    if name in ("soak", "exchange"):
        return {**common, "minutes": minutes}
    if name in ("stop", "kill"):
        return common
    return {**common, "seconds": settings.seconds, "rounds": settings.rounds}


def _traffic(network: Network, settings: Settings) -> tuple[Path, Path]:
    """The bundle, and a file of requests with their answers."""
    bundle = bundle_of(network, settings.folder)
    with filled(bundle, (), settings.threads) as model:
        return bundle, traffic_of(model).save(settings.folder / "traffic.npz")


def _soak(network: Network, settings: Settings, seconds: float) -> Row:
    bundle, traffic = _traffic(network, settings)
    port = free_port()
    command = prunion_command(bundle, port, "--threads", settings.threads, "--deadline", DEADLINE)
    log = settings.folder / "soak.log"
    with started([*command, *settings.options], port, log=log) as server:
        warm, first = min(60.0, seconds / 3), min(5.0, seconds / 3)
        found = overload(server, traffic, seconds, warm_seconds=warm, capacity_seconds=first)
    return {"what": "soak", "network": network.name, "deadline_s": DEADLINE, **found}


def _stop(network: Network, settings: Settings, times: int) -> Row:
    bundle, traffic = _traffic(network, settings)
    return {"what": "stop", "network": network.name, **stop_under_load(bundle, traffic, times)}


def _kill(network: Network, settings: Settings, times: int) -> Row:
    bundle, traffic = _traffic(network, settings)
    return {"what": "kill", "network": network.name, **answer_after_kill(bundle, traffic, times)}


def _exchange(network: Network, settings: Settings, seconds: float) -> Row:
    bundle = bundle_of(network, settings.folder)
    pack = next(iter(map(open_bundle(bundle).pack, open_bundle(bundle).domains)))
    with filled(bundle, (), 1) as model:
        shape, name = model.sessions.form.image_shape, model.bundle.manifest.name
    traffic = make_traffic(name, [EXCHANGED], shape).save(settings.folder / "exchange.npz")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        allowed = ("--control", "--allow", folder, "--threads", settings.threads)
        command = prunion_command(bundle, port, *allowed)
        with started(command, port, log=settings.folder / "exchange.log") as server:
            found = exchange_packs(server, pack, Path(folder), traffic, seconds)
    return {"what": "exchange", "network": network.name, **found}


if __name__ == "__main__":
    main()
