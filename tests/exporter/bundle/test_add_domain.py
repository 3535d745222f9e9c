"""A domain added later fits the bundle that exists already."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunion.exporter.bundle import add_domain_pack, export_bundle
from prunion.runtime.bundle import check_pack, open_bundle, read_pack
from prunion.runtime.errors import CheckpointError, ConfigError, PrunionError, StoppedError
from prunion.trainer.config import load_added_domain, load_config
from prunion.trainer.learning import Training
from prunion.trainer.network import load_checkpoint
from prunion.trainer.pruning import SwitchLearner
from prunion.trainer.run import add_domain, train_run
from tests.support.forked import forked_prunion
from tests.support.tiny_run import tiny_run, write_domain

SIGNALS = (signal.SIGTERM, signal.SIGINT)


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


def test_what_is_not_there_is_not_resumed(run: Path, tmp_path: Path) -> None:
    """A mistyped output trained anew."""
    with pytest.raises(PrunionError, match="holds no run to resume: correct -o"):
        add_domain_pack(run / "run", run / "late.toml", tmp_path / "typo", resume=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["warm", "Warm"])
def test_its_name_is_no_other_domains_in_any_case(run: Path, name: str) -> None:
    """Where file names ignore case the two packs would be one file."""
    loaded, new = load_checkpoint(run / "run"), load_added_domain(run / "late.toml")
    with pytest.raises(ConfigError, match=rf"domains\.{name}\] is named like .* domain warm:"):
        add_domain(loaded, replace(new.domain, name=name), new.train)


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
    update = SwitchLearner.update

    def seen(self: SwitchLearner, gradient: torch.Tensor, *args: torch.Tensor) -> None:
        assert gradient.shape[1] == union.sum()
        update(self, gradient, *args)
        typical.append(float(self.square.sqrt().median()))

    monkeypatch.setattr(SwitchLearner, "update", seen)
    added = add_domain(loaded, new.domain, new.train)
    assert min(typical) > 1e-9  # 1e-12 stands for "nothing at all"
    assert not added.net.switches[:, ~union].any()


def test_the_average_of_the_settled_weights_takes_their_place(run: Path) -> None:
    loaded, new = load_checkpoint(run / "run"), load_added_domain(run / "late.toml")
    plain = add_domain(loaded, new.domain, new.train).net.heads[0].weight
    averaged = add_domain(loaded, new.domain, replace(new.train, average=2.0)).net.heads[0].weight
    assert not torch.equal(plain, averaged)
    start = add_domain(loaded, new.domain, replace(new.train, settle=0)).net.heads[0].weight
    assert (averaged - start).norm() < (plain - start).norm()


def test_what_a_run_of_several_domains_says_of_its_trunk_is_without_meaning(run: Path) -> None:
    """A caller in Python may hand on the run's own `[train]`, whatever it says of the others."""
    loaded, new = load_checkpoint(run / "run"), load_added_domain(run / "late.toml")
    taught = {"trunk_lr": 1e-3, "teacher": "elsewhere", "distillation": 0.9}
    others = replace(new.train, trunk="tuned", sharing="jaccard", switch_every=2, **taught)
    plain = add_domain(loaded, new.domain, new.train).net.state_dict()
    for name, value in add_domain(loaded, new.domain, others).net.state_dict().items():
        assert torch.equal(value, plain[name]), name


def test_a_name_that_is_taken_and_a_file_of_two_domains_are_refused(run: Path) -> None:
    text = (run / "late.toml").read_text()
    (run / "taken.toml").write_text(text.replace("[domains.late]", "[domains.warm]"))
    with pytest.raises(ConfigError, match=r"\[domains\.warm\].*rename it"):
        add_domain_pack(run / "run", run / "taken.toml", run / "x")
    (run / "two.toml").write_text(text + '[domains.more]\ntrain = "a"\ntest = "b"\n')
    (run / "more.toml").write_text(text.replace("lr = 5e-3", 'trunk = "tuned"'))
    with pytest.raises(ConfigError, match="trunk means nothing for a domain that comes later"):
        add_domain_pack(run / "run", run / "more.toml", run / "x")
    (run / "whole.toml").write_text("[input]\nsize = 8\n[budget]\nlimit = 1\n" + text)
    with pytest.raises(ConfigError, match=r"input, budget means nothing .* has the run's: remove"):
        add_domain_pack(run / "run", run / "whole.toml", run / "x")
    with pytest.raises(ConfigError, match="give the one domain to add"):
        add_domain_pack(run / "run", run / "two.toml", run / "x")
    assert not (run / "x").exists()


def test_stopped_in_every_phase_it_goes_on_to_the_same_bytes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, so that the stops fall in the middle of epochs too."""
    add_domain_pack(run / "run", run / "late.toml", tmp_path / "whole")
    step, taken = Training._step, []

    def signals(self: Training, *args: object) -> object:
        taken.append(self.step)
        if len(taken) % 3 == 2:
            signal.raise_signal(SIGNALS[stops % 2])
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_step", signals)
    stops, pack = 0, tmp_path / "parts"
    while not pack.exists():
        try:
            add_domain_pack(run / "run", run / "late.toml", pack, resume=stops > 0)
        except StoppedError as stop:
            assert stop.code == 128 + SIGNALS[stops % 2]
            stops += 1
            assert "--resume" in str(stop)
    assert stops == 4
    assert taken == list(range(12))
    assert pack.read_bytes() == (tmp_path / "whole").read_bytes()
    log = [json.loads(x) for x in (tmp_path / "parts.run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "cost" in line] == taken
    assert log[-1]["budget/value"] <= 0.5  # of the backbone's parameters
    assert not (tmp_path / "parts.run" / "state.safetensors").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow  # what it adds to the test above is the process
def test_the_command_stops_by_a_signal_and_resumes(run: Path, tmp_path: Path) -> None:
    text = (run / "late.toml").read_text().replace("ramp = 2", "ramp = 60")
    (run / "long.toml").write_text(text)
    command = ["add-domain", run / "run", run / "long.toml", "-o", tmp_path / "p"]
    process = forked_prunion(*command, step_s=0.05)
    log, deadline = tmp_path / "p.run" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or log.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 143, errors
    *notes, last = errors.strip().splitlines()
    assert last.startswith("stopped by SIGTERM after ")
    assert all(line.startswith(("note: domain ", "note: epoch ")) for line in notes), errors
    assert not (tmp_path / "p").exists()

    again = forked_prunion(*command)
    assert "pass --resume to go on with it" in again.communicate(timeout=120)[1]
    assert again.returncode == 1
    done = forked_prunion(*command, "--resume")
    printed, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    assert "late, 2 classes" in printed
    add_domain_pack(run / "run", run / "long.toml", tmp_path / "whole")
    assert (tmp_path / "p").read_bytes() == (tmp_path / "whole").read_bytes()


def test_another_trunk_or_file_does_not_resume(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Training._step

    def stopped(self: Training, *args: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return step(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "_step", stopped)
    loaded, new = load_checkpoint(run / "run"), load_added_domain(run / "late.toml")
    # Whoever catches what prunion raises on purpose catches this too.
    with pytest.raises(PrunionError, match="stopped by SIGTERM after 1 of 12 steps"):
        add_domain(loaded, new.domain, new.train, folder=tmp_path)
    monkeypatch.setattr(Training, "_step", step)
    other = replace(loaded, meta={**loaded.meta, "model_sha256": "0" * 64})
    backbone = replace(loaded.config.backbone, name="resnet34")  # as another run's would be
    other = replace(other, config=replace(loaded.config, backbone=backbone))
    with pytest.raises(CheckpointError, match="belongs to a run with another checkpoint to build"):
        add_domain(other, new.domain, new.train, folder=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"\[train\] lr was 0.005 and is 0.0001: resume"):
        add_domain(loaded, new.domain, replace(new.train, lr=1e-4), folder=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"other domains \(was late, is later\): resume"):
        later = replace(new.domain, name="later")
        add_domain(loaded, later, new.train, folder=tmp_path, resume=True)
    add_domain(loaded, new.domain, new.train, folder=tmp_path, resume=True)


def test_a_network_broken_by_the_very_last_update_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Training._step

    def broken(self: Training, *args: object) -> object:
        result = step(self, *args)  # type: ignore[arg-type]
        if self.step == self.schedule.total - 1:
            self.net.heads[0].bias.data[0] = float("inf")  # type: ignore[union-attr]
        return result

    monkeypatch.setattr(Training, "_step", broken)
    with pytest.raises(PrunionError, match=r"heads\.0\.bias is no longer finite.*after 10 steps"):
        add_domain_pack(run / "run", run / "late.toml", tmp_path / "pack")
    assert not (tmp_path / "pack").exists()
    monkeypatch.setattr(Training, "_step", step)
    add_domain_pack(run / "run", run / "late.toml", tmp_path / "pack", resume=True)


def test_a_finished_run_is_begun_again_without_asking_but_not_its_pack(
    run: Path, tmp_path: Path
) -> None:
    pack = tmp_path / "pack"
    add_domain_pack(run / "run", run / "late.toml", pack)
    whole = pack.read_bytes()
    for resume in (False, True):
        with pytest.raises(PrunionError, match="already exists"):
            add_domain_pack(run / "run", run / "late.toml", pack, resume=resume)
    pack.unlink()
    add_domain_pack(run / "run", run / "late.toml", pack)
    assert pack.read_bytes() == whole
    folder = tmp_path / "pack.run"
    (folder / "notes.txt").write_text("mine")
    pack.unlink()
    with pytest.raises(PrunionError, match="already holds a run"):
        add_domain_pack(run / "run", run / "late.toml", pack)


def test_validation_images_are_watched_and_keys_of_scores_are_refused(
    run: Path, tmp_path: Path
) -> None:
    """They were taken from training and never looked at."""
    text = (run / "late.toml").read_text()
    (run / "watched.toml").write_text(text + "validation_holdout = 0.5\n")
    add_domain_pack(run / "run", run / "watched.toml", tmp_path / "pack")
    log = [json.loads(x) for x in (tmp_path / "pack.run/metrics.jsonl").read_text().splitlines()]
    assert len([x for x in log if "validation_accuracy/late" in x]) == 6
    for key in ("reference", "feature"):
        (run / "scored.toml").write_text(text + f"{key} = 80\n")
        with pytest.raises(ConfigError, match=rf"{key} is for scores over all domains of a run"):
            add_domain_pack(run / "run", run / "scored.toml", tmp_path / "x")
