"""`--force` of every command replaces what that command wrote, and nothing else."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.benchmarks.demo import run_demo
from prunion.exporter.bundle import export_bundle, export_pack, source
from prunion.runtime.base import sha256_file
from prunion.runtime.base.files import outputs
from prunion.runtime.bundle import open_bundle, read_pack
from prunion.runtime.cli import cli
from prunion.runtime.errors import InputError, OutputError, PrunionError
from prunion.runtime.tensorrt.files import check_engine_output, write_engine
from prunion.runtime.tensorrt.key import engine_key


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its run file, and its bundle beside it."""
    folder = tmp_path_factory.mktemp("force")
    shutil.copytree(tiny, folder / "run")
    text = (tiny.parent / "run.toml").read_text().replace('"data/', f'"{tiny.parent}/data/')
    (folder / "run" / "run.toml").write_text(text)
    export_bundle(tiny, folder / "x.prunion")
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """The same, to be harmed."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run"


def everything(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


COMMANDS = (
    ("export", "run", "-o", "X"),
    ("export", "run/run.toml", "--untrained", "-o", "X"),
    ("pack", "run", "warm", "-o", "X"),
    ("add-domain", "run", "late.toml", "-o", "X"),
    ("profile", "x.prunion", "-o", "X", "--seconds", "0.001"),
    ("train", "run/run.toml", "-o", "X"),
    ("demo", "-o", "X"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
@pytest.mark.parametrize(
    "what", ["precious", "precious/notes.txt", "run", ".", "run/run.toml", "run/checkpoint"]
)
def test_nothing_foreign_is_ever_replaced(
    run: Path, command: tuple[str, ...], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = run.parent
    monkeypatch.chdir(root)
    (root / "precious").mkdir()
    (root / "precious" / "notes.txt").write_text("years of work")
    (root / "late.toml").write_text('[domains.late]\ntrain = "nowhere"\ntest = "nowhere"\n')
    (root / "run" / "notes.txt").write_text("mine")
    before = everything(root)
    arguments = [what if x == "X" else x for x in command]
    result = CliRunner().invoke(cli, [*arguments, "--force"])
    assert result.exit_code == 1, result.output
    assert len(result.stderr.splitlines()) == 1
    known = (
        "--force replaces only",
        "what this command reads",
        "is a file: give -o",
        "the name ''",
    )
    assert any(text in result.stderr for text in known), result.stderr
    assert everything(root) == before


@pytest.mark.thorough
def test_what_a_command_wrote_is_replaced(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    for times, *arguments in (
        (1, "export", "run", "-o", "x.prunion"),  # it is there already
        (1, "export", "run/run.toml", "--untrained", "-o", "x.prunion"),
        (2, "pack", "run", "warm", "-o", "x.pack"),
        (2, "profile", "x.prunion", "-o", "device.json", "--seconds", "0.001"),
        (1, "train", "run/run.toml", "-o", "again"),
        (1, "train", "again/run.toml", "-o", "again"),
    ):
        for _ in range(times):
            result = CliRunner().invoke(cli, [*arguments, "--force"])
            assert result.exit_code == 0, result.output
    open_bundle("x.prunion")
    read_pack("x.pack")
    damaged = Path("x.pack").read_bytes()[:-8]
    Path("x.pack").write_bytes(damaged)
    export_pack("run", "warm", "x.pack", force=True)


def test_a_teacher_in_the_run_folder_is_not_removed(run: Path) -> None:
    text = (run / "run.toml").read_text().replace("[train]", '[train]\nteacher = "checkpoint"')
    (run / "run.toml").write_text(text)
    before = everything(run)
    result = CliRunner().invoke(cli, ["train", str(run / "run.toml"), "-o", str(run), "--force"])
    assert result.exit_code == 1
    assert "holds what this command reads" in result.stderr
    assert everything(run) == before


def test_engines(run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "x.prunion"
    opened, path = open_bundle(bundle), tmp_path / "x.engine"
    path.write_text("a thesis")
    with pytest.raises(PrunionError, match="is no engine with its key"):
        check_engine_output(opened, path, force=True)
    path.unlink()
    (tmp_path / "x.engine.json").write_text("{}")
    for force in (False, True):
        with pytest.raises(PrunionError, match=r"x\.engine\.json"):
            check_engine_output(opened, path, force=force)
    write_engine(path, engine_key(opened, "tensorrt", "10.3.0", sms=[87]), b"engine")
    check_engine_output(opened, path, force=True)
    with pytest.raises(InputError, match="inside the bundle"):
        check_engine_output(opened, bundle / "model.onnx", force=True)
    trtexec = ["build", str(bundle), "--target", "tensorrt", "--print-trtexec", "--force", "-o"]
    for place in (bundle / "model.engine", tmp_path / "precious.engine"):
        (tmp_path / "precious.onnx").write_text("no graph")
        result = CliRunner().invoke(cli, [*trtexec, str(place)])
        assert result.exit_code == 1, result.output
    open_bundle(bundle)
    assert (tmp_path / "precious.onnx").read_text() == "no graph"
    for _ in range(2):
        assert CliRunner().invoke(cli, [*trtexec, str(tmp_path / "y.engine")]).exit_code == 0


@pytest.mark.parametrize("name", ["a\nb.prunion", "\udcff.prunion", "x" * 210, ".prunion"])
def test_a_name_that_no_manifest_can_hold_is_refused_first(
    tiny: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "load_checkpoint", lambda _: pytest.fail("too late"))
    with pytest.raises(InputError, match=r"the name .* choose another -o"):
        export_bundle(tiny, tmp_path / name)


@pytest.mark.parametrize("command", ["export", "pack"])
def test_a_full_disk_is_one_line_and_keeps_the_old(
    run: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    arguments = {"export": ["run", "-o", "x"], "pack": ["run", "warm", "-o", "x"]}[command]
    assert CliRunner().invoke(cli, [command, *arguments]).exit_code == 0
    before = everything(run.parent)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs.os, "fsync", full)
    result = CliRunner().invoke(cli, [command, *arguments, "--force"])
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (1, True)
    assert "cannot be written (No space left on device): free some space" in result.stderr
    assert result.stderr.startswith("error: x"), "the place that the user named"
    assert everything(run.parent) == before


def test_a_bundle_that_will_not_fit_is_refused_before_it_is_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(OutputError, match=r"new\.prunion needs .* are free on its disk"):
        export_bundle(run, run.parent / "new.prunion")


def test_the_demo_wants_a_place_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("# my own run")
    (tmp_path / "data").mkdir()
    with pytest.raises(PrunionError, match=r"another run's run\.toml"):
        run_demo(tmp_path, force=True)
    (tmp_path / "run.toml").unlink()
    (tmp_path / "data" / "cats").mkdir()
    with pytest.raises(PrunionError, match="holds cats in data"):
        run_demo(tmp_path, force=True)
