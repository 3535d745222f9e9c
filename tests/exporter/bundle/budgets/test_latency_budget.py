"""A budget in milliseconds from the device's profile to the exported file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import verify_bundle
from prunion.exporter.verify.budget import check_budget
from prunion.runtime.base import sha256_file
from prunion.runtime.bundle import open_bundle, read_profile
from prunion.runtime.cli import cli
from prunion.runtime.errors import BudgetError, CheckpointError
from prunion.trainer.config import load_config
from prunion.trainer.network import load_checkpoint, save_checkpoint
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run

pytestmark = pytest.mark.thorough


def command(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(x) for x in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("latency"), warmup=1, ramp=1, settle=0)


MIXER = """
from torch import nn
from torch.nn import functional as F

class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 16, 4, 4), nn.ConvTranspose2d(24, 16, 2, 2)
        self.wide = nn.Conv2d(16, 24, 3, 1, 1)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        for layer in (self.stem, self.up, self.wide, self.fc1, self.fc2):
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        x = self.up(self.wide(self.stem(x)).relu())
        y = self.fc2(F.gelu(self.fc1(self.norm(x.permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)
"""


def test_linear_layers_over_tokens_and_transposed_convolutions_are_timed(run_file: Path) -> None:
    """Random biases that are all zero would be stored once, and be cut with another layer."""
    folder = run_file.parent
    (folder / "mixer.py").write_text(MIXER, "utf-8")
    text = run_file.read_text("utf-8")
    text = text.replace('"torchvision"', '"python"').replace('"resnet18"', '"mixer.py:Mixer"')
    text = text.replace('cut = "layer1"\n', "").replace('weights = "none"\n', "")
    (folder / "mixer.toml").write_text(text, "utf-8")
    command("profile", folder / "mixer.toml", "-o", folder / "mixer.json", "--seconds", 0.001)
    profile = read_profile(folder / "mixer.json")
    grids = {x: profile.grids[number] for x, (_, number) in profile.layers.items()}
    assert list(grids) == ["stem.weight", "wide.weight", "up.weight", "fc1.weight", "fc2.weight"]
    assert (grids["wide.weight"].out[-1], grids["wide.weight"].inside[-1]) == (24, 16)
    assert (grids["up.weight"].out, grids["up.weight"].inside) == ((8, 16, 24), (16,))
    assert (grids["fc1.weight"].out, grids["fc1.weight"].inside) == ((8, 16), (16,))


GROUPS = """
from torch import nn

class Groups(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.parts = nn.Conv2d(3, 24, 3, 2, 1), nn.Conv2d(24, 48, 3, 1, 1, groups=3)
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, (24, 48, 96, 16)))
        self.twice, self.out = nn.Conv2d(48, 96, 3, 1, 1, groups=48), nn.Conv2d(96, 16, 1)

    def forward(self, x):
        for layer, norm in zip((self.stem, self.parts, self.twice, self.out), self.norms):
            x = norm(layer(x)).relu()
        return x
"""


def test_groups_are_timed_at_widths_that_they_divide_and_their_budget_is_kept(
    run_file: Path,
) -> None:
    folder = run_file.parent
    (folder / "groups.py").write_text(GROUPS, "utf-8")
    text = run_file.read_text("utf-8")
    text = text.replace('"torchvision"', '"python"').replace('"resnet18"', '"groups.py:Groups"')
    text = text.replace('cut = "layer1"\n', "").replace('weights = "none"\n', "")
    (folder / "groups.toml").write_text(text, "utf-8")
    profile = folder / "groups.json"
    command("profile", folder / "groups.toml", "-o", profile, "--seconds", 0.002)
    made = read_profile(profile)
    grids = {x: made.grids[number] for x, (_, number) in made.layers.items()}
    assert (grids["stem.weight"].out, grids["parts.weight"].inside) == ((24,), (8,))
    assert (grids["parts.weight"].out, grids["twice.weight"].out) == ((24, 48), (48, 96))
    changes = ["budget.kind=latency", f"budget.profile={profile}"]
    with pytest.raises(BudgetError, match="give at least") as caught:
        train_run(
            load_config(folder / "groups.toml", [*changes, "budget.limit=1e-3"]), folder / "g"
        )
    least = str(caught.value).rsplit("at least ", 1)[1]
    config = load_config(folder / "groups.toml", [*changes, f"budget.limit={least}"])
    assert train_run(config, folder / "g").budget["met"]
    budget = export_bundle(folder / "g", folder / "g.prunion")["budget"]
    assert budget["met"] and budget["value"] <= float(least)
    assert verify_bundle(folder / "g.prunion").problems == ()


@pytest.fixture(scope="module")
def trained(run_file: Path) -> Path:
    """A run whose budget is 80 % of the measured time of its network; its profile is gone.

    The narrowest takes half, and more on a busy machine.
    """
    folder = run_file.parent
    command("profile", run_file, "-o", folder / "device.json", "--seconds", 0.002)
    assert read_profile(folder / "device.json").round_to == 8  # the run's
    text = run_file.read_text("utf-8")
    text = text.replace(
        'kind = "params"\nlimit = 0.5', 'kind = "latency"\nlimit = 0.8\nprofile = "device.json"'
    )
    (folder / "fast.toml").write_text(text, "utf-8")
    result = train_run(load_config(folder / "fast.toml"), folder / "out")
    assert result.budget["met"]
    assert result.budget["share"] == result.budget["value"] <= 0.8
    (folder / "device.json").unlink()  # the checkpoint has its own
    return folder / "out"


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    export_bundle(trained, trained.parent / "m.prunion")
    return trained.parent / "m.prunion"


def test_the_exported_file_keeps_its_milliseconds(exported: Path) -> None:
    output = exported
    budget = json.loads((output / "manifest.json").read_text("utf-8"))["budget"]
    assert (budget["kind"], budget["asked"], budget["met"]) == ("latency", 0.8, True)
    assert budget["share"] <= 0.8
    # Once more, from nothing but the bundle.
    bundle = open_bundle(output)
    profile, table = read_profile(output / "profile.json"), bundle.unit_table()
    widths = np.ones(table.count, bool)
    assert profile.milliseconds(table, widths) == pytest.approx(budget["milliseconds"], rel=1e-12)
    assert verify_bundle(output).problems == ()
    shown = command("inspect", output)
    assert f"asked 0.8, is {budget['milliseconds']:.3f} ms predicted, share 0." in shown
    assert "CPUExecutionProvider, batch 1, 1 threads (met)" in shown


def test_fewer_domains_keep_it_too(trained: Path, tmp_path: Path) -> None:
    options = ExportOptions(specialise="warm")
    output = tmp_path / "one.prunion"
    budget = export_bundle(trained, output, options)["budget"]
    assert budget["met"]
    assert budget["share"] <= 0.8
    assert [*check_budget(open_bundle(output))] == []


def test_a_false_claim_is_found(exported: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(exported, tmp_path / "m.prunion"))
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    manifest["budget"]["milliseconds"] *= 0.9
    (output / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (problem,) = check_budget(open_bundle(output))
    assert "its widths cost" in problem


def test_switches_over_the_budget_are_refused(trained: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(trained)
    loaded.net.switches.copy_(torch.ones_like(loaded.net.switches))
    facts = {"domains": loaded.meta["domains"]}
    save_checkpoint(tmp_path / "all", loaded.net, loaded.config, facts, force=False)
    with pytest.raises(BudgetError, match=r"cost [\d.]+ ms .* its budget allows [\d.]+ ms"):
        export_bundle(tmp_path / "all", tmp_path / "m.prunion")
    assert not (tmp_path / "m.prunion").exists()


def test_the_checkpoints_profile_is_held_to_its_hash(trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained / "checkpoint", tmp_path / "checkpoint"))
    meta = json.loads((copy / "checkpoint.json").read_text("utf-8"))
    assert meta["profile_sha256"] == sha256_file(copy / "profile.json")
    profile = json.loads((copy / "profile.json").read_text("utf-8"))
    profile["fit"]["scale"] /= 2
    (copy / "profile.json").write_text(json.dumps(profile), "utf-8")
    with pytest.raises(CheckpointError, match=r"profile\.json is truncated or altered"):
        load_checkpoint(copy)


def test_a_probe_needs_neither_images_nor_weights(run_file: Path, tmp_path: Path) -> None:
    text = run_file.read_text("utf-8").replace("data/", "nowhere/")
    (tmp_path / "run.toml").write_text(text, "utf-8")
    output = tmp_path / "probe.prunion"
    shown = command("export", tmp_path / "run.toml", "--untrained", "-o", output)
    assert "every channel of the network, random weights" in shown
    bundle = open_bundle(output)
    assert bundle.domains == ("probe",)
    assert all(before == after for before, after in bundle.manifest.widths.values())
    assert bundle.manifest.round_to == 8  # the widths to profile
