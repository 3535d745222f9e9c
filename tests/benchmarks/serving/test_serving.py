"""The serving benchmark's rows are measured, kept and shown; its rivals answer what they should."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("onnxruntime")
pytest.importorskip("torchvision")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
pytest.importorskip("grpc", reason="needs prunion[serve]")
linux = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="memory is read as Linux tells it"
)
pytestmark = [pytest.mark.thorough, linux]
from prunion.benchmarks.serving.__main__ import main, row_calls  # noqa: E402
from prunion.benchmarks.serving.clients.traffic import Traffic, raw_body  # noqa: E402
from prunion.benchmarks.serving.compare import (  # noqa: E402
    Settings,
    _only_answers_or_refusals,
    compare,
)
from prunion.benchmarks.serving.memory import memory, packs  # noqa: E402
from prunion.benchmarks.serving.networks import (  # noqa: E402
    Network,
    bundle_of,
    filled,
    pack_folder,
    packs_of,
    traffic_of,
)
from prunion.benchmarks.serving.overhead import grpc_bytes, overhead  # noqa: E402
from prunion.benchmarks.serving.per_domain import DomainQueue, PerDomainModel  # noqa: E402
from prunion.benchmarks.serving.rows import markdown, read_rows, write_row  # noqa: E402
from prunion.runtime.batching import Job  # noqa: E402

SMALL = Network("resnet18", 32, domains=2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("networks")
    bundle_of(SMALL, folder)
    return Settings(folder, seconds=0.2, rounds=1, clients=(1, 2))


def test_a_session_per_domain_answers_as_the_bundle_does(settings: Settings) -> None:
    bundle = bundle_of(SMALL, settings.folder)
    more = packs_of(pack_folder(bundle, 2, settings.folder))
    with filled(bundle, more, 1) as model:
        traffic = traffic_of(model)
        assert len(traffic.names) == 4
        for sliced in (True, False):
            static = PerDomainModel(model, 1, sliced)
            for place, domain in enumerate(model.snapshot.domains):
                found = static.answer(traffic.image(place), [domain])
                assert traffic.is_right(place, found[0])
                assert not traffic.is_right(1 - place % 2, found[0])


def test_its_queue_gives_one_domain_at_a_time(settings: Settings) -> None:
    with filled(bundle_of(SMALL, settings.folder), (), 1) as model:
        first, second = model.snapshot.domains
    queue, image = DomainQueue(10, 4), np.zeros((1, 3, 32, 32), np.float32)
    jobs = [Job(image, (domain,), 3) for domain in (first, second, first, first, second)]
    for job in jobs:
        queue.put(job)
    queue.drop(jobs[2])
    batches = []
    while queue.rows:
        pieces, expired = queue.take(8, 0.0)
        assert not expired
        batches.append([piece.job for piece in pieces])
    assert batches == [[jobs[0], jobs[3]], [jobs[1], jobs[4]]]


def test_traffic_is_what_it_was_after_it_was_written(settings: Settings, tmp_path: Path) -> None:
    with filled(bundle_of(SMALL, settings.folder), (), 1) as model:
        traffic = traffic_of(model)
    again = Traffic.open(traffic.save(tmp_path / "traffic.npz"))
    assert again.requests("oip") == traffic.requests("oip")
    assert again.names == traffic.names
    assert np.array_equal(again.expected, traffic.expected)
    assert len(raw_body(traffic.image(0), 1)) == 4 + traffic.image(0).nbytes
    assert grpc_bytes(traffic, 1).count(b"d1") == 1


def test_rows(settings: Settings, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    every = dataclasses.replace(settings, unpruned=True)
    row = write_row(output, "load", 1, lambda: compare(SMALL, 2, every))
    assert row is not None
    systems = ("prunion", "a session per domain", "unpruned, a session per domain")
    ours, *others = (row["systems"][name] for name in systems)
    assert all(ours.keys() == theirs.keys() for theirs in others) and len(ours) == 4
    for modes in (ours, *others):
        for found in modes.values():
            assert not found["wrong"] and not found["lost"] and not found["refused"]
            assert found["per_s"] > 1 and found["client_cpu_us"] > 0
    write_row(output, "overhead", 1, lambda: overhead(SMALL, settings))
    write_row(output, "memory", 1, lambda: memory(SMALL, 4, settings))
    write_row(output, "packs", 1, lambda: packs(SMALL, (2, 4), settings))
    rows = read_rows(output)
    assert rows[0] == json.loads(json.dumps(row))
    assert rows[1]["ms"].keys() == {"in process", "HTTP", "gRPC", "HTTP echo", "gRPC echo"}
    assert rows[2]["systems"]["prunion"]["pss"] > 1 << 20
    assert [x["packs"] for x in rows[3]["counts"]] == [2, 4]
    text = markdown(rows)
    assert "skipped: no --litserve-python" in text and text.count("### ") == 4

    def again() -> dict[str, object]:
        raise AssertionError("it is in the file")

    assert write_row(output, "load", 1, again) is None
    done = CliRunner().invoke(main, ["-o", str(output), "--markdown"])
    assert done.exit_code == 0 and "### overhead" in done.output


@pytest.mark.slow
def test_packs_are_asked_for_too_but_not_of_who_has_none(settings: Settings) -> None:
    """What a server has not got it refuses fast: that is an error of the benchmark, not a load."""
    one = dataclasses.replace(settings, clients=(1,))
    for modes in compare(SMALL, 3, one)["systems"].values():
        for found in () if "skipped" in modes else modes.values():
            assert found["per_s"] > 1 and not found.get("refused")
    with pytest.raises(RuntimeError, match=r"404.*asks it wrongly"):
        compare(SMALL, 3, dataclasses.replace(one, unpruned=True))


def test_answers_that_no_load_explains_are_the_benchmarks_error() -> None:
    _only_answers_or_refusals("prunion", {"200": 9, "429": 2, "503": 1})
    with pytest.raises(RuntimeError, match=r"prunion.*404.*asks it wrongly"):
        _only_answers_or_refusals("prunion", {"200": 9, "404": 1})


def test_a_quick_row_does_not_stand_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is the same, and the row of an hour was left out."""
    made: list[str] = []

    def calls(settings: Settings, minutes: float, quick: bool) -> dict[str, object]:
        def row(name: str) -> dict[str, object]:
            made.append(name)
            return {"what": "stop", "network": "x"}

        return {name: partial(row, name) for name in ("load/x/6", "stop", "soak")}

    monkeypatch.setattr("prunion.benchmarks.serving.__main__.row_calls", calls)
    place = ["-o", str(tmp_path / "rows.jsonl"), "--folder", str(tmp_path / "kept")]
    for more in ([], ["--minutes", "3", "stop"], ["--seconds", "1", "soak"]):  # not theirs
        done = CliRunner().invoke(main, [*place, "--quick", *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert made == ["load/x/6", "stop", "soak"]
    whole = CliRunner().invoke(main, [*place, "load/x/6", "stop"])
    assert whole.exit_code == 1 and made == ["load/x/6", "stop", "soak"]
    assert "load/x/6 was made with quick True, and False is asked for" in whole.output
    assert "asked" not in CliRunner().invoke(main, [*place, "--markdown"]).output


def test_every_row_has_a_name(tmp_path: Path) -> None:
    for quick in (False, True):
        names = list(row_calls(Settings(tmp_path), 1, quick))
        kinds = {"overhead", "load", "memory", "packs", "stop", "kill", "exchange", "soak"}
        assert {name.split("/")[0] for name in names} == kinds
    done = CliRunner().invoke(main, ["-o", str(tmp_path / "x"), "nonsense"])
    assert done.exit_code == 2 and "--list" in done.output
