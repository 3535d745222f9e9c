"""The benchmarks' archives, small, in exactly their layout.

    python -m tests.benchmarks.reproduce.archives.small FOLDER_OF_DOMAINS ARCHIVES

makes a Decathlon of the real images that some tests take from `PRUNION_DATA`.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["coloured", "real_domains", "write_decathlon", "write_sketch"]

# The benchmark's numbers of its domains, in the order of their names.
ORDER = (
    "aircraft cifar100 daimlerpedcls dtd gtsrb imagenet12 omniglot svhn ucf101 vgg-flowers"
).split()
Images = Mapping[str, Sequence[bytes]]  # by class
# Which of the real domains stands for which of the benchmark's; the first for ImageNet.
STANDS_FOR = {
    "imagenet12": "caltech101",
    "cifar100": "cifar100",
    "daimlerpedcls": "vehicles",
    "dtd": "dtd10",
    "gtsrb": "gtsrb",
    "omniglot": "omniglot",
    "vgg-flowers": "flowers5",
}


def coloured(names: Sequence[str], count: int, seed: int) -> dict[str, list[bytes]]:
    """JPEG files of noisy plain colours, `count` of each class."""
    rng, found = np.random.default_rng(seed), {}
    for place, name in enumerate(names):
        colour = np.roll([220, 40, 40], place) // (1 + place // 3)
        files = []
        for _ in range(count):
            pixels = (colour + rng.normal(0, 30, (72, 84, 3))).clip(0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "JPEG")
            files.append(stream.getvalue())
        found[name] = files
    return found


def real_domains(
    data: Path, classes: int, each: int, names: Sequence[str] = tuple(STANDS_FOR)
) -> dict[str, dict[str, dict[str, list[bytes]]]]:
    """JPEG files of real images, `each` of so many classes for each part."""
    import pyarrow.parquet as pq

    found: dict[str, dict[str, dict[str, list[bytes]]]] = {}
    for name in names:
        folder, parts = data / STANDS_FOR[name], found.setdefault(name, {})
        held = {
            part: _by_class(pq.read_table(folder / f"{part}.parquet")) for part in ("train", "test")
        }
        enough = [
            x for x, own in held["train"].items()
            if len(own) >= 2 * each and len(held["test"].get(x, ())) >= each
        ]  # fmt: skip
        chosen = enough[:classes]
        for part, source, start in (
            ("train", "train", 0),
            ("val", "train", each),
            ("test", "test", 0),
        ):
            parts[part] = {
                str(label): [_jpeg(x) for x in held[source][label][start : start + each]]
                for label in chosen
            }
    return found


def _by_class(table: Any) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    labels = table.column("label").to_pylist()
    for label, image in zip(labels, table.column("image").to_pylist(), strict=True):
        found.setdefault(label, []).append(image["bytes"])
    return dict(sorted(found.items()))


def _jpeg(content: bytes) -> bytes:
    """The image with a shorter side of 72 pixels, as the benchmark has it."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    scale = 72 / min(image.size)
    image = image.resize(
        (max(72, round(image.width * scale)), max(72, round(image.height * scale)))
    )
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    return stream.getvalue()


def write_decathlon(
    folder: Path, domains: Mapping[str, Mapping[str, Images]], *, labels: bool = False
) -> dict[str, dict[int, int]]:
    """Write the archives to `folder`.

    Args:
        domains: images of the parts `train`, `val` and `test`, by class.
        labels: also the annotations of the test images, as published later.

    Returns:
        For each domain the category of every test image, by its number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth: dict[str, dict[int, int]] = {}
    kit: dict[str, bytes] = {"decathlon-1.0/code/eval.m": b"% evaluation"}
    tars: dict[str, bytes] = {}
    for name, parts in domains.items():
        first = (ORDER.index(name) + 1) * 10_000_000
        # Numbered as classes come, whatever their names' order.
        numbers = {label: first + place for place, label in enumerate(parts["train"], 1)}
        files: dict[str, bytes] = {}
        count = 0
        for part, images in parts.items():
            listed: list[dict[str, Any]] = []
            given: list[dict[str, Any]] = []
            for place, (label, contents) in enumerate(images.items(), 1):
                for content in contents:
                    count += 1
                    # Folders of training images are not in the labels' order.
                    own = "" if part == "test" else f"{9999 - place:04}/"
                    path = f"{name}/{part}/{own}{count:06}.jpg"
                    files[path] = content
                    number = first + count
                    listed.append(
                        {"id": number, "width": 84, "height": 72, "file_name": f"data/{path}"}
                    )
                    given.append(
                        {
                            "id": number,
                            "image_id": number,
                            "category_id": numbers[label],
                            "segmentation": [],
                            "area": 0,
                            "bbox": [],
                            "iscrowd": 0,
                        }
                    )
            value = {
                "info": {"version": "1.0"},
                "images": listed,
                "annotations": given,
                "categories": [
                    {"id": number, "name": label, "supercategory": ""}
                    for label, number in numbers.items()
                ],
                "licenses": [],
            }
            place_of = f"decathlon-1.0/annotations/{name}"
            if part == "test":
                truth[name] = {x["image_id"]: x["category_id"] for x in given}
                kit[f"{place_of}_test_stripped.json"] = _json({**value, "annotations": []})
            if part != "test" or labels:
                kit[f"{place_of}_{part}.json"] = _json(value)
        tars[name] = _tar(files, "w")
    (folder / "decathlon-1.0-devkit.tar.gz").write_bytes(_tar(kit, "w:gz"))
    source = tars.pop("imagenet12", None)
    if source is not None:
        (folder / "decathlon-1.0-data-imagenet.tar").write_bytes(source)
    inner = {f"{name}.tar": content for name, content in tars.items()}
    (folder / "decathlon-1.0-data.tar.gz").write_bytes(_tar(inner, "w:gz"))
    return truth


def write_sketch(folder: Path, domains: Mapping[str, Mapping[str, Images]]) -> None:
    """ImageNet-to-Sketch: class folders below `train` and `test` of each domain."""
    for name, parts in domains.items():
        for part, images in parts.items():
            for label, contents in images.items():
                place = folder / name / part / label
                place.mkdir(parents=True)
                for number, content in enumerate(contents):
                    (place / f"{number:04}.jpg").write_bytes(content)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _tar(files: Mapping[str, bytes], mode: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


if __name__ == "__main__":
    write_decathlon(Path(sys.argv[2]), real_domains(Path(sys.argv[1]), classes=8, each=6))
