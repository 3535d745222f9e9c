"""The pages about serving: every line of curl and Python on it runs, and their options exist."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runtime.serve.running import Running, running

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
pytest.importorskip("grpc", reason="needs prunion[serve]")

DOCS = Path(__file__).parents[4] / "docs"
PAGE = "".join(
    path.read_text("utf-8")
    for path in (DOCS / "serving.md", *sorted((DOCS / "serving").glob("*.md")))
)
DEPLOY = DOCS / "deploy"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(bundle_path: Path) -> Iterator[Running]:
    with running(bundle_path, "--control") as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page's lines send."""
    folder = tmp_path_factory.mktemp("page")
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    (folder / "photo.png").write_bytes(stream.getvalue())
    text = blocks("json")[0].replace("…", base64.b64encode(stream.getvalue()).decode())
    (folder / "request.json").write_text(text)
    (folder / "request.json.gz").write_bytes(gzip.compress(text.encode()))
    image = {"name": "image", "shape": [1, 3, 12, 10], "datatype": "FP32"}
    domain = {"name": "domain", "shape": [1], "datatype": "INT64"}
    tensors = [np.zeros((1, 3, 12, 10), np.float32), np.array([1])]
    for entry, array in zip((image, domain), tensors, strict=True):
        entry["parameters"] = {"binary_data_size": array.nbytes}
    head = json.dumps({"inputs": [image, domain]}, separators=(",", ":")).encode()
    (folder / "request.bin").write_bytes(head + b"".join(x.tobytes() for x in tensors))
    (folder / "image.raw").write_bytes(tensors[0].tobytes())
    assert f"Inference-Header-Content-Length: {len(head)}" in PAGE
    return folder


def curls() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


def test_every_line_of_curl_runs(server: Running, folder: Path) -> None:
    assert len(curls()) > 20
    for line in curls():
        own = line.replace("localhost:8000", f"127.0.0.1:{server.http}")
        done = subprocess.run(
            own.replace("curl ", "curl -sS --fail-with-body ", 1),
            shell=True,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_every_endpoint_has_a_line(server: Running) -> None:
    from prunion.runtime.protocol import openapi_document

    asked = " ".join(curls())
    for path in openapi_document(256, "signs")["paths"]:
        pattern = re.escape(path).replace(r"\{name\}", r"[a-z]+")
        assert re.search(rf"localhost:8000{pattern}(?![\w/])", asked), path


def test_the_python_runs(server: Running, folder: Path) -> None:
    pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[http,grpc]")
    (text,) = blocks("python")
    for module, old, port in (("grpc", "8001", server.grpc), ("http", "8001", server.http)):
        own = text.replace("tritonclient.grpc", f"tritonclient.{module}")
        own = own.replace(f"localhost:{old}", f"127.0.0.1:{port}")
        done = subprocess.run(
            [sys.executable, "-c", own], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(":") >= 6, done.stdout


def test_every_option_exists() -> None:
    from prunion.benchmarks.serving.__main__ import main as benchmark
    from prunion.runtime.cli import cli

    command = cli.get_command(None, "serve")  # type: ignore[arg-type]
    assert command is not None
    params = [*command.params, *benchmark.params]
    known = {name for x in params for name in (*x.opts, *x.secondary_opts)}
    docker = "platform build-arg load push no-deps read-only tmpfs cap-drop security-opt".split()
    foreign = {"--data-binary", "--no-cache-dir", *(f"--{name}" for name in docker)}
    assert set(re.findall(r"--[a-z][\w-]*", PAGE)) - foreign <= known
    unit = (DEPLOY / "prunion-serve.service").read_text("utf-8")
    image = (DEPLOY / "Dockerfile").read_text("utf-8")
    for line in [
        *re.findall(r"^ExecStart=(.*)", unit, re.M),
        *re.findall(r"^CMD (.*)", image, re.M),
    ]:
        assert set(re.findall(r"--[a-z][\w-]*", line)) <= known, line


def test_the_unit_and_the_image_give_the_server_no_more_than_it_needs() -> None:
    unit = (DEPLOY / "prunion-serve.service").read_text("utf-8")
    values = dict(re.findall(r"^(\w+)=(.*)$", unit, re.M))
    assert values["ProtectSystem"] == "strict" and values["CapabilityBoundingSet"] == ""
    for name in ("DynamicUser", "NoNewPrivileges", "ProtectHome", "PrivateTmp", "PrivateDevices"):
        assert values[name] == "yes"
    seconds = re.findall(r"--(?:ready|drain)-seconds (\d+)", values["ExecStart"])
    assert sum(map(int, seconds)) < int(values["TimeoutStopSec"])
    image = (DEPLOY / "Dockerfile").read_text("utf-8")
    (user,) = re.findall(r"^USER (\d+):\d+$", image, re.M)
    assert int(user) > 0
    assert "/v2/health/live" in image and "amd64,linux/arm64" in image
