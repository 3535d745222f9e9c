"""The server on a local Ray: replicas, autoscaling, the same clients. Needs prunion[ray]."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prunion.runtime.errors import ConfigError

# A busy machine takes longer to start a process than Ray waits, and starts it again, and again.
for name in ("PROXY_READY_CHECK_TIMEOUT_S", "PROXY_HEALTH_CHECK_TIMEOUT_S"):
    os.environ.setdefault(f"RAY_SERVE_{name}", "60")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

pytest.importorskip("onnxruntime")
ray = pytest.importorskip("ray", reason="needs prunion[ray]")
httpx = pytest.importorskip("httpx")

from prunion.runtime.serve import LoadOptions, ServeOptions  # noqa: E402
from prunion.runtime.serve.ray import application, replicated  # noqa: E402

pytestmark = pytest.mark.slow
ONE = LoadOptions(backend="cpu", threads=1)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A Ray of this machine alone, and where it answers."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        number = found.getsockname()[1]
    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    for again in (True, True, False):
        try:
            ray.serve.start(http_options={"host": "127.0.0.1", "port": number})
            break
        except TimeoutError:  # after a minute that is fixed; it goes on starting meanwhile
            if not again:
                raise
    yield number
    ray.serve.shutdown()
    ray.shutdown()


@pytest.fixture
def run(port: int) -> Iterator[Any]:
    def started(made: Any, prefix: str = "/") -> str:
        ray.serve.run(made, name="toy", route_prefix=prefix)
        return f"http://127.0.0.1:{port}{prefix.rstrip('/')}"

    yield started
    ray.serve.delete("toy")


def replicas() -> int:
    (found,) = ray.serve.status().applications["toy"].deployments.values()
    return int(found.replica_states.get("RUNNING", 0))


def test_the_same_client_gets_the_same_answers(
    run: Any, port: int, bundle_path: Path, toy: ModuleType, batch: np.ndarray
) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    url = run(application({"bundle": str(bundle_path), "replicas": "2", "threads": "1"}))
    assert replicas() == 2
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    assert client.is_server_ready()
    assert client.get_model_metadata("toy")["inputs"][0]["shape"] == [-1, 3, 12, 10]
    rows = np.array([0, 2, 1, 1, 0, 2])
    inputs = [
        triton.InferInput("image", batch.shape, "FP32"),
        triton.InferInput("domain", rows.shape, "INT64"),
    ]
    inputs[0].set_data_from_numpy(batch)
    inputs[1].set_data_from_numpy(rows)
    expected = toy.reference(toy.make_tables(), batch, rows)
    for _ in range(8):  # of both replicas
        found = client.infer("toy", inputs).as_numpy("logits")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(triton.InferenceServerException, match="no model"):
        client.get_model_metadata("other")
    assert "page.js" in httpx.get(url).text
    assert httpx.get(f"{url}/v1/domains").json()["domains"] == ["flowers", "signs", "digits"]


def post(url: str, batch: np.ndarray, count: int) -> None:
    image = {"name": "image", "datatype": "FP32", "shape": list(batch.shape)}
    domain = {"name": "domain", "datatype": "INT64", "shape": [len(batch)]}
    image["data"], domain["data"] = batch.ravel().tolist(), [0, 1, 2, 0, 1, 2][: len(batch)]
    with httpx.Client(timeout=60) as client:
        for _ in range(count):
            answer = client.post(f"{url}/v2/models/toy/infer", json={"inputs": [image, domain]})
            assert answer.status_code == 200, answer.text


def test_requests_of_several_clients_share_batches(
    run: Any, bundle_path: Path, batch: np.ndarray
) -> None:
    options = ServeOptions(load=ONE, delay=0.05)  # so that a loaded machine has time to send them
    url = run(replicated(bundle_path, options), "/vision")
    threads = [threading.Thread(target=post, args=(url, batch[:3], 20)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = httpx.get(f"{url}/v1/activity").json()
    assert found["images"] == 3 * 20 * 8
    assert found["images"] / found["runs"] > 4, "of one request there are 3"
    assert httpx.get(f"{url}/v2/health/ready").status_code == 200
    assert httpx.get(f"{url}/page.js").status_code == 200


def test_replicas_come_and_go_with_the_load(run: Any, bundle_path: Path, batch: np.ndarray) -> None:
    options = ServeOptions(load=ONE, max_batch=1)  # so that two requests at a time are many
    made = replicated(bundle_path, options, replicas=(1, 2), cpus=0.5)
    url = run(made)
    assert replicas() == 1
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            post(url, batch, 5)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 120
    while replicas() < 2 and time.monotonic() < deadline:
        time.sleep(1)
    found = replicas()
    done.set()
    for thread in threads:
        thread.join()
    assert found == 2


def test_keys_are_asked_for(run: Any, bundle_path: Path, tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "keys").write_text(f"shop {hashlib.sha256(b'secret').hexdigest()}\n")
    url = run(replicated(bundle_path, ServeOptions(load=ONE, api_keys=tmp_path / "keys")), "/a/b")
    assert httpx.get(f"{url}/v1/domains").status_code == 401
    assert httpx.get(f"{url}/v2/health/ready").status_code == 200
    assert httpx.get(f"{url}/").status_code == 200, "the page asks for the key itself"
    head = {"Authorization": "Bearer secret"}
    assert httpx.get(f"{url}/v1/domains", headers=head).status_code == 200


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "bundle"),
        ({"bundle": "x", "port": "1"}, "'port'"),
        ({"bundle": "x", "replicas": "many"}, "1..4"),
        ({"bundle": "x", "replicas": "3..2"}, "3..2"),
        ({"bundle": "x", "threads": "two"}, "number"),
    ],
)
def test_wrong_arguments_are_told(args: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        application(args)


def test_what_ray_decides_is_refused(bundle_path: Path) -> None:
    with pytest.raises(ConfigError, match="grpc_port, control"):
        replicated(bundle_path, ServeOptions(grpc_port=8001, control=True))
