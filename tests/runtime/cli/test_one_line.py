"""What a user can fix ends in one line; a bug keeps its traceback."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from prunion.runtime.base import install_hint
from prunion.runtime.cli.options import echo_json
from prunion.runtime.errors import MissingDependencyError
from prunion.trainer.cli import train
from tests.runtime.cli.command_line import invoke, one_error_line


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


def _raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def call(**_: object) -> None:
        raise error

    monkeypatch.setattr(train, "callback", call)


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    _raising(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch._C"))
    assert install_hint("train") in one_error_line(invoke("train", "x"))


def test_a_package_that_is_there_and_does_not_fit_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As pyarrow beside a newer NumPy, or onnx beside an older protobuf."""
    _raising(monkeypatch, ImportError("numpy.core failed\nto import", name="pyarrow.lib"))
    told = "(it is installed, and importing it fails: numpy.core failed to import)"
    assert told in one_error_line(invoke("train", "x"))
    for error, told in ((ImportError("another numpy"), True), (ModuleNotFoundError("x"), False)):
        with pytest.raises(MissingDependencyError, match="pyarrow is not installed") as raised:
            try:
                raise error
            except ImportError:
                raise MissingDependencyError("pyarrow is not installed") from None
        assert ("importing it fails: another numpy)" in str(raised.value)) is told


def test_a_full_disk_without_a_name_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a file that is open, standard output too, the error has no name."""
    _raising(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    line = one_error_line(invoke("train", "x"))
    assert "where the output goes or the folder for temporary files" in line
    assert "set TMPDIR to a folder with room" in line


def test_json_for_a_closed_output_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    echo_json({"a": 1})


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


def test_a_full_place_for_temporary_files_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", "/small")
    full = OSError(errno.ENOSPC, "No space left on device", "/small/tmp123/x")
    _raising(monkeypatch, full)
    message = one_error_line(invoke("train", "x"))
    assert "/small/tmp123/x" in message
    assert "set TMPDIR" in message
