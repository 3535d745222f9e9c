"""Augmentation: torchvision's operations, by the run's own random numbers; mixed batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from prunion.runtime.base import sha256_file
from prunion.runtime.errors import CheckpointError, ConfigError
from prunion.runtime.images import ImageSet
from prunion.trainer.config import (
    AugmentConfig,
    DomainConfig,
    InputConfig,
    RunConfig,
    TrainConfig,
    load_config,
)
from prunion.trainer.data import Batch, Domain, JointBatches
from prunion.trainer.data.augment import CHANGES, augmented, draw_mix, rescaled
from prunion.trainer.data.transforms import train_transform
from prunion.trainer.learning import Training
from prunion.trainer.learning.step.joint import forward_backward
from prunion.trainer.processes import Processes
from prunion.trainer.run import train_run
from tests.support.images import picture
from tests.support.networks.small import Plain, domain_net
from tests.support.tiny_run import tiny_run

MEAN = (0.5, 0.4, 0.3)
EVERYTHING = AugmentConfig(randaugment=9, colour=0.4, erasing=0.5, mixup=0.4, cutmix=1.0)
THEIRS = {
    "identity": "Identity", "shear x": "ShearX", "shear y": "ShearY", "translate x": "TranslateX",
    "translate y": "TranslateY", "rotate": "Rotate", "brightness": "Brightness",
    "saturation": "Color", "contrast": "Contrast", "sharpness": "Sharpness",
    "posterize": "Posterize", "solarize": "Solarize", "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}  # fmt: skip


def noise(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.asarray(picture(seed, width, height))


@pytest.mark.parametrize("magnitude", [3, 9, 30])
@pytest.mark.parametrize("name", CHANGES)
def test_each_change_is_torchvisions(name: str, magnitude: int) -> None:
    image, fill = torch.from_numpy(noise(1).copy()).permute(2, 0, 1), [128.0, 102.0, 77.0]
    theirs = v2.RandAugment(2, magnitude)
    values, signed = theirs._AUGMENTATION_SPACE[THEIRS[name]]
    strengths = values(31, *image.shape[-2:])
    for sign in (1, -1) if signed else (1,):
        strength = 0.0 if strengths is None else sign * float(strengths[magnitude])
        expected = theirs._apply_image_or_video_transform(
            image, THEIRS[name], strength, InterpolationMode.NEAREST, {torch.Tensor: fill}
        )
        got = CHANGES[name](image, sign * magnitude / 30, fill)
        assert (got.int() - expected.int()).abs().max() <= 1  # their strength is a float32
        assert (got == expected).float().mean() > 0.99
    assert set(THEIRS.values()) == set(theirs._AUGMENTATION_SPACE)


def test_an_image_is_changed_by_its_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, again, other = (
        augmented(noise(2), EVERYTHING, MEAN, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert one.shape == (20, 24, 3) and one.dtype == np.uint8
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    untouched = augmented(noise(2), AugmentConfig(mixup=1), MEAN, np.random.default_rng(1))
    assert np.array_equal(untouched, noise(2))


def test_a_rectangle_of_the_mean_colour_is_erased() -> None:
    shares = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        got = augmented(noise(3), AugmentConfig(erasing=0.7), MEAN, rng)
        changed = (got != noise(3)).any(2)
        if changed.any():
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            inside = got[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert (inside == [128, 102, 76]).all()
            shares.append(inside.size / got.size)
    assert 110 < len(shares) < 170
    assert 0.01 < min(shares) < 0.06 and 0.28 < max(shares) < 0.36


def test_a_rescaled_crop_is_any_part_of_the_image() -> None:
    """Of an image whose red and green are its row and column, the corners tell which part it is."""
    rows, columns = np.mgrid[0:100, 0:120]
    pixels = np.stack([2 * rows, 2 * columns, 0 * rows], 2).astype(np.uint8)
    areas, ratios, places = [], [], []
    for seed in range(200):
        part = rescaled(pixels, (32, 32), 0.08, np.random.default_rng(seed)).astype(float)
        assert part.shape == (32, 32, 3)
        height, width = (np.ptp(part[..., axis]) / 2 * 32 / 31 for axis in (0, 1))
        areas.append(height * width / pixels[..., 0].size)
        ratios.append(width / height)
        places.append(part[..., 0].mean())
    assert 0.06 < min(areas) < 0.15 and 0.85 < max(areas) < 1.05
    assert 0.7 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.42
    assert np.std(places) > 10
    # Of a strip no such part is found: the middle, in the input's shape.
    strip = np.zeros((10, 900, 3), np.uint8)
    strip[:, 445:455] = 255
    assert rescaled(strip, (8, 8), 1.0, np.random.default_rng(0)).min() == 255


def test_only_domains_that_are_cropped_are_rescaled() -> None:
    image, shape = picture(3), InputConfig((12, 12), 16)
    asked = AugmentConfig(rescale=0.2)
    seen = {
        (crop, train_transform(shape, False, crop, asked).pixels(
            image, np.random.default_rng(seed)
        ).tobytes())
        for crop in (True, False)
        for seed in range(4)
    }  # fmt: skip
    assert len(seen) == 4 + 1


def test_colours_move_by_no_more_than_asked() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    got = [
        augmented(grey, AugmentConfig(colour=0.2), MEAN, np.random.default_rng(seed)).mean()
        for seed in range(100)
    ]
    assert 79 <= min(got) < 85 and 115 < max(got) <= 121


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_what_stays_of_an_image_is_what_stays_of_its_label(kind: str) -> None:
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 3, 16, 20)
    seen = set()
    for seed in range(50):
        rng = np.random.default_rng(seed)
        mix = draw_mix(AugmentConfig(**{kind: 1.0}), 6, (16, 20), rng)
        assert mix is not None and 0.5 <= mix.kept <= 1
        assert sorted(mix.partners) == list(range(6))
        mixed = mix(images, images[mix.partners])
        expected = mix.kept * np.arange(6) + (1 - mix.kept) * mix.partners
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), expected, rtol=1e-5)
        assert (mix.box is not None) == (kind == "cutmix")
        seen.add(round(mix.kept, 2))
    assert len(seen) > 15
    both = [draw_mix(EVERYTHING, 6, (16, 20), np.random.default_rng(s)) for s in range(40)]
    assert 8 < sum(mix is not None and mix.box is None for mix in both) < 32
    assert draw_mix(AugmentConfig(randaugment=9), 6, (16, 20), np.random.default_rng(0)) is None


def test_the_loss_is_that_of_both_labels() -> None:
    net = domain_net(Plain())
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    others, kept = labels[torch.randperm(6)], 0.7
    batch = Batch(0, images, labels, others=others, kept=kept)
    got = forward_backward(net, [batch], None, smoothing=0.1).loss[0]
    soft = kept * F.one_hot(labels, 3) + (1 - kept) * F.one_hot(others, 3)
    with torch.no_grad():
        logits = net.logits(images, torch.zeros(6, dtype=torch.int64))[:, :3]
    assert got == pytest.approx(float(F.cross_entropy(logits, soft, label_smoothing=0.1)), rel=1e-5)
    split = replace(batch, parts=(2, 0, 1, 3)).split()
    parts = [forward_backward(net, [x], None, smoothing=0.1).loss[0] for x in split if x.share]
    assert sum(parts) == pytest.approx(got, rel=1e-5)


def joint(workers: int = 0, processes: Processes | None = None) -> JointBatches:
    """Two domains, the second of which is left as it is."""
    sets = [ImageSet(np.arange(n) % 3, lambda index: picture(index)) for n in (30, 17)]
    domains = [
        Domain(n, ("a", "b", "c"), s, s, True, True) for n, s in zip("xy", sets, strict=True)
    ]
    value = {
        "backbone": {"name": "resnet18"},
        "budget": {"limit": 0.5},
        "input": {"size": 16},
        "train": {"batch_size": 8, "workers": workers, "augment": vars(EVERYTHING)},
        "domains": {
            "x": {"train": "a", "test": "b"},
            "y": {"train": "a", "test": "b", "augment": {}},
        },
    }
    more = {} if processes is None else {"processes": processes}
    return JointBatches(domains, RunConfig.from_json(value), **more)


def test_batches_are_the_same_whoever_reads_them_and_wherever_they_begin() -> None:
    def flat(steps: Any) -> list[tuple[Any, ...]]:
        return [
            (b.domain, b.images.numpy().tobytes(), b.labels.tolist(),
             None if b.others is None else b.others.tolist(), b.kept)
            for step in steps for b in step
        ]  # fmt: skip

    alone = flat(joint().epoch(1))
    assert flat(joint(workers=2).epoch(1)) == alone
    assert flat(joint().epoch(1, 2)) == alone[4:]
    assert {row[0] for row in alone if row[3] is not None} == {0}
    assert {row[4] for row in alone if row[0] == 1} == {1.0}
    assert len({row[4] for row in alone if row[0] == 0}) > 1


def test_processes_that_share_a_batch_mix_it_as_one_does() -> None:
    processes = [Processes(index, 3, "images") for index in range(3)]
    parts = [list(joint(processes=each).epoch(0)) for each in processes]
    for step, whole in enumerate(joint().epoch(0)):
        before = 0
        for domain, batch in enumerate(whole):
            for each, part in zip(processes, parts, strict=True):
                which, own = each.slice_of(before, len(batch.labels)), part[step][domain]
                torch.testing.assert_close(own.images, batch.images[which], rtol=1e-6, atol=1e-6)
                assert torch.equal(own.labels, batch.labels[which])
                assert own.kept == batch.kept
                assert (own.others is None) == (batch.others is None) == (domain == 1)
                if own.others is not None and batch.others is not None:
                    assert torch.equal(own.others, batch.others[which])
            before += len(batch.labels)


def test_a_run_with_everything_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(tiny_run(tmp_path, ramp=1, augment="{ randaugment = 9, cutmix = 1 }"))
    whole = train_run(config, tmp_path / "whole")
    step = Training._step

    def broken(self: Training, *args: object) -> object:
        if self.step == self.batches.steps_per_epoch + 1:
            raise KeyboardInterrupt
        return step(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", broken)
        with pytest.raises(KeyboardInterrupt):
            train_run(config, tmp_path / "parts")
    plain = replace(config, train=replace(config.train, augment=AugmentConfig()))
    with pytest.raises(
        CheckpointError, match=r"\[train\] augment was \{'randaugment': 9,.* and is None"
    ):
        train_run(plain, tmp_path / "parts", resume=True)
    train_run(config, tmp_path / "parts", resume=True)
    first, second = (
        sha256_file(folder / "checkpoint" / "model.safetensors")
        for folder in (whole.folder, tmp_path / "parts")
    )
    assert first == second


def test_the_keys_are_checked_and_unused_ones_leave_no_trace() -> None:
    for value, said in (
        ("randaugment", r"\[train\] augment is 'randaugment': give a table such as"),
        ({"randaug": 9}, r"\[train.augment\] randaug is not a key.*did you mean 'randaugment'"),
        ({"randaugment": 31}, r"\[train.augment\] randaugment is 31: give a whole number from 0"),
        ({"erasing": 2}, r"\[train.augment\] erasing is 2: give a number from 0 to 1"),
        ({"mixup": -1}, r"\[train.augment\] mixup is -1"),
    ):
        with pytest.raises(ConfigError, match=said):
            TrainConfig(augment=value)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\[domains.d.augment\] colour is 3"):
        DomainConfig("d", train=("a",), test=("b",), augment={"colour": 3})  # type: ignore[arg-type]
    scaled: dict[str, Any] = {"train": "a", "test": "b", "crop": False, "augment": {"rescale": 0.1}}
    with pytest.raises(ConfigError, match=r"\[domains.d.augment\] rescale is 0.1.* crop is false"):
        DomainConfig("d", **scaled)
    config = joint().config
    assert config.augment == EVERYTHING
    value = {
        "backbone": {"name": "resnet18"},
        "budget": {"limit": 0.5},
        "domains": {"x": {"train": "a", "test": "b"}},
    }
    written = RunConfig.from_json(value).to_json()
    assert "augment" not in written["train"] and "augment" not in written["domains"]["x"]
    before = RunConfig.from_checkpoint({**value, "domains": {"d": scaled}})
    assert before.domains[0].augment == AugmentConfig()
    value["domains"]["x"]["augment"] = {"mixup": 0.2}  # type: ignore[index]
    again = RunConfig.from_json(RunConfig.from_json(value).to_json())
    assert again.domains[0].augment == AugmentConfig(mixup=0.2)
