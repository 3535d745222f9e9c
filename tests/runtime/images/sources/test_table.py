"""Tables that name images: CSV, TSV, JSONL; and folders and patterns of Parquet files."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import DataError
from prunion.runtime.images import image_files, open_images, open_labelled
from prunion.runtime.images.sources.table import open_tables


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    for index in range(4):
        Image.new("RGB", (6, 5), (index, 0, 0)).save(folder / "images" / f"{index}.png")
    return folder


def csv(root: Path, *rows: str, name: str = "labels.csv") -> Path:
    path = root / name
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def test_a_csv_gives_images_and_names(root: Path) -> None:
    away = root.parent / "away.png"
    Image.new("RGB", (6, 5), (9, 0, 0)).save(away)
    table = csv(
        root, "\ufeffid,image,label", "7,images/1.png,cat", "", '8,"images/./0.png",dog',
        f"9,{away},cat",
    )  # fmt: skip
    split = open_tables([table])
    assert (list(split.labels), split.names) == (["cat", "dog", "cat"], None)
    assert [split.read(i).getpixel((0, 0))[0] for i in range(3)] == [1, 0, 9]
    assert split.place(1) == f"{table} line 4 (images/./0.png)"
    numbers = np.zeros(3, np.int64)
    before = split.numbered(numbers).digest
    assert before != split.numbered(numbers + 1).digest
    Image.new("RGB", (60, 50)).save(root / "images" / "1.png")
    assert open_tables([table]).numbered(numbers).digest != before


def test_jsonl_and_tsv_are_read_with_named_columns(root: Path) -> None:
    rows = [{"path": f"images/{i}.png", "kind": i % 2} for i in range(4)]
    table = root / "labels.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert list(open_tables([table], ("path", "kind")).labels) == [0, 1, 0, 1]
    other = csv(root, "path\tkind", "images/0.png\t3", name="labels.tsv")
    assert list(open_tables([other, other], ("path", "kind")).labels) == [3, 3]
    assert open_images((table, other)) is None  # text and JSON tell numbers apart differently
    images, _, _ = open_labelled(table, "d", ("0", "1"), "exif", ("path", "kind"))
    assert images.labels.tolist() == [0, 1, 0, 1]


def test_labels_of_a_csv_are_numbers_where_all_are(root: Path) -> None:
    def labels(*values: str) -> list[object]:
        return list(
            open_tables([csv(root, "image,label", *(f"images/0.png,{v}" for v in values))]).labels
        )

    assert labels("10", "2") == [10, 2]
    assert labels("007", "2") == ["007", "2"]
    assert labels("cat", "-1", " ") == ["cat", -1, None]


def test_a_path_stays_in_the_tables_folder_however_this_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = root / "images"
    (images / "below").mkdir()
    fair = csv(images, "image,label", "../images/0.png,cat")  # out and in again
    away = csv(images, "image,label", "../0.png,cat", name="away.csv")
    for here in (root, images, images / "below"):
        monkeypatch.chdir(here)
        for own in (str, os.path.relpath):
            assert open_tables([Path(own(fair))]).read(0).size == (6, 5)
            with pytest.raises(DataError, match="leads out of the table's folder"):
                open_tables([Path(own(away))])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["image,label", "../away.png,cat"], r"line 2 names '../away.png', which leads out of"),
        (["image,label", "images/9.png,cat"], r"line 2 \(images/9.png\) cannot be opened"),
        (["image,label", "images,cat"], "is no file"),
        (["image,label", "images/0.png"], "line 2 has 1 fields and the first line 2"),
        (["image,label", ",cat"], "line 2 has image '': give the path"),
        (["image,label", "im\0age,cat"], "line 2 has image|NUL"),
        (["file,label", "a,b"], r"no column 'image' \(it has file, label\): name them with"),
        (["image,label,label", "a,b,c"], "several columns 'label'"),
        (["image,label", '"images/0.png,cat'], "cannot be read"),
        (["image,label", "x" * (1 << 20) + ",cat"], "a line of over 1 MiB"),
        (["image,label"], "names no images"),
        ([""], "no first line"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(root: Path, rows: list[str], message: str) -> None:
    (root.parent / "away.png").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        open_tables([csv(root, *rows)])


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_told_which_to_write(root: Path, encoding: str) -> None:
    table = root / "labels.csv"
    table.write_text("image,label\nimages/0.png,caf\xe9\n", encoding)
    with pytest.raises(DataError, match=r"cannot be read .*: write it as UTF-8$"):
        open_tables([table])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is no JSON"),
        ("[" * 100_000, "line 1 is no JSON"),
        ("[1]", "line 1 is \\[1\\]: give"),
        ('{"image": 3, "label": 1}', "line 1 has image 3"),
        ('{"image": "\\ud800", "label": 1}', "cannot be opened"),
        ('{"image": "images/0.png"}', "line 1 has no column 'label'"),
    ],
)
def test_jsonl_is_checked(root: Path, text: str, message: str) -> None:
    table = root / "labels.jsonl"
    table.write_text(text, "utf-8")
    with pytest.raises(DataError, match=message):
        open_tables([table])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_at_once(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    with pytest.raises(DataError, match="is no file"):
        open_tables([csv(root, "image,label", "pipe.png,cat")])


def test_shards_are_found_by_folder_and_by_pattern(root: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    shards = root / "shards"
    shards.mkdir()
    for index in (1, 0):
        stream = io.BytesIO()
        Image.new("RGB", (6, 5), (index, 0, 0)).save(stream, "PNG")
        cell = [{"bytes": stream.getvalue(), "path": None}]
        pq.write_table(pa.table({"image": cell, "label": [index]}), shards / f"{index}.parquet")
    (shards / "README.md").touch()
    expected = (shards / "0.parquet", shards / "1.parquet")
    assert image_files([shards]) == expected
    assert image_files([shards / "[0-9].parquet"]) == expected
    split = open_images(expected)
    assert split is not None and list(split.labels) == [0, 1]
    # A folder of class folders stays one, whatever lies beside them; a pattern of nothing is told.
    (shards / "cat").mkdir()
    assert image_files([shards]) == (shards,)
    assert image_files([shards / "train-*.parquet"]) == (shards / "train-*.parquet",)
    with pytest.raises(DataError, match="does not exist"):
        open_images((shards / "train-*.parquet",))
