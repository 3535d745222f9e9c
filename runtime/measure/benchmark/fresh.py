"""Loading and first answer of one contender in a process that has done nothing else.

In the process that times several of them their memory adds up, and what one has loaded the next
finds ready.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from prunion.runtime.base import peak_rss_bytes, rss_bytes
from prunion.runtime.errors import PrunionError
from prunion.runtime.measure.benchmark.contenders import Setup
from prunion.runtime.measure.benchmark.rivals import all_contenders

__all__ = ["Fresh", "measure_fresh"]

MOST_S = 600


@dataclass(frozen=True)
class Fresh:
    """One contender in a fresh process, at one batch size.

    Attributes:
        load_ms: from its files to what can answer; the packages are loaded before.
        first_call_ms: the first batch; what is made on first use is in it.
        peak_rss_bytes: the most memory that the process ever had, Python and packages included.
        packages_rss_bytes: what it had before loading, Python and packages only.
    """

    session: str
    batch: int
    load_ms: float
    first_call_ms: float
    peak_rss_bytes: int
    packages_rss_bytes: int


def measure_fresh(setup: Setup, name: str, digest: str, batch: int) -> Fresh | str:
    """Measure the contender of that name and digest; why that did not work, if it did not.

    What a whole process needs may not fit where the contenders alone do, and what it is opened from
    may be another one by now: that costs this figure, not the others.
    """
    told = json.dumps({"setup": asdict(setup), "name": name, "digest": digest, "batch": batch})
    command = [sys.executable, "-m", "prunion.runtime.measure.benchmark.fresh", told]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_S, check=False)
        if done.returncode == 0:
            return Fresh(**json.loads(done.stdout.splitlines()[-1]))
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"{name}: no fresh process could be measured ({exc})"
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return f"{name}: no fresh process could be measured ({last})"


def main() -> None:
    """What the fresh process does."""
    told = json.loads(sys.argv[1])
    setup = Setup(**{**told["setup"], "against": tuple(told["setup"]["against"])})
    own, rivals = all_contenders(setup)
    same = (x for x in [*own, *rivals] if (x.name, x.digest) == (told["name"], told["digest"]))
    contender = next(same, None)
    if contender is None:
        sys.exit("what it is opened from is another one by now: measure again")
    _load_packages(setup)
    before = rss_bytes()
    start = time.perf_counter()
    opened = contender.open()
    loaded = time.perf_counter()
    call = opened.call(told["batch"])
    ready = time.perf_counter()
    call()
    done = time.perf_counter()
    fresh = Fresh(
        contender.name,
        told["batch"],
        (loaded - start) * 1e3,
        (done - ready) * 1e3,
        peak_rss_bytes(),
        before,
    )
    print(json.dumps(asdict(fresh)))


def _load_packages(setup: Setup) -> None:
    import onnxruntime  # noqa: F401  (every backend's answers are held to it)

    if setup.backend == "openvino" or "openvino" in setup.against:
        import openvino  # noqa: F401


if __name__ == "__main__":
    try:
        main()
    except PrunionError as exc:
        sys.exit(str(exc))
