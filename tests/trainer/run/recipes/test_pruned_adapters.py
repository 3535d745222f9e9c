"""Channels cut and adapters of low rank in what is left, under one budget; a domain that joins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.exporter.bundle import add_domain_pack, export_bundle
from prunion.exporter.bundle.add_domain import AddedPack
from prunion.exporter.verify import verify_bundle
from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import BudgetError, ConfigError
from prunion.runtime.model import load
from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    RunConfig,
    TrainConfig,
    load_config,
)
from prunion.trainer.cost import make_budget, make_pricer
from prunion.trainer.network import adapt_network, build_network, load_checkpoint
from prunion.trainer.run import check_run, train_run
from tests.support.networks.drawn import drawn_checkpoint
from tests.support.tiny_run import tiny_run, write_domain

pytestmark = pytest.mark.thorough

ROWS = ["warm", "later", "cold", "later"]


def added_pack(checkpoint: Path, folder: Path) -> AddedPack:
    """A domain that comes later, beside the data of `tiny_run`."""
    write_domain(folder / "data" / "later", ["blue", "red"], 8, 2)
    later = folder / "later.toml"
    later.write_text(
        "[train]\nwarmup = 0\nramp = 1\nsettle = 1\nbatch_size = 8\n[domains.later]\n"
        'train = "data/later/train"\ntest = "data/later/test"\n',
        "utf-8",
    )
    return add_domain_pack(checkpoint, later, folder / "later.safetensors")


def test_a_domain_joins_parallel_adapters(tmp_path: Path) -> None:
    checkpoint = drawn_checkpoint(tmp_path, "parallel", adapters='"early"')
    export_bundle(checkpoint, tmp_path / "x.prunion")
    added = added_pack(checkpoint, tmp_path)
    assert set(added.pack.own) == set(open_bundle(tmp_path / "x.prunion").pack("warm").own)
    assert any(value.any() for value in added.pack.own.values())
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    with load(tmp_path / "x.prunion", "cpu", threads=1, memory_limit=0) as model:
        before = model.logits(images, ["warm"] * 4)
        model.add_domain(added.path)
        mixed = model.logits(images, ROWS)
    np.testing.assert_allclose(mixed[0, :2], before[0, :2], rtol=1e-4, atol=1e-4)


def test_a_run_keeps_one_budget_for_both(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path, warmup=0, adapter_rank=2))
    result = train_run(config, tmp_path / "out")
    assert result.budget["met"]
    manifest = export_bundle(tmp_path / "out", tmp_path / "x.prunion")
    params = manifest["params"]
    both = params["exported"] + params["adapters"]
    assert params["adapters"] > 0
    assert manifest["budget"]["value"] == pytest.approx(both / params["backbone"])
    assert both <= 0.5 * params["backbone"]
    assert verify_bundle(tmp_path / "x.prunion", against=tmp_path / "out").problems == ()
    adapter = load_checkpoint(tmp_path / "out").net.adapter
    assert adapter is not None
    assert any(up.any() for up in adapter.up.values())  # type: ignore[union-attr]

    added = added_pack(tmp_path / "out", tmp_path)
    assert set(added.pack.own) == set(open_bundle(tmp_path / "x.prunion").pack("warm").own)
    assert any(value.any() for key, value in added.pack.own.items() if "up" in key)
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)
    with load(tmp_path / "x.prunion", "cpu", threads=1, memory_limit=0) as model:
        model.add_domain(added.path)
        mixed = model.logits(images, ROWS)
    with load(tmp_path / "x.prunion", "cpu", threads=1) as model:
        model.add_domain(added.path)
        alone = model.logits(images, ["later"] * 4)
    np.testing.assert_allclose(alone[1], mixed[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["params", "macs", "bytes"])
def test_the_first_refusal_counts_adapters_too(tmp_path: Path, kind: str) -> None:
    """The limit that it named held the channels alone, and was refused in its turn."""
    changes = ["train.adapter_rank=2", f"budget.kind={kind}", "budget.round_to=1"]
    run_file = tiny_run(tmp_path)
    with pytest.raises(BudgetError, match="but the narrowest network") as refused:
        check_run(load_config(run_file, [*changes, "budget.limit=1e-4"]))
    least = str(refused.value).rsplit("at least ", 1)[1]
    found = check_run(load_config(run_file, [*changes, f"budget.limit={least}"]))
    assert str(found.budget["least"]) == least


@pytest.mark.parametrize("kind", ["params", "macs", "bytes"])
def test_adapters_are_priced_with_the_channels(tmp_path: Path, kind: Any) -> None:
    config = load_config(tiny_run(tmp_path))
    net = build_network(config.backbone, (16, 16), [2, 3], weights=False)
    budget = BudgetConfig(0.5, kind)
    plain = make_pricer(budget, net)
    adapt_network(net, TrainConfig(adapter_rank=2))
    both = make_pricer(budget, net)
    assert both.backbone == plain.backbone  # what a share is a share of
    every = np.ones(net.units.table.count, bool)
    sites = [x for x in net.units.table.layers if max(x.shape[2:]) > 1]
    each = {"params": 2, "bytes": 8}.get(kind)  # two domains, or an image of one of them
    expected = sum(2 * (x.shape[0] + x.shape[1]) * (each or x.positions) for x in sites)
    more = both.of(every) - plain.of(every)
    assert more == expected if kind != "bytes" else more >= expected
    unit = net.units.table.slots[sites[0].weight, 0][0]
    fewer = every.copy()
    fewer[unit] = False
    assert both.of(fewer) - plain.of(fewer) < more
    assert make_budget(budget, both).allowed == pytest.approx(0.5 * plain.backbone)


@pytest.mark.parametrize(
    ("train", "budget", "said"),
    [
        ({"granularity": "slice"}, {}, "adapter_rank is 2 and granularity is .slice., but slices"),
        ({"method": "lora"}, {}, "adapter_rank is 2, but method is .lora."),
        ({"compile": True}, {}, "compile is true, which fixes the weights, but adapter_rank is 2"),
        ({"method": "parallel", "adapter_decay": 0.1}, {}, "adapter_rank is 2, with weight_decay"),
        ({"method": "parallel", "adapter_dropout": 0.1}, {}, "no dropout, but adapter_dropout is"),
        ({"adapter_rank": -1}, {}, "adapter_rank"),
        ({}, {"own": 0.5}, r"adapter_rank is 2, and neither \[budget\] own"),
        ({}, {"kind": "latency", "profile": "x.json"}, "counts adapters: leave one"),
    ],
)
def test_keys_that_do_not_go_together(
    train: dict[str, Any], budget: dict[str, Any], said: str
) -> None:
    domains = tuple(DomainConfig(name, train=("a",), test=("b",)) for name in "ab")
    with pytest.raises(ConfigError, match=said):
        RunConfig(
            BackboneConfig("resnet18"),
            BudgetConfig(0.5, **budget),
            domains,
            train=TrainConfig(**{"adapter_rank": 2, **train}),
        )


def test_what_comes_with_a_rank() -> None:
    train = TrainConfig(adapter_rank=4, adapters="late", sites="second", adapter_lr=0.01)
    assert train.own_adapter_lr == 0.01
    assert TrainConfig(adapter_rank=4).own_adapter_lr == 1e-3
    with pytest.raises(ConfigError, match=r"adapters is .late., but method is .bap."):
        TrainConfig(adapters="late")
