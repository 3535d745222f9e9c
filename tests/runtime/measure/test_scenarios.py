"""MLPerf's scenarios, by LoadGen and by the thin loop: what waits counts, and rates are found."""

from __future__ import annotations

import json
import threading
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from prunion.runtime.cli import cli
from prunion.runtime.errors import InputError, OverloadError, PrunionError
from prunion.runtime.measure import run_scenario, scenario_line, scenarios
from prunion.runtime.measure.loadgen import PERCENTILE, Scenario, _read_log
from prunion.runtime.measure.scenarios import poisson_stretch
from prunion.runtime.model import load
from prunion.runtime.protocol import InferRequest, domains_of, grpc_caller, http_caller
from tests.runtime.measure.servers import grpc_server, server


def sleep() -> None:
    time.sleep(0.004)


@pytest.fixture
def without_loadgen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "load_loadgen", lambda: None)


def test_waiting_counts() -> None:
    """At twice what one worker can do the last query waits for half of all that came before."""
    idle = poisson_stretch(sleep, rate=50, seconds=0.5, workers=1)
    full = poisson_stretch(sleep, rate=500, seconds=0.25, workers=1)
    assert idle.latency_ms >= 4
    assert full.queries == 125
    assert full.latency_ms > 125
    assert full.latency_ms > idle.latency_ms


def test_the_highest_rate_keeps_the_bound(without_loadgen: None) -> None:
    found = run_scenario("server", sleep, 1, 0.2, bound_ms=1000)
    assert found.driver == "own"
    assert found.latency_ms <= 1000
    assert 25 <= found.samples_per_second <= 500
    none = run_scenario("server", sleep, 1, 0.1, bound_ms=1)
    assert (none.samples_per_second, none.valid) == (0, False)
    assert "no rate keeps p99 under 1 ms" in scenario_line(none)


def test_the_thin_loop_counts_images(without_loadgen: None) -> None:
    for scenario, percentile in (("single", 90), ("offline", 99)):
        found = run_scenario(scenario, sleep, 8, 0.1)
        assert (found.percentile, found.samples) == (percentile, 8)
        assert found.latency_ms >= 4
        assert found.samples_per_second <= 8 / 0.004
        assert not found.valid, "100 queries need longer"
    with pytest.raises(InputError):
        run_scenario("single", sleep, 1, 0)


def test_loadgen_drives() -> None:
    pytest.importorskip("mlperf_loadgen", reason="pip install mlcommons-loadgen")
    for scenario in ("single", "multi"):
        found = run_scenario(scenario, sleep, 8, 0.1)
        assert found.driver == "LoadGen"
        assert found.latency_ms >= 4
        assert 0 < found.samples_per_second <= 8 / 0.004
    found = run_scenario("server", sleep, 1, 0.2, bound_ms=1000)
    assert found.driver == "LoadGen"
    assert 0 < found.latency_ms <= 1000

    def fails() -> None:
        raise InputError("refused")

    with pytest.raises(InputError, match="refused"):
        run_scenario("single", fails, 1, 0.05)


def test_a_server_is_asked_in_its_protocol() -> None:
    image = np.random.default_rng(0).standard_normal((2, 3, 4, 5), np.float32)
    seen: list[tuple[str, InferRequest]] = []
    with server(200, seen) as url:
        call = http_caller(url, "a model", image, [[0, 1], [2, 0]])
        for _ in range(3):
            call()
    path, request = seen[0]
    assert path == "/v2/models/a%20model/infer"
    np.testing.assert_array_equal(request.tensors["image"].data, image)
    assert [domains_of(r, 2) for _, r in seen] == [[0, 1], [2, 0], [0, 1]]
    with server(429, seen) as url, pytest.raises(PrunionError, match="refused a batch with 429"):
        http_caller(url, "m", image, [[0, 0]])()
    with pytest.raises(PrunionError, match="is `prunion serve` up"):
        http_caller(url, "m", image, [[0, 0]])()
    with pytest.raises(InputError, match="give http://HOST:PORT"):
        http_caller("localhost:8000", "m", image, [[0, 0]])


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b"null",
        b'{"outputs": [{"name": "logits", "shape": [1, 2], "data": [0, 1]}]}',
        b'{"outputs": [{"name": "logits", "shape": [2, 2], "data": [[0, 1], [2]]}]}',
        b'{"outputs": [{"name": "logits", "shape": [2, 2], "data": [0, 1]}]}',
    ],
)
def test_an_answer_without_logits_of_all_images_is_none(answer: bytes) -> None:
    """Any 200 counted, and a server of nothing was the fastest."""
    image = np.zeros((2, 3, 4, 5), np.float32)
    with server(200, [], answer=answer) as url, pytest.raises(PrunionError, match="gave no logits"):
        http_caller(url, "m", image, [[0, 0]])()
    with (
        grpc_server(False, [], logits=False) as url,
        pytest.raises(PrunionError, match="gave no logits of the 2 images"),
    ):
        grpc_caller(url, "m", image, [[0, 0]])()


def test_another_servers_forms_of_logits_count() -> None:
    """A list for each image, as MLServer answers, and the protocol's own field of numbers."""
    image = np.zeros((2, 3, 4, 5), np.float32)
    told = {"name": "logits", "shape": [2, 2], "data": [[0, 1], [2, 3]]}
    answer = json.dumps({"outputs": [told]}).encode()
    with server(200, [], answer=answer) as url:
        http_caller(url, "m", image, [[0, 0]])()
    with grpc_server(False, [], raw=False) as url:
        grpc_caller(url, "m", image, [[0, 0]])()


def test_a_refusal_misses_the_bound_and_ends_nothing(without_loadgen: None) -> None:
    image, often = np.zeros((1, 3, 4, 5), np.float32), cycle([200] * 200 + [503])
    with server(often, []) as url:
        found = poisson_stretch(http_caller(url, "m", image, [[0]]), 120, 1.0, 2)
        assert np.isfinite(found.latency_ms), "one in two hundred may miss"
        report = run_scenario(
            "server", http_caller(url, "m", image, [[0]]), 1, 0.2, bound_ms=1e4, workers=2
        )
    assert report.samples_per_second > 0
    with server(503, []) as url:
        call = http_caller(url, "m", image, [[0]])
        begun = time.perf_counter()
        report = run_scenario("server", call, 1, 0.1, bound_ms=1e3, workers=2)
        assert time.perf_counter() - begun < 10, "where all are refused no rate is looked for"
    assert (
        report.queries and report.to_json()["latency_ms"] is None and report.samples_per_second == 0
    )
    assert "p99 none (refused)" in scenario_line(report)


def test_the_command_asks_the_model_or_a_server(bundle_path: Path) -> None:
    arguments = ["bench", str(bundle_path), "--duration", "20ms", "--threads", "1"]
    done = CliRunner().invoke(cli, [*arguments, "--scenario", "offline", "--batch", "4", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["scenario"], report["samples"]) == ("offline", 4)
    seen: list[tuple[str, InferRequest]] = []
    with server(200, seen) as url:
        done = CliRunner().invoke(cli, [*arguments, "--scenario", "single", "--url", url])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("single: p90 ")
    assert len({tuple(domains_of(r, 1)) for _, r in seen}) > 1, "goes round the domains"
    assert CliRunner().invoke(cli, [*arguments, "--url", "http://x"]).exit_code == 2


def test_another_bundle_of_the_name_is_not_measured_as_this_one(bundle_path: Path) -> None:
    arguments = ["bench", str(bundle_path), "--duration", "20ms", "--threads", "1"]
    arguments += ["--scenario", "single", "--url"]
    pytest.importorskip("starlette", reason="needs prunion[serve]")
    from prunion.runtime.serve.models import Repository, Service

    with load(bundle_path, backend="cpu", threads=1) as model:
        own = Repository(Service(model)).metadata("toy")["parameters"]
    assert set(own) == {"domains", "trunk_hash", "model_sha256"}
    with server(200, [], own) as url:
        done = CliRunner().invoke(cli, [*arguments, url, "--json"])
        assert json.loads(done.stdout)["served_is_this"] is True
    with server(200, []) as url:
        done = CliRunner().invoke(cli, [*arguments, url])
        assert f"note: {url} does not tell which bundle it serves" in done.stdout
        done = CliRunner().invoke(cli, [*arguments, url, "--json"])
        assert json.loads(done.stdout)["served_is_this"] is None
    for other in ({"trunk_hash": "cd" * 32}, {"model_sha256": "ef" * 32}):
        seen: list[tuple[str, InferRequest]] = []
        with server(200, seen, own | other) as url:
            done = CliRunner().invoke(cli, [*arguments, url])
        assert done.exit_code == 1 and not seen
        assert f"{url} serves another bundle as 'toy': give the one" in done.output


def test_a_server_is_asked_over_grpc_too(bundle_path: Path) -> None:
    image = np.random.default_rng(0).standard_normal((2, 3, 4, 5), np.float32)
    seen: list[InferRequest] = []
    with grpc_server(False, seen) as url:
        call = grpc_caller(url, "a model", image, [[0, 1], [2, 0]])
        for _ in range(3):
            call()
    np.testing.assert_array_equal(seen[0].tensors["image"].data, image)
    assert [domains_of(r, 2) for r in seen] == [[0, 1], [2, 0], [0, 1]]
    with grpc_server(True, seen) as url, pytest.raises(OverloadError, match="EXHAUSTED: too many"):
        grpc_caller(url, "m", image, [[0, 0]])()
    with pytest.raises(PrunionError, match="is `prunion serve` up"):
        grpc_caller(url, "m", image, [[0, 0]])()
    for wrong in ("grpc://127.0.0.1", "http://127.0.0.1:8001"):
        with pytest.raises(InputError, match="give grpc://HOST:PORT"):
            grpc_caller(wrong, "m", image, [[0, 0]])
    arguments = ["bench", str(bundle_path), "--duration", "20ms", "--threads", "1"]
    seen.clear()
    with grpc_server(False, seen) as url:
        done = CliRunner().invoke(cli, [*arguments, "--scenario", "single", "--url", url])
    assert done.exit_code == 0, done.output
    assert len({tuple(domains_of(r, 1)) for r in seen}) > 1, "goes round the domains"


def test_the_search_for_a_rate_starts_at_what_can_be_answered(without_loadgen: None) -> None:
    """32 senders to one that answers them in turn: it once began at 64 times what that can do,
    and waited for all of it to be answered."""
    asked, turn = [0], threading.Lock()

    def call() -> None:
        with turn:
            asked[0] += 1
            time.sleep(0.004)

    found = run_scenario("server", call, 1, 0.25, bound_ms=2000, workers=32)
    assert 0 < found.samples_per_second <= 1.5 / 0.004
    assert asked[0] < 1000, "a search of ten stretches"
    assert not found.valid, "a queue may grow for all of a stretch that is shorter than the bound"


def test_percentiles_are_loadgens() -> None:
    """One of the latencies there were: `latencies[count * share]` of them in order."""
    assert scenarios._percentile([3.0, 1.0, 2.0, 4.0], 50) == 3.0
    assert scenarios._percentile(list(range(100)), 99) == 99
    assert scenarios._percentile([7.0], 99) == 7.0


def test_no_option_is_taken_and_does_nothing(bundle_path: Path) -> None:
    wrong = {
        "--p99 goes with": ["--p99", "3ms"],
        "p99 goes with": ["--scenario", "single", "--p99", "3ms"],
        "asks for 8 images at a time": ["--scenario", "multi", "--batch", "4"],
        "--checkpoint goes with": ["--checkpoint", "x"],
        "checkpoint goes with": ["--checkpoint", "x", "--against", "specialised"],
        "goes with neither": ["--scenario", "single", "--csv", "x.csv"],
    }
    for told, options in wrong.items():
        done = CliRunner().invoke(cli, ["bench", str(bundle_path), *options])
        assert (done.exit_code, told in done.output) == (2, True), (options, done.output)
    for url in ("http://x:99999", "http://[::1", "grpc://x:99999"):
        done = CliRunner().invoke(
            cli, ["bench", str(bundle_path), "--scenario", "single", "--url", url]
        )
        assert done.exit_code == 1
        assert "give http://HOST:PORT" in done.output or "give grpc://HOST:PORT" in done.output
    # Told before a minute is spent on making other rivals.
    files = ["--against", "backbone", "--against", str(bundle_path / "missing.onnx")]
    done = CliRunner().invoke(cli, ["bench", str(bundle_path), *files])
    assert "missing.onnx does not exist" in done.output


def test_a_scenario_tells_what_was_asked_on_which_machine(bundle_path: Path) -> None:
    arguments = ["bench", str(bundle_path), "--scenario", "single", "--duration", "20ms", "--json"]
    done = CliRunner().invoke(cli, [*arguments, "--domains", "signs"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert value["machine"]["cores"] >= 1
    assert value["bundle"] == str(bundle_path)
    assert (value["domains"], value["asked"]) == ("signs", "this process, cpu, fp32")


@pytest.mark.parametrize(("scenario", "least"), [("single", 64), ("multi", 662), ("server", 662)])
def test_fewer_queries_than_loadgen_takes_for_enough_are_too_few(
    scenario: Scenario, least: int
) -> None:
    """The p99 of a hundred is the slowest of them, and was called sure."""
    percentile = PERCENTILE[scenario]
    for queries in (least - 1, least):
        told = {"result_query_count": queries, f"result_{percentile}.00_percentile_latency_ns": 1}
        log = "".join(f'"key": "{key}", "value": {value}\n' for key, value in told.items())
        assert _read_log(log, scenario, 1.0).valid == (queries == least)
