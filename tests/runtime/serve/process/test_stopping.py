"""A server that is told to stop while it still loads something."""

from __future__ import annotations

import asyncio
import threading
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
