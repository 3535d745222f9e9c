"""The small fixed set of cases of one checkout, timed block by block as a driver asks for them.

Run by its text (`python -c`) with `PYTHONPATH` at a checkout, older ones too: it imports nothing
of the suite, and of prunion what has been there for long. A line `CASE SECONDS` on standard input
is answered by a line of JSON: the milliseconds of its calls, or why it has none.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIDE, DOMAINS, WAIT_S = 64, 4, 60
SERVE = "from prunion.runtime.cli.main import main; main()"


def train_step() -> Callable[[], object]:
    """Eight steps of the ramp: a small trunk, two domains, eight images of each."""
    import torch

    from prunion.benchmarks.cost import random_training
    from prunion.trainer.config import BackboneConfig

    torch.set_num_threads(1)
    backbone = BackboneConfig("resnet18", weights="none", cut="layer2")
    training = random_training(backbone, 32, 2, 8, "cpu", 0.5)
    return lambda: training.run_epoch(lambda figures: None)


def export(folder: Path) -> Callable[[], object]:
    """From a checkpoint to a bundle, verified."""
    from prunion import export
    from prunion.benchmarks.random_bundle import random_checkpoint

    path = folder / "checkpoint"
    random_checkpoint(path, "resnet18", 2, 0.5, 16, size=32, classes=5, cut="layer1")
    return lambda: export(path, folder / "exported.prunion", force=True)


def one_image(folder: Path, images: int = 1) -> Callable[[], object]:
    """Logits of `images` images, of as many domains as there are."""
    from prunion import load

    model = load(bundle(folder), "cpu", threads=1)
    image = np.random.default_rng(0).standard_normal((images, 3, SIDE, SIDE), np.float32)
    rows = np.arange(images) % DOMAINS
    return lambda: model.logits(image, rows)


def request(folder: Path) -> Callable[[], object]:
    """One image over HTTP to a server of this checkout."""
    from prunion.runtime.protocol import http_caller

    path = bundle(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--threads", "1"]
    # It ends with this process: its standard input is this one's, and the driver kills the group.
    subprocess.Popen(
        [sys.executable, "-c", SERVE, "serve", str(path), *options], stderr=subprocess.DEVNULL
    )
    image = np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE), np.float32)
    call = http_caller(f"http://127.0.0.1:{port}", path.stem, image, [[0]])
    end = time.monotonic() + WAIT_S
    while True:
        try:
            call()
            return call
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def bundle(folder: Path) -> Path:
    """A pruned resnet18, made once for all workers of a checkout."""
    from prunion.benchmarks.random_bundle import random_bundle

    path = folder / "small.prunion"
    if not path.exists():
        random_bundle(path, "resnet18", DOMAINS, size=SIDE, classes=10)
    return path


def main() -> None:
    """Answer the driver until it closes standard input."""
    folder = Path(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print: answers have a stream of their own
    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "training step": train_step,
        "export": lambda: export(folder),
        "one image": lambda: one_image(folder),
        "mixed batch": lambda: one_image(folder, 8),
        "serving request": lambda: request(folder),
    }
    calls: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        name, _, seconds = line.strip().rpartition(" ")
        try:
            if name not in calls:
                calls[name] = makers[name]()
                calls[name]()
            value: object = block(calls[name], float(seconds))
        except Exception as exc:  # an older checkout may lack what a case needs
            value = f"{type(exc).__name__}: {exc}"[:300]
        print(json.dumps(value), file=answers, flush=True)


def block(call: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of calls, one at least."""
    times: list[float] = []
    start = time.perf_counter()
    while not times or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1e3)
    return times


if __name__ == "__main__":
    main()
