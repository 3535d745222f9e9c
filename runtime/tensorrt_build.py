"""TensorRT engines from a bundle, by `tensorrt_rtx` (no GPU needed) or `tensorrt`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import (
    BundleError,
    InputError,
    MissingDependencyError,
    PrunionError,
    UnsupportedGraphError,
)
from prunion.runtime.graph_edit import tables_as_inputs

__all__ = [
    "TARGETS",
    "EngineKey",
    "EngineResult",
    "build_engine",
    "check_parses",
    "default_name",
    "engine_key",
    "input_ranges",
]

TARGETS = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
Range = tuple[int, int, int]


@dataclass(frozen=True)
class EngineKey:
    """What an engine was built from; it is stale when any of it changes.

    `batch`, `domains` and `classes` are (least, usual, most) sizes of N, D and Cmax.
    """

    target: str
    library_version: str
    graph_sha256: str
    trunk_hash: str
    sms: tuple[int, ...]
    precision: str
    batch: Range
    domains: Range
    classes: Range


@dataclass(frozen=True)
class EngineResult:
    """The files written, and the build time in seconds."""

    path: Path
    key_path: Path
    key: EngineKey
    seconds: float


def build_engine(
    bundle: Bundle,
    *,
    target: str = "tensorrt-rtx",
    sms: Sequence[int] = (),
    precision: str = "fp32",
    batch: Range = (1, 8, 32),
    max_domains: int = 64,
    max_classes: int = 1024,
    output: Path | str | None = None,
    force: bool = False,
) -> EngineResult:
    """Build one engine for the GPU generations `sms` (86 = compute capability 8.6).

    The tables stay inputs with a symbolic number of domains, so a new domain needs no rebuild.
    Writes the engine and, beside it, its key as JSON. The default place is the current folder:
    a bundle's own files are fixed by its manifest. Raises MissingDependencyError, InputError,
    BundleError, UnsupportedGraphError.
    """
    from prunion.runtime.engine_file import write_engine

    trt = _library(target)
    key = engine_key(
        bundle, target, str(trt.__version__), sms, precision, batch, max_domains, max_classes
    )
    path = Path(output) if output else Path(default_name(bundle, key))
    if path.exists() and not force:
        raise PrunionError(f"{path} already exists: choose another place with -o or pass --force")
    if path.resolve().is_relative_to(bundle.path.resolve()):
        raise InputError(f"{path} is inside the bundle, whose files are fixed: choose another -o")
    start = time.perf_counter()
    key_path = write_engine(path, key, _build(trt, bundle, key))
    return EngineResult(path, key_path, key, time.perf_counter() - start)


def engine_key(
    bundle: Bundle,
    target: str,
    library_version: str,
    sms: Sequence[int] = (),
    precision: str = "fp32",
    batch: Range = (1, 8, 32),
    max_domains: int = 64,
    max_classes: int = 1024,
) -> EngineKey:
    """Everything an engine of `bundle` depends on. Raises BundleError without such a graph."""
    manifest, relative = bundle.manifest, bundle.graph(precision).relative_to(bundle.path)
    domains, classes = len(manifest.domains), manifest.max_classes
    return EngineKey(
        target=target,
        library_version=library_version,
        graph_sha256=manifest.files[relative.as_posix()],
        trunk_hash=manifest.trunk_hash,
        sms=tuple(sms),
        precision=precision,
        batch=batch,
        domains=(1, domains, max(max_domains, domains)),
        classes=(1, classes, max(max_classes, classes)),
    )


def check_parses(onnx_path: Path | str, target: str = "tensorrt-rtx") -> None:
    """Raise UnsupportedGraphError unless TensorRT's parser accepts the graph as it is."""
    trt = _library(target)
    # An error object's text lives as long as its logger and builder: keep both until the end.
    logger = _logger(trt)
    builder = trt.Builder(logger)
    _parse(trt, builder, logger, Path(onnx_path).read_bytes(), str(onnx_path))


def _library(target: str) -> Any:
    if target not in TARGETS:
        raise InputError(f"no target {target!r}: use {' or '.join(TARGETS)}")
    try:
        return import_module(TARGETS[target])
    except (ImportError, OSError) as exc:
        raise MissingDependencyError(
            f"{TARGETS[target]} does not import ({exc}): pip install 'prunion[{target}]'"
            + (" (on a Jetson it comes with JetPack)" if target == "tensorrt" else "")
        ) from None


def default_name(bundle: Bundle, key: EngineKey) -> str:
    """The engine's file name in the current folder."""
    sms = "".join(f".sm{sm}" for sm in key.sms)
    return f"{bundle.manifest.name}.{key.target}{sms}.{key.precision}.engine"


def _build(trt: Any, bundle: Bundle, key: EngineKey) -> bytes:
    logger = _logger(trt)
    builder = trt.Builder(logger)
    if builder is None:
        raise PrunionError(f"{key.target} gives no builder here: it needs a GPU and its driver")
    graph = tables_as_inputs(bundle.graph(key.precision))
    network, parser = _parse(trt, builder, logger, graph, str(bundle.path))
    config = builder.create_builder_config()
    _set_targets(trt, config, key)
    config.add_optimization_profile(_profile(builder, network, key))
    engine = builder.build_serialized_network(network, config)
    del parser
    if engine is None:
        reason = logger.messages[-1] if logger.messages else "no reason given"
        raise UnsupportedGraphError(f"{key.target} could not build {bundle.path}: {reason}")
    return bytes(engine)


def _logger(trt: Any) -> Any:
    class Quiet(trt.ILogger):
        """Keeps the errors for the one line that the user gets."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.messages.append(message)

    return Quiet()


def _parse(trt: Any, builder: Any, logger: Any, graph: bytes, where: str) -> tuple[Any, Any]:
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


def _set_targets(trt: Any, config: Any, key: EngineKey) -> None:
    if not key.sms:
        return
    if not hasattr(config, "num_compute_capabilities"):
        raise InputError(f"{key.target} builds for the GPU of this machine only: leave out --sm")
    known = [x for x in vars(trt.ComputeCapability) if x.startswith("SM")]
    config.num_compute_capabilities = len(key.sms)
    for index, sm in enumerate(key.sms):
        if f"SM{sm}" not in known:
            numbers = ", ".join(name[2:] for name in sorted(known, key=lambda x: int(x[2:])))
            raise InputError(f"{key.target} does not build for sm {sm}: it knows {numbers}")
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)


def input_ranges(key: EngineKey) -> dict[str, tuple[Range | None, ...]]:
    """(least, usual, most) of each input's symbolic axes; None and what is left out are fixed."""
    return {
        "image": (key.batch,),
        "domain": (key.batch,),
        "bank": (key.domains,),
        "head_weight": (key.domains, None, key.classes),
        "head_bias": (key.domains, key.classes),
    }


def _profile(builder: Any, network: Any, key: EngineKey) -> Any:
    symbolic = input_ranges(key)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.name not in symbolic:
            raise BundleError(f"the graph has an input {tensor.name!r} that no bundle has")
        ranges = symbolic[tensor.name]
        shapes: list[list[int]] = [[], [], []]
        for axis, size in enumerate(tensor.shape):
            limits = ranges[axis] if axis < len(ranges) else None
            for place in range(3):
                shapes[place].append(limits[place] if size == -1 and limits else size)
        profile.set_shape(tensor.name, *(tuple(shape) for shape in shapes))
    return profile
