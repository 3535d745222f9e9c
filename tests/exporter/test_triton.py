"""A Triton model repository: fields that Triton knows, and the bundle's own numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from prunion.exporter.triton import export_triton
from prunion.runtime import load
from prunion.runtime.bundle import open_bundle
from prunion.runtime.cli import cli
from prunion.runtime.errors import InputError, PrunionError
from tests.support.toy_bundle import CLASSES, HEIGHT, SIDE_WIDTH, make_bundle

pytestmark = pytest.mark.thorough

ort = pytest.importorskip("onnxruntime")
model_config_pb2 = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]"
)

NUMPY = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64}
NUMPY["TYPE_UINT8"] = np.uint8
DOMAINS = list(CLASSES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository") / "models"
    places = export_triton(bundle, root, each_domain=True)
    assert places == [root / name for name in ("toy", *DOMAINS)]
    return root


def config_of(folder: Path) -> Any:
    """The file as Triton reads it: what its definition does not know is an error."""
    from google.protobuf import text_format

    text = (folder / "config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def type_name(value: Any) -> str:
    return str(model_config_pb2.DataType.Name(value.data_type))


def run_as_triton(folder: Path, request: Mapping[str, np.ndarray]) -> np.ndarray:
    """What Triton does with a batch: checks it against `dims`, reshapes it, runs the graph."""
    config = config_of(folder)
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert {x.name for x in session.get_inputs()} == {x.name for x in config.input}
    assert [x.name for x in session.get_outputs()] == [x.name for x in config.output]
    feeds, count = {}, len(request["image"])
    assert count <= config.max_batch_size
    for value in config.input:
        array = request[value.name]
        assert array.dtype == NUMPY[type_name(value)]
        assert array.shape == (count, *value.dims)
        if value.HasField("reshape"):
            array = array.reshape(count, *value.reshape.shape)
        feeds[value.name] = array
    for value in session.get_inputs():
        assert not isinstance(value.shape[0], int), "Triton batches along a first axis that is free"
        assert len(value.shape) == feeds[value.name].ndim
    (logits,) = session.run(None, feeds)
    (output,) = config.output
    assert logits.shape == (count, *output.dims)
    assert type_name(output) == "TYPE_FP32"
    return logits


def test_the_mixed_graph_answers_as_the_bundle_does(bundle: Path, repository: Path) -> None:
    image = np.random.default_rng(2).standard_normal((7, 3, HEIGHT, SIDE_WIDTH), np.float32)
    rows = np.array([0, 2, 1, 1, 0, 2, 1])
    found = run_as_triton(repository / "toy", {"image": image, "domain": rows[:, None]})
    with load(bundle, "cpu", threads=1) as model:
        wanted = model.logits(image, [DOMAINS[row] for row in rows])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domains_graph_answers_as_the_bundle_does(
    bundle: Path, repository: Path, name: str
) -> None:
    image = np.random.default_rng(3).standard_normal((4, 3, HEIGHT, SIDE_WIDTH), np.float32)
    found = run_as_triton(repository / name, {"image": image})
    with load(bundle, "cpu", threads=1) as model:
        wanted = model.logits(image, name)[:, : len(CLASSES[name])]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    (output,) = config_of(repository / name).output
    labels = (repository / name / output.label_filename).read_text("utf-8").splitlines()
    assert labels == list(CLASSES[name])


def test_the_config_says_what_our_own_server_would(repository: Path) -> None:
    for name in ("toy", *DOMAINS):
        config = config_of(repository / name)
        assert (config.name, config.platform) == (name, "onnxruntime_onnx")
        batching = config.dynamic_batching
        assert (batching.priority_levels, batching.default_priority_level) == (3, 2)
        policy = batching.default_queue_policy
        assert policy.max_queue_size == 1024
        assert policy.default_timeout_microseconds == 30_000_000
        assert policy.allow_timeout_override
        told = json.loads(config.parameters["image"].string_value)
        assert told["mean"] == [0.485, 0.456, 0.406]
        assert (told["height"], told["width"]) == (HEIGHT, SIDE_WIDTH)


def test_the_order_of_domains_is_told(bundle: Path, repository: Path) -> None:
    config = config_of(repository / "toy")
    assert json.loads(config.parameters["domains"].string_value) == DOMAINS
    told = json.loads((repository / "toy" / "domains.json").read_text("utf-8"))["domains"]
    assert [(x["name"], tuple(x["classes"])) for x in told] == list(CLASSES.items())
    graph = (repository / "toy" / "1" / "model.onnx").read_bytes()
    assert graph == (bundle / "model.onnx").read_bytes(), "the very file whose hash is known"


def test_names_in_any_script_survive(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["name"] = 'toy "花" \\ 1'
    (bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(InputError, match="directory"):
        export_triton(bundle, tmp_path / "models")
    manifest["name"] = 'toy "花" 1'
    (bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (place,) = export_triton(bundle, tmp_path / "models")
    assert config_of(place).name == place.name == manifest["name"]


def test_a_domain_may_not_be_named_as_the_bundle(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    manifest["name"] = "signs"
    (bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(InputError, match="both named 'signs'"):
        export_triton(bundle, tmp_path / "models", each_domain=True)
    assert not (tmp_path / "models").exists()
    assert export_triton(bundle, tmp_path / "models") == [tmp_path / "models" / "signs"]


def test_no_repository_is_written_into_a_checkpoint(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text("{}")
    for place in (tmp_path, tmp_path / "below"):
        with pytest.raises(PrunionError, match="lies in a checkpoint"):
            export_triton(bundle, place)
    assert [x.name for x in tmp_path.iterdir()] == ["checkpoint.json"]


def test_nothing_is_replaced_unasked(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "1"
    other.mkdir(parents=True)
    (other / "model.plan").write_text("somebody's")
    (place,) = export_triton(bundle, tmp_path)
    with pytest.raises(PrunionError, match="--force"):
        export_triton(bundle, tmp_path)
    export_triton(bundle, tmp_path, force=True)
    (place / "notes.md").write_text("mine")
    with pytest.raises(PrunionError, match=r"notes\.md"):
        export_triton(bundle, tmp_path, force=True)
    (place / "notes.md").unlink()
    (place / "1" / "model.plan").write_text("somebody's")
    with pytest.raises(PrunionError, match=r"model\.plan in 1: --force replaces only"):
        export_triton(bundle, tmp_path, force=True)
    (place / "1" / "model.plan").unlink()
    written = (place / "config.pbtxt").read_text("utf-8")
    (place / "config.pbtxt").write_text(written + "instance_group { count: 2 }\n")
    with pytest.raises(PrunionError, match="that somebody has changed"):
        export_triton(bundle, tmp_path, force=True)
    told = written.splitlines()
    told[0] = told[0].partition(" SHA-256")[0]  # as earlier exports wrote it
    (place / "config.pbtxt").write_text("\n".join(told))
    export_triton(bundle, tmp_path, force=True)
    assert (place / "config.pbtxt").read_text("utf-8") == written
    (place / "config.pbtxt").write_text('name: "toy"')
    with pytest.raises(PrunionError, match="prunion wrote"):
        export_triton(bundle, tmp_path, force=True)
    assert (other / "model.plan").read_text() == "somebody's"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, arguments)])


def test_the_command_takes_a_bundle(bundle: Path, tmp_path: Path) -> None:
    done = invoke(bundle, "--triton", tmp_path / "models", "--triton-domains")
    assert done.exit_code == 0, done.output
    assert "a model for each of its 3 domains" in done.output
    assert sorted(x.name for x in (tmp_path / "models").iterdir()) == sorted(["toy", *DOMAINS])
    again = invoke(bundle, "--triton", tmp_path / "models")
    assert again.exit_code == 1
    assert "--force" in again.output
    lacking = invoke(bundle, "--triton", tmp_path / "x", "--triton-precision", "fp16")
    assert lacking.exit_code == 1
    assert "fp16" in lacking.output
    for wrong, said in (
        (["-o", tmp_path / "b.prunion"], "give --triton"),
        (["--triton", tmp_path / "x", "--fp16"], "--fp16: give the checkpoint"),
    ):
        refused = invoke(bundle, *wrong)
        assert refused.exit_code == 2
        assert said in refused.output
    assert not (tmp_path / "x").exists()
    told = invoke(bundle, "--triton", tmp_path / "models", "--force", "--json")
    assert json.loads(told.stdout) == {"models": [str(tmp_path / "models" / "toy")]}


def test_the_command_takes_a_checkpoint(tiny: Path, tmp_path: Path) -> None:
    refused = invoke(tiny, "--triton", tmp_path / "models")
    assert refused.exit_code == 2
    assert "'-o'" in refused.output
    done = invoke(
        tiny, "-o", tmp_path / "tiny.prunion", "--fp16", "--uint8",
        "--triton", tmp_path / "models", "--triton-domains",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    spec = open_bundle(tmp_path / "tiny.prunion").manifest.input
    image = np.random.default_rng(4).standard_normal((3, 3, spec.height, spec.width), np.float32)
    with load(tmp_path / "tiny.prunion", "cpu", threads=1) as model:
        for name in model.domains:
            row = np.full((3, 1), list(model.domains).index(name))
            mixed = run_as_triton(tmp_path / "models" / "tiny", {"image": image, "domain": row})
            np.testing.assert_allclose(mixed, model.logits(image, name), rtol=1e-4, atol=1e-5)
            alone = run_as_triton(tmp_path / "models" / name, {"image": image})
            np.testing.assert_allclose(alone, mixed[:, : alone.shape[1]], rtol=1e-4, atol=1e-5)
    (place,) = export_triton(tmp_path / "tiny.prunion", tmp_path / "raw", precision="fp32-uint8")
    pixels = np.random.default_rng(5).integers(0, 256, (2, spec.height, spec.width, 3), np.uint8)
    run_as_triton(place, {"image": pixels, "domain": np.zeros((2, 1), np.int64)})


@pytest.mark.parametrize(
    ("asked", "precision"),
    [
        (("--heads", "concatenated"), "fp32"),
        (("--fp16", "--fp16-image", "float16"), "fp16"),
        (("--specialise", "cold"), "fp32"),
    ],
)
def test_every_form_of_a_bundle_is_put_there(
    tiny: Path, tmp_path: Path, asked: tuple[str, ...], precision: str
) -> None:
    done = invoke(
        tiny, "-o", tmp_path / "tiny.prunion", *asked, "--triton", tmp_path / "models",
        "--triton-domains", "--triton-precision", precision,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with load(tmp_path / "tiny.prunion", "cpu", precision=precision, threads=1) as model:
        form = model.sessions.form
        image = form.noise(3)
        for row, name in enumerate(model.domains):
            request = {"image": image}
            if not form.single:
                request["domain"] = np.full((3, 1), row)
            mixed = run_as_triton(tmp_path / "models" / "tiny", request)
            wanted = model.logits(image.astype(np.float32), name)
            np.testing.assert_allclose(mixed, wanted, rtol=2e-2, atol=2e-2)
            alone = run_as_triton(tmp_path / "models" / name, {"image": image})
            np.testing.assert_allclose(alone, mixed[:, : alone.shape[1]], rtol=2e-2, atol=2e-2)
