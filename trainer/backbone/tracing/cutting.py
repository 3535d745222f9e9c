"""The output of a module by its name, as the network's own forward makes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone.names import op_name

__all__ = ["check_cut", "drop_behind", "drop_copy", "returning_cut"]


def check_cut(model: nn.Module, cut: str, example: torch.Tensor) -> None:
    """Raise ConfigError unless the module is called once and returns one tensor."""
    modules = dict(model.named_modules(remove_duplicate=False))
    called: dict[int, list[int]] = {}  # how many tensors each call of a module returned

    def note(module: nn.Module, _: Any, output: Any) -> None:
        called.setdefault(id(module), []).append(len(_tensors(output)))

    held = {id(module): module for module in modules.values()}.values()
    handles = [module.register_forward_hook(note) for module in held]
    try:
        with torch.no_grad():
            model(example.clone())
    finally:
        for handle in handles:
            handle.remove()
    known = [name for name, module in modules.items() if name and id(module) in called]
    calls = called.get(id(modules.get(cut)), [])
    if not calls:
        parts = [name for name in known if name.startswith(f"{cut}.")]
        near = parts[-1:] or get_close_matches(cut, known, 3) or known[:5]
        what = f"the network has no module {cut!r}"
        what = f"module {cut!r} is never called itself" if cut in modules else what
        raise ConfigError(f"[backbone] cut: {what}: give one such as {', '.join(near)}")
    if len(calls) > 1:
        raise ConfigError(
            f"[backbone] cut: module {cut!r} is called {len(calls)} times: give one that is called "
            "once"
        )
    if calls != [1]:
        what = f"{calls[0]} tensors" if calls[0] else "no tensor"
        raise ConfigError(
            f"[backbone] cut: module {cut!r} returns {what}: give one that returns one tensor"
        )


@contextlib.contextmanager
def returning_cut(model: nn.Module, cut: str) -> Iterator[None]:
    """Inside, the model returns the module's output too, as the last of its tensors.

    As a copy: what the network does in place with it behind the module is not the module's.
    """
    kept: list[torch.Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        kept[:] = [_tensors(output)[0].clone()]

    def add(_: nn.Module, __: Any, output: Any) -> tuple[Any, torch.Tensor]:
        return output, kept.pop()

    handles = [
        model.get_submodule(cut).register_forward_hook(keep),
        model.register_forward_hook(add),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def drop_behind(graph: fx.Graph) -> None:
    """End a graph whose one output is `returning_cut`'s copy where that is made."""
    output = graph.output_node()
    (copy,) = output.all_input_nodes
    assert op_name(copy) == "clone", copy
    while output.prev is not copy:  # writes among it, which no dead code's elimination takes out
        graph.erase_node(output.prev)


def drop_copy(graph: fx.Graph) -> None:
    """Take `returning_cut`'s copy out of a graph in which nothing is in place any more."""
    output = graph.output_node()
    output.args = tuple(x.args[0] if op_name(x) == "clone" else x for x in output.all_input_nodes)
    graph.eliminate_dead_code()


def _tensors(output: Any) -> list[torch.Tensor]:
    return [x for x in _pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]
