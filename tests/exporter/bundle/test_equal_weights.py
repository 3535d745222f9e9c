"""Weights that are equal in the trunk, as of copied blocks, keep a name each in the graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import verify_bundle
from prunion.runtime.model import load
from prunion.trainer.config import RunConfig
from prunion.trainer.network import (
    DomainNet,
    adapt_network,
    build_network,
    load_checkpoint,
    save_checkpoint,
)

pytestmark = pytest.mark.thorough

CLASSES = {"warm": 2, "cold": 3}


class Copies(nn.Module):
    """Three blocks that begin alike, and slopes that all are."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.PReLU(8)
        )
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(copy.deepcopy(block) for _ in range(3)))
        self.last = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8))
        nn.init.zeros_(self.stem.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.blocks(self.stem(x).relu()))


class Blurred(nn.Module):
    """Kernels that nothing trains, the same in every channel of both layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*self.block(3), *self.block(8))

    def block(self, inputs: int) -> list[nn.Module]:
        blur = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)
        kernel = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])) / 16
        blur.weight = nn.Parameter(kernel.expand(8, 1, 3, 3).clone(), requires_grad=False)
        return [nn.Conv2d(inputs, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), blur]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Computed(nn.Module):
    """Equal weights of which the graph has only what was computed from them, and a bare one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.two = nn.Parameter(torch.full((8, 1, 1), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x).relu() * (1 + self.one) + self.two.exp()


def checkpoint(
    folder: Path, train: dict[str, Any], model: Callable[[], nn.Module] = Copies
) -> Path:
    """Drawn numbers in all that a method learns; a frozen trunk stays as it is."""
    images = {"train": "a", "test": "b"}
    config = RunConfig.from_json(
        {
            "backbone": {"source": "python", "name": "x:y"},
            "input": {"size": 8},
            "budget": {"limit": 1.0},
            "train": train,
            "domains": dict.fromkeys(CLASSES, images),
        }
    )
    torch.manual_seed(0)
    net = build_network(config.backbone, (8, 8), list(CLASSES.values()), model=model())
    adapt_network(net, config.train)
    frozen = {id(x) for n, x in net.trunk.named_parameters() if "norms." not in n}
    with torch.no_grad():
        for name, value in net.named_parameters():
            if value.requires_grad and (id(value) not in frozen or "series." in name):
                value.add_(0.1 * torch.randn_like(value))
    facts = [{"name": n, "classes": list("abc"[:c])} for n, c in CLASSES.items()]
    save_checkpoint(folder / "run", net.eval(), config, {"domains": facts}, force=False)
    return folder / "run"


def expected(net: DomainNet, images: torch.Tensor, domain: int) -> torch.Tensor:
    with torch.no_grad():
        return net(images, [(domain, len(images))])[0]


@pytest.mark.parametrize(
    "train",
    [
        {"method": "finetune"},
        {"method": "piggyback"},
        {"method": "taps"},
        {"method": "series"},
        {"method": "parallel"},
        {"method": "parallel", "adapter_rank": 2},
    ],
    ids=lambda x: "-".join(map(str, x.values())),
)
def test_each_keeps_its_name(tmp_path: Path, train: dict[str, Any]) -> None:
    run = checkpoint(tmp_path, train)
    export_bundle(run, tmp_path / "b.prunion")
    net = load_checkpoint(run).net
    held = {x.name for x in onnx.load(tmp_path / "b.prunion" / "model.onnx").graph.initializer}
    assert {n for n, x in net.trunk.named_parameters() if "norms." not in n and x.dim() > 1} <= held
    images = torch.randn(4, 3, 8, 8)
    model = load(tmp_path / "b.prunion", "cpu", threads=1)
    for domain, classes in enumerate(CLASSES.values()):
        got = torch.from_numpy(model.logits(images.numpy(), [domain] * 4))[:, :classes]
        torch.testing.assert_close(got, expected(net, images, domain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", [Copies, Blurred])
@pytest.mark.parametrize("domain", [None, "cold"])
def test_an_ordinary_network_is_verified(
    tmp_path: Path, model: Callable[[], nn.Module], domain: str | None
) -> None:
    run = checkpoint(tmp_path, {}, model)
    export_bundle(run, tmp_path / "b.prunion", ExportOptions(specialise=domain))
    assert verify_bundle(tmp_path / "b.prunion", against=run).problems == ()


def test_what_is_computed_from_equal_weights_is_no_noise(tmp_path: Path) -> None:
    run = checkpoint(tmp_path, {}, Computed)
    export_bundle(run, tmp_path / "b.prunion")  # refuses a graph that answers otherwise
