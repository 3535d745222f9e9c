"""`prunion report`: what the page shows, what it escapes, and what it may replace."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prunion.runtime.cli.main import cli
from prunion.runtime.errors import InputError, PrunionError
from tests.benchmarks.report.reported import HOSTILE, rename_class, sources

pytest.importorskip("matplotlib", reason="needs prunion[report]")

from matplotlib import pyplot

from prunion.benchmarks.report import write_report
from prunion.benchmarks.report.charts_runs import accuracy_chart
from prunion.benchmarks.report.subject import Subject
from prunion.benchmarks.report.subjects import read_subjects
from prunion.benchmarks.report.write import _prefixes

pytestmark = pytest.mark.thorough


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


def test_pictures_of_somebody_else_are_never_replaced(made: Path, tmp_path: Path) -> None:
    command = (made / "run", "-o", tmp_path / "x.html", "--pictures", tmp_path / "pictures")
    for extra in ((), ("--force",)):
        assert invoke(*command, *extra).exit_code == 0
    pictures = tmp_path / "pictures"
    for ending in (".svg", ".png"):  # as ours come in twos, and of the same library
        figure = pyplot.figure(figsize=(1, 1))
        figure.savefig(pictures / f"photo{ending}")
        pyplot.close(figure)
    refused = invoke(*command, "--force")
    assert refused.exit_code == 1
    assert "holds photo.png and 1 more" in refused.output
