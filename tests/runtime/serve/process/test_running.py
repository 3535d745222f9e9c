"""A real server under load: stopped, reloaded, its domains exchanged."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunion.runtime.bundle import write_pack
from tests.runtime.serve.process.load import IMAGE, ask, clients, connect, right
from tests.runtime.serve.running import running
from tests.support.waiting import LONG, until

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
pytest.importorskip("grpc", reason="needs prunion[serve]")


def test_stopping_answers_all_that_was_accepted(bundle_path: Path, toy: ModuleType) -> None:
    def ready() -> int:
        probe = connect(server)
        probe.request("GET", "/v2/health/ready")
        return probe.getresponse().status

    with running(bundle_path, "--ready-seconds", 3) as server:
        with clients(server, 8) as load:
            until(lambda: len(load.answers) > 20)
            assert ready() == 200
            server.process.send_signal(signal.SIGTERM)
            until(lambda: ready() == 503)  # readiness drops first
            assert server.process.wait(LONG) == 0
        assert server.end() == 0
        assert not load.lost
        assert load.refused == 8
        assert all(status == 200 and right(found, toy) for status, found in load.answers)
        events = [line["event"] for line in server.lines]
        assert events[-1] == "stopped"


def test_a_bundle_is_replaced_under_load(tmp_path: Path, toy: ModuleType) -> None:
    old, new = toy.make_tables(), toy.make_tables(seed=1)
    bundle = toy.make_bundle(tmp_path / "served", old)
    other = toy.make_bundle(tmp_path / "next", new)
    first, second = (toy.reference(t, IMAGE, np.array([1]))[0] for t in (old, new))
    with running(bundle, "--control") as server, clients(server, 4) as load:
        until(lambda: len(load.answers) > 10)
        shutil.rmtree(bundle)
        shutil.copytree(other, bundle)
        connection = connect(server)
        connection.request("POST", "/v2/repository/models/toy/load", b"{}")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        status, found = ask(connection)
        assert status == 200
        np.testing.assert_allclose(found, second, rtol=1e-4, atol=1e-5)
        # A bundle that cannot be taken changes nothing.
        (bundle / "model.onnx").write_bytes(b"damaged")
        server.tell(signal.SIGHUP)
        until(lambda: any("served as it was" in line["event"] for line in server.lines))
        count = len(load.answers)
        until(lambda: len(load.answers) > count + 10)
    assert not load.lost
    kinds = set()
    for status, found in load.answers:
        assert status == 200, found
        by_old, by_new = (bool(np.allclose(found, x, atol=1e-4)) for x in (first, second))
        assert by_old != by_new, "an answer is of one bundle"
        kinds.add(by_old)
    assert kinds == {True, False}


def test_a_request_is_answered_by_the_pack_it_was_accepted_for(
    bundle_path: Path, toy: ModuleType, tmp_path: Path
) -> None:
    """One name, two packs in turn, under load: what follows a load is answered by what it loaded,
    and nothing is answered by a mixture."""
    packs = tmp_path / "packs"
    own = toy._pack(toy.make_tables(), 1, "late", toy.CLASSES["signs"])

    def write(mark: float) -> None:
        write_pack(
            packs / "late.safetensors",
            replace(own, head_bias=np.full(5, mark, np.float32)),
        )

    packs.mkdir()
    write(1000)
    allowed = ("--control", "--allow", packs)
    with running(bundle_path, *allowed) as server:
        connection = connect(server)

        def load_pack(mark: float) -> None:
            write(mark)
            connection.request("POST", "/v2/repository/models/late/load", b"{}")
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()

        load_pack(1000)
        with clients(server, 4, "late") as load:
            for turn in range(20):
                mark = 1000.0 * (1 + turn % 2)
                load_pack(mark)
                status, found = ask(connection, "late")
                assert status == 200 and np.allclose(np.array(found), mark, atol=100)
            connection.request("POST", "/v2/repository/models/late/unload", b"{}")
            assert connection.getresponse().read() == b""
            assert ask(connection, "late")[0] == 404
        assert not load.lost
        marks = {round(min(found) / 1000) for status, found in load.answers if status == 200}
        assert marks <= {1, 2} and {s for s, _ in load.answers} <= {200, 404}
        spread = [max(f) - min(f) for s, f in load.answers if s == 200]
        assert max(spread) < 100, "all classes are of one pack"


def test_packs_on_demand_and_watched(bundle_path: Path, toy: ModuleType, tmp_path: Path) -> None:
    demand, watched = tmp_path / "demand", tmp_path / "watched"
    watched.mkdir()
    own = toy._pack(toy.make_tables(), 2, "x", ("zero", "one"))
    for n in range(40):
        marked = replace(own, name=f"d{n}", head_bias=np.full(2, 1000.0 * n, np.float32))
        write_pack(demand / f"d{n}.safetensors", marked)
    folders = ("--packs", demand, "--packs-memory", 1, "--keep", "d7", "--watch", watched)
    with running(bundle_path, *folders) as server:
        connection = connect(server)
        for n in (0, 39, 7, 3, 39):
            status, found = ask(connection, f"d{n}")
            assert status == 200 and round(found[0] / 1000) == n
        assert ask(connection, "d99")[0] == 404
        write_pack(watched / "seen.safetensors", replace(own, name="seen"))
        until(lambda: ask(connection, "seen")[0] == 200)
        (watched / "seen.safetensors").unlink()
        until(lambda: ask(connection, "seen")[0] == 404)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        assert "prunion_pack_reads_total 4" in text, "d7 was read at the start"
        connection.request("GET", "/v1/domains")
        assert len(json.loads(connection.getresponse().read())["domains"]) == 43
