"""The papers' accounting, held against thop itself on unchanged backbones."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model

from prunion.exporter.bundle import export_bundle
from prunion.trainer.backbone import load_backbone
from prunion.trainer.config import BackboneConfig, TrainConfig
from prunion.trainer.cost import norm_operations, paper_account, paper_bits, paper_macs
from prunion.trainer.methods import Sizes, params_ratio
from prunion.trainer.network import DomainNet, load_checkpoint
from tests.support.networks.small import Residual, SqueezeExcite, domain_net

SIZE = 64


def thop_counts(model: nn.Module) -> dict[type, int]:
    """thop's operations by module type, all leaves."""
    thop = pytest.importorskip("thop", reason="pip install thop")
    logging.getLogger("thop").setLevel(logging.ERROR)
    # `profile` removes its counters at the end, so each leaf is asked through a copy of its rule.
    counts: dict[type, int] = {}
    hooks = []
    for module in model.modules():
        rule = thop.profile.__globals__["register_hooks"].get(type(module))
        for base in type(module).__mro__:
            rule = rule or thop.profile.__globals__["register_hooks"].get(base)
        if rule is None or list(module.children()):
            continue

        def note(m: nn.Module, x: object, y: object, rule: object = rule) -> None:
            m.total_ops = 0  # type: ignore[assignment]
            rule(m, x, y)  # type: ignore[operator]
            counts[type(m)] = counts.get(type(m), 0) + int(m.total_ops)  # type: ignore[arg-type]
            del m.total_ops  # `profile` registers a buffer of this name

        hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, SIZE, SIZE))
    for hook in hooks:
        hook.remove()
    assert sum(counts.values()) == int(
        thop.profile(model, (torch.zeros(1, 3, SIZE, SIZE),), verbose=False)[0]
    )
    return counts


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "squeezenet1_1",
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),
        pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", marks=pytest.mark.slow),
    ],
)
def test_convolutions_linear_layers_and_batchnorm_are_counted_as_thop_does(name: str) -> None:
    counts = thop_counts(get_model(name, weights=None))
    config = BackboneConfig(source="torchvision", name=name, weights="none")
    net = DomainNet(load_backbone(config, SIZE, SIZE, weights=False), [10])
    every = np.ones(net.units.table.count, dtype=bool)
    classifier = counts.get(nn.Linear, 0)
    if name == "squeezenet1_1":  # its classifier is a 1 × 1 convolution over a 3 × 3 map
        classifier = 1000 * 512 * 9
        counts[nn.Conv2d] -= classifier
    assert net.units.table.macs(every) == counts[nn.Conv2d]
    assert norm_operations(net, every) == counts.get(nn.BatchNorm2d, 0)
    assert paper_macs(net, every) == counts[nn.Conv2d] + counts.get(nn.BatchNorm2d, 0)
    assert classifier > 0
    # What thop counts beyond these layers: poolings that average, and nothing else.
    beyond = {k for k, n in counts.items() if n} - {nn.Conv2d, nn.Linear, nn.BatchNorm2d}
    assert beyond <= {nn.AdaptiveAvgPool2d, nn.AvgPool2d}


def test_bits_are_counted_by_hand() -> None:
    net = domain_net(Residual(), (3, 4))
    every = np.ones(net.units.table.count, dtype=bool)
    weights, norms = 9 * (3 * 6 + 6 * 8 + 8 * 6), 2 * (6 + 8 + 6)
    assert paper_bits(net, every, 1, 0) == 32 * (weights + norms)
    assert paper_bits(net, every, 2, 14) == 32 * (weights + 2 * norms) + 2 * 14
    gated = domain_net(SqueezeExcite(), (2,))
    every = np.ones(gated.units.table.count, dtype=bool)
    weights, biases = 27 * 8 + 2 * 8 * 4, 4 + 8
    assert paper_bits(gated, every, 1, 0) == 32 * (weights + biases + 2 * 8)


def test_the_two_accounts_stay_apart(tiny: Path, tmp_path: Path) -> None:
    manifest = export_bundle(tiny, tmp_path / "x.prunion")
    assert manifest == json.loads((tmp_path / "x.prunion" / "manifest.json").read_text())
    paper = manifest["paper"]
    assert manifest["params"].keys() == {"backbone", "exported", "heads", "bank"}
    bits = paper["bits"]
    assert paper["params"] == bits["exported"] / bits["backbone"]
    assert bits["backbone"] > 32 * manifest["params"]["backbone"]  # with its BatchNorm
    assert paper["macs"]["backbone"] > manifest["macs"]["backbone"]
    assert max(paper["macs"]["domains"].values()) <= paper["macs"]["exported"]
    assert paper["macs"]["domains"].keys() == {"warm", "cold"}
    own, whole = paper["macs"]["domains"].values(), paper["macs"]["backbone"]
    assert paper["flop"] == pytest.approx(sum(own) / 2 / whole)  # as the papers print it
    assert paper["flop_union"] == paper["macs"]["exported"] / whole


def test_flop_is_a_domains_own_on_average(tiny: Path, tmp_path: Path) -> None:
    """BA² keeps 1.03 of the parameters and prints 0.543 FLOP, which no union could have."""
    loaded = load_checkpoint(tiny).net
    names = ["warm", "cold"]
    count = loaded.switches.shape[1]
    halves = torch.arange(count) % 2 == 0
    loaded.switches[0], loaded.switches[1] = halves.float(), (~halves).float()
    paper = paper_account(loaded, np.ones(count, bool), names, TrainConfig())
    assert paper.flop_union == 1
    assert paper.flop < 0.6


def test_a_method_stores_what_it_has_of_its_own() -> None:
    """No switches where nothing is pruned, and one BatchNorm where it is the backbone's."""
    net = domain_net(Residual(), (3, 4))
    every = np.ones(net.units.table.count, dtype=bool)
    names = ["one", "two"]
    weights, norms = 9 * (3 * 6 + 6 * 8 + 8 * 6), 2 * (6 + 8 + 6)
    for method, stored in (("feature", weights + norms), ("norms", weights + 2 * norms)):
        paper = paper_account(net, every, names, TrainConfig(method=method))  # type: ignore[arg-type]
        assert paper.bits_exported == 32 * stored
        assert paper.method == method
    sizes = Sizes(weights, norms, 3)
    for method, own in (("feature", False), ("norms", True)):
        account = paper_account(net, every, names, TrainConfig(method=method))  # type: ignore[arg-type]
        ratio = params_ratio(method, sizes, 2, own_norms=own)  # type: ignore[arg-type]
        assert account.params == pytest.approx(ratio)
