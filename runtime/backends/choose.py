"""Sessions by the backend's name: every one is run as an ONNX Runtime session is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunion.runtime.backends.onnxruntime import PROVIDERS, SessionOptions, run
from prunion.runtime.backends.onnxruntime import make_session as make_ort_session
from prunion.runtime.errors import PrunionError
from prunion.runtime.graph.inputs import inputs_without_defaults
from prunion.runtime.tensorrt.library import TARGETS

__all__ = ["BACKENDS", "SessionOptions", "check_backend", "make_mixed", "make_session", "run"]

BACKENDS = ("auto", *PROVIDERS, "openvino", *TARGETS)


def check_backend(name: str) -> None:
    """Raise PrunionError unless `name` is a backend."""
    if name not in BACKENDS:
        raise PrunionError(f"no backend {name!r}: use {', '.join(BACKENDS)}")


def make_mixed(graph: Path, options: SessionOptions, needs: set[str]) -> Any:
    """A session of the file as it is: takes `needs` and, if fed, taller tables."""
    if options.backend != "openvino":
        return make_ort_session(graph, options, needs)
    from prunion.runtime.backends.openvino import OpenVinoSession

    # OpenVINO takes an input that has a default for a constant.
    return OpenVinoSession(inputs_without_defaults(graph), options.threads)


def make_session(graph: Path | str | bytes, options: SessionOptions, needs: set[str]) -> Any:
    """A session of a graph that takes exactly `needs`."""
    if options.backend != "openvino":
        return make_ort_session(graph, options, needs)
    from prunion.runtime.backends.openvino import OpenVinoSession

    return OpenVinoSession(graph, options.threads)
