"""Whether TensorRT-RTX's parser takes a graph; it needs no GPU for that."""

from __future__ import annotations

from pathlib import Path

from prunion.runtime.tensorrt.library import library, make_builder, make_logger, parse

__all__ = ["check_parses"]


def check_parses(onnx_path: Path) -> None:
    """Raise UnsupportedGraphError unless the parser accepts the graph as it is."""
    trt = library("tensorrt-rtx")
    # An error object's text lives as long as its logger and builder: keep both until the end.
    logger = make_logger(trt)
    builder = make_builder(trt, logger)
    parse(trt, builder, logger, onnx_path.read_bytes(), str(onnx_path))
