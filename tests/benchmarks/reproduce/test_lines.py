"""Lines of rows that several processes write to one folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prunion.benchmarks.reproduce.settings import add_line, read_lines

WRITE = """
import sys
from pathlib import Path
from prunion.benchmarks.reproduce.settings import add_line
for number in range(40):
    add_line(Path(sys.argv[1]), {"key": f"{sys.argv[2]}-{number}", "accuracy": {}})
"""


def test_no_process_loses_anothers_line(tmp_path: Path) -> None:
    """Each wrote the file anew with what it had read of it before."""
    path = tmp_path / "rows.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(path), name]) for name in ("a", "b", "c")
    ]
    assert [x.wait(timeout=240) for x in writers] == [0, 0, 0]
    keys = {line["key"] for line in read_lines(path)}
    assert keys == {f"{name}-{number}" for name in "abc" for number in range(40)}


def test_a_row_that_another_process_ran_too_has_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    for seconds in (1, 2):
        add_line(path, {"key": "a", "accuracy": {}, "seconds": seconds})
    (line,) = read_lines(path)
    assert line["seconds"] == 1 and "row a: another process wrote its line" in caplog.text
