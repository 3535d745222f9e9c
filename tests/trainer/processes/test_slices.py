"""Processes with a slice of every batch learn what one process learns, to the last digits."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import load_config
from prunion.trainer.data import JointBatches, open_domains
from prunion.trainer.processes import ALONE, Processes
from tests.trainer.tiny_run import tiny_run

ONE = Path(__file__).with_name("one_process.py")


def learned(count: int, run_file: Path, out: Path, double: bool = True) -> list[Any]:
    """Every process's lines and network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place["PYTHONPATH"] = os.pathsep.join(sys.path)
    processes = [
        subprocess.Popen(
            [sys.executable, ONE, run_file, out, *(["double"] * double)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    assert [p.wait(timeout=300) for p in processes] == [0] * count
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(count)]


def apart(one: list[dict[str, float]], other: list[dict[str, float]], key: str) -> float:
    """The largest difference of a figure, relative to its own size."""
    return max(abs(a[key] - b[key]) / abs(a[key]) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("order", ["joint", pytest.param("batch", marks=pytest.mark.slow)])
def test_losses_and_switches_are_those_of_one_process(
    count: int, order: str, tmp_path: Path
) -> None:
    run_file = tiny_run(
        tmp_path, switch_every=1, warmup=4, ramp=9, settle=4, order=f'"{order}"', average=1
    )
    ((alone, whole),) = learned(1, run_file, tmp_path / "one")
    each = learned(count, run_file, tmp_path / "more")
    shared, state = each[0]
    assert len(alone) == len(shared) >= 51
    for domain in ("warm", "cold"):
        seen = [x for x in range(len(alone)) if f"loss/{domain}" in alone[x]]
        for key in (f"loss/{domain}", f"train_accuracy/{domain}"):
            for i in seen:
                assert shared[i][key] == pytest.approx(alone[i][key], rel=1e-5, abs=1e-9), (i, key)
    assert torch.equal(state["switches"], whole["switches"])
    assert bool((state["switches"] == 0).any())
    for name, value in whole.items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-7, msg=name)
    for _, other in each[1:]:  # and every process has the very same network
        assert all(torch.equal(other[name], value) for name, value in state.items())


def test_float32_ends_at_the_same_switches_and_accuracies(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, switch_every=1)
    ((alone, whole),) = learned(1, run_file, tmp_path / "one", double=False)
    shared, state = learned(2, run_file, tmp_path / "two", double=False)[0]
    assert apart(alone[:4], shared[:4], "loss/warm") < 1e-5
    assert torch.equal(state["switches"], whole["switches"])


def test_parts_of_a_step_add_up_to_it(tmp_path: Path) -> None:
    """BatchNorm's batches would be the parts', so here it stands still."""
    runs = {}
    for parts in (1, 3):
        folder = tmp_path / str(parts)
        settings = {"method": '"feature"', "batch_size": 14, "accumulate": parts}
        runs[parts] = tiny_run(folder, **settings)
    ((whole, end),) = learned(1, runs[1], tmp_path / "whole")
    for count in (1, 2):
        lines, state = learned(count, runs[3], tmp_path / f"parts{count}")[0]
        for key in ("loss/warm", "loss/cold", "train_accuracy/cold"):
            assert [x[key] for x in lines] == pytest.approx([x[key] for x in whole], rel=1e-6)
        for name, value in end.items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_a_part_needs_enough_images(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path, accumulate=3))
    with pytest.raises(ConfigError, match=r"accumulate is 3, .* give at most 1"):
        JointBatches(open_domains(config.domains, config.seed), config)


def test_mixed_precision_is_shared_too(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, precision='"bf16"', ramp=1, settle=0)
    ((alone, _),) = learned(1, run_file, tmp_path / "one", double=False)
    shared, _ = learned(2, run_file, tmp_path / "two", double=False)[0]
    assert apart(alone[:2], shared[:2], "loss/cold") < 0.05  # bfloat16 has three digits


def test_statistics_of_its_own_slice_are_another_choice(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, sync_norms="false", ramp=1, settle=0, batch_size=16)
    each = learned(2, run_file, tmp_path / "two", double=False)
    assert len(each[0][0]) > 2
    assert all(torch.equal(each[1][1][name], value) for name, value in each[0][1].items())


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_slices_hold_every_image_once_and_are_even(count: int) -> None:
    each = [Processes(index, count, "images") for index in range(count)]
    held = [0] * count
    before = 0
    for size in (7, 4, 11, 4):
        places = [list(range(size))[p.slice_of(before, size)] for p in each]
        assert sorted(chain.from_iterable(places)) == list(range(size))
        held = [h + len(own) for h, own in zip(held, places, strict=True)]
        before += size
    assert max(held) - min(held) <= 1


def test_slices_are_parts_of_the_batches_of_one_process(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path))
    domains = open_domains(config.domains, config.seed)
    whole = list(JointBatches(domains, config).epoch(0))
    parts = [
        list(JointBatches(domains, config, processes=Processes(i, 3, "images")).epoch(0))
        for i in range(3)
    ]
    for step, batches in enumerate(whole):
        for domain, batch in enumerate(batches):
            own = [part[step][domain] for part in parts]
            assert sum(b.share for b in own) == pytest.approx(1)
            labels = sorted(chain.from_iterable(b.labels.tolist() for b in own))
            assert labels == sorted(batch.labels.tolist())
            assert sum(float(b.images.double().sum()) for b in own) == pytest.approx(
                float(batch.images.double().sum())
            )


def test_alone_holds_everything() -> None:
    assert not ALONE.slices and ALONE.slice_of(3, 5) == slice(0, 5)
    assert not Processes(0, 1, "images").slices
    assert Processes(1, 2).reads(1) and not Processes(1, 2).reads(0)
    assert Processes(1, 2, "images").reads(0)
