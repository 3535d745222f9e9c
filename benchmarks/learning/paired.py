"""Two rows of the learning table held against each other, image by image and seed by seed.

    python -m prunion.benchmarks.learning.paired rows.jsonl tuned-025 one-shot-025 tuned-all

The first row against every other one (against all that were run alike, where it stands alone). Rows
with settings are named with them, as in their key: `tuned-025.all`, `tuned-025.average-1`.

The difference is of the mean over domains of the accuracy, and its 95 % interval is for other seeds
*and* other images of the same domains. Seeds and images are crossed: every seed answers the same
images. So each level is resampled on its own, images within their domain, their deviations reflated
to the level's own variance (Carpenter, Goldstein and Rasbash 2003, "A novel bootstrap procedure for
assessing the relationship between class size and achievement", JRSS C 52): plain resampling of both
levels would count the noise of a single answer twice. A handful of seeds is too few to resample:
how far their mean may be off is Student's t. Nothing is drawn: both parts' distributions are known,
and are added on a grid (`interval.py`), so that rows compared the other way round are told the same
with the sign turned. Where each seed held out images of its own, how seeds differ tells of both,
and images are not resampled on top.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from prunion.benchmarks.learning.certainty.interval import image_interval, seed_interval
from prunion.benchmarks.learning.certainty.warm_up import warm_up_notes
from prunion.benchmarks.learning.plan.key import RowKey
from prunion.runtime.base import reason_of, unpack_bits
from prunion.runtime.cli import FilePath, OneLineCommand
from prunion.runtime.errors import InputError

__all__ = [
    "Difference",
    "backbone_of",
    "compare",
    "label_of",
    "main",
    "packed",
    "read_rows",
    "seed_of",
    "unpacked",
]

Line = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """How much more accurate one row is than another, as shares of 1.

    Attributes:
        mean: over seeds, domains and images.
        low, high: the 95 % interval; of one seed it is over images alone.
        seeds: how many both rows have.
        images: test images of all domains.
    """

    mean: float
    low: float
    high: float
    seeds: int
    images: int

    @property
    def verdict(self) -> str:
        """`better`, `worse` or `cannot tell`; one seed never tells."""
        if self.seeds > 1 and self.low > 0:
            return "better"
        if self.seeds > 1 and self.high < 0:
            return "worse"
        return "cannot tell"

    @property
    def interval(self) -> str:
        """In points: `[-0.12, 0.45]`."""
        return f"[{100 * self.low:.2f}, {100 * self.high:.2f}]"


def compare(ours: Sequence[Line], theirs: Sequence[Line]) -> Difference | None:
    """How much better our row is; None where no seed is in both with its answers.

    Raises:
        click.ClickException: the two were tested on different images, or the lines of one are of
            several backbones, or have a seed twice.
    """
    mine, other = (_by_its_seed([x for x in lines if "right" in x]) for lines in (ours, theirs))
    common = sorted(mine.keys() & other.keys())
    if not common:
        return None
    first = mine[common[0]]
    apart = _held_out(first) and not all(
        _same_images(mine[seed], first) and "digests" in first for seed in common
    )
    for seed in common:
        like = mine[seed] if apart else first
        for line in (mine[seed], other[seed]):
            if not _same_images(line, like):
                raise click.ClickException(
                    f"{line['key']} was tested on other images than {like['key']}: "
                    "compare rows of the same domains"
                )
    differences = [
        [_gains(mine[seed], other[seed], name) for seed in common] for name in first["images"]
    ]
    if apart and len(common) > 1:
        low, high = seed_interval(_by_seed(differences))
    else:
        low, high = image_interval([np.stack(each) for each in differences])
    mean = float(_by_seed(differences).mean())
    return Difference(mean, mean + low, mean + high, len(common), sum(first["images"].values()))


def _by_its_seed(lines: Sequence[Line]) -> dict[str, Line]:
    """A row's lines by their seed: of two of one seed the last would stand for both."""
    found: dict[str, Line] = {}
    for line in lines:
        first = found.setdefault(seed_of(line), line)
        if first is not line or backbone_of(line) != backbone_of(lines[0]):
            other = lines[0] if first is line else first
            raise click.ClickException(
                f"{other['key']} and {line['key']} are not one row of different seeds: leave one "
                "of them out"
            )
    return found


def _gains(ours: Line, theirs: Line, domain: str) -> np.ndarray:
    """Of each of a domain's images what our answer is better by, -1, 0 or 1: `[N]`."""
    count = ours["images"][domain]
    mine, other = (unpacked(line["right"][domain], count) for line in (ours, theirs))
    return np.asarray(mine.astype(np.float64) - other)


def _by_seed(differences: Sequence[Sequence[np.ndarray] | np.ndarray]) -> np.ndarray:
    """The mean over domains for each seed, `[S]`, from `[N]` of each domain and seed."""
    return np.asarray(np.mean([[x.mean() for x in seeds] for seeds in differences], axis=0))


def _held_out(line: Line) -> bool:
    """Whether a row was measured on held-out training images, which its seed draws."""
    return any(part.startswith("holdout") for part in RowKey.of(line).extra.split("."))


def _same_images(one: Line, other: Line) -> bool:
    """By what the images hold where both rows have it, as older ones do not; by their number."""
    digests = [x["digests"] for x in (one, other) if "digests" in x]
    return bool(one["images"] == other["images"]) and digests[1:] in ([], digests[:1])


def read_rows(path: Path, numbers: Sequence[str] = ()) -> list[Line]:
    """The lines of a file of rows, each with these numbers too.

    Raises InputError, with its number, for a line that is no such row.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as exc:  # a folder; bytes that are no UTF-8
        raise InputError(
            f"{path} cannot be read ({reason_of(exc)}): give a file that "
            "`python -m prunion.benchmarks.learning` wrote"
        ) from None
    found = []
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not _is_row(line, numbers):
            raise InputError(
                f"{path}, line {number}, is no row of the learning table: give a file that "
                "`python -m prunion.benchmarks.learning` wrote"
            )
        found.append(line)
    return found


def _is_row(line: Any, numbers: Sequence[str]) -> bool:
    """Whether it has what every row has: backbone, row and seed in a key, and its accuracies."""
    if not isinstance(line, dict) or not isinstance(key := line.get("key"), str):
        return False
    accuracy = line.get("accuracy")
    if key.count(".") < 2 or not isinstance(accuracy, dict) or not accuracy:
        return False
    figures = [*accuracy.values(), *(line.get(x) for x in ("mean", *numbers))]
    return all(isinstance(x, (int, float)) for x in figures) and _answers_all(line)


def _answers_all(line: Line) -> bool:
    """Whether a row that has its answers has one for each of its images."""
    try:
        for name, text in line.get("right", {}).items():
            unpacked(text, line["images"][name])
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return True


def packed(right: np.ndarray) -> str:
    """Booleans `[N]` as base64 of their bits, the first one highest."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """What `packed` packed: booleans `[count]`. Raises ValueError where it is not of so many."""
    return unpack_bits(base64.b64decode(text), count)


def seed_of(line: Line) -> str:
    """The third part of a line's key."""
    return RowKey.of(line).seed


def backbone_of(line: Line) -> str:
    """The first part of a line's key."""
    return RowKey.of(line).backbone


def label_of(line: Line) -> str:
    """A line's key without backbone and seed: the row, and what was set for it."""
    return RowKey.of(line).label


@click.command(cls=OneLineCommand)
@click.argument("path", type=FilePath(exists=True, path_type=Path))
@click.argument("rows", nargs=-1, required=True)
def main(path: Path, rows: tuple[str, ...]) -> None:
    """Print what tells the first row from the others, for each backbone."""
    lines = read_rows(path)
    labels = list(dict.fromkeys(label_of(line) for line in lines))
    for name in rows:
        if name not in labels:
            raise click.UsageError(f"no row {name} in {path}: choose from {', '.join(labels)}")
    first, *others = rows
    extra = first.partition(".")[2]
    others = others or [x for x in labels if x != first and x.partition(".")[2] == extra]
    head = ["row", "against", "seeds", "images", "points", "95 % interval", "verdict"]
    for backbone in dict.fromkeys(map(backbone_of, lines)):
        mine = [x for x in lines if backbone_of(x) == backbone]
        shown = [
            _row(first, name, difference)
            for name in others
            if (difference := compare(_of(mine, first), _of(mine, name)))
        ]
        if shown:
            click.echo(f"\n{backbone}:\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
            click.echo("\n".join(shown))
            held = [x for x in mine if label_of(x) in (first, *others)]
            click.echo("".join(f"\n{note}\n" for note in warm_up_notes(held)), nl=False)


def _of(lines: Sequence[Line], label: str) -> list[Line]:
    return [line for line in lines if label_of(line) == label]


def _row(first: str, other: str, difference: Difference) -> str:
    cells = [
        f"`{first}`",
        f"`{other}`",
        str(difference.seeds),
        f"{difference.images:,}",
        f"{100 * difference.mean:+.2f}",
        difference.interval,
        difference.verdict,
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
