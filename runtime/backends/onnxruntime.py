"""ONNX Runtime's sessions: the provider is chosen on purpose and confirmed.

On the CPU a session is run as it is; on a GPU by I/O binding, so that the tables stay there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.backends.session import ANY_BATCH, SessionOptions
from prunion.runtime.base import Backend, default_threads, install_hint, reason_of
from prunion.runtime.errors import BackendError, BundleError, MissingDependencyError
from prunion.runtime.graph import PER_REQUEST, pin_domain

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "PROVIDERS",
    "BoundSession",
    "OrtSession",
    "make_ort_session",
    "mixed_session",
    "pinned_session",
    "provider_version",
    "real_backend",
]

PROVIDERS: Mapping[Backend, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt-ep": "TensorrtExecutionProvider",
    "tensorrt-rtx-ep": "NvTensorRTRTXExecutionProvider",
}
# Each new batch size has every convolution planned anew, by an exhaustive search unless told
# otherwise. Memory grows by what is asked for; the default doubles.
DEFAULTS: Mapping[Backend, Mapping[str, str]] = {
    "cuda": {
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
}
# ONNX Runtime's severity. What fails is raised; its log would quote the file's own names, escape
# sequences included, on the terminal.
QUIET = 4
log = logging.getLogger(__name__)


def make_ort_session(
    graph: Path | str | bytes,
    options: SessionOptions | None = None,
    needs: set[str] | None = None,
) -> OrtSession:
    """A session on a confirmed provider.

    Raises BundleError if the graph does not load or lacks an input of `needs`, BackendError if
    the backend is unknown or did not start, MissingDependencyError without ONNX Runtime.
    """
    options = options or SessionOptions()
    ort = _onnxruntime()
    model = graph if isinstance(graph, bytes) else str(graph)
    *first, last = _candidates(ort, options.backend)
    session = None
    for backend in first:
        try:
            session = _start(ort, model, backend, options)
            break
        except BackendError as exc:  # `auto` goes on with the next
            _tell_once(backend, str(exc))
    if session is None:
        session = _start(ort, model, last, options)
    _check_names(session, needs or set())
    on_gpu = session.get_providers()[0] != PROVIDERS["cpu"]
    return BoundSession(session) if on_gpu else OrtSession(session)


@cache
def _tell_once(backend: Backend, why: str) -> None:
    """Say why `auto` takes none of a backend: of a GPU that is there, only the time would tell."""
    log.warning("backend auto goes on without %s: %s", backend, why)


def mixed_session(graph: Path | str, options: SessionOptions | None = None) -> OrtSession:
    """A session on the file as it is: feed `image [N, 3, H, W]`, `domain [N]`, maybe the tables."""
    return make_ort_session(graph, options, needs={"image", "domain"})


def pinned_session(
    graph: Path | str | bytes, index: int, options: SessionOptions | None = None
) -> OrtSession:
    """A session for the domain in row `index`: feed `image [N, 3, H, W]` only."""
    return make_ort_session(pin_domain(graph, index), options, needs={"image"})


class OrtSession:
    """A session as ONNX Runtime made it, `raw`; thread-safe, as ONNX Runtime's own are."""

    needs_tables = False
    batches = ANY_BATCH
    digest = ""

    def __init__(self, raw: onnxruntime.InferenceSession) -> None:
        self.raw = raw

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """The outputs named."""
        found: Sequence[np.ndarray] = self.raw.run(list(outputs), dict(feeds))
        return found

    def get_providers(self) -> Sequence[str]:
        """What answers, the first first."""
        found: Sequence[str] = self.raw.get_providers()
        return found

    def check_tables(self, tables: Mapping[str, np.ndarray]) -> None:
        """Tables of any number of domains will do."""

    def note(self) -> str:
        """Nothing."""
        return ""


class BoundSession(OrtSession):
    """A session run by I/O binding; thread-safe, each request has a binding of its own.

    Tables are copied to `device` when they are other arrays than before (domains came or went),
    not with every request.
    """

    def __init__(self, raw: onnxruntime.InferenceSession, device: str = "cuda") -> None:
        super().__init__(raw)
        self._device = device
        self._tables: dict[str, tuple[np.ndarray, onnxruntime.OrtValue]] = {}
        self._lock = threading.Lock()

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """The outputs named, on the host."""
        binding, bound = self.raw.io_binding(), []
        for name, array in feeds.items():
            if name in PER_REQUEST:
                bound.append(np.ascontiguousarray(array))  # a binding keeps no copy alive
                binding.bind_cpu_input(name, bound[-1])
            else:
                binding.bind_ortvalue_input(name, self.table(name, array))
        for name in outputs:
            binding.bind_output(name, "cpu")
        self.raw.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]

    def table(self, name: str, array: np.ndarray) -> onnxruntime.OrtValue:
        """`array` on the device, the copy made before if it is the same array object."""
        from onnxruntime import OrtValue

        with self._lock:
            known = self._tables.get(name)
            if known is None or known[0] is not array:
                known = (array, OrtValue.ortvalue_from_numpy(array, self._device, 0))
                self._tables[name] = known
            return known[1]


def provider_version(backend: Backend) -> str:
    """ONNX Runtime's version. Raises MissingDependencyError if it has no such provider."""
    ort = _onnxruntime()
    _candidates(ort, backend)
    return str(ort.__version__)


def real_backend(backend: Backend, provider: str = "") -> Backend:
    """What `auto` stands for if there is one choice only, or once a session runs on `provider`."""
    if backend != "auto":
        return backend
    first, *others = _candidates(_onnxruntime(), backend)
    names = {value: key for key, value in PROVIDERS.items()}
    return names.get(provider, backend) if others else first


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError(
            f"this needs the package onnxruntime: {install_hint('ort')} "
            "(with a CUDA GPU: the extra ort-gpu in place of ort)"
        ) from None
    _load_cuda_libraries()
    module: ModuleType = onnxruntime
    return module


@cache
def _load_cuda_libraries() -> None:
    """Where a build for CUDA is to find NVIDIA's libraries: pip puts them where no loader looks."""
    import onnxruntime

    load = getattr(onnxruntime, "preload_dlls", None)  # from 1.21 on
    if load is not None and getattr(onnxruntime, "cuda_version", None):
        with redirect_stdout(StringIO()), suppress(OSError):  # the session that needs it tells
            load()


@cache
def _shared_arena() -> bool:
    """Register one CPU arena for the whole process, once."""
    ort = _onnxruntime()
    kind, memory = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
    try:
        # 1 = grow by what is asked for; the default doubles, and never gives back.
        settings = ort.OrtArenaCfg({"arena_extend_strategy": 1})
        ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", kind, 0, memory), settings)
    except Exception:  # somebody registered one already, or this build has none
        return False
    return True


def _candidates(ort: ModuleType, backend: Backend) -> list[Backend]:
    available = ort.get_available_providers()
    if backend == "auto":
        return ["cuda", "cpu"] if PROVIDERS["cuda"] in available else ["cpu"]
    if backend not in PROVIDERS:
        raise BackendError(f"no backend {backend!r}: use auto, {' or '.join(PROVIDERS)}")
    if PROVIDERS[backend] not in available:
        fix = f"pip uninstall onnxruntime && {install_hint('ort-gpu')}"
        if backend == "tensorrt-rtx-ep":
            fix = "install one that was built with it, or use the backend tensorrt-rtx"
        raise MissingDependencyError(f"this ONNX Runtime has no {PROVIDERS[backend]}: {fix}")
    return [backend]


def _start(
    ort: ModuleType, model: bytes | str, backend: Backend, options: SessionOptions
) -> onnxruntime.InferenceSession:
    settings = ort.SessionOptions()
    settings.log_severity_level = QUIET  # of this session: the process's level is the user's
    settings.enable_mem_pattern = not options.spare_memory
    threads = default_threads() if options.threads is None else options.threads
    if threads is not None:
        settings.intra_op_num_threads = threads
    if options.share_arena and _shared_arena():
        settings.add_session_config_entry("session.use_env_allocators", "1")
    for name, value in options.entries.items():
        settings.add_session_config_entry(name, value)
    told = {**DEFAULTS.get(backend, {}), **options.provider_options}
    providers = [(PROVIDERS[backend], told)]
    try:
        # Otherwise ONNX Runtime prints, and goes on with the CPU, even in the middle of a run.
        session = ort.InferenceSession(model, settings, providers=providers, enable_fallback=0)
    except Exception as exc:  # ONNX Runtime's errors share no base but Exception
        what = "the graph in memory" if isinstance(model, bytes) else model
        reason = reason_of(exc)
        if backend != "cpu":
            raise BackendError(
                f"{PROVIDERS[backend]} does not start with {what} ({reason}): check its drivers or "
                "use the backend cpu"
            ) from None
        raise BundleError(f"{what} does not load ({reason}): export the bundle again") from None
    if isinstance(model, bytes):
        # Its Python class keeps them to start anew with another provider, which is never asked for.
        vars(session)["_model_bytes"] = None
    if session.get_providers()[0] != PROVIDERS[backend]:
        raise BackendError(
            f"{PROVIDERS[backend]} did not start, ONNX Runtime fell back to "
            f"{session.get_providers()[0]}: check its drivers or use the backend cpu"
        )
    return session


def _check_names(session: onnxruntime.InferenceSession, needs: set[str]) -> None:
    inputs = {value.name for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    if (inputs != needs and needs) or "logits" not in outputs:
        raise BundleError(
            f"the graph takes {sorted(inputs)} and gives {outputs}, expected "
            f"{sorted(needs)} and ['logits']: export the bundle again"
        )
