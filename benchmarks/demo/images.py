"""Real images that ship inside Python packages, as labelled training and test images.

| images | package | source and licence |
| --- | --- | --- |
| digits | scikit-learn | Optical Recognition of Handwritten Digits (Alpaydin, Kaynak), CC BY 4.0 |
| letters | Matplotlib | glyphs of DejaVu (Bitstream Vera terms), STIX (OFL) and BaKoMa's Computer Modern |
| faces | scikit-image | face and background patches of Labeled Faces in the Wild, for research |
| textures | scikit-image | brick, grass, gravel, retina: CC0; hubble: NASA, public domain; text: public domain; tissue: no known restrictions |
| photos | both | chelsea, coffee, motorcycle, rocket: CC0; astronaut: NASA, public domain; china, flower: CC BY 2.0 (danielbuechele, vultilion) |
"""  # noqa: E501

from __future__ import annotations

import gzip
import importlib.util
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prunion.runtime.base import install_hint
from prunion.runtime.errors import DataError, MissingDependencyError

__all__ = [
    "DEMO_IMAGES",
    "Example",
    "digits",
    "faces",
    "letters",
    "photos",
    "textures",
    "write_demo_domains",
]


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


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TRAIN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
    "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic", "STIXGeneralItalic", "cmss10", "cmtt10",
)  # fmt: skip
TEST_FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta", "cmr10", "cmb10", "cmti10")
TEXTURES = {
    "brick": "brick.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "print": "text.png",
    "retina": "retina.jpg",
    "stars": "hubble_deep_field.jpg",
    "tissue": "ihc.png",
}
PHOTOS = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "flower": "flower.jpg",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
    "temple": "china.jpg",
}


class Example(NamedTuple):
    """One image, its class, and whether it is for testing."""

    image: Image.Image
    label: str
    test: bool


def digits(size: int) -> Iterator[Example]:
    """1797 handwritten digits of 8 × 8 pixels, enlarged; the last third is for testing.

    The set is ordered by writer, so most test writers are new.
    """
    folder = _package("sklearn", "scikit-learn") / "datasets" / "data"
    with gzip.open(_existing(folder / "digits.csv.gz"), "rt") as stream:
        rows = np.loadtxt(stream, delimiter=",")  # 64 pixels of 0 … 16, then the digit
    for index, row in enumerate(rows):
        image = Image.fromarray(np.uint8(row[:64].reshape(8, 8) * (255 / 16)))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        yield Example(image, str(int(row[64])), index >= len(rows) * 2 // 3)


def letters(size: int) -> Iterator[Example]:
    """Capital letters, turned a little and coloured at random; the test fonts are unseen ones."""
    folder = _package("matplotlib", "matplotlib") / "mpl-data" / "fonts" / "ttf"
    rng = np.random.default_rng(1)
    for fonts, test in ((TRAIN_FONTS, False), (TEST_FONTS, True)):
        for name in fonts:
            font = ImageFont.truetype(str(folder / f"{name}.ttf"), 96)
            for letter in LETTERS * (2 if test else 4):
                yield Example(_drawn(letter, font, size, rng), letter, test)


def faces(size: int) -> Iterator[Example]:
    """100 faces and 100 patches of background; 30 of each are for testing."""
    folder = _package("skimage", "scikit-image") / "data"
    pixels = np.load(_existing(folder / "lfw_subset.npy"), allow_pickle=False)
    for index, values in enumerate(pixels):
        image = Image.fromarray(np.uint8(values * 255)).resize((size, size))
        yield Example(image, "face" if index < 100 else "background", index % 100 >= 70)


def textures(size: int) -> Iterator[Example]:
    """Grey patches of seven surfaces; test patches come from other tiles of the picture."""
    for number, (label, file) in enumerate(TEXTURES.items()):
        yield from _patches(_picture(file).convert("L"), label, size, 6, number)


def photos(size: int) -> Iterator[Example]:
    """Patches of seven photographs; test patches come from other tiles of the picture."""
    for number, (label, file) in enumerate(PHOTOS.items()):
        yield from _patches(_picture(file).convert("RGB"), label, size, 4, number)


DEMO_IMAGES: dict[str, Callable[[int], Iterator[Example]]] = {
    "digits": digits,
    "letters": letters,
    "textures": textures,
    "photos": photos,
    "faces": faces,
}


def _drawn(
    letter: str, font: ImageFont.FreeTypeFont, size: int, rng: np.random.Generator
) -> Image.Image:
    """A letter in one colour on another, far enough apart in lightness to be read."""
    dark, light = rng.integers(0, 110, 3), rng.integers(146, 256, 3)
    ink, paper = (dark, light) if rng.random() < 0.5 else (light, dark)
    mask = Image.new("L", (160, 160))
    ImageDraw.Draw(mask).text((80, 80), letter, fill=255, font=font, anchor="mm")
    mask = mask.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BICUBIC)
    side = int(rng.integers(112, 150))
    left, top = (int(x) for x in rng.integers(0, 161 - side, 2))
    centre = (160 - side) // 2
    left, top = (left + 3 * centre) // 4, (top + 3 * centre) // 4
    mask = mask.crop((left, top, left + side, top + side))
    mask = mask.resize((size, size), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (size, size), _colour(paper))
    canvas.paste(_colour(ink), (0, 0, size, size), mask)
    return canvas


def _colour(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def _patches(
    picture: Image.Image, label: str, size: int, across: int, number: int
) -> Iterator[Example]:
    """120 training and 40 test patches. Each lies inside one tile, and a third of the tiles,
    along diagonals, are for testing: so no pixel is in both sets."""
    rng = np.random.default_rng([2, number])
    tile = min(picture.width // across, picture.width // 3, picture.height // 2)
    for test, count in ((False, 120), (True, 40)):
        corners = [
            (left, top)
            for top in range(0, picture.height - tile + 1, tile)
            for left in range(0, picture.width - tile + 1, tile)
            if ((left + top) // tile % 3 == 0) == test
        ]
        # The black around a retina shows nothing to tell it by; other flat places neither.
        corners = [place for place in corners if _spread(_square(picture, place, tile)) > 8]
        done = 0
        while done < count:
            left, top = corners[done % len(corners)]
            side = int(rng.integers(tile * 6 // 10, tile + 1))
            x, y = (int(shift) for shift in rng.integers(0, tile - side + 1, 2))
            patch = _square(picture, (left + x, top + y), side)
            if _spread(patch) > 2:
                done += 1
                patch = patch.resize((size, size), Image.Resampling.BILINEAR)
                yield Example(patch, label, test)


def _square(picture: Image.Image, corner: tuple[int, int], side: int) -> Image.Image:
    left, top = corner
    return picture.crop((left, top, left + side, top + side))


def _spread(image: Image.Image) -> float:
    """Standard deviation of the grey values, 0 … 255."""
    return float(np.asarray(image.convert("L")).std())


def _picture(file: str) -> Image.Image:
    if file in ("china.jpg", "flower.jpg"):
        folder = _package("sklearn", "scikit-learn") / "datasets" / "images"
    else:
        folder = _package("skimage", "scikit-image") / "data"
    return Image.open(_existing(folder / file))


def _package(module: str, package: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"the demo's images come with {package}, which is not installed: {install_hint('demo')}"
        )
    return Path(spec.origin).parent


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise DataError(
            f"{path} is not in this version of its package: "
            f"{install_hint('demo', '--force-reinstall')}"
        )
    return path
