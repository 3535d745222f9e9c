"""The page to try a server: readable by all, with keys, many domains, and hostile names."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prunion.runtime.bundle import read_pack, write_pack
from tests.runtime.serve.running import Running, running

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
httpx = pytest.importorskip("httpx")

from tests.runtime.serve.http.page.tab import KEY, LOOK, Tab  # noqa: E402

MANY = 1000


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (360, "dark"),
        (1280, "light"),
        pytest.param(360, "light", marks=pytest.mark.slow),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
    ],
)
def test_it_is_readable_by_everybody(
    server: Running, open_tab: Callable[..., Tab], photo: Path, width: int, scheme: str
) -> None:
    tab = open_tab(server.url + "/#signs", width, scheme, reduced_motion="reduce")
    tab.page.set_input_files("#file", photo)
    tab.answered()
    tab.until("document.querySelectorAll('#mix rect').length")
    found = tab.page.evaluate(LOOK)
    for nothing in ("dim", "unnamed", "small", "dangling"):
        assert found[nothing] == [], nothing
    assert (found["doubled"], found["images"], found["lang"]) == (0, 0, "en")
    assert found["landmarks"]
    steps = zip(found["headings"], found["headings"][1:], strict=False)
    assert found["headings"][0] == 1
    assert all(after <= before + 1 for before, after in steps), "a heading's level is skipped"
    assert found["wide"] <= 0
    dark = sum(map(int, re.findall(r"\d+", found["ground"])[:3])) < 200
    assert dark is (scheme == "dark")
    assert tab.said == []


def test_it_asks_for_a_key(
    bundle_path: Path, open_tab: Callable[..., Tab], tmp_path: Path, photo: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"shop {hashlib.sha256(KEY.encode()).hexdigest()}\n")
    with running(bundle_path, "--api-keys", keys) as server:
        tab = open_tab(server.url + "/")
        for key in ("wrong", KEY):
            tab.page.wait_for_selector("#key:visible")
            tab.page.fill("#key", key)
            tab.page.press("#key", "Enter")
            if key == "wrong":
                tab.page.wait_for_selector("#key-wrong:visible")
        tab.until("document.querySelector('#domains label')")
        tab.page.set_input_files("#file", photo)
        tab.answered()
        tab.page.reload()  # the tab still knows it
        tab.until("document.querySelector('#domains label')")
        assert tab.page.is_hidden("#key-form")
        refused = [x for x in tab.said if "401" not in x]
    assert refused == []


def test_a_thousand_domains_are_searched(
    bundle_path: Path, open_tab: Callable[..., Tab], tmp_path: Path, photo: Path
) -> None:
    pack = read_pack(bundle_path / "domains" / "signs.safetensors")
    for number in range(MANY):
        named = replace(pack, name=f"shop-{number:04}")
        write_pack(tmp_path / f"{named.name}.safetensors", named)
    with running(bundle_path, "--packs", tmp_path) as server:
        tab = open_tab(server.url + "/", 360)
        assert tab.page.locator("#domains label").count() == 60
        assert "of 1,003 domains" in tab.text("#found")
        tab.page.keyboard.press("Tab")
        tab.page.keyboard.type("SHOP 77")
        tab.until("document.getElementById('found').textContent.startsWith('19 of')")
        tab.page.keyboard.press("Enter")
        tab.until("location.hash === '#shop-0077'")
        tab.page.set_input_files("#file", photo)
        assert tab.answered().startswith("shop-0077: ")
        tab.until("document.getElementById('classes').textContent.startsWith('5 classes: stop')")
        tab.page.focus("#search")
        tab.page.keyboard.press("ArrowDown")
        assert tab.page.evaluate("document.activeElement.type") == "radio"
        assert tab.page.evaluate(LOOK)["wide"] <= 0
        assert tab.said == []


def test_a_hostile_name_runs_nothing(
    toy: Any, tmp_path: Path, open_tab: Callable[..., Tab]
) -> None:
    bundle = toy.make_bundle(tmp_path)
    path = bundle / "domains" / "digits.safetensors"
    pack = read_pack(path)
    hostile = '<img src=x onerror="alert(1)">'
    odd = replace(pack, name="odd", classes=(hostile, "</ol><script>"))
    write_pack(tmp_path / "odd.safetensors", odd)
    stream = io.BytesIO()
    Image.new("RGB", (20, 20)).save(stream, "PNG")
    (tmp_path / "x.png").write_bytes(stream.getvalue())
    with running(bundle, "--pack", tmp_path / "odd.safetensors") as server:
        tab = open_tab(server.url + "/#odd")
        tab.page.set_input_files("#file", tmp_path / "x.png")
        tab.answered()
        assert hostile in tab.text("#answers")
        assert tab.said == []
