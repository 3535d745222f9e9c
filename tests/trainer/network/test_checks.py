"""What is asked of a network before it is trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import trace
from prunion.trainer.network import DomainNet, moved
from prunion.trainer.network.checks import check_batch
from tests.support.networks.small import Plain


class Beside(Plain):
    """A branch that begins at zero, as ReZero's and a zero-initialised layer's do."""

    def __init__(self, mix: Callable[[torch.Tensor], torch.Tensor], scale: nn.Module) -> None:
        super().__init__()
        self.mix, self.scale = mix, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x + self.scale(self.mix(x)))).relu().mean((2, 3))


class Scale(nn.Module):
    """One learned number, a number for each channel, or LayerScale's small ones."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.value


def masked(model: nn.Module) -> DomainNet:
    return DomainNet(trace(model, 8, 8), (3, 4))


def zero_layer() -> nn.Module:
    layer = nn.Conv2d(6, 6, 1)
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def attention(x: torch.Tensor) -> torch.Tensor:
    """Images attend to images."""
    weights = (x.flatten(1) @ x.flatten(1).mT / 100).softmax(1)
    return (weights @ x.flatten(1)).view_as(x)


MIXES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "attention": attention,
    "flip": lambda x: x.flip(0),
    "mean": lambda x: x - x.mean(0, keepdim=True),
    "the first": lambda x: x[:1].expand_as(x),
}
SCALES: dict[str, Callable[[], nn.Module]] = {
    "ReZero": lambda: Scale(torch.zeros(1)),
    "LayerScale": lambda: Scale(torch.full((6, 1, 1), 1e-6)),
    "a layer of zeros": zero_layer,
    "a layer of which a part is zero": lambda: Scale(
        torch.tensor([0.0, 0, 0, 0, 0, 1e-5])[:, None, None]
    ),
}


@pytest.mark.parametrize(
    ("mix", "scale"), [*((mix, "ReZero") for mix in MIXES), *(("flip", x) for x in SCALES)]
)
def test_what_mixes_images_is_seen_behind_a_scale_of_zero(mix: str, scale: str) -> None:
    """Once the scale has learnt, every answer would depend on its neighbours."""
    with pytest.raises(UnsupportedGraphError, match="on the others in its batch"):
        masked(Beside(MIXES[mix], SCALES[scale]()))


@pytest.mark.parametrize("shift", [1, 2, 3, 6, 12, 33])
def test_an_image_does_not_stand_where_it_is_taken_from(shift: int) -> None:
    """Of two images each is its own neighbour two places on; of three, the third one on."""
    model = Beside(lambda x: x.roll(shift, 0), nn.Identity())
    with pytest.raises(UnsupportedGraphError, match="on the others in its batch"):
        masked(model)


def test_what_begins_far_into_a_batch_is_seen() -> None:
    """Batches of three never came so far."""
    places = (0, 0, 0, 0, 0, 0, 12, 0)
    model = Beside(lambda x: nn.functional.pad(x, places)[: x.shape[0]], nn.Identity())
    with pytest.raises(UnsupportedGraphError, match="on the others in its batch"):
        masked(model)


@pytest.mark.parametrize("scale", SCALES)
def test_a_branch_of_the_image_alone_is_taken_and_left_as_it_was(scale: str) -> None:
    model = Beside(torch.sigmoid, SCALES[scale]())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backbone = trace(model, 8, 8)
    random = torch.get_rng_state()
    check_batch(backbone, torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), random)
    after = backbone.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_nothing_that_is_moved_is_near_zero_or_far_from_what_it_was() -> None:
    layer = nn.Conv2d(64, 8, 3)
    nn.init.zeros_(layer.weight)
    norm, learnt = nn.BatchNorm2d(8), nn.Linear(4, 4)
    module = nn.Sequential(layer, norm, learnt)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(KeyError), moved(module):
        assert 0.5 < float(layer.weight.std()) * (64 * 9) ** 0.5 < 2
        assert float(norm.weight.min()) > 1 and float(norm.weight.max()) < 1.3
        assert float(norm.weight.std()) > 0 and float(norm.bias.min()) > 0.4
        assert torch.equal(learnt.weight, before["2.weight"])
        assert torch.equal(norm.running_var, before["1.running_var"])
        raise KeyError
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
