"""The adapter that a run's method wants, if any."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

from prunion.runtime.bundle import Layer
from prunion.trainer.backbone import NORMS
from prunion.trainer.config import TrainConfig
from prunion.trainer.methods.adapter import WeightAdapter, without_norm
from prunion.trainer.methods.finetuned import TunedWeights
from prunion.trainer.methods.lora import LowRankAdapters
from prunion.trainer.methods.masks import PIGGYBACK, MaskAdapter, affine_form
from prunion.trainer.methods.packnet import OwnedWeights
from prunion.trainer.methods.residual import (
    CompressedAdapters,
    NarrowAdapters,
    ParallelAdapters,
    SeriesAdapters,
)
from prunion.trainer.methods.sites import adapter_sites, second_of_blocks, tabled_sites
from prunion.trainer.methods.slices import SliceSwitches
from prunion.trainer.methods.taps import PickedLayers

__all__ = ["make_adapter"]


def make_adapter(
    train: TrainConfig,
    trunk: fx.GraphModule,
    layers: Sequence[Layer],
    domains: int,
    kept: Collection[str] = (),
) -> WeightAdapter | None:
    """The adapter of `[train] method`, at its neutral value; None where W_d is W.

    Args:
        trunk: the masked network's, which "series" changes in place.
        layers: the trunk's, in its order.
        kept: weights of those that stay whole, slices too.

    Raises ConfigError where nothing of this network is left to adapt.
    """
    method = train.method
    # A product may be with a constant, and a layer be frozen by its owner: in every domain, then.
    named = trunk.named_parameters(remove_duplicate=False)
    learnt = {name: value for name, value in named if value.requires_grad}
    layers = [layer for layer in layers if layer.weight in learnt]
    shared = {layer.weight: learnt[layer.weight] for layer in layers}
    if train.granularity == "slice":
        sliced = {name: weight for name, weight in shared.items() if weight.dim() > 1}
        return SliceSwitches(train, sliced, domains, kept)  # a vector has no slices
    if method == "piggyback":
        return MaskAdapter(shared, domains, PIGGYBACK)
    if method == "affine":
        return MaskAdapter(shared, domains, affine_form(train), without_norm(trunk, shared))
    if method == "finetune" and domains > 1:  # of one domain the trunk itself is tuned
        tuned = {
            name: value
            for name, value in trunk.named_parameters()
            if value.requires_grad and not name.startswith(NORMS)
        }
        return TunedWeights(tuned, domains)
    if method == "lora":
        return LowRankAdapters(train.rank, shared, domains)
    if method == "taps":
        return PickedLayers(train, shared, domains)
    if method == "packnet":
        return OwnedWeights(train, shared, domains)
    if train.adapter_rank:
        names = tabled_sites(train, trunk, layers)
        return NarrowAdapters(train, {x: shared[x] for x in names}, domains)
    if method not in ("series", "parallel", "svd"):
        return None
    sites = adapter_sites(train, trunk, layers)
    if method == "series":
        return SeriesAdapters(train, trunk, sites, domains)
    kind = ParallelAdapters if method == "parallel" else CompressedAdapters
    return kind(train, {x: shared[x] for x in sites}, domains, second_of_blocks(trunk))
