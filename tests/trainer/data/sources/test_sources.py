"""A domain from tables and Parquet patterns: classes by the same rules as from folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.runtime.errors import ConfigError, DataError
from prunion.trainer.config import DomainConfig
from prunion.trainer.data import open_domain
from tests.support.images import pixels, write_folders, write_parquet


def test_a_domain_of_tables_is_that_of_the_folders(tmp_path: Path) -> None:
    write_folders(tmp_path / "set", {"cat": 4, "dog": 3})
    images = sorted((tmp_path / "set").rglob("*.png"))
    rows = [f"{x.relative_to(tmp_path).as_posix()};{x.parent.name}" for x in images]
    (tmp_path / "all.csv").write_text("\n".join(["file,kind", *rows]).replace(";", ","))
    columns = {"image_column": "file", "label_column": "kind"}
    table = DomainConfig("d", train=(str(tmp_path / "all.csv"),), holdout=0.3, **columns)
    folder = DomainConfig("d", train=(str(tmp_path / "set"),), holdout=0.3)
    mine, other = open_domain(table, 0), open_domain(folder, 0)
    assert mine.classes == other.classes == ("cat", "dog")
    assert pixels(mine.train) == pixels(other.train)
    assert pixels(mine.test) == pixels(other.test)


def test_a_table_s_numbers_meet_parquet_s_names(tmp_path: Path) -> None:
    for index in range(2):
        write_parquet(tmp_path / f"train-{index}.parquet", [0, 1, 1], ["ant", "bee"])
    write_folders(tmp_path / "set", {"x": 2})
    (tmp_path / "test.csv").write_text("image,label\nset/x/0000.png,bee\n")
    train = (str(tmp_path / "train-*.parquet"),)
    domain = open_domain(DomainConfig("d", train=train, test=(str(tmp_path / "test.csv"),)), 0)
    assert (len(domain.train), domain.test.labels.tolist()) == (6, [1])
    (tmp_path / "test.csv").write_text("image,label\nset/x/0000.png,wasp\n")
    with pytest.raises(DataError, match=r"test\.csv line 2 .* has label 'wasp', none of the 2"):
        open_domain(DomainConfig("d", train=train, test=(str(tmp_path / "test.csv"),)), 0)
    with pytest.raises(ConfigError, match=r"a list may hold \.parquet or \.tar files or tables"):
        DomainConfig("d", train=("a.csv", "folder"), test=("b.csv",))


def test_columns_are_named_where_one_part_has_them(tmp_path: Path) -> None:
    write_folders(tmp_path / "set", {"cat": 4, "dog": 3})
    rows = [f"set/{name}/000{index}.png,{name}" for name in ("cat", "dog") for index in (0, 1)]
    (tmp_path / "test.csv").write_text("\n".join(["file,kind", *rows]))
    parts = {"train": (str(tmp_path / "set"),), "test": (str(tmp_path / "test.csv"),)}
    columns = {"image_column": "file", "label_column": "kind"}
    for one, other in (("train", "test"), ("test", "train")):
        domain = open_domain(DomainConfig("d", train=parts[one], test=parts[other], **columns), 0)
        assert domain.classes == ("cat", "dog")
        assert {len(domain.train), len(domain.test)} == {7, 4}
