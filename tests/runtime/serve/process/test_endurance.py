"""Minutes of overload, stops, kills and exchanges under load: nobody gets a wrong answer.

`python -m prunion.benchmarks.serving` has the same as rows, for as long as it takes;
PRUNION_SOAK_SECONDS makes them longer here.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux"),
]
from prunion.benchmarks.serving import (  # noqa: E402
    EXCHANGED,
    Generator,
    Load,
    Traffic,
    answer_after_kill,
    exchange_packs,
    free_port,
    make_traffic,
    overload,
    prunion_command,
    started,
    stop_under_load,
)

SECONDS = float(os.environ.get("PRUNION_SOAK_SECONDS", "30"))
DEADLINE = 1
SHAPE = (3, 12, 10)


def crowded() -> float:
    """How much longer everything takes because the processors are wanted by others, too."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture(scope="module")
def traffic(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Requests for every domain of the toy bundle, with the answers that numpy gives."""
    return traffic_of(toy, 0).save(tmp_path_factory.mktemp("traffic") / "toy.npz")


def traffic_of(toy: ModuleType, seed: int) -> Traffic:
    made = make_traffic("toy", list(toy.CLASSES), SHAPE)
    images = np.concatenate([made.image(place) for place in range(3)])
    expected = toy.reference(toy.make_tables(seed), images, np.arange(3)).astype(np.float32)
    return make_traffic("toy", list(toy.CLASSES), SHAPE, expected)


def test_twice_the_capacity(bundle_path: Path, traffic: Path, tmp_path: Path) -> None:
    """The toy network costs nothing, so it is the front that has too much to do."""
    port = free_port()
    command = prunion_command(
        bundle_path, port, "--threads", 1, "--deadline", DEADLINE, "--max-client-requests", 32
    )
    with started(command, port, log=tmp_path / "log") as server:
        found = overload(server, traffic, SECONDS, warm_seconds=min(60, SECONDS / 3))
        assert server.get("/v2/health/ready")[0] == 200
    assert found["answered"] > 10 * SECONDS
    assert sum(found["refused"].values()) > 0, "it was no overload"
    assert not found["wrong"] and not found["lost"] and not found["other"], found
    assert found["grown"] <= 0.02, found
    assert found["answered_ms"]["p99"] <= 1000 * DEADLINE + 50 * crowded(), found
    assert found["refused_ms"]["p50"] <= 50 * crowded(), found
    assert not (tmp_path / "log").read_text(), "nothing went wrong in the server"


def test_no_accepted_request_is_lost_by_stopping(bundle_path: Path, traffic: Path) -> None:
    found = stop_under_load(bundle_path, traffic, 20)
    assert found["answered"] > 200
    assert found["codes"] == [0]
    assert not found["lost"] and not found["wrong"] and not found["other"], found


def test_it_answers_again_after_a_kill(bundle_path: Path, traffic: Path) -> None:
    found = answer_after_kill(bundle_path, traffic)
    assert not found["wrong"] and found["shortest_s"] <= 3 * crowded(), found


def test_packs_of_one_name_are_not_mixed_up(
    bundle_path: Path, toy: ModuleType, tmp_path: Path
) -> None:
    packs, port = tmp_path / "packs", free_port()
    packs.mkdir()
    traffic = make_traffic("toy", [EXCHANGED], SHAPE).save(tmp_path / "traffic.npz")
    pack = toy._pack(toy.make_tables(), 1, EXCHANGED, toy.CLASSES["signs"])
    command = prunion_command(bundle_path, port, "--threads", 1, "--control", "--allow", packs)
    with started(command, port, log=tmp_path / "log") as server:
        found = exchange_packs(server, pack, packs, traffic, SECONDS, every=0.3)
    assert found["versions_seen"] > 5 and found["not_there"] > 0, found
    assert not found["wrong"] and not found["lost"] and not found["other"], found


def test_bundles_are_replaced_again_and_again(toy: ModuleType, tmp_path: Path) -> None:
    """Every answer is right by the old network or by the new one, and none is lost."""
    port, folder = free_port(), tmp_path / "served"
    bundles = [toy.make_bundle(tmp_path / str(seed), toy.make_tables(seed)) for seed in (0, 1)]
    bundle = folder / "toy.prunion"
    shutil.copytree(bundles[0], bundle)
    files = [traffic_of(toy, seed).save(tmp_path / f"{seed}.npz") for seed in (0, 1)]
    command = prunion_command(bundle, port, "--threads", 1, "--control")
    with started(command, port, log=tmp_path / "log") as server, Generator.start() as generator:
        generator.begin(Load(port, str(files[0]), clients=8, seconds=SECONDS))
        ends, turn = time.monotonic() + SECONDS - 3, 0
        while time.monotonic() < ends:
            turn += 1
            shutil.rmtree(bundle)
            shutil.copytree(bundles[turn % 2], bundle)
            status, text = server.post("/v2/repository/models/toy/load")
            assert status == 200, text
            time.sleep(0.3)
        found = generator.end()
        # After the last one, only the last one answers.
        last = generator.measure(Load(port, str(files[turn % 2]), clients=4, seconds=1))
    assert turn > 3 and set(found["status"]) <= {"0", "200"}, found
    assert not found["status"].get("0", 0)
    assert 0 < found["wrong"] < found["status"]["200"], "both networks answered"
    assert not last["wrong"] and last["status"]["200"] > 10
