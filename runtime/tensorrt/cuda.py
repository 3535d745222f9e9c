"""What is used of CUDA's runtime, through cuda-python: memory, one stream, graphs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any
from weakref import finalize

import numpy as np

from prunion.runtime.errors import BackendError, MissingDependencyError

__all__ = ["Buffer", "Stream", "call", "cudart", "device_sm", "free_gpu_bytes", "gpu_sm"]


def cudart() -> ModuleType:
    """cuda-python's module of the CUDA runtime. Raises MissingDependencyError."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):  # the second until 12.6
        try:
            return import_module(name)
        except (ImportError, OSError):
            continue
    raise MissingDependencyError(
        "reaching the GPU needs cuda-python: pip install cuda-python of the driver's CUDA, such as "
        "'cuda-python==12.*'"
    )


def gpu_sm() -> int:
    """86 for a GPU of compute capability 8.6.

    Raises BackendError without a GPU or a driver, MissingDependencyError without cuda-python.
    """
    rt = cudart()
    major, minor = (
        call(rt.cudaDeviceGetAttribute, getattr(rt.cudaDeviceAttr, name), 0)
        for name in ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor")
    )
    return int(major) * 10 + int(minor)


def device_sm() -> int | None:
    """What `gpu_sm` gives, None where it raises."""
    try:
        return gpu_sm()
    except (BackendError, MissingDependencyError):
        return None


def free_gpu_bytes() -> int | None:
    """Memory that is free on the GPU, whoever took the rest; None where `gpu_sm` raises."""
    try:
        return int(call(cudart().cudaMemGetInfo))
    except (BackendError, MissingDependencyError):
        return None


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function of the CUDA runtime; its result without the status.

    Raises BackendError for any status but success.
    """
    try:
        status, *results = function(*arguments)
    except RuntimeError as exc:  # the library behind the bindings is not there
        raise BackendError(f"CUDA does not start ({exc}): install the NVIDIA driver") from None
    if int(status) != 0:
        raise BackendError(
            f"CUDA answers {getattr(status, 'name', status)} to {function.__name__}: "
            "check the driver with `prunion doctor`, and that cuda-python is of the driver's CUDA"
        )
    return results[0] if results else None


class Stream:
    """One CUDA stream, and sequences of its work recorded as graphs."""

    def __init__(self) -> None:
        self.rt = cudart()
        # Non-blocking: else, while it records, whoever uses the default stream would be refused.
        flag = self.rt.cudaStreamNonBlocking
        self.handle = call(self.rt.cudaStreamCreateWithFlags, flag)
        finalize(self, self.rt.cudaStreamDestroy, self.handle)
        self._graphs: dict[int, finalize[..., Any]] = {}

    def wait(self) -> None:
        """Until all of its work is done."""
        call(self.rt.cudaStreamSynchronize, self.handle)

    def record(self, work: Callable[[], None]) -> Any:
        """What `work` puts on the stream, recorded without doing it, for `launch`.

        Raises BackendError if it cannot be recorded; the stream can be used as before.
        """
        mode = self.rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self.rt.cudaStreamBeginCapture, self.handle, mode)
        try:
            work()
        except BaseException:
            # Until it is ended, a capture that a refused call has broken refuses everything else.
            self.rt.cudaStreamEndCapture(self.handle)
            self.rt.cudaGetLastError()
            raise
        graph = call(self.rt.cudaStreamEndCapture, self.handle)
        try:
            made = call(self.rt.cudaGraphInstantiate, graph, 0)
            self._graphs[int(made)] = finalize(self, self.rt.cudaGraphExecDestroy, made)
            return made
        finally:
            self.rt.cudaGraphDestroy(graph)

    def launch(self, graph: Any) -> None:
        """Do what was recorded."""
        call(self.rt.cudaGraphLaunch, graph, self.handle)

    def drop(self, graph: Any) -> None:
        """Free a recording."""
        self._graphs.pop(int(graph))()


class Buffer:
    """Memory on the GPU with its twin in page-locked host memory, both of `bytes`.

    Page-locked memory stays where it is, so the GPU copies it without a detour.

    Given back by `free`, or when nothing holds the buffer any more.
    """

    def __init__(self, size: int) -> None:
        self.rt = cudart()
        self.bytes = size
        self.device = int(call(self.rt.cudaMalloc, size))
        self._free = [finalize(self, self.rt.cudaFree, self.device)]
        self._host = int(call(self.rt.cudaMallocHost, size))
        self._free.append(finalize(self, self.rt.cudaFreeHost, self._host))

    def host(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The beginning of the page-locked memory as an array."""
        count = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_byte * count).from_address(self._host)
        return np.frombuffer(memoryview(raw).cast("B"), dtype).reshape(shape)

    def upload(self, count: int, stream: Stream) -> None:
        """Copy the first `count` bytes to the GPU."""
        kind = self.rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self.rt.cudaMemcpyAsync, self.device, self._host, count, kind, stream.handle)

    def download(self, count: int, stream: Stream) -> None:
        """Copy the first `count` bytes back."""
        kind = self.rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self.rt.cudaMemcpyAsync, self._host, self.device, count, kind, stream.handle)

    def free(self) -> None:
        """Give both back; no array of `host` may be used any more."""
        for free in self._free:
            free()
