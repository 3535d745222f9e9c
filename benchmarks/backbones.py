"""`python -m prunion.benchmarks.backbones`: any backbone in, an exact slim graph out."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import onnx
import torch

from prunion.exporter.graph import onnx_graph, verify_export
from prunion.exporter.slim import slim_network
from prunion.runtime.base import read_json, write_json
from prunion.runtime.errors import PrunionError
from prunion.trainer.backbone import load_backbone
from prunion.trainer.config import BackboneConfig, BackboneSource
from prunion.trainer.network import DomainNet

__all__ = ["NETWORKS", "backbones_command", "domain_net", "measure", "random_switches", "table"]

NETWORKS = """
resnet18 resnet50 wide_resnet50_2 resnext50_32x4d densenet121 vgg16_bn vgg16 mobilenet_v2
mobilenet_v3_small mobilenet_v3_large efficientnet_b0 efficientnet_v2_s regnet_y_400mf mnasnet0_5
shufflenet_v2_x0_5 squeezenet1_1 googlenet inception_v3
prunion:resnet26 prunion:wrn28_4 prunion:wrn28_4_preact
timm:tf_efficientnet_lite0 timm:resnet50d timm:repvgg_a0 timm:regnetx_002
timm:mobilenetv4_conv_small timm:ghostnet_100 timm:hardcorenas_a timm:dla34 timm:res2net50_26w_4s
timm:cspresnet50 timm:ecaresnet50t
convnext_tiny vit_b_16 swin_t
""".split()
DENSITIES = (0.9, 0.6, 0.3)
CLASSES = (5, 7, 3, 10, 4)
SIDE = {"inception_v3": 128, "vit_b_16": 224}
DEFAULT_SIDE = 96


@dataclass(frozen=True)
class DensityCase:
    """One network at one density of random switches.

    Attributes:
        density: share of the units that some domain may use; of these each uses four in five.
        masked_sliced, masked_onnx: largest `max |Δ| / max |reference|` of any domain in one
            mixed batch.
        seconds: slicing, ONNX export and the comparison.
    """

    density: float
    kept_units: int
    params: int
    macs: int
    masked_sliced: float
    masked_onnx: float
    seconds: float


@dataclass(frozen=True)
class BackboneRow:
    """One network: what it costs, what random switches leave of it, or why it is refused."""

    name: str
    side: int
    units: int = 0
    params: int = 0
    macs: int = 0
    seconds: float = 0.0
    cases: list[DensityCase] = field(default_factory=list)
    refused: str = ""


@click.command()
@click.option("--only", default="", help="Names from the list, or SOURCE:NAME, by commas.")
@click.option("--json", "path", type=click.Path(dir_okay=False), help="Keep the rows; go on there.")
@click.option("--markdown", is_flag=True, help="Print the rows of --json as a table and stop.")
@click.option("--threads", default=1, show_default=True)
def backbones_command(only: str, path: str | None, markdown: bool, threads: int) -> None:
    """Masked torch, sliced torch and ONNX Runtime on many networks with random switches."""
    torch.set_num_threads(threads)
    rows = _read(path)
    if markdown:
        print(table(rows))
        return
    done = {row.name for row in rows}
    for name in only.split(",") if only else NETWORKS:
        if name in done:
            continue
        row = measure(name)
        print(_line(row), flush=True)
        rows.append(row)
        if path:
            write_json(path, [asdict(r) for r in rows])


def measure(name: str, densities: tuple[float, ...] = DENSITIES) -> BackboneRow:
    """Random switches on the network `NAME` (torchvision's) or `SOURCE:NAME`."""
    source, _, own = name.rpartition(":")
    side = SIDE.get(own, DEFAULT_SIDE)
    started = time.perf_counter()
    torch.manual_seed(0)
    try:
        config = BackboneConfig(own, cast(BackboneSource, source or "torchvision"), weights="none")
        net = domain_net(config, side, CLASSES)
    except PrunionError as exc:
        return BackboneRow(name, side, seconds=time.perf_counter() - started, refused=str(exc))
    unit_table = net.units.table
    full = np.ones(unit_table.count, dtype=bool)
    built = time.perf_counter() - started
    try:
        cases = [_case(net, side, density) for density in densities]
    except PrunionError as exc:
        return BackboneRow(name, side, unit_table.count, seconds=built, refused=str(exc))
    params, macs = unit_table.params(full), unit_table.macs(full)
    return BackboneRow(name, side, unit_table.count, params, macs, built, cases)


def random_switches(net: DomainNet, density: float, seed: int = 0) -> None:
    """Give every domain four in five of the same random `density` of the units."""
    generator = torch.Generator().manual_seed(seed)
    domains, units = net.switches.shape
    allowed = torch.rand(units, generator=generator) < density
    for members in net.units.table.widths:  # no layer may lose every channel
        inside = torch.from_numpy(members)
        if not allowed[inside].any():
            allowed[inside[0]] = True
    wanted = torch.rand(domains, units, generator=generator) < 0.8
    wanted[0] |= ~wanted.any(0)  # what is allowed is used by somebody
    net.switches.copy_(wanted & allowed)


def domain_net(config: BackboneConfig, side: int, classes: tuple[int, ...]) -> DomainNet:
    """An unpruned network whose domains differ, and whose activations keep a sane size.

    Drawn weights with drawn BatchNorm shifts would die out or explode over a hundred layers,
    so the statistics are taken from a batch of noise first.
    """
    net = DomainNet(load_backbone(config, side, side), classes)
    with torch.no_grad():
        for norm in net.norms.values():
            # Not scaled from what is there: timm starts a block's last BatchNorm at zero.
            norm.weight.copy_(1 + 0.2 * torch.randn_like(norm.weight))
            norm.bias.copy_(0.2 * torch.randn_like(norm.bias))
            norm.momentum = 1.0
        net.train()
        runs = [(domain, 2) for domain in range(len(classes))]
        net(torch.randn(2 * len(classes), 3, side, side), runs)
    return net.eval()


def _case(net: DomainNet, side: int, density: float) -> DensityCase:
    random_switches(net, density)
    started = time.perf_counter()
    slim = slim_network(net)
    alive = (net.switches > 0).any(0).numpy()
    images = torch.randn(2 * len(CLASSES), 3, side, side)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.onnx"
        onnx.save(onnx_graph(slim, side, side), graph)
        names = [f"domain{d}" for d in range(len(CLASSES))]
        agreement = verify_export(net, slim, graph, images, names)
    return DensityCase(
        density,
        int(alive.sum()),
        net.units.table.params(alive),
        net.units.table.macs(alive),
        max(agreement.sliced.values()),
        max(agreement.onnx.values()),
        time.perf_counter() - started,
    )


def table(rows: list[BackboneRow]) -> str:
    """The rows as Markdown; parameters and MACs in millions, shares at each density."""
    shares = " / ".join(f"{density:g}" for density in DENSITIES)
    lines = [
        f"| network | px | units | params (M) | left at {shares} | MACs (M) | left at {shares} "
        "| sliced | ONNX | s |",
        "| --- " * 10 + "|",
    ]
    lines += [_markdown(row) for row in rows if not row.refused]
    lines += [f"\n`{row.name}` is refused: {row.refused}" for row in rows if row.refused]
    return "\n".join(lines)


def _markdown(row: BackboneRow) -> str:
    params = " / ".join(f"{case.params / row.params:.3f}" for case in row.cases)
    macs = " / ".join(f"{case.macs / row.macs:.3f}" for case in row.cases)
    sliced = max(case.masked_sliced for case in row.cases)
    exported = max(case.masked_onnx for case in row.cases)
    seconds = row.seconds + sum(case.seconds for case in row.cases)
    return (
        f"| {row.name} | {row.side} | {row.units:,} | {row.params / 1e6:.2f} | {params} "
        f"| {row.macs / 1e6:.1f} | {macs} | {sliced:.0e} | {exported:.0e} | {seconds:.0f} |"
    )


def _line(row: BackboneRow) -> str:
    if row.refused:
        return f"{row.name:<32} refused: {row.refused}"
    worst = max(max(case.masked_sliced, case.masked_onnx) for case in row.cases)
    left = ", ".join(f"{case.params / row.params:.3f}" for case in row.cases)
    seconds = row.seconds + sum(case.seconds for case in row.cases)
    return (
        f"{row.name:<32} {row.units:>6} units  {row.params / 1e6:>7.2f} M → {left}  "
        f"error {worst:.1e}  {seconds:.0f} s"
    )


def _read(path: str | None) -> list[BackboneRow]:
    if path is None or not os.path.exists(path):
        return []
    rows: list[dict[str, Any]] = read_json(path)
    return [
        BackboneRow(**{**row, "cases": [DensityCase(**case) for case in row["cases"]]})
        for row in rows
    ]


if __name__ == "__main__":
    backbones_command()
