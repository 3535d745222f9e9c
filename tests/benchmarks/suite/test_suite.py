"""The suite: every command is its page's, rows are kept, and a slower checkout is found out."""

from __future__ import annotations

import importlib
import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import prunion
from prunion.benchmarks import __main__ as command
from prunion.benchmarks.gpu.learning import PLAN
from prunion.benchmarks.suite import (
    CASES,
    TABLES,
    Table,
    check_against_checkout,
    find_tables,
    regressed,
    regression,
    run_table,
    worker,
)
from prunion.runtime.errors import InputError
from prunion.runtime.measure import compare_blocks
from tests.support.waiting import Clock

ROOT = Path(__file__).parents[3]
# Stands in for the worker: three cases of known times, and one that an old checkout lacks.
FAKE = """
import json, sys, time
from pathlib import Path
slow = "before" not in sys.argv[1]
for line in sys.stdin:
    name, _, _ = line.strip().rpartition(" ")
    value = [2.0 if slow and name == "one image" else 1.0] * 3
    if name == "export" and not slow:
        value = "ImportError: no such thing"
    print(json.dumps(value), flush=True)
"""


def joined(page: Path) -> str:
    """Its text, commands of several lines as one."""
    return page.read_text("utf-8").replace("\\\n", " ")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda x: x.stem)
def test_every_command_of_a_page_is_in_the_suite(page: Path) -> None:
    """Tables of learning were measured by commands that nobody was told of."""
    run = set(
        re.findall(r"^    (?:\S+=\S+ )*python -m (prunion\.benchmarks\.\S+)", joined(page), re.M)
    )
    assert run <= {table.command.split()[0] for table in TABLES}


@pytest.mark.parametrize("table", TABLES, ids=lambda x: x.name)
def test_a_command_is_the_one_on_its_page(table: Table) -> None:
    page = joined(ROOT / table.page)
    module, *words = table.command.split()
    lines = [x.split() for x in page.splitlines() if f"python -m {module} " in f"{x} "]
    assert any(set(words) <= set(line) for line in lines), f"not on {table.page}"


@pytest.mark.parametrize(
    "table", [table for table in TABLES if table.needs == "a checkout"], ids=lambda x: x.name
)
def test_what_a_checkout_holds_is_shown(
    table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page named rows that its file had not; no other test runs what a page says."""
    monkeypatch.chdir(ROOT)
    module, *words = table.command.split()
    if "-o" in words:
        pytest.importorskip("matplotlib")
        place = words.index("-o") + 1
        words[place] = str(tmp_path / Path(words[place]).name)
    done = CliRunner().invoke(importlib.import_module(module).main, words)
    assert done.exit_code == 0, done.output


ANEW = ("frontier", "methods-latency")  # tables whose commands write their file anew


@pytest.mark.parametrize("table", TABLES, ids=lambda x: x.name)
def test_what_a_command_writes_to_is_what_it_adds_to(table: Table) -> None:
    """Rows of last year were kept as measured today: --json was not looked at, nor a folder."""
    words = table.command.split()
    given = [word for before, word in pairwise(words) if before in ("-o", "--output", "--json")]
    places = {str(Path(x).parent) if given == [str(Path(x).parent)] else x for x in table.adds_to}
    assert places == set(() if table.name in ANEW else given)
    if table.name == "eight-domains":
        assert {Path(x).stem for x in table.adds_to} == {file for file, *_ in PLAN}


def test_names_are_found_once_and_others_refused() -> None:
    assert [x.name for x in find_tables(["memory", "latency", "memory"])] == ["memory", "latency"]
    with pytest.raises(InputError, match="no table is called 'speed'"):
        find_tables(["speed"])


def test_a_run_leaves_a_row(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    table = Table("encode", "docs/x.md", "json.tool --compact FILE", 0)
    (tmp_path / "value.json").write_text('{"ms": 3}')
    with pytest.raises(InputError, match="give --set FILE=VALUE"):
        run_table(table, {}, file)
    for _ in range(2):
        run_table(table, {"FILE": str(tmp_path / "value.json")}, file)
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert len(rows) == 2
    assert rows[0]["output"] == {"ms": 3}
    assert rows[0]["exit_code"] == 0
    assert rows[0]["machine"]["cores"] >= 1
    assert {"version", "commit", "time", "seconds", "command"} < rows[0].keys()


def test_everything_is_checked_before_hours_are_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second table's missing word was told after the first one's hours, a history that cannot
    be written after all of them; a table whose rows are all there was kept as a new measurement."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_table", lambda *_: pytest.fail("it ran"))

    def told(*arguments: str) -> str:
        done = CliRunner().invoke(command.main, ["run", *arguments])
        assert done.exit_code == 1, done.output
        return done.output

    assert "give --set DATA=VALUE" in told("memory", "learning", "-o", "h.jsonl")
    assert "no command here has the word 'DATE'" in told(
        "memory", "-o", "h.jsonl", "--set", "DATE=x"
    )
    assert "cannot be written" in told("memory", "-o", "nowhere/h.jsonl")
    given = ("-o", "h.jsonl", "--set", "DATA=x", "--set", "WEIGHTS=x")
    results = Path("benchmarks/learning/results")
    results.mkdir(parents=True)
    for name, rows in (
        ("against", Path("against.jsonl")),
        ("backbones", Path("rows.json")),
        ("eight-domains", results / "methods.jsonl"),
    ):
        rows.write_text("{}")
        refused = told(name, "learning", *given)
        assert f"{rows} is here" in refused and "move it away, or go on with it by" in refused
    monkeypatch.setattr(command, "run_table", lambda *_: {"seconds": 1, "exit_code": 0})
    done = CliRunner().invoke(command.main, ["run", "against", "-o", "h.jsonl", "--resume"])
    assert done.exit_code == 0, done.output
    assert (
        CliRunner().invoke(command.main, ["check", "--before", ".", "--most", "nan"]).exit_code == 2
    )


def test_a_slower_checkout_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "worker.py"
    fake.write_text(FAKE)
    monkeypatch.setattr(regression, "WORKER", fake)
    with pytest.raises(InputError, match="is no checkout of prunion"):
        check_against_checkout(tmp_path)
    told: list[str] = []
    before = Path(prunion.__file__).parents[2]
    cases = ("one image", "export", "mixed batch")
    found = check_against_checkout(before, cases, pairs=2, rounds=4, tell=told.append)
    assert {x.session: x.ratio for x in found} == {
        "one image": pytest.approx(2.0),
        "mixed batch": pytest.approx(1.0),
    }
    assert "export is not compared: before: ImportError: no such thing" in told
    assert [x.session for x in regressed(found)] == ["one image"]
    done = CliRunner().invoke(command.main, ["check", "--before", str(before)])
    assert done.exit_code == 1, done.output
    assert "REGRESSED" in done.output
    fine = ["check", "--before", str(before), "--only", "mixed batch", "--json"]
    done = CliRunner().invoke(command.main, fine)
    assert (done.exit_code, json.loads(done.stdout)[0]["regressed"]) == (0, False)


def test_noise_is_no_regression() -> None:
    random = np.random.default_rng(0)

    def blocks(ms: float) -> list[np.ndarray]:
        return [np.full(3, ms * random.lognormal(0, 0.4)) for _ in range(18)]

    noisy = compare_blocks("one image", "before", 1, blocks(1.15), blocks(1.0))
    assert regressed([noisy]) == []


def test_a_worker_answers_by_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    clock = Clock()
    monkeypatch.setattr(worker, "time", clock)
    assert len(worker.block(lambda: clock.sleep(0.001), 0.02)) > 2
    assert len(worker.block(lambda: clock.sleep(0.02), 0.0)) == 1
    monkeypatch.setattr(worker, "train_step", lambda: lambda: None)
    monkeypatch.setattr(sys, "argv", ["-c", str(tmp_path)])
    monkeypatch.setattr(sys, "stdin", iter(["training step 0\n", "no such case 0\n"]))
    worker.main()
    first, second = capfd.readouterr().out.splitlines()
    assert len(json.loads(first)) == 1
    assert json.loads(second).startswith("KeyError")


@pytest.mark.slow
def test_this_checkout_is_no_slower_than_itself() -> None:
    told: list[str] = []
    found = check_against_checkout(
        Path(prunion.__file__).parents[2], pairs=1, rounds=2, block_s=0.05, tell=told.append
    )
    assert [x.session for x in found] == list(CASES), told
