"""What cannot be measured is refused in one line, before anything is."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.runtime.errors import InputError
from prunion.runtime.measure import bench

pytest.importorskip("onnx")


def test_what_cannot_be_made_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    for against, why in (
        ("resnet50", "give openvino, specialised, backbone, separate, .* or the path"),
        ("separate", "needs the unpruned network"),
        ("separate-pruned-total", "is made by Torch-Pruning"),
        (str(tmp_path / "no.onnx"), "does not exist"),
    ):
        with pytest.raises(InputError, match=why):
            bench(bundle_path, seconds=0.01, against=[against], fresh=False)
    with pytest.raises(InputError, match="choose another --backend"):
        bench(bundle_path, backend="openvino", against=["openvino"], fresh=False)
    for graphs, why in (
        ({"unpruned": "x.onnx"}, "unpruned is for against=backbone or separate, which is not"),
        ({"pruned": {"torch-pruning": ["x.onnx"]}}, r"pruned\['torch-pruning'\] is for against="),
    ):
        with pytest.raises(InputError, match=why):
            bench(bundle_path, seconds=0.01, fresh=False, **graphs)
    for wrong, why in (
        ({"threads": 0}, "threads is 0: give a whole number"),
        ({"seconds": float("nan")}, "seconds is nan: give a time above 0"),
        ({"seconds": "1"}, "seconds is '1': give a time above 0"),
        ({"batches": [1.5]}, "a batch size is 1.5: give a whole number"),
        ({"against": "resnet50"}, "nothing called 'resnet50' to compare with"),
    ):
        with pytest.raises(InputError, match=why):
            bench(bundle_path, **{"seconds": 0.01, "fresh": False, **wrong})
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(InputError, match="does not load"):
        bench(bundle_path, seconds=0.01, against=[str(broken)], fresh=False)
