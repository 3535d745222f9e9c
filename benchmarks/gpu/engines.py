"""TensorRT-RTX engines of every exported variant: `python -m prunion.benchmarks.gpu.engines`.

Needs no GPU. Weights are random, shapes are real; INT8 is calibrated on generated images.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from prunion.benchmarks.random_bundle import random_checkpoint
from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.runtime.base import Precision, machine_facts
from prunion.runtime.bundle import open_bundle
from prunion.runtime.cli import FilePath, OneLineCommand
from prunion.runtime.errors import PrunionError
from prunion.runtime.tensorrt import BuildOptions, build_engine

__all__ = ["BACKBONES", "SMS", "EngineRow", "build_all", "export_all", "main"]

BACKBONES = ("resnet50", "mobilenet_v2", "densenet121")
# Turing is left out of portable engines, so it has one of its own.
SMS = ((75,), (80, 86, 89, 120))
DOMAINS = 4
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class EngineRow:
    """One engine, or why there is none.

    Attributes:
        variant: `fp32`, `fp16`, `int8`, and `subset` or `specialised` with a precision.
        convolutions: how many the graph has in each precision; TensorRT must keep to these types.
    """

    backbone: str
    variant: str
    sms: tuple[int, ...]
    seconds: float = 0.0
    engine_bytes: int = 0
    graph_bytes: int = 0
    convolutions: dict[str, int] | None = None
    refused: str = ""


def export_all(folder: Path, backbone: str, size: int, cut: str = "") -> dict[str, Path]:
    """Three bundles of one random checkpoint: all domains, two of them, and one alone.

    `cut` keeps the network up to that module.
    """
    more = {"size": size, "classes": 10, "images": True, "cut": cut}
    checkpoint = random_checkpoint(
        folder / "checkpoint",
        backbone,
        DOMAINS,
        0.5,
        16,
        **more,  # type: ignore[arg-type]
    )
    every = {"fp16": True, "int8": True, "int8_max_drop": 100.0, "int8_images": 4}
    options = {
        "": ExportOptions(**every),  # type: ignore[arg-type]
        "subset": ExportOptions(**every, domains=("d0", "d2")),  # type: ignore[arg-type]
        "specialised": ExportOptions(**every, specialise="d1"),  # type: ignore[arg-type]
    }
    for name, chosen in options.items():
        export_bundle(checkpoint, folder / f"{name or 'all'}.prunion", chosen)
    return {name: folder / f"{name or 'all'}.prunion" for name in options}


def build_all(
    backbone: str, bundles: dict[str, Path], batch: tuple[int, int, int] = (1, 8, 32)
) -> Iterator[EngineRow]:
    """Build each precision of each bundle for each of SMS; engines are measured and dropped."""
    for name, path in bundles.items():
        bundle = open_bundle(path)
        for precision in PRECISIONS:
            graph = bundle.graph(precision).stat().st_size
            for sms in SMS:
                yield _row(
                    backbone, f"{name} {precision}".strip(), path, precision, sms, batch, graph
                )


def _row(
    backbone: str,
    variant: str,
    path: Path,
    precision: Precision,
    sms: tuple[int, ...],
    batch: tuple[int, int, int],
    graph: int,
) -> EngineRow:
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = build_engine(
                open_bundle(path),
                sms=sms,
                precision=precision,
                options=BuildOptions(batch),
                output=Path(folder) / "x.engine",
            )
        except PrunionError as exc:
            return EngineRow(backbone, variant, sms, graph_bytes=graph, refused=str(exc))
        size = made.path.stat().st_size
        return EngineRow(backbone, variant, sms, made.seconds, size, graph, made.convolutions)


def _text(row: EngineRow) -> str:
    sms = ",".join(map(str, row.sms))
    if row.refused:
        return f"| {row.backbone} | {row.variant} | {sms} | refused | | {row.refused[:160]} |"
    counts = ", ".join(f"{n} {kind}" for kind, n in (row.convolutions or {}).items())
    sizes = f"{row.graph_bytes / 1e6:.1f} → {row.engine_bytes / 1e6:.1f}"
    return f"| {row.backbone} | {row.variant} | {sms} | {row.seconds:.1f} | {sizes} | {counts} |"


@click.command(cls=OneLineCommand)
@click.option("--backbone", default=",".join(BACKBONES), show_default=True)
@click.option("--size", default=224, show_default=True, help="Image side in pixels.")
@click.option("-o", "--output", type=FilePath(), help="Rows as JSON lines.")
def main(backbone: str, size: int, output: str | None) -> None:
    """Export, build and print one row for each engine."""
    click.echo("| network | variant | SM | build s | graph → engine MB | convolutions |")
    click.echo("| --- | --- | --- | --- | --- | --- |")
    rows = []
    for name in backbone.split(","):
        with tempfile.TemporaryDirectory() as folder:
            for row in build_all(name, export_all(Path(folder), name, size)):
                click.echo(_text(row))
                rows.append(row)
    if output is not None:
        lines = [json.dumps(asdict(row)) for row in rows]
        Path(output).write_text("\n".join(lines) + "\n", "utf-8")
    click.echo(json.dumps(machine_facts(), indent=1))


if __name__ == "__main__":
    main()
