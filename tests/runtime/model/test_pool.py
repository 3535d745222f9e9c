"""Sessions come on first use and leave under the limit; batches go the way the plan says."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunion.runtime.bundle import Pack
from prunion.runtime.errors import BackendError, InputError
from prunion.runtime.model import Model, load
from prunion.runtime.model import model as model_module
from prunion.runtime.model.pinned import Pinned
from prunion.runtime.model.plan import BATCHES, Plan, load_plan, save_plan
from prunion.runtime.model.pool import SessionPool

pytest.importorskip("onnxruntime")

SLOW, FAST = dict.fromkeys(BATCHES, 9.0), dict.fromkeys(BATCHES, 1.0)


@pytest.fixture(params=["cpu", "openvino"])
def model(request: pytest.FixtureRequest, bundle_path: Path) -> Model:
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="pip install 'prunion[openvino]'")
    return load(bundle_path, request.param, threads=1)


def sessions(model: Model) -> dict[str, str]:
    return model.explain().sessions


@pytest.mark.parametrize("plan", [Plan(SLOW, FAST), Plan(FAST, SLOW), Plan(SLOW, SLOW, FAST)])
def test_every_way_gives_the_same_answer(
    model: Model, toy: ModuleType, batch: np.ndarray, plan: Plan
) -> None:
    model._plan = plan
    rows = np.array([2, 0, 1, 1, 0, 2])
    expected = toy.reference(toy.make_tables(), batch, rows)
    np.testing.assert_allclose(model.logits(batch, rows), expected, rtol=1e-4, atol=1e-5)
    assert len(sessions(model)) == (3 if plan.splits([2, 2, 2]) else 0)
    for row in range(3):
        single = model.logits(batch, np.full(6, row))
        expected = toy.reference(toy.make_tables(), batch, np.full(6, row))
        np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-5)


def test_sessions_come_on_first_use(model: Model, batch: np.ndarray) -> None:
    assert sessions(model) == {}
    model.logits(batch, ["signs"] * 6)
    assert list(sessions(model)) == ["signs"]
    model.logits(batch, ["flowers"] * 6)
    assert "uses every channel" in sessions(model)["signs"]
    # 6 of 8 channels, filled up to a whole block, are all of them
    assert "uses every channel" in sessions(model)["flowers"]


def test_without_memory_everything_runs_mixed(
    bundle_path: Path, toy: ModuleType, batch: np.ndarray
) -> None:
    model = load(bundle_path, "cpu", threads=1, memory_limit=0)
    for row in range(3):
        expected = toy.reference(toy.make_tables(), batch, np.full(6, row))
        got = model.logits(batch, np.full(6, row))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert sessions(model) == {}
    model.logits(batch, [0, 1, 2, 0, 1, 2])
    assert "memory limit" in str(model.explain())
    assert load(bundle_path, memory_limit=1e9).sessions.limit == 10**9
    for limit in (-1, float("nan"), float("inf"), 1.5, "1", True):
        with pytest.raises(
            InputError, match=f"memory_limit is '?{limit}'?: give a whole number, 0 or"
        ):
            load(bundle_path, memory_limit=limit)  # type: ignore[arg-type]
    for threads in (0, -3, 1.5, "2", True, 10**9):
        with pytest.raises(InputError, match=r"threads is .*: give a whole number, 1 to 4,096"):
            load(bundle_path, threads=threads)  # type: ignore[arg-type]


def test_least_recently_used_leaves_for_one_who_insists(
    bundle_path: Path, batch: np.ndarray
) -> None:
    probe = load(bundle_path, "cpu", threads=1)
    probe.logits(batch, ["signs"] * 6)
    limit = int(2.5 * probe.explain().pinned_bytes)
    model = load(bundle_path, "cpu", threads=1, memory_limit=limit)
    for name in ("flowers", "signs", "flowers", "digits"):
        model.logits(batch, [name] * 6)
    assert list(sessions(model)) == ["signs", "flowers"], "digits was answered by the mixed one"
    for _ in range(5):
        model.logits(batch, ["digits"] * 6)
    assert list(sessions(model)) == ["flowers", "digits"]
    assert model.explain().pinned_bytes <= limit


def test_the_plan_is_measured_once_and_remembered(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: np.ndarray
) -> None:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path / "cache"))
    model = load(bundle_path, "cpu", threads=1)
    model.logits(batch, ["signs"] * 6)
    assert "not measured yet" in str(model.explain()), "one domain needs no plan"
    plan = model.tune()
    assert set(plan.mixed) == set(plan.pinned) == set(BATCHES)
    (file,) = (tmp_path / "cache" / "plans").iterdir()
    assert load(bundle_path, "cpu", threads=1).tune() == plan
    assert load(bundle_path, "cpu", threads=2).tune() != plan, "another machine, another plan"
    file.write_text("{}")
    assert load_plan(file.stem) is None
    again = load(bundle_path, "cpu", threads=1).tune()
    assert load_plan(file.stem) == again


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path / "file"))
    save_plan("ab", Plan(FAST, FAST))
    assert load_plan("ab") is None


def test_the_plan_weighs_how_a_batch_is_made_up() -> None:
    plan = Plan(mixed={1: 2.0, 2: 3.0, 8: 9.0}, pinned={1: 1.5, 2: 2.0, 8: 5.0})
    assert plan.splits([4, 4]), "3 + 3 against 9"
    assert not plan.splits([1] * 8), "12 against 9"
    assert plan.splits([16, 16]), "beyond what was measured, straight on"
    assert plan.slices, "nothing speaks against it"
    assert not Plan(FAST, FAST, SLOW).slices
    assert not Plan(reason="no room").splits([1, 1])


def test_a_slower_slice_is_not_used(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "find_plan", lambda *_: Plan(SLOW, FAST, SLOW))
    model = load(bundle_path, "cpu", threads=1, tune=True)
    model.logits(np.zeros((1, 3, 12, 10), np.float32), "flowers")
    assert sessions(model) == {"flowers": "slicing is off"}


@pytest.mark.parametrize("when", ["made", "run"])
def test_a_full_gpu_leaves_the_rest_to_the_mixed_session(
    bundle_path: Path,
    toy: ModuleType,
    batch: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """The first pinned session finds memory, the second none, and it is not tried for ever."""
    model = load(bundle_path, "cpu", threads=1)
    make, tried = SessionPool.make, []

    class Broken:
        def run(self, *args: object) -> None:
            raise RuntimeError("BFCArena: no memory")

    def full(self: SessionPool, pack: Pack, *, sliced: bool) -> Pinned:
        tried.append(pack.name)
        if len(tried) != 2:
            return make(self, pack, sliced=sliced)
        if when == "made":
            raise BackendError("CUDAExecutionProvider does not start: no memory")
        return Pinned(Broken(), 1, False, "")

    monkeypatch.setattr(SessionPool, "make", full)
    monkeypatch.setattr(SessionPool, "_on_gpu", lambda self: True)
    for row in (0, *[1] * 12, 2, 0):
        expected = toy.reference(toy.make_tables(), batch, np.full(6, row))
        got = model.logits(batch, np.full(6, row))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert len(tried) == 2
    assert list(sessions(model)) == [model.domains[0]]
    assert "no more of them, the others run mixed: " in str(model.explain())
    assert "no memory" in str(model.explain())
    model.remove_domain(model.domains[0])
    model.logits(batch, model.domains[0])
    assert len(tried) == 3, "there is room again"


def test_auto_is_decided_once(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a provider for CUDA that does not start, as without one, it stands for the CPU."""
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    pool = load(bundle_path, "auto", threads=1).sessions
    assert pool.chosen().backend == "cpu"
    assert pool.provider() == "", "no session was needed to know"
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    assert pool.chosen().backend == "auto"
    assert pool.backend() == "cpu"
    assert pool.provider() == "CPUExecutionProvider"
    assert pool.options.backend == "auto"


def test_a_model_that_nobody_holds_lets_its_sessions_go_at_once(bundle_path: Path) -> None:
    """Without `close`, and before memory is collected: a notebook says `del model`."""
    model = load(bundle_path, "cpu", threads=1)
    pool = weakref.ref(model.sessions)
    gc.disable()
    try:
        del model
        assert pool() is None
    finally:
        gc.enable()
