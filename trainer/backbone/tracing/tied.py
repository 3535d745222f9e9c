"""Whether parameters would learn as more numbers than they are, once what they make is computed.

A tensor that is computed from parameters becomes a weight of its own. Where one parameter ends in
two such weights, or in one and in itself, each learns alone from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx, nn

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone.names import given_name, op_name, tensor_at

__all__ = ["check_tied"]

log = logging.getLogger(__name__)
Compute = Callable[[fx.Node, dict[fx.Node, Any]], Any]


def check_tied(
    module: fx.GraphModule,
    known: Mapping[fx.Node, Any],
    stored: Collection[fx.Node],
    compute: Compute,
    *,
    tuned: bool = True,
) -> None:
    """Hold what will learn to what the network learns; say where one weight has more numbers.

    Two weights may share parameters as long as these have as many numbers: a normalisation's
    scale, which is in a weight and in its bias, or a parameter that is used in parts.

    Args:
        known: the values of all nodes that depend on no image.
        stored: those of them that become tensors of their own.
        compute: the value of a node by those before it.
        tuned: whether weights will learn; where none does, forms cannot come apart, and count.

    Raises UnsupportedGraphError if parameters are used in several forms that would learn apart.
    """
    parameters: dict[int, nn.Parameter] = {}
    named: dict[int, str] = {}
    made_of: dict[fx.Node, set[int]] = {}
    ends: dict[fx.Node | int, set[int]] = {}  # by node, or by parameter where it is read itself
    for node in (x for x in module.graph.nodes if x in known):
        made_of[node] = set().union(*(made_of[x] for x in node.all_input_nodes))
        value = tensor_at(module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(value, nn.Parameter) and value.requires_grad:
            key = id(value)  # whatever its names are
            parameters[key], made_of[node] = value, {key}
            named.setdefault(key, str(node.target))
            if any(user not in known for user in node.users):
                ends[key] = {key}
        elif node in stored and made_of[node] and known[node].is_floating_point():
            ends[node] = made_of[node]
    grown: list[str] = []
    for group in _sharing(ends):
        of = set().union(*(ends[end] for end in group))
        count = sum((parameters[x] if isinstance(x, int) else known[x]).numel() for x in group)
        have = sum(parameters[x].numel() for x in of)
        if len(group) > 1:
            have = min(have, _in_use(module, known, group, of, parameters, compute))
        if count <= have:
            continue
        most = max(of, key=lambda x: sum(x in ends[end] for end in group))
        name, forms = given_name(named[most]), [end for end in group if most in ends[end]]
        if len(forms) > 1:
            told = ", as ".join(map(_told, forms[:3])) + ", …" * (len(forms) > 3)
            used = f"parameter {name} is used in {len(forms)} forms (as {told}), which"
            counts = f"count as {count:,} numbers in place of {have:,}"
            if not tuned:
                log.info("%s %s; none of them learns", used, counts)
                continue
            raise UnsupportedGraphError(
                f"{used} would learn apart and {counts}: give each use a parameter of its own, use "
                "it in one form alone, have it stay as it is (requires_grad_(False)) or the whole "
                'trunk ([train] trunk = "frozen"), or choose another network'
            )
        grown.append(f"from {name}, {count:,} numbers in place of {have:,}")
    if grown:
        more = f", and {len(grown) - 1} more like it" if len(grown) > 1 else ""
        log.info(
            "a weight that the network computes learns and counts as it is: %s%s", grown[0], more
        )


def _told(form: fx.Node | int) -> str:
    if isinstance(form, int):
        return "itself"
    if op_name(form) == "rsub":  # torch's name for a number less a tensor
        return f"{form.args[1]} - {form.args[0]}"
    return form.name


def _sharing(ends: Mapping[fx.Node | int, set[int]]) -> list[list[fx.Node | int]]:
    """What is made of the same parameters, also by way of others, together."""
    groups: list[tuple[list[fx.Node | int], set[int]]] = []
    for end, of in ends.items():
        met = [group for group in groups if group[1] & of]
        groups = [group for group in groups if group not in met]
        whole = set(of).union(*(group[1] for group in met))
        groups.append(([*(x for group in met for x in group[0]), end], whole))
    return [group for group, _ in groups]


def _in_use(
    module: fx.GraphModule,
    known: Mapping[fx.Node, Any],
    group: Collection[fx.Node | int],
    of: Collection[int],
    parameters: Mapping[int, nn.Parameter],
    compute: Compute,
) -> int:
    """How many numbers of the parameters `of` have a part in the tensors of `group`.

    Asked of numbers that no ReLU, root or clamp to 0 and 1 makes one of: a scale may begin at 0.
    """
    random = torch.Generator().manual_seed(0)
    leaves = {
        x: (0.25 + 0.5 * torch.rand(parameters[x].shape, generator=random))
        .to(parameters[x])
        .requires_grad_()
        for x in sorted(of, key=list(parameters).index)
    }
    values: dict[fx.Node, Any] = {}
    needed: set[fx.Node] = {end for end in group if isinstance(end, fx.Node)}
    for node in reversed([x for x in module.graph.nodes if x in known]):
        if node in needed or op_name(node).endswith("_"):  # what is written into may be read
            needed.update((node, *node.all_input_nodes))
    total = torch.zeros(())
    try:
        with torch.enable_grad():
            for node in (x for x in module.graph.nodes if x in needed):
                held = tensor_at(module, str(node.target)) if node.op == "get_attr" else None
                values[node] = (
                    compute(node, values) if held is None else leaves.get(id(held), known[node])
                )
            for end in group:
                value = leaves[end] if isinstance(end, int) else values[end]
                total = total + (value * torch.rand(value.shape, generator=random)).sum()
        found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    except (RuntimeError, NotImplementedError):  # a write in place, or what has no derivative
        return sum(leaf.numel() for leaf in leaves.values())
    return sum(int((x != 0).sum()) for x in found if x is not None)
