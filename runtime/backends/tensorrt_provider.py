"""TensorRT by way of ONNX Runtime: sessions of the providers that compile.

What they compile is kept as an *EP context*, an ONNX file with the engine in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from prunion.runtime.backends.onnxruntime import make_ort_session, provider_version
from prunion.runtime.backends.session import Session, SessionOptions
from prunion.runtime.base import (
    HEADS,
    Backend,
    Precision,
    arithmetic_of,
    cache_folder,
    sha256_file,
)
from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import PrunionError
from prunion.runtime.graph import input_shapes, inputs_without_defaults
from prunion.runtime.tensorrt import (
    EngineKey,
    ShapeProfile,
    check_shape,
    device_sm,
    engine_key,
    engine_name,
    shape_profiles,
    shapes_text,
    staleness,
    write_engine,
)

__all__ = ["PREFIXES", "CompiledSession", "open_compiled", "open_provider", "provider_options"]

# How the names of a provider's own options begin.
PREFIXES: Mapping[Backend, str] = {"tensorrt-ep": "trt", "tensorrt-rtx-ep": "nv"}


class CompiledSession:
    """A session of a provider that compiles: it takes shapes within its shape profiles only.

    `needs_tables`: a provider that compiles takes an input with a default for a constant.
    """

    needs_tables = True

    def __init__(
        self, session: Session, profiles: Mapping[str, ShapeProfile], digest: str = ""
    ) -> None:
        self._session = session
        self._profiles = profiles
        self.digest = digest

    @property
    def batches(self) -> tuple[int, int]:
        """The least and the most images of its shape profile."""
        least, _, most = self._profiles["image"]
        return least[0], most[0]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """The outputs named. Raises InputError for shapes outside the shape profiles."""
        self._check(feeds)
        return self._session.run(outputs, feeds)

    def get_providers(self) -> Sequence[str]:
        """What answers, the first first."""
        return self._session.get_providers()

    def check_tables(self, tables: Mapping[str, np.ndarray]) -> None:
        """Raise InputError if a table is larger than the session was compiled for."""
        self._check(tables)

    def note(self) -> str:
        """Nothing: ONNX Runtime does not tell what its providers compiled."""
        return ""

    def _check(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            low, _, high = self._profiles[name]
            check_shape(name, array.shape, low, high)


def open_provider(
    bundle: Bundle, options: SessionOptions, precision: Precision = "fp32"
) -> CompiledSession:
    """A session of the provider `options.backend`, compiled once and then read from the cache.

    Raises MissingDependencyError if this ONNX Runtime has no such provider, BackendError if it
    does not start.
    """
    version = provider_version(options.backend)
    sm = device_sm()
    key = engine_key(bundle, options.backend, version, () if sm is None else (sm,), precision)
    graph = inputs_without_defaults(bundle.held_graph(precision).read())
    profiles = shape_profiles(input_shapes(graph), key, HEADS[bundle.manifest.heads])
    settings = provider_options(options.backend, precision, profiles)

    def make(model: str | bytes, entries: Mapping[str, str]) -> Session:
        chosen = replace(options, provider_options=settings, entries=entries)
        return make_ort_session(model, chosen, needs=set(profiles))

    session, digest = open_compiled(make, graph, key)
    return CompiledSession(session, profiles, digest)


def provider_options(
    backend: Backend, precision: Precision, profiles: Mapping[str, ShapeProfile]
) -> dict[str, str]:
    """What the provider is told: the shape profiles, and the types that TensorRT may use."""
    prefix = PREFIXES.get(backend)
    if prefix is None:
        return {}
    names = (f"{prefix}_profile_{name}_shapes" for name in ("min", "opt", "max"))
    found = {name: shapes_text(profiles, place) for place, name in enumerate(names)}
    if prefix == "trt":  # weakly typed: float16 and Q/DQ in the graph count only when allowed
        found["trt_fp16_enable"] = str(int(arithmetic_of(precision) != "fp32"))
        found["trt_int8_enable"] = str(int(arithmetic_of(precision) == "int8"))
    return found


def open_compiled(
    make: Callable[[str | bytes, Mapping[str, str]], Session], graph: bytes, key: EngineKey
) -> tuple[Session, str]:
    """The session of a context compiled before for `key`, else of `graph`, whose context is kept.

    With it comes the context's SHA-256, empty where the provider wrote none.

    `make` opens a model with entries of ONNX Runtime's session options.
    """
    path = cache_folder() / "contexts" / f"{engine_name(key)}_ctx.onnx"
    if not staleness(path, key):
        with suppress(PrunionError):  # of another driver, say: compiled again
            return make(str(path), {}), sha256_file(path)
    with TemporaryDirectory() as folder:
        place = Path(folder) / "context.onnx"
        entries = {
            "ep.context_enable": "1",
            "ep.context_file_path": str(place),
            "ep.context_embed_mode": "1",
        }
        session, digest = make(graph, entries), ""
        if place.is_file():
            digest = sha256_file(place)
            with suppress(OSError):  # a folder that cannot be written only costs compiling again
                write_engine(path, key, place.read_bytes())
    return session, digest
