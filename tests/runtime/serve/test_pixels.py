"""Pixels of a request mean one thing, whichever graph of the bundle answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.runtime.model import load

testclient = pytest.importorskip("starlette.testclient", reason="the server is not installed")


@pytest.fixture(scope="module")
def zoomed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose images are resized to half as much again as the crop, with a uint8 graph."""
    pytest.importorskip("torch", reason="a bundle with a uint8 graph is exported")
    from prunion.exporter.bundle import export_bundle
    from prunion.exporter.options import ExportOptions
    from tests.support.networks.drawn import drawn_checkpoint

    folder = tmp_path_factory.mktemp("zoomed")
    bundle = folder / "b.prunion"
    checkpoint = drawn_checkpoint(folder, "bap", resize=24)
    export_bundle(checkpoint, bundle, ExportOptions(uint8=True))
    return bundle


def test_pixels_of_the_networks_own_size_are_cropped_by_every_graph(zoomed: Path) -> None:
    from prunion.runtime.serve import create_app

    found: list[Any] = []
    for precision in ("fp32", "fp32-uint8"):
        model = load(zoomed, "cpu", precision=precision, threads=1)
        form = model.sessions.form
        assert not form.spec.keeps_whole
        shape = (2, form.spec.height, form.spec.width, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        image = {"name": "image", "datatype": "UINT8", "shape": shape}
        with testclient.TestClient(create_app(model)) as client:
            body = {"inputs": [{**image, "data": pixels.ravel().tolist()}]}
            answer = client.post(f"/v2/models/{model.domains[0]}/infer", json=body).json()
        found.append(answer["outputs"][0]["data"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
