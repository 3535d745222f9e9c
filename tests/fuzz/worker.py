"""One process of `test_fuzz.py`: mutated inputs of one kind, each read as a user would read it.

    python tests/fuzz/worker.py KIND FIRST LAST FOLDER

A line of JSON for each finding, and the number of the input before it is read, on standard output,
so that the one who started it knows which input was the last.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import traceback
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz.targets import KINDS, Target

SECONDS = 10  # of the processor: a busy machine is no fault of the input
MOST_BYTES = 1 << 30
WATCHED = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate")
# Read by Python and its libraries themselves, whatever the input.
SYSTEM = ("/proc", "/sys", "/dev", "/usr", "/lib", "/etc/localtime", "/etc/mime.types")


def main(kind: str, first: int, last: int, folder: Path) -> None:
    """Read the inputs `first … last - 1` of one kind, and say what went wrong."""
    from prunion.runtime.base.machine import peak_rss_bytes
    from prunion.runtime.errors import PrunionError

    target = KINDS[kind](folder)[kind]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        target_once(target, Path(place), f"{kind} warm")  # libraries are loaded, and counted
    base, watch = peak_rss_bytes(), _Watch((str(folder), os.environ["PRUNION_CACHE"]))
    sys.addaudithook(watch)
    signal.signal(signal.SIGPROF, _too_long)
    counts = Counter[str]()
    for number in range(first, last):
        print(number, flush=True)
        wrong, reason = "", None
        with tempfile.TemporaryDirectory(dir=folder) as place:
            watch.seen, watch.on = [], True
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            counts["read"] += 1
            try:
                target(random.Random(f"{kind} {number}"), Path(place))
            except PrunionError as exc:
                counts["refused"] += 1
                text = str(exc)
                odd = [c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
                wrong = f"message with {odd[:5]}: {text[:200]!a}" if odd else ""
            except BaseException as exc:
                wrong, reason = repr(exc)[:300], exc
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                watch.on = False
        if watch.seen:
            wrong += f" touches {watch.seen[:3]}"
        if peak_rss_bytes() - base > MOST_BYTES:
            wrong += f" took {(peak_rss_bytes() - base) >> 20} MiB"
        if wrong:
            trace = traceback.format_exception(reason)[-4:] if reason else []
            print(json.dumps({"kind": kind, "number": number, "wrong": wrong, "trace": trace}))
        if peak_rss_bytes() - base > MOST_BYTES:
            break  # the peak stays: a fresh process goes on
    print(json.dumps(counts), file=sys.stderr)


def target_once(target: Target, place: Path, seed: str) -> None:
    """Read one input, whatever comes of it."""
    try:
        target(random.Random(seed), place)
    except Exception:
        return


class _Watch:
    """Which files outside of the named folders are opened or changed while an input is read."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        own = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), *SYSTEM)
        if checkpoint := os.environ.get("FUZZ_CHECKPOINT"):  # copied anew for each input
            own = (*own, checkpoint)
        self.written, self.read = folders, (*folders, *own)
        self.on, self.seen = False, list[str]()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or event not in WATCHED or not isinstance(arguments[0], str | bytes):
            return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if not path.startswith(self.read if reads else self.written):
            self.seen.append(f"{event} {path}")


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
