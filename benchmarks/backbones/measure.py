"""The rows of the backbone table, measured one after the other."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import click
import numpy as np
import onnx
import torch

from prunion.benchmarks.backbones.rows import (
    DENSITIES,
    BackboneRow,
    DensityCase,
    read_rows,
    row_line,
    table,
)
from prunion.exporter.bundle import domain_pack
from prunion.exporter.graph import masked_logits, onnx_graph, relative_errors, verify_export
from prunion.exporter.slim import SlimNet, slim_network
from prunion.runtime.backends import SessionOptions, make_mixed, make_session, run
from prunion.runtime.base import reason_of, write_json
from prunion.runtime.cli import FilePath, OneLineCommand
from prunion.runtime.errors import PrunionError, UnsupportedGraphError
from prunion.runtime.graph import TABLES, pin_pack
from prunion.trainer.backbone import load_backbone
from prunion.trainer.config import BackboneConfig, BackboneSource
from prunion.trainer.network import DomainNet, draw_norms

__all__ = ["NETWORKS", "backbones_command", "domain_net", "measure", "random_switches"]

# The quick ones of each library first, the large ones last.
NETWORKS = """
resnet18 resnet34 alexnet squeezenet1_1 mnasnet0_5 mobilenet_v2 mobilenet_v3_small
mobilenet_v3_large shufflenet_v2_x0_5 shufflenet_v2_x1_0 regnet_x_400mf regnet_y_400mf googlenet
resnet50 efficientnet_b0 resnext50_32x4d
prunion:resnet26 prunion:wrn28_4 prunion:wrn28_4_preact
timm:lcnet_050 timm:mobilenetv1_100 timm:mobilenetv4_conv_small timm:tf_efficientnet_lite0
timm:tinynet_e timm:repvgg_a0 timm:mobileone_s0 timm:regnetx_002 timm:regnety_002 timm:ghostnet_100
timm:hardcorenas_a timm:mixnet_s timm:fbnetc_100 timm:rexnet_100 timm:semnasnet_100
timm:spnasnet_100 timm:resnet18d timm:resnet26d timm:resnet50d timm:seresnet18 timm:skresnet18
timm:resnest14d timm:legacy_seresnet18 timm:ecaresnet26t timm:resnetblur50 timm:gernet_s
timm:darknet53 timm:cspdarknet53 timm:cspresnet50 timm:dla34 timm:selecsls42b
timm:ese_vovnet19b_dw timm:hgnetv2_b0 timm:repghostnet_050 timm:tresnet_m timm:resnetv2_50
timm:nf_resnet50 timm:nfnet_l0 timm:res2net50_26w_4s timm:dpn68 timm:legacy_xception
timm:efficientvit_b0 timm:edgenext_xx_small timm:mobilevit_xxs timm:mobilevitv2_050
timm:convnext_atto timm:convnextv2_atto timm:poolformer_s12 timm:starnet_s1 timm:repvit_m0_9
timm:fastvit_t8 timm:deit_tiny_patch16_224 timm:tf_efficientnet_lite1 timm:tf_efficientnet_lite2
timm:hrnet_w18_small timm:inception_v4
efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_v2_s densenet121 densenet169
inception_v3 resnet101 wide_resnet50_2 convnext_tiny swin_t vgg11 vgg16 vgg16_bn vgg19 vit_b_16
""".split()
CLASSES = (5, 7, 3, 10, 4)
# What the network was made for, or the least that its strides leave something of.
SIDE = {
    "inception_v3": 96,
    "inception_v4": 96,
    "legacy_xception": 96,
    "vit_b_16": 224,
    "deit_tiny_patch16_224": 224,
}
DEFAULT_SIDE = 64
NAMES = [f"domain{number}" for number in range(len(CLASSES))]
PINNED = 1  # the domain whose own graph is compared, too


@click.command(cls=OneLineCommand)
@click.option("--only", default="", help="Names from the list, or SOURCE:NAME, by commas.")
@click.option("--json", "path", type=FilePath(dir_okay=False), help="Keep the rows; go on there.")
@click.option("--markdown", is_flag=True, help="Print the rows of --json as a table and stop.")
@click.option("--exported", default="", help="Densities to export, too, by commas; all if empty.")
@click.option("--threads", default=1, show_default=True)
def backbones_command(
    only: str, path: str | None, markdown: bool, exported: str, threads: int
) -> None:
    """Masked torch, sliced torch, ONNX Runtime and OpenVINO on many networks, random switches."""
    torch.set_num_threads(threads)
    rows = read_rows(path)
    if markdown:
        print(table(rows))
        return
    done = {row.name for row in rows}
    some = tuple(float(density) for density in exported.split(",") if density) or DENSITIES
    for name in only.split(",") if only else NETWORKS:
        if name in done:
            continue
        done.add(name)
        row = measure(name, exported=some)
        print(row_line(row), flush=True)
        rows.append(row)
        if path:
            write_json(path, [asdict(r) for r in rows])


def measure(
    name: str, densities: tuple[float, ...] = DENSITIES, exported: tuple[float, ...] = DENSITIES
) -> BackboneRow:
    """Random switches on the network `NAME` (torchvision's) or `SOURCE:NAME`.

    All `densities` are sliced; those that are also in `exported` are run as ONNX, too.
    """
    source, _, own = name.rpartition(":")
    side = SIDE.get(own, DEFAULT_SIDE)
    started = time.process_time()
    torch.manual_seed(0)
    units = 0
    try:
        config = BackboneConfig(own, cast(BackboneSource, source or "torchvision"), weights="none")
        net = domain_net(config, side, CLASSES)
        unit_table = net.units.table
        units, built = unit_table.count, time.process_time() - started
        cases = [_case(net, side, density, density in exported) for density in densities]
    except Exception as exc:  # torch's exporter has many; the next network is measured all the same
        reason = f"{exc}" if isinstance(exc, PrunionError) else f"fails: {reason_of(exc)}"
        return BackboneRow(name, side, units, seconds=time.process_time() - started, refused=reason)
    full = np.ones(units, dtype=bool)
    params, macs = unit_table.params(full), unit_table.macs(full)
    return BackboneRow(name, side, units, params, macs, built, cases)


def random_switches(net: DomainNet, density: float) -> None:
    """Give every domain four in five of the same random `density` of the units."""
    generator = torch.Generator().manual_seed(0)
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
    """An unpruned network whose domains differ, and whose activations keep a sane size."""
    net = DomainNet(load_backbone(config, side, side), classes)
    draw_norms(net, side, side)
    return net


def _case(net: DomainNet, side: int, density: float, exported: bool) -> DensityCase:
    random_switches(net, density)
    started = time.process_time()
    slim = slim_network(net)
    alive = (net.switches > 0).any(0).numpy()
    images = torch.randn(2 * len(CLASSES), 3, side, side)
    onnx_error = openvino_error = None
    if exported:
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            onnx.save(onnx_graph(slim, side, side), graph)
            agreement = verify_export(net, slim, graph, images, NAMES)
            if find_spec("openvino"):
                openvino_error = _openvino_error(net, slim, graph, images)
        sliced_error, onnx_error = max(agreement.sliced.values()), max(agreement.onnx.values())
    else:
        rows = torch.arange(len(images)) % len(CLASSES)
        with torch.no_grad():
            sliced = slim.logits(images, rows).numpy()
        reference, what = masked_logits(net, images, rows), "the sliced network"
        errors = relative_errors(reference, sliced, rows.numpy(), NAMES, what)
        sliced_error = max(errors.values())
    return DensityCase(
        density,
        int(alive.sum()),
        net.units.table.params(alive),
        net.units.table.macs(alive),
        sliced_error,
        onnx_error,
        time.process_time() - started,
        openvino_error,
    )


def _openvino_error(net: DomainNet, slim: SlimNet, graph: Path, images: torch.Tensor) -> float:
    """The larger of the mixed graph's and one pinned graph's, as the runtime compiles them."""
    options = SessionOptions("openvino", torch.get_num_threads())
    rows = np.arange(len(images)) % len(CLASSES)
    reference = masked_logits(net, images, torch.from_numpy(rows))
    feeds = {"image": images.numpy(), "domain": rows}
    feeds |= {name: getattr(slim, name).numpy() for name in TABLES}
    mixed = run(make_mixed(graph, options, {"image", "domain"}), feeds)
    errors = relative_errors(reference, mixed, rows, NAMES, "OpenVINO")

    own = rows == PINNED
    pinned = run(
        make_session(_pinned(slim, graph), options, {"image"}), {"image": images.numpy()[own]}
    )
    expected = reference[own][:, : CLASSES[PINNED]]
    one = relative_errors(expected, pinned, np.zeros(own.sum()), ["pinned"], "OpenVINO")
    return max(*errors.values(), *one.values())


def _pinned(slim: SlimNet, graph: Path) -> bytes:
    """The graph of one domain, cut to its own channels where the runtime would do that."""
    facts = {"name": NAMES[PINNED], "classes": [f"{i}" for i in range(CLASSES[PINNED])]}
    pack = domain_pack(slim, PINNED, facts, "")
    try:
        return pin_pack(graph, pack, slim.table, slim.table.round_up(pack.switches, 1))
    except UnsupportedGraphError:
        return pin_pack(graph, pack)
