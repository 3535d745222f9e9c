"""A run from its file to its checkpoint: budget, resume, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from prunion.runtime.base import sha256_file
from prunion.runtime.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    PrunionError,
)
from prunion.trainer.config import load_config
from prunion.trainer.learning import Training
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import closing_table, foreign_to_run, train_run, train_with_baseline
from tests.support.tiny_run import tiny_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("run")
    run_file = tiny_run(folder)
    train_run(load_config(run_file), folder / "out", run_file=run_file)
    return run_file, folder / "out"


def test_the_checkpoint_keeps_its_budget_after_rounding(finished: tuple[Path, Path]) -> None:
    loaded = load_checkpoint(finished[1])
    units = loaded.net.units
    alive = (loaded.net.switches > 0).any(0).numpy()
    full = units.table.params(np.ones_like(alive))
    assert 0.3 * full < units.table.params(alive) <= 0.5 * full
    assert loaded.meta["budget"]["met"] is True
    for members in units.table.widths:
        assert alive[members].sum() % 8 == 0


def test_the_log_follows_the_budget_down(finished: tuple[Path, Path]) -> None:
    lines = [json.loads(x) for x in (finished[1] / "metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if "cost" in x]
    assert steps[0]["cost"] == 1.0
    assert steps[-1]["cost"] <= 0.5
    assert {"loss/warm", "loss/cold", "lambda", "returned"} <= steps[0].keys()


def test_a_resumed_run_is_the_uninterrupted_one(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file, folder = finished
    whole = sha256_file(folder / "checkpoint" / "model.safetensors")
    run_epoch, stops = Training.run_epoch, iter([False, True, False, True])

    def dies(self: Training, *args: object) -> None:
        if next(stops, False):
            raise KeyboardInterrupt
        run_epoch(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "run_epoch", dies)
    config = load_config(run_file)
    for attempt in range(3):
        try:
            train_run(config, tmp_path / "out", resume=attempt > 0)
            break
        except KeyboardInterrupt:
            assert not (tmp_path / "out" / "checkpoint").exists()
    assert attempt == 2
    assert sha256_file(tmp_path / "out" / "checkpoint" / "model.safetensors") == whole


def test_a_run_folder_is_not_overwritten(finished: tuple[Path, Path]) -> None:
    run_file, folder = finished
    with pytest.raises(PrunionError, match="--resume to go on with it, --force to start"):
        train_run(load_config(run_file), folder)


def test_another_configuration_does_not_resume(finished: tuple[Path, Path], tmp_path: Path) -> None:
    other = tiny_run(tmp_path, lr=0.5)
    with pytest.raises(CheckpointError, match="another configuration"):
        train_run(load_config(other), finished[1], resume=True, run_file=other)


def test_the_run_file_in_the_folder_is_the_one_it_was_started_with(tmp_path: Path) -> None:
    run_file, folder = tiny_run(tmp_path, ramp=0, settle=0), tmp_path / "out"
    train_run(load_config(run_file), folder, run_file=run_file)
    copy = folder / "run.toml"
    text = copy.read_text("utf-8")
    assert text.endswith(run_file.read_text("utf-8"))
    other = tmp_path / "other.toml"
    other.write_text(text.replace("seed = 3", "seed = 4"), "utf-8")
    with pytest.raises(CheckpointError, match="another configuration"):
        train_run(load_config(other), folder, resume=True, run_file=other)
    assert copy.read_text("utf-8") == text
    train_run(load_config(run_file), folder, force=True, run_file=copy)
    assert copy.read_text("utf-8") == text
    assert (folder / "checkpoint").is_dir()


def test_a_budget_out_of_reach_is_refused_before_training(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path)
    run_file.write_text(run_file.read_text().replace("limit = 0.5", "limit = 0.001"))
    with pytest.raises(BudgetError, match="give at least 0"):
        train_run(load_config(run_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_unreadable_image_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path)
    bad = tmp_path / "data" / "warm" / "train" / "red" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError, match=r"red/3\.png"):
        train_run(load_config(run_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_names_step_and_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = tiny_run(tmp_path)
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda x, *_, **__: x.sum() * float("nan")
    )
    message = "step 0, epoch 0: the loss of domain warm became nan.*no state was saved yet"
    with pytest.raises(PrunionError, match=message):
        train_run(load_config(run_file), tmp_path / "out")


def test_a_network_broken_by_its_last_update_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, step = tmp_path / "out", Training._step

    def broken(self: Training, *args: object) -> object:
        result = step(self, *args)  # type: ignore[arg-type]
        if self.step == 2 * self.batches.steps_per_epoch - 1:
            self.net.heads[1].bias.data[0] = float("inf")  # type: ignore[union-attr]
        return result

    monkeypatch.setattr(Training, "_step", broken)
    message = (
        r"heads\.1\.bias is no longer finite.*the last good state is .*state\.safetensors, after"
    )
    with pytest.raises(PrunionError, match=message):
        train_run(load_config(tiny_run(tmp_path)), folder)
    monkeypatch.setattr(Training, "_step", step)
    train_run(load_config(tmp_path / "run.toml"), folder, resume=True)


def test_references_give_the_papers_scores(tmp_path: Path) -> None:
    """S_O counts a domain's own operations, S_E is relative to the feature extractor."""
    run_file = tiny_run(tmp_path, ramp=1, settle_with='"own"')
    given = 'test"\nreference = 40.0\nfeature = 30.0\n'
    run_file.write_text(run_file.read_text("utf-8").replace('test"\n', given), "utf-8")
    result = train_run(load_config(run_file), tmp_path / "out")
    union, params = (new / old for old, new in (result.macs, result.params))
    net = load_checkpoint(tmp_path / "out").net
    table, rows = net.units.table, (net.switches > 0).numpy()
    own = sum(table.macs(row) for row in rows) / len(rows) / result.macs[0]
    assert own < union

    def s(accuracy: dict[str, float]) -> float:  # eq. 10 with twice an error of 0.6
        return sum(1000 * (max(0, 1.2 - (1 - a)) / 1.2) ** 2 for a in accuracy.values())

    expected = s(result.accuracy)
    assert result.scores["S"] == pytest.approx(expected)
    assert result.scores["S_O"] == pytest.approx(expected / own)
    assert result.scores["S_O_union"] == pytest.approx(expected / union)
    assert result.scores["S_P"] == pytest.approx(expected / params)
    base = s({"warm": 0.3, "cold": 0.3})
    assert result.scores["S_E"] == pytest.approx((expected / base) ** 2 / own / params)
    assert result.scores["S_E_union"] == pytest.approx((expected / base) ** 2 / union / params)
    last = json.loads((tmp_path / "out/metrics.jsonl").read_text("utf-8").splitlines()[-1])
    assert last["score/S_E"] == pytest.approx(result.scores["S_E"])
    assert f"S {expected:,.0f}, S_O" in closing_table(result)


def test_without_the_feature_extractor_there_is_no_s_e(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, ramp=1, settle=0)
    text = run_file.read_text("utf-8").replace('test"\n', 'test"\nreference = 40.0\n')
    run_file.write_text(text, "utf-8")
    result = train_run(load_config(run_file), tmp_path / "out")
    assert list(result.scores) == ["S", "S_O", "S_P", "S_O_union"]
    run_file.write_text(text.replace("40.0\n", "40.0\nfeature = 30\n", 1), "utf-8")
    with pytest.raises(ConfigError, match=r"\[domains.cold\] has no feature"):
        load_config(run_file)


def test_a_reference_is_for_all_domains_or_none(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path)
    text = run_file.read_text("utf-8").replace('test"\n', 'test"\nreference = 40.0\n', 1)
    run_file.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"\[domains.cold\] has no reference"):
        load_config(run_file)


@pytest.mark.parametrize("name", ["model.safetensors", "units.json", "checkpoint.json"])
def test_a_truncated_checkpoint_is_refused(
    name: str, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "checkpoint"
    shutil.copytree(finished[1] / "checkpoint", copy)
    file = copy / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(copy)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_record_says_what_a_report_shows(finished: tuple[Path, Path]) -> None:
    record = json.loads((finished[1] / "record.json").read_text("utf-8"))
    meta = load_checkpoint(finished[1]).meta
    assert record["model_sha256"] == meta["model_sha256"]
    chosen = record["choices"]["domains"]
    assert {d["name"]: d["accuracy"] for d in meta["domains"]} == {
        name: figures["accuracy"] for name, figures in record["domains"].items()
    }
    units = record["choices"]["units"]
    rows = {n: np.unpackbits(np.frombuffer(bytes.fromhex(x), np.uint8)) for n, x in chosen.items()}
    both = np.stack([row[:units] for row in rows.values()])
    shared = (both[0] & both[1]).sum() / both[0].sum()
    names = list(rows)
    assert record["result"]["sharing_matrix"][names[0]][names[1]] == pytest.approx(shared)
    for figures in record["domains"].values():
        wrong = figures["images"] - figures["right"]
        assert len(figures["mistakes"]) == min(8, wrong)
    lines = (finished[1] / "metrics.jsonl").read_text("utf-8").splitlines()
    curve = [row for row in map(json.loads, lines) if "test_part_accuracy/warm" in row]
    assert [row["phase"] for row in curve] == ["warmup", "ramp", "ramp", "settle"]
    # All 16 test images: the last point is the result.
    assert curve[-1]["test_part_accuracy/warm"] == record["domains"]["warm"]["accuracy"]


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({"recipe": '"paper"', "warmup": 1, "settle": 0}, marks=pytest.mark.thorough),
        {"recipe": '"paper"', "granularity": '"slice"', "order": '"epoch"'},
        {"granularity": '"slice"', "trunk": '"frozen"'},
    ],
    ids=["paper", "paper-slices", "slices"],
)
def test_no_switch_of_a_baseline_is_ever_off(tmp_path: Path, keys: dict[str, object]) -> None:
    keys = {"switch_lr": 0.01, "warmup": 0, "ramp": 1, "settle": 1, **keys}
    run, out = load_config(tiny_run(tmp_path, **keys)), tmp_path / "out"
    result = train_with_baseline(run, out)
    pruned, whole = (
        load_checkpoint(out, merge=False),
        load_checkpoint(out / "baseline", merge=False),
    )
    assert bool((whole.net.switches > 0).all())
    assert whole.meta["epoch"] == pruned.meta["epoch"] == 2
    if run.train.granularity == "slice":
        trunk = dict(whole.net.trunk.named_parameters())
        for name, weight in whole.net.own_weights(1).items():
            assert torch.equal(weight, trunk[name])
    assert result.verdict is not None and result.verdict.loss is not None


def test_a_baseline_whose_trunk_would_learn_for_longer_is_refused(tmp_path: Path) -> None:
    keys = {"recipe": '"paper"', "trunk": '"tuned"', "trunk_from": '"settle"', "settle": 1}
    run = load_config(tiny_run(tmp_path, **keys))
    with pytest.raises(ConfigError, match="its trunk would learn for longer"):
        train_with_baseline(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_baseline_is_trained_as_long_and_set_beside_the_result(tmp_path: Path) -> None:
    run, out = load_config(tiny_run(tmp_path)), tmp_path / "out"
    alone = train_run(run, out)
    assert "(after warm-up)" in closing_table(alone)
    assert "every channel, 1 of 4 epochs trained: no rival\n" in closing_table(alone)
    result = train_with_baseline(run, out, resume=True)  # adds one to a finished run
    assert result.accuracy == alone.accuracy
    whole = load_checkpoint(out / "baseline")
    assert result.baseline == {d["name"]: d["accuracy"] for d in whole.meta["domains"]}
    assert whole.meta["epoch"] == load_checkpoint(out).meta["epoch"] == 4
    assert bool((whole.net.switches > 0).all())
    table = closing_table(result)
    assert "every channel" in table.splitlines()[0] and "warm-up" not in table
    assert result.to_json()["baseline"] == result.baseline
    assert alone.verdict is not None and result.verdict is not None
    assert "verdict: what pruning cost is not known: --baseline" in closing_table(alone)
    lost = np.mean([whole - result.accuracy[name] for name, whole in result.baseline.items()])
    assert result.verdict.loss is not None
    assert result.verdict.loss.lost == pytest.approx(lost)
    assert f"verdict: {result.verdict.lines[0]}" in table
    json.dumps(result.to_json())  # all of it plain values
    assert not foreign_to_run(out)
    (out / "baseline" / "mine.txt").write_text("x")
    assert foreign_to_run(out) == "holds mine.txt in baseline"
