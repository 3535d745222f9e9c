"""`evaluate` of a loaded model: what it is told beside one holds, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunion.runtime import evaluate, load
from prunion.runtime.errors import DataError, InputError

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"precision": "int8"}, "precision is 'int8', and the model was loaded with 'fp32': leave"),
        ({"backend": "openvino"}, "backend is 'openvino', and the model was loaded with 'cpu'"),
        ({"backend": "nonsense"}, "backend is 'nonsense', and"),
        ({"threads": 3}, r"threads is 3, and the model was loaded with 1: .* load\(threads=…\)"),
    ],
)
def test_another_wish_than_the_loaded_model_is_refused(
    bundle_path: Path, asked: dict[str, Any], told: str
) -> None:
    """It was dropped, and the figures were taken for those of what had been asked for."""
    with load(bundle_path, "cpu", threads=1) as model:
        with pytest.raises(InputError, match=told):
            evaluate(model, "nowhere", "flowers", **asked)
        with pytest.raises(DataError, match="nowhere"):  # what it says itself may be said again
            evaluate(model, "nowhere", "flowers", backend="cpu", precision="fp32", threads=1)


@pytest.mark.parametrize("choices", [["cpu"], ["cuda", "cpu"]])
def test_what_auto_stands_for_may_be_said(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, choices: list[str]
) -> None:
    """A model that answers on the CPU was refused as one of another backend."""
    monkeypatch.setattr("prunion.runtime.backends.onnxruntime._candidates", lambda *_: choices)
    monkeypatch.setattr("prunion.runtime.measure.evaluation.default_threads", lambda: 2)
    with load(bundle_path) as model:
        for asked in ({"backend": "cpu"}, {"backend": "auto"}, {"threads": 2}):
            with pytest.raises(DataError, match="nowhere"):
                evaluate(model, "nowhere", "flowers", **asked)  # type: ignore[arg-type]
        for asked in ({"backend": "cuda"}, {"threads": 3}):
            with pytest.raises(InputError, match="and the model was loaded with"):
                evaluate(model, "nowhere", "flowers", **asked)  # type: ignore[arg-type]
