"""The page of `prunion report` in a browser: every chart is drawn, nothing in a name is run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks.report.reported import HOSTILE, rename_class

pytest.importorskip("matplotlib", reason="needs prunion[report]")

from prunion.benchmarks.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
# Before a run is made for it, which takes far longer than to draw its page.
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


@pytest.fixture(scope="module")
def browse() -> Callable[..., dict[str, object]]:
    """Open a page of a width and a scheme; gives what a script found in it, and the console."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

    def look(path: Path, width: int, scheme: str, media: str = "screen") -> dict[str, object]:
        with sync_api.sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            view = {"width": width, "height": 900}
            tab = browser.new_context(viewport=view, color_scheme=scheme).new_page()
            said: list[str] = []
            tab.on("console", lambda message: said.append(message.text))
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.on("dialog", lambda box: (said.append(box.message), box.dismiss()))
            tab.on("request", lambda r: said.append(r.url) if r.url.startswith("http") else None)
            tab.emulate_media(media=media, color_scheme=scheme)
            tab.goto(path.as_uri())
            found = tab.evaluate(LOOK)
            browser.close()
        return {**found, "said": said}

    return look


LOOK = """() => {
  const svgs = [...document.querySelectorAll("svg")];
  const drawn = svg => {
    const box = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll("path,use")].filter(
      mark => mark.getBoundingClientRect().width + mark.getBoundingClientRect().height > 0);
    const text = [...svg.querySelectorAll("text")].filter(
      word => word.getBoundingClientRect().width > 0);
    return box.width > 200 && box.height > 60 && marks.length > 3 && text.length > 2;
  };
  return {
    charts: svgs.length,
    drawn: svgs.filter(drawn).length,
    unnamed: svgs.filter(svg => !svg.getAttribute("aria-label")).length,
    wide: document.documentElement.scrollWidth - innerWidth,
    paper: getComputedStyle(document.body).backgroundColor,
    text: Math.min(...[...document.querySelectorAll("svg text")].map(word => {
      const box = word.getBoundingClientRect();
      return Math.max(box.width, box.height);  // a single letter may stand on its side
    })),
    broken: [...document.images].filter(image => image.complete && !image.naturalWidth).length,
    ids: new Set([...document.querySelectorAll("[id]")].map(node => node.id)).size
      == document.querySelectorAll("[id]").length,
  };
}"""


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (360, "dark"),
        (1280, "light"),
        pytest.param(360, "light", marks=pytest.mark.slow),
        pytest.param(1280, "dark", marks=pytest.mark.slow),
    ],
)
def test_a_browser_draws_every_chart(
    made: Path, page: str, browse: Callable[..., dict], width: int, scheme: str
) -> None:
    found = browse(made / "report.html", width, scheme)
    assert found["said"] == []
    assert found["charts"] == found["drawn"] == page.count("<svg")
    assert (found["unnamed"], found["broken"]) == (0, 0)
    assert found["wide"] <= 0
    assert found["ids"]
    assert found["text"] >= 7  # pixels, the smallest on a phone
    assert found["paper"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(27, 34, 44)"}[scheme]


def test_paper_is_white_where_the_screen_is_dark(
    made: Path, page: str, browse: Callable[..., dict]
) -> None:
    found = browse(made / "report.html", 800, "dark", "print")
    assert found["paper"] == "rgb(255, 255, 255)"


def test_a_hostile_name_runs_nothing(
    own_run: Path, tmp_path: Path, browse: Callable[..., dict]
) -> None:
    rename_class(own_run, HOSTILE)
    write_report([own_run], tmp_path / "x.html")
    found = browse(tmp_path / "x.html", 1280, "light")
    assert found["said"] == []
    assert found["charts"] == found["drawn"]
