"""From Python: the same bytes as the command line, a network in hand, callbacks, plots."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import prunion
from prunion.exporter.tables import domain_table, sees
from prunion.exporter.training import _asked
from prunion.runtime.errors import CheckpointError, ConfigError, DataError, InputError
from prunion.trainer.cli import train as train_command
from prunion.trainer.config import load_config
from prunion.trainer.run import Progress
from tests.support.networks.small import Residual
from tests.support.tiny_run import tiny_run, write_domain

SHORT = {"warmup": 1, "ramp": 1, "settle": 1, "batch_size": 4}
BUDGET = {"kind": "params", "limit": 0.7, "round_to": 1}  # its layers are hardly wider than 8


class Noise(Dataset[tuple[Any, int]]):
    """Pictures in memory, in one of the forms that a data set may give them."""

    classes = ("dark", "bright")

    def __init__(self, count: int = 12, form: str = "tensor") -> None:
        self.count, self.form = count, form

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = np.full((16, 16, 3), 60 + 120 * (index % 2) + index, np.uint8)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        forms = {"array": pixels, "bytes": tensor, "tensor": tensor / 255}
        forms |= {"picture": Image.fromarray(pixels), "normalised": tensor / 255 - 0.5}
        return forms[self.form], index % 2


def checkpoint(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "checkpoint").iterdir())}


def test_python_and_the_command_line_give_the_same_bytes(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path)
    done = CliRunner().invoke(train_command, [str(run_file), "-o", str(tmp_path / "command")])
    assert done.exit_code == 0, done.output
    result = prunion.train(run_file, tmp_path / "python")
    prunion.train(load_config(run_file).to_json(), tmp_path / "tables")
    expected = checkpoint(tmp_path / "command")
    assert set(expected) >= {"checkpoint.json", "model.safetensors", "units.json", "graph.json"}
    assert checkpoint(tmp_path / "python") == expected
    assert checkpoint(tmp_path / "tables") == expected
    assert str(result).startswith("domain")
    assert repr(result).startswith(f"RunResult({tmp_path / 'python'}: warm ")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Residual, dict[str, Any], list]:
    folder, told = tmp_path_factory.mktemp("pruned"), []
    write_domain(folder / "paint", ["red", "green"], 6, 0)
    torch.manual_seed(0)
    model = Residual()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.set_num_threads(2)
    chance = torch.get_rng_state()
    result = prunion.prune(
        model,
        {"paint": folder / "paint", "noise": Noise(), "both": (Noise(), Noise(8, "array"))},
        BUDGET,
        folder / "run",
        size=16,
        train=SHORT,
        threads=1,
        on_step=lambda now: told.append(("step", now)),
        on_epoch=lambda now: told.append(("epoch", now)),
    )
    assert torch.get_num_threads() == 2 and torch.equal(torch.get_rng_state(), chance)
    torch.set_num_threads(1)
    return result, model, before, told


def test_a_network_in_hand_is_pruned_and_left_as_it_is(pruned: Any, tmp_path: Path) -> None:
    result, model, before, _ = pruned
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert result.budget["met"]
    assert result.data["paint"]["images"] == {"train": 12, "test": 12}  # train/ and test/
    assert result.data["noise"]["images"] == {"train": 10, "test": 2}  # a tenth of each class
    assert result.data["both"]["images"] == {"train": 12, "test": 8}
    bundle = prunion.export(result, tmp_path / "m.prunion")
    assert prunion.verify(bundle, against=result).problems == ()
    assert [d.name for d in bundle.manifest.domains] == ["paint", "noise", "both"]
    answer, *_ = prunion.load(tmp_path / "m.prunion").predict(
        [np.zeros((16, 16, 3), np.uint8)], domain=["noise"]
    )
    assert answer.class_name in ("dark", "bright")


def test_a_result_leads_to_its_own_run_alone(
    pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run in its folder, or in one of that name elsewhere, was exported as this one."""
    monkeypatch.chdir(tmp_path)
    assert _asked(load_config(tiny_run(tmp_path)), "runs/x", False)[2] == tmp_path / "runs" / "x"
    shutil.copytree(pruned[0].folder, tmp_path / "run")
    told = tmp_path / "run" / "checkpoint" / "checkpoint.json"
    told.write_text(told.read_text("utf-8").replace(pruned[0].model_sha256, "0" * 64), "utf-8")
    with pytest.raises(CheckpointError, match="run holds another run's network by now"):
        prunion.export(replace(pruned[0], folder=tmp_path / "run"), tmp_path / "m.prunion")
    assert not (tmp_path / "m.prunion").exists()
    with pytest.raises(CheckpointError, match="give the folder to compare with that one"):
        prunion.verify(tmp_path, against=replace(pruned[0], folder=tmp_path / "run"))
    with pytest.raises(InputError, match="against is 3: give the path"):
        prunion.verify(tmp_path, against=3)


def test_callbacks_hear_of_every_step_and_epoch(pruned: Any) -> None:
    told: list[tuple[str, Progress]] = pruned[3]
    steps = [now for kind, now in told if kind == "step"]
    epochs = [now for kind, now in told if kind == "epoch"]
    assert [now.step for now in steps] == list(range(1, steps[-1].total + 1))
    assert [now.epoch for now in epochs] == [1, 2, 3]
    assert {"loss/noise", "cost"} <= steps[0].figures.keys()
    assert epochs[0].figures["before"].keys() == {"paint", "noise", "both"}
    assert [now.phase for now in epochs] == ["warmup", "ramp", "settle"]
    assert epochs[2].figures["test_part_accuracy"].keys() == {"paint", "noise", "both"}


def test_what_is_said_twice_or_half_is_refused(tmp_path: Path) -> None:
    sets, out = {"noise": Noise()}, tmp_path / "out"
    with pytest.raises(ConfigError, match="size is 16, and input has a size too"):
        prunion.prune(Residual(), sets, 0.5, out, size=16, input={"size": 32})
    with pytest.raises(ConfigError, match="limit is missing"):
        prunion.prune(Residual(), sets, {"kind": "macs"}, out, size=16)


def test_what_a_callback_raises_ends_the_run(tmp_path: Path) -> None:
    def stop(now: Progress) -> None:
        raise KeyError("enough")

    sets = {"a": Noise(), "b": Noise()}
    with pytest.raises(KeyError, match="enough"):
        prunion.prune(Residual(), sets, BUDGET, tmp_path / "r", size=16, train=SHORT, on_epoch=stop)
    with pytest.raises(ConfigError, match="on_step is 5: give a function of one argument"):
        again = {"size": 16, "train": SHORT, "force": True}
        prunion.prune(Residual(), sets, BUDGET, tmp_path / "r", on_step=5, **again)
    # The state was saved before, and the run goes on from there.
    go_on = {"size": 16, "train": SHORT, "resume": True}
    other = Residual()
    other.head = nn.Linear(5, 7)
    with pytest.raises(CheckpointError, match=r"run of another network .*, which has head"):
        prunion.prune(other, sets, BUDGET, tmp_path / "r", **go_on)
    result = prunion.prune(Residual(), sets, BUDGET, tmp_path / "r", **go_on)
    assert result.accuracy.keys() == {*"ab"}


def test_a_baseline_is_trained_from_the_network_and_the_data_sets_in_hand(tmp_path: Path) -> None:
    epochs: list[int] = []
    result = prunion.prune(
        Residual(),
        {"a": Noise(), "b": Noise(form="picture")},
        BUDGET,
        tmp_path / "r",
        size=16,
        train=SHORT,
        baseline=True,
        on_epoch=lambda now: epochs.append(now.epoch),
    )
    assert result.baseline.keys() == {*"ab"}
    assert epochs == [1, 2, 3]  # of the pruned run
    record = json.loads((tmp_path / "r" / "baseline" / "record.json").read_text("utf-8"))
    assert record["result"]["accuracy"] == result.baseline
    assert record["result"]["budget"]["value"] == 1.0
    with pytest.raises(ConfigError, match=r"prunes nothing: .*leave it out \(baseline = False\)"):
        prunion.prune(Residual(), {"a": Noise()}, 1.0, tmp_path / "s", size=16, baseline=True)
    assert not (tmp_path / "s").exists()


def test_results_plot(pruned: Any) -> None:
    pytest.importorskip("matplotlib").use("Agg")
    result = pruned[0]
    frontier, sharing = result.frontier(), result.sharing()
    assert frontier.points[0].params == 1.0
    assert frontier.points[1].params == result.params[1] / result.params[0] <= 0.7
    assert frontier.points[1].accuracy == result.accuracy
    assert sharing.domains == ("paint", "noise", "both")
    assert sharing.everyone == result.to_json()["sharing"]
    assert [row[i] for i, row in enumerate(sharing.matrix)] == [1.0, 1.0, 1.0]
    with pytest.raises(InputError, match="cost is 'watts': use params or macs"):
        frontier.plot(cost="watts")
    assert frontier.plot(cost="macs").get_xlabel().startswith("macs")
    assert sharing.plot().get_images()
    json.dumps(result.to_json())


def test_what_a_network_says_of_itself_is_what_it_sees() -> None:
    import timm

    seen = sees(timm.create_model("test_resnet"))
    assert (seen["size"], seen["mean"]) == ((160, 160), (0.5, 0.5, 0.5))
    assert sees(Residual()) == {"size": 224}


def test_a_domain_may_be_given_in_many_ways(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    one = ({"train": str(tmp_path), "holdout": 0.1}, None)
    assert domain_table("d", tmp_path) == domain_table("d", str(tmp_path)) == one
    write_domain(tmp_path, ["red", "blue"], 2, 0)
    (tmp_path / "test").rename(tmp_path / "val")
    val = {"train": str(tmp_path / "train"), "test": str(tmp_path / "val")}
    assert domain_table("d", tmp_path) == (val, None)  # not two classes, train and val
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "test").mkdir()
    two = {"train": str(tmp_path / "train"), "test": str(tmp_path / "test")}
    assert domain_table("d", tmp_path) == (two, None)
    assert domain_table("d", (tmp_path / "train", tmp_path / "test")) == (two, None)
    shards = [tmp_path / f"b-{number}.tar" for number in range(3)]
    for shard in shards:
        shard.touch()
    with pytest.raises(ConfigError, match=r"a list of 3 files, parts or one set: give a tuple"):
        domain_table("d", shards)
    assert domain_table("d", tuple(shards[:2]))[0]["test"] == str(shards[1])
    assert domain_table("d", {"train": "x.parquet", "mirror": True})[0]["holdout"] == 0.1
    named = {"source": "torchvision", "name": "MNIST"}
    assert domain_table("d", named) == (named, None)
    noise = Noise()
    assert domain_table("d", {"train": noise, "mirror": True}) == (
        {"source": "python", "mirror": True, "holdout": 0.1},
        (noise, None),
    )


def test_validation_images_are_in_hand_too() -> None:
    from prunion.trainer.config import DomainConfig
    from prunion.trainer.data import open_domain

    sets = {"train": Noise(), "test": Noise(8, "array"), "validation": Noise(6)}
    table, handed = domain_table("d", sets)
    assert (table, handed) == ({"source": "python"}, tuple(sets.values()))
    assert domain_table("d", tuple(sets.values())) == (table, handed)
    domain = open_domain(DomainConfig("d", **table), 0, handed=handed)
    assert domain.found["images"] == {"train": 12, "validation": 6, "test": 8}


def test_a_frontier_has_the_baseline_where_there_is_one(pruned: Any) -> None:
    whole = dict.fromkeys(pruned[0].accuracy, 0.75)
    point = replace(pruned[0], baseline=whole).frontier().points[0]
    assert (point.name, point.params, point.mean) == ("every channel", 1.0, 0.75)


@pytest.mark.parametrize("form", ["picture", "array", "bytes", "tensor"])
def test_a_data_sets_images_are_the_same_in_every_form(form: str) -> None:
    from prunion.trainer.config import DomainConfig
    from prunion.trainer.data import open_domain

    config = DomainConfig("d", "python")
    domain = open_domain(config, 0, handed=(Noise(form=form), Noise(form=form)))
    assert domain.classes == ("dark", "bright")
    assert np.array(domain.train.image(1)).tolist() == [[[181] * 3] * 16] * 16


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({"a": Noise(form="normalised")}, r"train image 0 is a float32 Tensor of shape"),
        ({"a": 3}, r"\[domains.a\] train is a int: give a torch.utils.data.Dataset"),
        ({}, "domains is {}: give images by name"),
        ({"a": {"source": "python", "holdout": 0.5}}, "a program must hand its images over"),
    ],
)
def test_images_that_are_none_are_named(
    tmp_path: Path, domains: dict[str, Any], message: str
) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        prunion.prune(Residual(), domains, BUDGET, tmp_path / "run", size=16, train=SHORT)


def test_a_model_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"model is a type: give a torch\.nn\.Module"):
        prunion.prune(nn.Linear, {"a": Noise()})  # type: ignore[arg-type]
