"""The `trtexec` command line that builds the engine `prunion build` would."""

from __future__ import annotations

import shlex
from pathlib import Path

from prunion.runtime.bundle import Bundle
from prunion.runtime.tensorrt_build import EngineKey, input_ranges

__all__ = ["trtexec_command"]

PROGRAMS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}


def trtexec_command(bundle: Bundle, key: EngineKey, graph: Path, engine: Path) -> str:
    """One line for the shell; `graph` is the ONNX file whose tables are plain inputs."""
    manifest = bundle.manifest
    features = bundle.pack(bundle.domains[0]).head_weight.shape[0]
    fixed = {
        "image": (None, 3, manifest.input.height, manifest.input.width),
        "domain": (None,),
        "bank": (None, manifest.bank_columns),
        "head_weight": (None, features, None),
        "head_bias": (None, None),
    }
    arguments = [PROGRAMS[key.target], f"--onnx={graph}", f"--saveEngine={engine}"]
    for place, option in enumerate(("minShapes", "optShapes", "maxShapes")):
        shapes = []
        for name, ranges in input_ranges(key).items():
            sizes = (
                limits[place] if limits else size
                for size, limits in zip(fixed[name], _padded(ranges, fixed[name]), strict=True)
            )
            shapes.append(f"{name}:" + "x".join(map(str, sizes)))
        arguments.append(f"--{option}=" + ",".join(shapes))
    if key.target == "tensorrt" and key.precision != "fp32":
        arguments.append("--stronglyTyped")
    return shlex.join(arguments)


def _padded(ranges: tuple, shape: tuple) -> tuple:
    return ranges + (None,) * (len(shape) - len(ranges))
