"""`prunion report`: what the page shows, what it escapes, and that a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prunion.exporter.bundle import export_bundle
from prunion.runtime import bench, evaluate
from prunion.runtime.base import write_json
from prunion.runtime.cli.main import cli
from prunion.runtime.errors import InputError, PrunionError
from prunion.trainer.config import load_config
from prunion.trainer.run import train_with_baseline
from tests.trainer.tiny_run import tiny_run

pytest.importorskip("matplotlib", reason="needs prunion[report]")

from prunion.benchmarks.report import write_report
from prunion.benchmarks.report.charts_runs import accuracy_chart
from prunion.benchmarks.report.subjects import Subject, read_subjects
from prunion.benchmarks.report.write import _prefixes

HOSTILE = '<img src=x onerror=alert(1)></svg><script>alert(2)</script> $x$ & "q" \' --> 花'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and its baseline, the bundle, an evaluation and a measurement."""
    folder = tmp_path_factory.mktemp("report")
    run_file = tiny_run(folder)
    text = run_file.read_text("utf-8").replace('test"\n', 'test"\nreference = 40.0\n')
    run_file.write_text(text, "utf-8")
    train_with_baseline(load_config(run_file), folder / "run")
    bundle = folder / "tiny.prunion"
    export_bundle(folder / "run", bundle)
    found = evaluate(bundle, folder / "data" / "warm" / "test", "warm")
    write_json(folder / "eval.json", found.record())
    write_json(
        folder / "bench.json", bench(bundle, batches=(1,), seconds=0.02, fresh=False).to_json()
    )
    return folder


def sources(folder: Path) -> list[Path]:
    return [folder / name for name in ("run", "tiny.prunion", "eval.json", "bench.json")]


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    write_report(sources(made), made / "report.html", pictures=made / "pictures")
    return (made / "report.html").read_text("utf-8")


@pytest.fixture
def own_run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "run", tmp_path / "run"))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["report", *map(str, arguments)])


def headings(page: str) -> list[str]:
    return re.findall(r"<h4>([^<]*)</h4>", page)


def test_the_page_shows_everything_that_is_known(page: str, made: Path) -> None:
    found = headings(page)
    for title in (
        "Accuracy",
        "Who shares what they chose",
        "Widths, layer by layer",
        "Channels by their users",
        "Training loss",
        "Accuracy on some test images",
        "Cost of the union",
        "λ, the price of the budget",
        "Confusion",
        "Recall by class",
    ):
        assert title in found
    assert "layer1.0.conv1" in page
    assert '<th scope="col">S_E</th>' in page
    assert "every channel, 4 epochs too" in page
    assert "no rival" not in page  # there is a baseline
    assert "<h3>Verdict</h3><ul><li>pruning " in page
    assert page.count("<svg") == page.count('role="img" aria-label="')
    pictures = {p.suffix for p in (made / "pictures").iterdir()}
    assert pictures == {".svg", ".png"}
    assert len(list((made / "pictures").iterdir())) == 2 * page.count("<svg")


def test_nothing_is_fetched(page: str) -> None:
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "url(" not in re.sub(r"url\(#", "", page)
    assert "<script" not in page


def test_a_run_and_its_bundle_are_one_network(made: Path) -> None:
    (subject,) = read_subjects(sources(made))
    assert subject.bundle
    assert subject.users
    assert subject.milliseconds() is not None
    assert set(subject.figures) == {"warm", "cold"}
    matrix = json.loads((made / "run" / "record.json").read_text())["result"]["sharing_matrix"]
    assert subject.sharing == matrix  # what was chosen, not the settled switches
    for layer, (_, several, one, none) in subject.users.items():
        width = subject.widths[layer][1]
        assert 0 <= several + one + none <= width


def test_two_sizes_stand_side_by_side(made: Path, tmp_path: Path) -> None:
    both = [made / "run", made / "run" / "baseline"]
    write_report(both, tmp_path / "two.html")
    assert "Accuracy by budget" in headings((tmp_path / "two.html").read_text("utf-8"))


def test_an_older_run_shows_what_it_has(own_run: Path, tmp_path: Path) -> None:
    (own_run / "record.json").unlink()
    shutil.rmtree(own_run / "baseline")
    write_report([own_run], tmp_path / "old.html")
    page = (tmp_path / "old.html").read_text("utf-8")
    assert "kept no record of what each domain chose" in page
    assert "so it is no rival" in page
    assert "Who shares what they chose" in headings(page)  # its log has the matrix
    assert "Confusion" not in headings(page)


def test_a_bundle_alone_says_what_is_missing(made: Path, tmp_path: Path) -> None:
    assert invoke(made / "tiny.prunion", "-o", tmp_path / "b.html").exit_code == 0
    page = (tmp_path / "b.html").read_text("utf-8")
    assert "Only the bundle is here" in page
    assert "Widths, layer by layer" in headings(page)


def rename_class(run: Path, name: str) -> None:
    record = json.loads((run / "record.json").read_text("utf-8"))
    warm = record["domains"]["warm"]
    old, warm["classes"][0]["name"] = warm["classes"][0]["name"], name
    picture = warm["mistakes"][0]["picture"] if warm["mistakes"] else "data:image/jpeg;base64,AA=="
    warm["mistakes"] = [
        {"image": 0, "truth": name, "answer": old, "confidence": 0.9, "picture": picture},
        {"image": 1, "truth": "a", "answer": name, "confidence": 0.9, "picture": '"><b>'},
    ]
    warm["confusion"] = [[0, 1, 3], [1, 1, 8]]
    (run / "record.json").write_text(json.dumps(record), "utf-8")


@pytest.mark.parametrize("validated", [False, True])
def test_accuracy_after_warm_up_says_on_which_images(validated: bool) -> None:
    """Beside that of the test images, as if of the same ones."""
    whole = (1.0, 1.0)
    subject = Subject(
        *("run", {"a": 0.5}, {}, whole, whole, {}, None),
        after_warmup={"a": 0.75},
        validated=validated,
        epochs=(2, 6),
    )
    chart = accuracy_chart(subject)
    assert chart is not None
    more = ", on validation images" if validated else ""
    assert chart.rows[0] == ("domain", "pruned", f"after warm-up (2 epochs{more})")


def test_pictures_of_two_networks_never_have_one_name() -> None:
    """Of "run 1" and "run-1" the second took the place of the first."""
    assert _prefixes(["run 1", "run-1", "other"]) == ["1-run-1-", "2-run-1-", "3-other-"]
    assert len(set(_prefixes(["run 1", "run-1", "run-1-1", "2-run 1"]))) == 4
    assert _prefixes(["run 1"]) == [""]


def test_names_are_escaped(own_run: Path, tmp_path: Path) -> None:
    rename_class(own_run, HOSTILE)
    write_report([own_run], tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text("utf-8")
    for part in ("<script", "<img src=x", "onerror=alert(1)>", '"><b>'):
        assert part not in page
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in page


def test_what_cannot_be_read_is_one_line(made: Path, own_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.html"
    for wrong in (tmp_path / "nowhere", tmp_path, own_run / "run.toml"):
        with pytest.raises(PrunionError):
            write_report([wrong], out)
    for record in (
        {"domains": {"warm": {}}},
        {"choices": {"units": "x"}},
        {"result": {"score": 3}},
    ):
        value = {"model_sha256": json.loads((own_run / "checkpoint/checkpoint.json").read_text())}
        value = {"model_sha256": value["model_sha256"]["model_sha256"], **record}
        (own_run / "record.json").write_text(json.dumps(value))
        with pytest.raises(InputError, match="damaged"):
            write_report([own_run], out)
    with pytest.raises(InputError, match="give that bundle too"):
        write_report([made / "run", made / "bench.json"], out)
    assert not out.exists()


def test_only_its_own_files_are_replaced(made: Path, page: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<html>mine")
    assert invoke(made / "run", "-o", mine, "--force").exit_code == 1
    assert mine.read_text() == "<html>mine"
    again = invoke(made / "tiny.prunion", "-o", made / "report.html")
    assert again.exit_code == 1
    assert "--force" in again.output
    copy = Path(shutil.copy(made / "report.html", tmp_path / "copy.html"))
    assert invoke(made / "tiny.prunion", "-o", copy, "--force").exit_code == 0


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browse() -> Callable[..., dict[str, object]]:
    """Open a page of a width and a scheme; gives what a script found in it, and the console."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH")

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
