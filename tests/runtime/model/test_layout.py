"""The blocked layout is used where it is right and faster, and a plan says why it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunion.runtime.backends import BlockedSession
from prunion.runtime.model import Model, load
from prunion.runtime.model import layout as layout_module
from prunion.runtime.model import plan as plan_module
from prunion.runtime.model.layout import open_blocked
from prunion.runtime.model.plan import BATCHES, Plan, load_plan, measure_plan, save_plan
from tests.support.waiting import Clock

pytest.importorskip("onnxruntime")

ROWS = np.array([2, 0, 1, 1, 0, 2])


def times(ms: float) -> dict[int, float]:
    return dict.fromkeys(BATCHES, ms)


@pytest.fixture
def model(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path / "cache"))
    return load(bundle_path, "cpu", threads=1)


def packs(model: Model) -> list:
    return [model.bundle.pack(name) for name in model.domains]


def planned(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    monkeypatch.setattr(plan_module, "measure_plan", lambda *_: plan)


def agrees(model: Model, toy: ModuleType, batch: np.ndarray) -> None:
    expected = toy.reference(toy.make_tables(), batch, ROWS)
    np.testing.assert_allclose(model.logits(batch, ROWS), expected, rtol=1e-4, atol=1e-5)


def test_one_domains_images_go_where_they_are_answered_faster(
    model: Model, toy: ModuleType, batch: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pinned session of odd widths takes five times what all domains' one in blocks takes."""
    planned(monkeypatch, Plan(times(2), times(9), plain=times(20)))
    assert model.tune().joins(1)
    for row, name in enumerate(model.domains):
        expected = toy.reference(toy.make_tables(), batch, np.full(6, row))
        np.testing.assert_allclose(model.logits(batch, [name] * 6), expected, rtol=1e-4, atol=1e-5)
    assert not model.explain().sessions
    assert "a batch of one domain goes to the mixed session" in str(model.explain())


def test_a_mixed_session_joins_what_it_answers_faster() -> None:
    slow_alone = Plan({1: 2.0, 2: 3.0, 8: 9.0}, {1: 1.0, 2: 3.5, 8: 12.0})
    assert [slow_alone.joins(count) for count in BATCHES] == [False, True, True]
    assert not Plan(times(1)).joins(1), "no pinned session was measured"
    assert not Plan(pinned=times(1)).joins(1), "no mixed session was measured"
    assert not Plan(times(1), times(1)).joins(1), "they are alike"


def test_a_faster_layout_takes_the_mixed_sessions_place(
    model: Model, toy: ModuleType, batch: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, Plan(times(1), times(9), plain=times(2)))
    agrees(model, toy, batch)
    assert isinstance(model.sessions.mixed(), BlockedSession)
    assert "run in ONNX Runtime's blocked layout" in str(model.explain())
    pack = model.bundle.pack("flowers")
    model.remove_domain("flowers")
    model.add_domain(pack)  # its row is another one now
    expected = toy.reference(toy.make_tables(), batch, np.array([0, 1, 2, 2, 1, 0]))
    got = model.logits(batch, ["flowers", "signs", "digits", "digits", "signs", "flowers"])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_remembered_plan_is_held_to_the_plain_graph_again(
    model: Model, bundle_path: Path, toy: ModuleType, batch: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    planned(monkeypatch, Plan(times(1), times(9), plain=times(2)))
    model.tune()
    again = load(bundle_path, "cpu", threads=1)
    assert again.tune() == model.tune()
    assert isinstance(again.sessions.mixed(), BlockedSession)
    monkeypatch.setattr(layout_module, "disagreement", lambda *_: 0.1)
    wrong = load(bundle_path, "cpu", threads=1)
    plan = wrong.tune()
    assert plan.layout == "its answers are 1.0e-01 off, over 0.0001"
    assert (plan.mixed, plan.plain) == (times(2), {})
    assert not isinstance(wrong.sessions.mixed(), BlockedSession)
    assert "blocked layout: its answers are 1.0e-01 off" in str(wrong.explain())
    agrees(wrong, toy, batch)


@pytest.mark.parametrize("error", [RuntimeError("no such operator"), MemoryError()])
def test_what_cannot_be_made_is_no_error(
    model: Model, toy: ModuleType, batch: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(layout_module, "BlockedSession", fail)
    plan = model.tune()
    assert plan.layout
    assert not plan.plain
    agrees(model, toy, batch)


def test_a_session_that_gives_up_while_it_is_checked_is_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(BlockedSession, "_run", fail)
    assert open_blocked(model.sessions, packs(model)) == (
        "the blocked layout was given up: no such kernel"
    )


def test_only_for_float32_on_onnxruntimes_cpu(bundle_path: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'prunion[openvino]'")
    model = load(bundle_path, "openvino", threads=1)
    found = open_blocked(model.sessions, packs(model))
    assert found == "it is for float32 on a CPU, by ONNX Runtime"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Measured times are those of what sleeps, whatever else the machine does."""
    clock = Clock()
    monkeypatch.setattr("prunion.runtime.base.timing.time", clock)
    return clock


def test_the_faster_of_both_is_planned(clock: Clock) -> None:
    def cases(blocked: float) -> dict:
        return {
            "mixed": lambda x: clock.sleep(2e-3),
            "blocked": lambda x: clock.sleep(blocked),
        }

    plan = measure_plan(cases(2e-4), lambda n: np.zeros(n), 0.01)
    assert plan.plain
    assert plan.mixed[8] < plan.plain[8]
    plan = measure_plan(cases(4e-3), lambda n: np.zeros(n), 0.01)
    assert not plan.plain
    assert plan.layout.startswith("it takes ")
    assert plan.layout.endswith("of the plain graph's time")


def test_parts_are_added_up() -> None:
    plan = Plan({1: 1.0, 2: 1.5, 8: 3.0}, plain=times(9))
    assert plan.together(8) == 3.0
    assert plan.together(11) == 3.0 + 1.5 + 1.0
    assert Plan({1: 1.0, 2: 1.5, 8: 3.0}).together(5) == 2.25, "one session takes them all"


def test_a_split_counts_what_its_parts_cost_one_after_the_other() -> None:
    single = {1: 1.0, 2: 2.0, 8: 8.0}
    assert Plan(times(10), single).splits([4, 4])
    assert not Plan(times(10), single, spread=1.3).splits([4, 4])


def test_the_cost_of_a_split_is_measured(clock: Clock) -> None:
    cases = {
        "mixed": lambda x: clock.sleep(5e-4),
        "pinned": lambda x: clock.sleep(5e-4),
        "split": lambda x: clock.sleep(2.4e-3),
    }
    plan = measure_plan(cases, lambda n: np.zeros(n), 0.02)
    assert plan.spread == pytest.approx(1.2), "2.4 ms, and four times 0.5"


def test_a_plan_remembers_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path))
    plan = Plan(times(1), times(2), {}, plain=times(3), layout="because", spread=1.25)
    save_plan("key", plan)
    assert load_plan("key") == plan


def test_without_memory_for_pinned_sessions_the_layout_is_still_measured(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path))
    model = load(bundle_path, "cpu", threads=1, memory_limit=0)
    plan = model.tune()
    assert plan.mixed
    assert not plan.single
    assert not plan.splits([4, 4])
    assert plan.plain or plan.layout
    told = str(model.explain())
    assert "a mixed batch of 8 is run mixed, the memory limit of 0 bytes" in told
    assert load(bundle_path, "cpu", threads=1, memory_limit=0).tune() == plan


def test_tables_of_very_many_domains_are_not_copied_for_each(
    model: Model, toy: ModuleType, batch: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer with weights of each image's own would be held once for each domain."""
    made: list[float | None] = []

    class Made(BlockedSession):
        def __init__(self, *args: object, fold: float | None = None) -> None:
            made.append(fold)
            super().__init__(*args, **({} if fold is None else {"fold": fold}))  # type: ignore[arg-type]

        def holds(self, domains: int, bank_row: int) -> bool:
            return made[-1] == 0 and domains <= 3

    monkeypatch.setattr(layout_module, "BlockedSession", Made)
    planned(monkeypatch, Plan(times(1), times(9), plain=times(2)))
    agrees(model, toy, batch)
    assert made == [None, 0.0]
    session = model.sessions.mixed()
    assert isinstance(session, BlockedSession) and not session.note()
    model.add_domain(replace(model.bundle.pack("flowers"), name="more"))
    agrees(model, toy, batch)  # by the plain graph
    assert "its tables are too large" in session.note()
