"""The GPU benchmark's parts on a CPU; on a GPU the real thing."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from prunion.benchmarks import random_bundle
from prunion.benchmarks.cost import STEPS, random_batches, random_training
from prunion.benchmarks.cost.train_step import STEP_NETWORKS
from prunion.benchmarks.gpu.__main__ import _asked, _measure, main
from prunion.benchmarks.gpu.inference import inference_row, make_networks
from prunion.benchmarks.gpu.roofline import Device, least_seconds, measure_device
from prunion.benchmarks.gpu.runtime import runtime_rows
from prunion.benchmarks.gpu.training import TrainingCase, training_row

pytestmark = pytest.mark.thorough

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def test_the_roofline_counts_arithmetic_where_traffic_is_free() -> None:
    """With endless bandwidth only the convolutions' operations are left, and they scale."""
    net = random_training(STEP_NETWORKS["resnet18"], 64, 2, 4, "cpu", 0.5).net
    flops = 2 * sum(
        torch.tensor(layer.shape).prod().item() * layer.positions
        for layer in net.units.table.layers
    )
    endless = Device(flops=1e12, bytes=float("inf"))
    assert least_seconds(net, 8, endless, tuned=False, width=4) == pytest.approx(
        2 * 8 * flops / 1e12
    )
    assert least_seconds(net, 8, endless, tuned=True, width=4) == pytest.approx(
        3 * 8 * flops / 1e12
    )
    slow = Device(flops=float("inf"), bytes=1e9)
    bf16 = least_seconds(net, 8, slow, tuned=False, width=2)
    assert least_seconds(net, 8, slow, tuned=False, width=4) == pytest.approx(2 * bf16)


def test_a_training_row_on_a_cpu() -> None:
    torch.set_num_threads(1)
    rates = measure_device("cpu", torch.float32, side=256, mib=16)
    told: list[str] = []
    row = training_row(
        TrainingCase("resnet18", 32, 4),
        rates,
        device="cpu",
        domains=2,
        precision="fp32",
        compiled=False,
        seconds=0.1,
        tell=told.append,
    )
    assert row["images"] == 8
    assert "  switches: network …" in told and "  steps for 0.1 s each …" in told
    assert 0 < row["roofline"] < 1.5
    assert 0.3 < row["of_plain"] < 1.5


def test_images_are_made_once_for_all_steps() -> None:
    made = random_batches(16, 2, 3, "cpu")
    assert made.steps_per_epoch == STEPS
    assert len({batch.images.data_ptr() for step in made.steps for batch in step}) == 2
    labels = {tuple(step[0].labels.tolist()) for step in made.steps}
    assert len(labels) > 1


def rows_of(path: Path) -> dict[str, dict[str, object]]:
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len({line["key"] for line in lines}) == len(lines)
    return {line["key"]: line for line in lines}


def test_a_row_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    output, measured = tmp_path / "x" / "rows.jsonl", []
    broken: dict[str, BaseException] = {
        "b": ValueError("two\nlines"),
        "c": torch.cuda.OutOfMemoryError("none is left"),
    }

    def row(key: str) -> dict[str, object]:
        measured.append(key)
        if key in broken:
            raise broken[key]
        return {"value": len(measured)}

    def measure() -> None:
        _measure(output, lambda: [(key, partial(row, key)) for key in "abcde"], fact=1)

    with pytest.raises(click.ClickException, match=r"2 rows failed .* next time: b, c"):
        measure()
    assert measured == list("abcde")
    found = rows_of(output)
    assert found["b"]["failed"] == "ValueError: two" and "OutOfMemory" in str(found["c"]["failed"])
    assert {key: line.get("value") for key, line in found.items() if key not in broken} == {
        "a": 1, "d": 4, "e": 5,
    }  # fmt: skip
    del broken["b"], measured[:]
    with pytest.raises(click.ClickException, match="next time: c"):
        measure()
    assert measured == ["b", "c"]
    assert rows_of(output)["b"] == {**found["a"], "key": "b", "value": 1}


def test_a_row_of_another_device_or_of_more_domains_is_another_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "rows.jsonl"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    for device in ("one", "other", "one"):
        monkeypatch.setattr(torch.cuda, "get_device_name", partial(str, device))
        _measure(output, lambda: [("a", dict)])
    found = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [line["device"] for line in found] == ["one", "other"]
    told = [_asked(*x) for x in ((6, 6, "cuda"), (2, 6, "cuda"), (6, 6, "cpu"), (2, 6, "cpu"))]
    assert told == ["", " 2 domains", " on cpu", " 2 domains on cpu"]


def test_a_row_that_is_killed_does_not_take_the_others_with_it_again(tmp_path: Path) -> None:
    output, measured = tmp_path / "rows.jsonl", []

    def row(key: str, killed: str) -> dict[str, object]:
        measured.append(key)
        if key == killed:
            raise KeyboardInterrupt
        return {}

    for killed in ("a", "a", ""):
        with contextlib.suppress(KeyboardInterrupt):
            _measure(output, lambda: [(x, partial(row, x, killed)) for x in "abc"])  # noqa: B023
    assert measured == ["a", "b", "c", "a", "a"]
    assert not any("failed" in line for line in rows_of(output).values())


def test_selectable_folded_and_separate_answer_alike() -> None:
    networks = make_networks("squeezenet1_1", "torchvision", 64, 2)
    row = inference_row(networks, 2, "cpu", torch.float32, 0.05, "eager")
    assert set(row["ms"]) == {"selectable", "folded", "separate"}
    weights = row["weights_mib"]
    assert weights["folded"] < weights["selectable"] < weights["separate"]
    image = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        chosen = networks.selectable.logits(image, torch.zeros(3, dtype=torch.int64))
        assert torch.allclose(chosen, networks.folded(image), atol=1e-4)


def test_a_runtime_row_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the beginning of a network: what is exported twice takes the time."""
    monkeypatch.setattr(
        random_bundle, "random_checkpoint", partial(random_bundle.random_checkpoint, cut="layer1")
    )
    for key, measure in runtime_rows("cpu", 0.01, [("resnet18", 32)]):
        assert key == "runtime resnet18 32 px cpu fp32"
        row = measure()
        assert row["provider"] == "CPUExecutionProvider"
        assert len(row["ms"]) == 9 and min(row["ms"].values()) > 0
        assert "separate, batch 8" in row["ms"]


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    result = CliRunner().invoke(main, ["training", "-o", str(tmp_path / "x.jsonl")])
    assert result.exit_code == 1
    assert "no CUDA GPU" in result.output


@pytest.mark.gpu
@needs_gpu
def test_a_step_with_switches_keeps_up_on_a_gpu(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    arguments = ["training", "-o", str(output), "--network", "wrn28_4", "--seconds", "5"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    (row,) = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert row["of_plain"] > 0.8
