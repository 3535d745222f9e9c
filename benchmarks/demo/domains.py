"""The demo's domains, written to disk as the data sets a user would bring."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from prunion.benchmarks.demo.images import DEMO_IMAGES, Example

__all__ = ["write_demo_domains"]

# One of the two layouts each, so that the demo walks both roads.
AS_PARQUET = ("digits", "letters")


def write_demo_domains(folder: Path | str, size: int) -> dict[str, tuple[Path, Path]]:
    """Write five domains of real images, `size` × `size` pixels, the same bytes every time.

    Digits, letters, textures, photos and faces, in that order; `demo_images` says where each
    comes from and under which licence. Returns each domain's training and test path: a Parquet
    file, or a folder of class folders. Raises MissingDependencyError without the `demo` extra.
    """
    paths = {}
    for name, examples in DEMO_IMAGES.items():
        place = Path(folder) / name
        place.mkdir(parents=True, exist_ok=True)
        write = _write_parquet if name in AS_PARQUET else _write_folders
        paths[name] = write(place, examples(size))
    return paths


def _write_folders(place: Path, examples: Iterator[Example]) -> tuple[Path, Path]:
    for number, example in enumerate(examples):
        folder = place / ("test" if example.test else "train") / example.label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05}.png").write_bytes(_png(example.image))
    return place / "train", place / "test"


def _write_parquet(place: Path, examples: Iterator[Example]) -> tuple[Path, Path]:
    rows = list(examples)
    names = sorted({row.label for row in rows})
    train, test = place / "train.parquet", place / "test.parquet"
    _write_table(train, [row for row in rows if not row.test], names)
    _write_table(test, [row for row in rows if row.test], names)
    return train, test


def _write_table(path: Path, rows: list[Example], names: list[str]) -> None:
    """Hugging Face's image layout, with the class names in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    label = {"names": names, "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    cells = [{"bytes": _png(row.image), "path": f"{i:05}.png"} for i, row in enumerate(rows)]
    labels = [names.index(row.label) for row in rows]
    pq.write_table(pa.table({"image": cells, "label": labels}, schema=schema), path)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
