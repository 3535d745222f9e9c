"""Sessions by the backend's name: every one is run as an ONNX Runtime session is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunion.runtime.errors import PrunionError
from prunion.runtime.graph_edit import tables_as_inputs
from prunion.runtime.ort_session import PROVIDERS, SessionOptions, mixed_session, run
from prunion.runtime.ort_session import make_session as make_ort_session

__all__ = ["BACKENDS", "SessionOptions", "check_backend", "make_mixed", "make_session", "run"]

BACKENDS = ("auto", *PROVIDERS, "openvino")


def check_backend(name: str) -> None:
    """Raise PrunionError unless `name` is a backend."""
    if name not in BACKENDS:
        raise PrunionError(f"no backend {name!r}: use {', '.join(BACKENDS)}")


def make_mixed(graph: Path, options: SessionOptions) -> Any:
    """A session that takes `image`, `domain` and, if fed, taller tables."""
    if options.backend != "openvino":
        return mixed_session(graph, options)
    from prunion.runtime.openvino_session import OpenVinoSession

    # OpenVINO takes an input that has a default for a constant.
    return OpenVinoSession(tables_as_inputs(graph), options.threads)


def make_session(graph: Path | str | bytes, options: SessionOptions, needs: set[str]) -> Any:
    """A session of a graph that takes exactly `needs`."""
    if options.backend != "openvino":
        return make_ort_session(graph, options, needs)
    from prunion.runtime.openvino_session import OpenVinoSession

    return OpenVinoSession(graph, options.threads)
