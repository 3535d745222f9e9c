"""NVIDIA's client for tests, on both transports: what it is asked with, and its answers as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http,grpc]")
grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[http,grpc]")


def as_dict(client: Any, call: str, *arguments: Any) -> Any:
    """A call's answer as JSON on either transport; gRPC writes 64-bit numbers as text."""
    options = {"as_json": True} if client.kind == "grpc" else {}
    return getattr(client, call)(*arguments, **options)


def inputs(client: Any, images: np.ndarray, domains: Any, binary: bool = True) -> list[Any]:
    kind = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8", "object": "BYTES"}
    image = client.module.InferInput("image", list(images.shape), kind[images.dtype.name])
    options = {"binary_data": binary} if client.kind == "http" else {}
    image.set_data_from_numpy(images, **options)
    if domains is None:
        return [image]
    array = np.array(domains, dtype=object if isinstance(domains[0], str) else np.int64)
    domain = client.module.InferInput(
        "domain", list(array.shape), "BYTES" if array.dtype == object else "INT64"
    )
    domain.set_data_from_numpy(array, **options)
    return [image, domain]
