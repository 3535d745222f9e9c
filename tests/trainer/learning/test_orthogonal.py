"""Muon's steps: as large in every direction, of every layer that is a matrix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunion.runtime.errors import CheckpointError
from prunion.trainer.config import RunConfig, TrainConfig, load_config, todays_config
from prunion.trainer.learning.optimiser import MixedOptimiser, make_optimiser
from prunion.trainer.learning.orthogonal import matrices_of, orthogonal, orthogonal_step
from prunion.trainer.methods.finetuned import TunedWeights
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run

SHAPES = [(64, 147), (300, 20), (20, 20), (1, 5), (5, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    """With the singular vectors of the matrix itself."""
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(0.2, 1, min(shape))
    found = orthogonal(left @ torch.diag(1e-3 * values) @ right)
    size = left.mT @ found @ right.mT
    assert size.diagonal().min() > 0.6 and size.diagonal().max() < 1.3
    assert (size - torch.diag(size.diagonal())).abs().max() < 1e-4


def test_what_is_zero_stays_zero() -> None:
    """A channel that is off has no gradient, and a whole layer of them no direction."""
    torch.manual_seed(0)
    matrices = torch.randn(2, 8, 30)
    matrices[0, 3], matrices[1] = 0, 0
    found = orthogonal(matrices)
    assert not found[0, 3].any() and not found[1].any() and found.isfinite().all()
    torch.testing.assert_close(found[0], orthogonal(matrices[0]))  # each for itself


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((8, 4, 3, 3), (1, 8, 36)),
        ((8, 4), (1, 8, 4)),
        ((8, 1, 3, 3), None),
        ((8,), None),
        ((4096, 512, 7, 7), None),
        ((4096, 2048), (1, 4096, 2048)),
        ((), None),
    ],
)
def test_what_is_a_matrix(shape: tuple[int, ...], found: tuple[int, ...] | None) -> None:
    """A depthwise layer and a bias are none; what would take too long is not taken."""
    assert matrices_of(shape) == found


def test_a_step_is_torchs_muon() -> None:
    """Where torch has it, with its step that matches AdamW's size; its rounds are in bfloat16."""
    muon = getattr(torch.optim, "Muon", None)
    if muon is None:
        pytest.skip("this torch has no Muon")
    torch.manual_seed(0)
    start, gradients = torch.randn(16, 60), torch.randn(5, 16, 60)
    theirs = torch.nn.Parameter(start.clone())
    other = muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    ours, speed = start.clone(), torch.zeros_like(start)
    for gradient in gradients:
        theirs.grad = gradient.clone()
        other.step()
        orthogonal_step(ours, gradient, speed, (1, 16, 60), {"lr": 0.01, "weight_decay": 0.1})
    moved = theirs.detach() - start
    assert (ours - theirs.detach()).norm() < 0.03 * moved.norm()


def test_an_absent_domains_weights_stand_still() -> None:
    """And those that are there move as if they were alone."""
    torch.manual_seed(0)
    rows = torch.nn.Parameter(torch.randn(2, 24))
    start = rows.detach().clone()
    group = {"rows": True, "sgd": False, "weight_decay": 0.1, "matrices": [(2, 4, 6)]}
    mixed = MixedOptimiser([{"params": [rows], "lr": 0.01, **group}])
    alone, speed = start[1].clone(), torch.zeros(24)
    for _ in range(3):
        mixed.present = [1]
        rows.grad = torch.randn(2, 24)
        orthogonal_step(alone, rows.grad[1], speed, (1, 4, 6), mixed.param_groups[0])
        mixed.step()
    assert torch.equal(rows[0], start[0]) and torch.equal(rows[1], alone)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of one epoch."""
    folder = tmp_path_factory.mktemp("orthogonal")
    train_run(load_config(tiny_run(folder, warmup=1, ramp=0, settle=0)), folder / "out")
    return folder / "out"


def test_a_network_moves_by_it_unless_it_is_told_otherwise(stopped: Path) -> None:
    """Layers by Muon; biases, depthwise layers, BatchNorms and heads by AdamW."""
    net = load_checkpoint(stopped).net
    groups = make_optimiser(TrainConfig(), net).param_groups
    moved = [p for g in groups if g.get("matrices") for p in g["params"]]
    assert moved and all(p.dim() > 1 and p.shape[1] > 1 for p in moved)
    plain = make_optimiser(TrainConfig(trunk_optimiser="adamw"), net).param_groups
    assert not any("matrices" in group for group in plain)
    count = [sum(p.numel() for group in x for p in group["params"]) for x in (groups, plain)]
    assert count[0] == count[1]


def test_a_domains_own_trunk_keeps_the_order_of_before() -> None:
    """A snapshot knows a parameter by its place alone; those of AdamW had the names' order."""
    shared = {f"f.{k}.weight": torch.randn(k, 3, 1, 1) for k in (10, 2, 1)}
    shared["a.bias"] = torch.randn(4)
    adapter = TunedWeights(shared, 2)
    (group,) = adapter.groups(TrainConfig(method="finetune"))
    assert [id(p) for p in group["params"]] == [id(p) for p in adapter.parameters()]
    for parameter, shape in zip(group["params"], group["shapes"], strict=True):
        assert parameter.shape == (2, shape.numel())


def test_a_run_of_before_goes_on_only_as_it_was(tmp_path: Path) -> None:
    """It does not say what moved its trunk: AdamW did, whose moments are no momentum of Muon's."""
    run_file = tiny_run(tmp_path, warmup=1, ramp=0, settle=1, trunk_optimiser='"adamw"')
    adamw, muon = (
        load_config(run_file, [f"train.trunk_optimiser={name}"]) for name in ("adamw", "muon")
    )
    before = adamw.to_json()
    del before["train"]["trunk_optimiser"]
    assert todays_config(before) == json.loads(json.dumps(adamw.to_json()))
    assert RunConfig.from_checkpoint(before) == adamw
    frozen = load_config(run_file, ["train.trunk=frozen", "train.trunk_optimiser=muon"])
    before = frozen.to_json()
    del before["train"]["trunk_optimiser"]
    assert RunConfig.from_checkpoint(before) == frozen  # nothing moves there
    train_run(adamw, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"is 'muon' \(--set train.trunk_optimiser=adamw\):"):
        train_run(muon, tmp_path / "out", resume=True)


def test_what_fades_is_zero_before_it_slows_the_products() -> None:
    """Where a channel went its momentum shrinks by a twentieth a step, and so do its products."""
    whole = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    gone, faded = whole.clone(), whole.clone()
    gone[4:] = 0
    faded[4:] *= 1e-15
    assert torch.equal(orthogonal(gone), orthogonal(faded))
    weight, speed = torch.zeros(12, 30), faded.clone()
    speed[4:] *= 1e-8
    live = torch.where(gone != 0, 1e-3 * whole, 0.0)
    group = {"lr": 0.1, "weight_decay": 0.0}
    orthogonal_step(weight, live, speed, (1, 12, 30), group)
    assert speed[:4].all() and not speed[4:].any() and not weight[4:].any()
