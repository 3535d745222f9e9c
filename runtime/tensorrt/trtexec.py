"""The `trtexec` command line that builds the engine `prunion build` would."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from prunion.runtime.base.names import HEADS, Backend
from prunion.runtime.bundle.folder import Bundle
from prunion.runtime.graph.inputs import input_shapes
from prunion.runtime.tensorrt.key import EngineKey, shape_profiles, shapes_text

__all__ = ["trtexec_command"]

PROGRAMS: Mapping[Backend, str] = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}


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
