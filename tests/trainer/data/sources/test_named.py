"""Domains that torchvision knows by name."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.errors import ConfigError, DataError
from prunion.trainer.config import DomainConfig
from prunion.trainer.data import open_domain
from tests.support.images import picture


def write_mnist(root: Path, count: int) -> None:
    """MNIST's own files, with `count` small digits."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        grey = bytes(28 * 28 * count)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + grey
        )
        labels = bytes(index % 10 for index in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)


def named(dataset: str, root: Path, **options: Any) -> DomainConfig:
    return DomainConfig("d", source="torchvision", dataset=dataset, root=str(root), **options)


def test_torchvision_opens_by_name_with_a_train_flag(tmp_path: Path) -> None:
    write_mnist(tmp_path, 30)
    domain = open_domain(named("MNIST", tmp_path), 0)
    assert domain.classes[:2] == ("0 - zero", "1 - one")
    assert len(domain.train) == len(domain.test) == 30
    assert (domain.train.image(3).mode, domain.train.image(3).size) == ("RGB", (28, 28))


def test_torchvision_opens_by_name_with_a_split(tmp_path: Path) -> None:
    base = tmp_path / "gtsrb"
    for label in range(2):
        folder = base / "GTSRB" / "Training" / f"{label:05}"
        folder.mkdir(parents=True)
        for index in range(4):
            picture(index).save(folder / f"{index}.ppm")
    images = base / "GTSRB" / "Final_Test" / "Images"
    images.mkdir(parents=True)
    picture(9).save(images / "00000.ppm")
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;1\n")
    domain = open_domain(named("GTSRB", tmp_path), 0)
    assert domain.train.labels.tolist() == [0] * 4 + [1] * 4
    assert domain.test.labels.tolist() == [1]
    with pytest.raises(ConfigError, match=r"\[domains.d\] cannot open GTSRB: .*split"):
        open_domain(named("GTSRB", tmp_path, test_split="validation"), 0)


def test_torchvision_refusals_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'CIFAR11' is not in torchvision.*mean 'CIFAR10'"):
        open_domain(named("CIFAR11", tmp_path), 0)
    told = r"'PhotoTour' takes more than a run file can say \(.*'name'\): hand it over from Python"
    with pytest.raises(ConfigError, match=told):
        open_domain(named("PhotoTour", tmp_path), 0)
    # Its `split` says which of six sets, and both parts of each come by another option.
    with pytest.raises(ConfigError, match="'EMNIST' takes the part by an option"):
        open_domain(named("EMNIST", tmp_path, train_split="digits", test_split="mnist"), 0)
    with pytest.raises(ConfigError, match="'FakeData' has no training and test split: write"):
        open_domain(named("FakeData", tmp_path), 0)
    with pytest.raises(DataError, match=r"CIFAR10 is not in .*\[domains.d\] root, or set download"):
        open_domain(named("CIFAR10", tmp_path), 0)


def test_one_split_is_not_two_parts(tmp_path: Path) -> None:
    for options, held in (
        ({"test_split": "train"}, "holdout = 0.2"),
        ({"validation_split": "test"}, "validation_holdout = 0.1"),
        ({"validation_split": "train", "holdout": 0.2}, "validation_holdout = 0.1"),
    ):
        for source in ("torchvision", "huggingface"):
            config = replace(named("GTSRB", tmp_path, **options), source=source, root="data")
            with pytest.raises(ConfigError, match=rf"and so is .*_split: .* set {held}"):
                open_domain(config, 0)
    held_out = named("GTSRB", tmp_path, train_split="test", holdout=0.2)  # which has no use for it
    with pytest.raises(DataError, match="GTSRB is not in"):
        open_domain(held_out, 0)


def test_whatever_a_torchvision_set_raises_is_told_with_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path, 30)

    def broken(self: object, index: int) -> object:
        raise KeyError("no such image")

    domain = open_domain(named("MNIST", tmp_path), 0)
    monkeypatch.setattr("torchvision.datasets.MNIST.__getitem__", broken)
    with pytest.raises(DataError, match=r"image 3 of MNIST in .* cannot be read \(.*fetch"):
        domain.train.image(3)
    monkeypatch.setattr("prunion.trainer.data.sources.named.kept_labels", lambda dataset: None)
    with pytest.raises(DataError, match=r"image 0 of MNIST in .* cannot be read \(.*fetch"):
        open_domain(named("MNIST", tmp_path), 0)


def test_a_split_that_is_named_is_used(tmp_path: Path) -> None:
    write_mnist(tmp_path, 30)
    for options in ({"train_split": "extra"}, {"train_split": "test", "test_split": "train"}):
        with pytest.raises(
            ConfigError, match=r"train_split is '.*', and MNIST has the parts 'train'"
        ):
            open_domain(named("MNIST", tmp_path, **options), 0)
    for source in ("torchvision", "huggingface"):
        both = named("MNIST", tmp_path, test_split="validation", holdout=0.2)
        with pytest.raises(ConfigError, match=r"holdout is .*, but test_split is 'validation' too"):
            open_domain(replace(both, source=source, root="data"), 0)
