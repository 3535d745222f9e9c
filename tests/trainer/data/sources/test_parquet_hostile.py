"""Parquet files from elsewhere: whatever their schema says, an error in one line or images."""

from __future__ import annotations

import errno
import io
import json
import tempfile
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from prunion.runtime.errors import DataError, OutputError
from prunion.runtime.images.sources.parquet import EncodedStore, _rows_at_once, open_parquet


class FullDisk:
    """What a file on a full disk does."""

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_place_for_temporary_files_is_named_with_the_way_out() -> None:
    with pytest.raises(OutputError, match=r"No space left.*set TMPDIR") as told:
        EncodedStore(cast(IO[bytes], FullDisk())).extend([b"x"])
    assert tempfile.gettempdir() in str(told.value)


@pytest.mark.parametrize("names", [1, True, "ab", [["a"]], ["a", None], {"0": [1]}, 1.5])
def test_class_names_that_are_none(tmp_path: Path, names: object) -> None:
    about = json.dumps({"info": {"features": {"label": {"names": names}}}}).encode()
    table = pa.table({"image": [{"bytes": b"x"}], "label": [0]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": about}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="names its classes"):
        open_parquet((tmp_path / "x.parquet",))


@pytest.mark.parametrize("about", [b"[" * 100_000, b"\xff", b'{"info": [1]}', b"[1]"])
def test_metadata_that_is_none_names_no_classes(tmp_path: Path, about: bytes) -> None:
    table = pa.table({"image": [{"bytes": b"x"}], "label": [0]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": about}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="row 0 cannot be read"):
        open_parquet((tmp_path / "x.parquet",))


@pytest.mark.parametrize("names", [["image", "label", "label"], ["image", "image", "label"]])
def test_columns_of_one_name_are_refused(tmp_path: Path, names: list[str]) -> None:
    cells = {"image": pa.array([{"bytes": b"x"}]), "label": pa.array([0])}
    table = pa.Table.from_arrays([cells[name] for name in names], names=names)
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=rf"several columns '{names[1]}' .*: rename all but one"):
        open_parquet((tmp_path / "x.parquet",))
    others = pa.Table.from_arrays([*cells.values(), *[pa.array([7])] * 2], names=[*cells, "a", "a"])
    pq.write_table(others, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="row 0 cannot be read"):  # it gets as far as the image
        open_parquet((tmp_path / "x.parquet",))


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("column", ["image", "label"])
def test_texts_that_are_no_utf8(tmp_path: Path, column: str, dictionary: bool) -> None:
    texts = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe"] * 2).buffers())
    cells = {"image": pa.array([{"bytes": b"x"}] * 2), "label": pa.array([0, 1])}
    cells[column] = texts.dictionary_encode() if dictionary else texts
    pq.write_table(pa.table(cells), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"row 0 and what follows is none of its column's type"):
        open_parquet((tmp_path / "x.parquet",))


def test_a_dictionary_that_repeats_one_image_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunion.runtime.images.sources.parquet.NO_MATTER", 1 << 20)
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
    Image.fromarray(noise).save(made := io.BytesIO(), "PNG")
    rows = 3000
    cells = {"image": [{"bytes": made.getvalue()}] * rows, "label": [0, 1] * (rows // 2)}
    pq.write_table(pa.table(cells), tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match="unpacks to over 100 times its size"):
        open_parquet((tmp_path / "x.parquet",))


def test_a_page_that_unpacks_to_gigabytes_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunion.runtime.images.sources.parquet.NO_MATTER", 1 << 20)
    cells = {"image": [{"bytes": bytes(4 << 20)}], "label": [0]}
    pq.write_table(pa.table(cells), tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(DataError, match="a column unpacks to"):
        open_parquet((tmp_path / "x.parquet",))


def test_large_values_in_a_dictionary_are_read_a_few_at_a_time() -> None:
    class Column:
        total_uncompressed_size, total_compressed_size = 64 << 20, 64 << 20
        encodings = ("PLAIN", "RLE_DICTIONARY")

    class Metadata:
        num_row_groups = num_columns = 1

        def row_group(self, _: int) -> Metadata:
            return self

        def column(self, _: int) -> Column:
            return Column()

    assert _rows_at_once(Metadata(), "x row 0") == 8
