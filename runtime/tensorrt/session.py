"""Sessions of TensorRT engines."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from prunion.runtime.base import Precision, Target
from prunion.runtime.errors import BackendError, EngineError, MissingDependencyError
from prunion.runtime.graph import PER_REQUEST
from prunion.runtime.tensorrt.cuda import Buffer, Stream, gpu_sm
from prunion.runtime.tensorrt.key import Shape, check_shape
from prunion.runtime.tensorrt.layers import EngineLayer, engine_layers, layers_note
from prunion.runtime.tensorrt.library import KeepingLogger, library, make_logger, sizes

if TYPE_CHECKING:
    import tensorrt

__all__ = ["TensorRtSession", "deserialise"]


class TensorRtSession:
    """One engine with one context, one stream and buffers in page-locked memory.

    Thread-safe, one request at a time.

    The tables stay on the GPU and are copied again only when they are other arrays than before.
    A second request of the same shapes is recorded as a CUDA graph; later ones replay it.
    TensorRT-RTX, which swaps kernels while it runs, is left to record its work itself.

    `needs_tables`: an engine knows no defaults.
    """

    needs_tables = True

    def __init__(self, target: Target, engine: bytes, precision: Precision = "fp32") -> None:
        self.trt = library(target)
        # First: without a GPU the library's own messages are of no help.
        self.sm = running_sm(target)
        self.target, self.precision = target, precision
        self.engine, self._keep = deserialise(self.trt, engine)
        self.digest, self.engine_bytes = hashlib.sha256(engine).hexdigest(), len(engine)
        self._records = not hasattr(self.trt, "CudaGraphStrategy")
        self.context, self._settings = make_context(self.trt, self.engine)
        self.stream = Stream()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        inputs = self.trt.TensorIOMode.INPUT
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == inputs]
        self._limits = {n: shape_limits(self.engine, n) for n in self.inputs}
        self._buffers: dict[str, Buffer] = {}
        self._tables: dict[str, np.ndarray] = {}
        self._shapes: dict[str, Shape] = {}
        self._graph: Any = None
        self._lock = threading.Lock()

    @property
    def memory_bytes(self) -> int:
        """Scratch memory of one context on the GPU, as the engine itself says."""
        # TensorRT before 10.1 and early TensorRT-RTX have the second only; 0 is an answer.
        newer = getattr(self.engine, "device_memory_size_v2", None)
        return int(self.engine.device_memory_size if newer is None else newer)

    @property
    def batches(self) -> tuple[int, int]:
        """The least and the most images of its shape profile."""
        least, most = self._limits["image"]
        return least[0], most[0]

    def layers(self) -> list[EngineLayer]:
        """Every layer and the precision it runs in, by the engine inspector."""
        return engine_layers(self.trt, self.engine)

    def note(self) -> str:
        """Whether the engine runs in the precision that was asked for."""
        try:
            return layers_note(self.layers(), self.precision)
        except EngineError as exc:  # no reason to explain nothing else
            return str(exc)

    def get_providers(self) -> list[str]:
        """What answers."""
        return [f"{self.trt.__name__} {self.trt.__version__} on sm {self.sm}"]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The output `logits`, as an array of its own.

        Raises InputError for shapes outside the engine's shape profile, BackendError if CUDA fails.
        """
        for name in self.inputs:
            check_shape(name, feeds[name].shape, *self._limits[name])
        with self._lock:
            try:
                self._answer(feeds)
            except BaseException:
                # Whether anything arrived on the GPU is not known: all of it is sent again.
                self._shapes = {}
                self._tables.clear()
                raise
            return [self._logits().copy() for _ in outputs]

    def check_tables(self, tables: Mapping[str, np.ndarray]) -> None:
        """Raise InputError if tables are larger than the engine was built for."""
        for name in self.inputs:
            if name in tables:
                check_shape(name, tables[name].shape, *self._limits[name])

    def _answer(self, feeds: Mapping[str, np.ndarray]) -> None:
        shapes = {name: feeds[name].shape for name in self.inputs}
        again = shapes == self._shapes
        if not again:
            self._reshape(feeds)
        self._fill(feeds)
        if self._graph is not None:
            self.stream.launch(self._graph)
        else:
            # The first request of a shape runs plainly: TensorRT sets itself up then, which cannot
            # be recorded. The second is recorded, and run as well, because recording runs nothing.
            if again and self._records:
                self._record()
            self._enqueue()
        self._shapes = shapes
        self.stream.wait()

    def _reshape(self, feeds: Mapping[str, np.ndarray]) -> None:
        """New shapes: buffers large enough, addresses told, no recording any more."""
        if self._graph is not None:
            self.stream.drop(self._graph)
            self._graph = None
        self._shapes = {}
        for name in self.inputs:
            self._must(self.context.set_input_shape(name, feeds[name].shape), name)
            self._reserve(name, feeds[name].nbytes)
        shape = sizes(self.context.get_tensor_shape("logits"))
        self._must(min(shape) >= 0, "logits")
        self._reserve("logits", int(np.prod(shape)) * 4)
        for name, buffer in self._buffers.items():
            self._must(self.context.set_tensor_address(name, buffer.device), name)

    def _must(self, done: bool, name: str) -> None:
        if not done:
            raise BackendError(f"{self.target} does not take the shape of {name}: build it again")

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
        """The request into page-locked memory; tables also to the GPU, if they are new."""
        for name in self.inputs:
            array, buffer = feeds[name], self._buffers[name]
            if self._tables.get(name) is array:
                continue
            np.copyto(buffer.host(array.shape, array.dtype), array)
            if name not in PER_REQUEST:
                buffer.upload(array.nbytes, self.stream)
                self._tables[name] = array  # kept, so that no other array can be the same object
        self._sizes = {n: feeds[n].nbytes for n in PER_REQUEST if n in self.inputs}

    def _enqueue(self) -> None:
        for name, size in self._sizes.items():
            self._buffers[name].upload(size, self.stream)
        if not self.context.execute_async_v3(int(self.stream.handle)):
            raise BackendError(f"{self.target} did not run the engine: build it again")
        self._buffers["logits"].download(self._logits().nbytes, self.stream)

    def _record(self) -> None:
        """Record this shape's work; a library that cannot is run without, from now on."""
        try:
            self._graph = self.stream.record(self._enqueue)
        except BackendError:
            self._graph, self._records = None, False

    def _logits(self) -> np.ndarray:
        shape = sizes(self.context.get_tensor_shape("logits"))
        return self._buffers["logits"].host(shape, np.dtype(np.float32))


def running_sm(target: Target) -> int:
    """This machine's GPU generation. Raises BackendError without a GPU."""
    try:
        return gpu_sm()
    except (BackendError, MissingDependencyError) as exc:
        raise BackendError(
            f"{target} runs engines on an NVIDIA GPU and there is none here ({exc}): use the "
            "backend cpu, or see `prunion doctor`"
        ) from None


def deserialise(
    trt: ModuleType, engine: bytes
) -> tuple[tensorrt.ICudaEngine, tuple[tensorrt.Runtime, KeepingLogger]]:
    """The engine, and what must live as long as it. Raises EngineError if it is none for here."""
    logger = make_logger(trt)
    runtime: Any = trt.Runtime(logger)
    made = runtime.deserialize_cuda_engine(engine)
    if made is None:
        reason = logger.messages[-1] if logger.messages else "no reason given"
        raise EngineError(f"{trt.__name__} refuses the engine ({reason}): run `prunion build` here")
    return made, (runtime, logger)


def make_context(trt: ModuleType, engine: Any) -> tuple[tensorrt.IExecutionContext, Any]:
    """A context, and its settings if there are any. Raises BackendError if there is no room."""
    settings = None
    if hasattr(trt, "CudaGraphStrategy"):  # TensorRT-RTX from 1.2 on
        settings = engine.create_runtime_config()
        settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(settings)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise BackendError(
            f"{trt.__name__} gives no context for the engine: free GPU memory, or build with a "
            "smaller --batch"
        )
    return context, settings


def shape_limits(engine: tensorrt.ICudaEngine, name: str) -> tuple[Shape, Shape]:
    """The least and the largest shape of an input."""
    low, _, high = engine.get_tensor_profile_shape(name, 0)
    return sizes(low), sizes(high)
