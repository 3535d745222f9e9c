"""A run and the bundle that is made of it count the same, whatever a method adds or folds away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from prunion.exporter.bundle.manifest import budget_of
from prunion.exporter.bundle.own_weights import prepare_trunk
from prunion.exporter.slim import kept_units
from prunion.trainer.backbone import trace
from prunion.trainer.config import TrainConfig, load_config
from prunion.trainer.cost.adapters import adapter_costs
from prunion.trainer.network import DomainNet, adapt_network, count_as_bundled, load_checkpoint
from prunion.trainer.processes import ALONE
from prunion.trainer.run.start import begin
from tests.support.networks.drawn import drawn_checkpoint
from tests.support.networks.small import Plain


@pytest.mark.parametrize("kind", ["params", "macs", "bytes"])
@pytest.mark.parametrize(
    ("method", "domains", "train"),
    [
        ("series", 2, {}),
        ("series", 1, {}),
        ("parallel", 1, {}),
        ("bap", 1, {"adapter_rank": 2}),
        ("bap", 2, {"adapter_rank": 2}),
    ],
)
def test_they_count_the_same(
    tmp_path: Path, method: str, domains: int, train: dict[str, Any], kind: str
) -> None:
    loaded = load_checkpoint(drawn_checkpoint(tmp_path, method, domains, **train), merge=False)
    everyone = loaded.net.switches
    prepare_trunk(loaded.net)
    alive = kept_units(loaded, everyone)
    config = load_config(tmp_path / "run.toml", ["budget.limit=1e12", f"budget.kind={kind}"])
    account = budget_of(loaded.__class__(loaded.net, config, loaded.meta), alive)
    training, _ = begin(config, tmp_path / "run", "cpu", ALONE)
    pricer = training.budget.pricer
    assert (account.backbone, account.value) == (pricer.backbone, pricer.of(alive))


def test_what_lies_in_packs_is_not_counted_as_the_graphs() -> None:
    """An adapter behind a convolution with a bias: no graph of all domains holds it."""
    plain, biased = Plain(), Plain()
    biased.conv1 = nn.Conv2d(3, 6, 3, padding=1)
    found = []
    for network in (plain, biased):
        net = DomainNet(trace(network, 8, 8), (2, 3))
        adapt_network(net, TrainConfig(method="series"))
        count_as_bundled(net)
        found.append(len(adapter_costs(net)))
    assert found == [2, 0]
