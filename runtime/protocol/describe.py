"""What a server says of itself and its models: metadata, config, statistics, index.

Plain dicts with the protocol's keys: HTTP sends them as JSON, gRPC fills its messages from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prunion.runtime.batching import Duration, ModelStatistics
from prunion.runtime.graph import GraphForm
from prunion.runtime.protocol.response import VERSION

__all__ = [
    "EXTENSIONS",
    "Described",
    "model_config",
    "model_index",
    "model_metadata",
    "model_statistics",
    "server_metadata",
]

EXTENSIONS = (
    "binary_tensor_data classification model_configuration model_repository "
    "model_repository(unload_dependents) parameters schedule_policy statistics"
).split()
MOST_LISTED = 1000  # domains in a model's metadata


@dataclass(frozen=True)
class Described:
    """One model: the bundle, which takes `domain`, or a single domain, which does not.

    Attributes:
        classes: columns of its logits; -1 where that depends on the domain.
        domains: names by index, "" where nothing answers; of a domain's model its own.
        identity: what tells the bundle from another of its name.
    """

    name: str
    form: GraphForm
    classes: int
    takes_domain: bool
    domains: Sequence[str]
    identity: Mapping[str, str] = field(default_factory=dict)


def server_metadata(version: str) -> dict[str, Any]:
    """The answer to `GET /v2`."""
    return {"name": "prunion", "version": version, "extensions": EXTENSIONS}


def model_metadata(model: Described) -> dict[str, Any]:
    """The answer to `GET /v2/models/NAME`; of many domains only the first are listed."""
    kind = "UINT8" if model.form.image == "uint8" else "FP32"
    inputs = [{"name": "image", "datatype": kind, "shape": [-1, *model.form.image_shape]}]
    if model.takes_domain:
        inputs.append({"name": "domain", "datatype": "INT64", "shape": [-1]})
    return {
        "name": model.name,
        "versions": [VERSION],
        "platform": "prunion_onnx",
        "inputs": inputs,
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, model.classes]}],
        "parameters": {"domains": list(model.domains[:MOST_LISTED]), **model.identity},
    }


def model_config(model: Described, rows: int, max_batch: int, delay: float) -> dict[str, Any]:
    """The answer to `GET /v2/models/NAME/config`: what of Triton's configuration applies."""
    kind = "TYPE_UINT8" if model.form.image == "uint8" else "TYPE_FP32"
    inputs: list[dict[str, Any]] = [
        {"name": "image", "data_type": kind, "dims": list(model.form.image_shape)}
    ]
    if model.takes_domain:
        domain = {
            "name": "domain",
            "data_type": "TYPE_INT64",
            "dims": [1],
            "reshape": {"shape": []},
        }
        inputs.append(domain)
    return {
        "name": model.name,
        "platform": "prunion_onnx",
        "backend": "prunion",
        "max_batch_size": rows,
        "input": inputs,
        "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [model.classes]}],
        "dynamic_batching": {
            "preferred_batch_size": [max_batch],
            "max_queue_delay_microseconds": round(delay * 1e6),
            "priority_levels": 3,
            "default_priority_level": 2,
        },
    }


def model_statistics(named: Iterable[tuple[str, ModelStatistics]]) -> dict[str, Any]:
    """The answer to `GET /v2/models[/NAME]/stats`."""
    return {"model_stats": [_statistics(name, found) for name, found in named]}


def model_index(entries: Iterable[tuple[str, bool, str]]) -> list[dict[str, str]]:
    """The answer to `POST /v2/repository/index`: names, whether they answer, and why not."""
    return [
        {
            "name": name,
            "version": VERSION,
            "state": "READY" if ready else "UNAVAILABLE",
            "reason": reason,
        }
        for name, ready, reason in entries
    ]


def _statistics(name: str, found: ModelStatistics) -> dict[str, Any]:
    nothing = _duration(Duration())
    return {
        "name": name,
        "version": VERSION,
        "last_inference": found.last_inference,
        "inference_count": found.inference_count,
        "execution_count": found.execution_count,
        "inference_stats": {
            "success": _duration(found.success),
            "fail": _duration(found.fail),
            "queue": _duration(found.queue),
            "compute_input": _duration(found.compute_input),
            "compute_infer": _duration(found.compute_infer),
            "compute_output": _duration(found.compute_output),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": nothing,
                "compute_infer": _duration(spent),
                "compute_output": nothing,
            }
            for rows, spent in sorted(found.batches.items())
        ],
    }


def _duration(value: Duration) -> dict[str, int]:
    return {"count": value.count, "ns": value.ns}
