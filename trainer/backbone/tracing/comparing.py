"""Whether a traced graph is the model: the same answers, and the same gradients."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn
from torch.utils import _pytree

from prunion.runtime.errors import UnsupportedGraphError

__all__ = ["check_same"]

VARIED = 0.1  # by how much a tensor of one value is varied where both are compared
GRADIENTS_DIFFER = 1e-2, 1e-5  # of a parameter's own largest, and of the largest of all


def check_same(
    model: nn.Module,
    module: fx.GraphModule,
    example: torch.Tensor,
    place: int,
) -> None:
    """Hold a graph to its model, of whose flattened outputs it gives the one at `place`.

    Raises UnsupportedGraphError where they answer differently for two images or for one, or where
    a parameter that learns has another gradient.
    """
    other: str | None = None
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    same = _agree(model, module, example, place)
    moved = [n for n, x in model.named_buffers() if n not in before or not _is_as(before[n], x)]
    if same:
        with _varied(model, module):
            same = _agree(model, module, example, place, overflow=True)
            other = _other_gradient(model, module, example, place) if same else None
    if moved and (not same or other is not None):
        raise UnsupportedGraphError(
            f"{type(model).__name__} changes its buffer {moved[0]} whenever it answers, and the "
            "traced graph has it as it was: read it in forward and write it elsewhere, or choose "
            "another backbone; `keep` cannot help here"
        )
    if not same:
        raise UnsupportedGraphError(
            f"the traced graph of {type(model).__name__} does not compute the model's function: "
            "rewrite it without what is random or in autocast, or choose another backbone; `keep` "
            "cannot help here"
        )
    if other is not None:
        raise UnsupportedGraphError(
            f"the traced graph of {type(model).__name__} does not learn as the model does: the "
            f"gradient of {other} differs. An autograd.Function, detach, torch.no_grad or a hook "
            "on a gradient is not kept in the graph: do without it (weights that are to stay as "
            "they are: requires_grad_(False)), or choose another backbone; `keep` cannot help here"
        )
    with contextlib.suppress(ValueError):  # a norm that needs more than one value per channel
        if not _agree(model, module, example[:1], place):
            raise UnsupportedGraphError(
                f"{type(model).__name__} computes something else for one image than for two: a "
                "branch on the batch size, which the traced graph cannot have; take it out"
            )


def _is_as(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether a buffer holds what it held, NaN where that was NaN."""
    alike = before.dtype == after.dtype and before.shape == after.shape
    return alike and torch.allclose(before, after, rtol=0, atol=0, equal_nan=True)


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

    def put(tensor: torch.Tensor, value: torch.Tensor) -> None:
        if id(tensor) not in kept:
            kept[id(tensor)] = tensor, tensor.clone()
            tensor.copy_(value)

    with torch.no_grad():
        try:
            for own, other in held:
                place = own.data_ptr(), own.shape
                if place not in values:
                    values[place] = own + VARIED * torch.rand(own.shape, generator=random)
                put(own, values[place])
                put(other, values[place])
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


def _other_gradient(
    model: nn.Module, module: fx.GraphModule, images: torch.Tensor, place: int
) -> str | None:
    """The first parameter whose gradient is not the model's, by its name, if there is one.

    Those alone that learn; where none does, the whole network was frozen, and all are compared.
    """
    held = {n: x for n, x in model.named_parameters() if x.is_floating_point()}
    names = [name for name, value in held.items() if value.requires_grad] or list(held)
    theirs = _tensors(module)
    own, of_graph = [held[n] for n in names], [theirs.get(n, held[n]) for n in names]
    off = [x for x in (*own, *of_graph) if not x.requires_grad]
    try:
        for parameter in off:
            parameter.requires_grad_()
        try:
            expected = _gradients(model, own, images, place)
        except (RuntimeError, NotImplementedError):
            return None  # the model cannot learn: it overwrites what its gradient needs
        got = _gradients(module, of_graph, images, 0)
    finally:
        for parameter in off:
            parameter.requires_grad_(False)
    sizes = [float(x.abs().max()) if x.numel() else 0.0 for x in expected]
    relative, absolute = GRADIENTS_DIFFER
    for name, one, other, size in zip(names, expected, got, sizes, strict=True):
        allowed = relative * size + absolute * max(sizes)
        if one.numel() and float((one - other).abs().max()) > allowed:
            return name  # a NaN of the model's own is not held against the graph
    return None


def _gradients(
    net: nn.Module, parameters: Sequence[torch.Tensor], images: torch.Tensor, place: int
) -> list[torch.Tensor]:
    """Of a sum of what the network answers, each number times a random one."""
    random = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        answer = _pytree.tree_leaves(net(images.clone()))[place]
        answer = answer.float()
        parts = answer * torch.randn(answer.shape, generator=random)
        loss = parts[torch.isfinite(answer)].sum()
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in parameters]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a hook's, that the images have no gradients
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if x is None else x for p, x in zip(parameters, found, strict=True)]
