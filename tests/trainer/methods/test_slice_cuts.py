"""What a cut of slices spends: the whole budget, though it buries what does not meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from prunion.trainer.config import TrainConfig
from prunion.trainer.methods.slices import SliceSwitches
from prunion.trainer.network import adapt_network
from tests.support.networks.small import Depthwise, Plain, Residual, domain_net
from tests.trainer.methods.test_slices import drawn


@pytest.mark.parametrize("method", ["bap", "ba2"])
@pytest.mark.parametrize("kind", [Plain, Residual, Depthwise])
def test_what_is_buried_frees_its_part_of_the_budget(method: Any, kind: type[nn.Module]) -> None:
    """Slices of channels that nothing makes or reads were paid for: a tenth of the budget lay."""
    net = domain_net(kind())
    full = net.units.table.params(np.ones(net.units.table.count, bool))
    adapt_network(net, TrainConfig(granularity="slice", method=method))
    adapter = net.adapter
    assert isinstance(adapter, SliceSwitches)
    for share in (0.15, 0.25, 0.4):
        adapter.fixed.fill_(False)
        adapter.keep_to(share * full, full)
        drawn(adapter)
        for scores in adapter.scores.values():
            scores.data.abs_()  # all are wanted
        adapter.advance({}, 0, "settle")
        union, own = adapter.used()
        for used in [union] if method == "bap" else own:
            assert share * full - 9 < used * adapter.whole <= share * full
        dead = adapter.dead_units()
        assert dead is not None
        for name, bits in adapter.slices().items():
            for axis in (0, 1):
                units = net.units.table.slots.get((name, axis))
                if units is not None:
                    assert (
                        not bits.any(0).numpy().any(1 - axis)[np.append(dead, False)[units]].any()
                    )
