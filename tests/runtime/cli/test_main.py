"""The command line: exit codes, one-line errors, instant help."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from prunion.runtime.base import install_hint
from prunion.runtime.bundle import open_bundle, write_pack
from prunion.runtime.cli import cli, evaluation
from prunion.runtime.cli.benchmark import bench, seconds_of
from prunion.runtime.cli.main import COMMANDS
from prunion.runtime.errors import BackendError
from prunion.runtime.tensorrt import engine_key
from prunion.runtime.tensorrt.build import EngineResult
from prunion.trainer.cli import train


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(x) for x in arguments])


def one_error_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert not result.stdout
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "x.png"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_predict_prints_a_line_for_each_image(bundle_path: Path, picture: Path) -> None:
    result = invoke("predict", bundle_path, "--domain", "signs", picture, picture, "--top", 2)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{picture}: ")
    assert lines[0].count("%") == 2


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "x", "y.png", "--backend", "tpu"],
        ["predict", "x", "y.png", "--precision", "fp8"],
        ["eval", "x", "y", "--backend", "tpu"],
        ["eval", "x", "y", "--precision", "fp8"],
        ["bench", "x", "--backend", "tpu"],
        ["bench", "x", "--precision", "fp8"],
        ["bench", "x", "--against", "nobody"],
        ["serve", "x", "--backend", "tpu"],
        ["serve", "x", "--precision", "fp8"],
        ["build", "x", "--target", "tensorrt", "--precision", "fp8"],
        ["build", "x", "--target", "tpu"],
        ["profile", "x", "-o", "y", "--backend", "tensorrt"],
        ["export", "x", "--triton", "y", "--triton-precision", "fp8"],
        ["export", "x", "-o", "y", "--heads", "many"],
        ["pretrain", "x", "-o", "y.safetensors", "--backbone", "nobody:net"],
        ["pretrain", "x", "-o", "y.safetensors", "--seed", "-1"],
        ["pretrain", "x", "-o", "y.safetensors", "--lr", "0"],
        ["pretrain", "x", "-o", "y.safetensors", "--threads", "-1"],
        ["reproduce", "decathlon", "--data", "x", "-o", "y", "--method", "none"],
        ["reproduce", "decathlon", "--data", "x", "-o", "y", "--network", "none"],
        ["reproduce", "decathlon", "--data", "x", "-o", "y", "--crops", "3"],
        ["reproduce", "decathlon", "--list", "--method", "none"],
        ["reproduce", "--list", "none"],
    ],
    ids=" ".join,
)
def test_a_value_that_is_no_choice_is_a_usage_error(words: list[str]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2, result.output
    assert words[-1].partition(":")[0] in result.stderr and "Usage:" in result.stderr
    assert "Traceback" not in result.stderr


def test_predict_json(bundle_path: Path, picture: Path) -> None:
    result = invoke("predict", bundle_path, "-d", "digits", picture, "--json")
    (row,) = json.loads(result.stdout)
    assert row["image"] == str(picture)
    assert row["domain"] == "digits"
    assert row["class_name"] in {"zero", "one"}
    assert {c["name"] for c in row["top"]} == {"zero", "one"}


def test_an_image_that_cannot_be_read_costs_the_others_nothing(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    arguments = ("predict", bundle_path, "-d", "signs", picture, broken, picture)
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [str(picture)] * 2
    assert str(broken) in result.stderr and len(result.stderr.splitlines()) == 1
    rows = json.loads(invoke(*arguments, "--json").stdout)
    assert [sorted(row)[:2] for row in rows][1] == ["error", "image"]
    assert rows[0] == rows[2] != rows[1]


def test_predict_takes_folders_and_quoted_patterns(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    for name in ("b.png", "sub/a.png", "a.PNG", ".hidden.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture.read_bytes())
    (folder / "notes.txt").write_text("no image")

    def answered(*images: object) -> list[str]:
        result = invoke("predict", bundle_path, "-d", "signs", *images)
        assert result.exit_code == 0, result.stderr
        return [line.rsplit(": ", 1)[0] for line in result.stdout.splitlines()]

    below = [str(folder / name) for name in ("a.PNG", "b.png", "sub/a.png")]
    assert answered(folder) == below
    assert answered(picture, f"{folder}/*.png", folder) == [str(picture), below[1], *below]
    assert answered(f"{folder}/**/*.png") == below[1:]
    for nothing in (f"{folder}/*.gif", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        message = one_error_line(invoke("predict", bundle_path, "-d", "signs", nothing))
        assert "matches no file" in message or "holds no image" in message


def test_predict_answers_for_images_behind_links(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    folder, disk = tmp_path / "photos", tmp_path / "disk"
    for name in (folder / "a.png", disk / "b.png", disk / "sub" / "c.png"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_bytes(picture.read_bytes())
    os.symlink(disk, folder / "more")
    os.symlink(folder, disk / "sub" / "back")  # would never end
    os.symlink(tmp_path, folder / "above")
    result = invoke("predict", bundle_path, "-d", "signs", folder)
    named = [line.rsplit(": ", 1)[0] for line in result.stdout.splitlines()]
    assert named == [str(folder / x) for x in ("a.png", "more/b.png", "more/sub/c.png")]
    os.symlink(tmp_path / "nowhere.png", folder / "lost.png")
    result = invoke("predict", bundle_path, "-d", "signs", folder)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 3
    assert "lost.png does not exist" in result.stderr


def test_predict_names_a_folder_that_is_closed(
    bundle_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = picture.parent / "closed"
    closed.mkdir()
    scan = os.scandir

    def scandir(place: str) -> object:
        if os.fspath(place) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(closed))
        return scan(place)

    monkeypatch.setattr(os, "scandir", scandir)
    message = one_error_line(invoke("predict", bundle_path, "-d", "signs", picture.parent))
    assert f"{closed} cannot be opened (Permission denied)" in message


def test_several_unreadable_images_are_counted(bundle_path: Path, picture: Path) -> None:
    picture.with_name("z1.png").write_bytes(b"no image")
    picture.with_name("z2.png").write_bytes(b"no image")
    result = invoke("predict", bundle_path, "-d", "signs", picture.parent)
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    *errors, last = result.stderr.splitlines()
    assert [x.startswith("error: ") for x in errors] == [True, True]
    assert last == "2 of 3 images could not be read"


def test_no_escape_sequence_reaches_the_terminal(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "a\x1b]0;owned\x07\u202eb.png"
    odd.write_bytes(picture.read_bytes())
    broken = tmp_path / "c\x1b[2Jd.png"
    broken.write_bytes(b"no image")
    result = invoke("predict", bundle_path, "-d", "signs", odd, broken)
    for text in (result.stdout, result.stderr):
        assert text.count("\n") == 1
        assert text.strip().isprintable(), ascii(text)
    assert "not exist" in one_error_line(invoke("inspect", tmp_path / "\x1b[31mred"))


def test_predict_asks_for_the_domain_only_where_there_are_several(
    bundle_path: Path, picture: Path
) -> None:
    message = one_error_line(invoke("predict", bundle_path, picture))
    assert "with -d: " in message and "signs" in message


def test_predict_with_a_pack_answers_for_its_domain(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    pack = replace(open_bundle(bundle_path).pack("digits"), name="late", classes=("a", "b"))
    write_pack(tmp_path / "late.safetensors", pack)
    more = ("--pack", tmp_path / "late.safetensors", "--json")
    (own,) = json.loads(invoke("predict", bundle_path, "-d", "digits", picture, "--json").stdout)
    (late,) = json.loads(invoke("predict", bundle_path, "-d", "late", picture, *more).stdout)
    assert (late["domain"], late["class_name"]) == ("late", "ab"[own["index"]])
    assert late["probability"] == pytest.approx(own["probability"])


def test_a_pack_of_another_trunk_is_refused_by_predict_and_serve(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    pack = replace(open_bundle(bundle_path).pack("digits"), name="late", trunk_hash="0" * 64)
    write_pack(tmp_path / "late.safetensors", pack)
    for start in (["predict", bundle_path, "-d", "late", picture], ["serve", bundle_path]):
        result = invoke(*start, "--pack", tmp_path / "late.safetensors")
        assert "trunk" in one_error_line(result)


def test_inspect_json_is_the_manifest(bundle_path: Path) -> None:
    result = invoke("inspect", bundle_path, "--json")
    assert result.stdout == (bundle_path / "manifest.json").read_text("utf-8")


def test_inspect_shows_the_facts(bundle_path: Path) -> None:
    result = invoke("inspect", bundle_path)
    for fact in ("signs", "50.0%", "432 → 216", "16 → 8", "model.onnx"):
        assert fact in result.stdout


def test_bench_json(bundle_path: Path) -> None:
    arguments = ("--batch", "1,3", "--seconds", "0.02", "--threads", 1, "--json")
    result = invoke("bench", bundle_path, *arguments)
    report = json.loads(result.stdout)
    rows = {(row["session"], row["batch"]) for row in report["rows"]}
    sessions = ("mixed", "blocked", "pinned:flowers")
    assert rows == {(s, n) for s in sessions for n in (1, 3)}
    assert report["peak_rss_bytes"] > 0
    assert report["gpu_bytes"] is None, "of a CPU"
    assert report["file_bytes"]["model.onnx"] == (bundle_path / "model.onnx").stat().st_size
    assert report["load_after"] is None or report["load_after"] >= 0
    compared = [(x["session"], x["against"]) for x in report["comparisons"]]
    assert compared == 2 * [(name, "mixed") for name in sessions[1:]]
    assert all(x["ratio"] > 0 for x in report["comparisons"])
    assert 0 < report["overhead_ms"] < 0.1
    for fresh, session in zip(report["fresh"], sessions, strict=True):
        assert (fresh["session"], fresh["batch"]) == (session, 3)
        assert fresh["peak_rss_bytes"] > fresh["packages_rss_bytes"] > 1 << 20
        assert fresh["load_ms"] > 0 < fresh["first_call_ms"]


@pytest.mark.usefixtures("nothing_fresh")
def test_bench_writes_tables(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    path.touch()  # as mktemp makes one: nothing is lost
    arguments = ("--duration", "20ms", "--batch", 2, "--domains", "signs", "--csv", path)
    table = invoke("bench", bundle_path, *arguments)
    assert table.exit_code == 0, table.output
    assert "pinned:signs / mixed, batch 2: " in table.stdout
    assert "timing itself: " in table.stdout
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["session"] for row in rows] == ["mixed", "blocked", "pinned:signs"]
    assert float(rows[1]["ratio"]) > 0
    assert rows[1]["verdict"]
    assert int(rows[0]["fresh_peak_rss_bytes"]) > 1 << 20


@pytest.mark.parametrize("text", ["10", "0.5s", "20ms", "2m"])
def test_a_duration_has_a_unit_or_is_in_seconds(text: str) -> None:
    seconds = {"10": 10.0, "0.5s": 0.5, "20ms": 0.02, "2m": 120.0}[text]
    (option,) = (x for x in bench.params if x.name == "duration")
    with click.Context(bench) as context:
        assert seconds_of(context, option, text) == pytest.approx(seconds)


def test_user_errors_are_one_line(own_bundle: Path, picture: Path, tmp_path: Path) -> None:
    assert "did you mean signs" in one_error_line(
        invoke("predict", own_bundle, "-d", "sign", picture)
    )
    assert "does not exist" in one_error_line(invoke("inspect", tmp_path / "nowhere"))
    assert "no domain 'cars'" in one_error_line(invoke("bench", own_bundle, "--domains", "cars"))
    picture.write_bytes(b"no image")
    assert "no readable image" in one_error_line(
        invoke("predict", own_bundle, "-d", "signs", picture)
    )
    (own_bundle / "model.onnx").write_bytes(b"tampered")
    for arguments in (["inspect"], ["inspect", "--json"], ["bench"], ["serve"]):
        line = one_error_line(invoke(arguments[0], own_bundle, *arguments[1:]))
        assert "model.onnx differs" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "x"],
        ["predict", "x", "-d", "signs"],
        ["bench", "x", "--batch", "1,a"],
        ["bench", "x", "--batch", "0"],
        ["bench", "x", "--duration", "soon"],
        ["bench", "x", "--duration", "0s"],
        ["build", "x"],
        ["build", "x", "--target", "tensorrt-rtx", "--batch", "8,1,32"],
        ["build", "x", "--target", "tensorrt-rtx", "--batch", "1,8"],
        ["train", "x", "--force", "--resume"],
        ["export", "x"],
        ["nothing"],
    ],
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize(("here", "compared"), [(86, True), (89, False), (None, False)])
def test_an_engine_for_this_gpu_is_held_to_the_probe_when_it_is_built(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, here: int | None, compared: bool
) -> None:
    opened = open_bundle(bundle_path)
    key = engine_key(opened, "tensorrt", "10.3", (86,))
    result = EngineResult(bundle_path / "units.json", bundle_path / "units.json.json", key, 1.0)
    monkeypatch.setattr("prunion.runtime.tensorrt.build_engine", lambda *_, **__: result)
    monkeypatch.setattr("prunion.runtime.tensorrt.device_sm", lambda: here)

    def refused(*_: object) -> None:
        raise BackendError("tensorrt computes something else")

    monkeypatch.setattr("prunion.runtime.tensorrt.open_engine", refused)
    done = invoke("build", bundle_path, "--target", "tensorrt")
    assert done.exit_code == (1 if compared else 0), done.output
    assert ("error: tensorrt computes something else" in done.stderr) == compared


def _raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def call(**_: object) -> None:
        raise error

    monkeypatch.setattr(train, "callback", call)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    _raising(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch._C"))
    assert install_hint("train") in one_error_line(invoke("train", "x"))


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _raising(monkeypatch, ModuleNotFoundError("No module named 'prunion.x'", name="prunion.x"))
    assert isinstance(invoke("train", "x").exception, ModuleNotFoundError)


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    _raising(monkeypatch, KeyboardInterrupt())
    result = invoke("train", "x")
    assert result.exit_code == 130
    assert not result.output


def test_unwritable_place_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _raising(monkeypatch, PermissionError(13, "Permission denied", "/x"))
    assert "Permission denied" in one_error_line(invoke("train", "x"))


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_a_legacy_code_page_loses_a_sign_not_the_line(bundle_path: Path, encoding: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from prunion.runtime.cli.main import main; main()",
            "inspect",
            bundle_path,
        ],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"432 " in done.stdout and b" 216 (50.0%)" in done.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_json_keeps_names_that_a_code_page_lacks(
    bundle_path: Path, tmp_path: Path, encoding: str
) -> None:
    """Each letter was a question mark: another file, or another class, without a word."""
    names = ["花.png", os.fsdecode(b"caf\xe9.png")]  # the second is no UTF-8
    for name in names:
        Image.new("RGB", (30, 40)).save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(tmp_path / name)
    call = "from prunion.runtime.cli.main import main; main()"
    words = ["predict", "--json", bundle_path, "-d", "signs", *(tmp_path / n for n in names)]
    done = subprocess.run(
        [sys.executable, "-c", call, *words],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.decode(encoding))
    assert [Path(answer["image"]).name for answer in answers] == names


def test_a_table_takes_the_place_of_a_table_alone(bundle_path: Path, tmp_path: Path) -> None:
    """Before anything is measured."""
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    line = one_error_line(invoke("bench", bundle_path, "--csv", tmp_path / "notes.txt"))
    assert line.endswith("notes.txt is no table of `prunion bench`: choose another place")
    assert (tmp_path / "notes.txt").read_text("utf-8") == "mine"
    one_error_line(invoke("bench", bundle_path, "--csv", tmp_path / "notes.txt" / "x.csv"))


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="the system has no /dev/stdout")
def test_a_table_can_be_written_on_a_stream(bundle_path: Path, tmp_path: Path) -> None:
    call = "from prunion.runtime.cli.main import main; main()"
    command = [sys.executable, "-c", call, "bench", str(bundle_path), "--csv", "/dev/stdout"]
    command += ["--duration", "20ms", "--domains", "signs"]
    with (tmp_path / "out.txt").open("w+") as out:  # the report comes behind it, not over it
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, done.stderr
        out.seek(0)
        text = out.read()
    assert text.startswith("session,batch") and "timing itself: " in text


def test_version() -> None:
    assert invoke("--version").stdout.startswith("prunion, version ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_where_the_group_looks_for_it(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"Usage: cli {name} ")


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import sys
from prunion.runtime.cli.main import COMMANDS, cli
from prunion.trainer.cli import train
cli({arguments!r}, standalone_mode=False)
heavy = {{"numpy", "torch", "onnx", "onnxruntime", "PIL", "safetensors"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def test_predicting_and_evaluating_need_no_torch(bundle_path: Path, picture: Path) -> None:
    (picture.parent / "set" / "stop").mkdir(parents=True)
    (picture.parent / "set" / "stop" / "a.png").write_bytes(picture.read_bytes())
    program = f"""
import sys
from prunion.runtime import evaluate, load
load({str(bundle_path)!r}).predict({str(picture)!r}, "signs")
assert len(evaluate({str(bundle_path)!r}, {str(picture.parent / "set")!r}, "signs").images) == 1
mine = [m for m in sys.modules if m.split(".")[0] in ("torch", "torchvision")]
mine += [m for m in sys.modules if m.startswith(("prunion.trainer", "prunion.exporter"))]
assert not mine, mine[:5]
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for stream, lines in ((_Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(evaluation, "BETWEEN_LINES", -1.0)
        with evaluation._progress() as progress:
            progress(0, 1200)
            progress(640, 1200)
        assert ("640 of 1,200 images\n" in stream.getvalue()) == lines
        assert ("[##" in stream.getvalue()) != lines


def test_a_full_place_for_temporary_files_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", "/small")
    full = OSError(errno.ENOSPC, "No space left on device", "/small/tmp123/x")
    _raising(monkeypatch, full)
    message = one_error_line(invoke("train", "x"))
    assert "/small/tmp123/x" in message
    assert "set TMPDIR" in message
