"""Adapters beside and behind convolutions: folds, compression, dropout, decay and ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import TrainConfig
from prunion.trainer.methods.lora import LowRankAdapters
from prunion.trainer.methods.residual.narrow import NarrowAdapters
from prunion.trainer.methods.residual.parallel import CompressedAdapters, ParallelAdapters, decay_of
from prunion.trainer.methods.residual.series import SeriesSite
from prunion.trainer.network import adapt_network, finish_weights
from tests.support.networks.small import Depthwise, Plain, Residual, domain_net
from tests.trainer.methods.answering import answers, images, shaken, shared


def test_adapters_of_low_rank_are_parallel_ones() -> None:
    """Beside what pruning leaves: at B = 0 the network without them, else α = B·A."""
    net, other = (domain_net(Residual(), (3, 4)) for _ in range(2))
    other.load_state_dict(net.state_dict())
    before = answers(net)
    adapt_network(net, TrainConfig(adapter_rank=2))
    assert isinstance(net.adapter, NarrowAdapters)
    torch.testing.assert_close(answers(net), before, rtol=1e-5, atol=1e-6)
    shaken(net.adapter)
    adapt_network(other, TrainConfig(method="parallel"))
    assert isinstance(other.adapter, ParallelAdapters)
    assert set(other.adapter.names) == set(net.adapter.names)
    with torch.no_grad():
        for key, alpha in other.adapter.alpha.items():
            alpha.copy_(net.adapter.up[key] @ net.adapter.down[key])
        for network in (net, other):  # cut alike
            network.switches[:, ::3] = 0
    torch.testing.assert_close(answers(net), answers(other), rtol=1e-4, atol=1e-5)
    assert net.adapter.bits() == 32 * sum(
        2 * sum(net.trunk.get_parameter(name).shape[:2]) for name in net.adapter.names
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_parallel_adapter_is_the_middle_of_the_kernel(stride: int, kernel: int) -> None:
    weight = {"w": torch.randn(4, 3, kernel, kernel, dtype=torch.float64)}
    adapter = ParallelAdapters(TrainConfig(method="parallel"), weight, 2)
    shaken(adapter)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    alpha = adapter.alpha["w"][1][..., None, None]
    apart = F.conv2d(x, weight["w"], None, stride, kernel // 2) + F.conv2d(x, alpha, None, stride)
    made = adapter.weights(weight, 1)["w"]
    folded = F.conv2d(x, made, None, stride, kernel // 2)
    torch.testing.assert_close(folded, apart, rtol=1e-13, atol=1e-13)


def test_dropout_drops_whole_input_channels_of_the_adapter_alone() -> None:
    train = TrainConfig(method="parallel", adapter_dropout=0.5)
    weight = {"w": torch.randn(4, 8, 3, 3), "v": torch.randn(4, 8, 3, 3)}
    adapter = ParallelAdapters(train, weight, 1, dropped={"w"})
    shaken(adapter)
    torch.manual_seed(1)
    made = adapter.train().weights(weight, 0)
    centre = (made["w"] - weight["w"])[:, :, 1, 1]
    assert {0, 4} == {int((c.abs() > 1e-6).sum()) for c in centre.T}
    torch.testing.assert_close((made["v"] - weight["v"])[:, :, 1, 1], adapter.alpha["v"][0])
    torch.testing.assert_close(
        (adapter.eval().weights(weight, 0)["w"] - weight["w"])[:, :, 1, 1], adapter.alpha["w"][0]
    )


def test_decay_goes_by_the_images_and_is_of_the_steps_own_domains() -> None:
    train = TrainConfig(method="parallel")
    assert [decay_of(train, n) for n in (1020, 17_800, 40_000)] == [2e-3, 5e-4, 1e-4]
    assert decay_of(TrainConfig(method="parallel", adapter_decay=0.3), 1) == 0.3
    adapter = ParallelAdapters(train, shared(), 3)
    shaken(adapter)
    penalty = adapter.penalty([1], [100, 100, 100], "ramp")
    assert penalty is not None
    penalty.backward()
    for value in adapter.alpha.values():
        assert value.grad is not None
        torch.testing.assert_close(value.grad[1], 2e-3 * value[1])
        assert not value.grad[0].any()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_joint_compression_is_lossless_at_full_rank(share: float) -> None:
    train = TrainConfig(method="svd", svd_share=share)
    weight = {name: value.double() for name, value in shared().items()}
    adapter = CompressedAdapters(train, weight, 3)
    shaken(adapter)
    before = [adapter.weights(weight, domain) for domain in range(3)]
    adapter.advance(weight, 0, "ramp")
    assert not adapter.compressed
    adapter.advance(weight, 0, "settle")
    ranks = {name: adapter.get_buffer(f"beta_{name.replace('.', '/')}").shape for name in weight}
    assert ranks == {"a.weight": (4, 4 * share), "b.weight": (6, 6 * share)}
    for domain in range(3):
        for name, made in adapter.weights(weight, domain).items():
            error = float((made - before[domain][name]).detach().abs().max())
            assert error < 1e-12 if share == 1 else 1e-3 < error < 2
    state = {k: v.clone() for k, v in adapter.state_dict().items()}
    adapter.advance(weight, 0, "settle")  # once
    assert all(torch.equal(v, state[k]) for k, v in adapter.state_dict().items())
    penalty = adapter.penalty([0], [1, 1, 1], "settle")
    assert penalty is not None
    penalty.backward()
    assert all(value.grad is None for value in adapter.alpha.values())


@pytest.mark.parametrize("bias", [False, True])
def test_series_adapters_equal_their_folded_filters(bias: bool) -> None:
    block = Residual()
    if bias:
        block.conv2.bias = torch.nn.Parameter(torch.randn(8))
    net = domain_net(block, (3, 4))
    before = answers(net)
    adapt_network(net, TrainConfig(method="series"))
    assert torch.equal(answers(net), before)  # α is 0
    sites = [m for m in net.modules() if isinstance(m, SeriesSite)]
    assert len(sites) == 3
    with torch.no_grad():
        for site in sites:
            shaken(site)
            site.running_mean.normal_()
            site.running_var.uniform_(0.5, 2)
    apart = answers(net)
    assert not torch.allclose(apart, before)
    finish_weights(net)
    assert not any(isinstance(m, SeriesSite) for m in net.modules())
    torch.testing.assert_close(answers(net), apart, rtol=1e-4, atol=1e-5)


def test_series_adapters_learn_from_their_own_batch() -> None:
    net = domain_net(Residual(), (3, 4))
    adapt_network(net, TrainConfig(method="series"))
    net.train()
    assert net.adapter is not None
    loss = torch.stack([x.square().sum() for x in net(images(), [(1, 4)])]).sum()
    loss.backward()
    for site in (m for m in net.modules() if isinstance(m, SeriesSite)):
        assert site.alpha.grad is not None
        assert site.alpha.grad[1].any()
        assert not site.alpha.grad[0].any()
        assert site.running_mean[1].any()
        assert not site.running_mean[0].any()
    found = {id(p) for group in net.adapter.groups(TrainConfig()) for p in group["params"]}
    assert len(found) == 3 * 3


def test_a_network_without_places_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave no convolution of this network to adapt"):
        adapt_network(domain_net(Plain(), (2,)), TrainConfig(method="parallel", sites="second"))
    flat = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for options in ({"method": "parallel", "sites": "second"}, {"adapter_rank": 2}):
        fix = "leave out adapter_rank" if "adapter_rank" in options else r"another .train. method"
        with pytest.raises(ConfigError, match=f"no convolution to adapt, .*: .*{fix}"):
            adapt_network(domain_net(flat, (2,)), TrainConfig(**options))
    net = domain_net(Depthwise(), (2, 3))
    adapt_network(net, TrainConfig(method="parallel"))
    assert net.adapter is not None
    assert net.adapter.names == ("stem.weight",)  # neither 1×1 nor depthwise
    second = domain_net(Residual(), (2,))
    adapt_network(second, TrainConfig(method="svd", sites="second"))
    assert second.adapter is not None
    assert second.adapter.names == ("conv3.weight",)


def test_low_rank_adapters_add_their_product() -> None:
    weight = shared()
    adapter = LowRankAdapters(2, weight, 2)
    assert torch.equal(adapter.weights(weight, 0)["a.weight"], weight["a.weight"])
    assert adapter.bits() == 32 * (2 * (4 + 27) + 2 * (6 + 100))
    shaken(adapter)
    change = (adapter.weights(weight, 1)["b.weight"] - weight["b.weight"]).detach()
    assert torch.linalg.matrix_rank(change.flatten(1), atol=1e-4) == 2
    assert LowRankAdapters(99, weight, 1).up["a/weight"].shape == (1, 4, 4)
