"""An indexed set of labelled images, and what tells it from other sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

__all__ = ["ImageSet", "digest_of", "same_images", "set_digest"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images: `labels` is int64 `[N]`, `image(i)` decodes the i-th to RGB.

    Attributes:
        digest: tells the set from others, as far as opening it has seen them: `set_digest`.
        prints: int64 `[N]`, of each image's bytes; None where nobody has read them.
        marks: int64 `[N]`, equal where two are the same image as far as can be told without their
            bytes; None where `prints` tell, or nobody knows.
        place: how messages name the i-th image; None where nobody knows.
    """

    labels: np.ndarray
    read: Callable[[int], Image.Image]
    digest: str = ""
    prints: np.ndarray | None = None
    marks: np.ndarray | None = None
    place: Callable[[int], str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """The image at `index` as PIL RGB. Raises DataError, naming it, if it cannot be decoded."""
        return self.read(index)

    def subset(self, indices: np.ndarray) -> ImageSet:
        """The images at `indices`, in that order."""
        prints, marks = (None if x is None else x[indices] for x in (self.prints, self.marks))
        labels, kind = self.labels[indices], self.digest.partition(":")[0]
        place = self.place
        return ImageSet(
            labels,
            lambda index: self.read(int(indices[index])),
            f"{kind}:{digest_of([self.digest, indices.tobytes().hex()])}"
            if prints is None
            else set_digest(labels, prints),
            prints,
            marks,
            place and (lambda index: place(int(indices[index]))),
        )

    def relabelled(self, labels: np.ndarray) -> ImageSet:
        """The same images with other labels, int64 `[N]`; they count the same classes."""
        digest = self.digest if self.prints is None else set_digest(labels, self.prints)
        return replace(self, labels=labels, digest=digest)

    @property
    def same(self) -> np.ndarray | None:
        """int64 `[N]`, equal for the same image; None where nobody knows."""
        return self.marks if self.prints is None else self.prints

    def again(self) -> tuple[int, int]:
        """How many images are in it once more, and how many of those with another label."""
        same = self.same
        if same is None:
            return 0, 0
        _, place = np.unique(same, return_inverse=True)
        pairs = np.unique(np.stack([place.reshape(-1), self.labels]), axis=1)
        images = len(np.unique(place))
        return len(self) - images, pairs.shape[1] - images

    def twins(self) -> tuple[int, int] | None:
        """Two places of one image, the first of them with different labels if any are."""
        if self.same is None:
            return None
        order = np.argsort(self.same, kind="stable")
        first, second = order[:-1], order[1:]
        there = self.same[first] == self.same[second]
        apart = there & (self.labels[first] != self.labels[second])
        found = np.flatnonzero(apart if apart.any() else there)
        return (int(first[found[0]]), int(second[found[0]])) if len(found) else None

    def also_in(self, other: ImageSet) -> tuple[int, int]:
        """How many of its images are another set's too, and how many of those with another label.

        As far as anybody knows.
        """
        for own, others in ((self.prints, other.prints), (self.marks, other.marks)):
            if own is not None and others is not None:
                there = {*zip(others.tolist(), other.labels.tolist(), strict=True)}
                both = np.flatnonzero(np.isin(own, others))
                pairs = zip(own[both].tolist(), self.labels[both].tolist(), strict=True)
                return len(both), sum(pair not in there for pair in pairs)
        return 0, 0


def set_digest(labels: np.ndarray, prints: np.ndarray | None) -> str:
    """What tells a set of images from others: what was seen of them, a colon, hex SHA-256.

    Args:
        labels: int64 `[N]`.
        prints: int64 `[N]`, of every image's bytes (`images`); None where they were not read:
            labels tell all then (`labels`).

    Of an earlier prunion is `sample`, of the bytes of some images, and a digest without a colon, of
    names and sizes.
    """
    kind = "labels" if prints is None else "images"
    sha = hashlib.sha256()
    for values in (labels, prints):
        if values is not None:
            sha.update(np.asarray(values, "<i8").tobytes())
    return f"{kind}:{sha.hexdigest()}"


def same_images(one: str, other: str) -> bool | None:
    """Whether two digests are of the same images; None where they do not tell.

    They do not where one is missing, of another kind, or an earlier prunion's.
    """
    kind, other_kind = (digest.rpartition(":")[0] for digest in (one, other))
    return one == other if kind and kind == other_kind else None


def digest_of(parts: Iterable[object]) -> str:
    """Hex SHA-256 of the parts' texts, line by line."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(f"{part}\n".encode())
    return sha.hexdigest()
