"""What a command finds out of its output before it works."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.runtime.base import check_output, check_space
from prunion.runtime.base.files import outputs
from prunion.runtime.errors import OutputError, PrunionError


def test_a_place_that_may_not_be_written_is_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    (closed / "folder").mkdir(parents=True)
    (closed / "file").write_text("old")
    monkeypatch.setattr(outputs.os, "access", lambda place, mode: Path(place) != closed)

    def refused(name: str, what: str, **options: bool) -> None:
        with pytest.raises(OutputError, match=f"{what}: .*closed may not be written"):
            check_output(closed / name, force=True, wrote=lambda _: "", **options)

    refused("new", "made")
    refused("new/newer", "made")
    refused("file", "replaced")
    refused("folder", "replaced", whole=True)
    check_output(closed / "folder", force=True)  # it is written into, as a mounted volume is
    check_output(closed / "folder/new", force=False)
    with pytest.raises(OutputError, match="closed may not be written"):
        check_output(closed, force=True, wrote=lambda _: "")


def test_nothing_is_written_into_a_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "x.prunion"
    (bundle / "domains").mkdir(parents=True)
    check_output(bundle / "new", force=False)
    for name in outputs.BUNDLE:
        (bundle / name).touch()
    (tmp_path / "link").symlink_to(bundle / "domains")
    inside = ("new", "domains/new", "units.json", "domains", "other/../new", "../link/new")
    for name in inside:
        with pytest.raises(PrunionError, match=r"inside the bundle .*x\.prunion, whose files are"):
            check_output(bundle / name, force=True, wrote=lambda _: "")
    check_output(bundle, force=True, wrote=lambda _: "", whole=True)
    check_output(bundle / "../new", force=False)


@pytest.mark.parametrize("name", ["x/..", "x/../y", "x/y/../z", "there/../x/../y"])
def test_a_way_through_a_folder_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Else the work would be done, then refused, and the folder left behind."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (Path(name), tmp_path / name):
        with pytest.raises(OutputError, match=r"not exist: give the path without '\.\.'"):
            check_output(path, force=True, wrote=lambda _: "")
    assert [x.name for x in tmp_path.iterdir()] == ["there"]
    check_output("there/../y", force=False)


def test_what_will_not_fit_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10 << 20

    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _: Usage)
    check_space(tmp_path / "not" / "there", 9 << 20, "")
    with pytest.raises(OutputError, match=r"needs 11\.0 MiB, and 10\.0 MiB are free.*or go away"):
        check_space(tmp_path / "x", 11 << 20, "go away")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is a file"):
        check_output(tmp_path / "file" / "x", force=False)
