"""What a network does in its own training mode alone is told, and changes nothing."""

from __future__ import annotations

import copy
import logging
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import trace
from tests.support.networks.small import Plain


class Random(Plain):
    """Noise of its own, a dropout that does nothing, and one that drops a path now and then."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode, self.seldom, self.never = mode, nn.Dropout2d(1e-4), nn.Dropout(0.0)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.never(self.bn1(self.conv1(x)).relu())
        x = self.seldom(x) if self.mode == "seldom" else x
        if self.training:
            self.steps += 1
            x = x * (2.0 if self.mode == "branch" else 1.0)
        if self.mode == "noise":
            x = F.dropout(x, 0.5, self.training)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("seldom", "without what is random in its own training mode: Dropout2d seldom"),
        ("noise", "without what is random in its own training mode: Random"),
        ("branch", "answers otherwise in its own training mode"),
        ("never", ""),
    ],
)
def test_it_is_told(mode: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "prunion")
    model = Random(mode)
    before = copy.deepcopy(model.state_dict())
    trace(model, 8, 8)
    assert told in caplog.text and bool(told) == ("training mode" in caplog.text)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_what_is_behind_a_cut_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "prunion")
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))
    trace(nn.Sequential(Plain(), head), 8, 8, cut="0")
    assert "training mode" not in caplog.text
    trace(nn.Sequential(Plain(), head), 8, 8)
    assert "training mode: Dropout 1.0" in caplog.text


def test_another_momentum_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "prunion")
    model = Plain()
    model.bn1.momentum, model.bn2.momentum = None, 0.01
    trace(model, 8, 8)
    assert "the network's BatchNorm has momentum 0.01, None, prunion's has 0.1" in caplog.text


def test_a_hook_of_the_users_is_told_and_torchs_own_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A list that keeps activations got those of the tracing, and none of training, unsaid."""
    caplog.set_level(logging.INFO, "prunion")
    model, kept = Plain(), list[torch.Tensor]()
    nn.utils.spectral_norm(model.conv2)
    trace(model, 8, 8)
    assert "hooks" not in caplog.text
    model.conv1.register_forward_hook(partial(lambda kept, *x: kept.append(x[2]), kept))
    trace(model, 8, 8)
    assert "the network has hooks (Conv2d conv1): " in caplog.text
    model.bn1.register_forward_hook(lambda _, __, x: kept.append(x.numpy()))
    with pytest.raises(UnsupportedGraphError, match="run too, on Conv2d conv1, BatchNorm2d bn1;"):
        trace(model, 8, 8)


def test_a_hook_on_a_gradient_warns_of_nothing_of_ours(recwarn: pytest.WarningsRecorder) -> None:
    model = Plain()
    model.conv1.register_full_backward_hook(lambda *_: None)
    trace(model, 8, 8)
    assert not [x for x in recwarn if "backward hook" in str(x.message)]
