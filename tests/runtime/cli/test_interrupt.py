"""An interrupt comes where nothing can be raised: it is not lost, and raises nothing inside."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.3)
print("imported", flush=True)
"""
ASKS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from prunion.runtime.cli.interrupt import defer_interrupts
defer_interrupts()
sys.path.insert(0, sys.argv[1])
try:
    import slow_library
    print("left", flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_import_ends_first(tmp_path: Path) -> None:
    (tmp_path / "slow_library.py").write_text(SLOW)
    command = [sys.executable, "-c", ASKS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.split() == ["imported", "left"]


DESTROYS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from prunion.runtime.cli.interrupt import defer_interrupts
from prunion.runtime.errors import StoppedError
defer_interrupts()
def stop(number, frame):
    raise StoppedError("stopped", 128 + number)
signal.signal(signal.SIGTERM, stop)
class Dies:
    def __del__(self):
        signal.raise_signal(int(sys.argv[1]))
        time.sleep(0)
try:
    Dies()
    print("left", flush=True)
    time.sleep(30)
except (KeyboardInterrupt, StoppedError) as caught:
    sys.exit(getattr(caught, "code", 130))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it wakes no thread that sleeps there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_destructor_ends_first(number: int) -> None:
    """Python prints a trace of what rises out of it, and goes on."""
    command = [sys.executable, "-c", DESTROYS, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (128 + number, "", "left\n")


def test_who_ignores_interrupts_still_does() -> None:
    before = signal.getsignal(signal.SIGINT)
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from prunion.runtime.cli.interrupt import defer_interrupts; defer_interrupts()\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert signal.getsignal(signal.SIGINT) is before
