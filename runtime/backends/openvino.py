"""OpenVINO behind the few methods of an ONNX Runtime session that this package uses."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.errors import BundleError, MissingDependencyError

__all__ = ["OpenVinoSession"]


class OpenVinoSession:
    """A compiled model; thread-safe, each thread takes an infer request of its own.

    `needs_tables`: OpenVINO knows no optional inputs, so a mixed graph must be fed its tables.
    """

    needs_tables = True

    def __init__(self, graph: Path | str | bytes, threads: int | None = None) -> None:
        core = _core()
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Otherwise bfloat16 where the CPU has it, with other answers.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            if isinstance(graph, bytes):
                model = core.read_model(graph, b"")
            else:
                model = core.read_model(str(graph))
            self._compiled = core.compile_model(model, "CPU", settings)
        except Exception as exc:  # OpenVINO raises RuntimeError for everything
            reason = " ".join(str(exc).split())[:300]
            raise BundleError(
                f"OpenVINO does not load the graph ({reason}): use the backend cpu"
            ) from None
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs named, as arrays of their own."""
        try:
            request = self._free.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            request.infer(dict(feeds), share_inputs=True)
            return [np.array(request.get_tensor(name).data) for name in outputs]
        finally:
            self._free.put(request)

    def get_providers(self) -> list[str]:
        """What answers."""
        return [f"OpenVINO {self._compiled.get_property('EXECUTION_DEVICES')[0]}"]


@cache
def _core() -> Any:
    """One core for the whole process, never given back.

    Each sets the stack that signals are handled on, and restores the one it found when it goes:
    of several that go in another order the last leaves memory that is freed, and SIGTERM kills.
    """
    try:
        import openvino
    except ImportError:
        raise MissingDependencyError(
            "this needs the package openvino: pip install 'prunion[openvino]'"
        ) from None
    return openvino.Core()
