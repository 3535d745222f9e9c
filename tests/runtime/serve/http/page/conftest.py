"""A server, an image, and a browser that shows its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runtime.serve.running import Running, running

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
httpx = pytest.importorskip("httpx")

from tests.runtime.serve.http.page.tab import CHROMIUM, FAKE_CAMERA, Tab  # noqa: E402


@pytest.fixture(scope="module")
def server(bundle_path: Path) -> Iterator[Running]:
    with running(bundle_path) as server:
        yield server


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH")
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *FAKE_CAMERA])
        yield found
        found.close()


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    contexts = []

    def opened(url: str, width: int = 1280, scheme: str = "light", **options: Any) -> Tab:
        view = {"width": width, "height": 800}
        contexts.append(browser.new_context(viewport=view, color_scheme=scheme, **options))
        tab = Tab(contexts[-1].new_page(), url)
        tab.until("document.querySelector('#domains label, #key-form:not([hidden])')")
        return tab

    yield opened
    for context in contexts:
        context.close()
