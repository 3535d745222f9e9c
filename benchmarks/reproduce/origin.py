"""What a row is made of beside what its key says, so that no line is taken for another's.

Each line has it as `made_of`, and so has a run from its first step on, in `runs/KEY.json`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prunion.benchmarks.reproduce.archives import BenchmarkImages, listing_of
from prunion.benchmarks.reproduce.settings import Reproduction
from prunion.benchmarks.reproduce.sources import named_trunk
from prunion.runtime.base import read_json, sha256_file, shown, write_json
from prunion.runtime.errors import InputError

__all__ = ["Origin", "begin_row", "check_line", "noted_origin", "origin_of"]

log = logging.getLogger(__name__)
SHOWN = 12  # digits of a digest
OLD = "an earlier version, which did not say of what"


@dataclass(frozen=True)
class Origin:
    """What a row is made of; "", 0 or nothing is what nobody knows, or what was not given.

    Attributes:
        trunk: SHA-256 of the weights' file, hex, or "default" for the library's.
        source_epochs: of its pretraining; 0 where its weights were given.
        source_accuracy: percent that was given for the source domain.
        images: by domain, a digest of its images' listing.
        changes: keys of `[train]` in place of the row's, as a key has them without what no file's
            name may hold.
    """

    trunk: str
    source_epochs: int
    source_accuracy: float
    images: Mapping[str, str]
    changes: Mapping[str, str]


def origin_of(asked: Reproduction, network: str, domains: Sequence[BenchmarkImages]) -> Origin:
    """What a row of this network would be made of now.

    Args:
        domains: none where the data could not be opened.
    """
    named = named_trunk(asked, network)
    file, trunk = Path(named.weights), named.weights
    if trunk != "default":
        trunk = sha256_file(file) if file.is_file() else ""
    # Labels of test images, which may be published later, are of no row that does without them.
    listed = {x.name: listing_of(x, () if asked.final or not x.val else ("test",)) for x in domains}
    return Origin(
        trunk,
        named.epochs,
        asked.source_accuracy.get(network, 0.0),
        {name: digest for name, digest in listed.items() if digest},
        {key: repr(value) for key, value in sorted(asked.changes.items())},
    )


def check_line(line: Mapping[str, Any], now: Origin, lines: Path) -> None:
    """Refuse to take a line for what is asked. Raises InputError where it is known to be another.

    Args:
        lines: the file that has it.
    """
    remove = f"remove its line from {lines} and {lines.parent / 'runs' / line['key']}"
    _check(f"row {line['key']}", line.get("made_of"), now, remove)


def begin_row(folder: Path, now: Origin) -> None:
    """Note what a run is made of, before it is begun.

    Raises InputError where what the folder holds was begun with something else.
    """
    if not folder.is_dir():
        write_json(_note(folder), asdict(now))
        return
    _check(f"the run in {folder}", noted_origin(folder), now, f"remove {folder}")


def noted_origin(folder: Path) -> Any:
    """What a run was begun with, as JSON; None where an earlier version did not note it."""
    return read_json(_note(folder), InputError) if _note(folder).is_file() else None


def _note(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _check(what: str, before: Any, now: Origin, remove: str) -> None:
    if not isinstance(before, Mapping):
        log.warning("%s is of %s: taken as it is", what, OLD)
        return
    for was, is_now in _differences(before, now):
        raise InputError(
            f"{what} was made with {was} and is asked for with {is_now}: ask for what it was made "
            f"with, choose another place with -o, or {remove}"
        )
    if unknown := [
        *([] if now.trunk and before.get("trunk") else ["trunk"]),
        *([] if now.images and before.get("images") else ["images"]),
    ]:
        log.warning("%s: its %s cannot be compared", what, " and ".join(unknown))


def _differences(before: Mapping[str, Any], now: Origin) -> Iterable[tuple[str, str]]:
    """What is known to differ, in words: what it was, what it is."""
    trunk, epochs = before.get("trunk"), before.get("source_epochs", 0)
    known = bool(trunk and now.trunk)
    # Where a trunk is not there (any more), its pretraining still tells it from others.
    if trunk != now.trunk if known else epochs != now.source_epochs:
        yield _trunk(trunk, epochs), _trunk(now.trunk, now.source_epochs)
    accuracy = before.get("source_accuracy", 0.0)
    if accuracy != now.source_accuracy:
        yield f"--source-accuracy {accuracy:g}", f"{now.source_accuracy:g}"
    listed = before.get("images", {})
    for name in dict.fromkeys((*listed, *now.images)) if listed and now.images else ():
        if listed.get(name) != now.images.get(name):
            yield f"images of {name}: {_digest(listed.get(name))}", _digest(now.images.get(name))
    changes = before.get("changes", {})
    for key in dict.fromkeys((*changes, *now.changes)):
        if changes.get(key) != now.changes.get(key):
            yield f"train.{key} {shown(changes.get(key))}", shown(now.changes.get(key))


def _trunk(digest: str | None, epochs: int) -> str:
    if digest == "default":
        return "the library's trunk"
    told = f"a trunk of {epochs} epochs of pretraining" if epochs else "a trunk that was given"
    return f"{told}, {_digest(digest) if digest else 'which is not there'}"


def _digest(digest: str | None) -> str:
    return f"SHA-256 {digest[:SHOWN]}…" if digest else "none"
