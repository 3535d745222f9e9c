"""`tensorrt` and `tensorrt_rtx`, which share one Python API: imported, listened to, parsing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from prunion.runtime.base import TARGETS, Target, install_hint
from prunion.runtime.errors import (
    BackendError,
    InputError,
    MissingDependencyError,
    UnsupportedGraphError,
)

if TYPE_CHECKING:
    import tensorrt

__all__ = ["KeepingLogger", "library", "make_builder", "make_logger", "parse", "sizes"]

MODULES: Mapping[Target, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


class KeepingLogger(Protocol):
    """A logger of TensorRT's that keeps the errors it is told, in `messages`."""

    messages: list[str]


def library(target: str) -> ModuleType:
    """The module behind a target. Raises InputError, MissingDependencyError."""
    known = TARGETS.get(target)
    if known is None:
        raise InputError(f"no target {target!r}: use {' or '.join(TARGETS)}")
    try:
        module = import_module(MODULES[known])
        _ = module.Builder  # the package tensorrt-stubs is a `tensorrt` without anything in it
    except (ImportError, OSError, AttributeError) as exc:
        raise MissingDependencyError(
            f"{MODULES[known]} does not import ({exc}): {install_hint(target)}"
            + (" (on a Jetson it comes with JetPack)" if target == "tensorrt" else "")
        ) from None
    return module


def make_logger(trt: ModuleType) -> KeepingLogger:
    """A logger that prints nothing: its errors are for the one line that the user gets."""
    base: Any = trt.ILogger

    class Quiet(base):
        """Keeps errors, prints nothing."""

        def __init__(self) -> None:
            base.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.ERROR, base.INTERNAL_ERROR):
                self.messages.append(" ".join(message.split()))

    return Quiet()


def make_builder(trt: ModuleType, logger: KeepingLogger) -> tensorrt.Builder:
    """A builder. Raises BackendError where the library gives none, as without a GPU."""
    try:
        builder: tensorrt.Builder | None = trt.Builder(logger)
    except (RuntimeError, TypeError) as exc:  # what a null from the library becomes
        reason = logger.messages[-1] if logger.messages else str(exc)
        raise BackendError(
            f"{trt.__name__} gives no builder here ({reason}): it needs a GPU and its driver"
        ) from None
    if builder is None:
        raise BackendError(f"{trt.__name__} gives no builder here: it needs a GPU and its driver")
    return builder


def parse(
    trt: ModuleType, builder: tensorrt.Builder, logger: KeepingLogger, graph: bytes, where: str
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
