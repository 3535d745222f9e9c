"""A TensorRT engine behind the few methods of an ONNX Runtime session that this package uses."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prunion.runtime.cuda import Buffer, Stream, device_sm
from prunion.runtime.errors import BackendError, EngineError, InputError
from prunion.runtime.tensorrt_layers import EngineLayer, engine_layers
from prunion.runtime.tensorrt_library import library, make_logger, sizes

if TYPE_CHECKING:
    import tensorrt

__all__ = ["TensorRtSession", "deserialise"]

PER_REQUEST = ("image", "domain")


class TensorRtSession:
    """One engine with one context, one stream and buffers in pinned memory; thread-safe, one
    request at a time.

    The tables stay on the GPU and are copied again only when they are other arrays than before.
    A second request of the same shapes is recorded as a CUDA graph; later ones replay it.

    `needs_tables`: an engine knows no defaults.
    """

    needs_tables = True

    def __init__(self, target: str, plan: bytes) -> None:
        self.trt = library(target)
        # First: without a GPU the library's own messages are of no help.
        self.sm = running_sm(target)
        self.target = target
        self.engine, self._keep = deserialise(self.trt, plan)
        self.context: tensorrt.IExecutionContext = self.engine.create_execution_context()
        self.stream = Stream()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = self.trt.TensorIOMode.INPUT
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == inputs]
        self._buffers: dict[str, Buffer] = {}
        self._tables: dict[str, np.ndarray] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._graph: Any = None
        self._records = True
        self._lock = threading.Lock()

    @property
    def memory_bytes(self) -> int:
        """Scratch memory of one context on the GPU, as the engine itself says."""
        return int(
            getattr(self.engine, "device_memory_size_v2", None) or self.engine.device_memory_size
        )

    def layers(self) -> list[EngineLayer]:
        """Every layer and the precision it runs in, by the engine inspector."""
        return engine_layers(self.trt, self.engine)

    def get_providers(self) -> list[str]:
        """What answers."""
        return [f"{self.trt.__name__} {self.trt.__version__} on sm {self.sm}"]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The output `logits`, as an array of its own.

        Raises InputError for shapes outside the engine's profile, BackendError if CUDA fails.
        """
        for name in self.inputs:
            low, _, high = self.engine.get_tensor_profile_shape(name, 0)
            check_shape(name, feeds[name].shape, sizes(low), sizes(high))
        with self._lock:
            shapes = {name: feeds[name].shape for name in self.inputs}
            again = shapes == self._shapes
            if not again:
                self._reshape(feeds)
            self._fill(feeds)
            if self._graph is not None:
                self.stream.launch(self._graph)
            else:
                if again and self._records:
                    self._record()
                self._enqueue()
            self._shapes = shapes
            self.stream.wait()
            return [self._logits().copy() for _ in outputs]

    def _reshape(self, feeds: Mapping[str, np.ndarray]) -> None:
        """New shapes: buffers large enough, addresses told, no recording any more."""
        if self._graph is not None:
            self.stream.drop(self._graph)
            self._graph = None
        self._shapes = {}
        for name in self.inputs:
            self.context.set_input_shape(name, feeds[name].shape)
            self._reserve(name, feeds[name].nbytes)
        shape = sizes(self.context.get_tensor_shape("logits"))
        self._reserve("logits", int(np.prod(shape)) * 4)
        for name, buffer in self._buffers.items():
            self.context.set_tensor_address(name, buffer.device)

    def _reserve(self, name: str, size: int) -> None:
        old = self._buffers.get(name)
        if old is not None and old.bytes >= size:
            return
        if old is not None:
            self._tables.pop(name, None)
            del self._buffers[name]
            old.free()
        self._buffers[name] = Buffer(max(size, 1))

    def _fill(self, feeds: Mapping[str, np.ndarray]) -> None:
        """The request into pinned memory; tables also to the GPU, if they are new."""
        for name in self.inputs:
            array = feeds[name]
            if name not in PER_REQUEST:
                if self._tables.get(name) is array:
                    continue
                self._tables[name] = array  # kept, so that no other array can be the same object
            np.copyto(self._buffers[name].host(array.shape, array.dtype), array)
            if name not in PER_REQUEST:
                self._buffers[name].upload(array.nbytes, self.stream)
        self._sizes = {n: feeds[n].nbytes for n in PER_REQUEST if n in self.inputs}

    def _enqueue(self) -> None:
        for name, size in self._sizes.items():
            self._buffers[name].upload(size, self.stream)
        if not self.context.execute_async_v3(int(self.stream.handle)):
            raise BackendError(f"{self.target} did not run the engine: build it again")
        self._buffers["logits"].download(self._logits().nbytes, self.stream)

    def _record(self) -> None:
        """Record this shape's work; a library that cannot is run without, from now on."""
        self.stream.begin_capture()
        try:
            self._enqueue()
            self._graph = self.stream.end_capture()
        except BackendError:
            self._graph, self._records = None, False

    def _logits(self) -> np.ndarray:
        shape = sizes(self.context.get_tensor_shape("logits"))
        return self._buffers["logits"].host(shape, np.dtype(np.float32))


def running_sm(target: str) -> int:
    """This machine's GPU generation. Raises BackendError without a GPU."""
    sm = device_sm()
    if sm is None:
        raise BackendError(
            f"{target} runs engines on an NVIDIA GPU and there is none here (or no driver, or no "
            "cuda-python): use the backend cpu, or see `prunion doctor`"
        )
    return sm


def deserialise(trt: Any, plan: bytes) -> tuple[Any, Any]:
    """The engine, and what must live as long as it. Raises EngineError if it is none for here."""
    logger = make_logger(trt)
    runtime: Any = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = logger.messages[-1] if logger.messages else "no reason given"
        raise EngineError(f"{trt.__name__} refuses the engine ({reason}): run `prunion build` here")
    return engine, (runtime, logger)


def check_shape(
    name: str, shape: tuple[int, ...], low: tuple[int, ...], high: tuple[int, ...]
) -> None:
    """Raise InputError unless `shape` is within the engine's profile."""
    fits = len(shape) == len(low) and all(
        a <= n <= b for a, n, b in zip(low, shape, high, strict=True)
    )
    if not fits:
        fix = "send smaller batches, or build with a larger --batch"
        if name not in PER_REQUEST:
            fix = "build with more room for domains or classes"
        raise InputError(
            f"{name} is {list(shape)}, the engine takes {list(low)} to {list(high)}: {fix}"
        )
