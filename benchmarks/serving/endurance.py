"""Overload, stops, kills and exchanges, and what clients saw of them."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from prunion.benchmarks.serving.clients import Generator, Load
from prunion.benchmarks.serving.servers import (
    Server,
    free_port,
    memory_of,
    prunion_command,
    started,
)
from prunion.runtime.bundle import Pack, write_pack

__all__ = ["EXCHANGED", "answer_after_kill", "exchange_packs", "overload", "stop_under_load"]

CONNECTIONS = 900  # of the open loop; the server takes 1000
EVERY = 1.0  # seconds between two looks at memory
MARK = 1000.0  # between the logits of two versions of a pack
EXCHANGED = "exchanged"


def overload(
    server: Server,
    traffic: Path,
    seconds: float,
    factor: float = 2.0,
    warm_seconds: float = 60.0,
    capacity_seconds: float = 5.0,
    most_rate: float = 4000.0,
) -> dict[str, Any]:
    """Send `factor` times the capacity, which is measured first, for `seconds`.

    `grown` is the share that RSS grew by from `warm_seconds` after the start of the load to its
    end; `most_rate` bounds what one generator is asked for.
    """
    with Generator.start() as generator:
        file = str(traffic)
        capacity = generator.measure(Load(server.port, file, clients=32, seconds=capacity_seconds))
        rate = min(factor * capacity["per_s"], most_rate)
        with _Memory(server) as memory:
            load = Load(server.port, file, clients=CONNECTIONS, seconds=seconds, rate=rate)
            found = generator.measure(load)
    status = {int(key): count for key, count in found["status"].items()}
    return {
        "capacity_per_s": capacity["per_s"],
        "rate_per_s": rate,
        "seconds": found["seconds"],
        "answered": status.get(200, 0),
        "refused": {str(key): n for key, n in status.items() if key in (429, 503)},
        "other": {str(key): n for key, n in status.items() if key not in (0, 200, 429, 503)},
        "lost": status.get(0, 0),
        "unsent": found["unsent"],
        "wrong": found["wrong"],
        "answered_ms": found["answered_ms"],
        "refused_ms": found["refused_ms"],
        "refused_after_50_ms": found["refused_late"],
        "late_ms": found["late_ms"],
        "rss": memory.seen[-1],
        "grown": memory.grown(warm_seconds),
    }


class _Memory:
    """RSS of a server, looked at while the block runs."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.seen: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def grown(self, after: float) -> float:
        """The share by which it is more at the end than `after` seconds from the start."""
        first = self.seen[min(int(after / EVERY), len(self.seen) - 1)]
        return self.seen[-1] / first - 1

    def _look(self) -> None:
        due = time.monotonic()
        while True:
            self.seen.append(memory_of(self.server.process.pid)["rss"])
            due += EVERY
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return


def stop_under_load(
    bundle: Path, traffic: Path, times: int, clients: int = 8, before: float = 0.7
) -> dict[str, Any]:
    """SIGTERM while clients ask, `times` times over, each with a server of its own."""
    found: dict[str, Any] = {"times": times, "answered": 0, "lost": 0, "wrong": 0, "other": 0}
    codes, took = [], []
    with Generator.start() as generator:
        for _ in range(times):
            port = free_port()
            with started(prunion_command(bundle, port, "--threads", 1), port) as server:
                # More seconds than it lives: clients stop when nobody listens any more.
                generator.begin(Load(port, str(traffic), clients=clients, seconds=before + 30))
                time.sleep(before)
                begun = time.perf_counter()
                server.process.send_signal(signal.SIGTERM)
                codes.append(server.process.wait(timeout=60))
                took.append(time.perf_counter() - begun)
                result = generator.end()
            status = result["status"]
            found["answered"] += status.pop("200", 0)
            found["lost"] += status.pop("0", 0)
            found["other"] += sum(status.values())
            found["wrong"] += result["wrong"]
    return {**found, "codes": sorted(set(codes)), "longest_s": max(took)}


def answer_after_kill(bundle: Path, traffic: Path, times: int = 3) -> dict[str, Any]:
    """`kill -9` under load and a new start on the same port: seconds to the first right answer."""
    port, took, wrong = free_port(), [], 0
    command = prunion_command(bundle, port, "--threads", 1)
    with Generator.start() as generator:
        for _ in range(times):
            with started(command, port) as server:
                generator.begin(Load(port, str(traffic), clients=4, seconds=30))
                time.sleep(0.5)
                server.process.kill()
                server.process.wait()
                generator.end()
            begun = time.perf_counter()
            with started(command, port):
                result = generator.measure(Load(port, str(traffic), clients=1, seconds=0.01))
                took.append(time.perf_counter() - begun - result["seconds"])
                wrong += result["wrong"] + (result["status"].get("200", 0) == 0)
    return {"times": times, "shortest_s": min(took), "longest_s": max(took), "wrong": wrong}


def exchange_packs(
    server: Server, pack: Pack, folder: Path, traffic: Path, seconds: float, every: float = 1.0
) -> dict[str, Any]:
    """Load and unload a domain under load, each time another pack of the same name.

    `server` takes packs from `folder`; `traffic` asks for the domain `exchanged` and is answered
    by `pack` with the mark of its version in the head's bias. An answer is wrong if its version was
    not served at any time between its request and itself; so is a 404 where one was all along.
    """
    history: list[tuple[float, float, int]] = []  # begun, done, version from then on; -1 is none
    with Generator.start() as generator:
        _exchange(server, pack, folder, 0, history)
        generator.begin(Load(server.port, str(traffic), clients=4, seconds=seconds, trace=True))
        ends, version = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            time.sleep(every / 2)
            begun = time.perf_counter()
            status, text = server.post(f"/v2/repository/models/{EXCHANGED}/unload")
            assert status == 200, text
            history.append((begun, time.perf_counter(), -1))
            time.sleep(every / 2)
            version += 1
            _exchange(server, pack, folder, version, history)
        found = generator.end()
    firsts = [x[4] for x in found["trace"] if x[2] == 200]
    base = float(np.median([x - MARK * round(x / MARK) for x in firsts]))
    wrong = [x for x in found["trace"] if not _is_right(x, history, base)]
    statuses = {int(key) for key in found["status"]}
    return {
        "seconds": seconds,
        "loads": version + 1,
        "answered": found["status"].get("200", 0),
        "not_there": found["status"].get("404", 0),
        "versions_seen": len({round((x - base) / MARK) for x in firsts}),
        "lost": found["status"].get("0", 0),
        "other": sorted(statuses - {0, 200, 404}),
        "wrong": len(wrong),
        "first_wrong": wrong[:3],
    }


def _exchange(
    server: Server, pack: Pack, folder: Path, version: int, history: list[tuple[float, float, int]]
) -> None:
    bias = (pack.head_bias + np.float32(MARK * (version % 64))).astype(np.float32)
    made = dataclasses.replace(pack, name=EXCHANGED, head_bias=bias)
    write_pack(folder / f"{EXCHANGED}.safetensors", made)
    begun = time.perf_counter()
    status, text = server.post(f"/v2/repository/models/{EXCHANGED}/load")
    assert status == 200, text
    history.append((begun, time.perf_counter(), version % 64))


def _is_right(answer: list[float], history: list[tuple[float, float, int]], base: float) -> bool:
    """Whether what answered was served at some time between the request and its answer.

    A change may take effect at any time while it is carried out.
    """
    sent, got, status, _, first = answer
    version = -1 if status == 404 else round((first - base) / MARK)
    if status == 200 and abs(first - base - MARK * version) > 1:
        return False
    for place, (begun, _, served) in enumerate(history):
        until = history[place + 1][1] if place + 1 < len(history) else float("inf")
        if served == version and begun <= got and sent <= until:
            return True
    return False
