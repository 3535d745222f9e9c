"""Domains with a mean and a deviation of their own: the network takes them off, and the bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import verify_bundle
from prunion.runtime.errors import ConfigError
from prunion.runtime.model import load
from prunion.trainer.backbone import PIXEL_NORM, load_backbone
from prunion.trainer.config import BackboneConfig, DomainConfig, RunConfig, TrainConfig, load_config
from prunion.trainer.cost import paper_bits
from prunion.trainer.network import (
    DomainNet,
    build_network,
    load_checkpoint,
    set_normalisation,
)
from prunion.trainer.run import add_domain, train_run
from tests.support.tiny_run import tiny_run, write_domain

pytestmark = pytest.mark.thorough

NET = BackboneConfig("resnet18", weights="none", cut="layer1")
OWN = {"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.4)}


def config_of(folder: Path, **train: object) -> RunConfig:
    """The tiny run, whose second domain has a normalisation of its own."""
    path = tiny_run(folder, **train)
    text = path.read_text("utf-8").replace(
        "[domains.cold]", "[domains.cold]\nmean = [0.1, 0.2, 0.3]\nstd = [0.3, 0.2, 0.4]"
    )
    path.write_text(text, "utf-8")
    return load_config(path)


def test_what_normalises_is_no_layer_to_keep() -> None:
    """It stands first, and was what a mistyped name was told to be."""
    for wrong in ("conv9", "pixel*"):
        keep = replace(NET, keep=(wrong,))
        with pytest.raises(ConfigError, match=r"is no layer: .* such as conv1, bn1, ") as refused:
            build_network(keep, (16, 16), [2, 3], own_normalisation=True)
        assert PIXEL_NORM not in str(refused.value)


def test_each_domain_is_normalised_by_its_own(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    plain = load_backbone(NET, 16, 16)
    net = build_network(NET, (16, 16), [2, 3], own_normalisation=True)
    set_normalisation(net, config)
    state = {k: v for k, v in plain.state_dict().items() if "num_batches" not in k}
    own = dict(net.trunk.named_parameters())
    for name, value in state.items():
        if name in own:
            own[name].data.copy_(value)
    pixels = torch.rand(4, 3, 16, 16)

    def normalised(mean: object, std: object) -> torch.Tensor:
        columns = [torch.tensor(x).view(1, 3, 1, 1) for x in (mean, std)]
        return (pixels - columns[0]) / columns[1]

    given = normalised(config.input.mean, config.input.std)
    with torch.no_grad():
        for domain, image in ((0, given), (1, normalised(*OWN.values()))):
            features, _ = net.eval().features(given, [(domain, 4)])
            torch.testing.assert_close(features, plain.eval()(image), rtol=1e-4, atol=1e-5)
    norm = net.norms[PIXEL_NORM]
    before = norm.running_mean.clone()
    net.train()(given, [(0, 2), (1, 2)])
    assert torch.equal(norm.running_mean, before)
    assert not any(p.requires_grad for p in norm.parameters())
    alive = net.units.table.count
    assert paper_bits(net, torch.ones(alive).bool().numpy(), 2, 0) == paper_bits(
        build_network(NET, (16, 16), [2, 3]), torch.ones(alive).bool().numpy(), 2, 0
    )


@pytest.mark.parametrize("method", ["bap", "piggyback"])
def test_a_bundle_carries_them(tmp_path: Path, method: str) -> None:
    short = {"warmup": 1, "ramp": 1, "settle": 1, "method": f'"{method}"', "norms": '"auto"'}
    config = config_of(tmp_path, **short)
    train_run(config, tmp_path / "out")
    net = load_checkpoint(tmp_path / "out").net
    norm = net.norms[PIXEL_NORM]
    mean, std = torch.tensor(config.input.mean), torch.tensor(config.input.std)
    torch.testing.assert_close(norm.running_mean[0], torch.zeros(3))
    torch.testing.assert_close(norm.running_mean[1] * std + mean, torch.tensor(OWN["mean"]))
    assert torch.equal(norm.weight, torch.ones(2, 3)) and not norm.bias.any()
    export_bundle(tmp_path / "out", tmp_path / "bundle", ExportOptions(uint8=True))
    assert_pixels_answer_as_numbers(tmp_path / "bundle", net, config)
    report = verify_bundle(tmp_path / "bundle", against=tmp_path / "out")
    assert report.problems == () and report.compared
    if method == "bap":
        write_domain(tmp_path / "new", ["red", "blue"], 8, 2)
        parts = {part: (str(tmp_path / "new" / part),) for part in ("train", "test")}
        new = DomainConfig("new", **parts, **OWN)
        train = TrainConfig(warmup=1, ramp=0, settle=0, batch_size=8)
        added = add_domain(load_checkpoint(tmp_path / "out"), new, train)
        row = added.net.norms[PIXEL_NORM].running_mean[0]
        torch.testing.assert_close(row * std + mean, torch.tensor(OWN["mean"]))


def assert_pixels_answer_as_numbers(bundle: Path, net: DomainNet, config: RunConfig) -> None:
    """Raw pixels, normalised in the graph, against what torch gives for normalised numbers."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
    numbers = (pixels / 255 - config.input.mean) / config.input.std
    images = np.ascontiguousarray(numbers.transpose(0, 3, 1, 2), np.float32)
    for precision, given in (("fp32", images), ("fp32-uint8", pixels)):
        with load(bundle, "cpu", precision=precision, threads=1) as model:  # type: ignore[arg-type]
            for rows in ([0, 1, 1, 0, 1, 0], [0] * 6, [1] * 6):  # mixed, and of one domain
                with torch.no_grad():
                    expected = net.eval().logits(torch.from_numpy(images), torch.tensor(rows))
                found = model.logits(given, np.array(rows, np.int64))
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_both_or_neither() -> None:
    paths = {"train": ("a",), "test": ("b",)}
    with pytest.raises(ConfigError, match=r"\[domains.x\] std is missing, and mean is given"):
        DomainConfig("x", **paths, mean=OWN["mean"])
    with pytest.raises(ConfigError, match=r"\[domains.x\] std"):
        DomainConfig("x", **paths, mean=OWN["mean"], std=(0, 1, 1))
    domain = DomainConfig("x", **paths, **OWN)
    assert (domain.mean, domain.std) == tuple(OWN.values())
