"""`tensorrt` and `tensorrt_rtx`, which share one Python API: imported, listened to, parsing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prunion.runtime.errors import (
    BackendError,
    InputError,
    MissingDependencyError,
    UnsupportedGraphError,
)

if TYPE_CHECKING:
    import tensorrt

__all__ = ["TARGETS", "library", "make_builder", "make_logger", "parse", "sizes"]

TARGETS = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


def library(target: str) -> Any:
    """The module behind a target. Raises InputError, MissingDependencyError."""
    if target not in TARGETS:
        raise InputError(f"no target {target!r}: use {' or '.join(TARGETS)}")
    try:
        module = import_module(TARGETS[target])
        _ = module.Builder  # the package tensorrt-stubs is a `tensorrt` without anything in it
    except (ImportError, OSError, AttributeError) as exc:
        raise MissingDependencyError(
            f"{TARGETS[target]} does not import ({exc}): pip install 'prunion[{target}]'"
            + (" (on a Jetson it comes with JetPack)" if target == "tensorrt" else "")
        ) from None
    return module


def make_logger(trt: Any) -> Any:
    """A logger that keeps the errors, for the one line that the user gets, in `messages`."""

    class Quiet(trt.ILogger):
        """Says nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.messages.append(" ".join(message.split()))

    return Quiet()


def make_builder(trt: Any, logger: Any) -> tensorrt.Builder:
    """A builder. Raises BackendError where the library gives none, as without a GPU."""
    try:
        builder = trt.Builder(logger)
    except (RuntimeError, TypeError) as exc:  # what a null from the library becomes
        reason = logger.messages[-1] if logger.messages else str(exc)
        raise BackendError(
            f"{trt.__name__} gives no builder here ({reason}): it needs a GPU and its driver"
        ) from None
    if builder is None:
        raise BackendError(f"{trt.__name__} gives no builder here: it needs a GPU and its driver")
    return builder


def parse(
    trt: Any, builder: tensorrt.Builder, logger: Any, graph: bytes, where: str
) -> tuple[tensorrt.INetworkDefinition, tensorrt.OnnxParser]:
    """The network of an ONNX graph; keep the parser until it is built.

    Raises UnsupportedGraphError with the node that the parser refuses.
    """
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    # TensorRT 11 has no such flag: every network is strongly typed.
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        error = parser.get_error(0) if parser.num_errors else None
        reason = "no reason given"
        if error is not None:
            node = f"node {error.node_name()!r} ({error.node_operator()}): "
            reason = node + error.desc()
        raise UnsupportedGraphError(
            f"{where}: {trt.__name__}'s parser refuses the graph: {' '.join(reason.split())}"
        )
    return network, parser


def sizes(dims: Any) -> tuple[int, ...]:
    """TensorRT's `Dims` as a tuple, -1 for a symbolic size."""
    return tuple(int(n) for n in dims)
