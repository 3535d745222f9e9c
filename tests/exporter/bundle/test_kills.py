"""Commands killed at random moments: at the final path lies the old or the new, whole."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prunion.exporter.bundle import export_bundle
from prunion.runtime.bundle import open_bundle, read_pack, read_profile

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX's"),
]
KILLS = 10
LATE = "[train]\nwarmup = 1\nramp = 0\nsettle = 0\nbatch_size = 8\n[domains.late]\n"
COMMANDS: dict[str, tuple[list[str], Callable[[Path], object]]] = {
    "export": (["export", "run", "-o", "x"], open_bundle),
    "pack": (["pack", "run", "warm", "-o", "x"], read_pack),
    "add-domain": (["add-domain", "run", "late.toml", "-o", "x"], read_pack),
    "profile": (["profile", "y.prunion", "-o", "x", "--seconds", "0.001"], read_profile),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_old_or_the_new_is_there(tiny: Path, tmp_path: Path, command: str) -> None:
    shutil.copytree(tiny, tmp_path / "run")
    export_bundle(tiny, tmp_path / "y.prunion")
    data = tiny.parent / "data" / "warm"
    late = f'{LATE}train = "{data}/train"\ntest = "{data}/test"\n'
    (tmp_path / "late.toml").write_text(late)
    arguments, read = COMMANDS[command]
    start_up = "from prunion.runtime.cli.main import main; main()"
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
    assert left <= {"run", "x", "x.run", "y.prunion", "late.toml"}, "cleared by the last one"
