"""An ONNX Runtime session on a GPU: its tables stay there between requests."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunion.runtime.engine_key import PER_REQUEST

__all__ = ["BoundSession"]


class BoundSession:
    """A session run by I/O binding; thread-safe, each request has a binding of its own.

    Tables are copied to `device` when they are other arrays than before (domains came or went),
    not with every request. Everything else is asked of the session itself.
    """

    def __init__(self, session: Any, device: str = "cuda") -> None:
        self._session = session
        self._device = device
        self._tables: dict[str, tuple[np.ndarray, Any]] = {}
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs named, on the host."""
        binding, bound = self._session.io_binding(), []
        for name, array in feeds.items():
            if name in PER_REQUEST:
                bound.append(np.ascontiguousarray(array))  # a binding keeps no copy alive
                binding.bind_cpu_input(name, bound[-1])
            else:
                binding.bind_ortvalue_input(name, self.table(name, array))
        for name in outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]

    def table(self, name: str, array: np.ndarray) -> Any:
        """`array` on the device, the copy made before if it is the same array object."""
        from onnxruntime import OrtValue

        with self._lock:
            known = self._tables.get(name)
            if known is None or known[0] is not array:
                known = (array, OrtValue.ortvalue_from_numpy(array, self._device, 0))
                self._tables[name] = known
            return known[1]
