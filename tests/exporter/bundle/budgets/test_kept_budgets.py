"""Whatever the network, the switches and the budget: the exported file keeps it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunion.exporter.bundle import export_bundle
from prunion.exporter.counts import recount
from prunion.exporter.graph import onnx_graph
from prunion.exporter.slim import slim_network
from prunion.runtime.base import sha256_file
from prunion.runtime.errors import BudgetError, CheckpointError
from prunion.trainer.config import BudgetConfig
from prunion.trainer.cost import PricedBudget, make_budget, make_pricer, select_union
from prunion.trainer.network import DomainNet, load_checkpoint
from tests.exporter.slim.test_random_networks import QUICK, masked
from tests.support.networks.random_nets import SIDE, RandomNet, networks

KINDS = ("params", "macs", "bytes", "switches")


def cut(net: DomainNet, budget: PricedBudget, seed: int) -> None:
    """Random scores for every domain, the union cut to the budget as a run ends."""
    generator = np.random.default_rng(seed)
    score = generator.random(net.switches.shape) - 0.3
    used = (score > 0).any(0) if seed % 2 else None
    alive = select_union(score.max(0), budget, used)
    on = torch.from_numpy((score > 0) & alive)
    on[0] |= torch.from_numpy(alive) & ~on.any(0)  # what fills the budget or a multiple
    net.switches.copy_(on)


def check(model: RandomNet, kind: str, limit: float, multiple: int, seed: int, path: Path) -> None:
    net = masked(model, seed)
    try:
        config = BudgetConfig(limit, kind, multiple)
        budget = make_budget(config, make_pricer(config, net))
    except BudgetError:
        assume(False)
    full = None if kind == "switches" else onnx_graph(slim_network(net), SIDE, SIDE)
    cut(net, budget, seed)
    onnx.save(onnx_graph(slim_network(net), SIDE, SIDE), path)
    file, layers = recount(onnx.load(path)), net.units.table.layers
    assert set(file.shapes) == {layer.weight for layer in layers}  # every layer is counted
    if full is None:
        assert int((net.switches > 0).any(0).sum()) <= limit * net.units.table.count
        return
    whole = recount(full)
    found, backbone = {
        "params": (file.params, whole.params),
        "macs": (sum(file.macs.values()), sum(whole.macs.values())),
        "bytes": (path.stat().st_size, full.ByteSize()),
    }[kind]
    assert found <= limit * backbone


def test_another_multiple_that_breaks_the_budget_is_refused(tiny: Path, tmp_path: Path) -> None:
    """The widths are multiples of 8; of 32 they cost more than was asked."""
    run = Path(shutil.copytree(tiny, tmp_path / "run"))
    path = run / "checkpoint" / "checkpoint.json"
    meta = json.loads(path.read_text("utf-8"))
    meta["config"]["budget"]["round_to"] = 32
    path.write_text(json.dumps(meta), "utf-8")
    with pytest.raises(BudgetError, match=r"multiples of 32.*round_to, the budget or"):
        export_bundle(run, tmp_path / "m.prunion")
    assert not (tmp_path / "m.prunion").exists()


def test_macs_that_an_earlier_prunion_counted_are_counted_anew(tiny: Path, tmp_path: Path) -> None:
    """It left out that some layers see parts of an image as images of their own."""
    run = Path(shutil.copytree(tiny, tmp_path / "run"))
    units, path = (run / "checkpoint" / f"{x}.json" for x in ("units", "checkpoint"))
    table, meta = (json.loads(x.read_text("utf-8")) for x in (units, path))
    table["layers"][0]["positions"] //= 4
    units.write_text(json.dumps(table), "utf-8")
    path.write_text(json.dumps({**meta, "units_sha256": sha256_file(units)}), "utf-8")
    expected, found = (load_checkpoint(x).net.units.table for x in (tiny, run))
    assert found.to_json() == expected.to_json()
    table["layers"][0]["shape"][0] += 1
    units.write_text(json.dumps(table), "utf-8")
    path.write_text(json.dumps({**meta, "units_sha256": sha256_file(units)}), "utf-8")
    with pytest.raises(CheckpointError, match="channels are laid out differently"):
        load_checkpoint(run)


@pytest.mark.thorough
@settings(QUICK, max_examples=4)
@given(
    model=networks(),
    kind=st.sampled_from(KINDS),
    limit=st.floats(0.1, 1.0, exclude_max=True),
    multiple=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31),
)
def test_the_file_keeps_its_budget(
    tmp_path_factory: pytest.TempPathFactory,
    model: RandomNet,
    kind: str,
    limit: float,
    multiple: int,
    seed: int,
) -> None:
    check(model, kind, limit, multiple, seed, tmp_path_factory.mktemp("kept") / "model.onnx")


@pytest.mark.slow
@settings(QUICK, max_examples=200, derandomize=False)
@given(
    model=networks(most_steps=12),
    kind=st.sampled_from(KINDS),
    limit=st.floats(0.05, 1.0, exclude_max=True),
    multiple=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 2**31),
)
def test_hundreds_of_files_keep_their_budgets(
    tmp_path_factory: pytest.TempPathFactory,
    model: RandomNet,
    kind: str,
    limit: float,
    multiple: int,
    seed: int,
) -> None:
    check(model, kind, limit, multiple, seed, tmp_path_factory.mktemp("kept") / "model.onnx")
