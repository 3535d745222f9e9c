"""The sliced network as one ONNX graph in which every image picks its domain."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import threading
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from prunion.exporter.graph.heads import concatenate_heads
from prunion.exporter.graph.opset import EXPORTED_FROM, name_after_origin, restate
from prunion.exporter.slim import OneDomainNet, SlimNet
from prunion.runtime.base import only_new_garbage
from prunion.runtime.graph import ADAPTERS

__all__ = ["OPSET", "TRUNK", "errors_only", "one_domain_graph", "onnx_graph"]

TRUNK = "trunk"  # key of a graph's metadata

# ONNX Runtime 1.23 (the last for Python 3.10, JetPack 6) loses its fast convolutions from 22 on.
OPSET = 20
ONE_AT_A_TIME = threading.RLock()


def onnx_graph(
    slim: SlimNet,
    height: int,
    width: int,
    opset: int = OPSET,
    ir: int | None = None,
    heads: str = "gathered",
) -> onnx.ModelProto:
    """Export `slim`: inputs `image`, `domain` and the optional tables, output `logits`.

    The tables are real inputs while torch exports, so nothing is folded into the convolutions;
    every parameter of the trunk keeps its name, also where two are equal; the tables' values are
    added as defaults.

    Args:
        opset: 13 … 21; ir: the IR version, by default the oldest that knows the opset.
        heads: `gathered` or `concatenated`.
    """
    # Sizes of 2 and more: torch.export would take a 0 or 1 for a constant.
    tables = {n: torch.cat([t, t]) if len(t) < 2 else t for n, t in slim.tables.items()}
    if tables["head_bias"].shape[1] < 2:
        tables["head_weight"] = tables["head_weight"].repeat(1, 1, 2)
        tables["head_bias"] = tables["head_bias"].repeat(1, 2)
    example = (torch.zeros(2, 3, height, width), torch.tensor([0, 1]), *tables.values())
    batch, count, classes = (torch.export.Dim(n) for n in ("N", "D", "Cmax"))
    open_sizes = {
        "bank": {0: count},
        "head_weight": {0: count, 2: classes},
        "head_bias": {0: count, 1: classes},
        ADAPTERS: {0: count},
    }
    shapes = ({0: batch}, {0: batch}, *(open_sizes[name] for name in tables))
    model = _export_named(slim, slim.trunk, example, ["image", "domain", *tables], shapes, opset)
    _count_images(model)
    for name, value in slim.tables.items():
        model.graph.initializer.append(numpy_helper.from_array(value.numpy(), name))
    if heads == "concatenated":
        concatenate_heads(model, torch.isfinite(slim.head_bias).sum(1).tolist())
    restate(model, opset, ir)
    _note_trunk(model, slim.trunk)
    return model


def _count_images(model: onnx.ModelProto) -> None:
    """Read the batch's size from `image`: of a pinned graph `domain` is one row for all of it."""
    for node in model.graph.node:
        if node.op_type == "Shape" and node.input[0] == "domain":
            node.input[0] = "image"
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("start", 0))
            node.attribute.append(onnx.helper.make_attribute("end", 1))


def one_domain_graph(
    net: OneDomainNet, height: int, width: int, opset: int = OPSET, ir: int | None = None
) -> onnx.ModelProto:
    """Export one domain's own network: `image` `[N, 3, H, W]` in, `logits` `[N, C]` out."""
    example = (torch.zeros(2, 3, height, width),)
    shapes = ({0: torch.export.Dim("N")},)
    model = _export_named(net, net.trunk, example, ["image"], shapes, opset)
    restate(model, opset, ir)
    _note_trunk(model, net.trunk)
    return model


def _export_named(
    net: torch.nn.Module,
    trunk: torch.nn.Module,
    example: tuple[Any, ...],
    names: list[str],
    shapes: Any,
    opset: int,
) -> onnx.ModelProto:
    """Export `net` with the parameters of its `trunk` under their own names."""
    apart = {name for name, _ in trunk.named_parameters()}
    while True:
        with _told_apart(trunk, apart) as values:
            model = _export(net, example, names, shapes, opset)
            _turn_back(model, trunk)
        # What torch's exporter has computed from noise, as it does with small weights, is wrong.
        lost = values.keys() - {x.name for x in model.graph.initializer}
        if not lost:
            _put_values(model, values)
            return model
        apart -= lost


def _export(
    net: torch.nn.Module, example: tuple[Any, ...], names: list[str], shapes: Any, opset: int
) -> onnx.ModelProto:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        errors_only("torch.onnx"),
        _identities_are_exact(),
        only_new_garbage(),
    ):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            example,
            dynamo=True,
            opset_version=max(opset, EXPORTED_FROM),
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=shapes,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    name_after_origin(model)
    _clean(model)
    return model


@contextlib.contextmanager
def _identities_are_exact() -> Iterator[None]:
    """Inside, the exporter's optimiser leaves out `x + c` where c is 0, and not where it is near.

    It takes numbers for alike that are 1e-8 apart, and so lost what keeps `x / (norm + 1e-8)`
    finite.
    """
    try:
        from onnxscript.rewriter import _matcher as matcher
    except ImportError:  # another one's insides: the export is checked anyway
        yield
        return

    def alike(value: float, wanted: float, **tolerances: float) -> bool:
        if wanted in (-1, 0, 1):
            return value == wanted
        return math.isclose(value, wanted, **tolerances)

    with ONE_AT_A_TIME:  # another thread's would be put back here, for good
        vars(matcher)["math"] = SimpleNamespace(isclose=alike)
        try:
            yield
        finally:
            vars(matcher)["math"] = math  # which it has for this alone


@contextlib.contextmanager
def errors_only(logger: str) -> Iterator[None]:
    """Inside, a logger by name ("" is the root) says nothing but errors; then it is as before."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _note_trunk(model: onnx.ModelProto, trunk: torch.nn.Module) -> None:
    """Name the trunk's tensors that nobody could tell from constants of torch's exporter."""
    own = [n for n, x in trunk.named_parameters() if "." not in n or x.dtype != torch.float32]
    if own:
        onnx.helper.set_model_props(model, {TRUNK: json.dumps(own)})


@contextlib.contextmanager
def _told_apart(
    trunk: torch.nn.Module, names: Collection[str]
) -> Iterator[Mapping[str, torch.Tensor]]:
    """Inside, parameters of `names` that equal another hold noise: gives their values by name.

    torch's exporter makes one tensor of small ones that are equal, such as those of copied blocks
    before training, and leaves out a bias of zeros: only one of the names would be left, or none.
    """
    params = {n: x for n, x in trunk.named_parameters() if x.is_floating_point() and x.numel()}
    digests = {n: hashlib.sha256(_bytes(x.detach())).digest() for n, x in params.items()}
    seen = Counter(digests.values())
    values = {
        name: params[name].detach().clone()
        for name in names
        if name in params and (seen[digests[name]] > 1 or not params[name].detach().any())
    }
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        try:
            for name, kept in values.items():
                params[name].copy_(torch.randn(kept.shape, generator=random))
            yield values
        finally:
            for name, kept in values.items():
                params[name].copy_(kept)


def _put_values(model: onnx.ModelProto, values: Mapping[str, torch.Tensor]) -> None:
    for found in model.graph.initializer:
        if found.name in values:
            found.CopyFrom(numpy_helper.from_array(values[found.name].numpy(), found.name))


def _turn_back(model: onnx.ModelProto, trunk: torch.nn.Module) -> None:
    """Give back parameters that torch's exporter has stored under names of its own.

    It stores small weights of linear layers over tokens transposed: a Transpose before the product
    is what it writes for large ones, and backends fold it. Vectors, a PReLU's slopes or a
    GroupNorm's scales, it stores as maps: they come back with a Reshape behind.
    """
    held = {x.name for x in model.graph.initializer}
    params = dict(trunk.named_parameters())
    lost: dict[bytes, list[str]] = {}
    for name, value in params.items():
        if name not in held and value.dim() == 2:
            lost.setdefault(_bytes(value.detach().t()), []).append(name)
        elif name not in held and value.dim() == 1:
            lost.setdefault(_bytes(value.detach()), []).append(name)
    shapes = []
    for found in list(model.graph.initializer):
        if found.name in params or found.data_type != onnx.TensorProto.FLOAT:
            continue
        array, turned = numpy_helper.to_array(found), found.name
        flat = array if array.ndim == 2 else array.reshape(-1)
        if array.ndim != 2 and array.shape.count(1) < array.ndim - 1:
            continue
        names = lost.get(_bytes(torch.from_numpy(flat.copy())), [])
        if not names:
            continue
        name = names.pop()
        if array.ndim == 2:
            found.CopyFrom(numpy_helper.from_array(array.T.copy(), name))
            node = onnx.helper.make_node("Transpose", [name], [turned], turned, perm=[1, 0])
        else:
            found.CopyFrom(numpy_helper.from_array(flat.copy(), name))
            shape = f"{turned}_shape"
            shapes.append(numpy_helper.from_array(np.array(array.shape, np.int64), shape))
            node = onnx.helper.make_node("Reshape", [name, shape], [turned], turned)
        model.graph.node.insert(0, node)
    model.graph.initializer.extend(shapes)


def _bytes(value: torch.Tensor) -> bytes:
    return repr(tuple(value.shape)).encode() + value.contiguous().numpy().tobytes()


def _clean(model: onnx.ModelProto) -> None:
    """Give the weights the trunk's own names and drop what torch noted down."""
    graph = model.graph
    renamed = {i.name: i.name.removeprefix("trunk.") for i in graph.initializer}
    for initializer in graph.initializer:
        initializer.name = renamed[initializer.name]
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        del node.metadata_props[:]
        node.doc_string = ""
    for info in [*graph.value_info, *graph.input, *graph.output]:
        del info.metadata_props[:]
    stale = [info for info in graph.value_info if info.name in renamed]
    for info in stale:
        graph.value_info.remove(info)
    graph.name = "prunion"
    model.producer_name = "prunion"
    del model.metadata_props[:]
    del graph.metadata_props[:]
