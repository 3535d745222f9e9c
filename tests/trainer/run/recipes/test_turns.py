"""Orders in which domains take turns: what is one domain's own stands still while others learn."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from prunion.trainer.config import load_config
from prunion.trainer.learning import Training, norms
from prunion.trainer.learning.optimiser import MixedOptimiser
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run

METHODS: dict[str, dict[str, Any]] = {
    "norms": {},
    "finetune": {"weight_decay": 0.1},
    "piggyback": {"switch_lr": 0.01},
    "affine": {"switch_lr": 0.01},
    "series": {},
    "parallel": {},
    "svd": {},
    "taps": {},
    "lora": {"weight_decay": 0.1},
    "ba2": {"recipe": '"paper"', "switch_lr": 2e-3},
    "ba2 slices": {"granularity": '"slice"', "switch_lr": 2e-3},
}
# Adapters beside convolutions, as "parallel" has, and switches as "ba2" has for slices.
ALIKE = ("svd", "lora", "taps", "ba2")


@pytest.mark.parametrize(
    ("method", "order"),
    [
        ("affine", "batch"),
        *(
            pytest.param(x, "round-robin", marks=pytest.mark.thorough)
            if x in ALIKE
            else (x, "round-robin")
            for x in METHODS
        ),
    ],
)
def test_an_absent_domain_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, order: str
) -> None:
    """No memory of an optimiser, and no decay, moves what had no gradient."""
    step, seen = Training._step, [0, 0]

    def watched(self: Training, batches: Any) -> Any:
        present = {batch.domain for batch in batches}
        absent = [d for d in (0, 1) if d not in present]
        before = rows(self, absent)
        result = step(self, batches)
        if self.schedule.phase(self.step) == self.schedule.phase(max(0, self.step - 1)):
            for name, value in rows(self, absent).items():
                assert torch.equal(value, before[name]), (self.step, name)
                seen[0] += 1
        return result

    def rows(self: Training, domains: list[int]) -> dict[str, torch.Tensor]:
        norms = {id(p) for norm in self.net.norms.values() for p in norm.parameters()}
        found = {}
        for name, value in self.net.named_parameters():
            own = id(value) in norms or ".series." in name or name.startswith("adapter.")
            for domain in domains:
                found[f"scores/{domain}"] = self.learner.scores[domain].clone()
                if own:
                    found[f"{name}/{domain}"] = value.detach()[domain].clone()
                elif name.startswith(f"heads.{domain}."):
                    found[name] = value.detach().clone()
        return found

    monkeypatch.setattr(Training, "_step", watched)
    keys = {"warmup": 0, "ramp": 2, "settle": 1, "order": f'"{order}"'}
    keys |= {"method": f'"{method.partition(" ")[0]}"'}
    config = load_config(tiny_run(tmp_path, **keys, **METHODS[method]))
    train_run(config, tmp_path / "out")
    assert seen[0]


def test_a_row_moves_as_if_its_domain_were_alone() -> None:
    """Step by step what torch's AdamW, and SGD, make of that domain's gradients."""
    torch.manual_seed(0)
    start, gradients = torch.randn(2, 5), torch.randn(12, 2, 5)
    turns = [0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 1]
    for sgd in (False, True):
        rows = torch.nn.Parameter(start.clone())
        more = {"rows": True, "sgd": sgd, "weight_decay": 0.1}
        mixed = MixedOptimiser([{"params": [rows], "lr": 0.01, **more}])
        alone = [torch.nn.Parameter(row.clone()) for row in start]
        if sgd:
            others: list[torch.optim.Optimizer] = [
                torch.optim.SGD([row], 0.01, momentum=0.9, weight_decay=0.1) for row in alone
            ]
        else:
            others = [torch.optim.AdamW([row], 0.01, weight_decay=0.1) for row in alone]
        for turn, gradient in zip(turns, gradients, strict=True):
            mixed.present = [turn]
            rows.grad = torch.zeros_like(rows)
            rows.grad[turn] = gradient[turn]
            alone[turn].grad = gradient[turn].clone()
            mixed.step()
            others[turn].step()
        torch.testing.assert_close(rows.detach(), torch.stack([row.detach() for row in alone]))


@pytest.mark.parametrize("order", ["tasks", "task-passes"])
def test_a_turn_of_packnet_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """Without the last one's momentum, and where that ended with the cut with new statistics.

    The last turn has none; it is too short to have brought its own.
    """
    events: list[str] = []
    step, move = norms.estimate_norms, Training._move

    def estimated(*args: Any, **options: Any) -> None:
        events.append("statistics")
        step(*args, **options)

    def moved(self: Training, domains: Any) -> None:
        assert self.net.adapter is not None
        if not any(p in self.optimiser.state for p in self.net.adapter.parameters()):
            events.append(f"turn {self.schedule.task(self.step)}")
        move(self, domains)

    monkeypatch.setattr(norms, "estimate_norms", estimated)
    monkeypatch.setattr(Training, "fitted_norms", nullcontext)  # of what is measured on the way
    monkeypatch.setattr(Training, "_move", moved)
    keys = {"warmup": 0, "ramp": 2, "settle": 0, "method": '"packnet"', "norms": '"own"'}
    keys["order"] = f'"{order}"'
    train_run(load_config(tiny_run(tmp_path, **keys)), tmp_path / "out")
    assert events == ["turn 0", "statistics", "turn 1", "statistics"]


def test_packnet_gives_back_what_it_is_told_whatever_the_budget(tmp_path: Path) -> None:
    """Of half of the weights, which the backbone gave up, the first domain keeps a quarter."""
    keys = {"warmup": 0, "ramp": 1, "settle": 1, "method": '"packnet"', "packnet_prune": 0.75}
    train_run(load_config(tiny_run(tmp_path, **keys)), tmp_path / "out")
    parts = load_checkpoint(tmp_path / "out").net.state_dict()
    owners = torch.cat([v.flatten() for k, v in parts.items() if k.startswith("adapter.owner_")])
    first = (owners == 2).float().mean().item()
    assert first == pytest.approx(0.125, abs=0.005)


def test_turns_have_no_accuracy_after_warm_up(tmp_path: Path) -> None:
    """One was told: of domains whose turn came later it was that of a network never trained."""
    keys = {"warmup": 1, "ramp": 1, "settle": 0, "method": '"packnet"'}
    result = train_run(load_config(tiny_run(tmp_path, **keys)), tmp_path / "out")
    assert result.accuracy_before == {}
    assert "after warm-up" not in str(result)
    assert "accuracy_before" not in (tmp_path / "out" / "metrics.jsonl").read_text("utf-8")


def test_one_domain_alone_has_an_accuracy_after_warm_up(tmp_path: Path) -> None:
    """Its warm-up is all domains'."""
    run_file = tiny_run(tmp_path, warmup=1, ramp=1, settle=1, method='"packnet"')
    run_file.write_text(run_file.read_text("utf-8").partition("[domains.cold]")[0], "utf-8")
    result = train_run(load_config(run_file), tmp_path / "out")
    logged = (tmp_path / "out" / "metrics.jsonl").read_text("utf-8").splitlines()
    told = [json.loads(line) for line in logged]
    assert list(result.accuracy_before) == ["warm"]
    assert [x["step"] for x in told if "accuracy_before/warm" in x] == [2]
