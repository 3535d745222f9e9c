"""Pretrained backbones by name, traced, without what stands behind their features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from prunion.runtime.errors import ConfigError, UnsupportedGraphError
from prunion.trainer.backbone.paper_resnets import PAPER_NETS, paper_net
from prunion.trainer.backbone.trace import op_name, trace
from prunion.trainer.config.run import BackboneConfig

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
    state = _read_weights(config) if weights and config.weights_are_a_file else None
    if state is not None and config.match == "order":
        state = _match_by_order(config, state, model)
    module = trace(model, height, width)
    if config.cut is not None:
        _end_behind(module.graph, config.cut)
    elif config.source == "torchvision":
        drop_classifier(module.graph)
    module.graph.eliminate_dead_code()
    module = fx.GraphModule(module, module.graph)  # takes along only the parameters still used
    if state is not None:
        _load(config, module, state)
    return module


def _create(config: BackboneConfig, *, pretrained: bool) -> nn.Module:
    if config.source == "prunion":
        return _create_own(config, pretrained=pretrained)
    try:
        if config.source == "timm":
            import timm

            # timm takes the classifier off itself; the names before it stay the same
            return timm.create_model(config.name, pretrained=pretrained, num_classes=0)
        from torchvision.models import get_model

        options: dict[str, Any] = {}
        if config.name in ("googlenet", "inception_v3"):
            options = {"init_weights": False}
        model = get_model(config.name, weights="DEFAULT" if pretrained else None, **options)
        if hasattr(model, "aux_logits"):
            model.aux_logits = False
        return model
    except (ValueError, RuntimeError, KeyError) as exc:
        raise ConfigError(
            f"[backbone] name: {config.source} has no network {config.name!r} "
            f"({str(exc).splitlines()[0]})"
        ) from exc
    except OSError as exc:
        raise ConfigError(
            f'[backbone] weights = "default": the weights of {config.name} cannot be downloaded '
            f"({str(exc).splitlines()[0]}); give a local file instead"
        ) from exc


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


def _read_weights(config: BackboneConfig) -> dict[str, torch.Tensor]:
    path = Path(config.weights)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # each reader has its own errors
        raise ConfigError(
            f"[backbone] weights: {path} cannot be read ({str(exc).splitlines()[0]}); "
            "give a .safetensors file, or a .pth file that holds a plain state dict"
        ) from exc
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ConfigError(f"[backbone] weights: {path} does not hold a state dict of tensors")
    return state


def _match_by_order(
    config: BackboneConfig, state: dict[str, torch.Tensor], model: nn.Module
) -> dict[str, torch.Tensor]:
    """Give the file's tensors the model's names, pairing them in order and checking shapes."""
    counters = "num_batches_tracked"
    wanted = {k: v for k, v in model.state_dict().items() if not k.endswith(counters)}
    given = [(k, v) for k, v in state.items() if not k.endswith(counters)]
    matched = {}
    for (name, target), (theirs, value) in zip(wanted.items(), given, strict=False):
        if target.shape != value.shape:
            raise ConfigError(
                f'[backbone] match = "order": {name} has shape {tuple(target.shape)}, the file\'s '
                f"{theirs} has {tuple(value.shape)}; the file belongs to another network"
            )
        matched[name] = value
    if len(matched) < len(wanted):
        raise ConfigError(
            f"[backbone] weights: {config.weights} holds {len(matched)} tensors, "
            f"{config.name} needs {len(wanted)}"
        )
    return matched


def _load(config: BackboneConfig, module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = module.state_dict()
    wanted = {k: v for k, v in own.items() if not k.endswith("num_batches_tracked")}
    for name, target in wanted.items():
        if name not in state:
            raise ConfigError(
                f"[backbone] weights: {config.weights} holds no {name}; if only its key names "
                'differ, set [backbone] match = "order"; if it stops earlier, set cut'
            )
        if state[name].shape != target.shape:
            raise ConfigError(
                f"[backbone] weights: {name} has shape {tuple(state[name].shape)} in "
                f"{config.weights}, {config.name} needs {tuple(target.shape)}"
            )
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(state[name])


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
