"""Images in tar shards as the library webdataset writes them: a sample's files share a name.

`0001.jpg` and `0001.cls` are one sample: files of one folder and of one name up to its first dot,
one behind the other. A shard is read through once for its index; then any image is read from its
place, so a set of millions of images needs neither as many files nor their order.
"""

from __future__ import annotations

import os
import tarfile
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from prunion.runtime.base import (
    BoundedTar,
    Orientation,
    Placed,
    holds_data,
    json_of,
    listed,
    reason_of,
    shown,
)
from prunion.runtime.errors import DataError
from prunion.runtime.images.decode import IMAGE_SUFFIXES
from prunion.runtime.images.image_check import ImageCheck, decode_image
from prunion.runtime.images.labels import Split, written_labels

__all__ = ["are_tars", "open_tars"]

MOST_LABEL, MOST_JSON = 1 << 10, 1 << 20  # bytes
AT_ONCE = 256  # images that are checked together


def are_tars(paths: Sequence[Path]) -> bool:
    """Whether paths name tar files, by their names."""
    return all(path.suffix.lower() == ".tar" and not path.is_dir() for path in paths)


def open_tars(
    paths: Sequence[Path],
    columns: tuple[str, str] = ("image", "label"),
    orientation: Orientation = "exif",
) -> Split:
    """The images and labels of one or several shards, read as one.

    Args:
        columns: the ending of a sample's image, where it has several, or "image"; and the ending of
            what holds its label, or a key of its `.json`. "label" is `.cls` where there is one.

    Raises DataError, naming shard and file, for what is damaged, compressed, holds links or
    devices, or is no sample of an image and a label.
    """
    held, check, skipped = _Held(tuple(paths)), ImageCheck(orientation), Counter[str]()
    labels, texts = list[Any](), list[int]()  # and the places of those that are written as text
    for path in paths:
        held.begin(path, len(labels))
        for key, files in _samples(path, skipped):
            what = f"{path} {shown(key)[1:-1]}"
            image = _image(files, columns[0], what)
            value, is_text = _label(files, columns[1], held.file, what)
            texts += [len(labels)] if is_text else []
            labels.append(value)
            held.add(image)
            if len(labels) % AT_ONCE == 0:
                held.check(check, len(labels) - AT_ONCE)
    if not labels:
        raise DataError(f"{paths[0]} holds no images: give shards with samples")
    held.check(check, len(labels) - len(labels) % AT_ONCE)
    for index, value in zip(texts, written_labels([labels[i] for i in texts]), strict=True):
        labels[index] = value
    prints = np.array(check.prints, np.int64)
    return Split(
        labels=labels,
        names=None,
        read=lambda index: decode_image(
            held.image(index), held.place(index), orientation, prints[index]
        ),
        place=held.place,
        skipped=skipped,
        met=check.met,
        prints=prints,
        # The library writes places into .cls; a text of another ending is a name.
        typed=not texts or columns[1].lower() in ("label", "cls"),
    )


@dataclass(frozen=True)
class _File:
    """A file of a shard: its name, and where its bytes lie."""

    name: str
    start: int
    size: int

    @property
    def parts(self) -> tuple[str, str]:
        """The sample's name, and the file's ending in lower case."""
        folder, base = os.path.split(self.name)
        stem, _, ending = base.partition(".")
        return os.path.join(folder, stem), ending.lower()


@dataclass
class _Held:
    """The images of all shards by index: numbers and one text, so that millions fit into memory."""

    paths: tuple[Path, ...]
    shards: list[Placed] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)  # each shard's first image
    starts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    names: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q"))  # of names

    def begin(self, path: Path, first: int) -> None:
        """Open a shard, whose first image is number `first`."""
        try:
            self.shards.append(Placed(path))
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: correct the path") from None
        except OSError as exc:
            raise DataError(f"{path} is no tar file ({reason_of(exc)}): write it again") from None
        self.firsts.append(first)

    def add(self, file: _File) -> None:
        """The next image, of the shard that was begun last."""
        self.starts.append(file.start)
        self.sizes.append(file.size)
        self.names += file.name.encode()
        self.ends.append(len(self.names))

    def check(self, check: ImageCheck, begin: int) -> None:
        """Check the images from number `begin` on."""
        numbers = range(begin, len(self.starts))
        check.check([self.image(i) for i in numbers], [self.place(i) for i in numbers])

    def image(self, index: int) -> bytes:
        """An image as it is stored."""
        return self._bytes(self._shard(index), self.starts[index], self.sizes[index])

    def file(self, file: _File) -> bytes:
        """The content of a file of the shard that was begun last."""
        return self._bytes(len(self.shards) - 1, file.start, file.size)

    def _bytes(self, number: int, start: int, size: int) -> bytes:
        try:
            return self.shards[number].read(start, size)
        except (OSError, EOFError) as exc:
            raise DataError(
                f"{self.paths[number]} cannot be read ({reason_of(exc)}): copy it again, and leave "
                "it as it is while it is read"
            ) from None

    def place(self, index: int) -> str:
        """How messages name an image: shard and file."""
        begin = self.ends[index - 1] if index else 0
        name = self.names[begin : self.ends[index]].decode()
        return f"{self.paths[self._shard(index)]} {shown(name)[1:-1]}"

    def _shard(self, index: int) -> int:
        return bisect_right(self.firsts, index) - 1


def _samples(path: Path, skipped: Counter[str]) -> Iterator[tuple[str, dict[str, _File]]]:
    """The name and the files, by their endings, of every sample of a shard."""
    seen: set[int] = set()  # hashes of their names, so that millions fit into memory
    for key, group in groupby(_files(path, skipped), lambda file: file.parts[0]):
        if hash(key) in seen:
            what = f"{path} has sample {shown(key)} at two places, as a tar that was added to"
            raise DataError(f"{what}: write every sample once, its files together")
        seen.add(hash(key))
        files: dict[str, _File] = {}
        for file in group:
            ending = file.parts[1]
            if ending in files:
                raise DataError(
                    f"{path} has {shown(file.name)} twice in one sample: give every sample a name "
                    "of its own"
                )
            files[ending] = file
        yield key, files


def _files(path: Path, skipped: Counter[str]) -> Iterator[_File]:
    """The plain files of a shard, in its order."""
    try:
        with (
            path.open("rb", buffering=1 << 16) as raw,
            BoundedTar(fileobj=raw, encoding="utf-8", errors="strict") as tar,  # strict: of names
        ):
            end = os.fstat(raw.fileno()).st_size
            while (member := tar.next()) is not None:
                if member.isdir():
                    continue
                file = _File(member.name, member.offset_data, member.size)
                _check(path, member, end)
                if os.path.basename(file.name).startswith("."):
                    skipped["hidden (name begins with a dot)"] += 1
                elif not file.parts[1]:
                    skipped["without an ending"] += 1
                else:
                    yield file
            _check_end(path, raw, tar.offset)
    except (OSError, ValueError, EOFError, RecursionError, tarfile.TarError) as exc:
        raise DataError(
            f"{path} is no plain tar file, or a damaged one ({reason_of(exc)}): write it again, "
            "without compression"
        ) from None


def _check(path: Path, member: tarfile.TarInfo, end: int) -> None:
    """Refuse what is no plain file, or does not lie in the shard."""
    name = shown(member.name)
    if not member.isreg() or member.issparse():
        raise DataError(
            f"{path} holds {name}, a link, a device or a file with holes: write plain files only"
        )
    if member.size < 0 or member.offset_data + member.size > end:
        raise DataError(f"{path} ends within {name}: copy it again")


def _check_end(path: Path, raw: BinaryIO, offset: int) -> None:
    """A shard ends with blocks of zeros; tarfile takes a damaged header for the end, too."""
    raw.seek(offset)
    block = raw.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise DataError(
            f"{path} is damaged, or copied in part: at byte {offset:,} there is neither a file nor "
            "the end; copy it again"
        )
    if holds_data(raw, offset):
        raise DataError(
            f"{path} holds more behind its end, which is at byte {offset:,}: shards that `cat` put "
            "together are given as a list, or written anew"
        )


def _image(files: dict[str, _File], column: str, what: str) -> _File:
    if column != "image":
        if column.lower() not in files:
            raise DataError(
                f"{what} has no .{column} (but {_listed(files)}): name the image's ending with "
                "image_column"
            )
        return files[column.lower()]
    found = [ending for ending in files if f".{ending}".endswith(IMAGE_SUFFIXES)]
    if len(found) != 1:
        raise DataError(
            f"{what} has {len(found)} images ({_listed(files)}): name the image's ending with "
            "image_column, or leave out what has none"
        )
    return files[found[0]]


def _label(
    files: dict[str, _File], column: str, read: Callable[[_File], bytes], what: str
) -> tuple[Any, bool]:
    """A sample's label, and whether it is a text that may stand for a number."""
    ending = "cls" if column == "label" else column.lower()
    if ending in files and ending != "json":
        data = _small(files[ending], read, MOST_LABEL, what)
        try:
            return data.decode("utf-8-sig").strip(), True
        except ValueError:
            raise DataError(f"{what}.{ending} is no UTF-8 text: write the label plainly") from None
    if "json" not in files:
        raise DataError(
            f"{what} has no .{ending} and no .json (but {_listed(files)}): write labels, or name "
            "their ending with label_column"
        )
    try:
        value = json_of(_small(files["json"], read, MOST_JSON, what))
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{what}.json is no JSON ({reason_of(exc)}): correct it") from None
    if not isinstance(value, dict) or column not in value:
        has = _listed(value) if isinstance(value, dict) else shown(value)
        raise DataError(
            f"{what}.json has no {shown(column)} (but {has}): name the key with label_column"
        )
    return value[column], False


def _small(file: _File, read: Callable[[_File], bytes], most: int, what: str) -> bytes:
    if file.size > most:
        raise DataError(f"{what}: {shown(file.name)} is over {most:,} bytes: write a label only")
    return read(file)


def _listed(names: Any) -> str:
    return listed([shown(str(name))[1:-1] for name in names], 8) or "nothing"
