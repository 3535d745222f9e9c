"""A real server process for tests: started on free ports, its log read, stopped in order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.waiting import LONG

STARTED = re.compile(r"http (\d+|/[^,]*)(?:, grpc (\d+))?")
BEGIN = "from prunion.runtime.cli.main import main; main()"
COMMAND = [sys.executable, "-c", BEGIN]
# As in `tests/conftest.py`: seconds of a server that meets a graph for the first time.
SOON_PLANNED = """
from prunion.runtime.base import timing
from prunion.runtime.model import plan

timing.SETTLE_S, plan.SECONDS = 0.0, 0.002
"""
SERVER = [sys.executable, "-c", SOON_PLANNED + BEGIN]


@dataclass
class Running:
    """A server: its process, ports, and what it has logged."""

    process: subprocess.Popen[str]
    http: int = 0
    grpc: int = 0
    lines: list[dict[str, Any]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def tell(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Its exit code, once its log is read to the end."""
        if self.process.poll() is None:
            self.tell()
        code = self.process.wait(timeout=LONG)
        if self.reader is not None:
            self.reader.join(LONG)
            assert not self.reader.is_alive(), "somebody still writes its log"
        return code


@contextmanager
def running(bundle: Path, *options: object, workers: int = 1) -> Iterator[Running]:
    """`prunion serve BUNDLE` with both transports."""
    arguments = ["serve", bundle, "--port", 0, "--grpc-port", 0, "--threads", 1]
    arguments += ["--ready-seconds", 0, *options]
    if workers > 1:
        arguments += ["--workers", workers]
    process = subprocess.Popen(
        [*SERVER, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = Running(process)
    ready = threading.Semaphore(0)

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            found.text.append(line)
            try:
                value = json.loads(line)
            except ValueError:
                continue
            found.lines.append(value)
            match = STARTED.search(value["event"])
            if value["event"].startswith("serving") and match:
                found.http = int(match[1]) if match[1].isdigit() else -1  # a Unix socket
                found.grpc = int(match[2] or 0)
                ready.release()
        for _ in range(workers):
            ready.release()

    thread = found.reader = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        for _ in range(workers):
            assert ready.acquire(timeout=LONG), found.text
        assert found.http, found.text
        yield found
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(timeout=LONG)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        thread.join(LONG)
        assert process.stderr is not None
        process.stderr.close()
