"""Norms that a module calls as functions are told apart by the tensors that they read."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import trace
from prunion.trainer.network import DomainNet
from prunion.trainer.network import masked as module


class TwoNorms(nn.Module):
    """Two functional batch norms over tensors of one module; `shared` gives them one statistic."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        for i in ("", "2"):
            self.register_parameter(f"weight{i}", nn.Parameter(torch.rand(8) + 0.5))
            self.register_parameter(f"bias{i}", nn.Parameter(torch.randn(8)))
            self.register_buffer(f"running_mean{i}", torch.randn(8))
            self.register_buffer(f"running_var{i}", torch.rand(8) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        i = "" if self.shared else "2"
        mean, var = getattr(self, f"running_mean{i}"), getattr(self, f"running_var{i}")
        x = F.batch_norm(self.first(x), self.running_mean, self.running_var, self.weight, self.bias)
        x = F.batch_norm(self.second(F.relu(x)), mean, var, self.weight2, self.bias2)
        return F.relu(x)


class Net(nn.Module):
    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.block = TwoNorms(shared)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x).mean((2, 3))


@pytest.mark.parametrize("shared", [False, True])
def test_two_functional_norms_keep_their_own_tensors(shared: bool) -> None:
    torch.manual_seed(0)
    model, image = Net(shared).eval(), torch.randn(4, 3, 12, 12)
    net = DomainNet(trace(model, 12, 12), (5, 5)).eval()
    with torch.no_grad():
        got, _ = net.features(image, torch.tensor([0, 1, 0, 1]))
        torch.testing.assert_close(got, model(image), rtol=1e-4, atol=1e-5)
    assert len(net.norms) == 2


class OfOurNames(nn.Module):
    """What holds the domains' norms and gates in the network is called so too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gates = nn.Conv2d(3, 8, 3), nn.ModuleList([nn.Conv2d(8, 8, 1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.mean = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norms[0](self.conv(x)))
        x = F.relu(self.norms[1](self.gates[0](x)) * self.mean)
        return x.mean((2, 3))


def test_a_network_may_call_its_modules_as_ours_are_called() -> None:
    torch.manual_seed(0)
    model, image = OfOurNames().eval(), torch.randn(4, 3, 12, 12)
    net = DomainNet(trace(model, 12, 12), (5, 5)).eval()
    with torch.no_grad():
        got, _ = net.features(image, torch.tensor([0, 1, 0, 1]))
        torch.testing.assert_close(got, model(image), rtol=1e-4, atol=1e-5)
    assert len(net.norms) == 2


def test_a_module_that_is_called_twice_keeps_one_norm() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.norm(self.a(x)))
            return torch.relu(self.norm(self.b(x))).mean((2, 3))

    assert list(DomainNet(trace(Twice(), 8, 8), (2,)).norms) == ["norm"]


def test_a_network_that_starts_as_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = module._add_domains

    def wrong(*arguments: object) -> object:
        trunk = right(*arguments)  # type: ignore[arg-type]
        next(iter(trunk.norms.children())).bias.data += 1
        return trunk

    monkeypatch.setattr(module, "_add_domains", wrong)
    with pytest.raises(UnsupportedGraphError, match="differs from the backbone by"):
        DomainNet(trace(Net(), 12, 12), (5, 5))
