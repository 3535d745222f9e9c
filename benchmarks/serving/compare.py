"""The server beside what one would run instead, under the same load, interleaved in one run."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prunion.benchmarks.serving.clients import Generator, Load, System, Traffic
from prunion.benchmarks.serving.networks import (
    Network,
    bundle_of,
    filled,
    pack_folder,
    packs_of,
    traffic_of,
)
from prunion.benchmarks.serving.rows import Row
from prunion.benchmarks.serving.servers import (
    free_port,
    litserve_command,
    per_domain_command,
    prunion_command,
    started,
)
from prunion.runtime.bundle import open_bundle
from prunion.runtime.model import Model

__all__ = ["Settings", "compare"]

OURS, STATIC, WHOLE, LITSERVE, INSIDE = (
    "prunion",
    "a session per domain",
    "unpruned, a session per domain",
    "LitServe",
    "in process, no server",
)
SHARES = (0.5, 0.8)  # of the lesser capacity of ours and a session per domain: the equal loads
CONNECTIONS = 256  # most of an open loop
WARM_ROUNDS = 2
NOTHING = np.empty((0, 0), np.float32)  # to compare answers with
CHECK = 16  # every so many answers are compared: comparing each would cost the machine


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        seconds: of each measurement; every round has one for each server and load.
        clients: of the closed loops.
        litserve: the Python that has it; None leaves it out.
        unpruned: whether the whole network is served too, a session per domain.
        options: more options of `prunion serve`.
    """

    folder: Path
    seconds: float = 5.0
    rounds: int = 3
    threads: int = 1
    clients: tuple[int, ...] = (1, 8, 32)
    litserve: Path | None = None
    unpruned: bool = False
    options: tuple[str, ...] = ()


Measure = Callable[[int, float, int], dict[str, Any]]  # clients, rate, seed → result


def compare(network: Network, domains: int, settings: Settings) -> Row:
    """One row: every server, every load."""
    bundle = bundle_of(network, settings.folder)
    more = domains - network.domains
    packs = pack_folder(bundle, more, settings.folder) if more > 0 else None
    model = filled(bundle, packs_of(packs), settings.threads)
    plan = model.tune()
    times = plan.single or plan.mixed
    macs = model.bundle.manifest.macs
    row: Row = {
        "what": "load",
        "network": network.name,
        "macs_share": macs["exported"] / macs["backbone"],
        "domains": domains,
        "seconds": settings.seconds,
        "rounds": settings.rounds,
        "options": settings.options,
        "litserve": _litserve_version(settings.litserve),
        "gain_of_8": 8 * times[1] / times[8] if times else 1.0,
    }
    traffic = traffic_of(model)
    with contextlib.ExitStack() as held:
        generator = held.enter_context(Generator.start())
        systems = _start_all(bundle, packs, network, model, traffic, settings, held, generator)
        found = _measured(systems, settings)
    if settings.litserve is None:
        found[LITSERVE] = {"skipped": "skipped: no --litserve-python was named"}
    model.close()
    return {**row, "systems": found}


def _start_all(
    bundle: Path,
    packs: Path | None,
    network: Network,
    model: Model,
    traffic: Traffic,
    settings: Settings,
    held: contextlib.ExitStack,
    generator: Generator,
) -> dict[str, Measure]:
    folder, threads = settings.folder, settings.threads
    checked = traffic.save(folder / "traffic.npz")
    systems: dict[str, Measure] = {}

    def add(
        name: str,
        command: Callable[[int], list[str]],
        file: Path = checked,
        system: System = "oip",
        health: str = "/v2/health/ready",
    ) -> None:
        port = free_port()
        log = folder / f"{name.replace(' ', '-')}.log"
        server = held.enter_context(started(command(port), port, health, log))

        def measure(clients: int, rate: float, seed: int) -> dict[str, Any]:
            load = Load(port, str(file), system, clients, settings.seconds, rate, seed, CHECK)
            before = server.cpu_seconds()
            found = generator.measure(load)
            _only_answers_or_refusals(name, found["status"])
            return {**found, "server_cpu_s": server.cpu_seconds() - before}

        systems[name] = measure

    own = [x for pack in packs_of(packs) for x in ("--pack", pack)]
    add(
        OURS,
        lambda port: prunion_command(bundle, port, "--threads", threads, *own, *settings.options),
    )
    add(STATIC, lambda port: per_domain_command(bundle, port, threads, packs))
    if settings.unpruned:
        whole = bundle_of(Network(network.backbone, network.size, 1.0, network.domains), folder)
        named = replace(traffic, model=open_bundle(whole).manifest.name, expected=NOTHING)
        asked = named.save(folder / "traffic-unpruned.npz")
        add(WHOLE, lambda port: per_domain_command(whole, port, threads, sliced=False), asked)
    if settings.litserve is not None:
        python, tables = settings.litserve, None
        if packs is not None:
            tables = folder / "tables.npz"
            np.savez(tables, **model.snapshot.feeds)  # type: ignore[arg-type]
        graph = bundle / "model.onnx"
        add(
            LITSERVE,
            lambda port: litserve_command(python, graph, port, threads, tables),
            system="raw",
            health="/health",
        )
    systems[INSIDE] = lambda clients, rate, seed: _inside(model, traffic, settings.seconds, seed)
    return systems


def _measured(systems: dict[str, Measure], settings: Settings) -> dict[str, Any]:
    """By server and load; closed loops first, because they tell what the open ones may be."""
    random = np.random.default_rng(0)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {} for name in systems}

    def rounds(loads: dict[str, tuple[int, float]]) -> None:
        for turn in range(settings.rounds):
            cases = [(name, mode) for name in systems for mode in loads]
            for place in random.permutation(len(cases)):
                name, mode = cases[place]
                clients, rate = loads[mode]
                if name == INSIDE and (rate or clients > 1):
                    continue
                result = systems[name](clients, rate, turn)
                found[name].setdefault(mode, []).append(result)

    for name, measure in systems.items():  # sessions are made, arenas grow
        for turn in range(WARM_ROUNDS):
            if name != INSIDE:
                measure(max(settings.clients), 0.0, turn)
    rounds({f"{n} clients": (n, 0.0) for n in settings.clients})
    capacity = min(
        max(np.median([x["per_s"] for x in results]) for results in found[name].values())
        for name in (OURS, STATIC)
    )
    rounds({f"{share * capacity:.0f}/s open": (CONNECTIONS, share * capacity) for share in SHARES})
    return {
        name: {mode: _together(results) for mode, results in modes.items()}
        for name, modes in found.items()
    }


def _inside(model: Model, traffic: Traffic, seconds: float, seed: int) -> dict[str, Any]:
    """A loop that calls the model: one image at a time, of any domain."""
    order = np.random.default_rng(seed).integers(0, len(traffic.names), 1 << 12).tolist()
    times: list[float] = []
    begun = time.perf_counter()
    while (now := time.perf_counter()) < begun + seconds:
        domain = order[len(times) % len(order)]
        model.logits(traffic.image(domain), np.array([domain], np.int64))
        times.append(time.perf_counter() - now)
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    spent = time.perf_counter() - begun
    return {
        "per_s": len(times) / spent,
        "answered_ms": {"p50": float(p50), "p99": float(p99)},
        "status": {"200": len(times)},
        "wrong": 0,
        "unsent": 0,
        "client_cpu_us": 0.0,
    }


def _together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and sums of what must not happen."""

    def median(values: list[float]) -> float:
        return float(np.median(values)) if values else float("nan")

    status = [(int(key), n) for x in results for key, n in x["status"].items()]
    late = [x["late_ms"]["p99"] for x in results if x.get("late_ms")]
    cpu = [
        1e3 * x["server_cpu_s"] / max(x["status"].get("200", 1), 1)
        for x in results
        if "server_cpu_s" in x
    ]
    return {
        "per_s": median([x["per_s"] for x in results]),
        "p50": median([x["answered_ms"]["p50"] for x in results if x["answered_ms"]]),
        "p99": median([x["answered_ms"]["p99"] for x in results if x["answered_ms"]]),
        "refused": sum(n for key, n in status if key not in (0, 200)),
        "lost": sum(n for key, n in status if key == 0),
        "unsent": sum(x["unsent"] for x in results),
        "wrong": sum(x["wrong"] for x in results),
        "client_cpu_us": median([x["client_cpu_us"] for x in results]),
        "server_cpu_ms": median(cpu) if cpu else None,
        "late_p99_ms": median(late) if late else None,
        "rounds_per_s": [x["per_s"] for x in results],
    }


def _only_answers_or_refusals(name: str, status: Mapping[str, int]) -> None:
    """A server that is asked for what it has not got is fast, and says nothing."""
    other = {key: n for key, n in status.items() if int(key) not in (0, 200, 429, 503)}
    if other:
        raise RuntimeError(f"{name} answered with {other}: the benchmark asks it wrongly")


def _litserve_version(python: Path | None) -> str | None:
    if python is None:
        return None
    code = "from importlib.metadata import version; print(version('litserve'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
