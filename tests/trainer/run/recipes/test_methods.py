"""Each method through a whole run: it trains, exports and answers as its torch network does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunion.exporter.bundle import export_bundle
from prunion.exporter.verify import verify_bundle
from prunion.runtime.errors import ConfigError
from prunion.runtime.model import load
from prunion.trainer.config import (
    METHODS,
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    RunConfig,
    TrainConfig,
    load_config,
)
from prunion.trainer.learning import Training
from prunion.trainer.methods.packnet import OwnedWeights
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import add_domain, closing_table, train_run
from tests.support.tiny_run import tiny_run

SINGLE = ("finetune", "piggyback", "affine")


def run_file(folder: Path, method: str, **train: object) -> Path:
    """A run of two domains, or of one where the method takes one."""
    short = {"warmup": 0, "ramp": 1, "settle": 1}
    path = tiny_run(folder, **{**short, "method": f'"{method}"', **train})
    if method in SINGLE:
        path.write_text(path.read_text("utf-8").partition("[domains.cold]")[0], "utf-8")
    return path


@pytest.mark.parametrize("method", ["ba2", "norms", "feature", *SINGLE])
def test_a_method_trains_exports_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    runs: list[Training] = []
    start, moved = Training.__init__, {}

    def kept(self: Training, *args: object, **options: object) -> None:
        start(self, *args, **options)  # type: ignore[arg-type]
        runs.append(self)
        moved.update({k: v.clone() for k, v in self.net.state_dict().items()})

    monkeypatch.setattr(Training, "__init__", kept)
    config = load_config(run_file(tmp_path, method))
    result = train_run(config, tmp_path / "out")
    net, loaded = runs[0].net.eval(), load_checkpoint(tmp_path / "out").net
    parts = {"heads": 0, "adapter": 0, "trunk.norms": 0, "trunk": 0}
    for key, value in net.state_dict().items():
        part = next((p for p in parts if key.startswith(p)), "")
        if part and not torch.equal(value, moved[key]):
            parts[part] += 1
    assert parts["heads"]
    assert bool(parts["trunk"]) == (method in ("ba2", "finetune"))
    assert bool(parts["trunk.norms"]) == (method not in ("feature", "piggyback"))
    assert bool(parts["adapter"]) == (method in ("piggyback", "affine"))
    images = torch.randn(4, 3, 16, 16)
    rows = torch.arange(4) % len(net.classes)
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(images, rows), net.logits(images, rows))
    assert result.budget["met"] == (method == "ba2" and result.budget["value"] <= 0.5)
    manifest = export_bundle(tmp_path / "out", tmp_path / "bundle")
    assert manifest["paper"]["method"] == method
    paper = manifest["paper"] if method in SINGLE else {"params": None}
    assert (result.stored or {}).get("params") == paper["params"]
    assert manifest["verified"]["max_relative_error"] <= 1e-4
    if method in ("piggyback", "affine"):
        with pytest.raises(ConfigError, match="one domain's own, so none can join it"):
            new = DomainConfig("new", train=("a",), test=("b",))
            add_domain(load_checkpoint(tmp_path / "out"), new, TrainConfig())


TURNS = {"order": '"round-robin"'}
SLICES = {"granularity": '"slice"', "recipe": '"paper"', **TURNS}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "keys"),
    [
        *((method, {}) for method in ("affine", "series", "svd", "packnet", "taps")),
        *((method, TURNS) for method in ("lora", "parallel", "taps")),
        ("bap", SLICES),
        ("ba2", SLICES),
    ],
)
def test_own_weights_resume_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, keys: dict[str, Any]
) -> None:
    config = load_config(run_file(tmp_path, method, head_optimiser='"sgd"', **keys))
    whole = train_run(config, tmp_path / "whole")
    step = Training._step

    def stopping(self: Training, batches: Any) -> Any:
        if self.step == self.batches.steps_per_epoch + 1:
            raise KeyboardInterrupt
        return step(self, batches)

    monkeypatch.setattr(Training, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "again")
    monkeypatch.setattr(Training, "_step", step)
    again = train_run(config, tmp_path / "again", resume=True)
    assert again.accuracy == whole.accuracy
    stored = [tmp_path / f / "checkpoint/model.safetensors" for f in ("whole", "again")]
    assert stored[0].read_bytes() == stored[1].read_bytes()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "granularity"),
    [
        # Of these `test_a_method_trains_exports_and_says_so` has one domain's.
        *(
            pytest.param(m, "channel", marks=[pytest.mark.slow] if m in SINGLE else [])
            for m, traits in METHODS.items()
            if traits.own_weights
        ),
        ("bap", "slice"),
        pytest.param("ba2", "slice", marks=pytest.mark.slow),
    ],
)
def test_several_domains_with_weights_of_their_own_share_a_bundle(
    tmp_path: Path, method: str, granularity: str
) -> None:
    short: dict[str, Any] = {"warmup": 0, "ramp": 1, "settle": 1, "method": f'"{method}"'}
    if granularity == "slice":
        short |= {"granularity": '"slice"', "switch_lr": 0.002}
    if METHODS[method].masks:
        short["switch_lr"] = 0.01  # as few steps turn masks off
    config = load_config(tiny_run(tmp_path, **short))
    trained = train_run(config, tmp_path / "out")
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.net.adapter is not None
    one, other = (loaded.net.own_weights(domain) for domain in (0, 1))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    manifest = export_bundle(tmp_path / "out", tmp_path / "bundle")
    # A graph of all domains with a table of adapters, or one that holds no weights.
    version = 3 if method in ("series", "parallel") or granularity == "slice" else 2
    assert (manifest["format_version"], manifest["paper"]["method"]) == (version, method)
    assert manifest["verified"]["max_relative_error"] <= 1e-4
    if granularity == "slice":  # at most half of the weights are anybody's, or a domain's
        assert manifest["paper"]["params"] < (0.6 if method == "bap" else 1.1)
    else:
        assert manifest["paper"]["params"] > 1
    paper, stored = manifest["paper"], trained.stored or {}
    assert [paper[k] == stored[k] for k in ("params", "flop", "flop_union")] == [True] * 3
    told = f"parameters {paper['params']:.3f} × the backbone's, as the papers count"
    assert told in closing_table(trained)
    report = verify_bundle(tmp_path / "bundle", against=tmp_path / "out")
    assert report.problems == ()
    assert report.compared
    model = load(tmp_path / "bundle", "cpu", threads=1)
    images = sorted((tmp_path / "data" / "cold" / "test").rglob("*.png"))
    answers = [model.predict([image], "cold")[0].class_name for image in images]
    right = sum(a == i.parent.name for a, i in zip(answers, images, strict=True))
    assert right / len(images) == trained.accuracy["cold"]


@pytest.mark.thorough
@pytest.mark.parametrize("order", ["joint", "epoch"])
def test_slices_under_the_papers_own_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """The rates fall at once, those of the switches in time for the cut; the budget is met."""
    rates: list[tuple[str, float, float]] = []
    step = Training._step

    def seen(self: Training, batches: Any) -> Any:
        result = step(self, batches)
        groups = self.optimiser.param_groups
        found = {g["switches"]: g["lr"] / g["peak"] for g in groups}
        rates.append((self.phase, found[True], found[False]))
        return result

    monkeypatch.setattr(Training, "_step", seen)
    keys = {"granularity": '"slice"', "switch_lr": 0.002, "recipe": '"paper"'}
    short = {"warmup": 1, "ramp": 3, "settle": 4, "order": f'"{order}"', **keys}
    result = train_run(load_config(tiny_run(tmp_path, **short)), tmp_path / "out")
    quarter = len(rates) // 8
    assert [phase for phase, _, _ in rates] == ["ramp"] * 4 * quarter + ["settle"] * 4 * quarter
    assert [x for _, x, _ in rates] == [1.0] * 3 * quarter + [0.1] * 5 * quarter
    assert [x for _, _, x in rates] == [1.0] * 6 * quarter + [0.1] * 2 * quarter
    manifest = export_bundle(tmp_path / "out", tmp_path / "bundle")
    assert manifest["paper"]["params"] < 0.6
    assert set(result.accuracy) == {"warm", "cold"}


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"method": "piggybag"}, r"method is .piggybag.: use .bap. or"),
        ({"method": "norms", "recipe": "paper"}, "recipe is .paper., which says how channels"),
        ({"method": "affine", "recipe": "once"}, "recipe is .once."),
        ({"method": "bap", "norms": "frozen"}, "norms is .frozen., and switches act"),
        ({"method": "piggyback", "affine": "simple"}, "affine is .simple., but method is .piggy"),
        ({"method": "affine", "compile": True}, "compile is true"),
        ({"method": "finetune", "trunk": "frozen"}, "trunk is .frozen., but method is .finetune"),
        ({"method": "ba2", "sharing": "jaccard"}, "sharing is .jaccard., but method is .ba2."),
        ({"method": "norms", "switch_lr": 1e-3}, "switch_lr is for"),
        ({"method": "lora", "adapters": "late"}, "adapters is .late., but method is .lora."),
        ({"method": "parallel", "rank": 8}, "rank is 8, but method is .parallel."),
        ({"method": "parallel", "compile": True}, "compile is true, which fixes the weights"),
        ({"method": "bap", "adapter_lr": 0.1}, "adapter_lr is 0.1, but method is .bap."),
        ({"method": "taps", "svd_share": 0.25}, "svd_share is 0.25, but method is .taps."),
        ({"method": "svd", "svd_share": 0}, r"svd_share is 0: give a number above 0"),
        ({"method": "series", "adapter_decay": "much"}, "adapter_decay is 'much': give a number"),
        ({"method": "packnet", "order": "batch"}, "order is .batch., but method is .packnet."),
        ({"method": "packnet", "average": 1.0}, "average is 1, but method is .packnet."),
        (
            {"method": "norms", "granularity": "slice"},
            "granularity is .slice., but method is .norms.",
        ),
        ({"granularity": "slice", "recipe": "once"}, "recipe is .once., which says how channels"),
        ({"method": "piggyback", "recipe": "paper"}, "recipe is .paper., which says how channels"),
        ({"granularity": "slice", "compile": True}, "compile is true, which fixes the weights"),
        ({"method": "norms", "order": "tasks"}, "order is .tasks., but method is .norms."),
        ({"method": "lora", "packnet_order": "reversed"}, "packnet_order is .reversed."),
    ],
)
def test_keys_that_contradict_the_method(train: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(**train)


@pytest.mark.parametrize(
    ("train", "budget", "said"),
    [
        ({"method": "parallel"}, {"own": 0.5}, "own is 0.5, a share of channels, and .train."),
        ({"granularity": "slice"}, {"own": 0.5}, "own is 0.5, a share of channels"),
        ({"granularity": "slice"}, {"kind": "macs"}, 'kind is "macs", and .train. granularity'),
        ({"method": "finetune", "compile": True}, {}, "compile is true, which fixes the weights"),
    ],
)
def test_runs_that_contradict_the_method(
    train: dict[str, Any], budget: dict[str, Any], said: str
) -> None:
    domains = tuple(DomainConfig(name, train=("a",), test=("b",)) for name in "ab")
    with pytest.raises(ConfigError, match=said):
        RunConfig(
            BackboneConfig("resnet18"),
            BudgetConfig(0.5, **budget),
            domains,
            train=TrainConfig(**train),
        )


def test_packnet_says_at_the_start_how_many_domains_it_divides_among() -> None:
    """A byte holds a weight's owner: the run would have ended when the 255th turn began."""
    domains = tuple(DomainConfig(f"d{n}", train=("a",), test=("b",)) for n in range(255))
    backbone, train = BackboneConfig("resnet18"), TrainConfig(method="packnet")
    RunConfig(backbone, BudgetConfig(1.0), domains[:254], train=train)
    with pytest.raises(ConfigError, match=r"there are 255 domains: .* among 254 at most"):
        RunConfig(backbone, BudgetConfig(1.0), domains, train=train)
    weight = {"a.weight": torch.randn(2, 3, 3, 3)}
    adapter = OwnedWeights(train, weight, 254)
    adapter.advance(weight, 253, "ramp")
    assert adapter.weights(weight, 253)["a.weight"].isfinite().all()


def test_what_a_method_decides() -> None:
    ba2 = TrainConfig(method="ba2")
    assert (ba2.sharing, ba2.cut, ba2.trunk) == ("none", "domains", "tuned")
    assert TrainConfig(method="norms").trunk == "frozen"
    assert TrainConfig(method="piggyback").freezes_norms
    assert not TrainConfig(method="piggyback", norms="own").freezes_norms
    assert not TrainConfig(method="affine").freezes_norms
    assert TrainConfig(method="affine", switch_lr=1e-3).switch_lr == 1e-3
    assert TrainConfig(method="packnet").order == "tasks"
    assert TrainConfig(method="packnet").freezes_norms
    assert TrainConfig(method="parallel").own_adapter_lr == 0.1
    assert TrainConfig(method="series").own_adapter_lr == 0.01  # of trunks pretrained without
    assert TrainConfig(method="lora", adapter_lr=0.02).own_adapter_lr == 0.02


@pytest.mark.parametrize("method", ["norms", "bap"])
def test_a_budget_that_no_width_could_meet_is_reported(tmp_path: Path, method: str) -> None:
    """Where no channel is removed; slices are cut to it one by one."""
    keys = {"warmup": 0, "ramp": 1, "settle": 1, "method": f'"{method}"'}
    if method == "bap":
        keys["granularity"] = '"slice"'
    path = tiny_run(tmp_path, **keys)
    text = path.read_text("utf-8").replace("limit = 0.5", "limit = 0.1")
    path.write_text(text.replace("round_to = 8", "round_to = 64"), "utf-8")
    result = train_run(load_config(path), tmp_path / "out")
    assert result.budget["met"] is (method == "bap")
    manifest = export_bundle(tmp_path / "out", tmp_path / "bundle")
    assert manifest["budget"] == result.budget
    params = manifest["paper"]["params"]
    assert 1 < params < 1.01 if method == "norms" else params < 0.2  # all, and its own norms
