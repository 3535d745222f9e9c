"""What is the server's own fault is no client's: its status, its text, and who is not ready."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prunion.runtime.errors import BackendError, BundleError, EngineError
from prunion.runtime.model import load

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
from prunion.runtime.serve.guard import refusal_of
from tests.runtime.serve.http.asking import body, client_of


def ask(client: Any, name: str) -> Any:
    return client.post(f"/v2/models/{name}/infer", json={"inputs": body()["inputs"][:1]})


def ask_bundle(client: Any, *domains: int) -> int:
    """The status of a request to the bundle's own model, a row for each domain."""
    asked = body(len(domains))
    asked["inputs"][1]["data"] = list(domains)
    return int(client.post("/v2/models/toy/infer", json=asked).status_code)


def unready(client: Any) -> set[str]:
    states = client.post("/v2/repository/index").json()
    return {x["name"] for x in states if x["state"] != "READY"}


@pytest.fixture
def own_weights(tmp_path: Path, toy: ModuleType) -> Path:
    """A bundle of which `signs` has its own weights, so that each domain has its own session."""
    own = {"signs": {"value:conv.weight": toy.make_tables().weight * np.float32(2)}}
    return Path(toy.make_bundle(tmp_path, own=own, shared={}))


def test_who_fails_is_noted_by_the_domains_that_were_asked(own_weights: Path) -> None:
    """Asked under the bundle's name, a domain made it unready, and the next answer ready again."""
    graph = own_weights / "model.onnx"
    whole = graph.read_bytes()
    with load(own_weights, "cpu", threads=1) as model:
        client = client_of(model)
        names = [x.name for x in model.snapshot.domains]
        signs, flowers, digits = map(names.index, ("signs", "flowers", "digits"))
        assert ask_bundle(client, flowers) == 200
        graph.write_bytes(whole[:100] + b"x" * 50 + whole[150:])
        assert ask_bundle(client, signs, flowers) == 503
        assert unready(client) == {"toy"}, "nobody knows yet whose fault it was"
        assert ask_bundle(client, flowers) == 200
        assert unready(client) == {"toy"}, "signs has not answered"
        for _ in range(2):
            assert ask_bundle(client, signs) == 503
            assert unready(client) == {"signs"}
            assert ask_bundle(client, flowers) == 200
            assert ask_bundle(client, signs, flowers) == 503
            assert unready(client) == {"signs"}
        assert ask_bundle(client, digits) == 503
        assert unready(client) == {"signs", "digits"}
        graph.write_bytes(whole)
        assert ask_bundle(client, signs, digits) == 200
        assert not unready(client)
        client.service.close()


def test_a_batch_that_fails_where_each_domain_answers_alone_does_not_flip(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next answer of each made the bundle ready again, and the next batch unready."""

    def refuse(*_: object) -> None:
        raise BundleError("the mixed session fails")

    with load(own_bundle, "cpu", threads=1) as model:
        client = client_of(model)
        assert not unready(client)
        with monkeypatch.context() as patched:
            patched.setattr(model, "_mixed", refuse)
            patched.setattr(type(model.tune()), "splits", lambda *_: False)
            states = []
            for _ in range(3):
                assert ask_bundle(client, 0, 1) == 503
                assert [ask_bundle(client, place) for place in range(2)] == [200] * 2
                states.append(unready(client))
        assert states == [set(), {"toy"}, {"toy"}]
        assert caplog.text.count("toy cannot answer") == 2
        assert ask_bundle(client, 0, 1) == 200
        assert ask_bundle(client, 0) == 200
        assert not unready(client)
        with monkeypatch.context() as patched:
            patched.setattr(model, "_mixed", refuse)
            patched.setattr(type(model.tune()), "splits", lambda *_: False)
            assert ask_bundle(client, 0, 1) == 503
        assert [ask_bundle(client, place) for place in range(2)] == [200] * 2
        assert not unready(client), "batches have answered since: one that fails is one, as before"
        client.service.close()


def test_a_bundle_whose_domains_all_fail_is_not_ready(own_weights: Path) -> None:
    graph = own_weights / "model.onnx"
    with load(own_weights, "cpu", threads=1) as model:
        client = client_of(model)
        graph.write_bytes(graph.read_bytes()[:100])
        assert [ask_bundle(client, place) for place in range(3)] == [503] * 3
        assert "toy" in unready(client)
        client.service.close()


def test_a_bundle_that_was_written_over_is_no_clients_fault(
    own_weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each domain's session is made when it is first asked for, from a file that was damaged."""
    graph = own_weights / "model.onnx"
    whole = graph.read_bytes()
    with load(own_weights, "cpu", threads=1) as model:
        client = client_of(model)
        assert ask(client, "flowers").status_code == 200
        graph.write_bytes(whole[:100] + b"x" * 50 + whole[150:])
        for _ in range(2):
            told = ask(client, "signs")
            assert told.status_code == 503 and str(tmp_path) not in told.text
        assert caplog.text.count("signs cannot answer: ") == 1 and str(graph) in caplog.text
        states = {x["name"]: x["state"] for x in client.post("/v2/repository/index").json()}
        assert states == dict.fromkeys(("toy", "flowers", "digits"), "READY") | {
            "signs": "UNAVAILABLE"
        }
        assert client.get("/v2/models/signs/ready").status_code == 503
        assert client.get("/v2/models/flowers/ready").status_code == 200
        assert ask(client, "flowers").status_code == 200, "its session is there"
        graph.write_bytes(whole)
        assert ask(client, "signs").status_code == 200
        assert client.get("/v2/models/signs/ready").status_code == 200
        client.service.close()


def test_a_bundle_that_is_gone_is_told_without_its_path(
    own_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with load(own_bundle, "cpu", threads=1) as model:
        client = client_of(model, control=True)
        shutil.rmtree(own_bundle)
        told = client.post("/v2/repository/models/toy/load")
        assert told.status_code == 503 and str(own_bundle) not in told.text
        assert f"{own_bundle} does not exist" in caplog.text
        assert client.get("/v2/models/toy/ready").status_code == 200, "the former one goes on"
        assert ask(client, "signs").status_code == 200
        client.service.close()


def test_a_damaged_pack_that_is_loaded_is_told_with_why(own_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "bad.safetensors").write_bytes(b"half a pack")
    with load(own_bundle, "cpu", threads=1) as model:
        client = client_of(model, control=True, folders=(folder,))
        told = client.post("/v2/repository/models/bad/load")
        assert told.status_code == 503 and "bad.safetensors is no readable" in told.json()["error"]
        assert str(tmp_path) not in told.text
        client.service.close()


def test_both_transports_say_the_same() -> None:
    for kind in (BackendError, BundleError, EngineError):
        refusal = refusal_of(kind("/srv/secret/model.onnx is damaged"))
        assert (refusal.status, refusal.code) == (503, "UNAVAILABLE")
        assert "secret" not in refusal.text
