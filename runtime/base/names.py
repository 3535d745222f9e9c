"""The words that files, options and messages choose among, one `Literal` for each kind of choice.

The type checker holds them inside the code. A dict beside each turns text that comes from elsewhere
into one: `BACKENDS.get(text)` is None for a text that is no backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

__all__ = [
    "BACKENDS",
    "HEADS",
    "PRECISIONS",
    "TARGETS",
    "Arithmetic",
    "Backend",
    "Heads",
    "ImageType",
    "Orientation",
    "Precision",
    "SessionKind",
    "Target",
    "arithmetic_of",
    "takes_pixels",
]

# What answers: `auto` is CUDA where it works, else the CPU; `-ep` are TensorRT by way of ONNX
# Runtime's execution providers.
Backend = Literal[
    "auto",
    "cpu",
    "cuda",
    "tensorrt-ep",
    "tensorrt-rtx-ep",
    "openvino",
    "tensorrt-rtx",
    "tensorrt",
]
BACKENDS: Mapping[str, Backend] = {name: name for name in get_args(Backend)}

# The libraries that build engines and run them.
Target = Literal["tensorrt-rtx", "tensorrt"]
TARGETS: Mapping[str, Target] = {name: name for name in get_args(Target)}

# How a graph's classifiers lie in it; `single` is one domain's, folded in for good.
Heads = Literal["gathered", "concatenated", "single"]
HEADS: Mapping[str, Heads] = {name: name for name in get_args(Heads)}

# A graph's input `image`: normalised numbers, or raw pixels.
ImageType = Literal["float32", "float16", "uint8"]

# Whether images are turned as their EXIF orientation says. Files from before there was a choice say
# nothing of it, and were trained with `ignore`.
Orientation = Literal["exif", "ignore"]

# What the trunk computes in.
Arithmetic = Literal["fp32", "fp16", "int8"]

# The variants of a bundle's graph: the keys of `manifest.graphs`.
Precision = Literal["fp32", "fp16", "int8", "fp32-uint8", "fp16-uint8", "int8-uint8"]
PRECISIONS: Mapping[str, Precision] = {name: name for name in get_args(Precision)}

# `mixed` takes images of any domains, `pinned` those of one, `sliced` is also cut to its channels.
SessionKind = Literal["mixed", "blocked", "pinned", "sliced", "split"]


def arithmetic_of(precision: Precision) -> Arithmetic:
    """What the trunk of a variant computes in."""
    if precision.startswith("int8"):
        return "int8"
    return "fp16" if precision.startswith("fp16") else "fp32"


def takes_pixels(precision: Precision) -> bool:
    """Whether a variant's images are raw pixels, `[N, H, W, 3]` uint8."""
    return precision.endswith("-uint8")
