"""Whether this checkout is slower than another one: both timed in turn, on the same machine.

Two processes, one for each checkout, take turns block by block, so that other load falls on both
alike. Where memory lies is drawn once for each process: there are several pairs, one after the
other, and the interval is of other pairs too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import prunion
from prunion.runtime.errors import InputError
from prunion.runtime.measure import Comparison, compare_blocks

__all__ = ["CASES", "MOST", "check_against_checkout", "regressed"]

CASES = ("training step", "export", "one image", "mixed batch", "serving request")
MOST = 0.1  # a regression is one where the whole interval is slower by more than this share
PAIRS, ROUNDS, BLOCK_S = 3, 6, 0.4
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class _Side:
    name: str
    source: Path
    folder: Path


def check_against_checkout(
    before: Path,
    cases: Sequence[str] = CASES,
    *,
    pairs: int = PAIRS,
    rounds: int = ROUNDS,
    block_s: float = BLOCK_S,
    tell: Callable[[str], object] = lambda text: None,
) -> list[Comparison]:
    """Time of this checkout over time of `before`, case by case; below 1 this one is faster.

    A case that a checkout cannot run is told with its reason, and left out.

    Raises:
        InputError: `before` is no checkout, or there is no such case.
    """
    for name in cases:
        if name not in CASES:
            raise InputError(f"there is no case {name!r}: give {', '.join(CASES)}")
    if not (before / "src" / "prunion" / "__init__.py").is_file():
        raise InputError(f"{before} is no checkout of prunion: give a folder with src/prunion")
    after = Path(prunion.__file__).parents[1]
    with tempfile.TemporaryDirectory() as temporary:
        sides = [
            _Side("before", (before / "src").resolve(), Path(temporary) / "before"),
            _Side("after", after, Path(temporary) / "after"),
        ]
        blocks: dict[str, dict[str, list[np.ndarray]]] = {x: {} for x in cases}
        for pair in range(pairs):
            tell(f"pair {pair + 1} of {pairs}")
            with ExitStack() as stack:
                ask = {side.name: stack.enter_context(_worker(side)) for side in sides}
                for name in list(blocks):
                    refused = _take_turns(ask, name, rounds, block_s, blocks[name], pair)
                    if refused:
                        tell(f"{name} is not compared: {refused}")
                        del blocks[name]
    return [
        compare_blocks(name, "before", 1, both["after"], both["before"], groups=pairs)
        for name, both in blocks.items()
    ]


def regressed(found: Sequence[Comparison], most: float = MOST) -> list[Comparison]:
    """The cases whose whole interval is slower by more than the share `most`."""
    return [x for x in found if x.low is not None and x.low > 1 + most]


def _take_turns(
    ask: dict[str, Callable[[str, float], list[float] | str]],
    name: str,
    rounds: int,
    block_s: float,
    blocks: dict[str, list[np.ndarray]],
    pair: int,
) -> str:
    """Add rounds to `blocks`; why that cannot be, if it cannot. The first of each warms up."""
    order = np.random.default_rng(pair)
    for number in range(-1, rounds):
        for side in order.permutation(sorted(ask)):
            answer = ask[str(side)](name, block_s)
            if isinstance(answer, str):
                return f"{side}: {answer}"
            if number >= 0:
                blocks.setdefault(str(side), []).append(np.array(answer))
    return ""


@contextmanager
def _worker(side: _Side) -> Iterator[Callable[[str, float], list[float] | str]]:
    """A process that has the side's prunion, and how to ask it for a block."""
    side.folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER.read_text("utf-8"), str(side.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=side.folder,
        env={**os.environ, "PYTHONPATH": str(side.source), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )

    def ask(name: str, seconds: float) -> list[float] | str:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{name} {seconds}\n")
            process.stdin.flush()
        except BrokenPipeError:
            return "its process ended"
        line = process.stdout.readline()
        answer: list[float] | str = json.loads(line) if line else "its process ended"
        return answer

    try:
        yield ask
    finally:
        if process.stdin is not None:
            process.stdin.close()
        os.killpg(process.pid, signal.SIGKILL)  # its server too
        process.wait()
