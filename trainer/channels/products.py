"""What a layer costs: the products of an activation with a weight, whatever it is written as."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

from prunion.trainer.backbone import op_name
from prunion.trainer.channels.slots import arg_of, sizes_of

__all__ = ["COUNTED", "einsum_products", "weights_of_layer"]

# The places of the factors among the arguments of each; what is added to a product is none.
FACTORS: dict[str, tuple[int, int]] = {
    **dict.fromkeys("linear matmul mm bmm mv dot inner tensordot".split(), (0, 1)),
    **dict.fromkeys("addmm addmv addbmm baddbmm".split(), (1, 2)),
}
TRANSPOSED = frozenset("conv_transpose1d conv_transpose2d conv_transpose3d".split())
CONVOLUTIONS = frozenset({*TRANSPOSED, "conv1d", "conv2d", "conv3d"})
COUNTED = frozenset({*FACTORS, *CONVOLUTIONS, "einsum"})


def weights_of_layer(node: fx.Node) -> Iterable[tuple[str, tuple[int, ...], int]]:
    """Name, shape and positions of every weight that `node` multiplies an activation with.

    Positions times the weight's numbers are the multiply-accumulates for one image, also where
    the images of a batch lie along one axis with their tokens or parts, or not along the first.
    """
    name = op_name(node)
    given = node.args[1] if name == "einsum" else _factors(node)
    assert isinstance(given, Sequence)
    factors = [x for x in given if isinstance(x, fx.Node)]
    if all(x.op == "get_attr" for x in factors):
        return
    for place, weight in enumerate(factors):
        if name in CONVOLUTIONS and place == 0:
            continue  # an image, even where it is a parameter
        shape = tuple(int(n) for n in weight.meta["val"].shape) if weight.op == "get_attr" else ()
        if shape:
            yield str(weight.target), shape, _products(node, place, factors) // math.prod(shape)


def _factors(node: fx.Node) -> list[Any]:
    return [arg_of(node, place, None) for place in FACTORS.get(op_name(node), (0, 1))]


def _products(node: fx.Node, place: int, factors: list[fx.Node]) -> int:
    """Multiply-accumulates of a node for one image; factor number `place` is the weight."""
    name, shapes = op_name(node), [sizes_of(x) for x in factors]
    made = math.prod(sizes_of(node))
    if name == "einsum":
        return einsum_products(str(node.args[0]), shapes)
    if name == "tensordot":
        dims = node.args[2] if len(node.args) > 2 else node.kwargs["dims_self"]
        assert isinstance(dims, Sequence)
        return made * math.prod(shapes[0][int(str(n))] for n in dims)
    if name in CONVOLUTIONS:  # a transposed one takes each number that it reads so many times
        taken = math.prod(shapes[0]) if name in TRANSPOSED else made
        return taken * math.prod(shapes[1][1:])
    right = place == 1 and name not in ("inner", "linear") and len(shapes[1]) > 1
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
