"""Domains of the Hugging Face hub, and those that its library saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.errors import DataError
from prunion.trainer.config import DomainConfig
from prunion.trainer.config.file import absolute_paths
from prunion.trainer.data import open_domain
from tests.support.images import encoded, picture, pixels, write_parquet

datasets = pytest.importorskip("datasets", reason="prunion[huggingface] is optional")

NAMES = ["tench", "rose"]


def rows(first: int = 0, images: Sequence[Any] = (), split: str | None = None) -> Any:
    """A set of eight pictures from number `first` on, or of `images`."""
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    columns = {"image": images or [picture(first + i) for i in range(8)], "label": [1, 0] * 4}
    return datasets.Dataset.from_dict(columns, datasets.Features(kinds), split=split)


def saved(dataset: Any, place: Path, **options: Any) -> DomainConfig:
    dataset.save_to_disk(place)
    return DomainConfig("d", source="huggingface", dataset=str(place), **options)


@pytest.mark.parametrize("splits", [True, False])
def test_huggingface_opens_what_was_saved_to_disk(tmp_path: Path, splits: bool) -> None:
    """By a path that counts from the run file, with columns named."""
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


@pytest.mark.parametrize("split", [None, "train"])
def test_one_saved_set_is_not_test_images_too(tmp_path: Path, split: str | None) -> None:
    """A set without a name answered for whatever split it was asked for."""
    config = saved(rows(split=split), tmp_path / "saved")
    with pytest.raises(DataError, match=r"is one set, the split train, .*set holdout = 0\.2"):
        open_domain(config, 0)
    held = replace(config, holdout=0.5)
    assert len(open_domain(held, 0).train) == len(open_domain(held, 0).test) == 4
    watched = replace(held, validation_split="validation")
    with pytest.raises(DataError, match=r"is one set, .*set validation_holdout = 0\.1"):
        open_domain(watched, 0)


def test_test_images_that_are_training_images_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = rows(), rows(6)
    both = saved(datasets.DatasetDict({"train": train, "test": test}), tmp_path / "saved")
    assert open_domain(both, 0).found["remarks"] == [
        "2 of 8 test images are training images too: the accuracy says less of new ones"
    ]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    write_parquet(tmp_path / "hub" / "train.parquet", [1, 0] * 4, NAMES)
    config = DomainConfig("d", source="huggingface", dataset=str(tmp_path / "hub"))
    (told,) = open_domain(replace(config, test_split="train[:50%]"), 0).found["remarks"]
    assert told.startswith("4 of 4 test images are training images too")


@pytest.mark.parametrize("cell", [None, {"bytes": b"", "path": None}])
def test_a_row_without_an_image_is_named(tmp_path: Path, cell: object) -> None:
    """It was met in the middle of the run, by a TypeError."""
    images = [{"bytes": encoded(i), "path": None} for i in range(7)]
    splits = {"train": rows(images=[images[0], cell, *images[1:]]), "test": rows(8)}
    config = saved(datasets.DatasetDict(splits), tmp_path / "saved")
    with pytest.raises(DataError, match="saved, split train, row 1 has no image: remove the row"):
        open_domain(config, 0)


def test_an_image_that_cannot_be_read_is_named_when_it_is_opened(tmp_path: Path) -> None:
    images = [{"bytes": encoded(i), "path": None} for i in range(8)]
    images[5] = {"bytes": b"GIF", "path": None}
    config = saved(
        datasets.DatasetDict({"train": rows(images=images), "test": rows(8)}), tmp_path / "saved"
    )
    with pytest.raises(DataError, match="split train, row 5 cannot be read"):
        open_domain(config, 0)


def test_a_format_that_was_set_for_another_program_is_not_used(tmp_path: Path) -> None:
    splits = {"train": rows().with_format("numpy"), "test": rows(8)}
    domain = open_domain(saved(datasets.DatasetDict(splits), tmp_path / "saved"), 0)
    assert pixels(domain.train) == [picture(index).tobytes() for index in range(8)]


def hub_of(place: Path, columns: dict[str, Any], **options: Any) -> DomainConfig:
    """A folder with one Parquet file, in whose schema nobody calls anything images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place.mkdir()
    pq.write_table(pa.table({**columns, "label": [1, 0] * 4}), place / "train.parquet")
    pq.write_table(pa.table({**columns, "label": [1, 0] * 4}), place / "test.parquet")
    return DomainConfig("d", source="huggingface", dataset=str(place), **options)


FILES = [encoded(index) for index in range(8)]


@pytest.mark.parametrize("named", [{}, {"image_column": "image"}])
@pytest.mark.parametrize("kind", ["bytes", "large", "bytes and path", "bytes in a struct"])
def test_images_that_nobody_calls_so_are_read_as_parquet_s_are(
    tmp_path: Path, kind: str, named: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice was to name the column, and then that it is none of ()."""
    import pyarrow as pa

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cells: dict[str, Any] = {
        "bytes": FILES,
        "large": pa.array(FILES, pa.large_binary()),
        "bytes and path": [{"bytes": file, "path": "a.png"} for file in FILES],
        "bytes in a struct": [{"bytes": file} for file in FILES],
    }
    columns = {"mask": FILES[::-1], "image": cells[kind]}
    domain = open_domain(hub_of(tmp_path / "hub", columns, label_column="label", **named), 0)
    assert pixels(domain.train) == [picture(index).tobytes() for index in range(8)]
    assert domain.classes == ("0", "1")


def test_what_to_do_about_a_set_without_images_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    config = hub_of(tmp_path / "hub", {"image": ["a.png"] * 8}, label_column="label")
    with pytest.raises(DataError, match=r"no column of images among image, label: cast the column"):
        open_domain(config, 0)
    with pytest.raises(DataError, match="which is no column of images but Value: cast the column"):
        open_domain(replace(config, image_column="image"), 0)
    two = hub_of(tmp_path / "two", {"a": FILES, "b": FILES}, label_column="label")
    with pytest.raises(DataError, match="has 2 image and 1 class columns among a, b, label: name"):
        open_domain(two, 0)
    assert len(open_domain(replace(two, image_column="b"), 0).train) == 8
    with pytest.raises(DataError, match=r"but Value: name one that is \(a, b\)"):
        open_domain(replace(two, image_column="label"), 0)


def test_of_several_columns_of_images_none_is_taken_unasked(tmp_path: Path) -> None:
    def of(*names: str) -> Any:
        pictures = {name: [picture(9 * k + i) for i in range(8)] for k, name in enumerate(names)}
        kinds = {name: datasets.Image() for name in names}
        features = datasets.Features({**kinds, "label": datasets.ClassLabel(names=NAMES)})
        return datasets.Dataset.from_dict({**pictures, "label": [1, 0] * 4}, features)

    two = saved(of("mask", "photo"), tmp_path / "two", holdout=0.5)
    with pytest.raises(DataError, match="has 2 image and 1 class columns among mask, photo, label"):
        open_domain(two, 0)
    photo = open_domain(replace(two, image_column="photo"), 0)
    usual = open_domain(saved(of("mask", "image"), tmp_path / "usual", holdout=0.5), 0)
    assert pixels(usual.train) == pixels(photo.train)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}])
def test_a_row_without_bytes_is_named(
    tmp_path: Path, cell: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    cells = [{"bytes": file, "path": "a.png"} for file in FILES[1:]]
    config = hub_of(tmp_path / "hub", {"image": [cell, *cells]}, label_column="label")
    with pytest.raises(DataError, match="split train, row 0 has no image: remove the row"):
        open_domain(config, 0)
