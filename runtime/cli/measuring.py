"""Commands that look at this machine: `bench` and `doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from prunion.runtime.cli.options import as_json, bundle_argument, numbers, precision

if TYPE_CHECKING:
    from prunion.runtime.base.names import Backend, Precision

__all__ = ["bench", "doctor"]


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
    precision: Precision,
    backend: Backend,
    as_json: bool,
) -> None:
    """Measure latency, throughput and memory on this machine."""
    from prunion.runtime.measure.bench import bench, format_report

    report = bench(
        bundle,
        batches=batch,
        seconds=seconds,
        threads=threads,
        domains=domains,
        precision=precision,
        backend=backend,
    )
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1, ensure_ascii=False))
    else:
        click.echo(format_report(report))


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Say what this machine can run, what is missing and how to install it."""
    from prunion.runtime.base.machine import available_bytes, machine_facts
    from prunion.runtime.measure.doctor import answers_here, examine

    findings, facts = examine(), machine_facts()
    if as_json:
        value = {"machine": facts, "findings": [asdict(x) for x in findings]}
        click.echo(json.dumps(value, indent=1, ensure_ascii=False))
    else:
        click.echo(f"{facts['cpu']}, {facts['cores']} cores, {facts['architecture']}")
        click.echo(f"{available_bytes() / 2**30:.1f} GiB of memory free, {facts['system']}")
        for x in findings:
            fix = f"\n           → {x.fix}" if x.fix else ""
            click.echo(f"{x.state:>8}  {x.what}: {x.detail}{fix}")
    if not answers_here(findings):
        raise SystemExit(1)
