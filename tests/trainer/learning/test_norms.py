"""BatchNorm's statistics at a run's end are of the network that answers, however short it was."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunion.trainer.config import TrainConfig, load_config
from prunion.trainer.learning import Training
from prunion.trainer.learning.norms import RunNorms, estimate_norms
from prunion.trainer.network import DomainNorm
from prunion.trainer.pruning import Schedule
from prunion.trainer.run import train_run
from prunion.trainer.score.learned import read_learned
from prunion.trainer.score.verdict import judge
from tests.support.tiny_run import tiny_run


def statistics(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.named_buffers() if "running_" in k}


@pytest.mark.parametrize(
    "keys",
    [{"average": 1.0}, {"order": '"batch"'}, {"method": '"series"', "norms": '"frozen"'}],
    ids=["joint", "batch", "series"],
)
def test_a_short_run_ends_with_statistics_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    """A few steps move them by a tenth each: they were the backbone's, and fitted nothing."""
    assert_fits(trained(tiny_run(tmp_path, **{"ramp": 1, **keys}), monkeypatch))


def trained(file: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    runs: list[Training] = []
    start = Training.__init__

    def kept(self: Training, *args: object, **options: object) -> None:
        start(self, *args, **options)  # type: ignore[arg-type]
        runs.append(self)

    monkeypatch.setattr(Training, "__init__", kept)
    train_run(load_config(file), file.parent / "out")
    (run,) = runs
    return run


def assert_fits(run: Training) -> None:
    found = statistics(run.net)
    torch.manual_seed(0)
    estimate_norms(run.net, run.batches.epoch(run.epoch, joint=True))
    again = statistics(run.net)
    for name in found:
        torch.testing.assert_close(found[name], again[name], rtol=0.2, atol=0.05)
    with run.fitted_norms():  # at the end they fit already
        assert all(torch.equal(v, again[k]) for k, v in statistics(run.net).items())


ONE = Schedule(0, 0, 0, 0.5)


def norms_of(
    steps_per_epoch: int = 4, least: int = 4, schedule: Schedule = ONE, **train: Any
) -> RunNorms:
    batches = SimpleNamespace(steps_per_epoch=steps_per_epoch, least_per_epoch=least)
    zero, one = torch.zeros(2), torch.ones(2)
    net = DomainNorm(1, None, None, zero, one, 1e-5, torch.zeros(2).long().numpy())
    return RunNorms(net, batches, TrainConfig(**train), schedule, lambda: None)  # type: ignore[arg-type]


def test_steps_that_follow_bring_them() -> None:
    """As many as leave a hundredth of what they were before: runs of real length have them."""
    norms = norms_of()
    assert [norms.fit(step) for step in (0, 43, 44)] == [False, False, True]
    norms.fixed_at = 100
    assert [norms.fit(step) for step in (143, 144)] == [False, True]
    assert norms_of(accumulate=4).fit(11)
    assert [norms_of(least=2, order="batch").fit(step) for step in (86, 88)] == [False, True]
    frozen = norms_of()
    frozen.net.frozen = True  # type: ignore[assignment]
    assert frozen.fit(0)


def turns(*phases: tuple[int, int, int]) -> RunNorms:
    schedule = Schedule.of_turns([Schedule(*turn, 0.5) for turn in phases])
    return norms_of(schedule=schedule, method="packnet", order="task-passes")


def test_every_turn_is_asked() -> None:
    """The last one's steps alone were counted: an earlier, smaller domain's stayed its start's."""
    late = turns((0, 50, 50), (0, 20, 20))
    assert [late.fit(step) for step in (43, 44, 50, 93, 94, 100, 140)] == [
        *(False, True),  # of the first turn
        *(False, False, True),  # since what it gave back
        *(False, False),  # of the last, which is too short
    ]
    assert [turns((0, 20, 20), (0, 90, 90)).fit(step) for step in (90, 220)] == [False, False]
    once = turns((0, 20, 0), (0, 90, 0))  # they are estimated as the first ends
    once.fixed_at = 20
    assert [once.fit(step) for step in (63, 64, 110)] == [False, True, True]
    assert turns((0, 3, 44), (0, 22, 22)).fit(91)


def test_a_small_domain_that_came_first_ends_with_statistics_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"method": '"packnet"', "order": '"task-passes"', "norms": '"own"', "batch_size": 4}
    file = tiny_run(tmp_path, warmup=0, ramp=7, settle=1, **keys)
    for image in (tmp_path / "data/warm/train").glob("*/*.png"):
        if int(image.stem) > 1:
            image.unlink()
    run = trained(file, monkeypatch)
    assert [turn.total for turn in run.schedule.turns] == [8, 48]
    assert_fits(run)


def test_a_measurement_takes_part_of_a_long_epoch_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A small domain lacks steps for many epochs, each of which passed forward once more."""
    taken, norms = [], norms_of()
    trunk = nn.BatchNorm2d(2)
    norms.net = SimpleNamespace(trunk=trunk, switches=torch.ones(1, 2))  # type: ignore[assignment]
    norms.batches.epoch = lambda epoch, joint: iter(range(1000))  # type: ignore

    def estimate(net: Any, steps: Any, *args: object, **options: object) -> None:
        taken.append(len(list(steps)))
        trunk.running_var.fill_(7)  # type: ignore[union-attr, operator]

    monkeypatch.setattr("prunion.trainer.learning.norms.estimate_norms", estimate)
    with pytest.raises(KeyError), norms.estimated(5, 0, None, gated=True):
        assert norms.fit(5) and statistics(trunk)["running_var"].tolist() == [7, 7]
        raise KeyError
    assert statistics(trunk)["running_var"].tolist() == [1, 1] and norms.estimated_at == -1
    norms.estimate(5, 0)  # of the run's end
    assert taken == [100, 1000]


class Plain(nn.Module):
    """Without any norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 16, 3, 2)
        self.fc = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "settle"),
    [
        (None, 1),
        (Plain, 0),
        *(pytest.param(*x, marks=pytest.mark.thorough) for x in ((None, 0), (Plain, 1))),
    ],
)
def test_what_the_cut_does_is_not_laid_to_norms(
    tmp_path: Path, model: type[nn.Module] | None, settle: int
) -> None:
    """Steps before it answered all, the network after it half: norms, or images, were blamed."""
    file = tiny_run(tmp_path, recipe='"once"', warmup=9, ramp=0, settle=settle, lr=0.01)
    text = file.read_text("utf-8").replace("limit = 0.5", "limit = 0.02")
    file.write_text(text.replace("round_to = 8", "round_to = 1"), "utf-8")
    if model:
        file.write_text(file.read_text("utf-8").replace('cut = "layer1"\n', ""), "utf-8")
    torch.manual_seed(0)
    train_run(load_config(file), tmp_path / "out", model=model and model())
    record = json.loads((tmp_path / "out" / "record.json").read_text("utf-8"))
    found = read_learned(tmp_path / "out")
    assert found is not None and record["cut_later"] == (not settle)
    assert set(found.seen) == ({"warm", "cold"} if settle and not model else set())
    if not settle:
        assert found.trained == {k: v["accuracy"] for k, v in record["seen"].items()}
        assert found.images == {"warm": 16, "cold": 24}
        assert found.trained["cold"] < 0.7 and judge(found).limit == "unknown"
