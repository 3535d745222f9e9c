"""The page to try a server: what it is sent with, and what people do with it in a real browser."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from prunion.runtime.bundle import read_pack, write_pack
from prunion.runtime.cli import cli
from prunion.runtime.model import load
from tests.runtime.serve.running import Running, running

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
httpx = pytest.importorskip("httpx")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FOLDER = Path(__file__).parents[3] / "runtime" / "serve" / "http" / "page"
KEY = "correct horse"
MANY = 1000
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


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


# --- what the server sends ----------------------------------------------------------------------


def test_the_page_is_sent_under_a_strict_policy(server: Running) -> None:
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript")):
        answer = httpx.get(server.url + path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_fetched_from_elsewhere() -> None:
    for name in ("page.html", "page.css", "page.js"):
        text = (FOLDER / name).read_text("utf-8")
        hosts = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", text))
        assert hosts <= {"http://www.w3.org/2000/svg"}, f"{name} names {hosts}"
        assert len(text.splitlines()) <= 300, name
    html = (FOLDER / "page.html").read_text("utf-8")
    assert not re.findall(r"\s(?:style|on\w+)=", html), "the policy forbids what stands inline"
    targets = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(x.startswith("data:") or not x.startswith("/") for x in targets), "behind a prefix?"


def test_it_can_be_left_out(bundle_path: Path) -> None:
    with running(bundle_path, "--no-page") as server:
        assert httpx.get(server.url).status_code == 404
        assert httpx.get(server.url + "/page.js").status_code == 404
        assert httpx.get(server.url + "/v1/domains").status_code == 200


def test_the_activity_counts_and_shows_the_last_batches(bundle_path: Path, photo: Path) -> None:
    with running(bundle_path) as server:
        assert httpx.get(f"{server.url}/v1/activity").json()["recent"] == []
        head = {"content-type": "image/png"}
        for name in ("signs", "digits", "signs"):
            url = f"{server.url}/v1/domains/{name}:classify"
            assert httpx.post(url, content=photo.read_bytes(), headers=head).status_code == 200
        found = httpx.get(f"{server.url}/v1/activity").json()
    assert [x["domains"] for x in found["recent"]] == [{"signs": 1}, {"digits": 1}, {"signs": 1}]
    assert (found["requests"], found["images"], found["runs"]) == (3, 3, 3)
    assert (found["failed"], found["refused"], found["waiting"]) == (0, 0, 0)
    assert found["spent_us"]["total"] >= found["spent_us"]["network"] > 0


def test_behind_a_prefix_the_same_paths_need_no_key(bundle_path: Path) -> None:
    testclient = pytest.importorskip("starlette.testclient")
    from prunion.runtime.serve import Gate, Service, http_app
    from prunion.runtime.serve.guard import ApiKeys

    keys = ApiKeys((("shop", hashlib.sha256(KEY.encode()).digest()),))
    app = http_app(Service(load(bundle_path, "cpu", threads=1)), Gate(9, 9), keys)
    client = testclient.TestClient(app, root_path="/vision")
    for path in ("/", "/page.js", "/v2/health/ready"):
        assert client.get("/vision" + path).status_code == 200, path
    assert client.get("/vision/v1/domains").status_code == 401
    head = {"authorization": f"Bearer {KEY}"}
    assert client.get("/vision/v1/domains", headers=head).status_code == 200


# --- in a browser -------------------------------------------------------------------------------


class Tab:
    """A page in a browser, and what its console and network said."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.said = page, list[str]()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda r: self._asked(r.url, url))
        page.goto(url)

    def _asked(self, asked: str, url: str) -> None:
        if not asked.startswith((url.split("#")[0], "data:", "blob:")):
            self.said.append(f"asked {asked}")

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))

    def until(self, condition: str) -> None:
        # Not wait_for_function: it evaluates text in the page, which the policy forbids.
        for _ in range(1200):  # a minute: the machine may be busy
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never {condition}: {self.said} {self.page.inner_text('body')}")

    def answered(self) -> str:
        self.until("document.getElementById('said').textContent !== ''")
        return str(self.page.text_content("#said"))


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


LOOK = """() => {
  const shown = [...document.querySelectorAll("body *")].filter((x) => x.checkVisibility());
  const light = (css) => {
    const [r, g, b] = css.match(/[\\d.]+/g).map((x) => {
      const v = x / 255;
      return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (x) => {
    for (; x; x = x.parentElement) {
      const css = getComputedStyle(x).backgroundColor;
      if (!css.startsWith("rgba(0, 0, 0, 0")) return light(css);
    }
    return 1;
  };
  const contrast = (x) => {
    const [a, b] = [light(getComputedStyle(x).color), ground(x)].sort();
    return (b + 0.05) / (a + 0.05);
  };
  const written = (n) => n.nodeType === 3 && n.data.trim();
  const words = shown.filter((x) => [...x.childNodes].some(written));
  const controls = shown.filter((x) => x.matches("button, input, a[href], select, textarea"));
  const label = (x) => x.getAttribute("aria-label") || x.textContent.trim() ||
    [...(x.labels ?? [])].map((y) => y.textContent.trim()).join("");
  const small = controls.filter((x) => x.matches("button, input")).filter((x) => {
    const box = (x.closest("label") ?? x).getBoundingClientRect();
    return box.width < 44 || box.height < 44;
  });
  const ids = [...document.querySelectorAll("[id]")].map((x) => x.id);
  const refers = ["aria-labelledby", "aria-controls", "aria-describedby"];
  const named = [...document.querySelectorAll(refers.map((x) => `[${x}]`).join())];
  return {
    wide: document.documentElement.scrollWidth - innerWidth,
    dim: words.filter((x) => contrast(x) < 4.5).map((x) => x.outerHTML.slice(0, 80)),
    unnamed: controls.filter((x) => !label(x)).map((x) => x.outerHTML.slice(0, 80)),
    small: small.map((x) => x.outerHTML.slice(0, 80)),
    doubled: ids.length - new Set(ids).size,
    dangling: named.flatMap((x) => refers.map((y) => x.getAttribute(y))
      .filter((y) => y && !document.getElementById(y))),
    headings: shown.filter((x) => /^H\\d$/.test(x.tagName)).map((x) => Number(x.tagName[1])),
    images: [...document.images].filter((x) => x.checkVisibility() && !x.alt).length,
    landmarks: ["header", "main", "footer"].every((x) => document.querySelectorAll(x).length === 1),
    ground: getComputedStyle(document.body).backgroundColor,
    lang: document.documentElement.lang,
  };
}"""


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
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


# --- keys, and many domains ---------------------------------------------------------------------


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
