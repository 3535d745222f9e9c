"""The page to try a server: what people do with it in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.runtime.cli import cli
from tests.runtime.serve.running import Running

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
httpx = pytest.importorskip("httpx")

from tests.runtime.serve.http.page.tab import Tab  # noqa: E402


def predicted(bundle: Path, photo: Path, domain: str) -> list[tuple[str, str]]:
    """Classes and percents as `prunion predict` says them."""
    line = ["predict", str(bundle), "--domain", domain, "--top", "5", "--json", str(photo)]
    done = CliRunner().invoke(cli, line)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    return [(x["name"], f"{100 * x['probability']:.1f} %") for x in row["top"]]


def test_a_file_gets_the_answer_that_predict_gives(
    server: Running, open_tab: Callable[..., Tab], bundle_path: Path, photo: Path
) -> None:
    tab = open_tab(server.url + "/")
    assert tab.text("h1") == "toy"
    tab.page.set_input_files("#file", photo)
    assert tab.answered().startswith("flowers: ")
    for domain in ("signs", "flowers"):  # the same image, without choosing it again
        tab.page.check(f"input[value={domain}]", force=True)
        tab.until(f"document.getElementById('said').textContent.startsWith('{domain}')")
        tab.until("!document.querySelector('#answers.waiting')")
        rows = [x.split("\n") for x in tab.page.locator("#answers li").all_inner_texts()]
        assert [tuple(x) for x in rows] == predicted(bundle_path, photo, domain)
        assert tab.text("#best") == rows[0][0]
    assert "3 classes: daisy, rose, tulip" in tab.text("#classes")
    assert "There and back in" in tab.text("#trip-text")
    tab.until("document.querySelectorAll('#mix rect').length >= 3")
    assert "signs" in tab.text("#legend")
    assert "batches: " in str(tab.page.get_attribute("#mix", "aria-label"))
    assert tab.said == []


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_may_be_dropped_or_pasted(
    server: Running, open_tab: Callable[..., Tab], photo: Path, way: str
) -> None:
    tab = open_tab(server.url + "/#digits")
    hexes = photo.read_bytes().hex()
    tab.page.evaluate(
        """([way, hexes]) => {
          const bytes = Uint8Array.from(hexes.match(/../g), (x) => parseInt(x, 16));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "photo.png", { type: "image/png" }));
          const options = { bubbles: true, cancelable: true };
          document.body.dispatchEvent(way === "drop"
            ? new DragEvent("drop", { ...options, dataTransfer: data })
            : new ClipboardEvent("paste", { ...options, clipboardData: data }));
        }""",
        [way, hexes],
    )
    assert tab.answered().startswith("digits: ")
    assert tab.page.get_attribute("#picture", "alt") == "The image photo.png"
    assert tab.said == []


def test_the_camera_answers_all_the_time(server: Running, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(server.url + "/#signs")
    tab.page.click("#camera")
    tab.page.check("#live")
    assert "%" not in tab.answered(), "nobody wants to hear every percent"
    tab.until("/last [3-9]/.test(document.getElementById('trip-text').textContent)")
    tab.page.click("#take")
    tab.until("document.getElementById('said').textContent.includes('%')")
    assert tab.page.is_visible("#picture")
    assert tab.page.is_hidden("#video")
    assert tab.said == []


def test_a_phone_without_tls_gets_its_own_camera(
    open_tab: Callable[..., Tab], server: Running
) -> None:
    tab = open_tab(server.url + "/")
    assert tab.page.is_hidden("#phone-camera")
    script = "Object.defineProperty(navigator, 'mediaDevices', { value: undefined })"
    tab.page.add_init_script(script)
    tab.page.reload()
    tab.until("document.querySelector('#domains label')")
    assert tab.page.is_hidden("#camera")
    assert tab.page.is_visible("#phone-camera")
    assert tab.page.get_attribute("#phone-camera input", "capture") == "environment"


def test_the_keyboard_is_enough(server: Running, open_tab: Callable[..., Tab], photo: Path) -> None:
    tab = open_tab(server.url + "/")
    # Choosers are caught from here on: told only beside the key, a busy browser may miss the first.
    tab.page.on("filechooser", lambda _: None)
    focused = "document.activeElement.value || document.activeElement.id"
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate(focused) == "flowers"
    ring = "getComputedStyle(document.activeElement.parentElement).outlineStyle"
    assert tab.page.evaluate(ring) == "solid", "where is the focus?"
    tab.page.keyboard.press("ArrowRight")
    assert tab.page.evaluate(focused) == "signs"
    tab.until("location.hash === '#signs'")
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate(focused) == "file"
    with tab.page.expect_file_chooser() as chooser:
        tab.page.keyboard.press("Space")
    chooser.value.set_files(photo)
    assert tab.answered().startswith("signs: ")
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")  # the camera
    tab.until("document.activeElement.id === 'take'")
    tab.page.keyboard.press("Enter")
    tab.until("document.activeElement.id === 'camera'")
    assert tab.said == []


def test_what_the_server_refuses_is_said(
    server: Running, open_tab: Callable[..., Tab], tmp_path: Path, photo: Path
) -> None:
    tab = open_tab(server.url + "/")
    (tmp_path / "text.png").write_text("no image")
    tab.page.set_input_files("#file", tmp_path / "text.png")
    tab.page.wait_for_selector("#problem:not([hidden])")
    assert "image" in tab.text("#problem")
    tab.page.set_input_files("#file", photo)
    tab.answered()
    assert tab.page.is_hidden("#problem")
