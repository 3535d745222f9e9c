"""Commands killed at random moments: at the final path lies the old or the new, whole."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunion.benchmarks.demo.run import _foreign
from prunion.exporter.bundle import export_bundle
from prunion.runtime.bundle import open_bundle, read_pack, read_profile
from prunion.runtime.model import load
from prunion.runtime.tensorrt import engine_key
from prunion.runtime.tensorrt.files import read_fitting

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's"),
]
KILLS = 10
LATE = "[train]\nwarmup = 1\nramp = 0\nsettle = 0\nbatch_size = 8\n[domains.late]\n"
# A demo of the same steps that takes seconds.
SMALL_DEMO = """
import prunion.benchmarks.demo.run as demo
demo.SIZE = 16
demo.RUN = demo.RUN.replace("warmup = 2", "warmup = 1").replace("settle = 2", "settle = 0")
"""


def read_built(path: Path) -> object:
    """The engine fits its key; both are of one build."""
    from prunion.runtime.tensorrt.library import library

    version = str(library("tensorrt-rtx").__version__)
    return read_fitting(path, engine_key(open_bundle("y.prunion"), "tensorrt-rtx", version))


def read_demo(path: Path) -> object:
    """A bundle that is there is whole, and the next demo takes the folder for its own."""
    assert not _foreign(path)
    return (path / "model.prunion").exists() and open_bundle(path / "model.prunion")


COMMANDS: dict[str, tuple[list[str], Callable[[Path], object]]] = {
    "export": (["export", "run", "-o", "x"], open_bundle),
    "pack": (["pack", "run", "warm", "-o", "x"], read_pack),
    "add-domain": (["add-domain", "run", "late.toml", "-o", "x"], read_pack),
    "build": (
        ["build", "y.prunion", "--target", "tensorrt-rtx", "--sm", "86", "-o", "x"],
        read_built,
    ),
    "demo": (["demo", "-o", "x"], read_demo),
    "profile": (["profile", "y.prunion", "-o", "x", "--seconds", "0.001"], read_profile),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_old_or_the_new_is_there(
    tiny: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in {"build": ["tensorrt_rtx"], "demo": ["skimage", "sklearn"]}.get(command, []):
        pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / "run")
    export_bundle(tiny, tmp_path / "y.prunion")
    data = tiny.parent / "data" / "warm"
    late = f'{LATE}train = "{data}/train"\ntest = "{data}/test"\n'
    (tmp_path / "late.toml").write_text(late)
    arguments, read = COMMANDS[command]
    start_up = "from prunion.runtime.cli.main import main; main()"
    if command == "demo":
        start_up = SMALL_DEMO + start_up
    full = [sys.executable, "-c", start_up, *arguments, "--force"]
    start = time.perf_counter()
    subprocess.run(full, cwd=tmp_path, check=True, capture_output=True)
    took, dice = time.perf_counter() - start, random.Random(0)
    for _ in range(KILLS):
        with subprocess.Popen(
            full, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            time.sleep(took * dice.uniform(0.3, 1.0))
            running.kill()
        read(tmp_path / "x")
    subprocess.run(full, cwd=tmp_path, check=True, capture_output=True)
    read(tmp_path / "x")
    left = {p.name for p in tmp_path.iterdir()}
    assert left <= {"run", "x", "x.run", "x.json", "y.prunion", "late.toml"}, (
        "cleared by the last one"
    )


def test_a_model_that_reads_answers_on_while_its_bundle_is_replaced_and_killed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held open and opened anew all the while: no answer changes, no open fails."""
    monkeypatch.chdir(tmp_path)
    export_bundle(tiny, tmp_path / "x.prunion")
    model = load("x.prunion", "cpu", threads=1)
    noise = np.random.default_rng(0).random((2, *model.sessions.form.image_shape), np.float32)
    expected, rows = model.logits(noise, [0, 1]), np.array([0, 1])
    wrong, opened, stop = list[str](), 0, threading.Event()

    def read() -> None:
        nonlocal opened
        while not stop.is_set():
            try:
                with load("x.prunion", "cpu", threads=1) as anew:
                    answers = [model.logits(noise, rows), anew.logits(noise, rows)]
            except Exception as exc:
                wrong.append(repr(exc))
                return
            opened += 1
            wrong.extend("another answer" for x in answers if not np.allclose(x, expected))

    reader = threading.Thread(target=read)
    reader.start()
    command = [sys.executable, "-c", "from prunion.runtime.cli.main import main; main()"]
    full = [*command, "export", str(tiny), "-o", "x.prunion", "--force"]
    start = time.perf_counter()
    subprocess.run(full, check=True, capture_output=True)
    took, dice = time.perf_counter() - start, random.Random(1)
    for _ in range(KILLS):
        with subprocess.Popen(
            full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as running:
            time.sleep(took * dice.uniform(0.5, 1.0))
            running.kill()
    stop.set()
    reader.join()
    assert not wrong, wrong[:3]
    assert opened > KILLS
