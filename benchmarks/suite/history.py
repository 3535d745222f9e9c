"""Runs of the tables' commands, one line of JSON each, appended to a file that is kept."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from prunion.benchmarks.suite.catalogue import Table
from prunion.runtime.base import machine_facts, read_state, shown, slowed_down
from prunion.runtime.errors import InputError, OutputError

__all__ = ["check_run", "run_table"]

ROOT = Path(__file__).resolve().parents[2]


def check_run(
    tables: Sequence[Table], given: Mapping[str, str], output: Path, *, resume: bool = False
) -> None:
    """Check all of it before the first of them is run, which may take hours.

    Args:
        resume: a table's own file of rows may be there, which it then adds to.

    Raises:
        InputError: a word in capitals is not given, one is given that no command has, or a table
            would leave out what its own file has, so that nothing would be measured anew.
        OutputError: there can be no file at `output`.
    """
    for table in tables:
        _words(table, given)
        here = [rows for rows in table.adds_to if Path(rows).exists()]
        if here and not resume:
            raise InputError(
                f"{here[0]} is here, and {table.name} measures only the rows that it lacks: move "
                "it away, or go on with it by --resume"
            )
    known = {word for table in tables for word in table.placeholders}
    if strange := sorted(set(given) - known):
        told = f"they have {', '.join(sorted(known))}" if known else "they have none"
        raise InputError(f"no command here has the word {shown(strange[0])}: {told}")
    try:
        output.open("a", encoding="utf-8").close()
    except OSError as exc:
        raise OutputError(
            f"{output} cannot be written ({exc.strerror}): choose another place with -o"
        ) from None


def _words(table: Table, given: Mapping[str, str]) -> list[str]:
    """The command with what is given in the place of words in capitals. Raises InputError."""
    missing = [x for x in table.placeholders if x not in given]
    if missing:
        raise InputError(f"{table.name} needs {missing[0]}: give --set {missing[0]}=VALUE")
    return [given.get(word, word) for word in table.command.split()]


def run_table(table: Table, given: Mapping[str, str], output: Path) -> dict[str, Any]:
    """Run a table's command, append its row to `output`, and return the row.

    A row says what was run when, of which version and commit, on which machine, for how long, how
    it ended, and what it printed: parsed where that is JSON.

    Args:
        given: what stands in the place of the command's words in capitals.

    Raises:
        InputError: one of these is not given.
    """
    words = _words(table, given)
    before, started = read_state(), time.time()
    done = subprocess.run(
        [sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True, check=False
    )
    row = {
        "name": table.name,
        "command": f"python -m {shlex.join(words)}",
        "time": datetime.fromtimestamp(started, timezone.utc).isoformat(timespec="seconds"),
        "version": metadata.version("prunion"),
        "commit": commit(),
        "machine": machine_facts(),
        "slowed_down": slowed_down(before, read_state()),
        "seconds": round(time.time() - started, 1),
        "exit_code": done.returncode,
        "output": _value(done.stdout),
    }
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return row


def commit() -> str | None:
    """The checkout's commit, with `+` behind it where files differ; None outside of one."""
    if not (ROOT / ".git").exists():
        return None
    found = [_git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")]
    if found[0] is None:
        return None
    return found[0] + ("+" if found[1] else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
