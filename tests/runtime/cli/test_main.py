"""The command line: exit codes, instant help, what no terminal loses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from prunion.runtime.cli.main import COMMANDS
from tests.runtime.cli.command_line import invoke


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
        ["train", "x", "--share", "warm-up"],
        ["export", "x", "-o", "y.prunion", "--ir", "7", "--opset", "20"],
        ["export", "x"],
        ["nothing"],
    ],
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_help_that_cannot_be_written_is_one_line() -> None:
    call = "from prunion.runtime.cli.start import main; main()"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", call, "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_an_interrupt_while_the_command_is_imported_leaves_no_trace() -> None:
    call = """
import builtins
from prunion.runtime.cli.start import main
imports = builtins.__import__
def stopped(name, *more):
    if name == "click":
        raise KeyboardInterrupt
    return imports(name, *more)
builtins.__import__ = stopped
main()
"""
    command = [sys.executable, "-c", call]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


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


def test_a_command_spelled_wrong_is_told_the_nearest() -> None:
    done = invoke("trian", "run.toml")
    assert done.exit_code == 2 and "did you mean 'train'?" in done.output
    done = invoke("zzz")
    assert done.exit_code == 2 and "No such command" in done.output
