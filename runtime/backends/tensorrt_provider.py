"""TensorRT by way of ONNX Runtime: its providers' sessions, kept compiled as EP contexts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from prunion.runtime.backends.onnxruntime import SessionOptions, make_session, provider_version
from prunion.runtime.bundle.folder import Bundle
from prunion.runtime.errors import PrunionError
from prunion.runtime.graph.inputs import input_shapes, inputs_without_defaults
from prunion.runtime.model.plan import cache_folder
from prunion.runtime.tensorrt.cuda import device_sm
from prunion.runtime.tensorrt.files import engine_name, staleness, write_engine
from prunion.runtime.tensorrt.key import (
    EngineKey,
    Profile,
    check_shape,
    engine_key,
    profile_shapes,
    shapes_text,
)

__all__ = ["PREFIXES", "ProfiledSession", "open_provider", "provider_options"]

# How the names of a provider's own options begin.
PREFIXES = {"tensorrt-ep": "trt", "tensorrt-rtx-ep": "nv"}


class ProfiledSession:
    """A session that takes shapes within a profile only; everything else is asked of `session`.

    `needs_tables`: a provider that compiles takes an input with a default for a constant.
    """

    needs_tables = True

    def __init__(self, session: Any, profiles: Mapping[str, Profile]) -> None:
        self._session = session
        self._profiles = profiles

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs named. Raises InputError for shapes outside the profile."""
        self.check_tables(feeds)
        found: list[np.ndarray] = self._session.run(outputs, feeds)
        return found

    def check_tables(self, tables: Mapping[str, np.ndarray]) -> None:
        """Raise InputError if any array is outside the profile."""
        for name, array in tables.items():
            low, _, high = self._profiles[name]
            check_shape(name, array.shape, low, high)


def open_provider(
    bundle: Bundle, options: SessionOptions, precision: str = "fp32"
) -> ProfiledSession:
    """A session of the provider `options.backend`, compiled once and then read from the cache.

    Raises MissingDependencyError if this ONNX Runtime has no such provider, BackendError if it
    does not start.
    """
    version = provider_version(options.backend)
    sm = device_sm()
    key = engine_key(bundle, options.backend, version, () if sm is None else (sm,), precision)
    graph = inputs_without_defaults(bundle.graph(precision))
    profiles = profile_shapes(input_shapes(graph), key, bundle.manifest.heads)
    settings = provider_options(options.backend, precision, profiles)

    def make(model: str | bytes, entries: Mapping[str, str]) -> Any:
        chosen = replace(options, provider_options=settings, entries=entries)
        return make_session(model, chosen, needs=set(profiles))

    return ProfiledSession(compiled(make, graph, key), profiles)


def provider_options(
    backend: str, precision: str, profiles: Mapping[str, Profile]
) -> dict[str, str]:
    """What the provider is told: the profile, and the types that TensorRT may use."""
    prefix = PREFIXES.get(backend)
    if prefix is None:
        return {}
    names = (f"{prefix}_profile_{name}_shapes" for name in ("min", "opt", "max"))
    found = {name: shapes_text(profiles, place) for place, name in enumerate(names)}
    if prefix == "trt":  # weakly typed: float16 and Q/DQ in the graph count only when allowed
        found["trt_fp16_enable"] = str(int(precision.startswith(("fp16", "int8"))))
        found["trt_int8_enable"] = str(int(precision.startswith("int8")))
    return found


def compiled(
    make: Callable[[str | bytes, Mapping[str, str]], Any], graph: bytes, key: EngineKey
) -> Any:
    """The session of a context compiled before for `key`, else of `graph`, whose context is kept.

    `make` opens a model with entries of ONNX Runtime's session options.
    """
    path = cache_folder() / "contexts" / f"{engine_name(key)}_ctx.onnx"
    if not staleness(path, key):
        with suppress(PrunionError):  # of another driver, say: compiled again
            return make(str(path), {})
    with TemporaryDirectory() as folder:
        place = Path(folder) / "context.onnx"
        entries = {
            "ep.context_enable": "1",
            "ep.context_file_path": str(place),
            "ep.context_embed_mode": "1",
        }
        session = make(graph, entries)
        if place.is_file():
            with suppress(OSError):  # a folder that cannot be written only costs compiling again
                write_engine(path, key, place.read_bytes())
    return session
