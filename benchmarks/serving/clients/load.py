"""The load generator, a process of its own so that it takes nothing from what it measures.

It reads one `Load` a line as JSON on standard input, and writes one result a line. A closed loop
has so many clients, each of which asks again as soon as it is answered; an open loop sends at
random times (Poisson) at a rate, whatever comes back. `late_ms` is how much later than it was due
a request was sent, `client_cpu_us` what one costs here: the generator's own limits.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunion.benchmarks.serving.clients.traffic import System, Traffic
from prunion.benchmarks.serving.clients.wire import Connection, logits_of

__all__ = ["Generator", "Load", "main"]

PATIENCE = 60.0  # seconds for answers that are still to come when the load ends
AT_ONCE = 0.05  # seconds in which a refusal must come
LOST = 0  # in the place of a status


@dataclass(frozen=True)
class Load:
    """One measurement.

    Attributes:
        traffic: file that `Traffic.save` wrote.
        clients: of a closed loop; most connections of an open one.
        rate: requests a second of an open loop; 0 for a closed one.
        check: every how many answers the logits are compared with what they should be.
        trace: whether every answer is told, as [sent, got, status, domain, first logit].
    """

    port: int
    traffic: str
    system: System = "oip"
    clients: int = 8
    seconds: float = 5.0
    rate: float = 0.0
    seed: int = 0
    check: int = 1
    trace: bool = False


class _Run:
    """One `Load` while it runs."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.traffic = Traffic.open(Path(load.traffic))
        self.requests = self.traffic.requests(load.system)
        self.random = np.random.default_rng(load.seed)
        self.order = self.random.integers(0, len(self.requests), 1 << 16).tolist()
        self.place = self.wrong = self.unsent = 0
        self.late: list[float] = []
        self.seen: Counter[int] = Counter()
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self.trace: list[list[float]] = []
        self.idle: list[Connection] = []
        self.all: set[Connection] = set()
        self.stopped = self.refused = False
        self.wanted = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        """The result as JSON."""
        cpu, begun = time.process_time(), time.perf_counter()
        await (self._open_loop() if self.load.rate else self._closed_loop())
        spent = time.perf_counter() - begun
        self.stopped = True
        end = time.monotonic() + PATIENCE
        while any(x.waiting for x in self.all) and time.monotonic() < end:
            await asyncio.sleep(0.005)
        self.seen[LOST] += sum(x.waiting for x in self.all)
        for connection in self.all:
            connection.close()
        count = max(sum(self.seen.values()), 1)
        return {
            "seconds": spent,
            "status": {str(status): n for status, n in sorted(self.seen.items())},
            "wrong": self.wrong,
            "unsent": self.unsent,
            "per_s": self.seen[200] / spent,
            "answered_ms": _percentiles(self.times[True]),
            "refused_ms": _percentiles(self.times[False]),
            "refused_late": sum(x > AT_ONCE for x in self.times[False]),
            "late_ms": _percentiles(self.late),
            "client_cpu_us": 1e6 * (time.process_time() - cpu) / count,
            "refused_connections": self.refused,
            **({"trace": self.trace} if self.load.trace else {}),
        }

    async def _closed_loop(self) -> None:
        ends = time.perf_counter() + self.load.seconds
        await asyncio.gather(*(self._client(ends) for _ in range(self.load.clients)))

    async def _client(self, ends: float) -> None:
        connection: Connection | None = None
        while time.perf_counter() < ends:
            if connection is None or not connection.open:
                connection = await self._connect()
                if connection is None:
                    return
            connection.done = asyncio.get_running_loop().create_future()
            self._send(connection, time.perf_counter())
            await connection.done

    async def _open_loop(self) -> None:
        loop, load = asyncio.get_running_loop(), self.load
        due = time.perf_counter()
        ends = due + load.seconds
        tasks: set[asyncio.Task[None]] = set()
        while True:
            due += self.random.exponential(1 / load.rate)
            if due > ends:
                break
            while (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            self.late.append(time.perf_counter() - due)
            while self.idle and not self.idle[-1].open:
                self.idle.pop()
            if self.idle:
                self._send(self.idle.pop(), time.perf_counter())
            elif len(self.all) < load.clients:
                task = loop.create_task(self._send_anew())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                self.unsent += 1  # the generator's own limit, told in the result
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE)

    async def _send_anew(self) -> None:
        begun = time.perf_counter()
        connection = await self._connect()
        if connection is None:
            self.unsent += 1
        else:
            self._send(connection, begun)

    async def _connect(self) -> Connection | None:
        loop = asyncio.get_running_loop()
        connection = Connection(self._answered, self._lost)
        self.all.add(connection)
        try:
            await loop.create_connection(lambda: connection, "127.0.0.1", self.load.port)
        except OSError:
            self.all.discard(connection)
            self.refused = True
            return None
        return connection

    def _send(self, connection: Connection, begun: float) -> None:
        domain = self.order[self.place % len(self.order)]
        self.place += 1
        connection.send(self.requests[domain], domain, begun)

    def _answered(self, connection: Connection, status: int, head: bytes, body: bytes) -> None:
        now = time.perf_counter()
        self.seen[status] += 1
        self.times[status == 200].append(now - connection.begun)
        logits: np.ndarray | None = None
        if status == 200 and self.seen[200] % self.load.check == 0:
            logits = logits_of(head, body)
            self.wrong += not self.traffic.is_right(connection.domain, logits)
        if self.load.trace:
            first = float(logits[0]) if logits is not None else 0.0
            self.trace.append([connection.begun, now, status, connection.domain, first])
        self._free(connection)

    def _lost(self, connection: Connection) -> None:
        self.seen[LOST] += 1
        self._free(connection)

    def _free(self, connection: Connection) -> None:
        if not connection.open:
            self.all.discard(connection)
        if connection.done is not None:
            connection.done.set_result(None)
        elif connection.open:
            self.idle.append(connection)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """Of milliseconds; nothing where there are none."""
    if not seconds:
        return {}
    values = 1e3 * np.array(seconds)
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(values.max()),
    }


class Generator:
    """The process; one measurement at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[Generator]:
        """Running until the block ends."""
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            yield cls(process)
        finally:
            process.stdin.close()
            process.stdout.close()
            process.kill()
            process.wait()

    def measure(self, load: Load) -> dict[str, Any]:
        """What clients got."""
        self.begin(load)
        return self.end()

    def begin(self, load: Load) -> None:
        """Start a measurement; `end` gives its result."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(load)) + "\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """Wait for the result of the measurement that was begun."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the load generator has ended: see its traceback above")
        found: dict[str, Any] = json.loads(line)
        return found


def main() -> None:
    """Measure what is asked for, line by line."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_Run(Load(**json.loads(line))).run())), flush=True)


if __name__ == "__main__":
    main()
