"""Each domain thinned to a budget of its own within the union, of which no channel is lost."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunion.exporter.bundle import export_bundle
from prunion.exporter.verify import verify_bundle
from prunion.runtime.base import sha256_file
from prunion.runtime.bundle import UnitTable
from prunion.runtime.errors import ConfigError, StoppedError
from prunion.trainer.config import load_config
from prunion.trainer.learning import Training
from prunion.trainer.learning.own.budget import (
    keep_switches,
    own_account,
    own_shortfall,
)
from prunion.trainer.network import build_network, load_checkpoint
from prunion.trainer.run import closing_table, train_run, train_with_baseline
from prunion.trainer.score import read_verdict
from tests.trainer.run.own_budgets.thinned import OWN, thin_run

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    result = train_run(load_config(thin_run(folder)), folder / "out")
    assert result.own is not None
    assert "of the union's MACs a domain alone uses: warm" in closing_table(result)
    return folder


def test_every_domain_keeps_its_own_budget_within_the_union(finished: Path) -> None:
    run, out = load_config(finished / "run.toml"), finished / "out"
    whole = replace(run.budget, own=1.0)
    plain = replace(run, budget=whole, train=run.train.without_thinning())
    train_run(plain, finished / "plain")
    before, after = (load_checkpoint(finished / name).net for name in ("plain", "out"))
    table = after.units.table
    rows = (after.switches > 0).numpy()
    union = (before.switches > 0).numpy().any(0)
    assert not (rows.any(0) & ~union).any()
    for row in rows:
        assert table.macs(row) <= OWN * table.macs(union)
        assert table.macs(row) > 0.5 * OWN * table.macs(union)
    assert (rows[0] != rows[1]).any()
    trunk = {
        k: v for k, v in before.state_dict().items() if k.startswith("trunk.") and "norms" not in k
    }
    assert all(torch.equal(after.state_dict()[name], value) for name, value in trunk.items())
    assert any(
        not torch.equal(after.state_dict()[name], value)
        for name, value in before.state_dict().items()
        if "norms" in name
    )
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert lines[-2]["own/macs_of_settled/warm"] == table.macs(rows[0]) / table.macs(union) <= OWN
    exported = table.macs(rows.any(0))
    assert lines[-2]["own/macs/warm"] == table.macs(rows[0]) / exported
    assert lines[-2]["own/met"] is True
    steps = [line["step"] for line in lines if "cost" in line]
    assert steps == list(range(len(steps)))


def test_without_epochs_of_its_own_it_is_thinned_at_the_cut(tmp_path: Path) -> None:
    """It settles with what it has, trunk and all; its share is of what the file then has."""
    config = load_config(thin_run(tmp_path, own_epochs=0))
    result = train_run(config, tmp_path / "out")
    assert "of the union's MACs a domain alone uses: warm" in closing_table(result)
    assert "(own 60.0%: met)" in closing_table(result)
    net = load_checkpoint(tmp_path / "out").net
    table, rows = net.units.table, (net.switches > 0).numpy()
    assert (rows[0] != rows[1]).any()
    for row, share in zip(rows, result.own["macs"].values(), strict=True):  # type: ignore[index]
        assert table.macs(row) <= OWN * table.macs(rows.any(0))
        assert share == table.macs(row) / table.macs(rows.any(0))
    lines = (tmp_path / "out" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert len([x for x in map(json.loads, lines) if "cost" in x]) == 12, "no step more"
    export_bundle(tmp_path / "out", tmp_path / "own.prunion")
    assert not verify_bundle(tmp_path / "own.prunion", against=tmp_path / "out").problems


@pytest.mark.parametrize(
    ("alike", "round_to"),
    [
        (0.0, 8),
        (0.95, 8),
        (1.0, 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((0.0, 1), (0.5, 1), (0.5, 8), (0.95, 1), (1.0, 8))
        ),
    ],
)
def test_every_unit_of_the_union_stays_with_some_domain(
    finished: Path, alike: float, round_to: int
) -> None:
    """Domains that want the same would let go of the same: then the file would have less."""
    config = load_config(finished / "run.toml")
    budget = replace(config.budget, round_to=round_to)
    config = replace(config, train=replace(config.train, own_epochs=0), budget=budget)
    net = build_network(config.backbone, config.input.size, [2, 2, 2])
    units, random = net.units.table.count, torch.Generator().manual_seed(0)
    kept = (torch.rand(units, generator=random) < 0.8).float()
    common = torch.rand(units, generator=random)
    scores = alike * common + (1 - alike) * torch.rand(3, units, generator=random)
    keep_switches(net, kept.expand(3, -1), config, scores)
    rows, union = (net.switches > 0).numpy(), kept.numpy() > 0
    table = net.units.table
    assert (rows.any(0) == union).all()
    for row in rows:
        assert 0.9 * OWN * table.macs(union) < table.macs(row) <= OWN * table.macs(union)


def shared_among(
    finished: Path, domains: int, own: float, round_to: int = 1
) -> tuple[UnitTable, np.ndarray, np.ndarray, dict[str, Any]]:
    """Rows of domains that share out a union, the union, and the account."""
    config = load_config(finished / "run.toml")
    budget = replace(config.budget, round_to=round_to, own=own)
    each = tuple(replace(config.domains[0], name=f"d{n}") for n in range(domains))
    train = replace(config.train, own_epochs=0)
    config = replace(config, train=train, budget=budget, domains=each)
    net = build_network(config.backbone, config.input.size, [2] * domains)
    units, random = net.units.table.count, torch.Generator().manual_seed(0)
    kept = torch.from_numpy(
        net.units.table.round_up((torch.rand(units, generator=random) < 0.8).numpy(), round_to)
    ).float()
    keep_switches(net, kept.expand(domains, -1), config, torch.rand(domains, units))
    told = own_shortfall(config, net)
    account = own_account(config, net)
    assert bool(told) is not account["met"]
    return net.units.table, (net.switches > 0).numpy(), kept.numpy() > 0, account


@pytest.mark.parametrize("round_to", [1, 8])
def test_a_share_that_cannot_cover_the_union_is_told_and_costs_it_no_channel(
    finished: Path, round_to: int
) -> None:
    """The union went from 94 to 28 %, and the run said that its budget was met."""
    own = 0.2 if round_to == 1 else 0.3
    table, rows, union, account = shared_among(finished, 2, own, round_to)
    assert (rows.any(0) == union).all()
    assert account["met"] is False
    for row, share in zip(rows, account["macs"].values(), strict=True):
        assert share == table.macs(row) / table.macs(union)
    assert own < max(account["macs"].values()) < 0.45, "an even share, and no more"


def test_many_domains_cover_the_union_with_less_than_its_part_each(finished: Path) -> None:
    """MACs are products of widths: eight domains of a tenth each are enough."""
    _, rows, union, account = shared_among(finished, 8, 0.1)
    assert (rows.any(0) == union).all()
    assert account["met"] is True
    assert max(account["macs"].values()) <= 0.1


def test_a_baseline_trains_for_the_epochs_of_thinning_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had 24 steps beside 40, and the table said that both had as many epochs."""
    out = tmp_path / "out"
    config = load_config(thin_run(tmp_path, trunk='"frozen"'))
    result = train_with_baseline(config, out)
    logs = [
        [json.loads(x) for x in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        for folder in (out, out / "baseline")
    ]
    taken = [[line for line in log if "cost" in line] for log in logs]
    assert len(taken[0]) == len(taken[1]) == 21 == result.steps[1]
    assert result.epochs == (1, 7)
    assert "the same run without pruning, 7 epochs too" in closing_table(result)
    # What a verdict takes for learned is of the last epoch, one of thinning.
    monkeypatch.setattr("prunion.trainer.score.verdict.judge", lambda pruned, baseline: pruned)
    for name in ("warm", "cold"):
        last = np.mean([line[f"train_accuracy/{name}"] for line in taken[0][-3:]])
        assert read_verdict(out).trained[name] == pytest.approx(last)  # type: ignore[union-attr]
    record = json.loads((out / "record.json").read_text("utf-8"))
    del record["result"]["steps"]  # as it was written when these epochs were not counted
    (out / "record.json").write_text(json.dumps(record), "utf-8")
    assert read_verdict(out).trained == {}  # type: ignore[union-attr]


def test_runs_without_own_go_on_whatever_the_default_was(finished: Path) -> None:
    config = load_config(finished / "run.toml")
    whole = replace(config.budget, own=1.0)
    plain = replace(config, budget=whole, train=config.train.without_thinning())
    stored = plain.to_json()
    stored["train"]["own_epochs"] = 3  # as it was written when that was the default
    assert type(plain).from_checkpoint(stored).train == plain.train
    with pytest.raises(ConfigError, match=r"own_epochs is 3, but .budget. own.*is not given"):
        type(plain).from_json(stored)  # by hand it is a mistake


def test_it_is_exported_as_it_was_trained(finished: Path) -> None:
    manifest = export_bundle(finished / "out", finished / "own.prunion")
    report = verify_bundle(finished / "own.prunion", against=finished / "out")
    assert not report.problems
    assert manifest["budget"]["met"]


@pytest.mark.parametrize(
    ("own_epochs", "stops_at"),
    [(3, (10, 15, 18)), (0, (8, 10, 11))],  # 12 steps of learning, then 9 of thinning or none
)
def test_stopped_while_thinning_it_goes_on_bit_for_bit(
    own_epochs: int,
    stops_at: tuple[int, ...],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load_config(finished / "run.toml")
    config = replace(config, train=replace(config.train, own_epochs=own_epochs))
    whole = finished / "out"
    if not own_epochs:
        train_run(config, whole := tmp_path / "whole")
    step, taken = Training._step, 0

    def stops(self: Training, *args: object) -> object:
        nonlocal taken
        taken += 1
        if taken in stops_at:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_step", stops)
    for at in stops_at:
        told = f"after {at} of {12 + 3 * own_epochs} steps, all saved: go on with --resume"
        with pytest.raises(StoppedError, match=told):
            train_run(config, tmp_path / "out", resume=(tmp_path / "out").exists())
        assert taken == at, "the step it came in is the last"
    train_run(config, tmp_path / "out", resume=True)
    assert taken == 12 + 3 * own_epochs, "no step was lost or taken twice"
    one, other = (folder / "checkpoint" for folder in (whole, tmp_path / "out"))
    assert sha256_file(one / "model.safetensors") == sha256_file(other / "model.safetensors")
    lines = (tmp_path / "out" / "metrics.jsonl").read_text("utf-8").splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "cost" in line]
    assert steps == list(range(len(steps)))
