"""`prunion build`."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import BackendError
from prunion.runtime.tensorrt import engine_key
from prunion.runtime.tensorrt.build import EngineResult
from tests.runtime.cli.command_line import invoke


@pytest.mark.parametrize(("here", "compared"), [(86, True), (89, False), (None, False)])
def test_an_engine_for_this_gpu_is_held_to_the_probe_when_it_is_built(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, here: int | None, compared: bool
) -> None:
    opened = open_bundle(bundle_path)
    key = engine_key(opened, "tensorrt", "10.3", (86,))
    result = EngineResult(bundle_path / "units.json", bundle_path / "units.json.json", key, 1.0)
    monkeypatch.setattr("prunion.runtime.tensorrt.build_engine", lambda *_, **__: result)
    monkeypatch.setattr("prunion.runtime.tensorrt.device_sm", lambda: here)

    def refused(*_: object) -> None:
        raise BackendError("tensorrt computes something else")

    monkeypatch.setattr("prunion.runtime.tensorrt.open_engine", refused)
    done = invoke("build", bundle_path, "--target", "tensorrt")
    assert done.exit_code == (1 if compared else 0), done.output
    assert ("error: tensorrt computes something else" in done.stderr) == compared
