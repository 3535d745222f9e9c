"""Processes that serve together: told alike, replaced, and alike in what they serve."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.runtime.serve.process.load import IMAGE, ask, connect
from tests.runtime.serve.running import BEGIN, SOON_PLANNED, running
from tests.support.waiting import LONG, until

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
pytest.importorskip("grpc", reason="needs prunion[serve]")
if not hasattr(os, "fork"):
    pytest.skip("this system does not fork", allow_module_level=True)

# Two workers that say when they began, and what became of them.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from prunion.runtime.errors import ConfigError
from prunion.runtime.serve.listening import workers

folder = Path(sys.argv[1])
workers.SOON = float(sys.argv[2])

def work():
    if (folder / "broken").exists():
        raise OSError("nothing to load")
    mine = folder / str(os.getpid())
    mine.write_text("loading")
    while not (folder / "loaded").exists():
        time.sleep(0.01)
    mine.write_text("told" if signal.SIGHUP in signal.sigpending() else "not told")
    signal.pause()

def lying():
    if (folder / "stopping").exists():
        os.kill(os.getpid(), signal.SIGTERM)  # just before another is started
    return ()

try:
    workers.run_workers(2, work, lying)
except ConfigError as exc:
    sys.exit(str(exc))
"""


def said(folder: Path) -> dict[int, str]:
    return {int(x.name): x.read_text() for x in folder.iterdir() if x.name.isdigit()}


def begin(folder: Path, soon: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), str(soon)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until(lambda: list(said(folder).values()) == ["loading"] * 2)
    return process


def end(process: subprocess.Popen[str]) -> str:
    process.terminate()
    _, text = process.communicate(timeout=LONG)
    assert process.returncode == 0, text
    return text


def test_a_hangup_while_they_load_waits_for_them(tmp_path: Path) -> None:
    """It ended them, and so soon after their start the whole server with them."""
    process = begin(tmp_path, soon=LONG)
    process.send_signal(signal.SIGHUP)
    until(lambda: _pending(said(tmp_path)) == 2)
    (tmp_path / "loaded").touch()
    until(lambda: list(said(tmp_path).values()) == ["told"] * 2)
    assert not end(process)


def _pending(children: dict[int, str]) -> int:
    """How many of the processes have a SIGHUP held back."""
    count = 0
    for child in children:
        try:
            status = Path(f"/proc/{child}/status").read_text()
        except FileNotFoundError:
            pytest.skip("this system does not say which signals wait")
        mask = int(next(x for x in status.splitlines() if x.startswith("ShdPnd")).split()[1], 16)
        count += mask >> (signal.SIGHUP - 1) & 1
    return count


def test_those_that_serve_go_on_while_another_cannot_start(tmp_path: Path) -> None:
    """They were all ended once one had died and the next could not begin."""
    process = begin(tmp_path, soon=1.0)
    (tmp_path / "loaded").touch()
    until(lambda: list(said(tmp_path).values()) == ["not told"] * 2)
    first, second = said(tmp_path)
    time.sleep(1.1)  # by then they have started
    (tmp_path / "broken").touch()
    os.kill(first, signal.SIGKILL)
    assert process.stderr is not None
    found = [process.stderr.readline() for _ in range(3)]
    assert f"worker {first} ended with -9: starting another in 0 s" in found[0]
    assert "nothing to load" in found[1] and "ended with 1: starting another in 1 s" in found[2]
    assert Path(f"/proc/{second}/status").read_text().split("State:")[1].split()[0] != "Z"
    (tmp_path / "broken").unlink()
    until(lambda: len(said(tmp_path)) == 3)
    end(process)


def test_a_server_that_serves_nothing_ends(tmp_path: Path) -> None:
    process = begin(tmp_path, soon=0.5)
    (tmp_path / "loaded").touch()
    time.sleep(0.6)
    (tmp_path / "broken").touch()
    for child in said(tmp_path):
        os.kill(child, signal.SIGKILL)
    _, text = process.communicate(timeout=LONG)
    assert process.returncode == 1 and "workers do not start" in text, text


def test_a_stop_while_one_is_replaced_reaches_it(tmp_path: Path) -> None:
    process = begin(tmp_path, soon=0.1)
    (tmp_path / "loaded").touch()
    time.sleep(0.3)
    (tmp_path / "stopping").touch()
    os.kill(min(said(tmp_path)), signal.SIGKILL)
    _, text = process.communicate(timeout=LONG)
    assert process.returncode == 0, text


def test_a_worker_that_comes_later_serves_what_the_others_do(
    tmp_path: Path, toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle was put in the folder and nobody was told: only the replacement served it."""
    begin = "import prunion.runtime.serve.listening.workers as workers; workers.SOON = 0\n"
    command = [sys.executable, "-c", SOON_PLANNED + begin + BEGIN]
    monkeypatch.setattr("tests.runtime.serve.running.SERVER", command)
    new = toy.make_tables(seed=1)
    bundle = toy.make_bundle(tmp_path / "served", toy.make_tables())
    other = toy.make_bundle(tmp_path / "next", new)
    expected = toy.reference(new, IMAGE, np.array([1]))[0]
    with running(bundle, workers=2) as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if not children.exists():
            pytest.skip("this system does not say who is whose child")
        bundle.rename(tmp_path / "before")
        shutil.copytree(other, bundle)
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        until(lambda: sum("serving toy" in x["event"] for x in server.lines) >= 4)
        for _ in range(20):  # a connection each: whoever takes it
            connection = connect(server)
            status, found = ask(connection)
            connection.close()
            assert status == 200
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert any("another bundle may lie there" in line["event"] for line in server.lines)
        assert server.end() == 0
