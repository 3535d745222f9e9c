"""What is odd about a domain's images, in a line each: nothing that stops a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from prunion.runtime.images import ImageSet, plain_name

__all__ = ["remarks_of"]

NO_VALUE = ("nan", "na", "n/a", "<na>", "none", "null")


def remarks_of(classes: Sequence[str], sets: Mapping[str, ImageSet | None]) -> list[str]:
    """Remarks on the names of `classes`, and on the images of `train`, `validation` and `test`."""
    test = sets["test"]
    untested = [] if test is None else _untested(classes, test)
    return [*_valueless(classes), *untested, *_repeated(sets)]


def _untested(classes: Sequence[str], test: ImageSet) -> list[str]:
    lacking = [classes[i] for i in np.setdiff1d(np.arange(len(classes)), test.labels)]
    if not lacking:
        return []
    more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
    named = ", ".join(map(repr, lacking[:4]))
    return [f"no test images of {named}{more}: the accuracy says nothing of such classes"]


def _repeated(sets: Mapping[str, ImageSet | None]) -> Iterator[str]:
    """Images that are there more than once, in one set or in two."""
    for part, images in sets.items():
        again, otherwise = (0, 0) if images is None else images.again()
        if again:
            yield f"{again:,} {part} images are there once more{_labelled(otherwise)}"
    for part, beside, so in (
        ("validation", "train", "the accuracy says less of new ones"),
        ("test", "train", "the accuracy says less of new ones"),
        ("validation", "test", "what is chosen by the ones is chosen by the others"),
    ):
        one, other = sets[part], sets[beside]
        if one and other and (both := one.also_in(other))[0]:
            name = "training" if beside == "train" else beside
            yield (
                f"{both[0]:,} of {len(one):,} {part} images are {name} images too"
                f"{_labelled(both[1])}: {so}"
            )


def _labelled(otherwise: int) -> str:
    return f", {otherwise:,} of them with another label" if otherwise else ""


def _valueless(classes: Sequence[str]) -> list[str]:
    """Classes that are called as programs write that there is no value."""
    return [
        f"a class is called {name!r}, as tables write what has no value: see whether its images "
        "are labelled"
        for name in classes
        if plain_name(name) in NO_VALUE
    ]
