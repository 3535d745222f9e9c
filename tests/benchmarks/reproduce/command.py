"""`prunion reproduce decathlon` in this process, and the lines that it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from prunion.runtime.cli import cli

__all__ = ["lines", "run"]


def run(data: Path, *options: str) -> tuple[int, str]:
    """Exit code and output, of one thread, 16 pixels and the folder `out` beside the data."""
    where = ["--data", str(data), "-o", str(data.parent / "out"), "--size", "16", "--threads", "1"]
    done = CliRunner().invoke(cli, ["reproduce", "decathlon", *where, *options])
    return done.exit_code, done.output


def lines(data: Path) -> list[dict[str, Any]]:
    """The rows that were run."""
    return [json.loads(x) for x in (data.parent / "out" / "rows.jsonl").read_text().splitlines()]
