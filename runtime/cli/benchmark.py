"""`prunion bench`: how fast a bundle answers on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from prunion.runtime.cli.options import (
    FilePath,
    FiniteRange,
    as_json,
    backends,
    bundle_argument,
    echo_json,
    numbers,
    precision,
)

if TYPE_CHECKING:
    from prunion.runtime.base import Backend, Precision, Seen
    from prunion.runtime.measure import BenchReport, Scenario

__all__ = ["bench"]

# Of a bundle and its checkpoint: into a file, and for a rival into a folder.
MakeUnpruned = Callable[[str, str | None, Path], object]
MakePruned = Callable[[str, str | None, str, Path], list[Path]]

UNITS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0}

# Opened by name, a file behind one of these would be written from its beginning by two.
STREAMS = ("/dev/stdout", "/dev/stderr")


def seconds_of(_: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A click callback: a time such as 500ms, 10s or 2m, in seconds."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|)", value.strip())
    seconds = float(found[1]) * UNITS[found[2]] if found else 0.0
    if not 0.001 <= seconds <= 3600:
        raise click.BadParameter("give a time of 1ms to 60m, such as 500ms, 10s or 2m")
    return seconds


def rivals_of(_: click.Context, option: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """A click callback: names of rivals, each once."""
    if not value:
        return value
    from prunion.runtime.errors import InputError
    from prunion.runtime.measure import check_against

    try:
        return check_against(value)
    except InputError as exc:
        raise click.BadParameter(str(exc)) from None


@click.command()
@bundle_argument
@click.argument("others", metavar="[OTHER...]", nargs=-1, type=FilePath())
@click.option("--batch", default="1,8", show_default=True, callback=numbers, help="Batch sizes.")
@click.option(
    "--duration",
    default="2s",
    show_default=True,
    callback=seconds_of,
    help="Time for each session and batch size.",
)
@click.option("--seconds", hidden=True, type=FiniteRange(0.01, 3600))
@click.option("--threads", type=click.IntRange(1), help="Threads  [default: all cores].")
@click.option(
    "--domains", default="mixed", show_default=True, help="mixed (all), or one domain's name."
)
@precision
@click.option("--backend", default="cpu", show_default=True, type=backends, help="What answers.")
@click.option(
    "--against",
    multiple=True,
    callback=rivals_of,
    metavar="RIVAL",
    help="Compare with openvino, specialised, backbone, separate, separate-pruned, "
    "separate-pruned-total, torch-pruning, an .onnx or a bundle; can be repeated.",
)
@click.option(
    "--checkpoint",
    type=FilePath(),
    help="Checkpoint or run that the bundle is of, for rivals made from it.",
)
@click.option(
    "--scenario",
    type=click.Choice(["single", "multi", "offline", "server"]),
    help="One of MLPerf's ways of asking, in place of timing sessions.",
)
@click.option(
    "--p99", default="15ms", show_default=True, callback=seconds_of, help="Bound of server."
)
@click.option(
    "--url",
    metavar="http://HOST:PORT",
    help="Ask a running server that serves BUNDLE; grpc://HOST:PORT too.",
)
@click.option(
    "--csv",
    "csv_file",
    type=FilePath(dir_okay=False),
    help="Also write a table, in place of an earlier one.",
)
@as_json
def bench(
    bundle: str,
    others: tuple[str, ...],
    batch: list[int],
    duration: float,
    seconds: float | None,
    threads: int | None,
    domains: str,
    precision: Precision,
    backend: Backend,
    against: tuple[str, ...],
    checkpoint: str | None,
    scenario: Scenario | None,
    p99: float,
    url: str | None,
    csv_file: str | None,
    as_json: bool,
    unpruned: MakeUnpruned | None = None,
    torch_pruned: MakePruned | None = None,
) -> None:
    """Measure latency, throughput and memory on this machine.

    With OTHER bundles or --against, beside what else one would run, both in turn: batches of random
    images, a ratio with its 95 % interval, and a verdict where the interval allows one. With
    --scenario, the whole model or a server is asked as MLPerf does, by its LoadGen where that is
    installed.
    """
    _check_options(scenario, url, against)
    if others and scenario is not None:
        raise click.UsageError(f"--scenario asks one bundle: leave {others[0]} out")
    spent = duration if seconds is None else seconds
    if scenario is not None:
        from prunion.runtime.cli.asking import ask_scenario

        load = {"backend": backend, "precision": precision, "threads": threads}
        ask_scenario(
            scenario,
            bundle,
            loading=load,
            batch=max(batch),
            seconds=spent,
            bound_ms=p99 * 1e3,
            domains=domains,
            url=url,
            as_json=as_json,
        )
        return
    from prunion.runtime.measure import bench as measure
    from prunion.runtime.measure import check_files, foreign_to_bench

    was = _check_table(Path(csv_file), foreign_to_bench) if csv_file else None
    against = tuple(dict.fromkeys((*others, *against)))
    check_files(against)
    with TemporaryDirectory() as folder:
        makers = (unpruned, torch_pruned)
        graph, pruned = _make_rivals(bundle, checkpoint, against, Path(folder), *makers)
        report = measure(
            bundle,
            batches=batch,
            seconds=spent,
            threads=threads,
            domains=domains,
            precision=precision,
            backend=backend,
            against=against,
            unpruned=graph,
            pruned=pruned,
        )
    _tell(report, csv_file, was, as_json=as_json)


def _make_rivals(
    bundle: str,
    checkpoint: str | None,
    against: tuple[str, ...],
    folder: Path,
    unpruned: MakeUnpruned | None,
    torch_pruned: MakePruned | None,
) -> tuple[Path | None, dict[str, list[Path]]]:
    """The graphs of rivals that are made from the checkpoint, where there is who makes them."""
    from prunion.runtime.measure import NEED_UNPRUNED, TORCH_PRUNED

    graph = None
    if unpruned is not None and set(against) & set(NEED_UNPRUNED):
        graph = folder / "unpruned.onnx"
        unpruned(bundle, checkpoint, graph)
    pruned = {}
    for name in against:
        if torch_pruned is not None and name in TORCH_PRUNED:
            pruned[name] = torch_pruned(bundle, checkpoint, name, folder)
    return graph, pruned


def _tell(report: BenchReport, csv_file: str | None, was: Seen | None, *, as_json: bool) -> None:
    """Print and write the report: neither a full disk nor a closed pipe costs the other."""
    from prunion.runtime.measure import bench_csv, format_report

    try:
        if csv_file in STREAMS:
            click.echo(bench_csv(report), nl=False, err=csv_file == "/dev/stderr")
        if as_json:
            echo_json(report.to_json())
        else:
            click.echo(format_report(report))
    finally:
        if csv_file and csv_file not in STREAMS:
            _write_table(Path(csv_file), bench_csv(report), was)


def _check_options(scenario: Scenario | None, url: str | None, against: tuple[str, ...]) -> None:
    """No option is taken and does nothing; one that a server alone decides is told."""
    from prunion.runtime.cli.asking import SAMPLES
    from prunion.runtime.measure import NEED_UNPRUNED, TORCH_PRUNED

    context = click.get_current_context()
    by_user = click.core.ParameterSource.COMMANDLINE
    given = {x for x in context.params if context.get_parameter_source(x) == by_user}
    rules = {
        "url": (
            scenario is not None,
            "--url goes with --scenario single, multi, offline or server",
        ),
        "against": (scenario is None, "--scenario goes with neither --against nor --csv"),
        "csv_file": (scenario is None, "--scenario goes with neither --against nor --csv"),
        "seconds": ("duration" not in given, "--seconds is another name of --duration: give one"),
        "p99": (scenario == "server", "--p99 goes with --scenario server"),
        "batch": (
            scenario in (None, "offline"),
            f"--scenario {scenario} asks for {SAMPLES.get(scenario or '')} images at a time: leave "
            "--batch out",
        ),
        "checkpoint": (
            bool({*NEED_UNPRUNED, *TORCH_PRUNED} & {*against}),
            f"--checkpoint goes with --against {', '.join((*NEED_UNPRUNED, *TORCH_PRUNED))}",
        ),
    }
    for name, (fits, told) in rules.items():
        if name in given and not fits:
            raise click.UsageError(told)
    does = dict.fromkeys(("backend", "threads"), "does nothing")
    does["precision"] = "says only what images are sent"
    for name in [x for x in does if url and x in given]:
        click.echo(f"note: --{name} is the server's own, and {does[name]} with --url", err=True)


def _check_table(path: Path, foreign: Callable[[Path], str]) -> Seen | None:
    """Before anything is measured: only an earlier table is replaced, or a file of no bytes."""
    from prunion.runtime.base import check_output
    from prunion.runtime.errors import OutputError

    if str(path) in STREAMS or _is_pipe(path):
        return None
    if path.is_file() and path.stat().st_size and (what := foreign(path)):
        raise OutputError(f"{path} {what}: choose another place")
    return check_output(path, force=True, wrote=lambda _: "")


def _write_table(path: Path, text: str, was: Seen | None) -> None:
    from prunion.runtime.base import replace_file

    if _is_pipe(path):
        path.write_text(text, "utf-8")
        return
    with replace_file(path, was) as temporary:
        temporary.write_text(text, "utf-8")


def _is_pipe(path: Path) -> bool:
    """Whether it is there and no file, as >(less) and /dev/null are: written on, not replaced."""
    return path.exists() and not path.is_file()
