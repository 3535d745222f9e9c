"""The same seed gives the same batches, whoever loads them and wherever a run resumes."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from prunion.runtime.errors import ConfigError, DataError
from prunion.trainer.config import (
    BY_PASSES,
    DomainConfig,
    InputConfig,
)
from prunion.trainer.config.checks import StepOrder
from prunion.trainer.data import Domain, ImageSet, JointBatches, eval_batches, eval_transform
from prunion.trainer.data.batches import batch_sizes
from prunion.trainer.data.image_cache import ImageCache
from prunion.trainer.data.stream import MIN_IMAGES
from tests.support.images import picture
from tests.trainer.data.three import flat, image_set, run, three_domains


@pytest.fixture
def domains() -> list[Domain]:
    return three_domains()


@pytest.fixture
def without_fork(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on Windows and macOS, where workers are threads; here they take turns at every chance."""

    def turn(frame: FrameType, event: str, argument: object) -> Callable | None:
        if not frame.f_code.co_filename.endswith(("data/batches.py", "data/image_cache.py")):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            time.sleep(0)
        return turn

    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    threading.settrace(turn)
    yield
    threading.settrace(None)  # type: ignore[arg-type]


def test_a_joint_step_holds_every_domain(domains: list[Domain]) -> None:
    batches = JointBatches(domains, run())
    steps = list(batches.epoch(0))
    assert len(steps) == batches.steps_per_epoch == 3  # 70 images, 24 or 25 a step
    for step in steps:
        assert [batch.domain for batch in step] == [0, 1, 2]
        assert [len(batch.labels) for batch in step] == batches.sizes
        assert all(batch.images.shape[1:] == (3, 16, 16) for batch in step)
        assert all(batch.labels.dtype == torch.int64 for batch in step)


@pytest.mark.parametrize("order", ["batch", "epoch"])
def test_every_order_shows_the_same_batches(domains: list[Domain], order: str) -> None:
    batches = JointBatches(domains, run(order))
    steps = list(batches.epoch(1))
    assert len(steps) == batches.steps_per_epoch
    assert all(len(step) == 1 for step in steps)
    assert Counter(flat(steps)) == Counter(flat(JointBatches(domains, run()).epoch(1)))
    turns = [step[0].domain for step in steps]
    assert turns == ([0, 1, 2] * 3 if order == "batch" else [0] * 3 + [1] * 3 + [2] * 3)


def test_balance_moves_sizes_from_equal_to_proportional() -> None:
    assert batch_sizes([100, 300], 32, 0.0) == [32, 32]
    assert batch_sizes([100, 300], 32, 1.0) == [16, 48]
    assert batch_sizes([10, 100_000], 32, 1.0) == [4, 64]  # never fewer than four


def test_the_seed_decides_everything(domains: list[Domain]) -> None:
    first = flat(JointBatches(domains, run()).epoch(2))
    assert flat(JointBatches(domains, run()).epoch(2)) == first
    assert flat(JointBatches(domains, run(seed=1)).epoch(2)) != first
    assert flat(JointBatches(domains, run()).epoch(3)) != first


def test_the_number_of_workers_decides_nothing(domains: list[Domain]) -> None:
    state = torch.get_rng_state()
    alone = flat(JointBatches(domains, run()).epoch(0))
    assert flat(JointBatches(domains, run(workers=2)).epoch(0)) == alone
    assert torch.equal(torch.get_rng_state(), state)  # training's own numbers are left alone


def test_workers_that_are_threads_decide_nothing_either(without_fork: None) -> None:
    """One domain is so small that a batch goes through it several times."""
    domains = [
        Domain(name, ("a", "b", "c"), image_set(count, 0), image_set(4, 0), True, True)
        for name, count in (("one", 4), ("two", 60))
    ]
    config = replace(run(size=16).train, balance=0.0)
    alone, shared = (
        JointBatches(domains, replace(run(), train=replace(config, workers=n))) for n in (0, 4)
    )
    for epoch in range(4):
        assert flat(shared.epoch(epoch)) == flat(alone.epoch(epoch))


def test_two_threads_that_decode_the_same_image_keep_it_once() -> None:
    together = threading.Barrier(2, timeout=60)

    def read(index: int) -> Image.Image:
        together.wait()
        return picture(index)

    cache = ImageCache(ImageSet(np.zeros(1, np.int64), read), 16, 1 << 20)
    readers = [threading.Thread(target=cache.image, args=(0,)) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    (kept,) = cache._kept.values()
    assert cache._used == 4 * kept.width * kept.height


def test_an_image_is_cropped_and_mirrored_anew_in_every_epoch() -> None:
    images = ImageSet(np.arange(12), picture)  # the label tells which image it is
    for mirror, crop in ((False, True), (True, False)):
        only = Domain("d", tuple("abcdefghijkl"), images, image_set(2, 0), mirror, crop)
        batches, views = JointBatches([only], run(size=4)), [set[bytes]() for _ in range(12)]
        for epoch in range(8):
            for (batch,) in batches.epoch(epoch):
                for pixels, label in zip(batch.images, batch.labels.tolist(), strict=True):
                    views[label].add(pixels.numpy().tobytes())
        assert all(len(seen) > 1 for seen in views)


def test_an_epoch_resumes_in_its_middle(domains: list[Domain]) -> None:
    whole = list(JointBatches(domains, run("batch")).epoch(1))
    rest = JointBatches(domains, run("batch")).epoch(1, start=4)
    assert flat(rest) == flat(whole[4:])


def test_stopping_early_does_no_harm(domains: list[Domain]) -> None:
    batches = JointBatches(domains, run())
    next(iter(batches.epoch(0)))
    assert len(list(batches.epoch(0))) == 3


def test_the_cache_changes_nothing(domains: list[Domain]) -> None:
    cached = JointBatches(domains, run())
    list(cached.epoch(0))  # fills it
    assert flat(cached.epoch(1)) == flat(JointBatches(domains, run(), cache_bytes=0).epoch(1))
    tight = JointBatches(domains, run(), cache_bytes=3 * 10_000)  # room for a few
    list(tight.epoch(0))
    assert flat(tight.epoch(1)) == flat(cached.epoch(1))


def test_a_domain_is_read_alike_whatever_stands_beside_it(domains: list[Domain]) -> None:
    both = JointBatches(domains[:2], run())
    turned = JointBatches(domains[1::-1], run())
    mine = [batch.images for step in both.epoch(0) for batch in step if batch.domain == 0]
    same = [batch.images for step in turned.epoch(0) for batch in step if batch.domain == 1]
    assert all(map(torch.equal, mine, same))


def test_each_pass_shows_every_image_once() -> None:
    seen: list[int] = []

    def read(index: int) -> Image.Image:
        seen.append(index)
        return picture(index)

    only = Domain("d", ("a", "b"), ImageSet(np.arange(12) % 2, read), image_set(2, 0), False, False)
    batches = JointBatches([only], run(size=4), cache_bytes=0)
    list(batches.epoch(0))
    assert sorted(seen) == list(range(12))
    list(batches.epoch(1))
    assert sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_for_a_gpu_lie_in_pinned_memory(domains: list[Domain], workers: int) -> None:
    plain = JointBatches(domains, run(workers=workers)).epoch(0)
    pinned = JointBatches(domains, run(workers=workers), pin=True).epoch(0)
    for a, b in zip(plain, pinned, strict=True):
        assert all(batch.images.is_pinned() and batch.labels.is_pinned() for batch in b)
        assert flat([a]) == flat([b])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_epoch_in_one_line(domains: list[Domain], workers: int) -> None:
    def read(index: int) -> Image.Image:
        raise DataError(f"photo {index} cannot be read: remove it")

    broken = ImageSet(domains[0].train.labels, read)
    bad = Domain("one", ("a", "b", "c"), broken, domains[0].test, False, False)
    with pytest.raises(DataError, match=r"^photo \d+ cannot be read: remove it$"):
        list(JointBatches([bad], run(workers=workers)).epoch(0))


def test_evaluation_reads_every_image_once_in_order(domains: list[Domain]) -> None:
    transform, images = eval_transform(InputConfig(size=(16, 16))), domains[0].train
    found = list(eval_batches(images, transform, 16))
    assert [len(labels) for _, labels in found] == [16, 16, 8]
    assert torch.cat([labels for _, labels in found]).tolist() == images.labels.tolist()
    assert torch.equal(found[2][0][7], transform(images.image(39)))


def test_real_images_load_alike_in_processes_and_threads(tmp_path: Path) -> None:
    from prunion.trainer.data import open_domain
    from tests.support.images import write_parquet

    labels = [index % 2 for index in range(24)]
    path = str(write_parquet(tmp_path / "d.parquet", labels, ["cat", "dog"]))
    domain = open_domain(DomainConfig("d", train=(path,), test=(path,)), 0)
    alone, shared = (JointBatches([domain], run(workers=workers)) for workers in (0, 2))
    assert flat(alone.epoch(0)) == flat(shared.epoch(0))


@pytest.mark.parametrize("order", get_args(StepOrder))
def test_every_part_of_every_step_has_enough_for_batchnorm(order: str) -> None:
    """The last batch of a pass is short: it was cut into single images."""
    packnet = {"method": "packnet"} if order in ("tasks", "task-passes") else {}
    for counts, size in itertools.product([(16, 24), (40, 23, 9)], (8, 12, 20)):
        config = run(size=size)
        train = replace(config.train, order=order, balance=0.0, **packnet)  # type: ignore[arg-type]
        sets = [
            Domain(f"d{i}", ("a",), image_set(n, 0), image_set(4, 0), True, True)
            for i, n in enumerate(counts)
        ]
        domains = tuple(replace(config.domains[0], name=d.name) for d in sets)
        for parts in (2, 3, 4):
            own = replace(config, domains=domains, train=replace(train, accumulate=parts))
            try:
                batches = JointBatches(sets, own)
            except ConfigError as exc:
                assert "images of a domain" in str(exc)
                continue
            largest = 0
            for step in batches.epoch(0):
                for part in batches.parts(step):
                    largest = max(largest, sum(len(x.labels) for x in part))
                    assert all(len(x.labels) >= MIN_IMAGES for x in part)
            # Those of the joint steps that rank the units are no larger.
            if order not in BY_PASSES:
                for step in batches.epoch(0, joint=True):
                    for part in batches.parts(step):
                        assert sum(len(x.labels) for x in part) <= largest


def test_without_batchnorm_one_image_in_each_part_is_enough(domains: list[Domain]) -> None:
    """Four were asked for, for statistics that such a network does not have."""
    most = min(JointBatches(domains, run()).sizes)
    for parts, norms, said in (
        (most, True, f"BatchNorm needs 4 in each part: give at most {most // 4},"),
        (most, False, ""),
        (most + 1, False, f"each part needs one: give at most {most},"),
    ):
        config = replace(run(), train=replace(run().train, accumulate=parts))
        if said:
            with pytest.raises(ConfigError, match=said):
                JointBatches(domains, config, norms=norms)
        else:
            batches = JointBatches(domains, config, norms=norms)
            (step, *_) = batches.epoch(0)
            assert all(len(x.labels) for part in batches.parts(step) for x in part)
