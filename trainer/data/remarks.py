"""What is odd about a domain's images, in a line each: nothing that stops a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from prunion.runtime.base import listed
from prunion.runtime.images import ImageSet, plain_name

__all__ = ["remarks_between", "remarks_of"]

MOST_NAMED = 4  # classes in a remark
NO_VALUE = ("nan", "na", "n/a", "<na>", "none", "null")


def remarks_of(classes: Sequence[str], sets: Mapping[str, ImageSet | None]) -> list[str]:
    """Remarks on the names of `classes`, and on the images of `train`, `validation` and `test`."""
    test = sets["test"]
    untested = [] if test is None else _untested(classes, test)
    return [*_valueless(classes), *untested, *_repeated(sets)]


def remarks_between(
    trains: Mapping[str, ImageSet], tests: Mapping[str, ImageSet]
) -> Iterator[tuple[str, str]]:
    """(domain, remark) where its test images are training images of other domains.

    As far as the bytes of both were read.

    Args:
        trains: training images by domain.
        tests: test images of the same domains.
    """
    known = {name: x.prints for name, x in trains.items() if x.prints is not None}
    if len(known) < 2:
        return
    names = list(known)
    owners = np.repeat(np.arange(len(names)), [len(known[name]) for name in names])
    every = np.concatenate([known[name] for name in names])
    order = np.argsort(every, kind="stable")
    every, owners = every[order], owners[order]
    for place, name in enumerate(names):
        prints = tests[name].prints
        if prints is None:
            continue
        ends = [np.searchsorted(every, prints, side) for side in ("left", "right")]
        # How often each is there, and how often in the domain's own training images.
        own = np.sort(known[name])
        count = np.subtract(*[np.searchsorted(own, prints, side) for side in ("right", "left")])
        seen = np.flatnonzero(ends[1] - ends[0] > count)
        if len(seen):
            span = owners[ends[0][seen[0]] : ends[1][seen[0]]]
            other = names[int(span[span != place][0])]
            yield (
                name,
                f"{len(seen):,} of {len(prints):,} test images are training images of other "
                f"domains, such as {other}: a trunk that learns along has seen them",
            )


def _untested(classes: Sequence[str], test: ImageSet) -> list[str]:
    lacking = [repr(classes[i]) for i in np.setdiff1d(np.arange(len(classes)), test.labels)]
    if not lacking:
        return []
    told = listed(lacking, MOST_NAMED)
    return [f"no test images of {told}: the accuracy says nothing of such classes"]


def _repeated(sets: Mapping[str, ImageSet | None]) -> Iterator[str]:
    """Images that are there more than once, in one set or in two."""
    for part, images in sets.items():
        again, otherwise = (0, 0) if images is None else images.again()
        if again:
            more = _labelled(otherwise)
            yield f"{again:,} {part} images are there once more{more}{_such_as(images)}"
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


def _such_as(images: ImageSet | None) -> str:
    """Two places of one image, where anybody knows how they are called."""
    twins = images and images.twins()
    if not twins or images is None or images.place is None:
        return ""
    return f", such as {images.place(twins[0])} and {images.place(twins[1])}"


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
