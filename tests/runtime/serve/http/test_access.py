"""Who may ask for what, and what a stranger, a page or a balancer is told."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.errors import ConfigError
from prunion.runtime.model import Model
from prunion.runtime.model.trials import OFTEN, ROUNDS

pytest.importorskip("onnxruntime")
uvicorn = pytest.importorskip("uvicorn", reason="needs prunion[serve]")
testclient = pytest.importorskip("starlette.testclient", reason="needs prunion[serve] and httpx")
from prunion.runtime.serve.guard import read_keys  # noqa: E402
from tests.runtime.serve.http.asking import INFER, body, client_of  # noqa: E402


@pytest.fixture
def client(model: Model) -> Any:
    return client_of(model)


def test_keys(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"secret").hexdigest()
    file.write_text(f"# who may ask\nshop {digest}\n")
    client = client_of(model, keys=read_keys(file))
    assert client.get("/v2/health/live").status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {digest}"}):
        answer = client.get("/v2/models/toy", headers=headers)
        assert answer.status_code == 401 and "API key" in answer.json()["error"]
    for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}):
        assert client.get("/v2/models/toy", headers=headers).status_code == 200
    for text in ("", "# nobody", "shop secret", f"shop {digest[1:]}"):
        file.write_text(text)
        with pytest.raises(ConfigError):
            read_keys(file)


def test_loading_is_off_unless_asked_for(client: Any) -> None:
    answer = client.post("/v2/repository/models/signs/unload", json={})
    assert answer.status_code == 400 and "--control" in answer.json()["error"]
    assert client.get("/v2/models/signs/ready").status_code == 200


def test_pages_of_other_sites(model: Model) -> None:
    """A page that somebody looks at may ask a server that its browser reaches."""
    unload, signs = "/v2/repository/models/signs/unload", "/v2/models/signs/ready"
    client = client_of(model, control=True)
    for origin in ("https://elsewhere.org", "null", "http://testserver.elsewhere.org"):
        answer = client.post(unload, headers={"origin": origin})
        assert answer.status_code == 403 and "--allow-origin" in answer.json()["error"]
        answer = client.get("/v2", headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers
    assert client.get(signs).status_code == 200
    assert client.post(unload, headers={"origin": "http://testserver"}).status_code == 200
    client = client_of(model, control=True, allow_origins=("https://mine.org",))
    asked = {"origin": "https://mine.org", "access-control-request-method": "POST"}
    answer = client.options(INFER, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://mine.org"
    answer = client.post(INFER, json=body(), headers={"origin": "https://mine.org"})
    assert answer.headers["access-control-allow-origin"] == "https://mine.org"
    assert client.post(unload, headers={"origin": "https://mine.org"}).status_code == 200


def test_errors_of_ours_tell_a_stranger_nothing(client: Any, monkeypatch: Any) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("at /home/somebody, <object at 0x7f>")

    monkeypatch.setattr(client.service, "infer", broken)
    answer = client.post(INFER, json=body())
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "internal error: see the server's log"},
    )


def test_ids_of_requests_come_back(client: Any) -> None:
    assert client.get("/v2", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(client.get("/v2", headers={"x-request-id": "a b"}).headers["x-request-id"]) == 32


def test_a_path_cannot_write_lines_of_the_log(client: Any, caplog: Any) -> None:
    with caplog.at_level("INFO", "prunion.serve.requests"):
        client.get("/v2%0a2026-01-01%20INFO%20all%20is%20well%1b[2J%c2%9b")
    (record,) = (x for x in caplog.records if hasattr(x, "fields"))
    assert record.getMessage().isprintable() and record.fields["path"].isprintable()


def test_balancers_may_ask_with_head(client: Any) -> None:
    for path in ("/v2/health/ready", "/v2/health/live", "/v2", "/v2/models/toy/ready", "/metrics"):
        answer = client.head(path)
        assert answer.status_code == 200 and not answer.content
    answer = client.options("/v2/models/toy/infer")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"


def test_pages(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/v1/domains/{name}:classify" in paths and "/v2/models/{name}/infer" in paths
    page = client.get("/docs")
    assert "https://" not in page.text and ":classify" in page.text
    assert client.get("/v1/domains").json()["domains"] == ["flowers", "signs", "digits"]
    assert client.get("/v1/domains/digits").json()["classes"] == ["zero", "one"]
    assert client.get("/v1/domains/x").status_code == 404
    assert client.post("/v1/domains/signs").status_code == 404


def test_metrics_tell_whether_mixed_batches_are_split(client: Any) -> None:
    client.service.serving.batcher.tune()
    value = body(2)
    for row in (0, 1):  # no session is made for a trial, so there must be some
        client.post(
            INFER, json={"inputs": [body()["inputs"][0], {**body()["inputs"][1], "data": [row]}]}
        )
    value["inputs"][1]["data"] = [0, 1]
    for _ in range(OFTEN + 2 * ROUNDS):
        assert client.post(INFER, json=value).status_code == 200
    text = client.get("/metrics").text
    assert "prunion_trials_total 1" in text
    assert 'prunion_splits{rows="2",domains="2"}' in text
    assert 'prunion_mixed_runs_total{way="split"}' in text
