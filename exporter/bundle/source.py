"""What an export starts from: a checkpoint of the domains asked for, as a graph is to hold it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunion.exporter.bundle.manifest import budget_of
from prunion.exporter.bundle.own_weights import apart, check_options, holds_slices, prepare_trunk
from prunion.exporter.options import ExportOptions
from prunion.exporter.slim import keep_domains, kept_units
from prunion.runtime.bundle import BudgetAccount
from prunion.trainer.methods import WeightAdapter
from prunion.trainer.network import Checkpoint, load_checkpoint

__all__ = ["Source", "load_source"]


@dataclass(frozen=True)
class Source:
    """A checkpoint that is exported.

    Attributes:
        checkpoint: with a trunk that is ready for the graph.
        alive: `[U]`, the units that the graph keeps.
        slices: the adapter whose domains choose slices, also where an only domain's weights took
            the trunk's place.
        own: whether the domains have weights beside the graph.
        computed: whether weights of the trunk may be others than the checkpoint's, made of what its
            method stores.
    """

    checkpoint: Checkpoint
    alive: np.ndarray
    slices: WeightAdapter | None
    own: bool
    computed: bool

    @property
    def names(self) -> list[str]:
        """Of its domains."""
        return [domain["name"] for domain in self.checkpoint.meta["domains"]]

    def budget(self, file_bytes: int | None = None) -> BudgetAccount:
        """What it costs. Raises BudgetError where that is more than it promised."""
        return budget_of(self.checkpoint, self.alive, file_bytes, self.slices)


def load_source(path: Path | str, options: ExportOptions) -> Source:
    """Raise CheckpointError, DomainError, or ConfigError for a form that its method has not."""
    loaded = load_checkpoint(path, merge=False)
    everyone = loaded.net.switches
    chosen = (options.specialise,) if options.specialise is not None else options.domains
    if chosen is not None:
        loaded = keep_domains(loaded, chosen)
    slices = loaded.net.adapter if holds_slices(loaded.net) else None
    computed = loaded.net.adapter is not None
    prepare_trunk(loaded.net, dense=options.specialise is not None)
    check_options(options, loaded.net, loaded.config.train)
    return Source(loaded, kept_units(loaded, everyone), slices, apart(loaded.net), computed)
