"""Several seeds and budgets by one command: each run is what it would be alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.runtime.errors import BudgetError, PrunionError, StoppedError
from prunion.trainer.cli import train as train_command
from prunion.trainer.config import load_config
from prunion.trainer.learning import Training
from prunion.trainer.pruning import Schedule
from prunion.trainer.run import sweep_table, train_run, train_sweep
from prunion.trainer.run.folder import beginning
from prunion.trainer.run.sweep.branches import sharing_facts
from prunion.trainer.run.sweep.finished import draw_all
from prunion.trainer.run.sweep.sweep_run import SweepRun
from prunion.trainer.run.sweep.table import draw_frontier, sweep_result
from tests.support.tiny_run import tiny_run

SHORT = {"warmup": 1, "ramp": 1, "settle": 1}


PLACES = ["seed-3-budget-0.4", "seed-3-budget-0.7"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def checkpoint(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "checkpoint").iterdir())}


def test_runs_that_share_a_warm_up_are_those_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file, out = tiny_run(tmp_path, **SHORT), tmp_path / "out"
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.7, 0.4)]
    alone = train_run(configs[1], tmp_path / "alone")
    epochs: list[int] = []
    run_epoch = Training.run_epoch

    def counted(self: Training, *rest: object) -> None:
        if len(epochs) == 4:
            raise StoppedError("in the second run's ramp", 143)
        epochs.append(self.epoch)
        run_epoch(self, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run_epoch", counted)
        with pytest.raises(StoppedError):
            train_sweep(configs, out, shared="warm-up")
    assert epochs == [0, 1, 2, 1]  # the second has no warm-up of its own
    first = checkpoint(out / "seed-3-budget-0.7")
    result = train_sweep(configs, out, resume=True, shared="warm-up")
    assert checkpoint(out / "seed-3-budget-0.7") == first
    assert checkpoint(out / "seed-3-budget-0.4") == checkpoint(tmp_path / "alone")
    assert names(out) == ["frontier.png", "frontier.svg", *PLACES]
    logs = [
        [
            (x.get("step"), x.get("loss/warm"))
            for x in map(json.loads, path.read_text().splitlines())
        ]
        for path in (out / "seed-3-budget-0.4" / "metrics.jsonl", tmp_path / "alone/metrics.jsonl")
    ]
    assert logs[0] == logs[1]
    assert result.budgets[1]["accuracy"]["warm"]["mean"] == alone.accuracy["warm"]
    assert sweep_table(result).splitlines()[2].startswith("0.4              1")
    again = [load_config(run_file, ["budget.limit=0.4", "train.settle=2"]), configs[0]]
    with pytest.raises(
        PrunionError, match=r"a run with another configuration \(\[train\] settle was 1 and is 2"
    ):
        train_sweep(again, out, resume=True, shared="warm-up")


LONG = {"warmup": 1, "ramp": 2, "settle": 2}


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def stopping(monkeypatch: pytest.MonkeyPatch, epochs: int) -> pytest.MonkeyPatch:
    """End the process, as a kill would, when so many epochs were begun."""
    begun: list[int] = []
    run_epoch = Training.run_epoch

    def counted(self: Training, *rest: object) -> None:
        if len(begun) == epochs:
            raise KeyboardInterrupt
        begun.append(self.epoch)
        run_epoch(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "run_epoch", counted)
    return monkeypatch


@pytest.mark.thorough
def test_budgets_leave_the_ramp_of_the_lowest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file, out = tiny_run(tmp_path, **LONG), tmp_path / "out"
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.8, 0.6, 0.4)]
    train_run(configs[2], tmp_path / "alone")
    result = train_sweep(configs, out)
    places = [out / f"seed-3-budget-{limit}" for limit in (0.8, 0.6, 0.4)]
    assert checkpoint(places[2]) == checkpoint(tmp_path / "alone")  # the lowest shares at no cost
    # Three steps an epoch: the ramp is 6, of which the limit falls for 5.4.
    found = [run["branched_from"] for run in result.runs]
    shared = {"run": "seed-3-budget-0.4", "limit": 0.4}
    assert found == [
        {**shared, "steps": 5, "skipped": 4},
        {**shared, "steps": 7, "skipped": 2},
        None,
    ]
    assert all(run["budget"]["met"] for run in result.runs)
    for place, fact in zip(places[:2], found[:2], strict=True):
        stored = json.loads((place / "checkpoint" / "checkpoint.json").read_text())
        assert stored["branched_from"] == fact and fact is not None
        trained = [x for x in lines(place) if "cost" in x]
        before = [x for x in lines(places[2]) if "cost" in x and x["step"] < fact["steps"]]
        assert trained[: fact["steps"]] == before
        later = range(fact["steps"] + fact["skipped"], 15)
        assert [x["step"] for x in trained[fact["steps"] :]] == list(later)
        assert {x["cost"] for x in trained[fact["steps"] :]} == {trained[-1]["cost"]}
    assert [row["params"] for row in result.budgets] == sorted(
        (row["params"] for row in result.budgets), reverse=True
    )
    assert "2 runs left the ramp of seed-3-budget-0.4" in sweep_table(result)
    assert [path.suffix for path in result.pictures] == [".png", ".svg"]
    assert names(out) == ["frontier.png", "frontier.svg", *sorted(x.name for x in places)]
    assert [point.name for point in result.frontier().points] == ["0.8", "0.6", "0.4"]

    # Killed in the ramp between two of its states, then in a run that left it: the same in the end.
    again = tmp_path / "again"
    for epochs, resume in ((4, False), (4, True)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stopping(patch, epochs)
            train_sweep(configs, again, resume=resume)
    assert any(name.startswith("fork.") for name in names(again))
    train_sweep(configs, again, resume=True)
    assert [checkpoint(again / place.name) for place in places] == [*map(checkpoint, places)]
    assert names(again) == names(out)


def test_resume_refuses_another_sharing_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file, out = tiny_run(tmp_path, **LONG), tmp_path / "out"
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.8, 0.4)]
    rehearsed, asked = [], []
    monkeypatch.setattr(beginning, "check_space", lambda path, needed, fix: asked.append(needed))

    def check(*network: object) -> None:
        rehearsed.append(network)

    # Killed on the ramp behind the first fork, then in the run that left there.
    for epochs, resume in ((3, False), (3, True)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stopping(patch, epochs)
            train_sweep(configs, out, resume=resume, check=check)
        before = names(out)
        kept = [out / name for name in before if name.endswith(".safetensors")]
        assert len(kept) == 1
        with pytest.raises(PrunionError, match=r"with share = .ramp., and this one has .warm-up."):
            train_sweep(configs, out, resume=True, check=check, shared="warm-up")
        with pytest.raises(PrunionError, match=r"with shorter = 0\.0, and this one has 0\.5"):
            train_sweep(configs, out, resume=True, check=check, shorter=0.5)
        assert names(out) == before
    there = asked[0] - asked[1]
    state = (out / PLACES[0] / "state.safetensors").stat().st_size
    assert there > 1.5 * state  # the state, and the fork
    train_sweep(configs, out, resume=True, check=check)
    with pytest.raises(PrunionError, match=r"with share = .ramp."):  # what left is as it was begun
        train_sweep(configs, out, resume=True, check=check, shared="warm-up")
    assert len(rehearsed) == 1
    more = [*configs, load_config(run_file, ["budget.limit=0.6"])]
    for config in configs:
        (out / f"seed-3-budget-{config.budget.limit}" / "graph.json").write_text("{}")
    with pytest.raises(PrunionError, match="another network"):
        train_sweep(more, out, resume=True, check=refused)


def refused(*network: object) -> None:
    raise PrunionError("another network")


def test_a_sweep_over_an_old_one_is_the_same(tmp_path: Path) -> None:
    run_file, out = tiny_run(tmp_path, **SHORT), tmp_path / "out"
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.7, 0.4)]
    first = train_sweep(configs, out)
    written = [checkpoint(out / place) for place in PLACES]
    second = train_sweep(configs, out, force=True)
    assert [checkpoint(out / place) for place in PLACES] == written
    branched = [run["branched_from"] for run in second.runs]
    assert branched == [run["branched_from"] for run in first.runs]
    assert branched[0] is not None


def test_a_budget_that_comes_later_is_trained_from_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_file, out = tiny_run(tmp_path, **SHORT), tmp_path / "out"
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.7, 0.4)]
    train_sweep(configs[1:], out)
    result = train_sweep(configs, out, resume=True)
    train_run(configs[0], tmp_path / "alone")
    assert result.runs[0]["branched_from"] is None
    assert checkpoint(out / "seed-3-budget-0.7") == checkpoint(tmp_path / "alone")
    drawn: list[list[str]] = []
    monkeypatch.setattr(
        "prunion.trainer.run.sweep.finished.draw_frontier",
        lambda found: drawn.append([point.name for point in found.frontier().points]) or (),
    )
    assert len(train_sweep(configs[:1], out, resume=True).runs) == 1
    assert drawn == [["0.7", "0.4"]]  # the picture that is there shows both
    with monkeypatch.context() as patch, caplog.at_level("WARNING", "prunion"):
        of_warm_up = {"sharing": {"share": "warm-up", "shorter": 0.0}}
        patch.setattr("prunion.trainer.run.sweep.finished.snapshot_facts", lambda _: of_warm_up)
        run = SweepRun(configs[0], out / PLACES[1])
        assert draw_all(out, [run], sharing_facts("ramp", 0.0)) == ()
    assert drawn.pop() == ["0.7"]
    assert "budget-0.4 (of a sweep with share = 'warm-up', and this one has 'ramp')" in caplog.text
    (out / "seed-3-budget-0.4" / "record.json").write_text("{}", "utf-8")
    with caplog.at_level("WARNING", "prunion"):
        train_sweep(configs[:1], out, resume=True)
    assert drawn[1] == ["0.7"]
    assert "lacks runs that lie there too: seed-3-budget-0.4 (damaged)" in caplog.text


@pytest.mark.parametrize(
    "phases",
    [
        {"ramp": 0},
        pytest.param({"settle": 0}, marks=pytest.mark.slow),
        pytest.param({"recipe": '"once"'}, marks=pytest.mark.slow),
    ],
)
def test_where_there_is_no_ramp_to_leave_runs_are_those_alone(
    tmp_path: Path, phases: dict[str, object]
) -> None:
    run_file, out = tiny_run(tmp_path, **{**SHORT, **phases}), tmp_path / "out"
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.7, 0.4)]
    train_sweep(configs, out)
    train_run(configs[1], tmp_path / "alone")
    assert checkpoint(out / "seed-3-budget-0.4") == checkpoint(tmp_path / "alone")


def test_own_weights_are_counted_or_not_known(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path, adapter_rank=2), ["budget.limit=0.5"])
    plain = {"params": [100, 40], "macs": [10, 5], "accuracy": {"warm": 0.5}, "seconds": 1.0}
    run = {**plain, "seed": 0, "folder": "x", "budget": {"kind": "params", "met": True}}
    counted = sweep_result(tmp_path, [config], [{**run, "stored": {"params": 0.6}}])
    assert counted.frontier().points[0].params == 0.6
    assert "60.0%" in str(counted)
    assert "params: as the papers count, every domain's own weights" in str(counted)
    old = sweep_result(tmp_path, [config], [run])  # as an earlier prunion wrote it
    assert old.budgets[0]["params"] is None
    assert "40.0%" not in str(old)
    assert not old.frontier().points
    assert draw_frontier(old) == ()


@pytest.mark.parametrize("geometric", [False, True])
def test_the_ramp_passes_a_limit_at_a_known_step(geometric: bool) -> None:
    schedule = Schedule(warmup=10, ramp=20, settle=5, beta=0.25, geometric=geometric)
    for share in (0.95, 0.75, 0.5, 0.3):
        step = schedule.passes(share)
        assert schedule.target(step - 1) <= share < schedule.target(step - 2)
    assert schedule.passes(0.25) == schedule.passes(0.1) == 30
    assert schedule.passes(1.0) == 11


def test_seeds_and_budgets_are_lists_of_the_command(tmp_path: Path) -> None:
    run_file, out = tiny_run(tmp_path, warmup=0, ramp=1, settle=0), tmp_path / "out"
    lists = ["--seed", "0,1", "--budget", "50%,0.6"]
    done = CliRunner().invoke(train_command, [str(run_file), "-o", str(out), *lists, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(run["seed"], run["budget"]["asked"]) for run in found["runs"]] == [
        (0, "50%"), (0, 0.6), (1, "50%"), (1, 0.6),
    ]  # fmt: skip
    assert (out / "seed-1-budget-50_" / "checkpoint" / "checkpoint.json").is_file()
    each = [run["accuracy"]["cold"] for run in found["runs"][::2]]
    assert found["budgets"][0]["accuracy"]["cold"]["mean"] == pytest.approx(sum(each) / 2)
    for wrong in ("0.5,", "0.5,0.5"):
        done = CliRunner().invoke(train_command, [str(run_file), "--budget", wrong])
        assert done.exit_code == 2 and "give different values" in done.output


def test_a_budget_that_cannot_be_met_ends_it_before_the_first_run(tmp_path: Path) -> None:
    run_file, out = tiny_run(tmp_path, **SHORT), tmp_path / "out"
    configs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.7, 0.001)]
    with pytest.raises(BudgetError, match="give at least"):
        train_sweep(configs, out)
    assert not out.exists()
