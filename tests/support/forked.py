"""Processes of their own that need not import torch: each is forked off one that has.

To start Python and import what trains and exports takes seconds, to fork it no time. The child has
a folder, an environment, signals and an end of its own, and nothing was computed before it. What
only a new interpreter shows, that a command imports what it needs, others show:
`tests/docs/test_tutorial.py`, `tests/trainer/processes/test_group.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Forked", "forked_prunion"]

ROOT = Path(__file__).parents[2]
STREAMS = {1: "out", 2: "err"}
# Elsewhere libraries that the system brings break in a fork: there each child imports torch again.
METHOD = "forkserver" if sys.platform == "linux" else "spawn"


class Forked:
    """A function of a module in a process; of `subprocess.Popen[str]` as much as tests ask for."""

    def __init__(
        self,
        run: Callable[..., object],
        *arguments: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        method: str = METHOD,
    ) -> None:
        context: Any = multiprocessing.get_context(method)
        context.set_forkserver_preload(["tests.support.preloaded"])
        self._prints = tempfile.TemporaryDirectory()
        place = (str(cwd or Path.cwd()), {**os.environ, **(env or {})}, self._prints.name)
        self._process: Any = context.Process(target=_begin, args=(run, arguments, *place))
        with pytest.MonkeyPatch.context() as patch:  # the child, and what it is forked off, find us
            patch.syspath_prepend(ROOT)
            patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
            self._process.start()

    @property
    def returncode(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float) -> int:
        """Its exit code, or the negative number of the signal that ended it."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it printed on both streams, once it has ended."""
        self.wait(timeout)
        out, err = (Path(self._prints.name, name) for name in STREAMS.values())
        return out.read_text("utf-8"), err.read_text("utf-8")


def forked_prunion(*arguments: object, step_s: float = 0.0, **place: Any) -> Forked:
    """The command `prunion`; every step of its training takes `step_s` seconds longer.

    Whoever is to stop it between two steps may be given no time for longer than a step takes.
    """
    return Forked(_prunion, step_s, *map(str, arguments), **place)


def _prunion(step_s: float, *arguments: str) -> None:
    from prunion.runtime.cli.main import main

    if step_s:
        from prunion.trainer.learning.training import Training

        step = Training._step

        def slow(self: Training, *args: Any, **more: Any) -> Any:
            time.sleep(step_s)
            return step(self, *args, **more)

        Training._step = slow  # type: ignore[method-assign]
    sys.argv = ["prunion", *arguments]
    main()


def _begin(
    run: Callable[..., object],
    arguments: tuple[object, ...],
    folder: str,
    environment: dict[str, str],
    prints: str,
) -> None:
    """In the child: streams, environment and folder, then `run`."""
    for number, name in STREAMS.items():
        file = os.open(Path(prints, name), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    run(*arguments)
