"""`prunion predict` and `prunion inspect`."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.bundle import open_bundle, write_pack
from prunion.runtime.cli import evaluation
from prunion.runtime.errors import BundleError
from prunion.runtime.model import Model
from tests.runtime.cli.command_line import invoke, one_error_line


def test_predict_prints_a_line_for_each_image(bundle_path: Path, picture: Path) -> None:
    result = invoke("predict", bundle_path, "--domain", "signs", picture, picture, "--top", 2)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{picture}: ")
    assert lines[0].count("%") == 2


def test_predict_json(bundle_path: Path, picture: Path) -> None:
    result = invoke("predict", bundle_path, "-d", "digits", picture, "--json")
    (row,) = json.loads(result.stdout)
    assert row["image"] == str(picture)
    assert row["domain"] == "digits"
    assert row["class_name"] in {"zero", "one"}
    assert {c["name"] for c in row["top"]} == {"zero", "one"}


def test_an_image_that_cannot_be_read_costs_the_others_nothing(
    bundle_path: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BETWEEN_LINES", -1.0)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    arguments = ("predict", bundle_path, "-d", "signs", picture, broken, picture)
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [str(picture)] * 2
    assert str(broken) in result.stderr and len(result.stderr.splitlines()) == 1
    told = invoke(*arguments, "--json")
    assert told.exit_code == 1
    begins = [line.split(":")[0] for line in told.stderr.splitlines()]
    assert begins == ["1 of 3 images", "2 of 3 images", "3 of 3 images", "error"], "not in the bar"
    rows = json.loads(told.stdout)
    assert [sorted(row)[:2] for row in rows][1] == ["error", "image"]
    assert rows[0] == rows[2] != rows[1]


def test_predict_takes_folders_and_quoted_patterns(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos [2]"  # a folder's name is no pattern
    for name in ("b.png", "sub/a.png", "a.PNG", ".hidden.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture.read_bytes())
    (folder / "notes.txt").write_text("no image")

    def answered(*images: object) -> list[str]:
        result = invoke("predict", bundle_path, "-d", "signs", *images)
        assert result.exit_code == 0, result.stderr
        return [line.rsplit(": ", 1)[0] for line in result.stdout.splitlines()]

    below = [str(folder / name) for name in ("a.PNG", "b.png", "sub/a.png")]
    assert answered(folder) == below
    assert answered(picture, f"{folder}/*.png", folder) == [str(picture), below[1], *below]
    assert answered(f"{folder}/**/*.png") == below[1:]
    (tmp_path / "empty").mkdir()
    for nothing, why in ((f"{folder}/*.gif", "matches no file"), (tmp_path / "empty", "no image")):
        assert why in one_error_line(invoke("predict", bundle_path, "-d", "signs", nothing))


def test_predict_answers_for_images_behind_links(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    folder, disk = tmp_path / "photos", tmp_path / "disk"
    for name in (folder / "a.png", disk / "b.png", disk / "sub" / "c.png"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(picture.read_bytes())
    os.symlink(disk, folder / "more")
    os.symlink(folder, disk / "sub" / "back")  # would never end
    os.symlink(tmp_path, folder / "above")
    result = invoke("predict", bundle_path, "-d", "signs", folder)
    named = [line.rsplit(": ", 1)[0] for line in result.stdout.splitlines()]
    assert named == [str(folder / x) for x in ("a.png", "more/b.png", "more/sub/c.png")]
    for name in ("lost.png", "unplugged"):  # the latter may be a folder of images
        os.symlink(tmp_path / "nowhere", folder / name)
        result = invoke("predict", bundle_path, "-d", "signs", folder)
        assert result.exit_code == 1
        assert len(result.stdout.splitlines()) == 3
        assert f"{name} does not exist" in result.stderr
        os.unlink(folder / name)


def test_a_folder_above_a_link_is_answered_for_where_another_link_leads_to_it(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    """Passed over on the way back up, it counted as answered for, and its images were dropped."""
    folder, disk = tmp_path / "photos", tmp_path / "disk"
    for name in (disk / "a.png", disk / "sub" / "b.png"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(picture.read_bytes())
    (folder / "two").mkdir(parents=True)
    os.symlink(disk / "sub", folder / "one")
    os.symlink(disk, disk / "sub" / "up")
    os.symlink(disk, folder / "two" / "whole")
    result = invoke("predict", bundle_path, "-d", "signs", folder)
    named = [line.rsplit(": ", 1)[0] for line in result.stdout.splitlines()]
    assert named == [str(folder / x) for x in ("one/b.png", "two/whole/a.png")]


def test_a_quoted_pattern_drops_nothing_that_it_names(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    for name in (folder / "a.png", folder / "b.png" / "c.png"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(picture.read_bytes())
    os.symlink(tmp_path / "nowhere", folder / "lost.png")
    os.symlink(folder, folder / "b.png" / "back.png")
    for pattern in ("*.png", "**/*.png", "**", "*"):
        result = invoke("predict", bundle_path, "-d", "signs", f"{folder}/{pattern}")
        named = [line.rsplit(": ", 1)[0] for line in result.stdout.splitlines()]
        assert named == [str(folder / x) for x in ("a.png", "b.png/c.png")], pattern
        assert result.exit_code == 1
        assert "lost.png does not exist" in result.stderr


def test_predict_names_a_folder_that_is_closed(
    bundle_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = picture.parent / "closed"
    closed.mkdir()
    scan = os.scandir

    def scandir(place: str) -> object:
        if os.fspath(place) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(closed))
        return scan(place)

    monkeypatch.setattr(os, "scandir", scandir)
    message = one_error_line(invoke("predict", bundle_path, "-d", "signs", picture.parent))
    assert f"{closed} cannot be opened (Permission denied)" in message


def test_several_unreadable_images_are_counted(bundle_path: Path, picture: Path) -> None:
    picture.with_name("z1.png").write_bytes(b"no image")
    picture.with_name("z2.png").write_bytes(b"no image")
    result = invoke("predict", bundle_path, "-d", "signs", picture.parent)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    *errors, last = result.stderr.splitlines()
    assert [x.startswith("error: ") for x in errors] == [True, True]
    assert last == "2 of 3 images could not be read"


def test_no_escape_sequence_reaches_the_terminal(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "a\x1b]0;owned\x07\u202eb.png"
    odd.write_bytes(picture.read_bytes())
    broken = tmp_path / "c\x1b[2Jd.png"
    broken.write_bytes(b"no image")
    result = invoke("predict", bundle_path, "-d", "signs", odd, broken)
    for text in (result.stdout, result.stderr):
        assert text.count("\n") == 1
        assert text.strip().isprintable(), ascii(text)
    assert "not exist" in one_error_line(invoke("inspect", tmp_path / "\x1b[31mred"))


def test_predict_asks_for_the_domain_only_where_there_are_several(
    bundle_path: Path, picture: Path
) -> None:
    message = one_error_line(invoke("predict", bundle_path, picture))
    assert "with -d: " in message and "signs" in message


def test_predict_with_a_pack_answers_for_its_domain(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    pack = replace(open_bundle(bundle_path).pack("digits"), name="late", classes=("a", "b"))
    write_pack(tmp_path / "late.safetensors", pack)
    more = ("--pack", tmp_path / "late.safetensors", "--json")
    (own,) = json.loads(invoke("predict", bundle_path, "-d", "digits", picture, "--json").stdout)
    (late,) = json.loads(invoke("predict", bundle_path, "-d", "late", picture, *more).stdout)
    assert (late["domain"], late["class_name"]) == ("late", "ab"[own["index"]])
    assert late["probability"] == pytest.approx(own["probability"])


def test_a_pack_of_another_trunk_is_refused_by_predict_and_serve(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    pack = replace(open_bundle(bundle_path).pack("digits"), name="late", trunk_hash="0" * 64)
    write_pack(tmp_path / "late.safetensors", pack)
    for start in (["predict", bundle_path, "-d", "late", picture], ["serve", bundle_path]):
        result = invoke(*start, "--pack", tmp_path / "late.safetensors")
        assert "trunk" in one_error_line(result)


def test_inspect_json_is_the_manifest(bundle_path: Path) -> None:
    result = invoke("inspect", bundle_path, "--json")
    assert result.stdout == (bundle_path / "manifest.json").read_text("utf-8")


def test_inspect_says_of_how_many_views_an_accuracy_is(bundle_path: Path, tmp_path: Path) -> None:
    """That of ten views stood there as if the bundle answered so."""
    copy = Path(shutil.copytree(bundle_path, tmp_path / "x.prunion"))
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))

    def shown(views: int | None, config: dict[str, Any] | None) -> str:
        manifest["domains"][0].pop("accuracy_views", None)
        if views is not None:
            manifest["domains"][0]["accuracy_views"] = views
        manifest["domains"][0]["accuracy"] = 0.5
        if config is not None:
            manifest["provenance"] = {**manifest.get("provenance", {}), "config": config}
        (copy / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        result = invoke("inspect", copy)
        assert result.exit_code == 0, result.output
        return result.stdout

    name = manifest["domains"][0]["name"]
    assert "50.0%  of 10 views\n" in shown(10, None)
    assert "a bundle answers one" in shown(10, None)
    assert "50.0%\n" in shown(1, None)
    assert "answers one" not in shown(1, None)
    # An earlier prunion's bundle says it in its run's configuration, or nowhere.
    five = {"input": {"test_crops": 10}, "domains": {name: {"mirror": False}}}
    assert "50.0%  of 5 views\n" in shown(None, five)
    ten = {"input": {"test_crops": 10}, "domains": {name: {"mirror": True}}}
    assert "50.0%  of 10 views\n" in shown(None, ten)
    assert "50.0%  of an unknown number of views\n" in shown(None, {})


def test_inspect_shows_the_facts(bundle_path: Path) -> None:
    result = invoke("inspect", bundle_path)
    for fact in ("signs", "50.0%", "432 → 216", "16 → 8", "model.onnx"):
        assert fact in result.stdout


@pytest.mark.parametrize("more", [(), ("--json",)])
@pytest.mark.parametrize("end", [KeyboardInterrupt(), BundleError("the session fails")])
def test_who_interrupts_many_images_keeps_what_was_answered(
    bundle_path: Path,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    end: BaseException,
) -> None:
    """All were answered before the first was printed, and one broken file had all asked again."""
    asked: list[int] = []
    predict = Model.predict

    def third_stops(self: Model, images: Any, *given: Any, **options: Any) -> Any:
        asked.append(len(images))
        if len(asked) == 3:
            raise end
        return predict(self, images, *given, **options)

    monkeypatch.setattr(Model, "predict", third_stops)
    result = invoke("predict", bundle_path, "-d", "signs", *[picture] * 100, *more)
    interrupted = isinstance(end, KeyboardInterrupt)
    assert result.exit_code == (130 if interrupted else 1) and asked == [32] * 3
    assert len(result.stdout.splitlines()) == (0 if more else 64)
    kept = "nothing was written" if more else "their answers were printed"
    told = [f"stopped after 64 of 100 images: {kept}", f"error: {end}"]
    assert result.stderr.splitlines() == told[: 1 if interrupted else 2]


def test_a_broken_image_has_only_its_neighbours_asked_again(
    bundle_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    predict = Model.predict

    def counted(self: Model, images: Any, *given: Any, **options: Any) -> Any:
        asked.append(images)
        return predict(self, images, *given, **options)

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    monkeypatch.setattr(Model, "predict", counted)
    result = invoke("predict", bundle_path, "-d", "signs", *[picture] * 99, broken)
    assert len(result.stdout.splitlines()) == 99
    assert len(asked) == 4 + 4  # three whole batches, the last, and each of its four
