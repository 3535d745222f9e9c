"""Evaluation repeats in Pillow; training varies with its generator and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import InputConfig, RunConfig
from prunion.trainer.data import Domain, ImageSet, JointBatches, eval_transform
from prunion.trainer.data.transforms import normalised, train_transform
from prunion.trainer.network.evaluation import mean_of_views
from tests.support.images import picture


def by_pillow(image: Image.Image, config: InputConfig) -> np.ndarray:
    """What a runtime without torch does."""
    side, (width, height) = config.shorter_side, image.size
    longer = int(side * max(width, height) / min(width, height))
    image = image.resize((side, longer) if width <= height else (longer, side), 2)
    left = round((image.width - config.width) / 2)
    top = round((image.height - config.height) / 2)
    image = image.crop((left, top, left + config.width, top + config.height))
    pixels = np.asarray(image, np.float32) / 255
    mean, std = (np.asarray(v, np.float32) for v in (config.mean, config.std))
    return ((pixels - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("shape", [(20, 16), (37, 91), (64, 64), (301, 200)])
@pytest.mark.parametrize(
    "config", [InputConfig(), InputConfig(size=(24, 33), resize=40)], ids=["64", "24x33"]
)
def test_evaluation_is_what_pillow_alone_gives(shape: tuple[int, int], config: InputConfig) -> None:
    image = picture(1, *shape)
    ours = eval_transform(config)(image)
    assert ours.shape == (3, config.height, config.width)
    assert ours.dtype == torch.float32
    np.testing.assert_array_equal(ours.numpy(), by_pillow(image, config))


def test_without_crop_and_mirror_training_sees_what_evaluation_sees() -> None:
    config, image = InputConfig(), picture(2, 90, 70)
    trained = train_transform(config, mirror=False, crop=False)(image, np.random.default_rng(0))
    assert torch.equal(trained, eval_transform(config)(image))


def test_the_crop_and_the_mirror_come_from_the_generator() -> None:
    transform, image = train_transform(InputConfig(), mirror=True, crop=True), picture(3, 90, 70)
    assert transform.shorter_side == 72
    draws = [transform(image, np.random.default_rng(seed)) for seed in (1, 1, 2, 3)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    transform(image, np.random.default_rng(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_mirroring_turns_about_half_of_the_images() -> None:
    config, image = InputConfig(), picture(4, 64, 64)
    transform = train_transform(config, mirror=True, crop=False)
    plain = eval_transform(config)(image)
    seen = [transform(image, np.random.default_rng(seed)) for seed in range(40)]
    turned = sum(torch.equal(view, plain.flip(2)) for view in seen)
    assert turned + sum(torch.equal(view, plain) for view in seen) == 40
    assert 10 < turned < 30


def test_a_larger_resize_leaves_more_room_for_the_crop() -> None:
    assert train_transform(InputConfig(resize=96), False, True).shorter_side == 96


def test_a_batch_is_normalised_as_its_images_are() -> None:
    transform = train_transform(InputConfig(), mirror=True, crop=True)
    images = [picture(n, 90, 70) for n in range(6)]
    rngs = [np.random.default_rng(n) for n in range(6)]
    pixels = [transform.pixels(i, r) for i, r in zip(images, rngs, strict=True)]
    together = normalised(pixels, transform.input)
    for n, image in enumerate(images):
        assert torch.equal(together[n], transform(image, np.random.default_rng(n)))


def test_five_crops_are_the_centre_and_the_corners_ten_are_mirrored() -> None:
    config, image = InputConfig(size=32, resize=40, test_crops=10), picture(5, 60, 50)
    whole = np.asarray(image.resize((48, 40), 2))
    views = eval_transform(config, 10).pixels(image)
    corners = [(4, 8), (0, 0), (0, 16), (8, 0), (8, 16)]
    for view, (y, x) in zip(views[:5], corners, strict=True):
        np.testing.assert_array_equal(view, whole[y : y + 32, x : x + 32])
    np.testing.assert_array_equal(views[5:], views[:5, :, ::-1])
    np.testing.assert_array_equal(eval_transform(config, 5).pixels(image), views[:5])
    np.testing.assert_array_equal(eval_transform(config).pixels(image), views[:1])
    assert (config.crops(mirror=True), config.crops(mirror=False)) == (10, 5)
    assert InputConfig().crops(mirror=True) == 1


def test_views_of_an_image_are_averaged_as_probabilities() -> None:
    logits = torch.tensor([[0.0, 4.0], [0.0, 4.0], [9.0, 0.0], [1.0, 0.0], [0.0, 9.0], [0.0, 9.0]])
    mean = mean_of_views(logits, 3)
    torch.testing.assert_close(mean[0], logits[:3].softmax(1).mean(0))
    assert mean.argmax(1).tolist() == [1, 1]
    assert mean_of_views(logits, 1) is logits


@pytest.mark.parametrize(("crops", "resize"), [(5, 0), (10, 64), (3, 80), (True, 80)])
def test_crops_need_room_and_a_known_number(crops: int, resize: int) -> None:
    with pytest.raises(ConfigError, match=r"\[input\] test_crops is"):
        InputConfig(resize=resize, test_crops=crops)


def test_what_is_empty_has_the_domain_s_own_mean() -> None:
    pixels = ImageSet(np.zeros(4, np.int64), lambda index: picture(index))
    domains = [Domain(n, ("a",), pixels, pixels, False, True) for n in "xy"]
    own = {"mean": [0.8, 0.6, 0.4], "std": [0.2, 0.2, 0.2]}
    value = {
        "backbone": {"name": "resnet18"},
        "budget": {"limit": 0.5},
        "input": {"size": 16},
        "train": {"batch_size": 4, "augment": {"erasing": 1.0}},
        "domains": {"x": {"train": "a", "test": "b", **own}, "y": {"train": "a", "test": "b"}},
    }
    config = RunConfig.from_json(value)
    mean, std = (np.array(x).reshape(3, 1, 1) for x in (config.input.mean, config.input.std))
    batches = next(iter(JointBatches(domains, config).epoch(0)))
    for batch, fill in zip(batches, (own["mean"], config.input.mean), strict=True):
        found = np.rint((batch.images.numpy() * std + mean) * 255)
        filled = found == np.rint(np.array(fill) * 255).reshape(3, 1, 1)
        assert filled.all(1).reshape(len(found), -1).any(1).all()
