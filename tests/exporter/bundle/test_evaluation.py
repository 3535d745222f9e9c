"""`prunion eval` counts what training counted, on the same images, to the last digit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

import prunion
from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.runtime import load
from prunion.runtime.bundle import load_manifest
from prunion.runtime.cli.main import cli
from prunion.runtime.errors import DataError, DomainError, InputError
from prunion.trainer.network import load_checkpoint


@pytest.fixture(scope="module")
def bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("eval") / "tiny.prunion"
    export_bundle(tiny, path)
    return path


@pytest.fixture
def cold(tiny: Path) -> Path:
    return tiny.parent / "data" / "cold" / "test"


def to_parquet(folder: Path, path: Path, labels: dict[str, object]) -> Path:
    files = sorted(folder.rglob("*.png"))
    table = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "label": [labels[file.parent.name] for file in files],
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_the_accuracy_is_that_of_training(tiny: Path, bundle: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    meta = load_checkpoint(tiny).meta
    for known, told in zip(
        meta["domains"], load_manifest(bundle / "manifest.json").domains, strict=True
    ):
        data = tiny.parent / "data" / told.name / "test"
        found = prunion.evaluate(bundle, data, told.name, backend=backend)
        assert found.figures.accuracy == known["accuracy"] == told.accuracy
        confusion = found.figures.confusion
        assert confusion.sum() == 8 * len(told.classes)
        assert confusion.trace() == found.figures.right


def test_a_loaded_model_and_a_batch_of_any_size_answer_alike(bundle: Path, cold: Path) -> None:
    whole = prunion.evaluate(bundle, cold, "cold")
    with load(bundle, "cpu") as model:
        for size in (1, 5):
            part = prunion.evaluate(model, cold, "cold", batch_size=size)
            assert np.array_equal(part.figures.answers.answers, whole.figures.answers.answers)
            assert part.precision == "fp32"
        assert model.predict(str(next(cold.rglob("*.png"))), "cold")  # still open


def test_parquet_with_names_gives_the_same(bundle: Path, cold: Path, tmp_path: Path) -> None:
    names = {name: name for name in ("blue", "green", "red")}
    file = to_parquet(cold, tmp_path / "test.parquet", names)
    assert (
        prunion.evaluate(bundle, file, "cold").figures.to_json()
        == prunion.evaluate(bundle, cold, "cold").figures.to_json()
    )


def test_an_unknown_class_is_refused_with_the_nearest(
    bundle: Path, cold: Path, tmp_path: Path
) -> None:
    names = {"blue": "Bleu", "green": "green", "red": "red"}
    file = to_parquet(cold, tmp_path / "test.parquet", names)
    with pytest.raises(DataError, match=r"does not know: 'Bleu' \(did you mean 'blue'"):
        prunion.evaluate(bundle, file, "cold")
    rest = prunion.evaluate(bundle, file, "cold", skip_unknown=True)
    assert rest.unknown == {"Bleu": 8}
    assert len(rest.figures.answers) == 16
    assert "left out: 8 images" in invoke(bundle, file, "-d", "cold", "--skip-unknown").output


def test_what_a_folder_holds_beside_images_is_told(
    bundle: Path, cold: Path, tmp_path: Path
) -> None:
    shutil.copytree(cold, tmp_path / "test")
    for name in ("a.png.part", "b.png.part", "notes.txt"):
        (tmp_path / "test" / "red" / name).write_text("no image", "utf-8")
    found = prunion.evaluate(bundle, tmp_path / "test", "cold")
    assert found.skipped == {"backup or unfinished download": 2, ".txt": 1}
    assert found.to_json()["skipped"] == found.skipped
    told = invoke(bundle, tmp_path / "test", "-d", "cold").output
    assert "passed over: 2 backup or unfinished download, 1 .txt" in told
    assert "skipped" not in prunion.evaluate(bundle, cold, "cold").to_json()


def test_what_has_no_label_is_refused(bundle: Path, cold: Path, tmp_path: Path) -> None:
    file = to_parquet(cold, tmp_path / "a.parquet", {"blue": -1, "green": -1, "red": -1})
    for skip in (False, True):
        with pytest.raises(DataError, match=r"no image here has a label; give labelled images$"):
            prunion.evaluate(bundle, file, "cold", skip_unknown=skip)
    file = to_parquet(cold, tmp_path / "b.parquet", {"blue": None, "green": "green", "red": "red"})
    with pytest.raises(DataError, match="has label None"):
        prunion.evaluate(bundle, file, "cold", skip_unknown=True)
    with pytest.raises(DataError, match="no class folders"):
        prunion.evaluate(bundle, cold / "red", "cold")


def test_other_mistakes_are_named(bundle: Path, cold: Path) -> None:
    with pytest.raises(InputError, match="with -d: warm, cold"):
        prunion.evaluate(bundle, cold)
    with pytest.raises(DomainError):
        prunion.evaluate(bundle, cold, "hot")
    with pytest.raises(DataError, match="does not exist"):
        prunion.evaluate(bundle, "nowhere", "cold")
    with pytest.raises(DataError, match=r"data have no image of a class|does not know"):
        prunion.evaluate(bundle, cold, "warm")


def invoke(*arguments: object) -> object:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)])


def test_the_command_prints_shares_and_writes_every_answer(
    bundle: Path, cold: Path, tmp_path: Path
) -> None:
    file = tmp_path / "eval.json"
    done = invoke(bundle, cold, "--domain", "cold", "--json", "-o", file)
    value = json.loads(done.stdout)
    assert 0 <= value["accuracy"] <= 1
    assert value["accuracy"] == value["right"] / value["images"]
    assert [row["name"] for row in value["classes"]] == ["blue", "green", "red"]
    record = json.loads(file.read_text())
    assert len(record["answers"]) == 24
    right = sum(row["truth"] == row["answer"] for row in record["answers"])
    assert right == value["right"]
    again = invoke(bundle, cold, "-d", "cold", "-o", file)
    assert again.exit_code == 1
    assert "--force" in again.output
    assert invoke(bundle, cold, "-d", "cold", "-o", file, "--force").exit_code == 0
    foreign = tmp_path / "mine.json"
    foreign.write_text("{}")
    assert invoke(bundle, cold, "-d", "cold", "-o", foreign, "--force").exit_code == 1
    assert foreign.read_text() == "{}"
    text = invoke(bundle, cold, "-d", "cold").output
    assert "accuracy" in text
    assert "top-5" not in text  # of three classes


def test_every_precision_and_a_picture_that_is_no_square(
    tiny: Path, tmp_path: Path, cold: Path
) -> None:
    export_bundle(tiny, tmp_path / "b.prunion", ExportOptions(fp16=True, uint8=True))
    (cold.parent / "wide" / "red").mkdir(parents=True)
    Image.new("RGB", (90, 30), "red").save(cold.parent / "wide" / "red" / "a.png")
    for precision in load_manifest(tmp_path / "b.prunion" / "manifest.json").graphs:
        found = prunion.evaluate(
            tmp_path / "b.prunion", cold.parent / "wide", "cold", precision=precision
        )
        assert found.precision == precision
        assert len(found.figures.answers) == 1
