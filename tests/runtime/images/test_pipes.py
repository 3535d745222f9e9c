"""What is no file is refused: reading a pipe that nobody writes to never ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prunion.runtime.base import read_json
from prunion.runtime.bundle import read_pack
from prunion.runtime.errors import PrunionError
from prunion.runtime.images import open_image
from prunion.runtime.images.sources.table import open_tables


def test_a_pipe_is_refused_by_who_reads_files(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no pipes in the file system")
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    for read in (open_image, read_pack, read_json, lambda path: open_tables([path])):
        with pytest.raises(PrunionError, match=r"pipe\.csv is a pipe or a device: give"):
            read(pipe)
