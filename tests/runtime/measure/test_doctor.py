"""The doctor says what is missing and how to install it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.runtime.base import install_hint
from prunion.runtime.cli import cli
from prunion.runtime.measure import doctor, examine
from prunion.runtime.measure.doctor import refusal


def states() -> dict[str, tuple[str, str]]:
    return {x.what: (x.state, x.fix) for x in examine()}


def test_what_is_installed_is_ok() -> None:
    ort = pytest.importorskip("onnxruntime")
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    (found,) = [x for x in report["findings"] if x["what"] == "ONNX Runtime"]
    assert found["state"] == "ok"
    assert ort.__version__ in found["detail"]
    assert report["machine"]["cores"] >= 1
    assert "ONNX Runtime" in CliRunner().invoke(cli, ["doctor"]).stdout


def test_a_provider_is_asked_to_start_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    assert refusal("cpu") == ""
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    assert "no CUDAExecutionProvider" in refusal("cuda")
    # A build for CUDA says it has the provider whether or not its libraries are found.
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(doctor, "_gpu", lambda: doctor.Finding("GPU", "ok", "NVIDIA"))
    (found,) = [x for x in examine() if x.what == "ONNX Runtime"]
    assert "on the CPU only: CUDAExecutionProvider did not start" in found.detail
    assert "onnxruntime-gpu[cuda,cudnn]" in found.fix


def test_every_finding_that_is_not_ok_has_a_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    found = states()
    for what in ("ONNX Runtime", "OpenVINO", "TensorRT", "TensorRT-RTX", "server"):
        state, fix = found[what]
        assert state == "missing"
        assert install_hint("X").partition("X]")[0] in fix, what
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 1, "nothing here can answer"


def test_a_broken_package_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")

    def broken(name: str) -> None:
        raise ImportError(f"lib{name}.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "import_module", broken)
    state, fix = states()["ONNX Runtime"]
    assert (state, fix) == ("broken", install_hint("ort", "--force-reinstall"))


@pytest.mark.parametrize(
    ("code", "state", "detail"),
    [
        ("__version__ = '7.1'", "ok", "unpacked 7.1"),
        ("", "ok", "unpacked of unknown version"),
        ("raise ImportError('libx.so:\\n no such file')", "broken", "libx.so: no such file"),
        (None, "missing", "to serve"),  # a folder of that name, in which no code is
    ],
)
def test_a_package_that_pip_did_not_install(
    code: str | None, state: str, detail: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unpacked").mkdir()
    if code is not None:
        (tmp_path / "unpacked" / "__init__.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "unpacked", raising=False)
    found = doctor._package("server", "unpacked", "serve", "to serve")
    assert (found.state, found.detail) == (state, detail)
    assert bool(found.fix) == (state != "ok")


def test_a_jetson_gets_a_jetsons_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.0\n")
    monkeypatch.setattr(doctor, "TEGRA", release)
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    found = states()
    assert found["GPU"][0] == "ok"
    assert "python3-libnvinfer" in found["TensorRT"][1]
    assert found["TensorRT-RTX"][1] == "use TensorRT"
