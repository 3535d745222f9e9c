"""What keeps the tests quick and apart from the machine, without changing what they test."""

from __future__ import annotations

import copy
import functools
import gc
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest

# The network of `tiny_run`, which most runs of the tests train.
TINY = ("torchvision", "resnet18", "layer1")
BEHIND = ("layer2", "layer3", "layer4", "avgpool", "fc")


def pytest_collection_finish() -> None:
    """Collections leave out what imports made: a walk of a loaded torch takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plans measured by tests stay out of the user's cache, and take a tenth of the time."""
    plan = importlib.import_module("prunion.runtime.model.plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNION_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(plan, "SECONDS", 0.01)
        yield


@pytest.fixture(autouse=True, scope="session")
def _operators_read_once() -> Iterator[None]:
    """torch.onnx parses the sources of onnxscript's 500 operators anew for each export."""
    try:
        from torch.onnx._internal.exporter import _registration as registration

        given = registration.onnxscript_apis
    except (ImportError, AttributeError):  # no torch, or another one's insides
        yield
        return
    once = _Instead(given, get_torchlib_ops=functools.cache(given.get_torchlib_ops))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registration, "onnxscript_apis", once)
        yield


class _Instead:
    """A module with a few of its functions replaced."""

    def __init__(self, module: Any, **functions: Any) -> None:
        self._module = module
        vars(self).update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@pytest.fixture(autouse=True, scope="session")
def _tiny_network_traced_once() -> Iterator[None]:
    """Of the network that most runs train, only what is kept is traced, once for each size.

    Three quarters of it lie behind the cut. Random numbers are drawn as ever, so that every run
    gives the bytes that it gives without this.
    """
    if "torchvision" not in sys.modules:  # no test of this process trains
        yield
        return
    import torch
    from torch import fx, nn

    load = importlib.import_module("prunion.trainer.backbone.load")
    make, trace = load.published_net, load.trace
    traced: dict[tuple[int, int], fx.GraphModule] = {}

    def short(config: Any, *, pretrained: bool) -> nn.Module:
        net = make(config, pretrained=pretrained)
        if (config.source, config.name, config.cut) == TINY:
            for name in BEHIND:
                setattr(net, name, nn.Identity())
        return net

    def once(model: nn.Module, height: int, width: int) -> fx.GraphModule:
        if not isinstance(getattr(model, BEHIND[0], None), nn.Identity):
            return trace(model, height, width)
        if (height, width) not in traced:
            traced[height, width] = trace(copy.deepcopy(model), height, width)
        else:
            torch.randn(2, 3, height, width)  # as `trace` does
        module = copy.deepcopy(traced[height, width])
        state = model.state_dict()
        module.load_state_dict({name: state[name] for name in module.state_dict()})
        return module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "published_net", short)
        patch.setattr(load, "trace", once)
        yield


@pytest.fixture(autouse=True, scope="session")
def _networks_exported_once() -> Iterator[None]:
    """torch's exporter is a function of the network: of the very same one it is asked once.

    Dozens of tests begin with the bundle of `tiny_run`'s network. What is tested of torch's
    exporter itself, that it is quiet, asks for `exporting_anew`.
    """
    if "torch" not in sys.modules or importlib.util.find_spec("onnx") is None:
        yield
        return
    import onnx

    build = importlib.import_module("prunion.exporter.graph.build")
    export, made = build._export, {}

    def once(net: Any, example: Any, names: Any, shapes: Any, opset: int) -> onnx.ModelProto:
        key = _digest(net, [(x.shape, x.dtype) for x in example], names, opset)
        if key not in made:
            made[key] = export(net, example, names, shapes, opset).SerializeToString()
        return onnx.load_from_string(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_export", once)
        patch.setattr(build, "_export_anew", export, raising=False)
        yield


@pytest.fixture
def exporting_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's exporter is run by this test, whatever was exported before."""
    build = importlib.import_module("prunion.exporter.graph.build")
    monkeypatch.setattr(build, "_export", build._export_anew)


def _digest(net: Any, *more: object) -> str:
    """Of everything that a sliced network computes with."""
    parts: list[object] = [net.trunk.code, getattr(net, "entries", ()), *more]
    for name, module in net.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, tuple))}
        parts += [name, type(module), plain]
    digest = hashlib.sha256()
    for name, value in [*net.named_parameters(), *net.named_buffers()]:
        parts += [name, value.shape, value.dtype, value.requires_grad]
        digest.update(value.detach().contiguous().numpy().tobytes())
    digest.update(repr(parts).encode())
    return digest.hexdigest()
