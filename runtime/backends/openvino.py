"""OpenVINO's sessions."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.errors import BundleError, MissingDependencyError

if TYPE_CHECKING:
    import openvino

__all__ = ["OpenVinoSession"]


class OpenVinoSession:
    """A compiled model; thread-safe, each thread takes an infer request of its own.

    `needs_tables`: OpenVINO knows no optional inputs, so a mixed graph must be fed its tables.
    """

    needs_tables = True

    def __init__(self, graph: Path | str | bytes, threads: int | None = None) -> None:
        core = _core()
        settings: dict[str, str | int] = {
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
        self._free: queue.SimpleQueue[openvino.InferRequest] = queue.SimpleQueue()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
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

    def get_providers(self) -> Sequence[str]:
        """What answers."""
        return [f"OpenVINO {self._compiled.get_property('EXECUTION_DEVICES')[0]}"]

    def check_tables(self, tables: Mapping[str, np.ndarray]) -> None:
        """Tables of any number of domains will do."""

    def note(self) -> str:
        """Nothing."""
        return ""


@cache
def _core() -> openvino.Core:
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
