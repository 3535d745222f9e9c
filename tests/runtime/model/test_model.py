"""Loaded models: right numbers, right domains, refusals."""

from __future__ import annotations

import io
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from prunion.runtime.backends import (
    SessionOptions,
    make_ort_session,
    mixed_session,
    pinned_session,
    run,
)
from prunion.runtime.base import read_json, sha256_file, write_json
from prunion.runtime.bundle import read_pack, write_pack
from prunion.runtime.errors import (
    BackendError,
    BundleError,
    DomainError,
    InputError,
    PrunionError,
)
from prunion.runtime.graph import pin_domain
from prunion.runtime.model import Model, load

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model(bundle_path: Path) -> Model:
    return load(bundle_path, backend="cpu", threads=1)


def test_mixed_batch_equals_numpy(model: Model, toy: ModuleType, batch: np.ndarray) -> None:
    rows = np.array([2, 0, 1, 1, 0, 2])
    expected = toy.reference(toy.make_tables(), batch, rows)
    np.testing.assert_allclose(model.logits(batch, rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 6])
def test_pinned_equals_mixed(bundle_path: Path, batch: np.ndarray, row: int, count: int) -> None:
    image, domain = batch[:count], np.full(count, row)
    options = SessionOptions("cpu", 1)
    session = pinned_session(bundle_path / "model.onnx", row, options)
    pinned = run(session, {"image": image})
    session = mixed_session(bundle_path / "model.onnx", options)
    mixed = run(session, {"image": image, "domain": domain})
    assert pinned.shape == mixed.shape == (count, 5)
    np.testing.assert_allclose(pinned, mixed, rtol=1e-5, atol=1e-5)


def test_pinned_graph_folds_the_bank_away(bundle_path: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    import onnxruntime as ort

    options, out = ort.SessionOptions(), tmp_path / "optimised.onnx"
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    pinned = pin_domain(bundle_path / "model.onnx", 1)
    ort.InferenceSession(pinned, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(out).graph.node}
    assert not kinds & {"Gather", "Split", "Mul"}, kinds


def test_a_taller_bank_adds_a_domain(bundle_path: Path, toy: ModuleType, batch: np.ndarray) -> None:
    tables, session = toy.make_tables(), mixed_session(bundle_path / "model.onnx")
    extra = {
        name: np.concatenate([getattr(tables, name), getattr(tables, name)[1:2] * 2])
        for name in ("bank", "head_weight", "head_bias")
    }
    rows = np.array([3, 0, 1, 2, 3, 3])
    expected = toy.reference(toy.Tables(tables.weight, **extra), batch, rows)
    logits = run(session, {"image": batch, "domain": rows, **extra})
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_predictions_stay_within_the_domain(model: Model, toy: ModuleType) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 30, 40, 3), np.uint8)
    names = ["flowers", 1, "digits", np.int64(0), "signs"]
    predictions = model.predict(images, names, top_k=9)
    assert [x.domain for x in predictions] == ["flowers", "signs", "digits", "flowers", "signs"]
    for x in predictions:
        classes = toy.CLASSES[x.domain]
        assert len(x.top) == len(classes)
        assert sum(c.probability for c in x.top) == pytest.approx(1)
        assert [c.probability for c in x.top] == sorted((c[2] for c in x.top), reverse=True)
        assert (x.class_name, x.index, x.probability) == tuple(x.top[0])
        assert classes[x.index] == x.class_name


def test_a_turned_picture_is_answered_as_the_bundle_says(own_bundle: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    stream = io.BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(stream, "PNG", exif=exif)
    path = own_bundle / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    assert "orientation" not in manifest["input"]
    for orientation, same in (("ignore", False), ("exif", True)):
        manifest["input"]["orientation"] = orientation
        path.write_text(json.dumps(manifest), "utf-8")
        model = load(own_bundle, backend="cpu", threads=1)
        upright, turned = model.predict([picture, stream.getvalue()], "digits")
        assert (upright.top == turned.top) is same


def test_deep_and_long_images_are_refused_or_read_right(model: Model) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (30, 40), np.uint16)
    deep, shallow, real = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(levels).save(deep, "PNG")
    Image.fromarray((levels >> 8).astype(np.uint8)).save(shallow, "PNG")
    Image.fromarray((levels / 65535).astype(np.float32)).save(real, "TIFF")
    one, other = model.predict([deep.getvalue(), shallow.getvalue()], "digits")
    assert one == other
    for bad in (real.getvalue(), Image.new("RGB", (650, 10)), np.zeros((10, 650, 3), np.uint8)):
        with pytest.raises(InputError, match=r"without a largest one|one side over 64 times"):
            model.predict(bad, "digits")


def test_chunks_do_not_change_the_answer(model: Model) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 30, 40, 3), np.uint8)
    names = ["signs", "signs", "digits", "signs", "flowers"]
    one, many = (model.predict(images, names, batch_size=n) for n in (2, 32))
    assert [x.index for x in one] == [x.index for x in many]
    np.testing.assert_allclose(
        [x.probability for x in one], [x.probability for x in many], rtol=1e-4
    )


@pytest.mark.parametrize("value", ["3", 2.5, 0, -1, None, True, float("nan"), np.float32(2)])
@pytest.mark.parametrize("name", ["top_k", "batch_size"])
def test_a_number_that_counts_nothing_is_refused(model: Model, name: str, value: Any) -> None:
    """Of another type it ended with Python's own error."""
    image = np.zeros((1, 9, 9, 3), np.uint8)
    with pytest.raises(InputError, match=f"^{name} is .*: give a whole number, 1 or more$"):
        model.predict(image, 0, **{name: value})
    assert len(model.predict(image, 0, **{name: np.int32(2)})) == 1


@pytest.mark.parametrize("row", [-1, -3, 3, 2**40, True, 1.0, None])
def test_wrong_index_is_refused_on_the_host(model: Model, batch: np.ndarray, row: Any) -> None:
    with pytest.raises(DomainError):
        model.logits(batch, [0, 0, 0, 0, 0, row])
    with pytest.raises(DomainError):
        model.predict(np.zeros((1, 9, 9, 3), np.uint8), row)


def test_an_array_of_no_axes_is_one_domain_and_bytes_are_none(
    model: Model, batch: np.ndarray
) -> None:
    for one in (np.array(1), np.array(model.domains[1])):
        np.testing.assert_array_equal(model.logits(batch, one), model.logits(batch, 1))
    for wrong in (np.array(9), np.array(1.0), bytes(len(batch)), bytearray(len(batch))):
        with pytest.raises(DomainError):
            model.logits(batch, wrong)


def test_unknown_name_lists_what_there_is(model: Model) -> None:
    with pytest.raises(DomainError, match=r"did you mean flowers.*has flowers, signs, digits"):
        model.predict(np.zeros((1, 9, 9, 3), np.uint8), "flower")
    with pytest.raises(DomainError, match="2 domains for 1 images"):
        model.predict(np.zeros((1, 9, 9, 3), np.uint8), ["flowers", "signs"])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((6, 3, 12, 11), np.float32),
        np.zeros((6, 3, 12, 10), np.float64),
        np.full((6, 3, 12, 10), np.nan, np.float32),
        np.zeros((0, 3, 12, 10), np.float32),
        np.zeros((3, 12, 10), np.float32),
    ],
)
def test_wrong_arrays_are_refused(model: Model, array: np.ndarray) -> None:
    with pytest.raises(InputError):
        model.logits(array, [0] * len(array))


def test_pixels_that_were_not_normalised_are_told(model: Model, batch: np.ndarray) -> None:
    """Numbers of 0 … 255 are answered, and the answers are those of no image."""
    pixels = np.random.default_rng(0).integers(0, 256, batch.shape).astype(np.float32)
    among = np.concatenate([np.zeros((99, *batch.shape[1:]), np.float32), pixels[:1]])
    opposite = np.zeros_like(among)
    opposite[0, 0, 0, :2] = 1e10, -1e10
    for array in (pixels, among, opposite):  # a mean of all told only of the first
        with pytest.warns(RuntimeWarning, match=r"give \(x / 255 - mean\) / std"):
            model.logits(array, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.logits(batch, 0)
        model.logits(model.sessions.form.noise(8), 0)
        white = np.full((1, 12, 10, 3), 255, np.uint8)
        model.predict(white, model.domains[0])


def test_an_overflowing_image_is_no_answer(model: Model) -> None:
    image = np.full((1, 3, 12, 10), 3e38, np.float32)
    with pytest.raises(InputError, match="not finite"):
        model.predict(image, "signs")
    pair = np.concatenate([np.zeros_like(image), image])
    for rows in (["digits", "signs"], ["signs", "signs"]):
        with pytest.raises(InputError, match="answer for signs is not finite: check the image"):
            model.logits(pair, rows)


def test_an_image_is_not_blamed_for_a_networks_numbers(tmp_path: Path, toy: ModuleType) -> None:
    tables = toy.make_tables()
    tables.bank[1] = 1e38
    model = load(toy.make_bundle(tmp_path, tables), "cpu", threads=1)
    with pytest.raises(BundleError, match="for signs is not finite, and the image is"):
        model.predict(np.full((12, 10, 3), 9, np.uint8), "signs")
    assert model.predict(np.full((12, 10, 3), 9, np.uint8), "digits")


@pytest.mark.parametrize("rows", [[1, 1], [2, 1]])
def test_a_float16_answer_that_is_not_finite_is_no_answer(
    own_bundle: Path, rows: list[int]
) -> None:
    """The graph says float16 and overflows: no NaN leaves the model."""
    path = own_bundle / "model.onnx"
    manifest = read_json(own_bundle / "manifest.json")
    graph = onnx.load(path)
    (weight,) = (x for x in graph.graph.initializer if x.name == "conv.weight")
    huge = np.full(weight.dims, 3e38, np.float32)
    weight.CopyFrom(onnx.numpy_helper.from_array(huge, weight.name))
    onnx.save(graph, own_bundle / "model.fp16.onnx")
    manifest["graphs"]["fp16"] = "model.fp16.onnx"
    manifest["files"]["model.fp16.onnx"] = sha256_file(own_bundle / "model.fp16.onnx")
    write_json(own_bundle / "manifest.json", manifest)
    model = load(own_bundle, "cpu", threads=1, precision="fp16", slicing=False)
    image = np.ones((2, 3, 12, 10), np.float32)
    with pytest.raises(
        BackendError, match=r"fp16 graph's answer .* is not finite .*precision fp32"
    ):
        model.logits(image, rows)


def test_threads_get_their_own_answers(bundle_path: Path, batch: np.ndarray) -> None:
    model = load(bundle_path, backend="cpu", threads=1)
    jobs = [(i % 3, (i + j) % 3) for i in range(40) for j in range(2)]
    expected = {job: model.logits(batch[:2], job) for job in set(jobs)}
    fresh = load(bundle_path, backend="cpu", threads=1)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda job: fresh.logits(batch[:2], job), jobs))
    for job, answer in zip(jobs, answers, strict=True):
        np.testing.assert_allclose(answer, expected[job], rtol=1e-5)


def test_wrong_graphs_and_backends(bundle_path: Path) -> None:
    with pytest.raises(BundleError, match="does not load"):
        make_ort_session(b"not onnx")
    with pytest.raises(BundleError, match="no readable ONNX file"):
        pin_domain(b"not onnx", 0)
    pinned = pin_domain(bundle_path / "model.onnx", 0)
    with pytest.raises(BundleError, match="has no input `domain`"):
        pin_domain(pinned, 0)
    with pytest.raises(BundleError, match="expected"):
        make_ort_session(pinned, needs={"image", "domain"})
    with pytest.raises(PrunionError, match="no backend 'tpu'"):
        load(bundle_path, backend="tpu")


def test_public_names_resolve() -> None:
    import prunion.runtime

    for name in prunion.runtime.__all__:
        assert getattr(prunion.runtime, name) is not None
    with pytest.raises(AttributeError):
        _ = prunion.runtime.nothing


@pytest.mark.parametrize("tensor", ["bank", "head_weight", "head_bias"])
def test_a_pack_that_is_not_the_graphs_row_is_refused(own_bundle: Path, tensor: str) -> None:
    """Batches of one domain would be answered by the pack, mixed ones by the graph."""
    file = own_bundle / "domains" / "signs.safetensors"
    pack = read_pack(file)
    write_pack(file, replace(pack, **{tensor: getattr(pack, tensor) * np.float32(2)}))
    manifest = read_json(own_bundle / "manifest.json")
    manifest["files"]["domains/signs.safetensors"] = sha256_file(file)
    write_json(own_bundle / "manifest.json", manifest)
    with pytest.raises(BundleError, match=rf"its table {tensor} is not its packs': .*export again"):
        load(own_bundle, "cpu")
