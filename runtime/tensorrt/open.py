"""From a bundle to a running engine: a given file that fits, one from the cache, or a new one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from prunion.runtime.base import Precision, Target, cache_folder
from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import EngineError
from prunion.runtime.tensorrt.build import engine_bytes
from prunion.runtime.tensorrt.files import (
    check_runs_on,
    engine_name,
    read_engine,
    read_fitting,
    write_engine,
)
from prunion.runtime.tensorrt.key import BuildOptions, engine_key
from prunion.runtime.tensorrt.library import library
from prunion.runtime.tensorrt.session import TensorRtSession, running_sm

__all__ = ["open_engine"]


def open_engine(
    bundle: Bundle,
    target: Target,
    precision: Precision = "fp32",
    engine: Path | str | None = None,
    options: BuildOptions | None = None,
) -> TensorRtSession:
    """A session of `engine`, or of the cached engine for this machine, built if there is none.

    Raises EngineError if `engine` is damaged or was made from another graph, library or GPU;
    BackendError without a GPU; MissingDependencyError.
    """
    trt = library(target)
    version = str(trt.__version__)
    if engine is not None:
        wanted = engine_key(bundle, target, version, precision=precision)
        made, key = read_fitting(engine, wanted)  # says what is wrong with the file, GPU or not
        check_runs_on(engine, key, running_sm(target))
        return TensorRtSession(target, made, precision)
    options = options or BuildOptions()
    key = engine_key(bundle, target, version, (running_sm(target),), precision, options)
    path = cache_folder() / "engines" / engine_name(key)
    try:
        made = read_engine(path, key)
    except (EngineError, OSError):  # none yet, a stale or a damaged one
        made, _ = engine_bytes(trt, bundle, key, options)
        with suppress(OSError):  # a folder that cannot be written only costs building again
            write_engine(path, key, made)
    return TensorRtSession(target, made, precision)
