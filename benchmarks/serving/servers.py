"""The servers that are measured: started as processes, waited for, weighed, stopped."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Server",
    "free_port",
    "litserve_command",
    "memory_of",
    "per_domain_command",
    "prunion_command",
    "started",
]

SECONDS = 300.0  # to start in: a hundred sessions take a while
COMMAND = (sys.executable, "-c", "from prunion.runtime.cli.main import main; main()")


@dataclass(frozen=True, eq=False)
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int

    def get(self, path: str) -> tuple[int, bytes]:
        """A GET's status and body."""
        return self._ask("GET", path)

    def post(self, path: str, body: bytes = b"{}") -> tuple[int, bytes]:
        """A POST's status and body."""
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        """Processor time that it and its children have taken."""
        ticks = 0
        for process in _family(self.process.pid):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def prunion_command(bundle: Path | str, port: int, *options: object) -> list[str]:
    """`prunion serve` without a log, which the others do not write either."""
    found = [*COMMAND, "serve", bundle, "--port", port, "--log", "off", "--ready-seconds", 0]
    return [str(x) for x in (*found, *options)]


def per_domain_command(
    bundle: Path, port: int, threads: int, packs: Path | None = None, sliced: bool = True
) -> list[str]:
    """The same front, with a static session for each domain."""
    module = "prunion.benchmarks.serving.per_domain"
    found = [sys.executable, "-m", module, bundle, "--port", port, "--threads", threads]
    found += [] if packs is None else ["--packs", packs]
    return [str(x) for x in (*found, "--sliced" if sliced else "--whole")]


def litserve_command(
    python: Path, graph: Path, port: int, threads: int, tables: Path | None
) -> list[str]:
    """LitServe, from an environment of its own."""
    script = Path(__file__).with_name("litserve_app.py")
    return [str(x) for x in (python, script, graph, port, threads, tables or "")]


@contextmanager
def started(
    command: Sequence[str], port: int, health: str = "/v2/health/ready", log: Path | None = None
) -> Iterator[Server]:
    """The server, answering `health`, until the block ends.

    Raises RuntimeError with the end of its log where it does not start.
    """
    with contextlib.ExitStack() as held:
        output = held.enter_context(open(os.devnull if log is None else log, "wb"))
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            start_new_session=True,  # LitServe's workers end with it
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        server = Server(process, port)
        try:
            _await(server, health, log)
            yield server
        finally:
            _end(process)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def memory_of(process: int) -> dict[str, int]:
    """PSS, USS and RSS of a process and its children, in bytes, as Linux counts them."""
    found = {"pss": 0, "uss": 0, "rss": 0}
    for member in _family(process):
        text = Path(f"/proc/{member}/smaps_rollup").read_text()
        sizes = {x.split(":")[0]: 1024 * int(x.split()[1]) for x in text.splitlines()[1:]}
        found["pss"] += sizes["Pss"]
        found["uss"] += sizes["Private_Clean"] + sizes["Private_Dirty"]
        found["rss"] += sizes["Rss"]
    return found


def _family(process: int) -> list[int]:
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            found += _family(int(child))
    return found


def _await(server: Server, health: str, log: Path | None) -> None:
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends and server.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if server.get(health)[0] == 200:
                return
        time.sleep(0.02)
    tail = "" if log is None else log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"{' '.join(server.process.args)} did not start: {tail}")  # type: ignore[arg-type]


def _end(process: subprocess.Popen[bytes]) -> None:
    group = process.pid  # its own session's
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    process.wait()
