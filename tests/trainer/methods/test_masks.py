"""Masks over weights: identities, gradients by hand, and every method's neutral value."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from prunion.runtime.bundle import own_weights
from prunion.trainer.config import METHODS, Method, TrainConfig
from prunion.trainer.methods import without_norm
from prunion.trainer.methods.masks import PIGGYBACK, MaskAdapter, MaskForm, affine_form
from prunion.trainer.network import adapt_network, merge_weights
from tests.support.networks.small import Residual, SqueezeExcite, domain_net
from tests.trainer.methods.answering import answers, images


def form(**train: Any) -> MaskForm:
    return affine_form(TrainConfig(method="affine", **train))


def shared() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3, 3, 3), "b.weight": torch.randn(5, 4)}


def randomised(adapter: MaskAdapter) -> MaskAdapter:
    with torch.no_grad():
        for scores in adapter.scores.values():
            scores.copy_(torch.randn_like(scores))
    return adapter


def test_affine_with_the_last_number_alone_is_piggyback() -> None:
    weights = shared()
    affine = randomised(MaskAdapter(weights, 2, form()))
    piggyback = MaskAdapter(weights, 2, PIGGYBACK)
    with torch.no_grad():
        for key, scores in piggyback.scores.items():
            scores.copy_(affine.scores[key])
            affine.k[key].copy_(torch.tensor([0.0, 0, 0, 1]))
    for domain in range(2):
        ours, theirs = affine.weights(weights, domain), piggyback.weights(weights, domain)
        for name, weight in weights.items():
            assert torch.equal(ours[name], theirs[name])
            scores = affine.scores[name.replace(".", "/")][domain].view(weight.shape)
            assert torch.equal(ours[name], torch.where(scores > 0, weight, 0.0))


def test_the_simple_form_leaves_out_the_product_and_only_bare_layers_scale() -> None:
    weights = shared()
    simple = MaskAdapter(weights, 1, form(affine="simple"), bare={"b.weight"})
    assert simple.learns == {
        "a.weight": (False, True, True, False),
        "b.weight": (True, True, True, False),
    }
    assert simple.bits() == 4 * 27 + 20 + 32 * (2 + 3)
    assert MaskAdapter(weights, 1, PIGGYBACK).bits() == 4 * 27 + 20


@pytest.mark.parametrize("numbers", ["layer", "filter"])
def test_piggyback_is_one_of_the_forms(numbers: Any) -> None:
    """k0 = k1 = k2 = 0 and k3 = 1, all of them fixed, in every layer."""
    weights = shared()
    keys = {"affine_k0": 0.0, "affine_k1": 0.0, "affine_k2": 0.0, "affine_k3": 1.0}
    affine = MaskAdapter(weights, 2, form(affine_numbers=numbers, **keys), bare={"b.weight"})
    assert affine.bits() == 4 * 27 + 20
    assert not any(k.requires_grad for k in affine.k.values())
    randomised(affine)
    piggyback = MaskAdapter(weights, 2, PIGGYBACK)
    with torch.no_grad():
        for key, scores in piggyback.scores.items():
            scores.copy_(affine.scores[key])
    for name in weights:
        assert torch.equal(affine.weights(weights, 1)[name], piggyback.weights(weights, 1)[name])


@pytest.mark.parametrize(
    ("keys", "start", "learns"),
    [
        ({}, (1, 0, 0, 0), "-123"),
        ({"affine": "simple"}, (1, 0, 0, 0), "-12-"),
        ({"affine_k0": "learned"}, (1, 0, 0, 0), "0123"),
        ({"affine_k1": 0.0, "affine_k2": 0.0}, (1, 0, 0, 0), "---3"),
        ({"affine_k0": 0.0}, (0, 0, 0, 1), "-123"),
        ({"affine_k0": "learned", "affine_k3": 0.25}, (0.75, 0, 0, 0.25), "012-"),
        ({"affine": "simple", "affine_k3": "learned"}, (1, 0, 0, 0), "-123"),
    ],
)
def test_each_number_is_learned_or_given(
    keys: dict[str, Any], start: tuple[float, ...], learns: str
) -> None:
    """What learns starts where every bit being on makes W_d of W."""
    made = form(**keys)
    assert made.start == start
    assert "".join(str(k) if own else "-" for k, own in enumerate(made.learns)) == learns
    weights = shared()
    for name, value in MaskAdapter(weights, 1, made).weights(weights, 0).items():
        torch.testing.assert_close(value, weights[name])


@pytest.mark.parametrize("numbers", ["layer", "filter"])
@pytest.mark.parametrize("affine", ["simple", "full"])
@pytest.mark.parametrize("gradient", ["identity", "sigmoid"])
def test_a_pack_makes_the_same_weights(numbers: Any, affine: Any, gradient: Any) -> None:
    made = form(affine=affine, affine_numbers=numbers, affine_gradient=gradient)
    weights = shared()
    adapter = randomised(MaskAdapter(weights, 2, made))
    with torch.no_grad():
        for k in adapter.k.values():
            k.add_(0.1 * torch.randn_like(k))
    stored = own_weights(adapter.stored(1), lambda name: weights[name].numpy())
    for name, value in adapter.weights(weights, 1).items():
        torch.testing.assert_close(torch.from_numpy(stored[name]), value.detach())
    each = 2 + (affine == "full")
    assert adapter.bits() == 4 * 27 + 20 + 32 * each * (2 if numbers == "layer" else 4 + 5)


def test_a_sigmoid_scales_the_gradient_of_the_bits() -> None:
    weights = shared()
    adapter = randomised(MaskAdapter(weights, 1, form(affine_gradient="sigmoid")))
    with torch.no_grad():
        adapter.k["a/weight"].copy_(torch.tensor([[1.0, 0.4, 0.5, 0.6]]))
    upstream, weight = torch.randn(4, 3, 3, 3), weights["a.weight"]
    (upstream * adapter.weights(weights, 0)["a.weight"]).sum().backward()
    soft = adapter.scores["a/weight"][0].detach().view(weight.shape).sigmoid()
    grad = adapter.scores["a/weight"].grad
    assert grad is not None
    expected = upstream * (0.5 + 0.6 * weight) * soft * (1 - soft)
    torch.testing.assert_close(grad[0].view(weight.shape), expected)


def test_gradients_are_the_papers() -> None:
    """By hand, of a loss whose gradient by W_d is G."""
    weights = shared()
    adapter, name, key = randomised(MaskAdapter(weights, 2, form())), "a.weight", "a/weight"
    with torch.no_grad():
        adapter.k[key].copy_(torch.tensor([[1.0, 0.1, 0.2, 0.3], [1.0, 0.4, 0.5, 0.6]]))
    upstream, weight = torch.randn(4, 3, 3, 3), weights[name]
    (upstream * adapter.weights(weights, 1)[name]).sum().backward()
    mask = (adapter.scores[key][1].view(weight.shape) > 0).float()
    expected = [0.0, upstream.sum(), (upstream * mask).sum(), (upstream * weight * mask).sum()]
    numbers, scores = adapter.k[key].grad, adapter.scores[key].grad
    assert numbers is not None and scores is not None
    assert numbers[1].tolist() == pytest.approx([float(x) for x in expected], rel=1e-4)
    torch.testing.assert_close(scores[1].view(weight.shape), upstream * (0.5 + 0.6 * weight))
    assert not numbers[0].any()
    assert not scores[0].any()  # the other domain has nothing to do with it


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("block", [Residual, SqueezeExcite])
def test_at_its_neutral_value_every_method_is_the_backbone(method: Any, block: Any) -> None:
    """With each domain's own BatchNorm and head."""
    net = domain_net(block(), (3, 4))
    with torch.no_grad():
        for norm in net.norms.values():
            norm.weight.copy_(torch.rand_like(norm.weight))
            norm.running_mean.normal_()
    before = answers(net)
    changes = {"packnet_source": 0.0} if method == "packnet" else {}  # it gives up none of its own
    adapt_network(net, TrainConfig(method=method, **changes))
    assert (net.adapter is not None) == METHODS[method].own_weights
    torch.testing.assert_close(answers(net), before, rtol=1e-5, atol=1e-6)


def test_a_filter_that_is_off_gives_a_constant_channel() -> None:
    net = domain_net(Residual(), (3, 4))
    adapt_network(net, TrainConfig(method="piggyback"))
    assert isinstance(net.adapter, MaskAdapter)
    name = net.units.table.layers[0].weight
    with torch.no_grad():
        scores = net.adapter.scores[name.replace(".", "/")][1]
        scores.view(net.trunk.get_parameter(name).shape)[2] = -1.0
    one, other = (net.own_weights(domain)[name] for domain in (0, 1))
    assert not other[2].any()
    assert torch.equal(one, net.trunk.get_parameter(name))
    alone = domain_net(Residual(), (3, 4))
    alone.load_state_dict({k: v for k, v in net.state_dict().items() if "adapter" not in k})
    # An order of additions may differ between batch sizes; a channel less is far more.
    changed = (answers(net) - answers(alone)).abs().nan_to_num().amax(1) > 1e-5
    assert changed.tolist() == [False, True, True, False]


def test_merged_weights_answer_the_same() -> None:
    net = domain_net(Residual(), (3,))
    adapt_network(net, TrainConfig(method="affine"))
    assert isinstance(net.adapter, MaskAdapter)
    randomised(net.adapter)
    with torch.no_grad():
        for numbers in net.adapter.k.values():
            numbers.copy_(torch.tensor([[1.0, 0.01, 0.02, 0.5]]))
        net.eval()
        rows = torch.zeros(4, dtype=torch.int64)
        before = net.logits(images(), rows)
        merge_weights(net)
        assert net.adapter is None
        torch.testing.assert_close(net.logits(images(), rows), before)


def test_layers_without_a_batchnorm_behind_them_are_found() -> None:
    net = domain_net(SqueezeExcite(), (2,))
    names = [layer.weight for layer in net.units.table.layers]
    bare = without_norm(net.trunk, names)
    assert len(names) == 3
    assert len(bare) == 2  # the gate's two layers
