"""A server that is told to stop while it still loads something."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.runtime.errors import InputError, OverloadError
from prunion.runtime.model import load

pytest.importorskip("onnxruntime")
from prunion.runtime.serve import Service
from prunion.runtime.serve.models.serving import Serving, open_anew
from tests.support.waiting import LONG


def test_stopping_waits_for_a_bundle_that_is_being_loaded_and_takes_no_other(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions that were made after the end, and never closed, aborted the process."""
    service, made = Service(load(bundle_path, "cpu", threads=1)), []
    begun, goes_on = threading.Event(), threading.Event()

    def slow(*given: Any) -> Serving:
        begun.set()
        assert goes_on.wait(LONG)
        made.append(open_anew(*given))
        return made[0]

    async def scene() -> None:
        monkeypatch.setattr("prunion.runtime.serve.models.service.open_anew", slow)
        asked = [asyncio.ensure_future(service.replace(bundle_path)) for _ in range(2)]
        await asyncio.to_thread(begun.wait, LONG)
        stopping = asyncio.ensure_future(service.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        goes_on.set()
        await stopping
        await asked[0]
        with pytest.raises(OverloadError, match="the server stops"):
            await asked[1]

    before = service.serving
    asyncio.run(scene())
    assert service.serving is made[0]
    for model in (before.model, made[0].model):
        with pytest.raises(InputError, match="closed"):
            model.logits(np.zeros((1, 3, 12, 10), np.float32), "signs")


SLOW = """
import sys, time
from pathlib import Path
from prunion.runtime.serve import ServeOptions, serve_with, server
from prunion.runtime.serve.models import service

def slow(*given):
    print("loading", flush=True)
    time.sleep({seconds})

{patched} = slow
options = ServeOptions(port=0, log="text", ready_seconds=0, drain_seconds=0.2)
serve_with(Path(sys.argv[1]), options)
"""


@pytest.mark.parametrize("patched", ["server.load_model", "service.open_anew"])
def test_a_load_that_takes_longer_than_the_drain_is_given_up(
    bundle_path: Path, patched: str
) -> None:
    """At the start a signal waited for the whole load, and so did the end for one that ran then."""
    code = SLOW.format(patched=patched, seconds=2 * LONG)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code, str(bundle_path)], stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            if patched == "service.open_anew":
                while "serving" not in process.stderr.readline():
                    assert process.poll() is None
                process.send_signal(signal.SIGHUP)
            assert process.stdout.readline() == "loading\n"
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(LONG) == 0
            assert time.monotonic() - begun < LONG / 2
            assert "what was being loaded is given up" in process.stderr.read()
        finally:
            process.kill()
