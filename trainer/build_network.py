"""From a run file's backbone to the masked network of its domains."""

from __future__ import annotations

from collections.abc import Sequence

from prunion.trainer.backbones import load_backbone
from prunion.trainer.config import BackboneConfig
from prunion.trainer.network import DomainNet

__all__ = ["build_network"]


def build_network(
    config: BackboneConfig, size: tuple[int, int], classes: Sequence[int], *, weights: bool = True
) -> DomainNet:
    """The backbone with BatchNorms, switches and a head for each domain.

    Args:
        size: height and width of the images.
        classes: of each domain.
        weights: False leaves the parameters as the library draws them, for a caller with its own.

    Raises:
        ConfigError: unknown name, weights that do not fit, or a `keep` that is no layer.
        UnsupportedGraphError: the network cannot be traced, or its channels not be followed.
    """
    backbone = load_backbone(config, *size, weights=weights)
    return DomainNet(backbone, classes, config.keep)
