"""Pretrained backbones by name, traced, without what stands behind their features."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from prunion.runtime.errors import ConfigError, UnsupportedGraphError
from prunion.trainer.backbone.copying import own_copy
from prunion.trainer.backbone.names import keep_names_apart, op_name
from prunion.trainer.backbone.paper_resnets import PAPER_NETS
from prunion.trainer.backbone.published import published_net
from prunion.trainer.backbone.python_net import make_python_net
from prunion.trainer.backbone.tracing import NORM_MOMENTUM, trace
from prunion.trainer.backbone.weights import (
    load_weights,
    match_by_order,
    read_weights,
)
from prunion.trainer.config import BackboneConfig

__all__ = ["PIXEL_NORM", "add_pixel_norm", "drop_classifier", "load_backbone"]

PIXEL_NORM = "pixel_norm"  # what normalises each domain by its own mean and deviation

PASSES_THROUGH = frozenset(
    ["flatten", "view", "reshape", "squeeze", "relu", "mean", "adaptive_avg_pool2d"]
)
PROBABILITIES = frozenset(["softmax", "log_softmax"])

log = logging.getLogger(__name__)


def load_backbone(
    config: BackboneConfig,
    height: int,
    width: int,
    *,
    weights: bool = True,
    model: nn.Module | None = None,
) -> fx.GraphModule:
    """The trunk as a traced graph from `[N, 3, H, W]` to features `[N, F]`.

    The classifier is taken off; with `config.cut`, everything behind that module too, and its
    output is average-pooled. With `weights=False` the parameters are left as the library draws
    them, for a caller that loads its own. `model` stands for what `config` names, and is left as
    it is.

    Raises:
        ConfigError: unknown name, or weights that do not fit.
        UnsupportedGraphError: the network cannot be traced, or does not end in features.
    """
    if model is not None:
        model = own_copy(model, height, width)
    elif config.source == "python":
        model = own_copy(make_python_net(config), height, width)
    else:
        model = _create(config, pretrained=weights and config.weights == "default")
    state = read_weights(config.weights) if weights and config.weights_are_a_file else None
    if state is not None and config.match == "order":
        state = match_by_order(config, state, model.state_dict())
    stored = model.state_dict().keys()  # a constant of the graph is in nobody's file
    module = trace(model, height, width, config.cut)
    if config.cut is not None:
        _pool_cut(module.graph)
    elif config.source == "torchvision":
        drop_classifier(module.graph)
    elif config.source == "python":
        _end_in_features(module.graph)
    module.graph.eliminate_dead_code()
    module = fx.GraphModule(module, module.graph)  # takes along only the parameters still used
    if state is not None:
        load_weights(config, module, state, stored)
    if weights:
        _check_finite(config, module)
    _let_learn(module)
    return keep_names_apart(module)


def _let_learn(module: nn.Module) -> None:
    """Where nothing learns, its owner froze a whole network, as one does before handing it on.

    A trunk without a weight of its own that learns could not be tuned; some that are frozen are
    meant so, and stay as they are.
    """
    weights = [x for x in module.parameters() if x.is_floating_point()]
    if weights and not any(x.requires_grad for x in weights):
        log.warning(
            "every parameter of the network has requires_grad=False, which is taken for none: "
            'they learn where the trunk does; for one that stays as it is, set trunk = "frozen" '
            "([train])"
        )
        for weight in weights:
            weight.requires_grad_()


def _check_finite(config: BackboneConfig, module: nn.Module) -> None:
    """Or the first loss would be NaN, and its message about learning rates."""
    statistics = [x for x in module.named_buffers() if ".running_" in f".{x[0]}"]
    for name, value in (*module.named_parameters(), *statistics):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ConfigError(
                f"[backbone] {config.name} has weights that are not finite, {name} among them: "
                "give an earlier checkpoint of it"
            )


def _create(config: BackboneConfig, *, pretrained: bool) -> nn.Module:
    if config.source == "prunion":
        return _create_own(config, pretrained=pretrained)
    return published_net(config, pretrained=pretrained)


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
    return PAPER_NETS[config.name]()


def add_pixel_norm(module: fx.GraphModule) -> None:
    """Put a BatchNorm that changes nothing right behind the image, in place.

    Every domain's own statistics in it are that domain's mean and deviation.
    """
    image = next(n for n in module.graph.nodes if n.op == "placeholder")
    norm = nn.BatchNorm2d(int(image.meta["val"].shape[1]))
    with torch.no_grad():
        norm.running_var.sub_(norm.eps)  # type: ignore[union-attr]
    module.add_module(PIXEL_NORM, norm)
    readers = list(image.users)
    with module.graph.inserting_after(image):
        tensors: list[fx.Node] = []
        for leaf in ("running_var", "running_mean", "bias", "weight"):  # each behind the image
            tensors.insert(0, module.graph.get_attr(f"{PIXEL_NORM}.{leaf}"))
            tensors[0].meta = {"val": getattr(norm, leaf).detach()}
    with module.graph.inserting_after(tensors[-1]):
        how = (False, NORM_MOMENTUM, norm.eps, True)  # training, momentum, eps, cudnn_enabled
        new = module.graph.call_function(torch.ops.aten.batch_norm.default, (image, *tensors, *how))
    new.meta = {"val": image.meta["val"]}
    for reader in readers:
        reader.replace_input_with(image, new)
    module.recompile()


def drop_classifier(graph: fx.Graph) -> None:
    """Make the input of the last linear layer (or 1x1 convolution) the output."""
    output = graph.output_node()
    node = _before(output.args[0])[-1]
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


def _pool_cut(graph: fx.Graph) -> None:
    output = graph.output_node()
    end = output.args[0]
    assert isinstance(end, fx.Node)
    output.args = (_pooled(graph, end, output),)


def _before(end: Any) -> list[fx.Node]:
    """From the end of a network back to what might be its classifier, which comes last."""
    assert isinstance(end, fx.Node)
    nodes = [end]
    while op_name(nodes[-1]) in PASSES_THROUGH | PROBABILITIES:
        source = nodes[-1].args[0]
        assert isinstance(source, fx.Node)
        nodes.append(source)
    return nodes


def _end_in_features(graph: fx.Graph) -> None:
    """Take a user's own network's classifier off; what it gives else is features, as it says."""
    output = graph.output_node()
    end = output.args[0]
    assert isinstance(end, fx.Node)
    *behind, layer = _before(end)
    if _is_classifier(layer, behind):
        weight, features = layer.args[1], layer.args[0]
        kind = "linear layer" if op_name(layer) == "linear" else "1x1 convolution"
        taken = weight.target if isinstance(weight, fx.Node) else layer.name
        log.info("the network ends in a %s, %s: it is taken off as the classifier", kind, taken)
        assert isinstance(features, fx.Node)
        output.args = (_pooled(graph, features, output),)
    else:
        output.args = (_pooled(graph, end, output),)
        log.info(
            "%d features are taken from %s, the end of the network; if they are a classifier's "
            "answers, end it before that ([backbone] cut)",
            int(end.meta["val"].shape[1]),
            end.name,
        )
    graph.eliminate_dead_code()


def _is_classifier(layer: fx.Node, behind: Sequence[fx.Node]) -> bool:
    """Whether a layer's outputs are classes; `behind` are the nodes from the end to before it.

    A linear layer in front of a ReLU makes features, and so does a 1x1 convolution: of places that
    are not averaged, or in front of a ReLU that is not averaged in its turn.
    """
    names = {op_name(node) for node in behind}
    if op_name(layer) not in ("linear", "conv2d"):
        return False
    source, weight = layer.args[:2]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    shape = source.meta["val"].shape
    if op_name(layer) == "linear":
        return not behind or ("relu" not in names and len(shape) == 2)
    averaged = bool(names & {"mean", "adaptive_avg_pool2d"})
    averaged = averaged or (tuple(shape[2:]) == (1, 1) and "relu" not in names)
    flat = bool(behind) and behind[0].meta["val"].dim() == 2
    return flat and averaged and tuple(weight.meta["val"].shape[1:]) == (shape[1], 1, 1)


def _pooled(graph: fx.Graph, node: fx.Node, output: fx.Node) -> fx.Node:
    """Features `[N, F]` of a map `[N, C, H, W]`, or of features that are ones already."""
    value = node.meta["val"]
    if value.dim() == 2:
        return node
    if value.dim() != 4:
        raise ConfigError(
            f"[backbone] cut: {node.name} gives {value.dim()} axes, neither a map [N, C, H, W] nor "
            "features [N, F]: cut at a convolutional module"
        )
    with graph.inserting_before(output):
        pool = graph.call_function(torch.ops.aten.adaptive_avg_pool2d.default, (node, [1, 1]))
        flat = graph.call_function(torch.ops.aten.flatten.using_ints, (pool, 1))
    pool.meta["val"] = torch.ops.aten.adaptive_avg_pool2d.default(value, [1, 1])
    flat.meta["val"] = pool.meta["val"].flatten(1)
    return flat
