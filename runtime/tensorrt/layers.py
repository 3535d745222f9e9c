"""In which precision the convolutions of a network are asked for, and those of an engine run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prunion.runtime.base import Precision, arithmetic_of, listed
from prunion.runtime.errors import EngineError

if TYPE_CHECKING:
    import tensorrt

__all__ = [
    "EngineLayer",
    "engine_layers",
    "layers_note",
    "network_precisions",
    "parse_layers",
    "wrong_layers",
]

# The inspector's words for a tensor's type, the first that occurs in its format counts.
WORDS = {"int8": "int8", "bf16": "bf16", "bfloat": "bf16", "fp16": "fp16", "half": "fp16"}
WORDS |= {"fp32": "fp32", "float": "fp32"}


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine; `precision` is the type of what it reads, "" if unknown."""

    name: str
    kind: str
    precision: str


def network_precisions(trt: ModuleType, network: tensorrt.INetworkDefinition) -> dict[str, int]:
    """How many convolutions the parsed network asks for in each precision.

    Networks are strongly typed, so the types are those of the graph. A convolution whose image is
    dequantised right before it is `int8`.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    names = {trt.float32: "fp32", trt.float16: "fp16"}
    found: Counter[str] = Counter()
    for layer in layers:
        if layer.type != trt.LayerType.CONVOLUTION:
            continue
        tensor = layer.get_input(0)
        maker = makers.get(tensor.name)
        if maker is not None and maker.type == trt.LayerType.DEQUANTIZE:
            found["int8"] += 1
        else:
            found[names.get(tensor.dtype, str(tensor.dtype))] += 1
    return dict(found)


def engine_layers(trt: ModuleType, engine: tensorrt.ICudaEngine) -> list[EngineLayer]:
    """Every layer of an engine, by TensorRT's inspector. It needs the engine's GPU."""
    inspector = engine.create_engine_inspector()
    return parse_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def parse_layers(text: str) -> list[EngineLayer]:
    """The inspector's JSON. Raises EngineError if it is none."""
    try:
        return [_layer(entry) for entry in json.loads(text)["Layers"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise EngineError("the engine inspector gave no list of layers: update TensorRT") from None


def wrong_layers(layers: Sequence[EngineLayer], asked: Precision) -> list[EngineLayer]:
    """Convolutions that read another type than the trunk of the variant `asked` for computes in.

    Those whose type the inspector does not tell are not counted.
    """
    return [x for x in _told(layers) if x.precision != arithmetic_of(asked)]


def layers_note(layers: Sequence[EngineLayer], asked: Precision) -> str:
    """One line on whether an engine's convolutions run in the precision `asked` for."""
    known, wrong, wanted = _told(layers), wrong_layers(layers, asked), arithmetic_of(asked)
    if not known:
        return "the inspector does not tell in what its convolutions run"
    if not wrong:
        return f"all {len(known)} convolutions run in {wanted}"
    names = listed([f"{x.name} ({x.precision})" for x in wrong], 3)
    return f"{len(wrong)} of {len(known)} convolutions do NOT run in {wanted}: {names}"


def _told(layers: Sequence[EngineLayer]) -> list[EngineLayer]:
    """The convolutions whose type the inspector tells."""
    return [x for x in layers if "conv" in x.kind.lower() and x.precision]


def _layer(entry: Any) -> EngineLayer:
    if isinstance(entry, str):  # names alone: built without detailed profiling
        return EngineLayer(entry, "", "")
    inputs = entry.get("Inputs") or [{}]
    kind = str(entry.get("ParameterType") or entry.get("LayerType", ""))
    return EngineLayer(str(entry.get("Name", "")), kind, _type(inputs[0]))


def _type(tensor: Mapping[str, Any]) -> str:
    text = str(tensor.get("Format/Datatype") or tensor.get("Datatype") or "").lower()
    return next((name for word, name in WORDS.items() if word in text), "")
