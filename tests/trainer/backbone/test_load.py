"""Backbones from every source end in features; scales and shifts of channels are followed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import load_backbone, trace
from prunion.trainer.channels import find_units
from prunion.trainer.config import BackboneConfig
from prunion.trainer.network import DomainNet
from tests.support.networks.small import Plain, domain_net


@pytest.mark.parametrize(
    ("source", "name", "features"),
    [
        pytest.param("torchvision", "mobilenet_v2", 1280, marks=pytest.mark.thorough),
        ("prunion", "wrn28_4", 256),
        ("timm", "regnetx_002", 368),
    ],
)
def test_the_classifier_is_gone(source: str, name: str, features: int) -> None:
    trunk = load_backbone(BackboneConfig(name, source, weights="none"), 32, 32)
    with torch.no_grad():
        assert trunk(torch.randn(2, 3, 32, 32)).shape == (2, features)
    # nothing of the classifier is left to be counted
    units = find_units(trunk)
    assert len(units.feature_units) == features
    assert all(layer.shape[0] != 1000 for layer in units.table.layers)


class LayerScale(Plain):
    """A learned scale and shift of every channel, as ConvNeXt and ReZero-like networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.register_buffer("shift", torch.rand(1, 6, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu() * self.scale + self.shift
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


def test_a_scale_of_channels_lives_with_them_and_a_shift_needs_a_gate() -> None:
    units = find_units(trace(LayerScale(), 8, 8))
    slots = units.table.slots
    assert slots["scale", 0].tolist() == slots["conv1.weight", 0].tolist()
    assert slots["shift", 1].tolist() == slots["conv1.weight", 0].tolist()
    (gate,) = [g for g in units.gates if not g.folded]
    assert gate.units.tolist() == slots["shift", 1].tolist()


def test_scales_and_shifts_are_sliced() -> None:
    from prunion.exporter.slim import slim_network

    net = domain_net(LayerScale())
    net.switches[:, :3] = 0
    slim = slim_network(net)
    images, domains = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        expected, got = net.logits(images, domains), slim.logits(images, domains)
    own = torch.isfinite(expected)
    assert torch.allclose(expected[own], got[own], atol=1e-5)
    assert slim.trunk.get_parameter("root.scale").shape == (3, 1, 1)


def test_a_norm_read_by_a_shuffle_keeps_its_channels() -> None:
    """BatchNorm's node is replaced in the masked network; its readers still find its units."""
    from prunion.exporter.slim import slim_network

    class Halves(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.bn1(self.conv1(x)).chunk(2, 1)
            return self.bn2(self.conv2(torch.cat([b, a], 1))).relu().mean((2, 3))

    net = domain_net(Halves())
    net.switches[:, 1:3] = 0
    images, domains = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        expected, got = net.logits(images, domains), slim_network(net).logits(images, domains)
    own = torch.isfinite(expected)
    assert torch.allclose(expected[own], got[own], atol=1e-5)


def test_a_weight_computed_from_another_becomes_one_weight() -> None:
    class Standardised(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.conv1.weight * 2
            x = self.bn1(nn.functional.conv2d(x, weight, padding=1)).relu()
            return self.bn2(self.conv2(x)).relu().mean((2, 3))

    model = Standardised()
    net = DomainNet(trace(model, 8, 8), [3])
    assert net.units.table.slots["conv1.weight", 0].tolist() == list(range(6))
    assert torch.equal(net.trunk.get_parameter("conv1.weight"), 2 * model.conv1.weight)


def test_a_scale_that_makes_channels_keeps_its_input_whole() -> None:
    class Batchwise(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(12, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv1(x)[:, :1] * self.scale
            return nn.functional.conv2d(x, self.conv2.weight.repeat(1, 2, 1, 1)).mean((2, 3))

    net = DomainNet(trace(Batchwise(), 8, 8), [3])
    assert "scale makes 12 channels of 1" in net.units.whole["mul"]


@pytest.mark.parametrize(
    ("source", "name", "meant"),
    [
        ("torchvision", "resnet81", "resnet18"),
        ("timm", "tf_efficentnet_lite0", "tf_efficientnet_lite0"),
        ("timm", "ResNet18", "resnet18"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(source: str, name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean .*{meant}"):
        load_backbone(BackboneConfig(source=source, name=name), 32, 32)


def test_without_a_network_default_weights_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"cannot be downloaded \(Name or service not known\)"):
        load_backbone(BackboneConfig(source="timm", name="resnet18"), 32, 32)
    assert time.monotonic() - start < 20, "huggingface_hub alone tries for 23 seconds"


@pytest.mark.parametrize(("source", "name"), [("timm", "hf-hub:a/b"), ("torchvision", "resnet18")])
def test_what_no_cache_holds_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, name: str
) -> None:
    asked = []

    def unreachable(address: tuple[str, int], **_: object) -> None:
        asked.append(address)
        raise OSError("no route")

    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    for variable in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ConfigError, match=r"cannot be downloaded \(no route\); give a local file"):
        load_backbone(BackboneConfig(source=source, name=name), 32, 32)
    assert len(asked) == 1


def test_a_repository_in_the_hubs_cache_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import timm
    from safetensors.torch import save_file

    net = timm.create_model("test_resnet", num_classes=7)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    published = {"classifier": "fc", "num_classes": 1000}
    description = {"architecture": "test_resnet", "num_classes": 7, "pretrained_cfg": published}
    (tmp_path / "config.json").write_text(json.dumps(description))

    def cached(repository: str, name: str, place: object, revision: str | None) -> str | None:
        assert (repository, revision) == ("me/mine", "v2")
        return str(tmp_path / name) if (tmp_path / name).is_file() else None

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("asked for")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    monkeypatch.setattr("socket.create_connection", unreachable)
    trunk = load_backbone(BackboneConfig(source="timm", name="hf-hub:me/mine@v2"), 32, 32)
    theirs = net.state_dict()
    own = {k: v for k, v in trunk.state_dict().items() if "num_batches" not in k}
    assert own
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())


HAND = BackboneConfig("tests:Plain", "python")


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_weight_that_a_hook_computes_can_be_copied(norm: Any) -> None:
    """`copy.deepcopy` refuses them, in a traceback, though the network is one like any other."""
    model = Plain()
    norm(model.conv1)
    model(torch.rand(2, 3, 8, 8))
    model.eval()
    own = load_backbone(HAND, 8, 8, model=model)
    images = torch.rand(2, 3, 8, 8)
    assert torch.allclose(own(images), model(images), atol=1e-5)
    assert not model.conv1.weight.is_leaf


def test_what_cannot_be_copied_or_computed_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match="the network, a Plain, cannot be copied to the CPU"):
        load_backbone(HAND, 8, 8, model=Plain().to("meta"))
    for name in ("conv1.weight", "bn2.running_var"):
        model = Plain()
        with torch.no_grad():
            model.state_dict()[name].view(-1)[0] = torch.nan
        with pytest.raises(ConfigError, match=f"weights that are not finite, {name} among them"):
            load_backbone(HAND, 8, 8, model=model)


class Ending(Plain):
    """A network of the user's with a classifier, or none, at its end."""

    def __init__(self, end: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.end, self.fc, self.point = end, nn.Linear(8, 5), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self, self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu())


LINEAR, POINT = "linear layer, fc.weight", "1x1 convolution, point.weight"


@pytest.mark.parametrize(
    ("end", "features", "said"),
    [
        (lambda m, x: m.fc(x.mean((2, 3))), 8, LINEAR),
        (lambda m, x: m.fc(x.mean((2, 3))).log_softmax(1), 8, LINEAR),
        (lambda m, x: m.fc(x.mean((2, 3))).softmax(-1), 8, LINEAR),
        (lambda m, x: m.point(x).relu().mean((2, 3), keepdim=True).flatten(1), 8, POINT),
        (lambda m, x: m.point(x.mean((2, 3), keepdim=True)).flatten(1), 8, POINT),
        (lambda m, x: m.fc(x.mean((2, 3))) * 2.0, 5, "5 features are taken from mul"),
        (lambda m, x: m.fc(x.mean((2, 3))).relu(), 5, "5 features are taken from relu"),
        (lambda m, x: m.point(x), 5, "5 features are taken from conv2d"),
        (
            lambda m, x: m.point(x.mean((2, 3), keepdim=True)).relu().flatten(1),
            5,
            "5 features are taken from flatten",
        ),
        (lambda m, x: x.mean((2, 3)), 8, "8 features are taken from mean"),
    ],
)
def test_a_classifier_is_taken_off_and_anything_else_is_told(
    end: Any, features: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "prunion"):
        trunk = load_backbone(HAND, 8, 8, model=Ending(end))
    assert trunk(torch.rand(2, 3, 8, 8)).shape == (2, features)
    (told,) = [x.getMessage() for x in caplog.records if x.name.startswith("prunion")]
    assert said in told
    assert ("taken off as the classifier" in told) != ("[backbone] cut" in told)
