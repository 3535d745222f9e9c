"""Pretrained backbones by name, traced, without what stands behind their features."""

from __future__ import annotations

import os
import socket
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import fx, nn

from prunion.runtime.base import reason_of
from prunion.runtime.errors import ConfigError, UnsupportedGraphError
from prunion.trainer.backbone.names import op_name
from prunion.trainer.backbone.paper_resnets import PAPER_NETS, paper_net
from prunion.trainer.backbone.tracing import trace
from prunion.trainer.backbone.weights import (
    load_weights,
    match_by_order,
    read_weights,
)
from prunion.trainer.config import BackboneConfig

__all__ = ["drop_classifier", "load_backbone"]

PASSES_THROUGH = frozenset(
    ["flatten", "view", "reshape", "squeeze", "relu", "mean", "adaptive_avg_pool2d"]
)


def load_backbone(
    config: BackboneConfig, height: int, width: int, *, weights: bool = True
) -> fx.GraphModule:
    """The trunk as a traced graph from `[N, 3, H, W]` to features `[N, F]`.

    The classifier is taken off; with `config.cut`, everything behind that module too, and its
    output is average-pooled. With `weights=False` the parameters are left as the library draws
    them, for a caller that loads its own.

    Raises:
        ConfigError: unknown name, or weights that do not fit.
        UnsupportedGraphError: the network cannot be traced, or does not end in features.
    """
    model = _create(config, pretrained=weights and config.weights == "default")
    state = read_weights(config.weights) if weights and config.weights_are_a_file else None
    if state is not None and config.match == "order":
        state = match_by_order(config, state, model.state_dict())
    module = trace(model, height, width)
    if config.cut is not None:
        _end_behind(module.graph, config.cut)
    elif config.source == "torchvision":
        drop_classifier(module.graph)
    module.graph.eliminate_dead_code()
    module = fx.GraphModule(module, module.graph)  # takes along only the parameters still used
    if state is not None:
        load_weights(config, module, state)
    return module


def _create(config: BackboneConfig, *, pretrained: bool) -> nn.Module:
    if config.source == "prunion":
        return _create_own(config, pretrained=pretrained)
    _check_name(config)
    try:
        if config.source == "timm":
            return _create_timm(config.name, pretrained=pretrained)
        return _create_torchvision(config.name, pretrained=pretrained)
    except (ValueError, RuntimeError, KeyError) as exc:
        raise ConfigError(
            f"[backbone] name: {config.source} cannot make {config.name!r} ({reason_of(exc)})"
        ) from exc
    except OSError as exc:
        raise ConfigError(
            f'[backbone] weights = "default": the weights of {config.name} cannot be downloaded '
            f"({reason_of(exc)}); give a local file instead"
        ) from exc


def _check_name(config: BackboneConfig) -> None:
    if config.source == "timm":
        import timm

        known, base = timm.list_models(), config.name.split(".")[0]  # NAME.TAG names its weights
    else:
        from torchvision.models import list_models

        known, base = list_models(), config.name
    if base not in known:
        near = get_close_matches(base.lower(), known, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "its own documentation lists them"
        raise ConfigError(
            f"[backbone] name: {config.source} has no network {config.name!r}: {hint}"
        )


def _create_timm(name: str, *, pretrained: bool) -> nn.Module:
    import timm

    place: dict[str, Any] = {}
    published = timm.get_pretrained_cfg(name) if pretrained else None
    if published is not None and (repository := published.hf_hub_id):
        # The hub's own client asks again for 47 seconds where there is no network, even for a file
        # that lies in its cache.
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(repository, "model.safetensors")
        if isinstance(cached, str):
            place = {"pretrained_cfg_overlay": {"file": cached}}
        else:
            _check_reachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    # timm takes the classifier off itself; the names before it stay the same
    return timm.create_model(name, pretrained=pretrained, num_classes=0, **place)


def _check_reachable(address: str) -> None:
    """Raise OSError at once where the host does not answer; a proxy is left to judge for itself."""
    if not getproxies():
        parts = urlsplit(address)
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=5):
            pass


def _create_torchvision(name: str, *, pretrained: bool) -> nn.Module:
    from torchvision.models import get_model

    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}
    model = get_model(name, weights="DEFAULT" if pretrained else None, **options)
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
    backbone: nn.Module = model
    return backbone


def _create_own(config: BackboneConfig, *, pretrained: bool) -> nn.Module:
    if config.name not in PAPER_NETS:
        raise ConfigError(
            f"[backbone] name: prunion has no network {config.name!r}: choose one of "
            f"{', '.join(PAPER_NETS)}"
        )
    if pretrained:
        raise ConfigError(
            f'[backbone] weights = "default": nobody publishes weights of {config.name}; '
            'give a local file, or "none" to train it from scratch with trunk = "tuned"'
        )
    return paper_net(config.name)


def drop_classifier(graph: fx.Graph) -> None:
    """Make the input of the last linear layer (or 1x1 convolution) the output."""
    output = next(n for n in graph.nodes if n.op == "output")
    node = output.args[0]
    assert isinstance(node, fx.Node)
    while op_name(node) in PASSES_THROUGH:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    name = op_name(node)
    if name not in ("linear", "conv2d"):
        raise UnsupportedGraphError(
            f"the network ends in {name or node.op} ({node.name}), not in a classifier: "
            "name the last module to keep in [backbone] cut"
        )
    features = node.args[0]
    assert isinstance(features, fx.Node)
    output.args = (features if name == "linear" else _pooled(graph, features, output),)
    graph.eliminate_dead_code()


def _end_behind(graph: fx.Graph, module: str) -> None:
    """Make the pooled output of a module, by its name, the output."""
    last = None
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        paths = [path.split("@")[0] for path, _ in stack.values()]
        if op_name(node) and any(p == module or p.startswith(module + ".") for p in paths):
            last = node
    if last is None:
        raise ConfigError(f"[backbone] cut: the network has no module {module!r}")
    output = next(n for n in graph.nodes if n.op == "output")
    output.args = (_pooled(graph, last, output),)


def _pooled(graph: fx.Graph, node: fx.Node, output: fx.Node) -> fx.Node:
    value = node.meta["val"]
    if value.dim() != 4:
        raise ConfigError(
            f"[backbone] cut: {node.name} gives {value.dim()} axes, not [N, C, H, W]: "
            "cut at a convolutional module"
        )
    with graph.inserting_before(output):
        pool = graph.call_function(torch.ops.aten.adaptive_avg_pool2d.default, (node, [1, 1]))
        flat = graph.call_function(torch.ops.aten.flatten.using_ints, (pool, 1))
    pool.meta["val"] = torch.ops.aten.adaptive_avg_pool2d.default(value, [1, 1])
    flat.meta["val"] = pool.meta["val"].flatten(1)
    return flat
