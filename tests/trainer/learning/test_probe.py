"""Heads that start as linear probes: the closed form, and what a run makes of it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from prunion.trainer.learning.probe import RIDGES, ridge


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
