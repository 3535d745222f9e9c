"""A backbone as a flat graph of ATen operations, without in-place writes."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from prunion.runtime.base import only_new_garbage, reason_of
from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone.constants import fold_constants
from prunion.trainer.backbone.names import op_name
from prunion.trainer.backbone.rewrites import inline_regions, rewrite
from prunion.trainer.backbone.writes import functionalise

__all__ = ["trace"]

log = logging.getLogger(__name__)
ANSWERS = ("logits", "out", "output")  # what models that return a mapping call it
# What changes nothing in inference: the last copies a constant of the forward function.
IDLE = frozenset(
    "dropout dropout_ feature_dropout alpha_dropout detach detach_ lift_fresh_copy".split()
)
VARIED = 0.1  # by how much a tensor of one value is varied where both are compared
GUARDS = frozenset(["_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range"])


@only_new_garbage()
def trace(model: nn.Module, height: int, width: int) -> fx.GraphModule:
    """Trace `model` (`[N, 3, H, W]` to one tensor) with a symbolic batch, in inference form.

    Parameters keep their names. Every node's `meta["val"]` holds its fake tensor. Dropout is
    dropped, in-place operations become ordinary ones, what constants alone make is computed. Of
    several tensors that the model returns the logits are taken, or else the first.

    Raises:
        UnsupportedGraphError: torch.export cannot follow the model, or the flat graph does not
            compute the same function.
    """
    model = model.eval()
    example = torch.randn(2, 3, height, width)
    batch = torch.export.Dim("N", min=1)
    try:
        with _quietly():
            program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
            module = program.module()
    except Exception as exc:  # torch.export raises many unrelated types
        first = reason_of(exc)
        raise UnsupportedGraphError(
            f"torch.export cannot trace {type(model).__name__} at {height}x{width}: {first}"
        ) from exc
    assert isinstance(module, fx.GraphModule)
    inline_regions(module)
    for node in list(module.graph.nodes):
        if node.op == "call_module" or op_name(node) in GUARDS:  # torch.export adds them
            module.graph.erase_node(node)
        elif node.op == "call_function":
            _drop_idle(node)
    place = _single_output(module.graph, program.call_spec.out_spec)
    module.graph.set_codegen(fx.graph.CodeGen())
    fold_constants(module, parameters=False)
    functionalise(module, example)
    module.graph.eliminate_dead_code()
    rewrite(module)
    module = fx.GraphModule(module, module.graph)  # torch.export's own cannot switch to training
    _check_same(model, module, example, place)
    _keep_buffers(module)
    return module


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


def _single_output(graph: fx.Graph, spec: Any) -> int:
    """torch.export returns a flat tuple; a graph run by hand returns its one tensor.

    Returns which of the model's flattened outputs that is.
    """
    output = next(n for n in graph.nodes if n.op == "output")
    values = output.args[0]
    if not isinstance(values, tuple | list):
        return 0
    names = [_pytree.keystr(path) for path, _ in _pytree.tree_leaves_with_path(_numbered(spec))]
    tensors = [i for i, x in enumerate(values) if isinstance(x, fx.Node)]
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


def _check_same(
    model: nn.Module,
    module: fx.GraphModule,
    example: torch.Tensor,
    place: int,
) -> None:
    same = _agree(model, module, example, place)
    if same:
        with _varied(model, module):
            same = _agree(model, module, example, place, overflow=True)
    if not same:
        raise UnsupportedGraphError(
            f"the traced graph of {type(model).__name__} does not compute the model's function: "
            "rewrite it without what is random or in autocast, or choose another backbone; `keep` "
            "cannot help here"
        )
    with contextlib.suppress(ValueError):  # a norm that needs more than one value per channel
        if not _agree(model, module, example[:1], place):
            raise UnsupportedGraphError(
                f"{type(model).__name__} computes something else for one image than for two: a "
                "branch on the batch size, which the traced graph cannot have; take it out"
            )


@contextlib.contextmanager
def _varied(model: nn.Module, module: fx.GraphModule) -> Iterator[None]:
    """Inside, tensors whose values are all one differ a little, alike in both.

    Behind a scale that begins at 0 any two functions are the same; with learnt weights they are
    not, nor are two norms that begin alike.
    """
    random = torch.Generator().manual_seed(0)
    values: dict[tuple[int, torch.Size], torch.Tensor] = {}  # by where a tensor lies: some are tied
    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    theirs = _tensors(module)
    held = [(x, theirs.get(name, x)) for name, x in _tensors(model).items() if _is_constant(x)]
    with torch.no_grad():
        try:
            for own, other in held:
                place = own.data_ptr(), own.shape
                if place not in values:
                    values[place] = own + VARIED * torch.rand(own.shape, generator=random)
                for tensor in (own, other):
                    if id(tensor) not in kept:
                        kept[id(tensor)] = tensor, tensor.clone()
                        tensor.copy_(values[place])
            yield
        finally:
            for tensor, value in reversed(kept.values()):
                tensor.copy_(value)


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    parameters = module.named_parameters(remove_duplicate=False)
    return dict([*parameters, *module.named_buffers(remove_duplicate=False)])


def _is_constant(value: torch.Tensor) -> bool:
    dense = value.is_floating_point() and value.numel() and value.is_contiguous()
    return bool(dense) and bool(value.min() == value.max())


def _agree(
    model: nn.Module,
    module: fx.GraphModule,
    images: torch.Tensor,
    place: int,
    *,
    overflow: bool = False,
) -> bool:
    """Whether both give the same; with `overflow` also where the model's own is not finite."""
    with torch.no_grad():
        got = module(images.clone())
        expected = _pytree.tree_leaves(model(images.clone()))[place]
    finite = expected[torch.isfinite(expected)]
    if overflow and len(finite) < expected.numel():
        return True
    held = [x for x in _tensors(model).values() if x.is_floating_point()]
    if not len(finite) and all(bool(x.isfinite().all()) for x in held):
        return False  # nothing was compared
    largest = float(finite.abs().max()) if len(finite) else 0.0
    if not isinstance(got, torch.Tensor) or got.shape != expected.shape:
        return False
    # In the graph's type: a `forward` with autocast in it answers in another one than its graph.
    expected, atol = expected.to(got.dtype), 1e-4 * largest + 1e-12
    return torch.allclose(expected, got, rtol=1e-3, atol=atol, equal_nan=True)
