"""What is worked out once in a process of tests, although prunion and torch would do it anew.

All of it is a function of what it is given, so that nothing that is tested changes. Every function
here takes `replace`, which is `setattr`, or pytest's that puts back what was there.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["make_tables_once", "remember_exports", "remember_rebuilt", "remember_traces"]

Replace = Callable[[Any, str, Any], None]
# The network of `tiny_run`, which most runs of the tests train.
TINY = ("torchvision", "resnet18", "layer1")
BEHIND = ("layer2", "layer3", "layer4", "avgpool", "fc")


def make_tables_once(replace: Replace) -> None:
    """What torch's exporter needs for all networks alike.

    For each it reads the sources and type hints of onnxscript's 500 operators, walks through every
    operator that torch knows, and makes a table of decompositions from both.
    """
    try:
        import torch
        from torch.export import decomp_utils, exported_program
        from torch.onnx._internal.exporter import _decomp, _registration

        registry, operators = _registration.ONNXRegistry, _registration.onnxscript_apis
        read, make = operators.get_torchlib_ops, registry.from_torchlib
        friendly = _decomp.create_onnx_friendly_decomposition_table
        walk, same = decomp_utils._collect_all_valid_cia_ops, exported_program
        assert same._collect_all_valid_cia_ops is walk
    except (ImportError, AttributeError, AssertionError):  # no torch, or another one's insides
        return

    table = functools.cache(lambda registered: friendly(set(registered)))
    walked = functools.cache(lambda namespaces: frozenset(walk()))

    def valid() -> frozenset[Any]:
        return walked(frozenset(torch.ops._dir))  # libraries that are imported bring more

    def copied(registered: Iterable[Any]) -> dict[Any, Any]:
        return dict(table(frozenset(registered)))  # a program takes entries out of its own

    once = _Instead(operators, get_torchlib_ops=functools.cache(read))
    replace(_registration, "onnxscript_apis", once)
    replace(registry, "from_torchlib", staticmethod(functools.cache(make)))
    replace(_decomp, "create_onnx_friendly_decomposition_table", copied)
    replace(decomp_utils, "_collect_all_valid_cia_ops", valid)
    replace(exported_program, "_collect_all_valid_cia_ops", valid)


class _Instead:
    """A module with a few of its functions replaced."""

    def __init__(self, module: Any, **functions: Any) -> None:
        self._module = module
        vars(self).update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def remember_traces(replace: Replace) -> None:
    """The network that most runs train is drawn once for each seed, and traced once for each size.

    Three quarters of it lie behind the cut and are left out. Random numbers go on as if all were
    drawn, so that every run gives the bytes that it gives without this.
    """
    import torch
    from torch import fx, nn

    load = importlib.import_module("prunion.trainer.backbone.load")
    make, trace = load.published_net, load.trace
    traced: dict[tuple[int, int, str | None], fx.GraphModule] = {}
    drawn: dict[tuple[str, bytes], tuple[nn.Module, torch.Tensor]] = {}

    def short(config: Any, *, pretrained: bool) -> nn.Module:
        if pretrained or (config.source, config.name, config.cut) != TINY:
            return make(config, pretrained=pretrained)
        key = repr(config), torch.get_rng_state().numpy().tobytes()
        if key not in drawn:
            net = make(config, pretrained=False)
            for name in BEHIND:
                setattr(net, name, nn.Identity())
            drawn[key] = net, torch.get_rng_state()
        torch.set_rng_state(drawn[key][1])
        return copy.deepcopy(drawn[key][0])

    def once(model: nn.Module, height: int, width: int, cut: str | None = None) -> fx.GraphModule:
        if not isinstance(getattr(model, BEHIND[0], None), nn.Identity):
            return trace(model, height, width, cut)
        if (height, width, cut) not in traced:
            traced[height, width, cut] = trace(copy.deepcopy(model), height, width, cut)
        else:
            torch.randn(2, 3, height, width)  # as `trace` does
        module = copy.deepcopy(traced[height, width, cut])
        state = model.state_dict()
        module.load_state_dict({name: state[name] for name in module.state_dict()})
        return module

    replace(load, "published_net", short)
    replace(load, "trace", once)


def remember_rebuilt(replace: Replace) -> None:
    """That a stored graph gives the same channels again is looked at once for each graph.

    Every run asks before its first step, and most of the tests' runs ask of the same network.
    Random numbers go on as if it had been rebuilt.
    """
    import torch

    start = importlib.import_module("prunion.trainer.run.start")
    check, drawn = start.check_rebuilt, dict[tuple[str, bytes], torch.Tensor]()

    def once(net: Any, config: Any, size: tuple[int, int]) -> None:
        told = [net.graph, list(net.classes), list(config.keep), size, net.units.table.to_json()]
        random = torch.get_rng_state().numpy().tobytes()
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest(), random
        if key not in drawn:
            check(net, config, size)
            drawn[key] = torch.get_rng_state()
        torch.set_rng_state(drawn[key])

    replace(start, "check_rebuilt", once)


def remember_exports(replace: Replace, shared: Path | None = None) -> None:
    """torch's exporter is asked once for each graph; weights are put into the one that is there.

    Dozens of tests begin with the bundle of `tiny_run`'s network. Of sizes that stay open in a
    graph, how many domains and classes, it knows nothing, nor of an opset that is restated later.
    `shared` is a folder where processes of one run of the tests find each other's.
    """
    import onnx
    from onnx import numpy_helper

    build = importlib.import_module("prunion.exporter.graph.build")
    export, lowest = build._export, build.EXPORTED_FROM
    made: dict[str, tuple[bytes, frozenset[str]]] = {}

    def once(net: Any, example: Any, names: Any, shapes: Any, opset: int) -> onnx.ModelProto:
        given: list[object] = [max(opset, lowest)]
        for x, open_sizes in zip(example, shapes, strict=True):
            given += [[-1 if i in open_sizes else n for i, n in enumerate(x.shape)], x.dtype]
        values = {n.removeprefix("trunk."): x.detach().numpy() for n, x in net.state_dict().items()}
        whole, shape = (_digest(net, w, names, given) for w in (True, False))
        if found := known(whole) or known(shape):
            graph, weights = found
            model = onnx.load_from_string(graph)
            for x in model.graph.initializer:
                if x.name in weights:
                    x.CopyFrom(numpy_helper.from_array(values[x.name], x.name))
            return model
        model = export(net, example, names, shapes, opset)
        if _holds_as_they_are(model, values, {name for name, _ in net.trunk.named_parameters()}):
            keep(shape, model, frozenset(values))
        else:
            keep(whole, model, frozenset())
        return model

    def known(key: str) -> tuple[bytes, frozenset[str]] | None:
        if key not in made and shared is not None and (shared / f"{key}.json").is_file():
            weights = json.loads((shared / f"{key}.json").read_text("utf-8"))
            made[key] = (shared / f"{key}.onnx").read_bytes(), frozenset(weights)
        return made.get(key)

    def keep(key: str, model: onnx.ModelProto, weights: frozenset[str]) -> None:
        made[key] = model.SerializeToString(), weights
        if shared is not None:
            told = json.dumps(sorted(weights)).encode()
            for kind, data in (("onnx", made[key][0]), ("json", told)):  # in this order
                own = shared / f"{key}.{os.getpid()}"
                own.write_bytes(data)
                own.replace(shared / f"{key}.{kind}")

    replace(build, "_export", once)
    replace(build, "_export_anew", export)


def _holds_as_they_are(model: Any, values: dict[str, Any], weights: set[str]) -> bool:
    """Whether every number of a graph is the network's own, or whole: none was computed."""
    from onnx import numpy_helper

    held = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    told = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    others = [numpy_helper.to_array(x) for x in told]
    others += [value for name, value in held.items() if name not in values]
    return (
        weights <= held.keys()
        and all(value.size > 1 for value in values.values())
        and all(x.dtype.kind in "iub" or x.size == 1 for x in others)
        and all(held[n].tobytes() == values[n].tobytes() for n in held.keys() & values.keys())
    )


def _digest(net: Any, weights: bool, names: Any, given: object) -> str:
    """Of everything that makes a sliced network's graph; with `weights`, of what it computes.

    Tensors in `names` are inputs, whose sizes `given` has.
    """
    sizes = [[x.size for x in getattr(net, n, ())] for n in ("entries", "adapter_entries")]
    parts: list[object] = [net.trunk.code, sizes, names, given]
    for name, module in net.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, tuple))}
        plain.pop("entries", None), plain.pop("adapter_entries", None)
        parts += [name, type(module), plain]
    digest = hashlib.sha256()
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        parts += [name, name in names or value.shape, value.dtype, value.requires_grad]
        if weights:
            digest.update(value.detach().contiguous().numpy().tobytes())
    digest.update(repr(parts).encode())
    return digest.hexdigest()
