"""`prunion pretrain`: what it writes is a trunk's weights under the backbone's own names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from prunion.benchmarks.reproduce.pretrain import (
    domain_at,
    pretrain_trunk,
    pretraining,
    read_source,
    source_network,
)
from prunion.runtime.cli import cli
from prunion.runtime.errors import ConfigError, DataError, PrunionError
from prunion.trainer.backbone import load_backbone
from prunion.trainer.config import BackboneConfig, InputConfig
from prunion.trainer.network import load_checkpoint
from tests.support.tiny_run import write_domain

NET = BackboneConfig("resnet18", weights="none", cut="layer1")


def test_weights_start_a_run_as_the_network_that_was_trained(tmp_path: Path) -> None:
    write_domain(tmp_path / "data", ["red", "green"], 8, 0)
    config = pretraining(
        NET, domain_at(tmp_path / "data"), InputConfig((16, 16)), ramp=1, batch_size=8, threads=1
    )
    file = tmp_path / "weights.safetensors"
    made = pretrain_trunk(config, file)
    assert (made.domain, made.classes) == ("data", ("green", "red"))
    trained = load_checkpoint(tmp_path / "weights.safetensors.run").net
    given = BackboneConfig("resnet18", weights=str(file), cut="layer1")
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        features = load_backbone(given, 16, 16).eval()(images)
        torch.testing.assert_close(features, trained.features(images, [(0, 4)])[0])
        whole = source_network(given, (16, 16), read_source(file))
        torch.testing.assert_close(whole(images, [(0, 4)])[0], trained(images, [(0, 4)])[0])
    with pytest.raises(PrunionError, match="already exists"):
        pretrain_trunk(config, file)
    # Byte for byte, as rows are told from others by the file's digest.
    data = file.read_bytes()
    for _ in range(3):  # the library puts what it is told beside the tensors in any order
        again = pretrain_trunk(config, file, resume=True)
        assert again.accuracy == made.accuracy and file.read_bytes() == data
    # Going on with a run replaces what that wrote, and nothing else.
    file.write_bytes(b"somebody's")
    with pytest.raises(PrunionError, match="was not written by `prunion pretrain`"):
        pretrain_trunk(config, file, resume=True)
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"somebody's")
    with pytest.raises(PrunionError, match="already exists"):
        pretrain_trunk(config, other, resume=True)
    assert file.read_bytes() == other.read_bytes() == b"somebody's"


def test_a_file_of_other_making_says_nothing_of_a_source(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(ConfigError, match="is no file of `prunion pretrain`"):
        read_source(other)
    other.write_bytes(b"{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_source(other)
    facts = {"kind": "prunion pretrain", "domain": "a", "accuracy": "0.5", "classes": '["a"]'}
    head = {"domain_head.weight": torch.zeros(2, 3), "domain_head.bias": torch.zeros(2)}
    save_file(head, other, facts)
    with pytest.raises(ConfigError, match="its head is not of its 1 classes"):
        read_source(other)
    assert len(load_file(other)) == 2


def test_where_images_may_lie(tmp_path: Path) -> None:
    write_domain(tmp_path / "both", ["red", "green"], 1, 0)
    write_domain(tmp_path / "my images", ["red", "green"], 1, 0)
    assert domain_at(tmp_path / "my images").name == "my_images"
    assert domain_at(tmp_path / "both").test == (str(tmp_path / "both" / "test"),)
    alone = domain_at(tmp_path / "both" / "train", "x")
    assert (alone.name, alone.holdout, alone.test) == ("x", 0.1, ())
    with pytest.raises(DataError, match="does not exist: give a folder"):
        domain_at(tmp_path / "none")


@pytest.mark.parametrize("parts", [("Train", "Test"), ("training", "val"), ("train", "TEST")])
def test_parts_are_known_however_they_are_spelled(tmp_path: Path, parts: tuple[str, ...]) -> None:
    """The trunk learned to tell training from test images."""
    write_domain(tmp_path / "x", ["red", "green"], 1, 0)
    for part, name in zip(("train", "test"), parts, strict=True):
        (tmp_path / "x" / part).rename(tmp_path / "x" / f"{name}.moved")
        (tmp_path / "x" / f"{name}.moved").rename(tmp_path / "x" / name)
    known = domain_at(tmp_path / "x")
    assert (known.train, known.test) == tuple((str(tmp_path / "x" / name),) for name in parts)
    (tmp_path / "x" / parts[0]).rename(tmp_path / "x" / "valid")
    with pytest.raises(DataError, match="which look like parts of a data set") as caught:
        domain_at(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_what_lies_beside_the_training_images_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A class may be called train."""
    write_domain(tmp_path / "data", ["red", "green"], 1, 0)
    for part in ("plane", ".hidden"):
        (tmp_path / "data" / part).mkdir()
    with caplog.at_level("INFO"):
        domain_at(tmp_path / "data")
    assert "plane is left out: it holds no images in class folders" in caplog.text


def test_the_command(tmp_path: Path) -> None:
    write_domain(tmp_path / "colours", ["red", "green"], 8, 0)
    file = str(tmp_path / "w.safetensors")
    few = ["--epochs", "1", "--size", "32", "--batch-size", "8", "--threads", "1", "--json"]
    command = CliRunner()
    out = command.invoke(
        cli,
        ["pretrain", str(tmp_path / "colours"), "-o", file, "--backbone", "squeezenet1_1", *few],
    )
    assert out.exit_code == 0, out.output
    value = json.loads(out.stdout[out.stdout.index("{") :])
    assert value["domain"] == "colours" and value["weights"] == file
    for wrong, said in (
        (["--force", "--resume"], "give one of them"),
        (["--set", "x=1"], "train."),
        (["--set", 'train.method="lora"'], "is what pretraining decides"),
        (
            ["--batch-size", "8", "--set", "train.batch_size=9"],
            "so does --batch-size: give it once",
        ),
        (["--epochs", "2", "--set", "train.settle=1"], "train.settle and so does --epochs"),
        (["--lr", "0.1", "--set", "train.trunk_lr=1"], "train.trunk_lr and so does --lr"),
    ):
        refused = command.invoke(cli, ["pretrain", str(tmp_path / "colours"), "-o", file, *wrong])
        assert refused.exit_code and said in refused.output
    typo = str(tmp_path / "typo.safetensors")
    refused = command.invoke(cli, ["pretrain", str(tmp_path / "colours"), "-o", typo, "--resume"])
    assert refused.exit_code == 1 and "holds no run to resume: correct -o" in refused.output
    assert not list(tmp_path.glob("typo*"))
