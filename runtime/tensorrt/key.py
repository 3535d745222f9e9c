"""What an engine depends on (graph, library, GPU, options, sizes), and the line that builds it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunion.runtime.base import HEADS, Backend, Heads, Precision, arithmetic_of
from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import InputError
from prunion.runtime.graph import PER_REQUEST, input_shapes

__all__ = [
    "BuildOptions",
    "EngineKey",
    "Range",
    "ShapeProfile",
    "check_shape",
    "default_name",
    "engine_key",
    "input_ranges",
    "shape_profiles",
    "shapes_text",
    "trtexec_command",
]

Range = tuple[int, int, int]  # least, usual, most of one size
Shape = tuple[int, ...]
ShapeProfile = tuple[Shape, Shape, Shape]  # least, usual, most shape of one input
PROGRAMS: Mapping[Backend, str] = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built. Raises InputError.

    Attributes:
        batch: (least, usual, most) images at a time.
        max_domains: rows that the tables may grow to.
        max_classes: classes that one domain may have.
        workspace: bytes of scratch memory that a layer may ask for; None leaves it to TensorRT.
        dla: the deep-learning accelerator core to use (Jetson Xavier and Orin), None for none. It
            takes one size of batch.
        timing_cache: a file of measured kernels, read and written; builds after it are faster.
    """

    batch: Range = (1, 8, 32)
    max_domains: int = 64
    max_classes: int = 1024
    workspace: int | None = None
    dla: int | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        low, usual, most = self.batch
        if not 1 <= low <= usual <= most:
            raise InputError(f"the batch sizes are {self.batch}: give 1 ≤ least ≤ usual ≤ most")
        if self.workspace is not None and self.workspace < 1 << 20:
            raise InputError(f"the workspace is {self.workspace} bytes: give a MiB or more")
        if self.dla is not None and self.dla < 0:
            raise InputError(f"there is no DLA core {self.dla}: cores count from 0")
        # Otherwise TensorRT leaves the whole trunk to the GPU and says nothing.
        if self.dla is not None and low != most:
            raise InputError(f"a DLA takes one size of batch: give --batch {usual},{usual},{usual}")

    @property
    def noted(self) -> tuple[str, ...]:
        """What of it makes another engine, beside the sizes; a timing cache does not."""
        found = []
        if self.workspace is not None:
            found.append(f"workspace={self.workspace}")
        if self.dla is not None:
            found.append(f"dla={self.dla}")
        return tuple(found)


@dataclass(frozen=True)
class EngineKey:
    """What an engine was built from; it is stale when any of it changes.

    `target` is a library of TensorRT's, or the provider of ONNX Runtime that compiles it.
    `batch`, `domains` and `classes` are (least, usual, most) sizes of N, D and Cmax. `sms` are
    GPU generations, 86 for compute capability 8.6.
    """

    target: Backend
    library_version: str
    graph_sha256: str
    trunk_hash: str
    sms: tuple[int, ...]
    precision: Precision
    batch: Range
    domains: Range
    classes: Range
    options: tuple[str, ...] = ()


def engine_key(
    bundle: Bundle,
    target: Backend,
    library_version: str,
    sms: Sequence[int] = (),
    precision: Precision = "fp32",
    options: BuildOptions | None = None,
) -> EngineKey:
    """Everything an engine of `bundle` depends on.

    Raises BundleError without such a graph, InputError where a DLA cannot run it.
    """
    options = options or BuildOptions()
    if options.dla is not None and target != "tensorrt":
        raise InputError("only a Jetson has a DLA, which TensorRT-RTX does not know: leave it out")
    if options.dla is not None and arithmetic_of(precision) == "fp32":
        raise InputError("a DLA runs float16 and INT8 only: give --precision fp16 or int8")
    manifest, graph = bundle.manifest, bundle.held_graph(precision)
    domains, classes = len(manifest.domains), manifest.max_classes
    return EngineKey(
        target=target,
        library_version=library_version,
        graph_sha256=graph.sha256,
        trunk_hash=manifest.trunk_hash,
        sms=tuple(sorted(set(sms))),
        precision=precision,
        batch=options.batch,
        domains=(1, domains, max(options.max_domains, domains)),
        classes=(1, classes, max(options.max_classes, classes)),
        options=options.noted,
    )


def default_name(bundle: Bundle, key: EngineKey) -> str:
    """The engine's file name in the current folder."""
    sms = "".join(f".sm{sm}" for sm in key.sms)
    return f"{bundle.manifest.name}.{key.target}{sms}.{key.precision}.engine"


def input_ranges(key: EngineKey, heads: Heads = "gathered") -> dict[str, tuple[Range | None, ...]]:
    """(least, usual, most) of each input's symbolic axes; None and what is left out are fixed.

    `heads` is the manifest's: concatenated ones have a table over the classes of all domains.
    """
    ranges: dict[str, tuple[Range | None, ...]] = {
        "image": (key.batch,),
        "domain": (key.batch,),
        "bank": (key.domains,),
        "head_weight": (key.domains, None, key.classes),
        "head_bias": (key.domains, key.classes),
        "pixels": (key.domains,),
        "adapters": (key.domains,),
    }
    if heads == "concatenated":
        low, usual, most = (d * c for d, c in zip(key.domains, key.classes, strict=True))
        ranges["head_weight"] = (None, (low, usual, most))
        ranges["head_columns"] = (key.domains, key.classes)
    return ranges


def shape_profiles(
    inputs: Mapping[str, Shape], key: EngineKey, heads: Heads = "gathered"
) -> dict[str, ShapeProfile]:
    """The shape profile of each of `inputs`, whose symbolic sizes are 0."""
    ranges, found = input_ranges(key, heads), {}
    for name, shape in inputs.items():
        limits = (*ranges[name], *(None,) * len(shape))
        least, usual, most = (
            tuple(r[k] if r and not n else n for n, r in zip(shape, limits, strict=False))
            for k in range(3)
        )
        found[name] = (least, usual, most)
    return found


def shapes_text(profiles: Mapping[str, ShapeProfile], place: int) -> str:
    """The least (0), usual (1) or most (2) shapes as trtexec and ONNX Runtime write them."""
    return ",".join(f"{k}:" + "x".join(map(str, v[place])) for k, v in profiles.items())


def check_shape(name: str, shape: Shape, low: Shape, high: Shape) -> None:
    """Raise InputError unless `shape` is within the engine's shape profile."""
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


def trtexec_command(
    bundle: Bundle, key: EngineKey, graph: Path, engine: Path, timing_cache: Path | None = None
) -> str:
    """One line for the shell; `graph` is the ONNX file whose tables are plain inputs."""
    profiles = shape_profiles(input_shapes(graph), key, HEADS[bundle.manifest.heads])
    arguments = [PROGRAMS[key.target], f"--onnx={graph}", f"--saveEngine={engine}"]
    for place, option in enumerate(("minShapes", "optShapes", "maxShapes")):
        arguments.append(f"--{option}={shapes_text(profiles, place)}")
    if key.target == "tensorrt" and key.precision != "fp32":
        arguments.append("--stronglyTyped")
    if key.target == "tensorrt-rtx":
        arguments.append("--skipInference")
        if key.sms:
            arguments.append("--computeCapabilities=" + ",".join(map(str, key.sms)))
    for noted in key.options:
        name, value = noted.split("=")
        if name == "workspace":
            arguments.append(f"--memPoolSize=workspace:{int(value) >> 20}M")
        else:
            arguments += [f"--useDLACore={value}", "--allowGPUFallback"]
    if timing_cache is not None:
        arguments.append(f"--timingCacheFile={timing_cache}")
    return shlex.join(arguments)
