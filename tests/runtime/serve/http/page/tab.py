"""A page in a real browser, and how it looks to those who read it otherwise."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
httpx = pytest.importorskip("httpx")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
KEY = "correct horse"
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
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
