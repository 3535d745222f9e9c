"""Networks that a function of the user's makes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import load_backbone
from prunion.trainer.config import BackboneConfig, RunConfig, load_config

NET = """
from __future__ import annotations
from dataclasses import dataclass

import torch
from torch import nn

@dataclass
class Options:
    width: int = 4

class Net(nn.Module):
    def __init__(self, width=4, classes=0, fill=1.0):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes) if classes else None
        nn.init.constant_(self.conv.weight, fill)

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        return x if self.head is None else self.head(x.mean((2, 3)))

def make_net(width=4, **options):
    return Net(width, **options)

def nothing():
    return 3

def broken():
    raise ValueError("no such thing")

NOTE = "text"
READY = Net(5)
"""


def backbone(name: str, folder: Path, **options: object) -> torch.fx.GraphModule:
    config = BackboneConfig(name, "python", folder=str(folder), **options)
    return load_backbone(config, 16, 16)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "my_net.py").write_text(NET)
    (tmp_path / "beside.py").write_text("from nets.my_net import make_net\n")
    (tmp_path / "my_package" / "parts").mkdir(parents=True)
    for folder in ("my_package", "my_package/parts"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "my_package" / "own.py").write_text(NET)
    (tmp_path / "my_package" / "parts" / "deep.py").write_text("from ..own import make_net\n")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "nets/my_net.py:make_net",
        "nets/my_net.py:Net",
        "beside:make_net",
        "my_package.parts.deep:make_net",
        "my_package/parts/deep.py:make_net",
    ],
)
def test_a_file_or_a_module_is_found_from_the_run_files_folder(place: Path, name: str) -> None:
    before = list(sys.path)
    trunk = backbone(name, place, arguments={"width": 6, "fill": 2.0})
    assert sys.path == before
    assert trunk(torch.randn(2, 3, 16, 16)).shape == (2, 6)  # a map is pooled
    assert (trunk.state_dict()["conv.weight"] == 2).all()
    for module in ("my_package", "my_package.own", "my_package.parts", "my_package.parts.deep"):
        sys.modules.pop(module, None)


def test_a_linear_layer_at_the_end_is_the_classifier(place: Path) -> None:
    trunk = backbone("nets/my_net.py:make_net", place, arguments={"classes": 9})
    assert trunk(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    assert not [name for name in trunk.state_dict() if name.startswith("head")]
    whole = backbone("nets/my_net.py:make_net", place, arguments={"classes": 9}, cut="head")
    assert whole(torch.randn(2, 3, 16, 16)).shape == (2, 9)


def test_a_network_that_is_there_is_copied(place: Path) -> None:
    trunk = backbone("nets/my_net.py:READY", place)
    with torch.no_grad():
        trunk.get_parameter("conv.weight").zero_()
    again = backbone("nets/my_net.py:READY", place)
    assert (again.state_dict()["conv.weight"] == 1).all()


def test_weights_may_come_from_a_file(place: Path) -> None:
    trunk = backbone("nets/my_net.py:make_net", place, arguments={"fill": 3.0})
    torch.save({"model": {f"module.{k}": v for k, v in trunk.state_dict().items()}}, place / "w.pt")
    loaded = backbone("nets/my_net.py:make_net", place, weights=str(place / "w.pt"))
    assert (loaded.state_dict()["conv.weight"] == 3).all()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nets/other.py:make_net", {}, r"nets/other.py is not a file: correct the path"),
        ("no_such_module:make_net", {}, r"No module named 'no_such_module'\): correct the name"),
        ("nets/my_net.py:make_nat", {}, r"has no 'make_nat': .*\(there is make_net\)"),
        ("nets/my_net.py:nothing", {}, r"makes a int: return a torch.nn.Module"),
        ("nets/my_net.py:NOTE", {}, r"NOTE is a str: name a function"),
        ("nets/my_net.py:broken", {}, r"fails with no arguments \(ValueError: no such.*my_net.py"),
        ("nets/my_net.py:make_net", {"wide": 1}, r"fails with the arguments wide \(TypeError"),
        ("nets/my_net.py:READY", {"width": 1}, r"is a network already: remove them"),
        ("bad.py:make_net", {}, r"bad.py cannot be imported \(SyntaxError.*bad.py:2\)"),
        ("worse.py:make_net", {}, r"worse.py cannot be imported \(ZeroDivisionError.*worse.py:1\)"),
    ],
)
def test_what_is_wrong_is_one_line(
    place: Path, name: str, arguments: dict[str, object], message: str
) -> None:
    (place / "bad.py").write_text("x = 1\ny = = 2\n")
    (place / "worse.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=message) as caught:
        backbone(name, place, arguments=arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "my_models"}, 'as "my_models:make_net" or'),
        ({"name": ":make_net"}, "name the function"),
        ({"name": "a:b", "weights": "none"}, "comes with the weights that its function gives it"),
        ({"name": "a:b", "arguments": [1]}, r"\[backbone.arguments\] is \[1\]: make it a table"),
        ({"name": "a:b", "arguments": {"x": {1}}}, r"arguments: x is \{1\}: give strings"),
        ({"name": "resnet18", "source": "timm", "arguments": {"x": 1}}, 'go.* with source = "pyth'),
    ],
)
def test_a_run_file_is_checked_before_anything_is_imported(
    table: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(**{"source": "python", **table})


def test_a_run_file_says_where_its_module_lies(place: Path) -> None:
    text = """
        [backbone]
        source = "python"
        name = "nets/my_net.py:make_net"
        arguments = { width = 6, fill = 0.5 }
        [budget]
        limit = 0.5
        [domains.d]
        train = "d"
        holdout = 0.2
    """
    (place / "run.toml").write_text(text)
    config = load_config(place / "run.toml")
    assert config.backbone.folder == str(place)
    assert RunConfig.from_json(config.to_json()) == config
    assert load_backbone(config.backbone, 16, 16)(torch.randn(1, 3, 16, 16)).shape == (1, 6)
