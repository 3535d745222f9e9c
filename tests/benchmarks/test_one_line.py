"""What a user can fix ends any benchmark in one line, as it does `prunion`'s commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import prunion.benchmarks
from prunion.benchmarks.learning.frontier import main as frontier
from prunion.benchmarks.learning.likeness import main as likeness
from prunion.benchmarks.learning.paired import main as paired
from prunion.benchmarks.learning.rows import main as learning
from prunion.benchmarks.learning.table import main as table

FOLDER = Path(prunion.benchmarks.__path__[0])


def test_a_wrong_option_is_told_in_one_line(tmp_path: Path) -> None:
    where = ["--data", str(tmp_path), "--weights", str(tmp_path), "-o", str(tmp_path / "rows")]
    result = CliRunner().invoke(learning, [*where, "--backbone", "resnet81", "tuned-all"])
    assert result.exit_code == 1
    assert result.stderr == "error: --backbone resnet81: choose resnet18 or lite0\n"


@pytest.mark.parametrize("command", [frontier, likeness, paired, table])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"# no rows\n", "rows.jsonl, line 1, is no row of the learning table"),
        (b'{"key": "resnet18.a", "mean": 1}\n', "rows.jsonl, line 1, is no row of the learning"),
        (b'{"key": "a.b.c", "mean": 1}\n', "rows.jsonl, line 1, is no row of the learning table"),
        (b'{"key": 3, "mean": 1}\n', "rows.jsonl, line 1, is no row of the learning table"),
        (
            b'{"key": "a.b.c", "mean": 1, "params": 1, "macs": 1, "accuracy": {"x": 1}, '
            b'"images": {"x": 9}, "right": {"x": "/w=="}}\n',
            "rows.jsonl, line 1, is no row of the learning table",
        ),
        (b"[" * 100_000, "rows.jsonl, line 1, is no row of the learning table"),
        (b"\xff\xfe{", "rows.jsonl cannot be read ('utf-8' codec"),
        (None, "rows.jsonl cannot be read ("),
    ],
)
def test_a_file_of_something_else_is_told_in_one_line(
    tmp_path: Path, command: click.Command, data: bytes | None, said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    if data is None:
        path.mkdir()
    else:
        path.write_bytes(data)
    more = {frontier: ["-o", str(tmp_path / "x.svg")], paired: ["a", "b"]}
    result = CliRunner().invoke(command, [str(path), *more.get(command, [])])
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [frontier, table])
def test_a_row_without_the_columns_of_a_table_is_told(
    tmp_path: Path, command: click.Command
) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"key": "resnet18.tuned-all.seed0", "mean": 0.5, "accuracy": {"a": 0.5}, "params": 1.0}
    path.write_text(json.dumps(row), "utf-8")
    more = ["-o", str(tmp_path / "x.svg")] if command is frontier else []
    result = CliRunner().invoke(command, [str(path), *more])
    assert result.exit_code == 1
    assert "rows.jsonl, line 1, is no row of the learning table" in result.stderr
    made = row | {"macs": 1.0, "returned": 0}
    other = made | {"key": "resnet18.mine.seed0"}
    path.write_text(json.dumps(made) + "\n" + json.dumps(other), "utf-8")
    if command is table:
        result = CliRunner().invoke(command, [str(path)])
        assert "| `tuned-all` | 1 |" in result.stdout
        assert result.stderr == "note: mine is no row of the plan and is left out\n"


def test_every_command_is_of_that_kind() -> None:
    """All but those that the `prunion` group itself runs."""
    files = [p for p in FOLDER.rglob("*.py") if p != FOLDER / "cli.py"]
    made = [
        (path.name, text)
        for path in files
        for text in re.findall(r"@click\.(?:command|group)\(.*", path.read_text("utf-8"))
    ]
    assert len(made) > 20
    assert [x for x in made if "cls=OneLine" not in x[1]] == []
