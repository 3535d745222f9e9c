"""Products of an activation with a weight: linear layers, whatever they are written as."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from prunion.trainer.backbone import op_name

__all__ = ["ONE_IMAGE", "PRODUCTS", "einsum_products", "weights_of_product"]

# The places of the factors among the arguments of each; what is added to a product is none.
FACTORS: dict[str, tuple[int, int]] = {
    **dict.fromkeys("matmul mm bmm mv dot inner tensordot".split(), (0, 1)),
    **dict.fromkeys("addmm addmv addbmm baddbmm".split(), (1, 2)),
}
PRODUCTS = frozenset({*FACTORS, "einsum"})
# Where a graph whose batch has a fixed size keeps what its nodes are for a batch of one.
ONE_IMAGE = "one image"


def weights_of_product(node: fx.Node) -> Iterable[tuple[str, tuple[int, ...], int]]:
    """Name, shape and positions of every weight that `node` multiplies an activation with.

    Positions times the weight's numbers are the multiply-accumulates for one image.
    """
    name = op_name(node)
    given = node.args[1] if name == "einsum" else [node.args[n] for n in FACTORS[name]]
    assert isinstance(given, Sequence)
    factors = [x for x in given if isinstance(x, fx.Node)]
    if all(x.op == "get_attr" for x in factors):
        return
    for place, weight in enumerate(factors):
        shape = tuple(int(n) for n in weight.meta["val"].shape) if weight.op == "get_attr" else ()
        if shape:
            yield str(weight.target), shape, _products(node, place, factors) // math.prod(shape)


def _products(node: fx.Node, place: int, factors: list[fx.Node]) -> int:
    """Multiply-accumulates of a product for one image; factor number `place` is the weight."""
    name, shapes = op_name(node), [_sizes(x) for x in factors]
    made = math.prod(_sizes(node))
    if name == "einsum":
        return einsum_products(str(node.args[0]), shapes)
    if name == "tensordot":
        dims = node.args[2] if len(node.args) > 2 else node.kwargs["dims_self"]
        assert isinstance(dims, Sequence)
        return made * math.prod(shapes[0][int(str(n))] for n in dims)
    right = place == 1 and name != "inner" and len(shapes[1]) > 1
    return made * shapes[place][-2 if right else -1]


def einsum_products(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Multiply-accumulates of an einsum: the sizes of all of its letters, multiplied.

    `shapes` are its factors'. The axes behind a `...` are told apart from their end.
    """
    sizes: dict[object, int] = {}
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    for term, shape in zip(terms, shapes, strict=True):
        before, dots, after = term.partition("...")
        hidden = range(len(before) + len(after) - len(shape), 0) if dots else ()
        for letter, size in zip([*before, *hidden, *after], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


def _sizes(node: fx.Node) -> list[int]:
    """A shape for one image: what has no fixed size is the batch, or a multiple of it."""
    value: torch.Tensor = node.meta.get(ONE_IMAGE, node.meta["val"])
    return [_of_one_image(n) for n in value.shape]


def _of_one_image(size: Any) -> int:
    if isinstance(size, int):
        return size
    number = size.node.expr
    return int(number.subs(dict.fromkeys(number.free_symbols, 1)))
