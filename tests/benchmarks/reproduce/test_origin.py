"""No line, run, trunk or answer is taken for one that was made of something else."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from prunion.benchmarks.reproduce import rows as rows_module
from tests.benchmarks.reproduce.archives.small import coloured, write_decathlon
from tests.benchmarks.reproduce.command import lines, run

pytestmark = pytest.mark.thorough

FEW = ("--epochs", "1", "--method", "feature")


def trunk(data: Path, place: Path, bias: tuple[float, float]) -> Path:
    """The trunk that was pretrained, with a head that always gives the same answer."""
    with safe_open(data.parent / "out/sources/wrn28_4-e1-px16.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = file.metadata()
    place.parent.mkdir()
    save_file({**tensors, "domain_head.bias": torch.tensor(bias)}, place, facts)
    return place


def source_answers(data: Path, line: dict[str, Any]) -> set[int]:
    """The categories that a row's submission gives ImageNet's images."""
    place = data.parent / "out" / "submissions" / line["submission"]
    given = json.loads(place.read_text("utf-8"))
    return {x["category_id"] for x in given if x["image_id"] // 10_000_000 == 6}


def unpacked(data: Path) -> Path:
    """The kit unpacked, so that it can be changed; the folder of annotations."""
    kit = data / "decathlon-1.0-devkit.tar.gz"
    with tarfile.open(kit) as tar:
        tar.extractall(data, filter="data")
    kit.unlink()
    return data / "decathlon-1.0" / "annotations"


def change(file: Path, **keys: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **keys}), "utf-8")


def test_another_trunk_of_the_same_name_gives_its_own_answers(data: Path) -> None:
    assert run(data, *FEW)[0] == 0
    first = trunk(data, data.parent / "a" / "t.safetensors", (100.0, -100.0))
    second = trunk(data, data.parent / "b" / "t.safetensors", (-100.0, 100.0))
    for file, method in ((first, "norms"), (second, "piggyback")):
        code, text = run(data, "--epochs", "1", "--method", method, "--weights", f"wrn28_4={file}")
        assert code == 0, text
    assert [source_answers(data, x) for x in lines(data)[1:3]] == [{60000002}, {60000001}]
    table = (data.parent / "out" / "table.md").read_text("utf-8")
    assert "The rows start from 3 trunks." in table


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--source-epochs", "6"), "a trunk of 6 epochs of pretraining, which is not there"),
        (("--source-accuracy", "wrn28_4=76"), "--source-accuracy 0 and is asked for with 76"),
        (("--weights", "wrn28_4={other}"), "is asked for with a trunk that was given, SHA-256"),
        (("--weights", "wrn28_4={same}"), ""),
    ],
)
def test_a_line_is_of_what_is_asked_for(data: Path, options: tuple[str, str], said: str) -> None:
    assert run(data, *FEW)[0] == 0
    made, (before,) = data.parent / "out/sources/wrn28_4-e1-px16.safetensors", lines(data)
    other = trunk(data, data.parent / "a" / "t.safetensors", (1.0, 0.0))
    same = shutil.copy(made, data.parent / "same.safetensors")
    code, text = run(data, *FEW, options[0], options[1].format(other=other, same=same))
    assert lines(data) == [before]
    if not said:
        assert code == 0 and "error" not in text
        return
    error = text.strip().splitlines()[-1]
    assert code == 1 and f"row {before['key']} was made with" in error and said in error
    assert "remove its line from" in error


def without_last_image(file: Path) -> dict[str, Any]:
    """Leave the last image out of an annotation file; what it held before."""
    value: dict[str, Any] = json.loads(file.read_text("utf-8"))
    gone = value["images"][-1]["id"]
    kept = [x for x in value["annotations"] if x["image_id"] != gone]
    change(file, images=value["images"][:-1], annotations=kept)
    return value


def test_a_line_of_other_images_is_refused(data: Path) -> None:
    file = unpacked(data) / "gtsrb_val.json"
    assert run(data, *FEW)[0] == 0
    value = without_last_image(file)
    code, text = run(data, *FEW)
    assert code == 1 and "was made with images of gtsrb: SHA-256" in text
    # Labels of test images that are published later are of no row that did without them.
    change(file, **value)
    test = json.loads((stripped := file.with_name("gtsrb_test_stripped.json")).read_text("utf-8"))
    category = test["categories"][0]["id"]
    given = [{"image_id": x["id"], "category_id": category} for x in test["images"]]
    shutil.copy(stripped, labels := file.with_name("gtsrb_test.json"))
    change(labels, annotations=given)
    assert run(data, *FEW)[0] == 0


def test_a_trunk_of_other_images_is_refused(data: Path) -> None:
    file = unpacked(data) / "imagenet12_val.json"
    assert run(data, *FEW)[0] == 0
    without_last_image(file)
    code, text = run(data, "--epochs", "1", "--method", "norms")
    assert code == 1 and "was pretrained on other images of imagenet12" in text


def test_a_line_of_packnet_from_before_its_own_passes_is_refused(data: Path) -> None:
    asked = ("--epochs", "1", "--method", "packnet-reversed")
    assert run(data, *asked)[0] == 0
    (line,) = lines(data)
    assert line.pop("order") == "task-passes" and "imagenet12" not in line["accuracy"]
    path = data.parent / "out" / "rows.jsonl"
    path.write_text(json.dumps(line) + "\n", "utf-8")
    code, text = run(data, *asked)
    assert code == 1 and "gave every domain as many steps and counted imagenet12" in text


def test_lines_of_earlier_versions_are_taken_with_a_note(data: Path) -> None:
    assert run(data, *FEW)[0] == 0
    (line,) = lines(data)
    for key in ("made_of", "benchmark"):
        del line[key]
    (data.parent / "out" / "rows.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    code, text = run(data, *FEW, "--source-epochs", "6")
    assert code == 0 and "an earlier version, which did not say of what" in text
    assert lines(data) == [line]


def test_a_run_that_was_begun_with_another_trunk_is_not_finished(data: Path) -> None:
    assert run(data, *FEW)[0] == 0
    out = data.parent / "out"
    made = out / "sources" / "wrn28_4-e1-px16.safetensors"
    other = trunk(data, data.parent / "a" / "t.safetensors", (1.0, 0.0))
    (out / "rows.jsonl").unlink()
    shutil.copy(other, made)
    code, text = run(data, *FEW)
    assert code == 1 and "the run in" in text and "and is asked for with a trunk" in text
    shutil.rmtree(next((out / "runs").glob("*feature*/")))
    assert run(data, *FEW)[0] == 0


def test_another_benchmarks_lines_are_refused(data: Path) -> None:
    out = data.parent / "out"
    out.mkdir()
    line = {"key": "mobilenet_v2-norms-seed0", "accuracy": {}}  # of an earlier version
    (out / "rows.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    code, text = run(data, *FEW)
    assert code == 1 and "mobilenet_v2-norms-seed0 of imagenet-to-sketch, and decathlon" in text


def test_other_archives_of_the_same_names_are_not_taken_for_those_unpacked(data: Path) -> None:
    assert run(data, *FEW)[0] == 0
    shutil.rmtree(data)
    parts = {part: coloured(["b", "a"], 4, 7) for part in ("train", "val", "test")}
    write_decathlon(data, dict.fromkeys(("imagenet12", "gtsrb"), parts))
    for method in ("feature", "norms"):
        code, text = run(data, "--epochs", "1", "--method", method)
        assert code == 1 and "was unpacked from another decathlon-1.0-devkit.tar.gz" in text


def test_what_is_asked_for_twice_is_run_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [("--seed", "1"), ("--network", "wrn28_4"), ("--method", "feature")]
    code, text = run(data, "--epochs", "1", *(x for pair in twice for x in pair * 2))
    assert code == 0, text
    assert [x["key"] for x in lines(data)] == ["wrn28_4-feature-seed1-e1-px16"]
    monkeypatch.setattr(rows_module, "_run_row", None)
    assert run(data, "--epochs", "1", *(x for pair in twice for x in pair))[0] == 0
    code, text = run(data, *FEW, "--weights", f"wrn28_4={__file__}", "--weights", "wrn28_4=/etc/x")
    assert code == 2


def test_a_domain_without_unlabelled_images_is_left_out_of_the_submission(data: Path) -> None:
    change(unpacked(data) / "vgg-flowers_test_stripped.json", images=[])
    code, text = run(data, *FEW)
    assert code == 0, text
    assert "vgg-flowers: no unlabelled test images, so no submission has it" in text
    (line,) = lines(data)
    assert line["submitted"] == 2 * 6 + 2 * 6 and "vgg-flowers" in line["accuracy"]
