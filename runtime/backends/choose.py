"""A session by the backend's name: ONNX Runtime's or OpenVINO's.

TensorRT's are opened from a bundle, because an engine is found by what it was built from.
"""

from __future__ import annotations

from pathlib import Path

from prunion.runtime.backends.onnxruntime import make_ort_session
from prunion.runtime.backends.session import Session, SessionOptions
from prunion.runtime.base import BACKENDS, Backend, shown
from prunion.runtime.errors import PrunionError
from prunion.runtime.graph import inputs_without_defaults

__all__ = ["check_backend", "make_mixed", "make_session"]


def check_backend(name: str) -> Backend:
    """`name` if it is a backend. Raises PrunionError naming those there are."""
    backend = BACKENDS.get(name)
    if backend is None:
        raise PrunionError(f"no backend {shown(name)}: use {', '.join(BACKENDS)}")
    return backend


def make_mixed(graph: Path | bytes, options: SessionOptions, needs: set[str]) -> Session:
    """A session of the graph as it is: takes `needs` and, if fed, taller tables."""
    if options.backend != "openvino":
        return make_ort_session(graph, options, needs)
    # OpenVINO takes an input that has a default for a constant.
    return make_session(inputs_without_defaults(graph), options, needs)


def make_session(graph: Path | str | bytes, options: SessionOptions, needs: set[str]) -> Session:
    """A session of a graph that takes exactly `needs`."""
    if options.backend != "openvino":
        return make_ort_session(graph, options, needs)
    from prunion.runtime.backends.openvino import OpenVinoSession

    return OpenVinoSession(graph, options.threads)
