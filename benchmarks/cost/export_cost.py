"""`python -m prunion.benchmarks.cost.export_cost`: time and memory of one export, by step."""

from __future__ import annotations

import contextlib
import io
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import click
import torch

from prunion.benchmarks.backbones import random_switches
from prunion.exporter.graph import onnx_graph, save_graph, verify_export
from prunion.exporter.slim import slim_network
from prunion.runtime.base import free_memory, write_json
from prunion.runtime.cli import FilePath, FiniteRange, OneLineCommand
from prunion.trainer.backbone import load_backbone
from prunion.trainer.config import BackboneConfig, BackboneSource
from prunion.trainer.network import DomainNet

__all__ = ["Step", "export_cost_command", "export_steps"]

MIB = 1 << 20


@dataclass(frozen=True)
class Step:
    """One step of an export.

    Attributes:
        cpu_seconds: of all threads together; above `seconds` where several work, and below it
            where other programs hold the machine.
        peak_mib: the process's resident peak up to the step's end.
    """

    name: str
    seconds: float
    cpu_seconds: float
    peak_mib: float


@click.command(cls=OneLineCommand)
@click.option("--backbone", default="resnet50", show_default=True, help="NAME or SOURCE:NAME.")
@click.option("--side", default=224, show_default=True, help="Pixels.")
@click.option("--domains", default=5, show_default=True)
@click.option(
    "--density",
    type=FiniteRange(0, 1, min_open=True),
    default=0.6,
    show_default=True,
    help="Share of the units in use.",
)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "path", type=FilePath(dir_okay=False))
def export_cost_command(
    backbone: str, side: int, domains: int, density: float, threads: int, path: str | None
) -> None:
    """Analysis, slicing, ONNX export and verification of one network with random switches."""
    torch.set_num_threads(threads)
    steps, model_mib = export_steps(backbone, side, domains, density)
    for step in steps:
        print(
            f"{step.name:<20}{step.seconds:>7.1f} s {step.cpu_seconds:>7.1f} CPU s "
            f"  peak {step.peak_mib:>6.0f} MiB"
        )
    started, peak = steps[0].peak_mib, steps[-1].peak_mib
    total, cpu = (
        sum(times) for times in zip(*((s.seconds, s.cpu_seconds) for s in steps[1:]), strict=True)
    )
    print(
        f"{total:.1f} s ({cpu:.1f} CPU s) after the imports; {peak - started:.0f} MiB over them, "
        f"{(peak - started) / model_mib:.1f} x the masked network's {model_mib:.0f} MiB"
    )
    if path:
        write_json(path, [asdict(step) for step in steps])


def export_steps(
    backbone: str, side: int, domains: int, density: float
) -> tuple[list[Step], float]:
    """The steps in order, imports first, and the size of the masked network in MiB."""
    steps: list[Step] = []
    with _step("import", steps):  # torch's exporter loads its own libraries on first use
        import onnxruntime  # noqa: F401
        import torchvision.models  # noqa: F401

        _load_exporter()
    source, _, name = backbone.rpartition(":")
    config = BackboneConfig(name, cast(BackboneSource, source or "torchvision"), weights="none")
    with _step("trace", steps):
        trunk = load_backbone(config, side, side)
    with _step("channel analysis", steps):
        net = DomainNet(trunk, [50] * domains).eval()
    random_switches(net, density)
    with _step("slice", steps):
        slim = slim_network(net)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        with _step("ONNX", steps):
            save_graph(onnx_graph(slim, side, side), graph)
        images = torch.randn(2 * domains, 3, side, side)
        with _step("verify", steps):
            verify_export(net, slim, graph, images, [f"d{i}" for i in range(domains)])
    tensors = [*net.parameters(), *net.buffers()]
    return steps, sum(t.numel() * t.element_size() for t in tensors) / MIB


def _load_exporter() -> None:
    """One layer traced and exported: torch's own libraries for it are not the network's cost."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer, image = torch.nn.Conv2d(3, 4, 1).eval(), torch.zeros(2, 3, 4, 4)
        torch.onnx.export(layer, (image,), dynamo=True, verbose=False)


@contextmanager
def _step(name: str, steps: list[Step]) -> Iterator[None]:
    started, cpu = time.perf_counter(), time.process_time()
    yield
    free_memory()  # as `prunion export` does
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
    seconds, worked = time.perf_counter() - started, time.process_time() - cpu
    steps.append(Step(name, seconds, worked, peak))


if __name__ == "__main__":
    export_cost_command()
