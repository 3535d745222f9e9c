"""A GPU for machines that have none: torch's fake tensors, which know their device and no values.

Operations on tensors of different devices fail as on a real one, and so does what would have to
wait for the device to learn a tensor's shape. Where the code reads values it gets ones. Autograd's
engine wants a real device, so gradients are zeros of the right shape and device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["moved", "pretended_gpu"]

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def pretended_gpu() -> Iterator[tuple[FakeTensorMode, Counter[str]]]:
    """Inside, tensors are fake; yields how to fake others, and how often values were waited for."""
    waits: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for name, give in _reads().items():
            patch.setattr(FakeTensor, name, _counted(name, give, waits), raising=False)
        patch.setattr(FakeTensor, "cpu", _to_cpu(waits), raising=False)
        patch.setattr(torch.Tensor, "backward", _backward)
        patch.setattr(torch.autograd, "grad", _grad)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode, waits


def moved(module: Module, mode: FakeTensorMode, dtype: torch.dtype | None = None) -> Module:
    """The module with its parameters and buffers, and nothing else, on the pretended GPU."""

    def fake(value: torch.Tensor) -> torch.Tensor:
        floating = dtype if value.is_floating_point() else None
        return mode.from_tensor(value.detach()).to("cuda", floating)

    for part in module.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(fake(value), requires_grad=value.requires_grad))
        for name, value in list(part.named_buffers(recurse=False)):
            setattr(part, name, fake(value))
    module.to = lambda *args, **kwargs: module  # type: ignore[method-assign]
    return module


def _ones(tensor: torch.Tensor) -> np.ndarray:
    kind = str(tensor.dtype).removeprefix("torch.").replace("bfloat16", "float32")
    return np.ones(tuple(tensor.shape), dtype=kind)


def _reads() -> dict[str, Callable[[torch.Tensor], Any]]:
    def one(tensor: torch.Tensor) -> Any:
        return _ones(tensor).reshape(-1)[0].item()

    return {
        "numpy": _ones,
        "tolist": lambda tensor: _ones(tensor).tolist(),
        "item": one,
        "__bool__": lambda tensor: bool(one(tensor)),
        "__int__": lambda tensor: int(one(tensor)),
        "__float__": lambda tensor: float(one(tensor)),
    }


def _counted(name: str, give: Callable, waits: Counter[str]) -> Callable:
    def read(self: torch.Tensor) -> Any:
        if self.device.type == "cuda":
            assert name != "numpy", "a GPU's tensor has no numpy()"
            waits[name] += 1
        return give(self)

    return read


def _to_cpu(waits: Counter[str]) -> Callable:
    def cpu(self: torch.Tensor) -> torch.Tensor:
        waits["cpu"] += self.device.type == "cuda"
        return self.to("cpu")

    return cpu


def _backward(self: torch.Tensor) -> None:
    seen, todo = set(), [self.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable).detach()
        todo += [following for following, _ in node.next_functions]


def _grad(outputs: torch.Tensor, inputs: torch.Tensor | Sequence[torch.Tensor]) -> tuple:
    wanted = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    return tuple(torch.zeros_like(value).detach() for value in wanted)
