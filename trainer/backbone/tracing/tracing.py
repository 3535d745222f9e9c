"""A backbone as a flat graph of ATen operations, without in-place writes."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from prunion.runtime.base import only_new_garbage, reason_of
from prunion.runtime.errors import PrunionError, UnsupportedGraphError
from prunion.trainer.backbone.names import op_name
from prunion.trainer.backbone.tracing.comparing import check_same
from prunion.trainer.backbone.tracing.constants import fold_constants
from prunion.trainer.backbone.tracing.cutting import (
    check_cut,
    drop_behind,
    drop_copy,
    returning_cut,
)
from prunion.trainer.backbone.tracing.rewrites import inline_regions, rewrite
from prunion.trainer.backbone.tracing.training_mode import hooked, tell_left_out
from prunion.trainer.backbone.tracing.writes import functionalise

__all__ = ["trace"]

log = logging.getLogger(__name__)
ANSWERS = ("logits", "out", "output")  # what models that return a mapping call it
# What changes nothing in inference: the last copies a constant of the forward function.
IDLE = frozenset(
    "dropout dropout_ feature_dropout alpha_dropout detach detach_ lift_fresh_copy".split()
)
FIXED = "specialized it to be a constant"  # torch's word on a batch whose size is decided
GUARDS = frozenset(["_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range"])


@only_new_garbage()
def trace(model: nn.Module, height: int, width: int, cut: str | None = None) -> fx.GraphModule:
    """Trace `model` (`[N, 3, H, W]` to one tensor) with a symbolic batch, in inference form.

    Parameters keep their names. Every node's `meta["val"]` holds its fake tensor. Dropout is
    dropped, in-place operations become ordinary ones, what constants alone make is computed. Of
    several tensors that the model returns the logits are taken, or else the first; with `cut`,
    what that module of it returns. What the model does in training mode alone is told, and
    left out.

    Raises:
        ConfigError: no module `cut` is called once and returns one tensor.
        UnsupportedGraphError: torch.export cannot follow the model, or the flat graph does not
            compute the same function, or does not learn as the model does.
    """
    model = model.eval()
    example = torch.randn(2, 3, height, width)
    if cut is None:
        return _traced(model, example, None)
    with _told(model, example), _quietly():
        check_cut(model, cut, example)
    with returning_cut(model, cut):
        return _traced(model, example, cut)


@contextlib.contextmanager
def _told(model: nn.Module, example: torch.Tensor) -> Iterator[None]:
    """Inside, whatever the model raises is told in one line."""
    try:
        yield
    except PrunionError:
        raise
    except Exception as exc:  # torch.export raises many unrelated types
        height, width = example.shape[2:]
        if more := _more_than_images(model):
            raise UnsupportedGraphError(f"{type(model).__name__} cannot be traced: {more}") from exc
        found = ", ".join(hooked(model)[:3])
        hooks = f"; its hooks run too, on {found}" if found else ""
        raise UnsupportedGraphError(
            f"torch.export cannot trace {type(model).__name__} at {height}x{width}: "
            f"{reason_of(exc)}{hooks}; what can be is neither exported nor quantised, takes "
            "batches of any size, and decides nothing by an image's values"
        ) from exc


def _traced(model: nn.Module, example: torch.Tensor, cut: str | None) -> fx.GraphModule:
    batch = torch.export.Dim("N", min=1)
    with _told(model, example), _quietly():
        shapes = (({0: batch},),) if _takes_any(model) else ({0: batch},)
        program = _exported(model, example, shapes)
        module = program.module()
    assert isinstance(module, fx.GraphModule)
    inline_regions(module)
    for node in list(module.graph.nodes):
        if node.op == "call_module" or op_name(node) in GUARDS:  # torch.export adds them
            module.graph.erase_node(node)
        elif node.op == "call_function":
            _drop_idle(node)
    place = _single_output(module.graph, program.call_spec.out_spec, at_cut=cut is not None)
    if cut is not None:
        drop_behind(module.graph)
    module.graph.set_codegen(fx.graph.CodeGen())
    fold_constants(module, parameters=False)
    functionalise(module, example)
    if cut is not None:
        drop_copy(module.graph)
    module.graph.eliminate_dead_code()
    rewrite(module)
    module = fx.GraphModule(module, module.graph)  # torch.export's own cannot switch to training
    check_same(model, module, example, place)
    tell_left_out(model, example, place, cut)
    _keep_buffers(module)
    return module


def _exported(model: nn.Module, example: torch.Tensor, shapes: Any) -> Any:
    """The program that torch.export makes of a model.

    Raises UnsupportedGraphError if its code makes a plain number of the batch's size.
    """
    try:
        return torch.export.export(model, (example,), dynamic_shapes=shapes)
    except Exception as exc:
        if FIXED not in str(exc):
            raise
    try:  # slowly, by its code, in which `len(x)` is no plain number
        return torch.export.export(model, (example,), dynamic_shapes=shapes, strict=True)
    except Exception:
        raise UnsupportedGraphError(
            f"{type(model).__name__} cannot be traced: its forward makes a plain number of how "
            "many images there are, as int(x.shape[0]) or a branch on it does: use x.shape[0] "
            "itself, or -1, and take the branch out"
        ) from None


def _more_than_images(model: nn.Module) -> str:
    """What `forward` needs beside one batch of images, and the fix; empty if it needs nothing."""
    try:
        wants = inspect.signature(model.forward)
    except (TypeError, ValueError):  # of something compiled
        return ""
    try:
        wants.bind(None)
    except TypeError as exc:
        return (
            f"its forward({', '.join(wants.parameters)}) is to take images [N, 3, H, W] alone "
            f"({exc}): give what else it needs a default, or wrap it in a module that gives it"
        )
    return ""


def _takes_any(model: nn.Module) -> bool:
    """Whether the image is the first of `*args`, which torch.export counts as one argument."""
    try:
        first = next(iter(inspect.signature(model.forward).parameters.values()), None)
    except (TypeError, ValueError):  # of something compiled
        return False
    return first is not None and first.kind is inspect.Parameter.VAR_POSITIONAL


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Inside, torch.export's pages of advice go nowhere; its error says what matters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _keep_buffers(module: fx.GraphModule) -> None:
    """Make what the graph reads part of the state dict, which is all that a checkpoint keeps."""
    for node in module.graph.nodes:
        if node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            holder = module.get_submodule(owner)
            if (value := dict(holder.named_buffers(recurse=False)).get(leaf)) is not None:
                holder.register_buffer(leaf, value, persistent=True)


def _single_output(graph: fx.Graph, spec: Any, *, at_cut: bool) -> int:
    """torch.export returns a flat tuple; a graph run by hand returns its one tensor.

    Returns which of the model's flattened outputs that is.
    """
    output = graph.output_node()
    values = output.args[0]
    if not isinstance(values, tuple | list):
        return 0
    names = [_pytree.keystr(path) for path, _ in _pytree.tree_leaves_with_path(_numbered(spec))]
    tensors = [i for i, x in enumerate(values) if isinstance(x, fx.Node)]
    if at_cut:  # `returning_cut` has put it there
        output.args = (values[-1],)
        return len(values) - 1
    if not tensors:
        raise UnsupportedGraphError("the backbone returns no tensor: return its logits")
    named = [i for answer in ANSWERS for i in tensors if names[i].strip("[]'.") == answer]
    place = (named or tensors)[0]
    if len(tensors) > 1:
        what = f"the one called {names[place].strip('[].')}" if named else "the first"
        log.info("the network returns %d tensors: %s is taken for the logits", len(tensors), what)
    output.args = (values[place],)
    return place


def _numbered(spec: Any) -> Any:
    return _pytree.tree_unflatten(list(range(spec.num_leaves)), spec)


def _drop_idle(node: fx.Node) -> None:
    if op_name(node) in IDLE:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)
