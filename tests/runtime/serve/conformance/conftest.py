"""A server, NVIDIA's client of it, and the model that it serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.model import Model, load
from tests.runtime.serve.running import Running, running


@pytest.fixture(scope="module")
def server(bundle_path: Path) -> Iterator[Running]:
    with running(bundle_path, "--control") as server:
        yield server


@pytest.fixture(scope="module")
def model(bundle_path: Path) -> Iterator[Model]:
    with load(bundle_path, threads=1) as model:
        yield model


@pytest.fixture(params=["http", "grpc"])
def client(request: Any, server: Running) -> Iterator[Any]:
    from tests.runtime.serve.conformance.asking import grpc, http

    module = {"http": http, "grpc": grpc}[request.param]
    port = server.http if request.param == "http" else server.grpc
    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    client.kind, client.module = request.param, module
    yield client
    client.close()
