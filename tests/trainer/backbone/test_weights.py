"""Weights from the files that people have: wrapped, prefixed, damaged."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import load_backbone
from prunion.trainer.backbone.weights import load_weights, match_by_order, read_weights
from prunion.trainer.config import BackboneConfig


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def named(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in network().state_dict().items()}


WRAPPED: dict[str, Callable[[], Any]] = {
    "plain": lambda: named(""),
    "timm": lambda: {"state_dict": named(""), "epoch": 3, "arch": "x"},
    "torchvision references": lambda: {
        "model": named(""),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1, data="x"),
    },
    "lightning": lambda: {
        "state_dict": named("model."),
        "pytorch-lightning_version": "2.0",
        "hyper_parameters": {"lr": 0.1},
    },
    "distributed": lambda: named("module."),
    "compiled": lambda: {"model": named("_orig_mod.")},
    "compiled and distributed": lambda: named("module._orig_mod."),
    "average": lambda: {"n_averaged": torch.tensor(3), **named("module.")},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_every_usual_wrapper_is_taken_off(kind: str, tmp_path: Path) -> None:
    torch.save(WRAPPED[kind](), tmp_path / "w.pth")
    net = network()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    config = BackboneConfig(name="x", weights=str(tmp_path / "w.pth"))
    load_weights(config, net, read_weights(config.weights))
    for name, value in network().state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_the_average_is_preferred_and_what_was_done_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    average = {name: value + 1 for name, value in named("module.").items()}
    torch.save({"model": named(""), "model_ema": average}, tmp_path / "w.pth")
    net = network()
    config = BackboneConfig(name="x", weights=str(tmp_path / "w.pth"))
    with caplog.at_level(logging.INFO, logger="prunion"):
        load_weights(config, net, read_weights(config.weights))
    assert torch.equal(net.state_dict()["0.bias"], average["module.0.bias"])
    assert "under 'model_ema'" in caplog.text
    assert "begin with module." in caplog.text


def test_two_networks_in_one_file_are_not_guessed_between(tmp_path: Path) -> None:
    torch.save({**named("student."), **named("teacher.")}, tmp_path / "w.pth")
    config = BackboneConfig(name="x", weights=str(tmp_path / "w.pth"))
    with pytest.raises(ConfigError, match=r"several networks, under student\. and teacher\."):
        load_weights(config, network(), read_weights(config.weights))


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04 no archive", b"{}" * 50])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_file_is_one_whole_line(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read") as found:
        read_weights(tmp_path / name)
    assert "\n" not in str(found.value)
    assert "\x1b" not in str(found.value)


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {"model": {"a": "b"}}, 5])
def test_a_file_without_tensors_is_refused(value: object, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="no state dict of tensors"):
        read_weights(tmp_path / "w.pth")


def test_what_unpickling_would_run_is_refused(tmp_path: Path) -> None:
    torch.save({"model": named(""), "fn": re.compile("x")}, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_weights(tmp_path / "w.pth")


def test_constants_of_the_network_are_in_nobodys_file(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("table", torch.rand(4, 1, 1), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x) * self.table + torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)
            return x.mean((2, 3))

    model = Net()
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    assert "table" not in state
    torch.save(state, tmp_path / "w.pth")
    config = BackboneConfig("x:y", "python", weights=str(tmp_path / "w.pth"))
    backbone = load_backbone(config, 8, 8, model=model)
    image = torch.randn(2, 3, 8, 8)
    model.load_state_dict(state)
    torch.testing.assert_close(backbone(image), model(image))
    del state["conv.bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=r"holds no conv\.bias"):
        load_backbone(config, 8, 8, model=model)


BY_ORDER = BackboneConfig(name="x", weights="w.pth", match="order")


@pytest.mark.parametrize(
    "names",
    [
        "n.weight n.bias n.running_mean n.running_var",
        "n.bias n.weight n.running_mean n.running_var",
        "n.running_mean n.running_var n.weight n.bias",
        "n/beta:0 n/gamma:0 n/moving_mean:0 n/moving_variance:0",
        "n_gamma n_beta n_moving_mean n_moving_var",
        "n.mean n.var n.scale n.offset",
    ],
)
def test_a_norms_tensors_are_what_their_names_say(names: str) -> None:
    """All four have one shape: in order alone, a shift would be taken for a scale."""
    own = network().state_dict()
    parts = {
        "1.weight": ("weight", "gamma", "gamma:0", "scale"),
        "1.bias": ("bias", "beta", "beta:0", "offset"),
        "1.running_mean": ("mean", "mean:0"),
        "1.running_var": ("var", "variance:0"),
    }
    state = {"c.weight": own["0.weight"] + 1, "c.bias": own["0.bias"] + 1}
    right = {}
    for number, name in enumerate(names.split()):
        state[name] = torch.full((4,), float(number))
        (place,) = (place for place, ends in parts.items() if name.endswith(ends))
        right[place] = number
    matched = match_by_order(BY_ORDER, state, own)
    assert {name: float(matched[name][0]) for name in right} == right
    assert torch.equal(matched["0.weight"], state["c.weight"])


def test_names_that_contradict_the_order_are_refused() -> None:
    own = network().state_dict()
    first = {"c.weight": own["0.weight"], "c.bias": own["0.bias"]}
    rest = {
        f"{n}.{x}": own["1.weight"]
        for n, x in zip("abcd", ("bias", "weight", "mean", "var"), strict=True)
    }
    with pytest.raises(ConfigError, match=r"1\.weight is a weight or scale, the file's a\.bias"):
        match_by_order(BY_ORDER, first | rest, own)
    unnamed = {f"{n}.{n}": own["1.weight"] + n for n in range(4)}  # these tell nothing
    matched = match_by_order(BY_ORDER, first | unnamed, own)
    assert torch.equal(matched["1.running_var"], unnamed["3.3"])


def test_two_tensors_of_one_kind_in_a_layer_keep_their_order() -> None:
    """As a scale beside a weight: neither is taken twice."""
    own = {name: torch.zeros(4) for name in ("q.weight", "q.scale", "q.bias")}
    state = {name: torch.full((4,), float(n)) for n, name in enumerate(own)}
    matched = match_by_order(BY_ORDER, state, own)
    assert [float(value[0]) for value in matched.values()] == [0.0, 1.0, 2.0]
