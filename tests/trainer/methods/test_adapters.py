"""Adapters beside and behind convolutions: folds, compression, turns, and what a file holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from prunion.runtime.bundle import completed, own_weights
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import METHODS, TrainConfig
from prunion.trainer.methods import WeightAdapter
from prunion.trainer.methods.lora import LowRankAdapters
from prunion.trainer.methods.narrow import NarrowAdapters
from prunion.trainer.methods.packnet import OwnedWeights
from prunion.trainer.methods.parallel import CompressedAdapters, ParallelAdapters, decay_of
from prunion.trainer.methods.series import SeriesSite
from prunion.trainer.methods.taps import PickedLayers
from prunion.trainer.network import DomainNet, adapt_network, finish_weights, merge_weights
from tests.trainer.nets import Depthwise, Plain, Residual, domain_net

ROWS = torch.tensor([0, 1, 1, 0])
OWN = [method for method, traits in METHODS.items() if traits.own_weights]


def shared() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3, 3, 3), "b.weight": torch.randn(6, 4, 5, 5)}


def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def answers(net: DomainNet) -> torch.Tensor:
    with torch.no_grad():
        return net.eval().logits(images(), ROWS)


def shaken(module: torch.nn.Module) -> None:
    """Every number that learns away from where it starts."""
    torch.manual_seed(2)
    with torch.no_grad():
        for value in (p for p in module.parameters() if p.requires_grad):
            value.add_(0.3 * torch.randn_like(value))


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


def test_layers_are_picked_by_their_scores() -> None:
    weight = shared()
    adapter = PickedLayers(TrainConfig(method="taps", taps_lambda=2.0), weight, 2)
    shaken(adapter.delta)
    with torch.no_grad():
        adapter.scores["a/weight"][1] = 0.05
    assert [adapter.picked(domain) for domain in (0, 1)] == [list(weight), ["b.weight"]]
    assert torch.equal(adapter.weights(weight, 1)["a.weight"], weight["a.weight"])
    assert adapter.stored(1).keys() == {"added:b.weight"}
    assert adapter.extra_bits() == 32 * (108 + 600 + 600)
    assert adapter.penalty([0], [1, 1], "warmup") is None
    upstream = torch.randn(4, 3, 3, 3)
    (upstream * adapter.weights(weight, 1)["a.weight"]).sum().backward()
    grad = adapter.scores["a/weight"].grad
    expected = (upstream.flatten() * adapter.delta["a/weight"][1]).sum()
    assert grad is not None
    torch.testing.assert_close(grad[1], expected)  # though it is off
    penalty = adapter.penalty([0, 1], [1, 1], "ramp")
    assert penalty is not None
    assert penalty.item() == pytest.approx(2 * (0.15 + (0.05 + 0.15) / 2))


def test_layers_that_go_on_and_off_are_picked_for_good_when_settling_begins() -> None:
    """By how often they were on, wherever their scores stand in the last step."""
    weight, train = shared(), TrainConfig(method="taps")
    adapter = PickedLayers(train, weight, 2)
    shaken(adapter.delta)

    def moved(often_on: float, rarely_on: float) -> None:
        with torch.no_grad():
            adapter.scores["a/weight"].copy_(torch.tensor([often_on, 0.15]))
            adapter.scores["b/weight"].copy_(torch.tensor([rarely_on, -0.3]))

    for step in range(300):
        moved(0.0999 if step % 3 == 2 else 0.1001, 0.1001 if step % 3 == 2 else 0.0999)
        adapter.stepped([0, 1])
        assert not adapter.advance(weight, 0, "ramp")
    for _ in range(100):  # steps of the other domain: nothing of this one moves meanwhile
        adapter.stepped([1])
    assert adapter.penalty([0, 1], [1, 1], "ramp") is not None
    assert adapter.picked(0) == ["b.weight"]  # as it happens
    state = {name: value.clone() for name, value in adapter.state_dict().items()}
    assert adapter.advance(weight, 0, "settle")
    assert [adapter.picked(domain) for domain in (0, 1)] == [["a.weight"], ["a.weight"]]
    assert adapter.penalty([0, 1], [1, 1], "settle") is None
    assert not any(score.requires_grad for score in adapter.scores.values())
    assert all(row.requires_grad for row in adapter.delta.values())
    assert not adapter.advance(weight, 0, "settle")  # once
    again = PickedLayers(train, weight, 2)  # a run that was interrupted in between
    again.load_state_dict(state)
    assert again.advance(weight, 0, "settle")
    assert again.picked(0) == ["a.weight"]
    adapter.keep_rows(torch.tensor([1]))
    assert adapter.often.shape == (1, 2)


def test_layers_picked_before_there_was_a_count_stay_as_they_ended() -> None:
    weight, train = shared(), TrainConfig(method="taps")
    adapter = PickedLayers(train, weight, 2)
    with torch.no_grad():
        adapter.scores["a/weight"].copy_(torch.tensor([0.2, 0.0]))
    state = {n: x for n, x in adapter.state_dict().items() if n not in ("often", "fixed")}
    again = PickedLayers(train, weight, 2)
    again.load_state_dict(state)
    assert not again.advance(weight, 0, "settle")
    assert [again.picked(domain) for domain in (0, 1)] == [["a.weight", "b.weight"], ["b.weight"]]


@pytest.mark.parametrize("order", ["given", "reversed"])
def test_weights_have_one_owner_and_keep_what_they_learned(order: Any) -> None:
    weight = shared()
    train = TrainConfig(method="packnet", packnet_order=order, packnet_prune=0.75)
    adapter = OwnedWeights(train, weight, 2)
    turns = [0, 1] if order == "given" else [1, 0]
    source = adapter.weights(weight, turns[0])["a.weight"]
    assert int((source != 0).sum()) == 108 - 54  # half of the backbone's own
    largest = weight["a.weight"].abs().flatten().sort().values[54]
    assert torch.equal(source != 0, weight["a.weight"].abs() >= largest)
    for task, domain in enumerate(turns):
        adapter.advance(weight, task, "ramp")
        assert adapter.free_share() == 0
        shaken(adapter)
        before = adapter.weights(weight, turns[0])
        adapter.advance(weight, task, "settle")
        now = adapter.weights(weight, domain)
        if task == 0:
            assert adapter.free_share() == pytest.approx(0.75 * 0.5, abs=0.01)
            kept = now["a.weight"][source == 0].abs()
            dropped = before["a.weight"][(source == 0) & (now["a.weight"] == 0)].abs()
            assert kept[kept > 0].min() >= dropped.max()
            first = {name: value.clone() for name, value in now.items()}
        else:
            assert adapter.free_share() == 0  # the last keeps all
            for name, value in adapter.weights(weight, turns[0]).items():
                assert torch.equal(value, first[name])
            gradient = torch.autograd.grad(now["a.weight"].sum(), adapter.free[0])[0]
            assert torch.equal(gradient != 0, first["a.weight"] == 0)
    assert adapter.bits() == 0
    assert adapter.shared_bits() == 2 * (108 + 600)  # owners 1 to 3


@pytest.mark.parametrize("method", OWN)
def test_a_file_gives_back_the_very_weights(method: Any) -> None:
    """What a pack holds, made into weights by the runtime without torch."""
    net = domain_net(Residual(), (3, 4, 2))
    adapt_network(net, TrainConfig(method=method))
    if method == "svd":
        shaken(net.adapter)  # type: ignore[arg-type]
        net.adapter.advance({}, 0, "settle")  # type: ignore[union-attr]
    if method == "packnet":
        net.adapter.advance({}, 1, "ramp")  # type: ignore[union-attr]
    adapter = net.adapter
    assert adapter is not None
    sites = [m for m in net.modules() if isinstance(m, SeriesSite)]
    for module in sites or [adapter]:
        shaken(module)
    finish_weights(net)
    adapter = net.adapter
    assert isinstance(adapter, WeightAdapter)
    assert adapter.domains == 3
    base = {k: v.detach().clone() for k, v in net.trunk.named_parameters()}
    base |= {k: v.clone() for k, v in adapter.base(base).items()}
    common = adapter.shared_parts()
    for domain in range(3):
        expected = net.own_weights(domain)
        parts = completed(adapter.stored(domain), common)
        made = own_weights(parts, lambda name: base[name].numpy())
        for name in expected:
            got = torch.from_numpy(made[name]) if name in made else base[name]
            torch.testing.assert_close(got, expected[name].detach(), rtol=1e-5, atol=1e-6)
    bits = sum(8 * v.nbytes for d in range(3) for v in adapter.stored(d).values())
    bits += sum(8 * v.nbytes for v in common.values())
    counted = adapter.extra_bits()
    small = 3 * 8 * 32 * 4  # bits that fill the last byte, numbers that are fixed, tasks
    assert counted <= bits <= counted + small
    second = {name: value.clone() for name, value in net.own_weights(1).items()}
    adapter.keep_rows(torch.tensor([1]))
    assert all(torch.equal(value, second[name]) for name, value in net.own_weights(0).items())


def test_a_checkpoint_of_one_domain_becomes_a_network_like_any_other() -> None:
    for method in OWN:
        net = domain_net(Residual(), (3,))
        adapt_network(net, TrainConfig(method=method))
        if net.adapter is None:  # fine-tuning tunes the trunk itself
            continue
        for site in [m for m in net.modules() if isinstance(m, SeriesSite)] or [net.adapter]:
            shaken(site)
        with torch.no_grad():
            rows = torch.zeros(4, dtype=torch.int64)
            before = net.eval().logits(images(), rows)
            merge_weights(net)
            assert net.adapter is None
            torch.testing.assert_close(
                net.logits(images(), rows), before, rtol=1e-4, atol=1e-5, msg=method
            )
