"""What `prunion report` sets together is of one network and of the images that it says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from prunion.exporter.bundle import export_bundle
from prunion.runtime import bench, evaluate, load
from prunion.runtime.base import sha256_file, write_json
from prunion.runtime.bundle import load_manifest, read_pack, write_pack
from prunion.runtime.errors import CheckpointError, InputError
from prunion.trainer.config import load_config
from prunion.trainer.run import train_with_baseline
from tests.support.tiny_run import tiny_run

pytest.importorskip("matplotlib", reason="needs prunion[report]")

from prunion.benchmarks.report import write_report
from prunion.benchmarks.report.join import same_network
from prunion.benchmarks.report.subject import Identity, Subject
from prunion.benchmarks.report.subjects import read_subjects

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its baseline, its bundle, and evaluations of two sets of images."""
    folder = tmp_path_factory.mktemp("join")
    config = load_config(tiny_run(folder, warmup=1, ramp=1, settle=0))
    train_with_baseline(config, folder / "run")
    export_bundle(folder / "run", folder / "tiny.prunion")
    for part in ("train", "test"):
        found = evaluate(folder / "tiny.prunion", folder / "data" / "warm" / part, "warm")
        write_json(folder / f"{part}.json", found.record())
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "own"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


def both(folder: Path) -> int:
    return len(read_subjects([folder / "run", folder / "tiny.prunion"]))


def test_a_bundle_is_known_by_its_checkpoint(own: Path) -> None:
    manifest = own / "tiny.prunion" / "manifest.json"
    checkpoint = json.loads((own / "run" / "checkpoint" / "checkpoint.json").read_text("utf-8"))
    provenance = json.loads(manifest.read_text("utf-8"))["provenance"]
    assert provenance["model_sha256"] == checkpoint["model_sha256"]
    assert both(own) == 1
    edit(manifest, lambda value: value["provenance"].update(model_sha256="0" * 64))
    assert both(own) == 2


def test_an_older_bundle_is_known_by_all_that_it_tells(own: Path) -> None:
    """Where only the budget's kind, the rounding or the images' size were others, all was one."""
    manifest = own / "tiny.prunion" / "manifest.json"
    edit(manifest, lambda value: value["provenance"].pop("model_sha256"))
    assert both(own) == 1
    before = manifest.read_text("utf-8")
    for table, key, value in (
        ("budget", "kind", "macs"),
        ("budget", "round_to", 4),
        ("input", "size", [24, 24]),
    ):
        edit(manifest, lambda x: x["provenance"]["config"][table].update({key: value}))  # noqa: B023
        assert both(own) == 2
        manifest.write_text(before, "utf-8")
    edit(manifest, lambda value: value["widths"].update({"layer1.0.conv1": [64, 8]}))
    assert both(own) == 2


def test_a_bundle_of_some_domains_is_no_whole_run() -> None:
    run = Identity("a" * 64, {}, {"warm": 1.0, "cold": 1.0}, {})
    assert same_network(run, replace(run, config={"seed": 1}))
    assert not same_network(run, replace(run, accuracy={"warm": 1.0}))
    assert not same_network(run, replace(run, model=""))  # and without a configuration


def test_answers_say_of_which_images_they_are(made: Path, tmp_path: Path) -> None:
    """Those of the training images stood on the page as if of the run's test images."""
    int8 = tmp_path / "int8.json"
    shutil.copy(made / "test.json", int8)
    edit(int8, lambda value: value.update(precision="int8", images_digest="images:0"))
    older = tmp_path / "older.json"
    shutil.copy(made / "test.json", older)
    edit(older, lambda value: [value.pop(key) for key in ("data", "images_digest")])
    names = [made / x for x in ("run", "tiny.prunion", "train.json", "test.json")]
    write_report([*names, int8, older], tmp_path / "x.html", pictures=tmp_path / "pictures")
    page = (tmp_path / "x.html").read_text("utf-8")
    assert re.findall(r"<h3>Answers: ([^<]*)</h3>", page) == [
        "warm, the run&#x27;s test images",
        "cold, the run&#x27;s test images",
        "warm, fp32, the run&#x27;s training images",
        "warm, fp32, the run&#x27;s test images",
        f"warm, int8, images of {made / 'data' / 'warm' / 'test'}",
        "warm, fp32, images that its file does not name",
    ]
    (subject,) = read_subjects(names)
    record = json.loads((made / "run" / "record.json").read_text("utf-8"))
    assert subject.figures == record["domains"]
    assert len(list((tmp_path / "pictures").iterdir())) == 2 * page.count("<svg")


def test_a_file_of_the_network_that_a_bundle_was_is_refused(own: Path) -> None:
    path = own / "test.json"
    edit(path, lambda value: value.update(trunk_hash="0" * 64, bundle=str(own / "tiny.prunion")))
    with pytest.raises(InputError, match="another network than now: write it again"):
        read_subjects([own / "tiny.prunion", path])


@pytest.fixture
def twins(own: Path) -> Path:
    """Two bundles as of two runs on one frozen trunk, which differ in `cold` alone, and answers."""
    first, second = own / "tiny.prunion", own / "second.prunion"
    shutil.copytree(first, second)
    packed = second / "domains" / "cold.safetensors"
    pack = read_pack(packed)
    write_pack(packed, replace(pack, head_bias=pack.head_bias + 1))
    model = onnx.load(second / "model.onnx")
    (table,) = (x for x in model.graph.initializer if x.name == "head_bias")
    rows = onnx.numpy_helper.to_array(table).copy()
    rows[1] += 1
    table.CopyFrom(onnx.numpy_helper.from_array(rows, table.name))
    onnx.save(model, second / "model.onnx")

    def another(manifest: dict[str, Any]) -> None:
        manifest["provenance"]["model_sha256"] = "1" * 64
        manifest["files"] = {name: sha256_file(second / name) for name in manifest["files"]}

    edit(second / "manifest.json", another)
    for name in ("first", "second"):
        path = first if name == "first" else second
        value = json.loads((own / "test.json").read_text("utf-8"))
        manifest = load_manifest(path / "manifest.json")
        pack_sha256 = manifest.files["domains/cold.safetensors"]
        value |= {"domain": "cold", "bundle": str(path), "pack_sha256": pack_sha256}
        value["model_sha256"] = manifest.model_sha256
        write_json(own / f"{name}.json", value)
    return own


def of(found: Subject) -> list[str]:
    return [Path(x["bundle"]).name for x in (*found.evaluations, *found.measured)]


def test_networks_of_one_trunk_have_each_its_own_answers(twins: Path) -> None:
    """The accuracy of one stood on the page as the other's."""
    runs = [twins / "run", twins / "tiny.prunion", twins / "second.prunion"]
    files = [twins / "second.json", twins / "first.json"]
    first, second = read_subjects([*runs, *files])
    assert (of(first), of(second)) == (["tiny.prunion"], ["second.prunion"])
    with pytest.raises(InputError, match="not among what is reported: give that bundle too"):
        read_subjects([*runs[:2], files[0]])
    edit(files[0], lambda value: value.update(bundle=str(twins / "tiny.prunion")))  # with --force
    with pytest.raises(InputError, match="another network than now: write it again"):
        read_subjects([*runs[:2], files[0]])
    for path in runs[1:]:  # of before a bundle said which checkpoint it is of
        edit(path / "manifest.json", lambda value: value["provenance"].pop("model_sha256"))
    with pytest.raises(InputError, match="another network than now: write it again"):
        read_subjects([*runs[:2], files[0]])
    assert [of(x) for x in read_subjects([*runs[1:], files[1]])] == [["tiny.prunion"], []]


def test_measurements_of_one_trunk_are_known_by_the_checkpoint(twins: Path) -> None:
    value = bench(twins / "second.prunion", batches=(1,), seconds=0.01, fresh=False).to_json()
    write_json(twins / "bench.json", {**value, "bundle": "elsewhere.prunion"})
    bundles = [twins / "tiny.prunion", twins / "second.prunion"]
    assert [of(x) for x in read_subjects([*bundles, twins / "bench.json"])] == [
        [],
        ["elsewhere.prunion"],
    ]
    with pytest.raises(InputError, match="give that bundle too"):
        read_subjects([bundles[0], twins / "bench.json"])


def test_a_file_that_does_not_say_of_which_of_two_it_is_is_refused(twins: Path) -> None:
    """As an earlier prunion wrote them; of one network, however often exported, it is no riddle."""
    path = twins / "first.json"
    edit(path, lambda value: [value.pop(key) for key in ("model_sha256", "pack_sha256")])
    bundles = [twins / "tiny.prunion", twins / "second.prunion"]
    with pytest.raises(
        InputError, match=r"tiny\.prunion or .*second\.prunion, .*does not say of which: write it"
    ):
        read_subjects([*bundles, path])
    again = twins / "again.prunion"
    shutil.copytree(bundles[0], again)
    assert [of(x) for x in read_subjects([again, bundles[0], path])] == [[], ["tiny.prunion"]]
    assert [of(x) for x in read_subjects([again, path])] == [["tiny.prunion"]]


def test_answers_of_a_pack_that_came_later_are_the_networks(twins: Path, tmp_path: Path) -> None:
    later = tmp_path / "later.safetensors"
    write_pack(later, replace(read_pack(twins / "tiny.prunion/domains/warm.safetensors"), name="x"))
    data, paths = (
        twins / "data" / "warm" / "test",
        [twins / "tiny.prunion", twins / "second.prunion"],
    )
    for path in paths:
        found = evaluate(path, data, "x", packs=[later])
        assert found.model_sha256 == load_manifest(path / "manifest.json").model_sha256
        write_json(tmp_path / f"{path.name}.json", found.record())
    files = [tmp_path / f"{path.name}.json" for path in paths]
    assert [of(x) for x in read_subjects([*paths, *files])] == [[path.name] for path in paths]
    with load(paths[0]) as model:  # in the place of another it is no part of that network
        model.remove_domain("cold")
        model.add_domain(twins / "second.prunion" / "domains" / "cold.safetensors")
        found = evaluate(model, twins / "data" / "cold" / "test", "cold")
    write_json(tmp_path / "replaced.json", found.record())
    subjects = read_subjects([*paths, tmp_path / "replaced.json"])
    assert [of(x) for x in subjects] == [[], ["tiny.prunion"]], "by the pack that answered"


def test_a_baseline_of_other_images_does_not_stand_beside(own: Path, tmp_path: Path) -> None:
    (subject,) = read_subjects([own / "run"])
    assert subject.baseline and not subject.notes
    record = own / "run" / "baseline" / "record.json"
    edit(record, lambda x: x["made_by"]["domains"]["warm"]["digests"].update(test="images:0"))
    (subject,) = read_subjects([own / "run"])
    assert subject.baseline == {}
    write_report([own / "run"], tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text("utf-8")
    assert "not stand beside it: other test images of warm, as many as before." in page
    edit(record, lambda value: value.pop("made_by"))
    (subject,) = read_subjects([own / "run"])
    assert subject.baseline == {} and "it is not known which images" in subject.notes[0]


def test_a_checkpoint_that_was_copied_in_part_is_refused(own: Path) -> None:
    """It ended in a trace, and changed switches were widths that no file has."""
    folder = own / "run" / "checkpoint"
    whole = (folder / "model.safetensors").read_bytes()
    for part in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        (folder / "model.safetensors").write_bytes(part)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or altered"):
            read_subjects([own / "run"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing: copy the whole checkpoint folder"):
        read_subjects([own / "run"])
    edit(folder / "checkpoint.json", lambda value: value.update(format_version=9))
    with pytest.raises(CheckpointError, match="has format_version 9, this prunion reads 1"):
        read_subjects([own / "run"])
