"""What keeps the tests quick and apart from the machine, without changing what they test."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.remembered import (
    make_tables_once,
    remember_exports,
    remember_rebuilt,
    remember_traces,
)

# Before torch is imported, here and in the processes of tests: as many of them run at once as there
# are cores, and a thread more than that waits for the others in a loop.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import HealthCheck, settings

    # How long drawing and testing take tells of the machine's load, and of no fault.
    slow = [HealthCheck.too_slow]
    settings.register_profile("busy", settings(), deadline=None, suppress_health_check=slow)
    settings.load_profile("busy")


def pytest_collection_finish() -> None:
    """Collections leave out what imports made: a walk of a loaded torch takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _leave_out_what_is_there() -> None:
    """So they do what earlier tests made: tables of torch's exporter, and what was imported late.

    Each export collects several times, and walked a million objects then.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _something_is_frozen() -> Iterator[None]:
    """How much it is would be counted one by one, a tenth of a second at each trace."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "get_freeze_count", lambda: 1)
        yield


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plans measured by tests stay out of the user's cache, and take no time to speak of.

    Nor is a machine left to settle before each block of calls, thousands of times 5 ms: no test
    asks how fast something is.
    """
    plan = importlib.import_module("prunion.runtime.model.plan")
    timing = importlib.import_module("prunion.runtime.base.timing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNION_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(plan, "SECONDS", 0.002)
        patch.setattr(timing, "SETTLE_S", 0.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_disk() -> Iterator[None]:
    """Nobody waits for the disk: of the files of tests nothing need outlive the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _remembered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tables, traces and exports that many tests need.

    What is tested of torch's exporter itself, that it is quiet, asks for `exporting_anew`.
    """
    with pytest.MonkeyPatch.context() as patch:
        replace = partial(patch.setattr, raising=False)
        if "torch" in sys.modules:  # else no test of this process trains
            make_tables_once(replace)
            if importlib.util.find_spec("onnx") is not None:
                remember_exports(replace, _shared(tmp_path_factory))
        if "torchvision" in sys.modules:
            remember_traces(replace)
            remember_rebuilt(replace)
        yield


def _shared(factory: pytest.TempPathFactory) -> Path | None:
    """A folder of all of xdist's workers, and of this run of the tests alone."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return None
    folder = factory.getbasetemp().parent / "exports"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def nothing_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench` starts no process for each contender: where that is tested, this is not asked for."""
    measured = importlib.import_module("prunion.runtime.measure.benchmark.fresh").Fresh
    module = importlib.import_module("prunion.runtime.measure.benchmark.measure")
    monkeypatch.setattr(
        module,
        "measure_fresh",
        lambda _, name, digest, batch: measured(name, batch, 1.0, 1.0, 2**28, 2**27),
    )


@pytest.fixture
def exporting_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's exporter is run by this test, whatever was exported before."""
    build = importlib.import_module("prunion.exporter.graph.build")
    monkeypatch.setattr(build, "_export", build._export_anew)
