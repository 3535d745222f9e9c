"""Heads that start fitted to the backbone: the closed form, and what a run makes of it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from prunion.trainer.config import RunConfig, TrainConfig, load_config
from prunion.trainer.data import JointBatches, open_domains
from prunion.trainer.learning import fitted_heads
from prunion.trainer.learning.fitted_heads import RIDGES, fit_heads, ridge
from prunion.trainer.network import DomainNet, build_network
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run


def drawn(count: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    x = x * torch.linspace(0.1, 3, width) + 2
    w = torch.randn(width, classes, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return x, (x @ w + 3 * noise).argmax(1)


def least_squares(
    x: torch.Tensor, y: torch.Tensor, classes: int, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ridge regression as in a textbook: `[F, C]` and `[C]`."""
    aims, middle = F.one_hot(y, classes).double(), x.mean(0)
    centred = x - middle
    gram = centred.T @ centred + strength * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, centred.T @ (aims - aims.mean(0)))
    return weight, aims.mean(0) - middle @ weight


def test_the_ridge_is_the_one_that_is_best_on_images_left_out() -> None:
    x, y = drawn(90, 12, 4)
    classes, everyone = 4, torch.arange(90)
    mean = float((x - x.mean(0)).square().sum() / x.shape[1])
    errors, right = [], []
    for ridge_ in RIDGES:
        answers = []
        for i in range(len(x)):
            others = everyone != i
            weight, bias = least_squares(x[others], y[others], classes, ridge_ * mean)
            answers.append(x[i] @ weight + bias)
        found = torch.stack(answers)
        errors.append(float((F.one_hot(y, classes) - found).square().sum()))
        right.append(float((found.argmax(1) == y).double().mean()))
    best = min(range(len(errors)), key=errors.__getitem__)
    assert 0 < best < len(errors) - 1  # or the test says nothing
    weight, bias, share = ridge(x, y, classes)
    expected, shift = least_squares(x, y, classes, RIDGES[best] * mean)
    scale = weight.norm() / expected.norm()
    torch.testing.assert_close(weight.T, scale * expected)
    torch.testing.assert_close(bias, scale * shift)
    assert share == right[best]


def test_features_that_are_not_finite_leave_a_head_as_it_is() -> None:
    x, y = drawn(20, 3, 2)
    x[7, 1] = torch.nan
    assert bool(ridge(x, y, 2)[0].isnan().all())
    assert bool(ridge(x[:0], y[:0], 2)[0].isnan().all())  # of no image at all


def test_constant_features_answer_what_is_frequent() -> None:
    y = torch.tensor([0, 0, 0, 1, 2])
    weight, bias, share = ridge(torch.ones(5, 3, dtype=torch.float64), y, 3)
    assert bool(torch.isfinite(weight).all()) and int(bias.argmax()) == 0 and share == 0.6


def opened(folder: Path, **train: object) -> tuple[RunConfig, DomainNet, JointBatches]:
    config = load_config(tiny_run(folder, **train))
    domains = open_domains(config.domains, config.seed)
    torch.manual_seed(0)
    net = build_network(
        config.backbone, config.input.size, [len(d.classes) for d in domains], weights=False
    )
    return config, net, JointBatches(domains, config)


def test_heads_alone_change(tmp_path: Path) -> None:
    """Statistics, mode and random numbers are as before: what follows is what it would be."""
    _, net, batches = opened(tmp_path)
    net.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    right = fit_heads(net, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {f"heads.{d}.{part}" for d in (0, 1) for part in ("weight", "bias")}
    assert all(share is not None and share > 0.5 for share in right)  # of plain colours


def test_no_image_is_taken_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out, an image must not be among the others: its own answer would be known."""
    seen: list[int] = []

    def count(features: torch.Tensor, labels: torch.Tensor, *more: object) -> object:
        seen.append(len(labels))
        return ridge(features, labels, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(fitted_heads, "ridge", count)
    _, net, batches = opened(tmp_path, balance=0)  # so that an epoch repeats the smaller set
    fit_heads(net, batches)
    assert seen == batches.images == [16, 24]
    assert batches.steps_per_epoch * batches.sizes[0] > batches.images[0]


def test_many_features_leave_heads_at_random(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fitted_heads, "WIDEST", 63)
    _, net, batches = opened(tmp_path)
    before = net.heads[0].weight.clone()
    with caplog.at_level(logging.INFO):
        assert fit_heads(net, batches) == [None, None]
    assert torch.equal(net.heads[0].weight, before)
    assert "heads of 64 features start at random" in caplog.text


@pytest.mark.parametrize(
    ("keys", "fits"),
    [
        ({}, True),
        ({"recipe": "paper", "trunk": "frozen"}, False),
        ({"recipe": "paper", "trunk": "frozen", "head_start": "fitted"}, True),
        ({"head_start": "random"}, False),
    ],
)
def test_which_runs_fit_their_heads(keys: dict[str, str], fits: bool) -> None:
    assert TrainConfig(**keys).fits_heads is fits  # type: ignore[arg-type]


def test_a_run_tells_what_its_heads_know(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train_run(load_config(tiny_run(tmp_path, ramp=0)), tmp_path / "out")
    assert caplog.text.count("heads start fitted to the backbone: accuracy warm ") == 1
