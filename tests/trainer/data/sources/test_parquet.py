"""Domains in Parquet files, small ones and the real ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.errors import DataError
from prunion.trainer.config import DomainConfig
from prunion.trainer.data import open_domain
from tests.support.images import encoded, open_files, picture, pixels, write_parquet

DATA = Path(os.environ.get("PRUNION_DATA", Path(__file__).resolve().parents[5] / "shared" / "data"))

NAMES = ["tench", "rose"]


def test_parquet_gives_names_from_the_metadata(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "a.parquet", [1, 0, 1, 0, 1], NAMES)
    test = write_parquet(tmp_path / "b.parquet", [1, 1], NAMES)
    domain = open_files(train, test)
    assert domain.classes == ("tench", "rose")
    assert domain.train.labels.tolist() == [1, 0, 1, 0, 1]
    assert pixels(domain.train) == [picture(index).tobytes() for index in range(5)]


def test_names_by_their_numbers_may_stand_in_any_order(tmp_path: Path) -> None:
    names: Any = {str(number): f"class {number}" for number in (0, 1, 10, 11, *range(2, 10))}
    path = write_parquet(tmp_path / "a.parquet", [2, 10, *range(12)], names)
    domain = open_files(path, path)
    assert domain.classes == tuple(f"class {number}" for number in range(12))
    assert domain.train.labels.tolist() == [2, 10, *range(12)]
    write_parquet(path, [1, 2], {"1": "ant", "2": "bee"})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"names its classes .*write a list of names"):
        open_files(path, path)


def test_parquet_without_names_uses_the_labels_themselves(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "a.parquet", [7, 10, 2, 7])
    test = write_parquet(tmp_path / "b.parquet", [10, 2])  # not every class
    domain = open_files(train, test)
    assert domain.classes == ("2", "7", "10")
    assert domain.train.labels.tolist() == [1, 2, 0, 1]
    assert domain.test.labels.tolist() == [2, 0]


def test_parquet_labels_may_be_names(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", ["cat", "ant", "cat", "ant"])
    assert open_files(path, path).classes == ("ant", "cat")


def test_several_parquet_files_are_read_as_one(tmp_path: Path) -> None:
    parts = []
    for i in range(3):
        images = [encoded(3 * i + j) for j in range(3)]
        parts.append(write_parquet(tmp_path / f"{i}.parquet", [0, 1, 0], NAMES, images))
    config = DomainConfig("d", train=tuple(map(str, parts)), test=(str(parts[0]),))
    domain = open_domain(config, 0)
    assert pixels(domain.train) == [picture(index).tobytes() for index in range(9)]
    write_parquet(parts[2], [0], NAMES, [b"broken"])
    with pytest.raises(DataError, match=r"2\.parquet row 0 cannot be read"):
        open_domain(config, 0)


def test_many_rows_keep_their_order(tmp_path: Path) -> None:
    images = [encoded(index % 7) for index in range(600)]  # more than one batch of rows
    path = write_parquet(tmp_path / "a.parquet", [i % 2 for i in range(600)], NAMES, images)
    domain = open_files(path, path)
    assert pixels(domain.train) == [picture(index % 7).tobytes() for index in range(600)]


def test_parquet_refusals_name_the_row(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "good.parquet", [0, 1, 0, 1], NAMES)

    def refused(says: str, *args: Any) -> None:
        bad = write_parquet(tmp_path / "bad.parquet", *args)
        with pytest.raises(DataError, match=says) as caught:
            open_files(good, bad)
        assert "\n" not in str(caught.value)

    refused(r"bad\.parquet row 1 cannot be read .*remove it", [0, 1], NAMES, [encoded(0), b"no"])
    refused(r"bad\.parquet row 1 has no image bytes", [0, 1], NAMES, [encoded(0), None])
    refused(r"bad\.parquet row 1 has label 2, none of the 2 classes", [0, 2], NAMES)
    refused(r"bad\.parquet row 0 has label -1, none of", [-1, 1], NAMES)
    refused(r"bad\.parquet row 1 has label None: give a whole number", [0, None], NAMES)
    refused(r"bad\.parquet row 0 has label 0\.5: give a whole number", [0.5, 1.0])
    refused(r"row 0 has label 0, none of the 2 classes \(tench, rose\).*alike", [0, 1])
    refused(r"different classes \(train lacks 'lily'; test lacks 'rose'\)", [0], ["tench", "lily"])
    refused(r"different classes \(the same names in another order\)", [0], NAMES[::-1])
    refused(r"bad\.parquet holds no images", [], NAMES)


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = write_parquet(tmp_path / "good.parquet", [0, 1, 0, 1], NAMES)
    bad = tmp_path / "bad.parquet"
    for data in (b"", b"PAR1 not", good.read_bytes()[:-20]):
        bad.write_bytes(data)
        with pytest.raises(DataError, match=r"bad\.parquet is not a readable Parquet file"):
            open_files(good, bad)
    pq.write_table(pa.table({"img": [b"x"], "label": [0]}), bad)
    with pytest.raises(DataError, match=r"no column 'image' \(it has img, label\): name them"):
        open_files(bad, good)


@pytest.mark.skipif(
    not (DATA / "dtd10").is_dir(), reason="needs the real domains: set PRUNION_DATA"
)
def test_real_domains_open() -> None:
    for name, classes in (("dtd10", 10), ("gtsrb", 43)):
        domain = open_files(DATA / name / "train.parquet", DATA / name / "test.parquet")
        assert len(domain.classes) == classes
        assert set(domain.test.labels) <= set(range(classes))
        assert min(domain.train.image(len(domain.train) - 1).size) > 8


def test_what_lies_beside_parquet_is_told(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write_parquet(tmp_path / "train" / "a.parquet", [0, 1] * 3, NAMES)
    (tmp_path / "train" / "more.png").write_bytes(encoded(1))
    test = write_parquet(tmp_path / "b.parquet", [0, 1], NAMES)
    found = open_files(tmp_path / "train", test).found
    assert found["skipped"] == {"train": {"beside the shards": 1}, "test": {}}
