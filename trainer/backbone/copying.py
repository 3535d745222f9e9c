"""A copy of a network in hand, held to the network itself: it learns, and that one is left alone.

`copy.deepcopy` copies no functions: what a lambda, a closure or a hook refers to is the network
itself, also from within its copy.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prunion.runtime.base import reason_of
from prunion.runtime.errors import ConfigError

__all__ = ["own_copy", "unwrapped"]

log = logging.getLogger(__name__)

CLOSE = 1e-3, 5e-2  # of the largest answer: in float32 on the CPU, and of another type or device
WRAPS = (nn.DataParallel, DistributedDataParallel, AveragedModel)  # what answers as its module does
# What torch keeps of a module under these names is tensors and modules, or functions of others.
TORCHS = frozenset(vars(nn.Module())) - {"training"}
MISSING = object()  # in place of an attribute that a module has not


def own_copy(model: nn.Module, height: int, width: int) -> nn.Module:
    """A copy on the CPU, in float32, that answers as `model` does and shares nothing with it.

    `model` is left as it is: parameters, buffers, modes, and what its modules hold. Of what only
    wraps a network, such as a DataParallel or what torch.compile returns, that one is taken.

    Raises ConfigError if there can be none, as of what torch.jit made or of layers without sizes
    yet, or a parameter that learns is hidden from torch.
    """
    while (inside := _wrapped(model)) is not None:
        log.info("the network is wrapped in a %s: its module is taken", type(model).__name__)
        model = inside
    _check_plain(model)
    # What a hook computes before each forward (torch.nn.utils.weight_norm) hangs on a gradient's
    # graph, of which there is no copy; the copy's hook computes its own.
    held = [x for part in model.modules() for x in vars(part).values()]
    computed = [x for x in held if isinstance(x, torch.Tensor) and not x.is_leaf]
    try:
        own = copy.deepcopy(model, {id(x): x.detach().clone() for x in computed})
        own = own.to("cpu", torch.float32)
    except Exception as exc:  # whatever hangs on the user's module
        raise ConfigError(
            f"the network, a {type(model).__name__}, cannot be copied to the CPU "
            f"({reason_of(exc)}): give one that copy.deepcopy takes, with its weights in memory"
        ) from exc
    _check(model, own, torch.randn(2, 3, height, width))
    return own


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, where it is one that only wraps it which is given."""
    while (inside := _wrapped(model)) is not None:
        model = inside
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    """The network inside; None for any that does more than to wrap one, as a subclass may."""
    kind = type(model)
    if kind in WRAPS:
        inside = model.module
    elif kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch."):
        inside = model._orig_mod  # what torch.compile returns
    else:
        return None
    return inside if isinstance(inside, nn.Module) else None


def _check_plain(model: nn.Module) -> None:
    called = f"the network, a {type(model).__name__},"
    for name, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f" in its module {name}" if name else ""
            raise ConfigError(
                f"{called} was scripted or traced by torch.jit{where}, and cannot be traced again: "
                "give the module itself, as it was before"
            )
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise ConfigError(
                f"{called} has no size yet for {name}, which a lazy layer takes from its first "
                "input: run it once on an image before"
            )


def _check(model: nn.Module, own: nn.Module, images: torch.Tensor) -> None:
    called = f"the network, a {type(model).__name__},"
    method = (
        "a lambda, a closure or a hook refers to it, and copy.deepcopy copies no functions. Write "
        "a method of the class in its place, and in a hook use the module that it is given"
    )
    seen = _Seen(model, own)
    with _left_alone(model) as changed, _left_alone(own):
        with seen:
            answer = _answer(own, images)
        touched = changed()
    if touched:
        raise ConfigError(
            f"{called} cannot be copied: its copy sets {touched[0]} of the network: a hook, or "
            "another function that refers to it, writes that to the network itself, also from the "
            "copy. Remove the hook, or let it write to the module that it is given"
        )
    if seen.of_model:
        what = f"its copy computes with {seen.of_model} of the network"
        raise ConfigError(f"{called} cannot be copied: {what}: {method}")
    if seen.hidden is not None:
        raise ConfigError(
            f"{called} learns a parameter of shape {seen.hidden} that is not among its parameters, "
            "as a plain list or dict hides it: hold it in nn.ModuleList, nn.ModuleDict or "
            "nn.ParameterList, or set requires_grad_(False) where it is to stay as it is"
        )
    expected, again = (_alone(model, images) for _ in range(2))
    if answer is None or expected is None or again is None:
        return  # tracing tells why it cannot run, or the network runs nowhere but in its copy
    plain = all(x.dtype == torch.float32 and x.is_cpu for x in model.parameters())
    close = CLOSE[0 if plain else 1]
    if _alike(expected, again, close) and not _alike(expected, answer, close):
        raise ConfigError(
            f"{called} cannot be copied: its copy answers otherwise, as with what {method}"
        )


class _Seen(TorchDispatchMode):
    """Notes what a copy computes with that is not its own.

    Attributes:
        of_model: a tensor of the network that was copied, by its name; empty for none.
        hidden: the shape of a parameter that learns, and that the copy has not registered.
    """

    def __init__(self, model: nn.Module, own: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        self.places = {_place(value): name for name, value in tensors.items()}
        self.places.pop(0, None)
        self.registered = {id(x) for x in own.parameters()}
        self.of_model = ""
        self.hidden: list[int] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch calls for each operation."""
        for value in _pytree.tree_leaves((args, kwargs or {})):
            if isinstance(value, torch.Tensor):
                self.of_model = self.of_model or self.places.get(_place(value), "")
                learns = isinstance(value, nn.Parameter) and value.requires_grad
                if learns and self.hidden is None and id(value) not in self.registered:
                    self.hidden = list(value.shape)
        return func(*args, **(kwargs or {}))


def _place(value: torch.Tensor) -> int:
    """Where a tensor's numbers lie; 0 where that says nothing."""
    try:
        return value.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # one without a storage, such as a sparse one
        return 0


def _alone(model: nn.Module, images: torch.Tensor) -> list[Any] | None:
    with _left_alone(model):
        return _answer(model, images)


def _answer(model: nn.Module, images: torch.Tensor) -> list[Any] | None:
    """What a network answers in eval mode, on its own device; None where it cannot."""
    first = next((x for x in model.parameters() if x.is_floating_point()), images)
    with torch.random.fork_rng([first.device] if first.is_cuda else []), torch.no_grad():
        torch.manual_seed(0)
        try:
            return _pytree.tree_leaves(model(images.to(first.device, first.dtype)))
        except Exception:  # whatever a user's forward raises
            return None


def _alike(one: list[Any], other: list[Any], close: float) -> bool:
    pairs = list(zip(one, other, strict=False))
    tensors = [(a, b) for a, b in pairs if isinstance(a, torch.Tensor)]
    return len(one) == len(other) and all(
        isinstance(b, torch.Tensor) and a.shape == b.shape and _is_near(a, b, close)
        for a, b in tensors
    )


def _is_near(one: torch.Tensor, other: torch.Tensor, close: float) -> bool:
    a, b = one.detach().cpu().double(), other.detach().cpu().double()
    finite = a[a.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=close, atol=close * largest + 1e-12, equal_nan=True)


@contextlib.contextmanager
def _left_alone(model: nn.Module) -> Iterator[Any]:
    """Inside, the network is in eval mode; then all that its modules hold is as it was.

    Yields a function that names what has changed so far.
    """
    modules = dict(model.named_modules())
    before = {name: dict(vars(module)) for name, module in modules.items()}
    buffers = {name: dict(module._buffers) for name, module in modules.items()}
    values = [
        (f"{name}.{leaf}".lstrip("."), value, value.clone())
        for name, held in buffers.items()
        for leaf, value in held.items()
        if value is not None
    ]
    filled = [
        (f"{name}.{key}".lstrip("."), value, copy.copy(value))
        for name, held in before.items()
        for key, value in held.items()
        if key not in TORCHS and type(value) in (list, dict, set)
    ]
    for module in modules.values():
        module.training = False
    in_eval = {name: dict(vars(module)) for name, module in modules.items()}

    def changed() -> list[str]:
        names = [
            f"{name}.{key}".lstrip(".")
            for name, module in modules.items()
            for key in {**in_eval[name], **vars(module)}
            if key not in TORCHS
            and vars(module).get(key, MISSING) is not in_eval[name].get(key, MISSING)
        ]
        names += [name for name, value, kept in filled if not _holds_same(value, kept)]
        return names + [n for n, x, kept in values if not torch.equal(_bits(x), _bits(kept))]

    try:
        yield changed
    finally:
        for name, module in modules.items():
            for key in vars(module).keys() - before[name].keys():
                del module.__dict__[key]
            module.__dict__.update(before[name])
            if not isinstance(module, torch.jit.ScriptModule):  # whose buffers cannot be replaced
                module._buffers.clear()
                module._buffers.update(buffers[name])
        for _, value, kept in filled:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(kept)
        with torch.no_grad():
            for _, value, kept in values:
                if not torch.equal(_bits(value), _bits(kept)):
                    value.copy_(kept)


def _holds_same(value: Any, kept: Any) -> bool:
    """Whether a list, dict or set holds the very things that it held."""
    pairs = zip(_things(value), _things(kept), strict=False)
    return len(value) == len(kept) and all(a is b for a, b in pairs)


def _things(value: Any) -> list[Any]:
    return [*value, *value.values()] if isinstance(value, dict) else list(value)


def _bits(value: torch.Tensor) -> torch.Tensor:
    """Numbers that are equal where they are the same, NaN too."""
    return torch.nan_to_num(value.detach(), nan=0.5) if value.is_floating_point() else value
