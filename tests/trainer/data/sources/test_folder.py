"""What lies in class folders is read by its content, through links, or said to be passed over."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import DataError
from prunion.runtime.images.sources.folder import open_folder
from prunion.trainer.config import DomainConfig
from prunion.trainer.data import open_domain, open_domains
from tests.support.images import encoded, picture, pixels, write_folders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folders(tmp_path / "set", {"cats": 3, "dogs": 3})


def counts(root: Path) -> dict[str, int]:
    labels = open_folder(root).labels
    return {name: list(labels).count(name) for name in sorted(set(labels))}


def test_linked_folders_are_read(root: Path, tmp_path: Path) -> None:
    more = write_folders(tmp_path / "disk", {"more": 5}) / "more"
    (root / "cats" / "external").symlink_to(more)
    (root / "cats" / "again").symlink_to(more)
    (root / "birds").symlink_to(more)
    split = open_folder(root)
    assert counts(root) == {"birds": 5, "cats": 8, "dogs": 3}
    assert dict(split.skipped) == {"folder that a link leads back to": 1}


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_its_own_place_brings_in_nothing(root: Path, target: str) -> None:
    (root / "cats" / "round").symlink_to(target)
    assert counts(root) == {"cats": 3, "dogs": 3}
    assert open_folder(root).skipped["folder that a link leads back to"] == 1


@pytest.mark.parametrize("target", [".", "../set", ".."])
def test_a_class_that_links_back_is_none(root: Path, target: str) -> None:
    """It was a class of all the others' images."""
    (root / "loop").symlink_to(target)
    split = open_folder(root)
    assert split.skipped["folder that a link leads back to"] == 1
    assert counts(root) == {"cats": 3, "dogs": 3} and list(split.names or ()) == ["cats", "dogs"]


@pytest.mark.parametrize("place", ["loop", "cats/loop"])
def test_a_link_to_itself_is_named(root: Path, place: str) -> None:
    (root / place).symlink_to("loop")
    with pytest.raises(DataError, match=r"loop cannot be followed .*: mend the link"):
        open_folder(root)


def test_a_class_behind_a_broken_link_is_missed(root: Path) -> None:
    (root / "birds").symlink_to("/nowhere/birds")
    with pytest.raises(DataError, match=r"birds is a link to what is not there"):
        open_folder(root)


@pytest.mark.parametrize("name", ["external", "more.jpgs", "photo.heic", "old.bak"])
def test_images_behind_a_broken_link_are_missed(root: Path, name: str) -> None:
    """It was counted as a file, and what lies on the disk that is not there was not in the run."""
    (root / "cats" / "deep").mkdir()
    for place in (root / "cats", root / "cats" / "deep"):
        (place / name).symlink_to("/nowhere/more")
        says = f"{re.escape(str(place / name))} is a link to what is not there, perhaps a folder"
        with pytest.raises(DataError, match=f"{says} of images: mend the link or remove it"):
            open_folder(root)
        (place / name).unlink()
    (root / "cats" / f".#{name}").symlink_to("me@here.1")  # an editor's lock
    assert open_folder(root).skipped["hidden (name begins with a dot)"] == 1


def test_what_a_system_keeps_beside_images_is_none_of_them(root: Path) -> None:
    before = len(open_folder(root).labels)
    for place in ("@eaDir/cats", "cats/@eaDir/0.png", "__MACOSX/cats"):
        (root / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / place / "THUMB_M.jpg")
    split = open_folder(root)
    assert len(split.labels) == before and "@eaDir" not in (split.names or ())
    assert split.skipped["folder that a system keeps beside images"] == 3


def test_images_are_known_by_their_content(root: Path) -> None:
    cats = root / "cats"
    for name in ("a.jfif", "b", "c.img", "d.jpg?size=large"):
        (cats / name).write_bytes(encoded(7, "JPEG"))
    for name in ("e.txt", "f.db", "g", "h.jpg~", "i.png.part"):
        (cats / name).write_bytes(b"words" if name[0] in "efg" else encoded(8))
    os.mkfifo(cats / "pipe.png")
    split = open_folder(root)
    assert counts(root) == {"cats": 7, "dogs": 3}
    assert dict(split.skipped) == {
        ".txt": 1,
        ".db": 1,
        "no image, without suffix": 1,
        "backup or unfinished download": 2,
        "no regular file": 1,
    }


def test_a_broken_image_is_named_whatever_spelling_its_suffix_has(root: Path) -> None:
    (root / "cats" / "broken.JFIF").write_bytes(b"x")
    with pytest.raises(DataError, match=r"broken\.JFIF cannot be read"):
        open_folder(root)


def test_every_file_that_is_passed_over_is_said(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "cats" / "notes.txt").write_text("x")
    (root / "dogs" / ".hidden.png").write_bytes(encoded(1))
    (root / "dogs" / ".thumbs").mkdir()
    (root / "loose.png").write_bytes(encoded(1))
    write_folders(root, {".net": 2})
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(3).save(root / "cats" / "phone.jpg", exif=exif)
    deep = np.full((20, 20), 40_000, np.uint16)
    Image.fromarray(deep).save(root / "cats" / "deep.png")
    picture(4).convert("RGBA").save(root / "cats" / "clear.png")
    with caplog.at_level(logging.INFO, "prunion"):
        (domain,) = open_domains([DomainConfig("pets", train=(str(root),), holdout=0.2)], 0)
    (line,) = caplog.messages
    assert line.startswith("domain pets: 2 classes, 7 training and 2 test images; skipped in train")
    for part in (
        "1 .txt",
        "2 hidden (name begins with a dot)",
        "1 outside the class folders",
        "1 class folder '.net', whose name begins with a dot",
        "1 turned by their EXIF orientation",
        "1 of 16 bits, scaled to 8",
        "1 with transparency, which is dropped",
    ):
        assert part in line, part
    assert domain.found["skipped"]["train"][".txt"] == 1


def test_only_folders_that_begin_with_a_dot_are_a_reason_given(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "set", {".net": 2})
    with pytest.raises(DataError, match=r"no class folders: .* begins with no dot .*'\.net'"):
        open_folder(root)


def test_a_run_s_orientation_reaches_its_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(3):
            picture(index).save(tmp_path / name / f"{index}.png", exif=exif)
    config = DomainConfig("d", train=(str(tmp_path),), test=(str(tmp_path),))
    turned = [picture(i).transpose(Image.Transpose.ROTATE_180).tobytes() for i in range(3)]
    stored = [picture(i).tobytes() for i in range(3)]
    assert pixels(open_domain(config, 0, "exif").train) == 2 * turned
    assert pixels(open_domain(config, 0, "exif").test) == 2 * turned
    assert pixels(open_domain(config, 0, "ignore").train) == 2 * stored
