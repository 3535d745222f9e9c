"""Domains that a library knows by name."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.errors import ConfigError, DataError
from prunion.trainer.config import DomainConfig
from prunion.trainer.config.file import absolute_paths
from prunion.trainer.data import open_domain
from tests.trainer.images import picture, pixels, write_parquet

NAMES = ["tench", "rose"]


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
    with pytest.raises(ConfigError, match="'FakeData' has no training and test split: write"):
        open_domain(named("FakeData", tmp_path), 0)
    with pytest.raises(DataError, match=r"CIFAR10 is not in .*\[domains.d\] root, or set download"):
        open_domain(named("CIFAR10", tmp_path), 0)


@pytest.mark.parametrize("splits", [True, False])
def test_huggingface_opens_what_was_saved_to_disk(tmp_path: Path, splits: bool) -> None:
    """By a path that counts from the run file, with columns named."""
    datasets = pytest.importorskip("datasets", reason="prunion[huggingface] is optional")
    kinds = {
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=NAMES),
        "id": datasets.Value("int64"),
    }
    rows = {"picture": [picture(i) for i in range(8)], "kind": [1, 0] * 4, "id": [*range(8)]}
    saved = datasets.Dataset.from_dict(rows, datasets.Features(kinds), split="train")
    held: dict[str, object] = {"holdout": 0.5}
    if splits:
        saved, held = datasets.DatasetDict({"train": saved, "test": saved}), {}
    saved.save_to_disk(tmp_path / "saved")
    table = {"source": "huggingface", "name": "saved", "image_column": "picture", **held}
    tables = {"domains": {"d": {**table, "label_column": "kind"}}}
    absolute_paths(tables, tmp_path)
    table = tables["domains"]["d"]
    config = DomainConfig("d", dataset=table.pop("name"), **table)
    domain = open_domain(config, 0)
    assert domain.classes == ("tench", "rose")
    assert len(domain.train) == (8 if splits else 4)
    if splits:
        assert pixels(domain.test) == [picture(index).tobytes() for index in range(8)]
    wrong = replace(config, train_split="all")
    with pytest.raises(DataError, match=r"cannot load .*split all \(.*splits? train"):
        open_domain(wrong, 0)


def test_other_images_saved_under_the_same_labels_are_told_apart(tmp_path: Path) -> None:
    """Labels were all that was looked at."""
    datasets = pytest.importorskip("datasets", reason="prunion[huggingface] is optional")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    digests = []
    for number, first in enumerate((0, 0, 8)):
        images = [picture(first + i) for i in range(8)]
        rows = {"image": images, "label": [1, 0] * 4}
        saved = datasets.Dataset.from_dict(rows, datasets.Features(kinds), split="train")
        saved.save_to_disk(tmp_path / str(number))
        place = str(tmp_path / str(number))
        config = DomainConfig("d", source="huggingface", dataset=place, holdout=0.5)
        domain = open_domain(config, 0)
        digests.append((domain.train.digest, domain.test.digest))
    assert digests[0] == digests[1]
    assert digests[0][0] != digests[2][0] and digests[0][1] != digests[2][1]


def test_huggingface_opens_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="prunion[huggingface] is optional")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = tmp_path / "hub"
    hub.mkdir()
    write_parquet(hub / "train.parquet", [1, 0, 1, 0], NAMES)
    write_parquet(hub / "test.parquet", [1], NAMES)
    config = DomainConfig("d", source="huggingface", dataset=str(hub))
    domain = open_domain(config, 0)
    assert domain.classes == ("tench", "rose")
    assert domain.train.labels.tolist() == [1, 0, 1, 0]
    assert pixels(domain.train) == [picture(index).tobytes() for index in range(4)]
    missing = DomainConfig("d", source="huggingface", dataset=str(hub), test_split="validation")
    with pytest.raises(DataError, match=r"\[domains.d\] cannot load .*split validation"):
        open_domain(missing, 0)
