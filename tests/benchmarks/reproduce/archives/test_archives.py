"""The benchmarks' archives are read as they are given away, and not trusted."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from prunion.benchmarks.reproduce.archives.decathlon import (
    MEAN_STD,
    open_decathlon,
    write_submission,
)
from prunion.benchmarks.reproduce.archives.images import BenchmarkImages, domain_config
from prunion.benchmarks.reproduce.archives.sketch import open_sketch
from prunion.benchmarks.reproduce.archives.unpack import unpack
from prunion.runtime.errors import DataError
from prunion.trainer.data import open_domain
from prunion.trainer.score import DECATHLON
from tests.benchmarks.reproduce.archives.small import coloured, write_decathlon, write_sketch
from tests.runtime.images.sources.test_tars import write_headers

PARTS = ("train", "val", "test")


def domains() -> dict[str, dict[str, dict[str, list[bytes]]]]:
    """Names that sort otherwise than they are numbered, and two that are the same."""
    named = {
        "imagenet12": ["n02", "n01"],
        "gtsrb": ["2", "10", "1"],
        "vgg-flowers": ["rose", "tulip"],
    }
    return {
        name: {part: coloured(classes, 3, seed) for seed, part in enumerate(PARTS)}
        for name, classes in named.items()
    }


def names(opened: list[BenchmarkImages]) -> list[str]:
    return [x.name for x in opened]


def test_archives_become_domains_with_the_annotations_labels(tmp_path: Path) -> None:
    given = domains()
    write_decathlon(tmp_path / "data", given)
    opened = open_decathlon(tmp_path / "data", tmp_path / "work")
    assert names(opened) == ["imagenet12", "gtsrb", "vgg-flowers"]
    signs = opened[1]
    assert signs.categories == {"2": 50000001, "10": 50000002, "1": 50000003}
    assert (signs.mirror, signs.crop, opened[2].mirror) == (False, False, True)
    domain = open_domain(domain_config(signs, final=False), 0)
    assert domain.classes == ("1", "10", "2")
    assert len(domain.train) == len(domain.test) == len(signs.unlabelled) == 9
    # The colours of the classes follow the annotations, not the names of folders.
    for index, label in enumerate(domain.train.labels.tolist()):
        red, green, blue = domain.train.image(index).resize((1, 1)).getpixel((0, 0))
        brightest = max((red, "2"), (green, "10"), (blue, "1"))[1]
        assert domain.classes[label] == brightest
    assert all(picture.label == "" for picture in signs.unlabelled)
    assert {d.name for d in DECATHLON.domains} == MEAN_STD.keys()


@pytest.mark.parametrize("place", ["decathlon-1.0/data", "decathlon-1.0", "data", ""])
def test_what_is_unpacked_is_used_where_it_lies(tmp_path: Path, place: str) -> None:
    write_decathlon(tmp_path / "data", domains())
    packed = open_decathlon(tmp_path / "data", tmp_path / "packed")
    root = tmp_path / "there"
    for archive, folder in (("devkit", root), ("data", root / place)):
        with tarfile.open(tmp_path / "data" / f"decathlon-1.0-{archive}.tar.gz") as tar:
            tar.extractall(folder, filter="data")
    for archive in (root / place).glob("*.tar"):
        with tarfile.open(archive) as tar:
            tar.extractall(archive.parent, filter="data")
        archive.unlink()
    opened = open_decathlon(root, tmp_path / "work")
    assert names(opened) == ["gtsrb", "vgg-flowers"]  # ImageNet's tar is not there
    assert opened[0].unlabelled[0].path.is_relative_to(root)
    # However they lie, they are the same images.
    signs = next(x for x in packed if x.name == "gtsrb")
    assert opened[0].listing == signs.listing
    assert not (tmp_path / "work" / "data").exists()


def test_test_labels_that_were_published_are_used(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "data", domains(), labels=True)
    signs = open_decathlon(tmp_path / "data", tmp_path / "work")[1]
    config = domain_config(signs, final=True)
    assert config.train == (*signs.train, *signs.val) and config.test == signs.test
    assert len(open_domain(config, 0).train) == 18


def test_a_few_images_are_of_the_same_classes(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "data", domains())
    signs = open_decathlon(tmp_path / "data", tmp_path / "work", limit=2)[1]
    rows = [json.loads(x) for x in Path(signs.train[0]).read_text("utf-8").splitlines()]
    assert [row["label"] for row in rows] == ["2", "10"]
    domain = open_domain(domain_config(signs, final=False), 0) if len(rows) > 3 else None
    assert domain is None and len(signs.unlabelled) == 2
    tested = Path(signs.val[0]).read_text("utf-8")
    assert '"1"' not in tested


def test_a_trial_leaves_the_tables_of_a_run_of_all_images_alone(tmp_path: Path) -> None:
    """It may read them meanwhile: it opens them when each of its rows begins."""
    write_decathlon(tmp_path / "data", domains())
    parts = {part: coloured(["b", "a"], 4, seed) for seed, part in enumerate(("train", "test"))}
    write_sketch(tmp_path / "sketch", {"flowers": parts})
    for opened in (open_decathlon, open_sketch):
        data = tmp_path / ("sketch" if opened is open_sketch else "data")
        limits = (3, 2) if opened is open_sketch else (0, 2)
        whole, few = (opened(data, tmp_path / data.name / "work", limit=x)[-1] for x in limits)
        tables = [Path(x.train[0]).read_text("utf-8").splitlines() for x in (whole, few)]
        assert len(tables[0]) > len(tables[1]) == 2


def test_a_submission_has_the_benchmarks_numbers(tmp_path: Path) -> None:
    truth = write_decathlon(tmp_path / "data", domains())
    opened = open_decathlon(tmp_path / "data", tmp_path / "work")
    answers = {x.name: ["10"] * len(x.unlabelled) for x in opened if x.name == "gtsrb"}
    assert write_submission(tmp_path / "results.json", answers, opened) == 9
    rows = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert {row["image_id"] for row in rows} == truth["gtsrb"].keys()
    assert all(row == {"image_id": row["image_id"], "category_id": 50000002} for row in rows)


def annotations(folder: Path) -> Path:
    """The kit unpacked, to be damaged."""
    with tarfile.open(folder / "decathlon-1.0-devkit.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "decathlon-1.0" / "annotations"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda v: v["images"][0].update(file_name="data/gtsrb/../../x.jpg"),
            "is not in data/gtsrb",
        ),
        (lambda v: v["images"][0].update(file_name="/etc/passwd"), "is not in data/gtsrb"),
        (lambda v: v["images"][0].update(file_name="data/svhn/x.jpg"), "is not in data/gtsrb"),
        (lambda v: v["images"][0].update(id=v["images"][1]["id"]), "two images have one id|pair"),
        (lambda v: v["annotations"].pop(), "do not pair"),
        (lambda v: v["annotations"][0].update(category_id=7), "a category that is not in its list"),
        (lambda v: v["images"][0].update(id="one"), "no annotation file of the Decathlon"),
        (lambda v: v.update(images=[], annotations=[]), "gtsrb_train.json has no images"),
        (lambda v: v.pop("images"), "no annotation file of the Decathlon"),
        (lambda v: v["images"][0].update(file_name="data/gtsrb/train/none.jpg"), "are missing in"),
    ],
)
def test_damaged_annotations_are_refused(tmp_path: Path, change: object, said: str) -> None:
    write_decathlon(tmp_path, {"gtsrb": domains()["gtsrb"]})
    file = annotations(tmp_path) / "gtsrb_train.json"
    value = json.loads(file.read_text("utf-8"))
    change(value)  # type: ignore[operator]
    file.write_text(json.dumps(value), "utf-8")
    with pytest.raises(DataError, match=said) as caught:
        open_decathlon(tmp_path, tmp_path / "work")
    assert "\n" not in str(caught.value)


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def link(name: str, to: str, kind: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member, b""


def test_an_archive_writes_nothing_but_what_is_wanted(tmp_path: Path) -> None:
    place = tmp_path / "out" / "a.jpg"
    hostile = tar_of(
        tmp_path / "x.tar",
        (tarfile.TarInfo("../outside.jpg"), b"x"),
        (tarfile.TarInfo(str(tmp_path / "absolute.jpg")), b"x"),
        link("d", "/", tarfile.SYMTYPE),
        (tarfile.TarInfo("d/a.jpg"), b"not this"),
        (tarfile.TarInfo("./a.jpg"), b"image"),
    )
    assert unpack([hostile], {"a.jpg": place}, 100) == {"a.jpg"}
    assert place.read_bytes() == b"image"
    assert sorted(x.name for x in tmp_path.iterdir()) == ["out", "x.tar"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_a_wanted_image_that_is_no_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    hostile = tar_of(tmp_path / "x.tar", link("a.jpg", "/etc/passwd", kind))
    with pytest.raises(DataError, match="is no plain file"):
        unpack([hostile], {"a.jpg": tmp_path / "out" / "a.jpg"}, 100)
    assert not (tmp_path / "out").exists()


def test_a_large_member_and_a_torn_archive_are_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", (tarfile.TarInfo("a.jpg"), b"x" * 5000))
    with pytest.raises(DataError, match="has 5,000 bytes, over 100"):
        unpack([archive], {"a.jpg": tmp_path / "a.jpg"}, 100)
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"x\.tar cannot be read .*download it again"):
        unpack([archive], {"a.jpg": tmp_path / "a.jpg"}, 10_000)
    assert [x.name for x in tmp_path.iterdir() if x.suffix == ".jpg"] == []
    with pytest.raises(DataError, match="leads out of its folder"):
        unpack([], {"../a.jpg": tmp_path / "a.jpg"}, 100)


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        (tarfile.GNUTYPE_LONGNAME, 400 << 10, "a header of over 1 MiB"),
        (tarfile.XHDTYPE, 400 << 10, "a header of over 1 MiB"),
        (tarfile.XGLTYPE, 40 << 10, "notes on all files of over 64 KiB"),
    ],
)
def test_headers_that_together_would_fill_memory_are_refused(
    tmp_path: Path, kind: bytes, size: int, said: str
) -> None:
    write_headers(tmp_path / "x.tar", [(kind, size)] * 3)
    with pytest.raises(DataError, match=said):
        unpack([tmp_path / "x.tar"], {"a.jpg": tmp_path / "a.jpg"}, 10 << 20)


def test_a_map_of_holes_does_not_fill_memory(tmp_path: Path) -> None:
    """In pax's newest form it is part of the file, as long as the file says."""
    path, data = tmp_path / "x.tar", b"999999999\n" + b"0\n" * (1 << 20)
    about = tarfile.TarInfo("a.jpg")
    about.size = len(data)
    about.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(about, io.BytesIO(data))
    with pytest.raises(DataError, match="header of over 1 MiB"):
        unpack([path], {"a.jpg": tmp_path / "a.jpg"}, 10 << 20)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_fill_memory_is_refused(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("a.jpg")
    member.type = kind
    archive = tar_of(tmp_path / "x.tar", (member, b"x" * (2 << 20)))
    with pytest.raises(DataError, match="a header of over 1 MiB"):
        unpack([archive], {"a.jpg": tmp_path / "a.jpg"}, 10 << 20)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither annotations/ nor decathlon-1\.0-devkit\.tar\.gz"):
        open_decathlon(tmp_path, tmp_path / "work")
    write_decathlon(tmp_path, domains())
    (tmp_path / "decathlon-1.0-data.tar.gz").unlink()
    (tmp_path / "decathlon-1.0-data-imagenet.tar").unlink()
    with pytest.raises(DataError, match="holds annotations, but no images"):
        open_decathlon(tmp_path, tmp_path / "work")


def test_folders_of_imagenet_to_sketch(tmp_path: Path) -> None:
    parts = {part: coloured(["b", "a"], 4, seed) for seed, part in enumerate(("train", "test"))}
    write_sketch(tmp_path, {"flowers": parts, "cubs_cropped": parts})
    opened = open_sketch(tmp_path, tmp_path / "work")
    assert names(opened) == ["cubs", "flowers"]
    assert [(x.crop, x.rescale) for x in opened] == [(False, 0.0), (True, 0.08)]
    config = domain_config(opened[1], final=False)
    assert config.test == (str(tmp_path / "flowers" / "test"),)
    # Nothing else is measured on, so it never trains.
    assert domain_config(opened[1], final=True).train == config.train
    assert config.augment is not None and config.augment.rescale == 0.08
    assert len(open_domain(config, 0).train) == 8
    few = open_sketch(tmp_path, tmp_path / "work", limit=4)[1]
    assert len(open_domain(domain_config(few, final=False), 0).train) == 4
    # What a run passes over is in no table, nor does it make other images of them.
    listing = opened[1].listing
    for name in ("._0000.jpg", "0000.jpg.part", "notes.txt"):
        (tmp_path / "flowers" / "train" / "a" / name).write_bytes(b"no image")
    (tmp_path / "flowers" / "train" / ".hidden").mkdir()
    (tmp_path / "flowers" / "train" / "a" / "PHOTO").write_bytes(parts["train"]["a"][0])
    few = open_sketch(tmp_path, tmp_path / "work", limit=9)[1]
    assert len(open_domain(domain_config(few, final=False), 0).train) == 9
    (tmp_path / "flowers" / "train" / "a" / "PHOTO").unlink()
    assert open_sketch(tmp_path, tmp_path / "work")[1].listing == listing
    (tmp_path / "cubs").mkdir()
    with pytest.raises(DataError, match="holds cubs and cubs_cropped, which are one domain"):
        open_sketch(tmp_path, tmp_path / "work")
    (tmp_path / "cubs").rmdir()
    (tmp_path / "cubs").symlink_to(tmp_path / "cubs_cropped")
    assert names(open_sketch(tmp_path, tmp_path / "work")) == ["cubs", "flowers"]
    shutil.rmtree(tmp_path / "flowers" / "test")
    with pytest.raises(DataError, match="holds no train/ and test/"):
        open_sketch(tmp_path, tmp_path / "work")
