"""Mutated files of every kind: an error in one line, in bounded time and memory, or an answer.

`FUZZ_SHARE=0.1 pytest -n 0 -m slow tests/fuzz/test_fuzz.py` reads a tenth of the 26,000 inputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="watches /proc, by alarms"),
]
WORKER = Path(__file__).with_name("worker.py")
STILL = 120  # seconds without a word: an input that waits, or that no signal can stop
INPUTS = {
    "manifest": 3000,
    "units": 2000,
    "graph": 4500,
    "bundle-pack": 1000,
    "pack": 2000,
    "profile": 1500,
    "plan": 500,
    "image": 2000,
    "run-file": 1500,
    "parquet": 1200,
    "weights": 600,
    "checkpoint": 200,
    "request-json": 2000,
    "request-raw": 2000,
    "request-grpc": 2000,
}


@pytest.mark.parametrize("kind", INPUTS)
def test_no_input_does_more_than_be_refused(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("onnxruntime")
    own = {"PRUNION_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    if kind.startswith("request"):
        pytest.importorskip("google.protobuf")
    if kind in ("run-file", "parquet", "weights", "checkpoint"):
        pytest.importorskip("torch")
    if kind == "checkpoint":
        own["FUZZ_CHECKPOINT"] = str(_checkpoint(tmp_path))
    count = max(int(INPUTS[kind] * float(os.environ.get("FUZZ_SHARE", "1"))), 1)
    found: list[Any] = []
    first = 0
    while first < count:
        folder = tmp_path / f"from_{first}"
        folder.mkdir()
        own["TMPDIR"] = str(folder)
        last, findings, end = _worker([kind, str(first), str(count), str(folder)], own)
        found += findings
        if end:
            found.append({"kind": kind, "number": last, "wrong": end})
        first = last + 1
    print(f"{kind}: {count} inputs, {len(found)} findings")
    assert not found, "\n".join(json.dumps(x, indent=1) for x in found[:20])


def _worker(arguments: list[str], own: dict[str, str]) -> tuple[int, list[Any], str]:
    """The last input that was begun, what was found, and how the process ended if it was killed."""
    last, findings, stopped = int(arguments[1]) - 1, list[Any](), ""
    with subprocess.Popen(
        [sys.executable, str(WORKER), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | own,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr))
        reader.start()
        timer = _timer(process)
        for line in process.stdout:
            timer.cancel()
            timer = _timer(process)
            if line.startswith("{"):
                findings.append(json.loads(line))
            elif line.strip().isdigit():
                last = int(line)
        timer.cancel()
        reader.join()
    if process.returncode:
        stopped = f"ended with {process.returncode}: {''.join(errors)[-1500:]}"
        if last < int(arguments[1]):
            raise AssertionError(stopped)
    return last, findings, stopped


def _timer(process: subprocess.Popen[str]) -> threading.Timer:
    timer = threading.Timer(STILL if process.poll() is None else 0, process.kill)
    timer.daemon = True
    timer.start()
    return timer


def _checkpoint(folder: Path) -> Path:
    from prunion.trainer.config import load_config
    from prunion.trainer.run import train_run
    from tests.support.tiny_run import tiny_run

    train_run(load_config(tiny_run(folder)), folder / "run")
    return folder / "run" / "checkpoint"
