"""What a run may add to the plain recipe: a teacher, averaged weights, a late trunk, decay."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from prunion.runtime.base import sha256_file
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config import RunConfig, TrainConfig, load_config
from prunion.trainer.learning import Training
from prunion.trainer.learning.optimiser import WeightAverage, make_optimiser
from prunion.trainer.learning.step.distillation import Teacher, load_teacher
from prunion.trainer.network import DomainNet, load_checkpoint
from prunion.trainer.run import check_run, train_run
from tests.support.tiny_run import tiny_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that can teach."""
    folder = tmp_path_factory.mktemp("teacher")
    run_file = tiny_run(folder, ramp=0)
    train_run(load_config(run_file), folder / "out")
    return folder / "out"


def steps(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(x) for x in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [row for row in rows if "cost" in row]


def test_the_loss_is_the_labels_and_the_teachers() -> None:
    teacher = Teacher(nn.Identity(), 0.25)  # type: ignore[arg-type]
    logits, soft = torch.randn(3, 5), torch.randn(3, 5)
    p, q = (soft / 2).softmax(1), (logits / 2).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = 0.75 * 2.0 + 0.25 * 4 * divergence
    assert teacher.loss(torch.tensor(2.0), logits, soft) == pytest.approx(float(expected))
    assert float(teacher.loss(torch.tensor(0.0), soft, soft)) == pytest.approx(0, abs=1e-6)


def test_a_teacher_alone_teaches_its_answers(finished: Path, tmp_path: Path) -> None:
    """With the whole loss the teacher's, a network of its shape comes close to it."""
    run_file = tiny_run(
        tmp_path,
        teacher=f'"{finished}"',
        distillation=1.0,
        ramp=1,
        settle=12,
        head_start='"random"',
    )
    train_run(load_config(run_file), tmp_path / "out")
    losses = [row["loss/warm"] + row["loss/cold"] for row in steps(tmp_path / "out")]
    assert min(losses[-4:]) < 0.1 * max(losses[:4])


def test_a_teacher_of_other_domains_is_refused(finished: Path) -> None:
    run = load_checkpoint(finished).config
    warm, cold = ("green", "red"), ("blue", "green", "red")
    taught = TrainConfig(teacher=str(finished))

    def load(train: TrainConfig, size: int = 16, **classes: tuple[str, ...]) -> Teacher | None:
        own = replace(run, train=train, input=replace(run.input, size=size))
        return load_teacher(own, classes, torch.device("cpu"))

    assert load(TrainConfig(), warm=warm, cold=cold) is None
    assert load(replace(taught, distillation=0.0), warm=warm, cold=cold) is None
    assert load(taught, warm=warm, cold=cold) is not None
    with pytest.raises(ConfigError, match="knows the domains warm, cold, the run has cold, warm"):
        load(taught, cold=cold, warm=warm)
    with pytest.raises(ConfigError, match="knows other classes of cold"):
        load(taught, warm=warm, cold=("red", "green", "blue"))
    with pytest.raises(ConfigError, match=r"trained with \[input\] size = \(16, 16\)"):
        load(taught, size=24, warm=warm, cold=cold)
    run = replace(run, input=replace(run.input, orientation="ignore"))
    with pytest.raises(ConfigError, match=r"trained with \[input\] orientation = exif"):
        load(taught, warm=warm, cold=cold)
    with pytest.raises(PrunionError, match="holds the run out: give that folder"):
        load(replace(taught, teacher=str(finished.parent)), warm=warm, cold=cold)


def test_heads_by_sgd_move_as_torchs_own(finished: Path) -> None:
    net = load_checkpoint(finished).net
    train = TrainConfig(head_optimiser="sgd", trunk="frozen", weight_decay=0.1)
    ours, head = make_optimiser(train, net), net.heads[1]
    norm = next(iter(net.norms.values()))
    other = copy.deepcopy(head)
    theirs = torch.optim.SGD(other.parameters(), 1e-3, momentum=0.9, weight_decay=0.1)
    before = norm.weight.detach().clone()
    for seed in range(3):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
        for layer, optimiser in ((head, ours), (other, theirs)):
            optimiser.zero_grad()
            (layer(x).square().sum() + norm.weight.sum()).backward()
            optimiser.step()
    torch.testing.assert_close(head.weight, other.weight)
    torch.testing.assert_close(
        before - norm.weight, torch.full_like(before, 0.03), rtol=0.01, atol=0
    )
    assert len(ours.param_groups) == 3  # the norms, and a head for each domain


def test_the_average_is_plain_at_first_and_then_forgets(finished: Path) -> None:
    net = load_checkpoint(finished).net
    average, seen = WeightAverage(span=4), []
    bias = net.heads[0].bias
    assert isinstance(bias, nn.Parameter)
    for value in (1.0, 2.0, 6.0):
        bias.data.fill_(value)
        average.update(net)
        seen.append(float(average.tensors["heads.0.bias"][0]))
    assert seen == pytest.approx([1.0, 1.5, 3.0])
    for _ in range(40):
        average.update(net)
    average.move_into(net)
    assert float(bias.data[0]) == pytest.approx(6.0, abs=1e-3)
    assert not average.tensors


def test_an_average_over_less_than_a_step_is_the_network_itself(finished: Path) -> None:
    net = load_checkpoint(finished).net
    average, bias = WeightAverage(span=0.3), net.heads[0].bias
    assert isinstance(bias, nn.Parameter)
    for value in (1.0, -2.0, 6.0, 0.5):
        bias.data.fill_(value)
        average.update(net)
        assert float(average.tensors["heads.0.bias"][0]) == value


def test_an_averaged_run_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levers = {"trunk_from": '"settle"', "head_optimiser": '"sgd"'}
    config = load_config(tiny_run(tmp_path, average=1.0, settle=2, **levers))
    whole = train_run(config, tmp_path / "whole")
    step = Training._step

    def broken(self: Training, *args: object) -> object:
        if self.step == self.schedule.total - 1:
            raise OSError("power cut")
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_step", broken)
    with pytest.raises(OSError, match="power cut"):
        train_run(config, tmp_path / "parts")
    monkeypatch.setattr(Training, "_step", step)
    train_run(config, tmp_path / "parts", resume=True)
    a, b = (x / "checkpoint" / "model.safetensors" for x in (whole.folder, tmp_path / "parts"))
    assert sha256_file(a) == sha256_file(b)


def test_a_late_trunk_keeps_its_weights_until_the_switches_are_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, torch.Tensor]] = []
    step = Training._step

    def watched(self: Training, *args: object) -> object:
        seen.append((self.phase, self.net.state_dict()["trunk.conv1.weight"].clone()))
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_step", watched)
    run_file = tiny_run(tmp_path, trunk_from='"settle"', ramp=2, settle=1)
    train_run(load_config(run_file), tmp_path / "out")
    begun = [phase for phase, _ in seen].index("settle")
    first = seen[0][1]
    assert 0 < begun < len(seen) and all(torch.equal(first, x) for _, x in seen[: begun + 1])
    learned = load_checkpoint(tmp_path / "out").net.state_dict()["trunk.conv1.weight"]
    assert not torch.equal(first, learned)


def test_a_trunk_that_waits_for_settling_that_never_comes_is_refused(tmp_path: Path) -> None:
    """Before the first step, and not where such a run of before is read."""
    run_file = tiny_run(tmp_path, trunk_from='"settle"', settle=0)
    config = load_config(run_file)
    assert RunConfig.from_checkpoint(config.to_json()) == config
    with pytest.raises(ConfigError, match="settle is 0, so the trunk would never learn: give"):
        train_run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    check_run(load_config(run_file, ["train.recipe=once"]))  # it settles as soon as it is cut


def test_small_sets_are_pulled_harder(finished: Path) -> None:
    net: DomainNet = load_checkpoint(finished).net
    train = TrainConfig(trunk="frozen", weight_decay=0.01, small_set_decay=0.2)
    groups = make_optimiser(train, net, [400, 100]).param_groups
    assert [g["weight_decay"] for g in groups] == pytest.approx([0.0, 0.06, 0.21])
    plain = TrainConfig(trunk="frozen", weight_decay=0.01)
    groups = make_optimiser(plain, net, [400, 100]).param_groups
    assert [g["weight_decay"] for g in groups] == [0.0, 0.01, 0.01]
