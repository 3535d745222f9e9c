"""OpenVINO's sessions come and go without taking the process with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino", reason="pip install 'prunion[openvino]'")

STOPPED = """
import signal, sys
from prunion.runtime import load

models = []
for turn in range(3):
    models.append(load(sys.argv[1], "openvino", threads=1))
    models[-1].sessions.mixed()
    if turn:
        models.pop(0)
models.clear()
signal.signal(signal.SIGTERM, lambda *_: print("stopped", flush=True))
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM handlers")
def test_a_signal_is_handled_after_sessions_left(bundle_path: Path) -> None:
    """Each of OpenVINO's cores sets a stack for signals, and puts another's back when it goes."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(bundle_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
