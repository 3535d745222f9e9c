"""Graphs whose weights a bundle holds apart: filled within bounds, and told apart by all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from prunion.runtime.bundle import empty_weights, packed_parts
from prunion.runtime.bundle.held import HeldFile
from prunion.runtime.bundle.packed import FilledGraph
from prunion.runtime.errors import BundleError


def write_graph(folder: Path, weights: dict[str, tuple[int, ...]]) -> HeldFile:
    """A graph of weights of these shapes without values."""
    tensors = [
        onnx.TensorProto(name=name, dims=dims, data_type=onnx.TensorProto.FLOAT)
        for name, dims in weights.items()
    ]
    graph = onnx.helper.make_graph([], "g", [], [], tensors)
    path = folder / "model.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return HeldFile(path)


def empty_parts(name: str, slices: int, size: int) -> dict[str, np.ndarray]:
    """Bits that are all 0: no slice is used."""
    bits = np.zeros((slices + 7) // 8, np.uint8)
    return {f"union:{name}": bits, f"packed:{name}": np.zeros((0, size), np.float32)}


def test_a_graph_is_filled_and_its_size_is_that_of_the_filled_one(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 30, 3, 3)).astype(np.float32)
    used = np.zeros((40, 30), bool)
    used[3, 5] = used[8] = True
    weight *= used[:, :, None, None]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([], "g", [], [], [onnx.numpy_helper.from_array(weight, "w")])
    )
    empty_weights(model, parts := packed_parts("w", weight, used))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    graph = FilledGraph(HeldFile(path), parts)
    data = graph.read()
    tensor = onnx.load_from_string(data).graph.initializer[0]
    assert np.array_equal(onnx.numpy_helper.to_array(tensor), weight)
    assert len(data) * 0.99 < graph.size < len(data) * 1.01


def test_one_weight_that_would_fill_memory_is_refused(tmp_path: Path) -> None:
    file = write_graph(tmp_path, {"w": (1 << 10, 1 << 4, 181, 181)})
    with pytest.raises(BundleError, match=r"'w': no weight is \[1024, 16, 181, 181\]"):
        FilledGraph(file, empty_parts("w", 1 << 14, 181 * 181)).read()


def test_weights_that_fill_memory_together_are_refused(tmp_path: Path) -> None:
    names = [f"w{number}" for number in range(8)]
    file = write_graph(tmp_path, dict.fromkeys(names, (1 << 8, 1 << 6, 64, 64)))
    parts: dict[str, np.ndarray] = {}
    for name in names:
        parts |= empty_parts(name, 1 << 14, 64 * 64)
    with pytest.raises(BundleError, match="bytes with its weights, over"):
        FilledGraph(file, parts).read()


def test_memory_that_runs_out_is_the_bundles_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*shape: object) -> None:
        raise MemoryError

    file = write_graph(tmp_path, {"w": (4, 4, 3, 3)})
    monkeypatch.setattr("prunion.runtime.bundle.packed.unpacked_slices", no_memory)
    with pytest.raises(BundleError, match="memory"):
        FilledGraph(file, empty_parts("w", 16, 9)).read()


def test_graphs_with_other_slices_have_other_digests(tmp_path: Path) -> None:
    file = write_graph(tmp_path, {"w": (4, 4, 3, 3)})
    weight, used = np.ones((4, 4, 3, 3), np.float32), np.eye(4, dtype=bool)
    digests = {FilledGraph(file, packed_parts("w", weight, x)).sha256 for x in (used, used[::-1])}
    assert len(digests) == 2
