"""Small data sets of real image files for the tests."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from prunion.trainer.config import DomainConfig
from prunion.trainer.data import Domain, ImageSet, open_domain


def picture(number: int, width: int = 20, height: int = 16) -> Image.Image:
    """A noisy picture, a different one for each number."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def encoded(number: int, kind: str = "PNG") -> bytes:
    """The picture's file, as bytes."""
    stream = io.BytesIO()
    picture(number).save(stream, kind)
    return stream.getvalue()


def write_folders(
    root: Path, counts: dict[str, int], kind: str = "png", *, number: int = 0
) -> Path:
    """`root/CLASS/0000.png`, so many of each class, of pictures from `number` on."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(number).save(root / name / f"{index:04}.{kind}")
            number += 1
    return root


def write_parquet(
    path: Path,
    labels: Sequence[Any],
    names: Sequence[str] | None = None,
    images: Sequence[bytes | None] | None = None,
) -> Path:
    """Hugging Face's image layout, with class names in the metadata if given."""
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    data = images if images is not None else [encoded(index) for index in range(len(labels))]
    cells = [{"bytes": item, "path": None} for item in data]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, image), "label": pa.array(labels)})
    if names is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, path)
    return path


def open_files(train: Path, test: Path, seed: int = 0, **options: Any) -> Domain:
    """A domain of the two paths."""
    return open_domain(DomainConfig("d", train=(str(train),), test=(str(test),), **options), seed)


def pixels(images: ImageSet) -> list[bytes]:
    """Every image as it is decoded."""
    return [images.image(index).tobytes() for index in range(len(images))]
