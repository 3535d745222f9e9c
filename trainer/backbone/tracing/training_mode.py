"""What a network does in its own training mode alone, which its traced graph has not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prunion.runtime.base import listed

__all__ = ["NORM_MOMENTUM", "hooked", "tell_left_out"]

log = logging.getLogger(__name__)
NORM_MOMENTUM = 0.1  # of every domain's statistics, whatever the network's own has
MOST_NAMED = 3
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def tell_left_out(model: nn.Module, example: torch.Tensor, place: int, cut: str | None) -> None:
    """Log a line for what training by the graph of `model` leaves out, if there is anything.

    Args:
        place: of the answer among the model's flattened outputs.
        cut: the module that the graph ends with; what is drawn behind it is not missed.
    """
    norms = [x for x in model.modules() if hasattr(x, "running_mean")]
    momenta = {x.momentum for x in norms if isinstance(x, _BatchNorm)} - {NORM_MOMENTUM}
    if momenta:
        log.info(
            "the network's BatchNorm has momentum %s, prunion's has %g: each domain's statistics "
            "are new, and follow the channels that leave",
            ", ".join(sorted(f"{x:g}" if isinstance(x, float) else str(x) for x in momenta)),
            NORM_MOMENTUM,
        )
    if names := hooked(model):
        log.info(
            "the network has hooks (%s): what one returns of an answer is in the graph that is "
            "trained, and whatever else it does, as to keep or count, is done while that is traced "
            "alone",
            listed(names, MOST_NAMED),
        )
    draws = _Draws()
    try:
        own = _pytree.tree_leaves(model(example.clone()))[place]
        with _training(model, norms), _told_where(model, draws, cut), draws, torch.no_grad():
            other = _pytree.tree_leaves(model(example.clone()))[place]
    except Exception:  # it cannot run so, and a run never does
        return
    if draws.found:
        modules = dict(model.named_modules())
        names = [f"{type(modules[name]).__name__} {name}".strip() for name in draws.found]
        log.info(
            "the network is trained without what is random in its own training mode: %s",
            listed(names, MOST_NAMED),
        )
    elif own.shape != other.shape or not torch.allclose(own, other, 1e-3, 1e-4, equal_nan=True):
        log.info(
            "the network answers otherwise in its own training mode (self.training), norms apart: "
            "it is trained as it answers in eval mode"
        )


def hooked(model: nn.Module) -> list[str]:
    """The modules with a hook of the user's, torch's own and prunion's aside, by class and name."""
    return [
        f"{type(module).__name__} {name}".strip()
        for name, module in model.named_modules()
        if any(_is_users(hook) for kind in HOOKS for hook in getattr(module, kind).values())
    ]


def _is_users(hook: Any) -> bool:
    while isinstance(hook, partial):
        hook = hook.func
    # What is no function, as weight_norm's own, has the place of its class.
    place = getattr(hook, "__module__", None) or type(hook).__module__
    return place.partition(".")[0] not in ("torch", "prunion")


class _Draws(TorchDispatchMode):
    """Notes in which modules random numbers are drawn, also where they seldom change anything.

    Attributes:
        found: names of modules, in order, each once.
        inside: those that are running, the innermost last.
        over: whether what still runs counts for nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, None] = {}
        self.inside: list[str] = []
        self.over = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch calls for each operation."""
        if torch.Tag.nondeterministic_seeded in func.tags and self.inside and not self.over:
            self.found[self.inside[-1]] = None
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _told_where(model: nn.Module, draws: _Draws, cut: str | None) -> Iterator[None]:
    """Inside, `draws` knows which modules run."""

    def enter(name: str, *_: Any) -> None:
        draws.inside.append(name)

    def leave(name: str, *_: Any) -> None:
        draws.inside.pop()
        draws.over |= name == cut

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, name)))
        handles.append(module.register_forward_hook(partial(leave, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _training(model: nn.Module, norms: list[nn.Module]) -> Iterator[None]:
    """Inside, all but the norms is in training mode; then flags and buffers are as they were."""
    flags = {module: module.training for module in model.modules()}
    buffers = [(name, value, value.clone()) for name, value in model.named_buffers()]
    try:
        with torch.random.fork_rng(devices=[]):
            for module in flags:
                module.training = module not in norms
            yield
    finally:
        for module, flag in flags.items():
            module.training = flag
        for name, value, before in buffers:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = value.copy_(before)
