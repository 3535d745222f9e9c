"""The figures of `prunion eval`, against small cases counted by hand."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import InputError
from prunion.runtime.images import ImageSet
from prunion.runtime.measure import Answers, Figures, mistakes

CLASSES = tuple("abcdefg")


def figures(probabilities: np.ndarray, labels: list[int]) -> Figures:
    answers = Answers.of(np.log(probabilities), np.array(labels))
    return Figures("d", CLASSES[: probabilities.shape[1]], answers)


def test_confusion_recall_and_precision() -> None:
    rows = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
    found = figures(rows, [0, 0, 1, 1])
    assert found.confusion.tolist() == [[2, 0], [1, 1]]
    value = found.to_json()
    assert value["accuracy"] == 0.75
    assert [row["recall"] for row in value["classes"]] == [1.0, 0.5]
    assert [row["precision"] for row in value["classes"]] == [2 / 3, 1.0]
    assert value["confusion"] == [[0, 0, 2], [1, 0, 1], [1, 1, 1]]


def test_the_calibration_error_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.ones(4), 500)
    labels = rng.integers(0, 4, 500)
    found = figures(rows, labels.tolist())
    confidence, right, expected = rows.max(1), rows.argmax(1) == labels, 0.0
    for low in np.arange(15) / 15:
        own = (confidence > low) & (confidence <= low + 1 / 15 + 1e-12)
        if own.any():
            expected += own.mean() * abs(right[own].mean() - confidence[own].mean())
    assert found.calibration_error == pytest.approx(expected)
    sure = Answers.of(np.array([[1.0, 0.0]] * 3), np.zeros(3, int), logits=False)
    assert Figures("d", CLASSES[:2], sure).calibration_error == 0


def test_top_5_counts_what_is_more_probable() -> None:
    row = np.array([[0.3, 0.2, 0.15, 0.13, 0.12, 0.07, 0.03]])
    for label in range(7):
        assert figures(row, [label]).top5 == float(label < 5)


def test_no_batches_are_answers_for_no_image() -> None:
    nothing = Answers.joined([])
    assert len(nothing) == 0 and nothing.answers.dtype == nothing.labels.dtype == np.int64


def test_equal_logits_are_answered_with_the_first() -> None:
    answers = Answers.of(np.zeros((2, 3), np.float32), np.array([0, 2]))
    assert answers.answers.tolist() == [0, 0]
    assert answers.ranks.tolist() == [0, 2]


def test_a_network_that_holds_all_classes_equal_knows_none() -> None:
    """Its top-5 was 100 %. INT8 gives many classes one logit."""
    labels = np.arange(10)
    same = Answers.of(np.zeros((10, 10), np.float32), labels)
    assert same.ranks.tolist() == labels.tolist()
    assert Figures("d", tuple("abcdefghij"), same).top5 == 0.5
    far = Answers.of(np.array([[900.0, -2.0, 0.0, -1.0]]), np.array([1]))
    assert far.ranks.tolist() == [3], "by the logits: as probabilities all but one are zero"


def test_probabilities_are_taken_as_they_are() -> None:
    rows = np.array([[0.5, 0.3, 0.2]], np.float32)
    assert Answers.of(rows, np.array([1]), logits=False).confidences.tolist() == [0.5]


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        Answers.of(np.array([[np.nan, 0.0]]), np.array([0]))


def test_a_picture_of_a_mistake_is_a_copy() -> None:
    """A program's own images were shrunk for good, those of the surest wrong answers."""
    own = [Image.new("RGB", (400, 200), "red") for _ in range(3)]
    images = ImageSet(np.zeros(3, np.int64), lambda index: own[index])
    mistakes(figures(np.array([[0.4, 0.6], [0.1, 0.9], [0.9, 0.1]]), [0, 0, 0]), images)
    assert [image.size for image in own] == [(400, 200)] * 3


def test_mistakes_are_the_surest_and_small() -> None:
    rows = np.array([[0.4, 0.6], [0.1, 0.9], [0.9, 0.1]])
    images = ImageSet(np.zeros(3, np.int64), lambda index: Image.new("RGB", (400, 200), "red"))
    found = mistakes(figures(rows, [0, 0, 0]), images)
    assert [m["image"] for m in found] == [1, 0]
    assert found[0]["truth"] == "a"
    assert found[0]["answer"] == "b"
    kind, data = found[0]["picture"].split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (96, 48)
