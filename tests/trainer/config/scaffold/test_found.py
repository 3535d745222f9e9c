"""Which folders `prunion init` takes for domains and for their parts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from prunion.runtime.errors import DataError
from prunion.trainer.config import domain_parts, found_domains, load_config, run_file_text


def folders(data: Path, *classes: str, name: str = "1.png") -> Path:
    """Class folders of one image each, such as `train/steam`."""
    for inner in classes:
        (data / inner).mkdir(parents=True)
        (data / inner / name).touch()
    return data


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("Train", "Test"),
        ("TRAIN", "val"),
        ("train_images", "test_images"),
        ("train", "dev"),
        ("training-set", "Valid"),
        ("train", "eval"),
        ("Train", "Evaluation_set"),
    ],
)
def test_parts_are_known_however_they_are_spelled(tmp_path: Path, train: str, test: str) -> None:
    """As two domains the test images would be trained on."""
    data = folders(tmp_path / "x", f"{train}/a", f"{train}/b", f"{test}/a", f"{test}/b")
    assert found_domains(data) == {"x": {"train": data / train, "test": data / test}}


def test_images_of_a_part_may_lie_deeper_as_training_reads_them(tmp_path: Path) -> None:
    deep = [f"{part}/{name}/day/1" for part in ("train", "test") for name in "ab"]
    data = folders(tmp_path / "x", *deep)
    parts = {"train": data / "train", "test": data / "test"}
    assert found_domains(data) == found_domains(tmp_path) == {"x": parts}
    with pytest.raises(DataError, match="deeper, name the domains in a run file by hand"):
        found_domains(folders(tmp_path / "y", "cars/audi/day", "planes/jet/day"))


@pytest.mark.parametrize("name", ["test.csv", "val.jsonl", "Test_images.zip"])
def test_a_file_called_like_test_images_is_not_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A part of the training images was held out in its place."""
    caplog.set_level(logging.INFO)
    data = folders(tmp_path / "x", "train/a", "train/b")
    (data / name).touch()
    with pytest.raises(DataError, match=f"{name} lies beside .*train and is not read for itself"):
        domain_parts(data)
    assert found_domains(data) == {"x": {"train": data / "train"}}
    assert f"{data / name} is left out: it is no Parquet file or shard" in caplog.text
    (data / "test" / "a").mkdir(parents=True)
    (data / "test" / "a" / "1.png").touch()
    assert domain_parts(data) == {"train": data / "train", "test": data / "test"}


def test_a_domain_called_train_is_no_part(tmp_path: Path) -> None:
    data = folders(tmp_path / "x", "train/steam", "train/diesel", "cars/audi", "planes/jet")
    with pytest.raises(DataError, match=r"train is either the training images of one domain, or"):
        found_domains(data)


def test_what_is_left_out_of_a_domain_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    classes = ("train/a", "train/b", "test/a", "val/a", "valid/a", "extra/a")
    data = folders(tmp_path / "x", *classes)
    (data / "docs").mkdir()
    (data / "test.txt").touch()
    parts = {"train": data / "train", "test": data / "test", "validation": data / "val"}
    assert found_domains(data.parent) == {"x": parts}
    assert [message.partition("/x/")[2] for message in caplog.messages] == [
        "docs is left out: it holds no images in class folders",
        "extra is left out: its name is no part's",
        "valid is left out: a domain has one part of its kind",
    ]


def test_an_unlabelled_test_folder_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = folders(tmp_path / "x", "train/a", "train/b", "test")
    assert found_domains(data) == {"x": {"train": data / "train"}}
    assert "test is left out: it holds no images in class folders" in caplog.text


def test_every_image_that_training_reads_counts(tmp_path: Path) -> None:
    data = folders(tmp_path / "x", "dom/a", "dom/b", name="1.jfif")
    assert found_domains(data) == {"dom": {"train": data / "dom"}}


def test_a_class_may_hold_folders(tmp_path: Path) -> None:
    data = folders(tmp_path / "x", "a", "b", "a/more")
    assert found_domains(data) == {"x": {"train": data}}


def test_links_keep_their_names(tmp_path: Path) -> None:
    """A cache's files are called by their content, and say not what they are."""
    (tmp_path / "blobs").mkdir()
    data = tmp_path / "x"
    data.mkdir()
    for part in ("train", "test"):
        (tmp_path / "blobs" / f"{part}0").touch()
        (data / f"{part}.parquet").symlink_to(tmp_path / "blobs" / f"{part}0")
    file = tmp_path / "run.toml"
    file.write_text(run_file_text(data, file, found_domains(data)), "utf-8")
    (domain,) = load_config(file).domains
    assert domain.train == (str(data / "train.parquet"),)
    assert domain.test == (str(data / "test.parquet"),)


def test_an_image_beside_parts_is_noted_and_the_domain_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = tmp_path / "data"
    a = folders(data / "A", "train/x", "train/y", "test/x", "test/y")
    (a / "preview.png").touch()
    assert found_domains(data) == {"A": {"train": a / "train", "test": a / "test"}}
    assert f"{a / 'preview.png'} is left out: it lies in no class folder" in caplog.text


def test_domains_that_are_taken_for_classes_are_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A loose image makes a folder a class, and so does a split that lies above the domains."""
    caplog.set_level(logging.INFO)
    data = folders(tmp_path / "covers", "A/x", "A/y", "B/x", "B/y")
    for name in "AB":
        (data / name / "cover.png").touch()
    assert found_domains(data) == {"covers": {"train": data}}
    assert f"{data / 'A'} is taken for a class, with what lies in {data / 'A' / 'x'}" in caplog.text
    deep = [f"{part}/{name}/{x}" for part in ("train", "test") for name in "ab" for x in "cd"]
    data = folders(tmp_path / "split", *deep)
    assert list(found_domains(data)) == ["split"]
    assert f"{data / 'train'} is taken for folders of classes" in caplog.text
    assert "give DATA/DOMAIN/train/CLASS" in caplog.text


@pytest.mark.parametrize("name", ["B.tar", "C.parquet", "D.zip", "E.csv", "loose.png"])
def test_files_beside_domains_are_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.INFO)
    data = folders(tmp_path / "data", "A/x", "A/y")
    (data / name).touch()
    (data / "README.md").touch()
    assert found_domains(data) == {"A": {"train": data / "A"}}
    assert [x.getMessage().split(" is left out")[0] for x in caplog.records] == [str(data / name)]


def test_more_shards_of_a_part_and_links_to_nothing_are_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    data = tmp_path / "data"
    (data / "A").mkdir(parents=True)
    for name in ("train.tar", "train_2.tar", "test.tar", "labels.txt"):
        (data / "A" / name).touch()
    (data / "B").symlink_to(tmp_path / "nowhere")
    parts = {"train": data / "A" / "train.tar", "test": data / "A" / "test.tar"}
    assert found_domains(data) == {"A": parts}
    assert [x.getMessage() for x in caplog.records] == [
        f"{data / 'B'} is left out: it is a link to what is not there",
        f"{data / 'A' / 'train_2.tar'} is left out: its name is no part's",
    ]


def test_a_domain_that_is_reached_twice_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders(tmp_path / "data", "ok/a", "ok/b", "other/a", "other/b")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "data" / "ok")
    folders(tmp_path / "far", "a", "b")
    (tmp_path / "data" / "far").symlink_to(tmp_path / "far")
    with caplog.at_level(logging.INFO, "prunion"):
        assert list(found_domains(tmp_path / "data")) == ["far", "ok", "other"]
    (told,) = caplog.messages
    assert "link is left out: it leads to" in told and told.endswith(
        "ok, which is a domain already"
    )


def test_parts_without_classes_are_no_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A table labels images that lie in `train` and `test`; these folders are no two classes."""
    caplog.set_level(logging.INFO)
    data = folders(tmp_path / "data", "A/x", "A/y", "B/img/train", "B/img/test")
    (data / "B" / "train.csv").touch()
    with pytest.raises(DataError, match=rf'in a run file it is train = "{data / "B/train.csv"}"'):
        found_domains(data / "B")
    with pytest.raises(DataError, match="holds no images in class folders"):
        found_domains(data / "B" / "img")
    assert found_domains(data) == {"A": {"train": data / "A"}}
    folders(tmp_path / "steam", "train", "test", "diesel")
    assert list(found_domains(tmp_path / "steam")) == ["steam"]


def test_layouts_of_hugging_face_are_told_how_a_run_file_names_them(tmp_path: Path) -> None:
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "saved").mkdir()
    for name in ("hub/data/test-00000-of-00001.parquet", "hub/data/train-00000-of-00001.parquet"):
        (tmp_path / name).touch()
    (tmp_path / "saved" / "dataset_dict.json").touch()
    for place in (tmp_path / "hub", tmp_path / "hub" / "data"):
        with pytest.raises(DataError, match=r'train = ".*/hub/data/train-\*\.parquet"'):
            found_domains(place)
    with pytest.raises(DataError, match=r'source = "huggingface", name = ".*/saved"'):
        found_domains(tmp_path / "saved")
