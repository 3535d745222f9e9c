"""Processes with a slice of every batch learn what one process learns, to the last digits."""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import load_config
from prunion.trainer.data import JointBatches, open_domains
from prunion.trainer.processes import ALONE, Processes
from tests.support.forked import Forked
from tests.support.tiny_run import tiny_run
from tests.trainer.processes.one_process import learn_all, wrap_again

pytestmark = pytest.mark.thorough

# Runs that two processes share, all of them in the same two: starting one takes seconds.
RUNS: dict[str, dict[str, object]] = {
    "joint": {"switch_every": 1, "warmup": 2, "ramp": 5, "settle": 2, "average": 1},
    "float32": {"switch_every": 1},
    "whole": {"method": '"feature"', "batch_size": 14, "accumulate": 1},
    "parts": {"method": '"feature"', "batch_size": 14, "accumulate": 3},
    "bf16": {"precision": '"bf16"', "ramp": 1, "settle": 0},
    "local": {"sync_norms": "false", "ramp": 1, "settle": 0, "batch_size": 16},
}
FLOAT32 = ("float32", "bf16", "local")
BY_SLICE: dict[str, object] = {"granularity": '"slice"', "switch_lr": 0.002}
# Weights of each domain's own: each in the way that processes can share it.
OWN: dict[str, dict[str, object]] = {
    **{
        method: {"method": f'"{method}"'}
        for method in ("finetune", "piggyback", "affine", "parallel", "taps", "lora")
    },
    "series": {"method": '"series"'},
    "series by domains": {"method": '"series"', "placement": '"domains"'},
    "by turns": {"method": '"packnet"'},
    # Nothing wraps these: what a method charges must not be added up with the gradients.
    "in turn": {"method": '"parallel"', "order": '"batch"', "adapter_decay": 0.5},
    "svd": {"method": '"svd"', "adapter_decay": 0.5},
    "bap by slice": {"method": '"bap"', **BY_SLICE},
    "ba2 by slice": {"method": '"ba2"', **BY_SLICE},
    "slices in turn": {"method": '"bap"', "order": '"batch"', **BY_SLICE},
}
OFTEN = ("lora", "series", "bap by slice")  # without being asked for slow tests
SHORT = {"warmup": 1, "ramp": 1, "settle": 1}
RUNS |= {name: {**SHORT, **OWN[name]} for name in OFTEN}


def learned(count: int, runs: list[list[Any]]) -> list[Any]:
    """Every process's lines and network, run by run."""
    if count == 1:
        learn_all(runs)
        return [torch.load(f"{out}.0", weights_only=True) for _, out, _ in runs]
    in_processes(count, learn_all, runs)
    ranks = range(count)
    return [[torch.load(f"{out}.{x}", weights_only=True) for x in ranks] for _, out, _ in runs]


def in_processes(count: int, run: Callable[..., None], argument: Any) -> None:
    """A function in several processes that `joined_processes` joins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        # Torch's pool of threads does not live through every fork.
        Forked(
            run, argument, env={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}, method="spawn"
        )
        for rank in range(count)
    ]
    ended = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, ended


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, list[Any]]]:
    """Of every run what one process saw, and each of two."""
    folder = tmp_path_factory.mktemp("slices")
    files = {name: tiny_run(folder / name, **settings) for name, settings in RUNS.items()}
    runs = {
        many: [[str(path), str(folder / f"{name}.{many}"), name not in FLOAT32]
               for name, path in files.items()]
        for many in (1, 2)
    }  # fmt: skip
    alone, shared = learned(1, runs[1]), learned(2, runs[2])
    return {name: (alone[i], shared[i]) for i, name in enumerate(files)}


def apart(one: list[dict[str, float]], other: list[dict[str, float]], key: str) -> float:
    """The largest difference of a figure, relative to its own size."""
    return max(abs(a[key] - b[key]) / abs(a[key]) for a, b in zip(one, other, strict=True))


def test_losses_and_switches_are_those_of_one_process(
    both: dict[str, tuple[Any, list[Any]]],
) -> None:
    assert_same_run(*both["joint"], steps=27)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "order"), [(4, "joint"), (2, "batch"), (4, "batch")])
def test_so_they_are_of_more_processes_and_orders(count: int, order: str, tmp_path: Path) -> None:
    longer = {**RUNS["joint"], "warmup": 4, "ramp": 9, "settle": 4}
    run_file = str(tiny_run(tmp_path, **longer, order=f'"{order}"'))
    (alone,) = learned(1, [[run_file, str(tmp_path / "one"), True]])
    (shared,) = learned(count, [[run_file, str(tmp_path / "more"), True]])
    assert_same_run(alone, shared, steps=51)


def assert_same_run(alone: Any, shared: list[Any], *, steps: int) -> None:
    """In float64 every step's figures, the switches, and every weight."""
    assert_same_figures(alone, shared, steps=steps)
    (_, whole), (_, state) = alone, shared[0]
    assert torch.equal(state["switches"], whole["switches"])
    assert bool((state["switches"] == 0).any())


def assert_same_figures(alone: Any, shared: list[Any], *, steps: int) -> None:
    (expected, whole), (lines, state) = alone, shared[0]
    assert len(expected) == len(lines) >= steps
    for i, (a, b) in enumerate(zip(expected, lines, strict=True)):
        for key in a:
            if key.startswith(("loss/", "train_accuracy/")):
                assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-9), (i, key)
    for name, value in whole.items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-7, msg=name)
    for _, other in shared[1:]:  # and every process has the very same network
        assert all(torch.equal(other[name], value) for name, value in state.items())


@pytest.mark.parametrize("name", OFTEN)
def test_own_weights_are_those_of_one_process(both: Any, name: str) -> None:
    assert_same_figures(*both[name], steps=9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OWN if name not in OFTEN])
def test_so_they_are_by_every_method(name: str, tmp_path: Path) -> None:
    run_file = str(tiny_run(tmp_path, **{**SHORT, **OWN[name]}))
    (alone,) = learned(1, [[run_file, str(tmp_path / "one"), True]])
    (shared,) = learned(2, [[run_file, str(tmp_path / "two"), True]])
    assert_same_figures(alone, shared, steps=9)


def test_float32_ends_at_the_same_switches(both: dict[str, tuple[Any, list[Any]]]) -> None:
    (alone, whole), ((shared, state), _) = both["float32"]
    assert apart(alone[:4], shared[:4], "loss/warm") < 1e-5
    assert torch.equal(state["switches"], whole["switches"])


def test_parts_of_a_step_add_up_to_it(both: dict[str, tuple[Any, list[Any]]]) -> None:
    """BatchNorm's batches would be the parts', so here it stands still."""
    (whole, end), _ = both["whole"]
    alone, (shared, _) = both["parts"]
    for lines, state in (alone, shared):
        for key in ("loss/warm", "loss/cold", "train_accuracy/cold"):
            assert [x[key] for x in lines] == pytest.approx([x[key] for x in whole], rel=1e-6)
        for name, value in end.items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-9, msg=name)


def test_a_part_needs_enough_images(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path, accumulate=3))
    with pytest.raises(ConfigError, match=r"accumulate is 3, .* give at most 1"):
        JointBatches(open_domains(config.domains, config.seed), config)


def test_mixed_precision_is_shared_too(both: dict[str, tuple[Any, list[Any]]]) -> None:
    (alone, _), ((shared, _), _) = both["bf16"]
    assert apart(alone[:2], shared[:2], "loss/cold") < 0.05  # bfloat16 has three digits


def test_statistics_of_its_own_slice_are_another_choice(
    both: dict[str, tuple[Any, list[Any]]],
) -> None:
    (_, whole), ((lines, one), (_, other)) = both["local"]
    assert len(lines) > 2
    assert all(torch.equal(other[name], value) for name, value in one.items())
    assert any(not torch.equal(one[name], value) for name, value in whole.items())


def test_statistics_of_its_own_outlive_other_learners(tmp_path: Path) -> None:
    """What wraps the network is made again, and would copy the first process's statistics."""
    in_processes(2, wrap_again, str(tmp_path / "seen"))
    for rank in (0, 1):
        assert torch.load(tmp_path / f"seen.{rank}") == [[1.0 + rank]] * 4


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


@pytest.mark.parametrize("count", [2, 5, 6, 8])
@pytest.mark.parametrize(("size", "parts"), [(12, 3), (16, 4), (32, 8), (14, 3)])
def test_parts_are_those_of_one_process_and_no_domain_lacks_images_of_one(
    tmp_path: Path, count: int, size: int, parts: int
) -> None:
    """Each process split its own slice: the last parts of all of them could be empty at once."""
    keys = {"batch_size": size, "accumulate": parts, "balance": 0.0}
    config = load_config(tiny_run(tmp_path, **keys))
    domains = open_domains(config.domains, config.seed)

    def images(processes: Processes) -> list[list[list[list[float]]]]:
        """Of every step, part and domain: what tells its images apart."""
        batches = JointBatches(domains, config, processes=processes)
        return [
            [[b.images.double().sum((1, 2, 3)).tolist() for b in part] for part in batches.parts(x)]
            for x in batches.epoch(0)
        ]

    whole, each = images(ALONE), [images(Processes(i, count, "images")) for i in range(count)]
    for step, of_parts in enumerate(whole):
        assert len(of_parts) == parts
        for part, of_domains in enumerate(of_parts):
            for domain, own in enumerate(of_domains):
                assert len(own) >= 4
                found = chain.from_iterable(x[step][part][domain] for x in each)
                assert sorted(found) == pytest.approx(sorted(own))


def test_statistics_of_its_own_need_enough_images_in_every_part(tmp_path: Path) -> None:
    keys = {"batch_size": 32, "accumulate": 4, "balance": 0.0, "sync_norms": "false"}
    config = load_config(tiny_run(tmp_path, **keys))
    domains = open_domains(config.domains, config.seed)
    JointBatches(domains, config, processes=Processes(0, 2, "images"))
    with pytest.raises(ConfigError, match="a process would have 2 images of a domain"):
        JointBatches(domains, config, processes=Processes(0, 4, "images"))
