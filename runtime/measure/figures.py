"""What is counted of a classifier's answers: accuracy, recall, confusion, calibration.

Training's own figures and those of `prunion eval` are computed here, by the same lines.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunion.runtime.errors import InputError
from prunion.runtime.images import ImageSet

__all__ = ["Answers", "Figures", "mistakes"]

BINS = 15  # of the confidence, as in Guo et al.
MOST_MISTAKES, MISTAKE_SIDE = 8, 96  # images that are shown, pixels of their longer side


@dataclass(frozen=True, eq=False)
class Answers:
    """What was answered for N images of one domain.

    Attributes:
        labels, answers: places among the domain's classes, int64 `[N]`.
        confidences: the probability that each answer was given, float64 `[N]`.
        ranks: how many classes come before the right one, int64 `[N]`: the more probable, and of
            equals those before it, as the first of equals is the answer.
    """

    labels: np.ndarray
    answers: np.ndarray
    confidences: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, labels: np.ndarray, *, logits: bool = True) -> Answers:
        """From logits `[N, C]`, or probabilities where `logits` is False, and labels `[N]`.

        Raises InputError if they are not finite.
        """
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            raise InputError("the network's answer is not finite: check the image and the weights")
        answers, rows = values.argmax(1), np.arange(len(values))
        own, places = values[rows, labels][:, None], np.arange(values.shape[1])
        ranks = ((values > own) | ((values == own) & (places < labels[:, None]))).sum(1)
        if logits:
            weights = np.exp(values - values.max(1, keepdims=True))
            values = weights / weights.sum(1, keepdims=True)
        return cls(labels.astype(np.int64), answers, values[rows, answers], ranks)

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Several batches as one; of no batch the answers for no image."""
        whole = np.zeros(0, np.int64)
        parts = parts or [cls(whole, whole, np.zeros(0), whole)]
        columns = zip(*((p.labels, p.answers, p.confidences, p.ranks) for p in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Figures:
    """The figures of one domain; `classes` are its names."""

    domain: str
    classes: tuple[str, ...]
    answers: Answers

    @property
    def right(self) -> int:
        """How many answers were right."""
        return int((self.answers.answers == self.answers.labels).sum())

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 … 1."""
        return self.right / len(self.answers)

    @property
    def top5(self) -> float:
        """Share of images whose class is among the five most probable, 0 … 1."""
        return int((self.answers.ranks < 5).sum()) / len(self.answers)

    @property
    def confusion(self) -> np.ndarray:
        """How many images of class i were answered with class j, int64 `[C, C]`."""
        table = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(table, (self.answers.labels, self.answers.answers), 1)
        return table

    def calibration(self) -> list[dict[str, float]]:
        """Answers by confidence in 15 bins of equal width; bins without answers are left out."""
        bins = np.clip(np.ceil(self.answers.confidences * BINS).astype(int) - 1, 0, BINS - 1)
        right = self.answers.answers == self.answers.labels
        return [
            {
                "images": int(own.sum()),
                "accuracy": float(right[own].mean()),
                "confidence": float(self.answers.confidences[own].mean()),
            }
            for own in (bins == number for number in range(BINS))
            if own.any()
        ]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, Σ over bins of n/N · |accuracy − confidence|, 0 … 1.

        Eq. 3 of Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks",
        arXiv:1706.04599.
        """
        gaps = (b["images"] * abs(b["accuracy"] - b["confidence"]) for b in self.calibration())
        return sum(gaps) / len(self.answers)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, shares in 0 … 1; of the confusion matrix what is not zero."""
        confusion = self.confusion
        images, given, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
        return {
            "domain": self.domain,
            "images": len(self.answers),
            "right": self.right,
            "accuracy": self.accuracy,
            "top5": self.top5,
            "calibration_error": self.calibration_error,
            "classes": [
                {
                    "name": name,
                    "images": int(images[i]),
                    "recall": int(right[i]) / int(images[i]) if images[i] else None,
                    "precision": int(right[i]) / int(given[i]) if given[i] else None,
                }
                for i, name in enumerate(self.classes)
            ],
            "confusion": [
                [int(i), int(j), int(confusion[i, j])] for i, j in np.argwhere(confusion)
            ],
            "calibration": self.calibration(),
        }


def mistakes(figures: Figures, images: ImageSet, most: int = MOST_MISTAKES) -> list[dict[str, Any]]:
    """The wrong answers that were given most surely, each with a small picture as a data URI."""
    answers = figures.answers
    wrong = np.flatnonzero(answers.answers != answers.labels)
    wrong = wrong[np.argsort(-answers.confidences[wrong], kind="stable")][:most]
    return [
        {
            "image": int(index),
            "truth": figures.classes[answers.labels[index]],
            "answer": figures.classes[answers.answers[index]],
            "confidence": float(answers.confidences[index]),
            "picture": _picture(images, int(index)),
        }
        for index in wrong
    ]


def _picture(images: ImageSet, index: int) -> str:
    # A copy: an image that is in memory is its owner's, and `thumbnail` shrinks it in place.
    image, stream = images.image(index).copy(), io.BytesIO()
    image.thumbnail((MISTAKE_SIDE, MISTAKE_SIDE))
    image.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
