"""What a server holds: many domains against a session for each, and many packs against few."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prunion.benchmarks.serving.clients import (
    connected,
    http_bytes,
    make_traffic,
    oip_body,
    status_of,
)
from prunion.benchmarks.serving.compare import Settings
from prunion.benchmarks.serving.networks import Network, bundle_of, pack_folder, packs_of
from prunion.benchmarks.serving.rows import Row
from prunion.benchmarks.serving.servers import (
    Server,
    free_port,
    memory_of,
    per_domain_command,
    prunion_command,
    started,
)
from prunion.runtime.bundle import open_bundle
from prunion.runtime.model import load

__all__ = ["memory", "packs"]

TURNS = 12  # times that every domain is asked: those that are asked often get their own sessions
PACK_BYTES = re.compile(r"^prunion_pack_bytes (\S+)", re.MULTILINE)


def memory(network: Network, domains: int, settings: Settings) -> Row:
    """PSS and USS of the server with `domains`, and of one with a session for each."""
    bundle = bundle_of(network, settings.folder)
    more = domains - network.domains
    folder = pack_folder(bundle, more, settings.folder) if more > 0 else None
    own = [x for pack in packs_of(folder) for x in ("--pack", pack)]
    names = [*open_bundle(bundle).domains, *(pack.stem for pack in packs_of(folder))]
    threads = settings.threads
    commands: dict[str, Callable[[int], list[str]]] = {
        "prunion": lambda port: prunion_command(
            bundle, port, "--threads", threads, *own, *settings.options
        ),
        "a session per domain": lambda port: per_domain_command(bundle, port, threads, folder),
    }
    found = {}
    for name, command in commands.items():
        port, begun = free_port(), time.perf_counter()
        with started(command(port), port, log=settings.folder / "memory.log") as server:
            start_ms = 1e3 * (time.perf_counter() - begun)
            _ask_all(server, bundle, names)
            found[name] = {**memory_of(server.process.pid), "start_ms": start_ms}
    ours, theirs = (found[name]["pss"] for name in commands)
    return {
        "what": "memory",
        "network": network.name,
        "domains": domains,
        "options": settings.options,
        "systems": found,
        "share": ours / theirs,
    }


def packs(network: Network, counts: Sequence[int], settings: Settings) -> Row:
    """PSS with each number of packs read on demand, and the time of their first answers."""
    bundle = bundle_of(network, settings.folder)
    folder = pack_folder(bundle, max(counts), settings.folder)
    names = [pack.stem for pack in packs_of(folder)]
    found: list[dict[str, Any]] = []
    for count in counts:
        port = free_port()
        command = prunion_command(
            bundle, port, "--threads", settings.threads, "--packs", folder, *settings.options
        )
        with started(command, port, log=settings.folder / "packs.log") as server:
            first = _ask_all(server, bundle, names[:count])
            text = server.get("/metrics")[1].decode()
            held = PACK_BYTES.search(text)
            assert held is not None, "the server tells no memory of packs"
            found.append(
                {
                    "packs": count,
                    **memory_of(server.process.pid),
                    "pack_bytes": float(held[1]),
                    "first_ms": 1e3 * float(np.median(first)),
                }
            )
    few, many = found[0], found[-1]
    return {
        "what": "packs",
        "network": network.name,
        "options": settings.options,
        "counts": found,
        "ratio": (many["pss"] - many["pack_bytes"]) / (few["pss"] - few["pack_bytes"]),
    }


def _ask_all(server: Server, bundle: Any, names: Sequence[str]) -> list[float]:
    """Ask for every domain, TURNS times; the seconds of the first turn."""
    with load(bundle, "cpu", threads=1) as model:
        traffic = make_traffic(model.bundle.manifest.name, names, model.sessions.form.image_shape)
    first = []
    with connected(server.port) as ask:
        for turn in range(TURNS):
            for place, name in enumerate(names):
                body, length = oip_body(traffic.image(place), name)
                headers = {"Inference-Header-Content-Length": str(length)}
                request = http_bytes(f"/v2/models/{traffic.model}/infer", body, headers)
                begun = time.perf_counter()
                answer = ask(request)
                assert status_of(answer) == 200, answer[:300]
                if turn == 0:
                    first.append(time.perf_counter() - begun)
    return first
