"""Folders that hold no run, or one that is not finished: refused with a fix that works."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion import train
from prunion.runtime.cli.main import cli
from prunion.runtime.errors import CheckpointError, PrunionError
from prunion.trainer.config import keep_run_file, load_config
from prunion.trainer.learning import Training
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run.folder.folder import make_folder
from tests.support.tiny_run import tiny_run


def test_a_folder_of_something_else_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("", "utf-8")
    with pytest.raises(PrunionError, match=r"holds no state\.safetensors.*another place with -o"):
        make_folder(tmp_path, force=False, resume=True)
    with pytest.raises(PrunionError, match=r"holds no run and is not empty \(it holds thesis"):
        make_folder(tmp_path, force=False, resume=False)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(PrunionError, match=r"holds thesis\.tex beside it: pass --resume") as caught:
        make_folder(tmp_path, force=False, resume=False)
    assert "--force" not in str(caught.value)


def test_resume_of_one_run_in_a_sweep_s_folder_names_its_runs(tmp_path: Path) -> None:
    for limit in ("0.5", "0.7"):
        (tmp_path / f"seed-0-budget-{limit}").mkdir()
    with pytest.raises(
        PrunionError, match=r"the runs of a sweep, such as seed-0-budget-0\.5: "
    ) as x:
        make_folder(tmp_path, force=False, resume=True)
    assert f"-o {tmp_path / 'seed-0-budget-0.5'} to go on with one" in str(x.value)


def test_resume_of_no_run_is_refused_and_a_restart_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_file, out = tiny_run(tmp_path, warmup=1, ramp=0, settle=0), tmp_path / "out"
    line = ["train", str(run_file), "-o", str(out), "--resume"]
    with monkeypatch.context() as patched:
        patched.setattr(Training, "run_epoch", lambda *_: pytest.fail("it trained"))
        told = CliRunner().invoke(cli, line)
        assert told.exit_code == 1 and not out.exists()
        assert "holds no run to resume" in told.output + capfd.readouterr().err
        for resumed in (
            lambda: train(run_file, out, resume=True),
            lambda: train(run_file, tmp_path, force=True, resume=True),
        ):
            with pytest.raises(PrunionError, match=r"no run to resume|give one of them"):
                resumed()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert CliRunner().invoke(cli, line).exit_code == 0


def test_an_unfinished_run_has_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is not finished: go on with .*--resume"):
        load_checkpoint(tmp_path)


def test_a_run_goes_on_with_a_file_that_only_an_earlier_prunion_took(tmp_path: Path) -> None:
    run_file, out = tiny_run(tmp_path, method='"norms"', trunk='"tuned"'), tmp_path / "o"
    config = load_config(run_file, begun=True)
    out.mkdir()
    command = ["train", str(run_file), "-o", str(out), "--resume"]
    new = CliRunner().invoke(cli, command)  # none was begun here
    assert new.exit_code == 1 and 'trunk is "tuned", but method is "norms"' in new.output
    for place in (out, out / "seed-3-budget-0.5"):  # a run's, and a sweep's
        place.mkdir(exist_ok=True)
        keep_run_file(run_file, config, place / "run.toml")
        assert (place / "run.toml").read_text("utf-8").endswith(run_file.read_text("utf-8"))
        (out / "thesis.tex").touch()
        begun = CliRunner().invoke(cli, command)
        assert begun.exit_code == 1 and "trunk is" not in begun.output
        assert f"{out} holds" in begun.output  # no state, or the runs of a sweep
        (out / "run.toml").unlink(missing_ok=True)
