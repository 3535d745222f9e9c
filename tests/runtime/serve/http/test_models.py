"""The models of a server over HTTP: what indices and names mean when they come, go, or clash."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter_ns as now
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.base import read_json, write_json
from prunion.runtime.bundle import write_pack
from prunion.runtime.errors import BundleError, InputError, OverloadError
from prunion.runtime.model import Model, load

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
from prunion.runtime.protocol import http_request
from prunion.runtime.serve import ServeOptions
from prunion.runtime.serve.models.service import Service
from tests.runtime.serve.http.asking import INFER, body, client_of


@pytest.fixture
def namesake(own_bundle: Path) -> Iterator[Model]:
    """A bundle that is named like one of its domains."""
    file = own_bundle / "manifest.json"
    write_json(file, read_json(file) | {"name": "flowers"})
    with load(own_bundle, backend="cpu", threads=1) as model:
        yield model


@pytest.fixture
def png() -> bytes:
    stream, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def control(client: Any, name: str, what: str) -> None:
    answer = client.post(f"/v2/repository/models/{name}/{what}")
    assert answer.status_code == 200, answer.text


def marked(folder: Path, toy: ModuleType, name: str, mark: float) -> Path:
    """A pack of signs whose logits are all of `mark`, about."""
    folder.mkdir(exist_ok=True)
    own = toy._pack(toy.make_tables(), 1, name, toy.CLASSES["signs"])
    write_pack(folder / f"{name}.safetensors", replace(own, head_bias=np.full(5, mark, np.float32)))
    return folder / f"{name}.safetensors"


def first(client: Any, domain: int | str) -> float | None:
    """The first logit of a domain; None where there is none."""
    request = body()
    kind = "INT64" if isinstance(domain, int) else "BYTES"
    request["inputs"][1] |= {"data": [domain], "datatype": kind}
    answer = client.post(INFER, json=request)
    assert answer.status_code in (200, 404), answer.text
    return answer.json()["outputs"][0]["data"][0] if answer.status_code == 200 else None


def test_an_index_answers_for_one_domain_or_for_none(model: Model) -> None:
    client = client_of(model, control=True)
    before = first(client, 1)
    assert before is not None
    control(client, "signs", "unload")
    assert first(client, 1) is None
    meta = client.get("/v2/models/toy").json()
    assert meta["parameters"]["domains"] == ["flowers", "", "digits"]
    control(client, "signs", "load")
    assert first(client, 1) == before
    assert client.get("/v2/models/toy").json()["parameters"]["domains"][1] == "signs"


def test_a_bundle_that_is_replaced_keeps_what_clients_did(
    model: Model, toy: ModuleType, tmp_path: Path
) -> None:
    marked(tmp_path / "allowed", toy, "signs", 1000)
    marked(tmp_path / "demand", toy, "late", 2000)
    folders = {"folders": (tmp_path / "allowed",), "pack_folder": tmp_path / "demand"}
    client = client_of(model, control=True, **folders)
    control(client, "signs", "load")
    control(client, "digits", "unload")
    control(client, "late", "unload")
    for turn in range(2):
        if turn:
            control(client, "toy", "load")
        for domain in (1, "signs"):
            assert first(client, domain) == pytest.approx(1000, abs=100)
        for gone in (2, "digits", "late"):
            assert first(client, gone) is None
        states = {x["name"]: x["state"] for x in client.post("/v2/repository/index").json()}
        assert states["late"] == states["digits"] == "UNAVAILABLE"
    control(client, "late", "load")
    assert first(client, "late") == pytest.approx(2000, abs=100)
    client.service.close()


def test_a_replaced_bundle_has_the_watched_packs_from_the_start(
    model: Model, toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunion.runtime.batching.watch.EVERY", 1e6)
    marked(tmp_path / "watched", toy, "late", 1000)
    service = Service(model, ServeOptions(watch=tmp_path / "watched"))
    service.start()
    before, path = service.serving, model.bundle.path
    asyncio.run(service.replace(path))
    after = service.serving
    assert after is not before and after.catalogue.find("late") is not None

    def failing(*_: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("prunion.runtime.batching.packs.PackFolder.names", failing)
        with pytest.raises(BundleError, match="cannot be listed"):
            asyncio.run(service.replace(path))
    assert service.serving is after
    assert after.model.logits(np.zeros((1, 3, 12, 10), np.float32), "signs").shape == (1, 5)
    service.close()


def test_a_request_in_flight_is_prepared_anew_for_the_bundle_that_takes_over(
    own_bundle: Path, png: bytes
) -> None:
    """Where it cannot be, it is for another try: nothing is wrong with it."""
    service = Service(load(own_bundle, backend="cpu", threads=1))
    file = own_bundle / "manifest.json"
    value = read_json(file)
    resize = value["input"]["resize"] | {"shorter_side": 16}
    prepared = service._prepared

    async def scene(ask: Callable[[], Awaitable[Any]]) -> Any:
        async def slow(serving: Any, asked: Any) -> np.ndarray:
            found = await prepared(serving, asked)
            if serving is first:  # the bundle is replaced while the request is on its way
                await service.replace(own_bundle)
            return found

        first, service._prepared = service.serving, slow  # type: ignore[method-assign]
        return await ask()

    (before,) = service.serving.model.predict(png, "signs")
    write_json(file, value | {"input": value["input"] | {"resize": resize}})
    (answer,) = asyncio.run(scene(lambda: service.classify("signs", [png], 5, now())))
    with load(own_bundle, backend="cpu", threads=1) as model:
        (expected,) = model.predict(png, "signs")
    assert answer.probability == pytest.approx(expected.probability, rel=1e-5)
    assert before.probability != pytest.approx(expected.probability, rel=1e-5)
    write_json(file, value)
    request = http_request(json.dumps(body()).encode(), None)
    with pytest.raises(OverloadError, match="prepares images otherwise: prepare them anew"):
        asyncio.run(scene(lambda: service.infer("toy", "", request, now())))
    service.close()


def test_a_domain_that_has_the_bundles_name_can_be_asked(
    namesake: Model, caplog: pytest.LogCaptureFixture
) -> None:
    client = client_of(namesake, control=True)
    assert "'flowers.bundle'" in caplog.text, "what changes is said"
    image = body()["inputs"][:1]
    answer = client.post("/v2/models/flowers/infer", json={"inputs": image})
    assert answer.status_code == 200 and answer.json()["outputs"][0]["shape"] == [1, 3]
    raw = {"content-type": "application/octet-stream"}
    answer = client.post("/v2/models/flowers/infer", content=b"\0" * 1440, headers=raw)
    assert answer.status_code == 200
    for name in ("flowers.bundle", "flowers"):  # as it had to be asked before
        answer = client.post(f"/v2/models/{name}/infer", json=body())
        assert answer.status_code == 200 and answer.json()["outputs"][0]["shape"] == [1, 5]
    assert len(client.get("/v2/models/flowers").json()["inputs"]) == 1
    names = [x["name"] for x in client.post("/v2/repository/index").json()]
    assert names == ["flowers.bundle", "flowers", "signs", "digits"]
    assert client.get("/v1/domains").json()["domains"] == ["flowers", "signs", "digits"]
    rows = [x for x in client.get("/metrics").text.splitlines() if "request_success{" in x]
    assert len(rows) == len({x.split(" ")[0] for x in rows}), "each series once"
    control(client, "flowers", "unload")
    assert client.get("/v1/domains").json()["domains"] == ["signs", "digits"]
    control(client, "flowers.bundle", "load")
    control(client, "flowers", "load")
    picture = io.BytesIO()
    Image.new("RGB", (10, 12)).save(picture, "PNG")
    headers = {"content-type": "image/png"}
    answer = client.post(
        "/v1/domains/flowers:classify", content=picture.getvalue(), headers=headers
    )
    assert answer.status_code == 200
    client.service.close()


def test_packs_that_the_bundle_hides_are_told(
    model: Model, toy: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marked(tmp_path / "demand", toy, "signs", 1000)
    marked(tmp_path / "demand", toy, "late", 1000)
    client_of(model, pack_folder=tmp_path / "demand")
    assert "packs of signs lie in the folder of packs and are not served" in caplog.text


def test_a_pack_on_demand_tells_its_classes_before_and_after_it_was_asked(
    model: Model, toy: ModuleType, tmp_path: Path
) -> None:
    marked(tmp_path / "demand", toy, "late", 1)
    (tmp_path / "demand" / "bad.safetensors").write_bytes(b"half a pack")
    client = client_of(model, pack_folder=tmp_path / "demand", pack_memory=1)
    marked(tmp_path / "demand", toy, "later", 1)
    for name in ("late", "later", "late"):  # each takes the memory of the other
        told = client.get(f"/v1/domains/{name}")
        assert told.json() == {"domain": name, "classes": list(toy.CLASSES["signs"])}
    told = client.get("/v1/domains/bad")
    assert told.status_code == 503 and "bad.safetensors" in told.json()["error"]
    assert client.get("/v2/models/bad/ready").status_code == 503, "the server's own file"
    assert client.get("/v2/models/late/ready").status_code == 200
    for name in ("none", "toy"):  # the bundle is a model, and no domain
        assert client.get(f"/v1/domains/{name}").status_code == 404
    client.service.close()


def test_counts_that_a_domain_shares_are_not_told_as_its_own(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunion.runtime.batching.statistics.MOST_DOMAINS", 1)
    client = client_of(model)
    for name in ("flowers", "signs", "digits"):
        assert client.get(f"/v2/models/{name}/stats").json()["model_stats"][0]["name"] == name
    for name in ("flowers", "signs"):
        first(client, name)
    told = client.get("/v2/models/digits/stats")
    assert told.status_code == 404 and "'digits' is not counted by itself" in told.json()["error"]
    own = client.get("/v2/models/flowers/stats").json()["model_stats"][0]
    assert own["inference_count"] == 1
    rows = client.get("/v2/models/stats").json()["model_stats"]
    assert [x["name"] for x in rows] == ["toy", "flowers", "(other)"]


def test_a_domain_that_is_named_like_the_statistics_of_all(model: Model, toy: ModuleType) -> None:
    client = client_of(model)
    assert client.get("/v2/models/stats").json()["model_stats"][0]["name"] == "toy"
    model.add_domain(toy._pack(toy.make_tables(), 1, "stats", toy.CLASSES["signs"]))
    told = client.get("/v2/models/stats").json()
    assert told["name"] == "stats" and told["outputs"][0]["shape"] == [-1, 5]
    assert client.get("/v2/models/stats/stats").json()["model_stats"][0]["name"] == "stats"


def test_weights_of_domains_that_are_not_there(
    model: Model, toy: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = {"signs": 2.0, "flowres": 5.0}
    service = Service(model, ServeOptions(weights=weights))
    with pytest.raises(InputError, match=r"'flowres'.*did you mean flowers\?"):
        service.start()
    marked(tmp_path / "demand", toy, "flowres", 1)
    service = Service(model, ServeOptions(weights=weights, pack_folder=tmp_path / "demand"))
    service.start()
    assert "did you mean" not in caplog.text
    (tmp_path / "demand" / "flowres.safetensors").unlink()
    service.start()
    assert "did you mean flowers?" in caplog.text, "it may come, and be a slip all the same"
    service.close()
