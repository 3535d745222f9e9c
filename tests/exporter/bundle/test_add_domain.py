"""A domain added later fits the bundle that exists already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunion.exporter.bundle import add_domain_pack, export_bundle
from prunion.runtime.bundle import check_pack, open_bundle, read_pack
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config import load_added_domain, load_config
from prunion.trainer.network import load_checkpoint
from prunion.trainer.pruning import SwitchLearner
from prunion.trainer.run import add_domain, train_run
from tests.trainer.tiny_run import tiny_run, write_domain


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("added")
    train_run(load_config(tiny_run(folder)), folder / "run")
    write_domain(folder / "data" / "late", ["blue", "red"], 8, 5)
    text = "[train]\nwarmup = 2\nramp = 2\nsettle = 2\nbatch_size = 8\nlr = 5e-3\n[domains.late]\n"
    text += 'train = "data/late/train"\ntest = "data/late/test"\n'
    (folder / "late.toml").write_text(text)
    return folder


def test_the_pack_fits_the_bundle_and_stays_within_its_union(run: Path) -> None:
    export_bundle(run / "run", run / "tiny.prunion")
    add_domain_pack(run / "run", run / "late.toml", run / "late.pack")
    manifest, pack = open_bundle(run / "tiny.prunion").manifest, read_pack(run / "late.pack")
    check_pack(pack, trunk_hash=manifest.trunk_hash, columns=manifest.bank_columns)
    assert pack.classes == ("blue", "red")
    assert pack.switches.any()
    with pytest.raises(PrunionError, match="--force"):
        add_domain_pack(run / "run", run / "late.toml", run / "late.pack")


def test_training_leaves_the_trunk_alone_and_learns(run: Path) -> None:
    loaded, new = load_checkpoint(run / "run"), load_added_domain(run / "late.toml")
    before = {k: v.clone() for k, v in loaded.net.state_dict().items()}
    added = add_domain(loaded, new.domain, new.train)
    for name, value in added.net.state_dict().items():
        if "norms" not in name and not name.startswith(("heads", "switches")):
            assert (value == before[name]).all(), name
    dead = ~(before["switches"] > 0).any(0)
    assert not added.net.switches[:, dead].any()
    assert added.accuracy > 0.6  # two plain colours


def test_its_switches_are_damped_by_the_union_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most units may lie outside the union; their gradients are 0 and would say nothing matters."""
    loaded, new = load_checkpoint(run / "run"), load_added_domain(run / "late.toml")
    loaded.net.switches[:, 1::2] = 0
    union = (loaded.net.switches > 0).any(0)
    assert union.float().mean() < 0.5
    typical: list[float] = []
    median = SwitchLearner._typical

    def seen(self: SwitchLearner, noise: torch.Tensor) -> torch.Tensor:
        assert not noise[:, ~union].any()
        typical.append(float(median(self, noise)))
        return median(self, noise)

    monkeypatch.setattr(SwitchLearner, "_typical", seen)
    add_domain(loaded, new.domain, new.train)
    assert min(typical) > 1e-9  # 1e-12 stands for "nothing at all"


def test_the_average_of_the_settled_weights_takes_their_place(run: Path) -> None:
    loaded, new = load_checkpoint(run / "run"), load_added_domain(run / "late.toml")
    plain = add_domain(loaded, new.domain, new.train).net.heads[0].weight
    averaged = add_domain(loaded, new.domain, replace(new.train, average=2.0)).net.heads[0].weight
    assert not torch.equal(plain, averaged)
    start = add_domain(loaded, new.domain, replace(new.train, settle=0)).net.heads[0].weight
    assert (averaged - start).norm() < (plain - start).norm()


def test_a_name_that_is_taken_and_a_file_of_two_domains_are_refused(run: Path) -> None:
    text = (run / "late.toml").read_text()
    (run / "taken.toml").write_text(text.replace("[domains.late]", "[domains.warm]"))
    with pytest.raises(ConfigError, match=r"\[domains\.warm\].*rename it"):
        add_domain_pack(run / "run", run / "taken.toml", run / "x")
    (run / "two.toml").write_text(text + '[domains.more]\ntrain = "a"\ntest = "b"\n')
    (run / "more.toml").write_text(text.replace("lr = 5e-3", 'trunk = "tuned"'))
    with pytest.raises(ConfigError, match="trunk means nothing for a domain that comes later"):
        add_domain_pack(run / "run", run / "more.toml", run / "x")
    with pytest.raises(ConfigError, match="give the one domain to add"):
        add_domain_pack(run / "run", run / "two.toml", run / "x")
    assert not (run / "x").exists()
