"""What comes to an output's place while a command works is not lost."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest

from prunion.runtime.base import check_output, replace_file
from prunion.runtime.errors import OutputError


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_that_came_while_a_command_worked_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None, links: bool
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:  # as on exFAT
        monkeypatch.setattr(os, "link", none)
    path = tmp_path / "x.json"
    if before is not None:
        path.write_text(before)
    was = check_output(path, force=before is not None, wrote=lambda _: "")
    with (
        pytest.raises(OutputError, match=r"x\.json was written by somebody else"),
        replace_file(path, was) as temporary,
    ):
        temporary.write_text("new")
        path.unlink(missing_ok=True)
        path.write_text("another's")
    assert path.read_text() == "another's"
    path.unlink()
    if before is not None:
        path.write_text(before)
    was = check_output(path, force=before is not None, wrote=lambda _: "")
    with replace_file(path, was) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert [x.name for x in tmp_path.iterdir()] == ["x.json"]


FOLDERS = {  # where a folder is checked, or an engine and its key, which are checked once more
    "benchmarks/demo/run.py": 1,
    "runtime/tensorrt/files.py": 1,
    "trainer/run/folder/folder.py": 1,
}


def test_what_was_seen_is_handed_on() -> None:
    root, lost = Path(__file__).parents[4], {}
    for stage in ("benchmarks", "exporter", "runtime", "trainer"):
        for path in sorted((root / stage).rglob("*.py")):
            calls = [
                node.value
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            ]
            found = [
                call
                for call in calls
                if isinstance(call.func, ast.Name)
                and call.func.id == "check_output"
                and all(keyword.arg != "whole" for keyword in call.keywords)
            ]
            if found:
                lost[path.relative_to(root).as_posix()] = len(found)
    assert lost == FOLDERS
