"""`prunion doctor`: what this machine can run, what is missing, and how to install it."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from prunion.runtime.backends import SessionOptions, make_ort_session
from prunion.runtime.base import Backend, install_hint, one_line
from prunion.runtime.errors import PrunionError

__all__ = ["Finding", "answers_here", "examine", "refusal"]

TEGRA = Path("/etc/nv_tegra_release")
OLD_PYTHON_ORT = "1.23"
State = Literal["ok", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that works or not.

    Attributes:
        fix: the command or step that mends it; empty where it works.
    """

    what: str
    state: State
    detail: str
    fix: str = ""


def answers_here(findings: Sequence[Finding]) -> bool:
    """Whether any backend that was found can answer a prediction."""
    runs = {"ONNX Runtime", "OpenVINO", "TensorRT"}
    return any(x.what in runs and x.state == "ok" for x in findings)


def examine() -> list[Finding]:
    """Look at the GPU, its driver and every backend; imports what it finds."""
    gpu = _gpu()
    return [
        _python(),
        gpu,
        _onnxruntime(gpu.state == "ok"),
        _package("OpenVINO", "openvino", "openvino", "CPUs and GPUs of Intel, ARM CPUs"),
        _tensorrt(gpu.state == "ok"),
        _rtx(gpu.state == "ok"),
        _package("server", "uvicorn", "serve", "prunion serve"),
        _package("training", "torch", "train", "prunion train; not needed where models only run"),
    ]


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info >= (3, 11):
        return Finding("Python", "ok", version)
    detail = f"{version}; the last ONNX Runtime for it is {OLD_PYTHON_ORT}"
    return Finding("Python", "ok", f"{detail}, which needs graphs of opset 21 or less")


def _gpu() -> Finding:
    if TEGRA.exists():
        return Finding("GPU", "ok", f"Jetson, {TEGRA.read_text().splitlines()[0].strip('# ')}")
    if Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi"):
        driver = Path("/sys/module/nvidia/version")
        version = driver.read_text().strip() if driver.exists() else "of unknown version"
        return Finding("GPU", "ok", f"NVIDIA, driver {version}")
    fix = "only if there is an NVIDIA GPU: install its driver"
    return Finding("GPU", "missing", "no NVIDIA GPU or no driver", fix)


def _onnxruntime(has_gpu: bool) -> Finding:
    if not _is_there("onnxruntime"):
        return Finding("ONNX Runtime", "missing", "not installed", install_hint("ort"))
    try:
        ort = import_module("onnxruntime")
        providers = [x.removesuffix("ExecutionProvider") for x in ort.get_available_providers()]
    except (ImportError, AttributeError, OSError) as exc:
        fix = install_hint("ort", "--force-reinstall")
        return Finding("ONNX Runtime", "broken", one_line(exc), fix)
    fix = ""
    if has_gpu and "CUDA" not in providers and not TEGRA.exists():
        fix = f"for the GPU: pip uninstall onnxruntime && {install_hint('ort-gpu')}"
    if not _is_there("onnx"):
        fix = f"pinned sessions need onnx: {install_hint('ort')}"
        return Finding("ONNX Runtime", "broken", f"{ort.__version__} without onnx", fix)
    detail = f"{ort.__version__} ({', '.join(x for x in providers if x != 'Azure')})"
    if has_gpu and "CUDA" in providers and (reason := refusal("cuda")):
        detail += f", on the CPU only: {reason}"
        fix = "pip install 'onnxruntime-gpu[cuda,cudnn]', of the CUDA that the driver knows"
        if TEGRA.exists():
            fix = "install the ONNX Runtime that NVIDIA builds for this JetPack"
    return Finding("ONNX Runtime", "ok", detail, fix)


def refusal(backend: Backend) -> str:
    """Why ONNX Runtime starts no session on a backend; an empty text if it does."""
    from onnx import TensorProto, helper

    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"])
        for name in ("image", "logits")
    ]
    node = helper.make_node("Relu", ["image"], ["logits"])
    graph = helper.make_graph([node], "probe", ends[:1], ends[1:])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    try:
        make_ort_session(model.SerializeToString(), SessionOptions(backend), {"image"})
    except PrunionError as exc:
        return str(exc)
    return ""


def _tensorrt(has_gpu: bool) -> Finding:
    if not _is_there("tensorrt"):
        fix = install_hint("tensorrt")
        if TEGRA.exists():
            fix = "it comes with JetPack: sudo apt install python3-libnvinfer, and make the "
            fix += "virtual environment with --system-site-packages"
        elif not has_gpu:
            fix += "; it builds and runs on a machine with an NVIDIA GPU only"
        return Finding("TensorRT", "missing", "not installed", fix)
    return _imported("TensorRT", "tensorrt", "tensorrt", has_gpu)


def _rtx(has_gpu: bool) -> Finding:
    if TEGRA.exists():
        return Finding("TensorRT-RTX", "missing", "not for Jetsons", "use TensorRT")
    if not _is_there("tensorrt_rtx"):
        fix = install_hint("tensorrt-rtx")
        return Finding("TensorRT-RTX", "missing", "not installed", fix)
    return _imported("TensorRT-RTX", "tensorrt_rtx", "tensorrt-rtx", has_gpu)


def _imported(what: str, module: str, extra: str, has_gpu: bool) -> Finding:
    try:
        version = import_module(module).__version__
    except (ImportError, AttributeError, OSError) as exc:
        fix = install_hint(extra, "--force-reinstall")
        return Finding(what, "broken", one_line(exc), fix)
    if has_gpu:
        return Finding(what, "ok", version)
    if module == "tensorrt_rtx":
        return Finding(what, "ok", f"{version}, builds engines here, runs none (no GPU)")
    return Finding(what, "broken", f"{version}, but no GPU to build for or run on", "add a GPU")


def _package(what: str, module: str, extra: str, purpose: str) -> Finding:
    if not _is_there(module):
        return Finding(what, "missing", purpose, install_hint(extra))
    try:
        version = metadata.version(module)
    except metadata.PackageNotFoundError:  # a build that no pip has installed
        try:
            version = getattr(import_module(module), "__version__", "of unknown version")
        except (ImportError, AttributeError, OSError) as exc:
            fix = install_hint(extra, "--force-reinstall")
            return Finding(what, "broken", one_line(exc), fix)
    return Finding(what, "ok", f"{module} {version}")


def _is_there(module: str) -> bool:
    """Whether a package with code is found: a folder alone is none, nor is tensorrt-stubs."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None
