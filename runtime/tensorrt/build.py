"""TensorRT engines from a bundle, by `tensorrt_rtx` (no GPU needed) or `tensorrt`."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prunion.runtime.base import (
    HEADS,
    TARGETS,
    Heads,
    Precision,
    Target,
    read_json,
    replace_file,
    sha256_file,
    write_json,
)
from prunion.runtime.bundle import Bundle, check_one_trunk
from prunion.runtime.errors import (
    BackendError,
    BundleError,
    InputError,
    MissingDependencyError,
    PrunionError,
    UnsupportedGraphError,
)
from prunion.runtime.graph import form_of
from prunion.runtime.tensorrt.cuda import gpu_sm
from prunion.runtime.tensorrt.files import check_engine_output, write_engine
from prunion.runtime.tensorrt.graph import engine_graph
from prunion.runtime.tensorrt.key import (
    BuildOptions,
    EngineKey,
    default_name,
    engine_key,
    input_ranges,
)
from prunion.runtime.tensorrt.layers import network_precisions
from prunion.runtime.tensorrt.library import (
    library,
    make_builder,
    make_logger,
    parse,
    sizes,
)

if TYPE_CHECKING:
    import tensorrt

__all__ = ["EngineResult", "build_engine", "engine_bytes", "target_sms"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineResult:
    """The files written, the build time in seconds, and the convolutions in each precision."""

    path: Path
    key_path: Path
    key: EngineKey
    seconds: float
    convolutions: dict[str, int] = field(default_factory=dict)


def build_engine(
    bundle: Bundle,
    *,
    target: Target = "tensorrt-rtx",
    sms: Sequence[int] = (),
    precision: Precision = "fp32",
    options: BuildOptions | None = None,
    output: Path | str | None = None,
    force: bool = False,
) -> EngineResult:
    """Build one engine for the GPU generations `sms` (86 = compute capability 8.6).

    Without `sms` it is built for this machine's GPU. The tables stay inputs with a symbolic number
    of domains, so a new domain needs no rebuild. Writes the engine and, beside it, its key as JSON.
    The default place is the current folder: a bundle's own files are fixed by its manifest.

    Raises MissingDependencyError, BackendError without a GPU to build on or for, InputError,
    BundleError, UnsupportedGraphError.
    """
    trt, options = library(target), options or BuildOptions()
    check_one_trunk(bundle, "an engine")
    form_of(bundle, precision)  # checked before a GPU is looked for
    sms = target_sms(target, sms)
    key = engine_key(bundle, target, str(trt.__version__), sms, precision, options)
    path = Path(output) if output else Path(default_name(bundle, key))
    check_engine_output(bundle, path, force=force)
    start = time.perf_counter()
    engine, convolutions = engine_bytes(trt, bundle, key, options)
    check_engine_output(bundle, path, force=force)  # minutes have passed
    key_path = write_engine(path, key, engine)
    return EngineResult(path, key_path, key, time.perf_counter() - start, convolutions)


def target_sms(target: Target, sms: Sequence[int] = ()) -> tuple[int, ...]:
    """What to build for: `sms`, else this machine's GPU.

    Raises BackendError if neither is there, InputError where `target` builds for no other GPU.
    """
    if sms and target != "tensorrt":
        return tuple(sms)
    try:
        own = gpu_sm()
    except (BackendError, MissingDependencyError) as exc:
        if sms:
            return tuple(sms)  # the builder knows its GPU without cuda-python
        fix = "build on the machine it is for" if target == "tensorrt" else "name GPUs with --sm"
        raise BackendError(f"there is no GPU here to build for: {fix} ({exc})") from None
    if sms and set(sms) != {own}:
        raise InputError(f"tensorrt builds for this machine's GPU only, sm {own}: leave out --sm")
    return (own,)


def engine_bytes(
    trt: ModuleType, bundle: Bundle, key: EngineKey, options: BuildOptions
) -> tuple[bytes, dict[str, int]]:
    """The engine as it is kept in a file (TensorRT calls that its plan), and how many convolutions
    the graph has in each precision."""
    logger = make_logger(trt)
    builder = make_builder(trt, logger)
    graph = engine_graph(bundle.held_graph(key.precision).read(), key)
    network, parser = parse(trt, builder, logger, graph, str(bundle.path))
    config = builder.create_builder_config()
    # What the engine inspector tells about types; it costs no time when running.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_targets(trt, config, key)
    _set_options(trt, config, options)
    cache, own = _read_cache(config, options, TARGETS[key.target])
    profile = _shape_profile(builder, network, key, HEADS[bundle.manifest.heads])
    config.add_optimization_profile(profile)
    if options.dla is not None:
        _check_dla(trt, config, network)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reason = logger.messages[-1] if logger.messages else "no reason given"
        raise UnsupportedGraphError(f"{key.target} could not build {bundle.path}: {reason}")
    if cache is not None and options.timing_cache is not None and own:
        _write_cache(cache, options.timing_cache)
    convolutions = network_precisions(trt, network)
    del parser
    return bytes(engine), convolutions


def _set_targets(trt: ModuleType, config: Any, key: EngineKey) -> None:
    if not hasattr(config, "num_compute_capabilities"):  # tensorrt builds for its own GPU
        return
    known = [x for x in vars(trt.ComputeCapability) if x.startswith("SM")]
    config.num_compute_capabilities = len(key.sms)
    for index, sm in enumerate(key.sms):
        if f"SM{sm}" not in known:
            numbers = ", ".join(name[2:] for name in sorted(known, key=lambda x: int(x[2:])))
            raise InputError(f"{key.target} does not build for sm {sm}: it knows {numbers}")
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)


def _set_options(trt: ModuleType, config: tensorrt.IBuilderConfig, options: BuildOptions) -> None:
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.dla is None:
        return
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = options.dla
    # The gathers and the heads run on the GPU.
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _check_dla(
    trt: ModuleType, config: tensorrt.IBuilderConfig, network: tensorrt.INetworkDefinition
) -> None:
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    trunk = [layer for layer in layers if layer.type == trt.LayerType.CONVOLUTION]
    if not any(config.can_run_on_DLA(layer) for layer in trunk):
        raise UnsupportedGraphError(
            "the DLA can run no convolution of this graph: leave out --dla, the GPU would do it all"
        )


def _read_cache(
    config: tensorrt.IBuilderConfig, options: BuildOptions, target: Target
) -> tuple[tensorrt.ITimingCache | None, bool]:
    """The timing cache to build with, and whether its file may be replaced afterwards.

    A file of anything else is left as it is: TensorRT-RTX takes any bytes for a cache without a
    word, so there only a file with our own note beside it counts.
    """
    path = options.timing_cache
    if path is None:
        return None, False
    known = path.read_bytes() if path.is_file() else b""
    # One of another version or GPU is refused by TensorRT, which then starts an empty one.
    taken = config.create_timing_cache(known)
    cache = taken or config.create_timing_cache(b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    accepted = target == "tensorrt" and taken is not None
    own = not os.path.lexists(path)  # a link that leads nowhere is somebody's
    own = own or (path.is_file() and (not known or accepted or _noted(path, known)))
    own = own and (not _note_place(path).exists() or bool(_notes(path)))
    if not own:
        log.warning("%s is no timing cache that prunion wrote: it stays as it is", path)
    return cache, own


def _write_cache(cache: tensorrt.ITimingCache, path: Path) -> None:
    data = bytes(cache.serialize())
    # The note first, with the hash before: whoever is stopped in between leaves a file of ours.
    hashes = [sha256_file(path)] if path.is_file() else []
    note = {"timing_caches": [*hashes, hashlib.sha256(data).hexdigest()]}
    write_json(_note_place(path), note)
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def _noted(path: Path, data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() in _notes(path)


def _notes(path: Path) -> list[str]:
    try:
        return list(read_json(_note_place(path))["timing_caches"])
    except (PrunionError, LookupError, TypeError):
        return []


def _note_place(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _shape_profile(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    key: EngineKey,
    heads: Heads,
) -> tensorrt.IOptimizationProfile:
    symbolic = input_ranges(key, heads)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name not in symbolic:
            raise BundleError(f"the graph has an input {tensor.name!r} that no bundle has")
        ranges = symbolic[tensor.name]
        shapes: list[list[int]] = [[], [], []]
        for axis, size in enumerate(sizes(tensor.shape)):
            limits = ranges[axis] if axis < len(ranges) else None
            for place in range(3):
                shapes[place].append(limits[place] if size == -1 and limits else size)
        dims: list[Any] = [tuple(shape) for shape in shapes]  # TensorRT makes its Dims of them
        profile.set_shape(tensor.name, *dims)
    return profile
