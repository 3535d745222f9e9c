"""`prunion check`: what train would say, and nothing left behind."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.runtime.cli.main import cli
from tests.support.tiny_run import tiny_run


def run(*arguments: object, code: int = 0) -> tuple[str, str]:
    """Standard output, and the last line of standard error."""
    done = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout, (done.stderr.splitlines() or [""])[-1]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_is_opened_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = tiny_run(tmp_path)
    (tmp_path / "data" / "warm" / "train" / "red" / "notes.txt").write_text("none")
    before = files(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = json.loads(run("check", run_file, "--json")[0])
    assert files(tmp_path) == before
    assert found["domains"]["cold"]["images"] == {"train": 24, "test": 24}
    assert found["domains"]["warm"]["skipped"]["train"] == {".txt": 1}
    assert found["domains"]["warm"]["sizes"] == [[30, 24]] * 3
    assert sum(layer["params"] for layer in found["layers"]) == found["budget"]["full"]
    assert (found["steps"], found["epochs"]) == (12, 4)
    assert 0 < found["seconds"]["step"] < found["seconds"]["run"]
    # The smallest budget is one that train takes, and a smaller one is refused.
    least = float(found["budget"]["least"])
    table = run("check", run_file, "--set", f"budget.limit={least}")[0]
    assert f"the smallest that can be met is {least:g}" in table
    assert "1 .txt" in table
    less = f"budget.limit={least - 1e-4:.4f}"
    assert f"give at least {least:g}" in run("check", run_file, "--set", less, code=1)[1]


def test_the_time_holds_what_heads_are_fitted_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunion.trainer.run.check._seconds_a_step", lambda _: 16.0)
    run_file = tiny_run(tmp_path)
    seconds = []
    for start in ("fitted", "random"):
        found = json.loads(
            run("check", run_file, "--json", "--set", f"train.head_start={start}")[0]
        )
        seconds.append(found["seconds"]["run"])
    a_step = sum(domain["batch"] for domain in found["domains"].values())
    images = sum(domain["images"]["train"] for domain in found["domains"].values())
    assert seconds[0] - seconds[1] == pytest.approx(images / 3 * 16 / a_step)


@pytest.mark.parametrize(
    "change",
    [
        "train.warmup=-1",
        "domains.warm.train=nowhere",
        "budget.limit=0.001",
        "backbone.cut=layer9",
        "domains.cold.limit=2",
        "train.teacher=nowhere",
    ],
)
def test_it_ends_with_the_error_of_train(tmp_path: Path, change: str) -> None:
    run_file = tiny_run(tmp_path)
    told = run("check", run_file, "--set", change, code=1)[1]
    out = tmp_path / "out"
    assert told.startswith("error: ")
    assert told == run("train", run_file, "--set", change, "-o", out, code=1)[1]
    assert not out.exists()


def test_what_cannot_be_exported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **_more: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("prunion.exporter.graph.rehearsal.onnx_graph", refuse)
    told = run("check", tiny_run(tmp_path), code=1)[1]
    assert "cannot be exported, so it is not trained: no such operator" in told


def test_shards_are_opened_as_their_folders_are(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path)
    folder = tmp_path / "data" / "warm" / "train"
    for number in range(2):
        with tarfile.open(tmp_path / f"train-{number}.tar", "w") as tar:
            for index, image in enumerate(sorted(folder.rglob("*.png"))[number::2]):
                tar.add(image, f"{index}.png")
                label = tarfile.TarInfo(f"{index}.cls")
                label.size = len(image.parent.name)
                tar.addfile(label, io.BytesIO(image.parent.name.encode()))
    change = f"domains.warm.train={tmp_path}/train-*.tar"
    found, folders = (
        json.loads(run("check", run_file, "--json", *more)[0])["domains"]["warm"]
        for more in (["--set", change], [])
    )
    assert found == folders
    (tmp_path / "train-1.tar").write_bytes((tmp_path / "train-1.tar").read_bytes()[:-12_000])
    told = run("check", run_file, "--set", change, code=1)[1]
    assert "train-1.tar" in told and "copy it again" in told
