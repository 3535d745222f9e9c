"""Load for a real server of the toy bundle: clients that ask again and again, and what they got."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from tests.runtime.serve.running import Running
from tests.support.waiting import LONG

IMAGE = np.random.default_rng(5).standard_normal((1, 3, 12, 10), dtype=np.float32)


def request(domain: str = "signs") -> tuple[bytes, dict[str, str]]:
    """A body with raw tensors, and its headers."""
    name = domain.encode()
    data = [IMAGE.tobytes(), len(name).to_bytes(4, "little") + name]
    inputs = [
        {"name": "image", "datatype": "FP32", "shape": [1, 3, 12, 10]},
        {"name": "domain", "datatype": "BYTES", "shape": [1]},
    ]
    for entry, raw in zip(inputs, data, strict=True):
        entry["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": inputs}).encode()
    return head + b"".join(data), {"Inference-Header-Content-Length": str(len(head))}


def ask(connection: http.client.HTTPConnection, domain: str = "signs") -> tuple[int, list[float]]:
    """Status and logits."""
    connection.request("POST", "/v2/models/toy/infer", *request(domain))
    answer = connection.getresponse()
    value = json.loads(answer.read())
    return answer.status, value["outputs"][0]["data"] if answer.status == 200 else [value["error"]]


def connect(server: Running) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.http, timeout=LONG)


@dataclass
class Load:
    """What clients got."""

    answers: list[tuple[int, list[float]]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    refused: int = 0


@contextmanager
def clients(server: Running, count: int, domain: str = "signs") -> Iterator[Load]:
    """Clients that ask again and again, until the block ends or nobody listens."""
    load, stop = Load(), threading.Event()

    def run() -> None:
        connection = connect(server)
        while not stop.is_set():
            try:
                if connection.sock is None:
                    connection.connect()
            except OSError:
                load.refused += 1
                return
            try:
                load.answers.append(ask(connection, domain))
            except (OSError, http.client.HTTPException) as exc:
                load.lost.append(repr(exc))
                return

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        stop.set()
        for thread in threads:
            thread.join(LONG)


def right(found: list[float], toy: ModuleType) -> bool:
    expected = toy.reference(toy.make_tables(), IMAGE, np.array([1]))[0]
    return bool(np.allclose(found, expected, rtol=1e-4, atol=1e-5))
