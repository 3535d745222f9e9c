"""OpenVINO's sessions, and what a graph needs to get through its optimisations unharmed.

Two of them are at fault in all versions tried (2023.3 to 2026.4): one moves a reordering of
channels into a convolution's weights by the wrong order, one refuses strided convolutions below a
split.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.backends.session import ANY_BATCH
from prunion.runtime.base import default_threads, install_hint
from prunion.runtime.errors import BundleError, MissingDependencyError

if TYPE_CHECKING:
    import openvino

__all__ = [
    "OpenVinoSession",
    "guard",
]


class OpenVinoSession:
    """A compiled model; thread-safe, each thread takes an infer request of its own.

    `needs_tables`: OpenVINO knows no optional inputs, so a mixed graph must be fed its tables.
    """

    needs_tables = True
    batches = ANY_BATCH
    digest = ""

    def __init__(self, graph: Path | str | bytes, threads: int | None = None) -> None:
        core = _core()
        settings: dict[str, str | int] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Otherwise bfloat16 where the CPU has it, with other answers.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        threads = default_threads() if threads is None else threads
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            if isinstance(graph, bytes):
                model = core.read_model(graph, b"")
            else:
                model = core.read_model(str(graph))
            guard(model)
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
            f"this needs the package openvino: {install_hint('openvino')}"
        ) from None
    return openvino.Core()


def guard(model: openvino.Model) -> None:
    """Rewrite a model in place, between reading and compiling it."""
    _keep_gathers(model)
    _split_rows_first(model)


def _keep_gathers(model: openvino.Model) -> None:
    """Count the axis of every Gather from the end, which means the same.

    `ReverseInputChannelsFusion` takes a Gather of all of its input's channels for swapped colours
    and moves it into the weights of the next convolution. It puts them in the Gather's order, but
    the inverse of that order is right. It looks only at axes that are not negative.
    """
    from openvino import op

    for node in model.get_ops():
        if node.get_type_name() != "Gather":
            continue
        rank, axis = node.get_input_partial_shape(0).rank, node.input_value(2).get_node()
        if rank.is_dynamic or axis.get_type_name() != "Constant":
            continue
        value = int(axis.get_data().reshape(-1)[0])
        if value > 0:
            counted = op.Constant(np.array(value - rank.get_length(), dtype=np.int64))
            node.input(2).replace_source_output(counted.output(0))


def _split_rows_first(model: openvino.Model) -> None:
    """Split a bank's rows as `[N, P]`, and unsqueeze the parts, where a stride may reach them.

    `StridesOptimization` moves the stride of a 1x1 convolution up through products and sums to
    all that they read. It puts a pooling there, and fails to compile on a node of many outputs.
    """
    from openvino import opset8

    reached: set[str] = set()  # nodes whose inputs may take a stride from below
    for node in reversed(model.get_ordered_ops()):
        readers = [x for output in node.outputs() for x in output.get_target_inputs()]
        if node.get_type_name() == "Convolution":
            pointwise = node.get_input_partial_shape(1)[2:].to_shape() == [1, 1]
            passes = pointwise and (
                any(stride > 1 for stride in node.get_attributes()["strides"])
                or all(x.get_node().get_name() in reached for x in readers)
            )
        else:
            passes = bool(readers) and all(x.get_node().get_name() in reached for x in readers)
        if passes and node.get_type_name() not in ("GroupConvolution", "MaxPool", "AvgPool"):
            reached.add(node.get_name())
        shape = node.get_output_partial_shape(0) if readers else None
        if node.get_type_name() != "VariadicSplit" or shape is None or len(shape) != 4:
            continue
        if not any(x.get_node().get_name() in reached for x in readers):
            continue
        last = np.array([2, 3])
        rows = opset8.squeeze(node.input_value(0), last)
        parts = opset8.variadic_split(rows, node.input_value(1), node.input_value(2))
        for output, part in zip(node.outputs(), parts.outputs(), strict=True):
            for reader in output.get_target_inputs():
                reader.replace_source_output(opset8.unsqueeze(part, last).output(0))
