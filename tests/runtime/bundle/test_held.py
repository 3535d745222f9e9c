"""An open bundle stays what it was: replaced, deleted or written over, it answers as before."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunion.runtime.base import new_folder, sha256_file
from prunion.runtime.bundle import foreign_to_bundle, open_bundle
from prunion.runtime.errors import BundleError, InputError, PrunionError
from prunion.runtime.model import Model, load

pytest.importorskip("onnxruntime")
posix = pytest.mark.skipif(os.name != "posix", reason="open files outlive their names on POSIX")
ROWS = [0, 1, 2]


def other_bundle(toy: ModuleType, folder: Path) -> Path:
    """A network of the same shapes, domains and classes with other numbers."""
    tables = toy.make_tables()
    weights = {"weight": -tables.weight, "head_weight": 3 * tables.head_weight}
    return Path(toy.make_bundle(folder, replace(tables, **weights)))


def put(bundle: Path, path: Path) -> None:
    with new_folder(path, force=True, wrote=foreign_to_bundle) as made:
        shutil.copytree(bundle, made, dirs_exist_ok=True)


def check(model: Model, toy: ModuleType, batch: np.ndarray) -> None:
    """Every domain alone, then mixed."""
    for row in ROWS:
        expected = toy.reference(toy.make_tables(), batch, np.full(6, row))
        np.testing.assert_allclose(
            model.logits(batch, np.full(6, row)), expected, rtol=1e-4, atol=1e-5
        )
    rows = np.array([2, 0, 1, 1, 0, 2])
    expected = toy.reference(toy.make_tables(), batch, rows)
    np.testing.assert_allclose(model.logits(batch, rows), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
@pytest.mark.parametrize("what", ["replaced", "deleted"])
def test_a_loaded_model_answers_from_what_it_opened(
    own_bundle: Path, toy: ModuleType, tmp_path: Path, batch: np.ndarray, what: str, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="pip install 'prunion[openvino]'")
    model = load(own_bundle, backend, threads=1)  # type: ignore[arg-type]
    model.logits(batch, [0] * 6)
    if what == "deleted":
        shutil.rmtree(own_bundle)
    else:
        put(other_bundle(toy, tmp_path / "other"), own_bundle)
    check(model, toy, batch)
    assert model.bundle.pack("signs").name == "signs"
    assert model.bundle.unit_table().count == toy.WIDTH


@posix
def test_a_file_that_is_written_over_is_an_error_not_an_answer(
    own_bundle: Path, toy: ModuleType, tmp_path: Path, batch: np.ndarray
) -> None:
    model = load(own_bundle, "cpu", threads=1)
    other = other_bundle(toy, tmp_path / "other")
    (own_bundle / "model.onnx").write_bytes((other / "model.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"model\.onnx was written over while it was in use"):
        model.logits(batch, [0] * 6)


@posix
def test_opening_a_bundle_while_it_is_replaced_never_fails(
    own_bundle: Path, toy: ModuleType, tmp_path: Path
) -> None:
    """In another process, as it is: a thread of this one would wait for it too often."""
    other = other_bundle(toy, tmp_path / "other")
    copy = tmp_path / "copy"
    shutil.copytree(own_bundle, copy)
    code = (
        "import sys; from pathlib import Path; from prunion.runtime.bundle import open_bundle\n"
        "count = 0; go = Path(sys.argv[2]); print(flush=True)\n"
        "while not go.exists():\n"
        "    bundle = open_bundle(sys.argv[1]); bundle.pack('signs'); bundle.unit_table()\n"
        "    bundle.held_graph().read(); bundle.close(); count += 1\n"
        "print(count)\n"
    )
    stop = tmp_path / "stop"
    command = [sys.executable, "-c", code, str(own_bundle), str(stop)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()  # it begins
        for _ in range(40):
            put(other, own_bundle)
            put(copy, own_bundle)
        stop.touch()
        out, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors.decode()
    assert int(out) > 20


def open_in(folder: Path) -> int:
    """How many files of a folder this process has open; other tests' may close at any time."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return sum(os.path.realpath(link).startswith(str(folder.resolve())) for link in links)


@posix
def test_more_packs_than_files_may_be_open(own_bundle: Path) -> None:
    tells = Path("/proc/self/fd").is_dir()
    bundles = [open_bundle(own_bundle) for _ in range(5)]
    if tells:
        assert open_in(own_bundle) == 5, "a graph each, no pack"
    for bundle in bundles:
        bundle.close()
        bundle.close()
    if tells:
        assert open_in(own_bundle) == 0
    with pytest.raises(BundleError, match="is closed"):
        bundles[0].held_graph().read()


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin"])
def test_weights_in_a_file_of_their_own_are_refused(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    """No hash covers it, and a session made of bytes would look for it in the working folder."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(own_bundle / "model.onnx")
    tensor = model.graph.initializer[0]
    (tmp_path / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (own_bundle / "model.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((own_bundle / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = sha256_file(own_bundle / "model.onnx")
    (own_bundle / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="in a file beside it"):
        load(own_bundle)


def test_a_model_is_closed(own_bundle: Path, batch: np.ndarray) -> None:
    with load(own_bundle, "cpu", threads=1) as model:
        model.logits(batch, [0, 1, 2, 0, 1, 2])
    for rows in ([0] * 6, [0, 1, 2, 0, 1, 2]):
        with pytest.raises(InputError, match="the model is closed: load its bundle again"):
            model.logits(batch, rows)
    model.close()


def test_a_request_that_runs_finishes_although_the_model_is_closed(
    own_bundle: Path, batch: np.ndarray
) -> None:
    model = load(own_bundle, "cpu", threads=1)
    expected, broken = model.logits(batch, [0] * 6), []

    def ask() -> None:
        try:
            while True:
                np.testing.assert_allclose(model.logits(batch, [0] * 6), expected, rtol=1e-5)
        except InputError as exc:
            broken.append(str(exc))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    model.close()
    for thread in threads:
        thread.join()
    assert broken == ["the model is closed: load its bundle again"] * 4


def test_a_model_is_not_pickled_and_a_bundle_is_opened_anew(own_bundle: Path) -> None:
    with load(own_bundle, "cpu") as model:
        with pytest.raises(PrunionError, match=r"cannot be pickled .* load it there") as caught:
            pickle.dumps(model)
        assert "\n" not in str(caught.value)
        told = pickle.dumps(model.bundle)
    assert pickle.loads(told) == open_bundle(own_bundle)
    manifest = own_bundle / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"toy"', '"other"'), "utf-8")
    with pytest.raises(BundleError, match="holds another bundle by now"):
        pickle.loads(told)


def test_only_a_bundle_may_be_replaced_by_one(own_bundle: Path, tmp_path: Path) -> None:
    assert foreign_to_bundle(own_bundle) == ""
    (own_bundle / "domains" / "notes.txt").write_text("x")
    assert foreign_to_bundle(own_bundle) == "holds notes.txt in domains"
    (own_bundle / "my.engine").write_text("x")
    assert foreign_to_bundle(own_bundle) == "holds my.engine"
    (own_bundle / "manifest.json").write_text("{}")
    assert "is no bundle" in foreign_to_bundle(own_bundle)
    (tmp_path / "empty").mkdir()
    assert foreign_to_bundle(tmp_path / "empty") == ""
    assert foreign_to_bundle(own_bundle / "model.onnx") == "is a file"
