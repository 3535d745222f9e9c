"""What paths of labelled images name: class folders, Parquet files, tar shards, or tables."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prunion.runtime.base import Orientation, shown
from prunion.runtime.errors import DataError
from prunion.runtime.images.labels import Split
from prunion.runtime.images.sources.folder import open_folder
from prunion.runtime.images.sources.parquet import are_parquet, open_parquet
from prunion.runtime.images.sources.table import are_tables, open_tables
from prunion.runtime.images.sources.tars import are_tars, open_tars
from prunion.runtime.images.sources.walk import folders_below

__all__ = ["SPLIT_WORDS", "has_columns", "image_files", "matching", "once", "open_images"]

SHARDS = (".parquet", ".tar")
SIGNS = os.sep + (os.altsep or "")
STARS = re.compile(rf"(?<![^{re.escape(SIGNS)}])\*\*(?=[{re.escape(SIGNS)}]|$)")
NUMBERED = re.compile(r"(.*?)(\d+)-of-(\d+)")
MOST_SHARDS = 1 << 20  # a larger number counts something else
# What the words in a shard's name say it is for, as Hugging Face's datasets reads them.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def image_files(paths: Sequence[Path], skipped: Counter[str] | None = None) -> tuple[Path, ...]:
    """The paths with patterns and folders of shards replaced by what they name, in order.

    What exists is no pattern. A folder that holds folders holds classes, and stays.

    Args:
        skipped: is told how many files lie beside a folder's shards.

    Raises DataError for a folder with shards of two kinds, or of several sets by their names, and
    where by their names some are not there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += _complete(_shards(path, Counter() if skipped is None else skipped)) or [path]
        elif any(sign in str(path) for sign in "*?["):
            found += _complete([Path(x) for x in matching(str(path))]) or [path]
        else:
            found.append(path)
    return tuple(found)


def matching(pattern: str) -> list[str]:
    """The paths that a pattern names, sorted; as far as a path exists, it is no pattern.

    A folder that links reach twice, or a link that leads back to where it lies, counts once.

    Raises DataError for a folder on the way that cannot be opened.
    """
    known = pattern
    while known and not os.path.exists(known):
        known = os.path.dirname(known)
    return once(_found(glob.escape(known) + pattern[len(known) :]))


def once(paths: Iterable[str]) -> list[str]:
    """Paths, sorted, but of those that lead to one place by links the shortest."""
    every = {x.rstrip(SIGNS) or x for x in paths}
    real = {folder: os.path.realpath(folder) for folder in map(os.path.dirname, every)}
    found: dict[tuple[str, str], str] = {}
    for path in sorted(every, key=lambda x: (x.count(os.sep), x)):
        folder, name = os.path.split(path)
        found.setdefault((real[folder], name), path)
    return sorted(found.values())


def _found(pattern: str) -> list[str]:
    """What `glob` finds, with a walk of our own for `**`: it goes around a link back 40 times."""
    stars = STARS.search(pattern)
    if stars is None:
        above = os.path.dirname(pattern.rstrip(SIGNS))
        while glob.has_magic(above):  # glob passes over what it cannot open
            for folder in glob.glob(os.path.join(above, "")):
                if not os.access(folder, os.R_OK | os.X_OK):
                    raise DataError(
                        f"{folder} cannot be opened (Permission denied): correct the path"
                    )
            above = os.path.dirname(above)
        return glob.glob(pattern)
    head, tail = pattern[: stars.start()], pattern[stars.end() :]
    tail = tail.lstrip(SIGNS) or ("*/" if tail else "*")
    bases = glob.glob(head) if head else [""]
    return [x for base in bases for y in _walked(base) for x in _found(glob.escape(y) + tail)]


def _walked(base: str) -> Iterator[str]:
    """A folder and all below it but what is hidden, each ending in a separator, each once."""

    def enters(entry: os.DirEntry[str]) -> bool:
        return not entry.name.startswith(".") and os.path.isdir(entry)

    for place, _ in folders_below(base, enters):
        yield os.path.join(place, "")


def has_columns(files: Sequence[Path]) -> bool:
    """Whether they are all Parquet, all tables or all tars: what has named parts."""
    return are_parquet(files) or are_tables(files) or are_tars(files)


def open_images(
    files: tuple[Path, ...],
    columns: tuple[str, str] = ("image", "label"),
    orientation: Orientation = "exif",
) -> Split | None:
    """The images of `image_files`; None if they are neither one folder nor files of one kind.

    Raises DataError if they cannot be read.
    """
    if are_parquet(files):
        return open_parquet(files, columns, orientation)
    if are_tables(files):
        return open_tables(files, columns, orientation)
    if are_tars(files):
        return open_tars(files, columns, orientation)
    if len(files) == 1 and files[0].is_dir():
        return open_folder(files[0], orientation)
    return None


def _shards(folder: Path, skipped: Counter[str]) -> list[Path]:
    """The shards in a folder that holds no other folder, by name. Raises DataError."""
    try:
        inside = sorted(x for x in folder.iterdir() if not x.name.startswith("."))
    except OSError:  # reading it will say what is wrong
        return []
    if any(x.is_dir() for x in inside):
        return []
    shards = [x for x in inside if x.suffix.lower() in SHARDS]
    for other in shards[1:]:
        kinds, sets = ({of(x) for x in (shards[0], other)} for of in (_kind_of, _set_of))
        if len(kinds) > 1 or len(sets) > 1:
            what = "different kinds" if len(kinds) > 1 else "different sets"
            raise DataError(
                f"{folder} holds shards of {what}, such as {shown(shards[0].name)} and "
                f"{shown(other.name)}: name those that are meant, as by the pattern "
                f"'{folder / _pattern_of(other, shards)}'"
            )
    if shards and len(inside) > len(shards):
        skipped["beside the shards"] += len(inside) - len(shards)
    return shards


def _complete(files: list[Path]) -> list[Path]:
    """`files`, unless their names count up to more than there are: 00000-of-00003 and no other.

    Those that lie there and that a pattern leaves out are meant to be left out. Raises DataError.
    """
    numbers, kinds = _numbers(files), {_kind_of(file) for file in files}
    beside = {
        folder: _numbers(x for x in folder.iterdir() if _kind_of(x) in kinds)  # no part of one
        for folder in {place[0] for place in numbers}
    }
    for place, named in numbers.items():
        folder, before, total = place
        there, count = beside[folder].get(place, named), int(total)
        first = 1 if 0 not in there and count in there else 0
        if count > MOST_SHARDS:
            continue
        missing = next((i for i in range(first, first + count) if i not in there), None)
        if missing is not None:
            name = f"{before}{missing:0{len(total)}}-of-{total}"
            raise DataError(
                f"{folder} holds {len(there)} of {count} shards, {shown(name)}… is not there: add "
                "what is missing, or name one by one those that are to be read"
            )
    return files


def _numbers(files: Iterable[Path]) -> dict[tuple[Path, str, str], set[int]]:
    """The numbers of shards, by their folder and what stands around these in their names."""
    found: dict[tuple[Path, str, str], set[int]] = {}
    for file in files:
        if named := NUMBERED.match(file.name):
            before, number, total = named.groups()
            found.setdefault((file.parent, before, total), set()).add(int(number))
    return found


def _kind_of(shard: Path) -> str:
    return shard.suffix.lower()


def _set_of(shard: Path) -> str:
    """What tells the sets of one folder apart: the word of a split, or all before 00000-of-00002.

    Numbers in it are a year's or a writer's. Names without either may be anything, so these are
    all one set.
    """
    stem = shard.stem.lower()
    words = re.split(r"[-._\s\d]+", stem)
    if splits := sorted({SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}):
        return " ".join(splits)
    found = re.match(r"(.*?)\d+-of-\d+", stem)
    return re.sub(r"\d+", "", found[1]) if found else ""


def _pattern_of(shard: Path, others: Sequence[Path]) -> str:
    """A pattern for the shard's own set; its name where that would take in one of another set."""
    pattern = re.sub(r"\d+(-of-\d+.*)?", "*", shard.stem) + shard.suffix
    own = (_kind_of(shard), _set_of(shard))
    strange = [x.name for x in others if (_kind_of(x), _set_of(x)) != own]
    return shard.name if any(fnmatch.fnmatch(x, pattern) for x in strange) else pattern
