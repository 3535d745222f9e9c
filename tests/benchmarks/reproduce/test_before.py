"""What stands in a row's way is said before anything is trained, and costs nothing then."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tests.benchmarks.reproduce.command import lines, run

pytestmark = pytest.mark.thorough


def unpacked(data: Path) -> Path:
    """The archives unpacked; the folder of all domains' images."""
    images = data / "decathlon-1.0" / "data"
    images.mkdir(parents=True)
    for archive in sorted(data.glob("*.tar*")):
        with tarfile.open(archive) as tar:
            tar.extractall(data if "devkit" in archive.name else images, filter="data")
        archive.unlink()
    for archive in images.glob("*.tar"):
        with tarfile.open(archive) as tar:
            tar.extractall(images, filter="data")
    return images


@pytest.mark.parametrize(
    "place", ["vgg-flowers/train", "gtsrb/val", "gtsrb/test", "imagenet12/test"]
)
def test_an_image_that_cannot_be_read_is_told_first(data: Path, place: str) -> None:
    """Of a row it was told once the trunk was pretrained, of a submission once a row was done.

    Then the row was lost: with the image mended it was another one's.
    """
    file = sorted((unpacked(data) / place).rglob("*.jpg"))[3]
    whole = file.read_bytes()
    file.write_bytes(whole[:300])
    code, text = run(data, "--epochs", "1", "--method", "feature")
    assert code == 1 and "cannot be read" in text, text
    assert not (data.parent / "out" / "sources").exists()
    assert not (data.parent / "out" / "runs").exists()
    file.write_bytes(whole)
    assert run(data, "--epochs", "1", "--method", "feature")[0] == 0


def test_a_second_networks_source_is_missed_first(data: Path) -> None:
    """It was missed once the first network's rows were done."""
    assert run(data, "--epochs", "1", "--method", "feature")[0] == 0
    made = data.parent / "out" / "sources" / "wrn28_4-e1-px16.safetensors"
    (data / "decathlon-1.0-data-imagenet.tar").unlink()
    both = ("--network", "wrn28_4", "--network", "resnet26", "--weights", f"wrn28_4={made}")
    out = data.parent / "out" / "data" / "data" / "imagenet12"
    out.rename(data.parent / "gone")
    code, text = run(data, "--epochs", "1", "--method", "norms", *both)
    assert code == 1 and "has no imagenet12 to pretrain resnet26 on" in text, text
    assert len(lines(data)) == 1


def test_a_head_of_other_classes_answers_nothing(data: Path) -> None:
    """As `prunion pretrain` makes it of class folders: a finished row ended with a KeyError."""
    assert run(data, "--epochs", "1", "--method", "feature")[0] == 0
    made = data.parent / "out" / "sources" / "wrn28_4-e1-px16.safetensors"
    with safe_open(made, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    for names, said in (
        (["0001", "0002"], "a head of other classes, such as '0001',"),
        (["a", "b", "c"], "its accuracy is of 3 classes, not 2: left out"),
    ):
        given, count = data.parent / f"{names[0]}.safetensors", len(names)
        head = {x: tensors[x].repeat(2, 1)[:count] for x in ("domain_head.weight",)}
        head["domain_head.bias"] = tensors["domain_head.bias"].repeat(2)[:count]
        save_file({**tensors, **head}, given, {**facts, "classes": json.dumps(names)})
        options = ("--seed", str(count), "--weights", f"wrn28_4={given}")
        code, text = run(data, "--epochs", "1", "--method", "feature", *options)
        assert code == 0, text
        assert said in text and text.index("so the submission lacks it") < text.index("note: row")
        line = lines(data)[-1]
        assert line["submitted"] == 2 * 6 + 3 * 6 and ("imagenet12" in line["accuracy"]) == (
            count == 2
        )


def test_accuracy_of_other_views_is_told_of_weights_that_were_given(data: Path) -> None:
    assert run(data, "--epochs", "1", "--method", "feature")[0] == 0
    made = data.parent / "out" / "sources" / "wrn28_4-e1-px16.safetensors"
    given = data.parent / "given.safetensors"
    given.write_bytes(made.read_bytes())
    options = ("--method", "feature", "--crops", "5", "--weights", f"wrn28_4={given}")
    code, text = run(data, "--epochs", "1", *options)
    assert code == 0 and "given.safetensors: its accuracy is of 1 views of an image, not 5" in text
