"""What paths of labelled images name: folders of shards, and patterns."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from prunion.runtime.errors import DataError
from prunion.runtime.images import image_files, matching, open_labelled
from tests.runtime.images.sources.test_tars import picture, shard


def made(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


@pytest.mark.parametrize(
    "names",
    [
        ["shard-000000.tar", "shard-000001.tar"],
        ["000.tar", "001.tar", "002.TAR"],
        ["part-0.parquet", "part-1.parquet"],
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"],
        ["train-00000-of-00002-9b0b.parquet", "train-00001-of-00002-a1c2.parquet"],
        ["birds.tar", "latest.tar", "monday 3.tar"],  # names that say nothing of a split
        ["cats-train.tar", "dogs_training_2.tar"],
        ["train-00000-of-00001.parquet", "train.parquet"],
        ["train-2019-00000-of-00001.tar", "train-2020-00000-of-00001.tar"],
        ["worker0-00000-of-00001.tar", "worker1-00000-of-00001.tar"],
    ],
)
def test_a_folder_of_shards_is_one_set(tmp_path: Path, names: list[str]) -> None:
    files, skipped = made(tmp_path / "data", *names), Counter[str]()
    assert image_files([tmp_path / "data"], skipped) == tuple(files) and not skipped


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["test-00000-of-00001.parquet", "train-00000-of-00001.parquet"],
            "different sets, .*data/train-\\*.parquet'",
        ),
        (["cats-00000-of-00001.parquet", "dogs-00000-of-00001.parquet"], "different sets"),
        (["birds-train-000.tar", "birds-val-000.tar"], "data/birds-val-\\*.tar'"),
        (["extra.tar", "test.tar"], "different sets, such as 'extra.tar' and 'test.tar'"),
        (["cifar10-test.tar", "cifar10.tar"], "data/cifar10.tar'"),  # no pattern with both
        (["a.tar", "x.parquet"], "different kinds, such as 'a.tar' and 'x.parquet'"),
    ],
)
def test_shards_of_several_sets_are_told_apart(tmp_path: Path, names: list[str], told: str) -> None:
    made(tmp_path / "data", *names)
    with pytest.raises(DataError, match=told):
        image_files([tmp_path / "data"])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
            "data holds 2 of 3 shards, 'train-00001-of-00003'… is not there: add",
        ),
        (["a-1-of-3.tar", "a-3-of-3.tar"], "holds 2 of 3 shards, 'a-2-of-3'… is"),
        (["a-0-of-2.tar", "a-1-of-2.tar.part"], "holds 1 of 2 shards, 'a-1-of-2'… is not there"),
        (["a-0-of-2-77.tar"], "holds 1 of 2 shards, 'a-1-of-2'… is not there"),
    ],
)
def test_shards_that_are_not_there_are_missed(tmp_path: Path, names: list[str], told: str) -> None:
    files = made(tmp_path / "data", *names)
    for path in (tmp_path / "data", tmp_path / "data" / f"*{files[0].suffix}"):
        with pytest.raises(DataError, match=told):
            image_files([path])
    assert image_files(files) == tuple(files), "who names them one by one means these"


def test_a_pattern_may_leave_shards_out(tmp_path: Path) -> None:
    files = made(tmp_path / "data", *[f"a-{i}-of-3.tar" for i in range(3)])
    assert image_files([tmp_path / "data" / "a-[01]*"]) == tuple(files[:2])


def test_what_lies_beside_shards_is_counted(tmp_path: Path) -> None:
    data, skipped = tmp_path / "data", dict[str, int]()
    made(data, "README.md", "one.png", ".hidden")
    shard(data / "a.tar", ("0.png", picture(1)), ("0.cls", "cat"), ("x", b""))
    images, _, _ = open_labelled(data, "d", ("cat",), "exif", skipped=skipped)
    assert len(images) == 1 and skipped == {"beside the shards": 2, "without an ending": 1}


def test_a_folder_above_a_pattern_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own,) = made(tmp_path / "set[1]", "a.parquet")
    (other,) = made(tmp_path / "set1", "b.parquet")
    assert image_files([own.parent / "*.parquet"]) == (own,)
    assert image_files([tmp_path / "set[1-2]/*.parquet"]) == (other,)
    assert image_files([own.parent / "**/[a]*"]) == (own,)
    monkeypatch.chdir(tmp_path)
    assert matching("set[1]/*") == ["set[1]/a.parquet"]
    assert matching("set[1-3]//*") == ["set1/b.parquet"]
    assert matching("set[1]/*.tar") == matching("no/*") == []


def test_a_pattern_names_each_file_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    data = tmp_path / "data"
    files = made(data / "sub", "a.parquet", "b.parquet")
    (top,) = made(data / "top", "c.parquet")
    for link, place in (("sub/again", data), ("top/back", data), ("linked", data / "sub")):
        (data / link).symlink_to(place)  # two ways back: 2^40 paths of a plain walk
    made(data / ".hidden", "d.parquet")
    every = [data / "linked" / x.name for x in files] + [top]
    assert image_files([data / "**" / "*.parquet"]) == tuple(every)
    assert image_files([data / "*" / "*.parquet"]) == tuple(every)
    assert image_files([data / "sub" / "**" / "*.parquet"]) == tuple(files)
    assert [x for x in map(Path, matching(f"{data}/**")) if x.is_file()] == every
    assert matching(f"{data}/s*/**/a.*") == [str(files[0])]


def test_a_folder_below_a_pattern_that_is_closed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "set" / "closed", "a.parquet")

    def closed(_: str) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", closed)
    with pytest.raises(DataError, match=r"cannot be opened \(Permission denied\)"):
        matching(f"{tmp_path}/set/**/*.parquet")


def test_what_lies_above_a_link_is_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for name in "AB":
        made(tmp_path / name, "a.parquet")
        (tmp_path / name / "in").mkdir()
        (tmp_path / "links" / name).symlink_to(tmp_path / name / "in")
    found = matching(f"{tmp_path}/links/*/../a.parquet")
    assert found == [f"{tmp_path}/links/{name}/../a.parquet" for name in "AB"]


def test_a_folder_on_the_way_that_is_closed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open", "closed"):
        made(tmp_path / name, "a.parquet")
    monkeypatch.setattr("os.access", lambda path, _: "closed" not in path)
    assert len(matching(f"{tmp_path}/open/*.parquet")) == 1
    with pytest.raises(DataError, match=r"closed/ cannot be opened \(Permission denied\)"):
        matching(f"{tmp_path}/*/*.parquet")
