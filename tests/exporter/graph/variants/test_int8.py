"""INT8: calibrated on every domain, held to its accuracy."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from prunion.exporter.bundle import export_bundle
from prunion.exporter.graph import (
    lost,
    make_probe,
    onnx_graph,
    open_graph,
    relative_errors,
    run_graph,
)
from prunion.exporter.graph.variants.int8 import (
    calibration_batches,
    refuse,
)
from prunion.exporter.graph.variants.int8_ranges import equalise
from prunion.exporter.options import ExportOptions
from prunion.exporter.slim import slim_network
from prunion.exporter.verify import verify_bundle
from prunion.runtime.base import sha256_file
from prunion.runtime.bundle import load_manifest
from prunion.runtime.errors import ConfigError, VerificationError
from prunion.trainer.data import open_domain
from prunion.trainer.network import load_checkpoint
from tests.exporter.slim.test_network import switch_off
from tests.support.networks.small import Depthwise, domain_net


@pytest.fixture(scope="module")
def bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("int8") / "tiny.prunion"
    options = ExportOptions(int8=True, int8_max_drop=20, int8_images=4, uint8=True)
    export_bundle(tiny, output, options)
    return output


def test_the_graph_is_quantised_and_verifies(bundle: Path) -> None:
    graph = onnx.load(bundle / "model.int8.onnx").graph
    weights = [i for i in graph.initializer if i.name == "layer1.0.conv1.weight_quantized"]
    assert [w.data_type for w in weights] == [onnx.TensorProto.INT8]
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    assert values["layer1.0.conv1.weight_scale"].shape == (weights[0].dims[0],)  # per channel
    zeros = [v for name, v in values.items() if name.endswith("_zero_point")]
    assert zeros and not any(zero.any() for zero in zeros)
    assert not verify_bundle(bundle).problems


def test_tables_of_more_domains_and_classes_still_fit_it(bundle: Path) -> None:
    plain, int8 = (onnx.load(bundle / name).graph for name in ("model.onnx", "model.int8.onnx"))
    assert list(int8.input) == list(plain.input)
    assert list(int8.output) == list(plain.output)


def test_exporting_is_quiet_and_loggers_say_as_much_as_before(
    exporting_anew: None,
    tiny: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.onnx's and the root's; ONNX Runtime's cannot be read, so it is not set at all."""
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", pytest.fail)
    levels = {"": logging.INFO, "torch.onnx": logging.DEBUG}
    for name, level in levels.items():
        monkeypatch.setattr(logging.getLogger(name), "level", level)
    options = ExportOptions(int8=True, int8_max_drop=20, int8_images=4)
    export_bundle(tiny, tmp_path / "tiny.prunion", options)
    assert {name: logging.getLogger(name).level for name in levels} == levels
    assert "appears in graph inputs" not in capfd.readouterr().err


def test_accuracy_before_and_after_is_reported(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    facts = manifest["verified"]["variants"]["int8"]
    assert facts["accuracy"].keys() == {"warm", "cold"}
    assert facts["test_images"] == {"warm": 16, "cold": 24}
    assert load_manifest(bundle / "manifest.json").to_json() == manifest
    for before, after in facts["accuracy"].values():
        assert before - after <= 0.2
    for domain in manifest["domains"]:  # fp32 in ONNX Runtime answers as training did
        assert facts["accuracy"][domain["name"]][0] == pytest.approx(domain["accuracy"])


def test_tensorrt_parses_it(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'prunion[tensorrt-rtx]'")
    from tests.support.parsed import check_parses

    check_parses(bundle / "model.int8.onnx")
    check_parses(bundle / "model.int8-uint8.onnx")


def test_a_domain_that_loses_too_much_is_named() -> None:
    before, after = {"a": 0.9, "b": 0.8, "c": 0.7}, {"a": 0.895, "b": 0.75, "c": 0.8}
    assert lost(before, after, 1.0) == pytest.approx({"b": 5.0})
    with pytest.raises(VerificationError, match=r"domain b: INT8 costs 5\.00 points"):
        refuse(before, after, 1.0)
    refuse(before, after, 5.0)


def test_the_limit_of_the_drop_is_itself_allowed() -> None:
    before, limit = {"a": 0.75}, 25.0
    assert lost(before, {"a": 0.5}, limit) == {}
    assert lost(before, {"a": 0.4999}, limit) == pytest.approx({"a": 25.01})
    assert lost({"a": 0.9}, {"a": 0.89}, 1.0) == {}  # which floats make 1.0000000000000009
    assert lost(before, {"a": float("nan")}, limit).keys() == {"a"}
    assert lost(before, before, 0.0) == {} and lost(before, {"a": 0.749}, 0.0)


@pytest.mark.parametrize("drop", [-0.1, 100.1, float("nan"), float("inf")])
def test_a_drop_that_is_none_is_refused(drop: float) -> None:
    with pytest.raises(ConfigError, match=r"--int8-max-drop .* is outside 0\.\.100"):
        ExportOptions(int8=True, int8_max_drop=drop)
    assert ExportOptions(int8=True, int8_max_drop=0).int8_max_drop == 0
    assert ExportOptions(int8=True, int8_max_drop=100).int8_max_drop == 100


@pytest.mark.parametrize("what", ["zero", "mixed up"])
def test_a_graph_that_answers_something_else_is_refused_at_export(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """However well it did on the images: the limit on noise is not made from its own error."""
    from prunion.exporter.graph.variants import write

    true = write.int8_graph

    def broken(*args: object) -> object:
        model, account = true(*args)  # type: ignore[arg-type]
        for tensor in model.graph.initializer:
            value = numpy_helper.to_array(tensor).copy()
            if tensor.name == "head_weight" and what == "zero":
                value *= 0
            if tensor.name == "head_bias" and what == "zero":
                value[np.isfinite(value)] = 0
            if tensor.name == "head_weight" and what == "mixed up":
                value = np.ascontiguousarray(-value)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return model, account

    monkeypatch.setattr(write, "int8_graph", broken)
    options = ExportOptions(int8=True, int8_max_drop=20, int8_images=4)
    with pytest.raises(VerificationError, match="the int8 graph differs from the fp32 graph by"):
        export_bundle(tiny, tmp_path / "out.prunion", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tolerance", [1e31, float("inf"), float("nan")])
def test_verify_holds_int8_to_a_limit_of_its_own(
    bundle: Path, tmp_path: Path, tolerance: float
) -> None:
    changed = Path(shutil.copytree(bundle, tmp_path / "changed.prunion"))
    graph = onnx.load(changed / "model.int8.onnx")
    for tensor in graph.graph.initializer:
        if tensor.name == "head_weight":
            value = numpy_helper.to_array(tensor) * np.float32(1e30)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    onnx.save(graph, changed / "model.int8.onnx")
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["files"]["model.int8.onnx"] = sha256_file(changed / "model.int8.onnx")
    manifest["verified"]["variants"]["int8"]["tolerance"] = tolerance
    (changed / "manifest.json").write_text(json.dumps(manifest))
    assert any("tolerance" in problem for problem in verify_bundle(changed).problems)
    manifest["verified"]["variants"]["int8"]["tolerance"] = 0.5
    (changed / "manifest.json").write_text(json.dumps(manifest))
    assert verify_bundle(changed).problems


def test_nothing_is_written_when_a_domain_is_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunion.exporter.graph.variants import int8

    true = int8.graph_accuracy

    def blind(graph: Path, domains: object, loaded: object) -> dict[str, float]:
        right = true(graph, domains, loaded)  # type: ignore[arg-type]
        return right if graph.name == "model.onnx" else {**right, "cold": right["cold"] - 0.02}

    monkeypatch.setattr(int8, "graph_accuracy", blind)
    options = ExportOptions(int8=True, int8_max_drop=1.0, int8_images=4)
    with pytest.raises(VerificationError, match=r"domain .*: INT8 costs"):
        export_bundle(tiny, tmp_path / "out.prunion", options)
    assert list(tmp_path.iterdir()) == []


def test_calibration_images_come_from_every_class_of_every_domain(tiny: Path) -> None:
    loaded = load_checkpoint(tiny)
    domains = [open_domain(d, 0) for d in loaded.config.domains]
    batches = calibration_batches(domains, loaded, 6)
    rows = np.concatenate([batch["domain"] for batch in batches])
    assert np.bincount(rows).tolist() == [6, 6]
    assert batches[0]["image"].shape[1:] == (3, 16, 16)


def test_evened_ranges_compute_the_same_and_are_even() -> None:
    net = switch_off(domain_net(Depthwise(), (3, 5)))
    model = onnx_graph(slim_network(net), 8, 8)
    probe = make_probe(8, (8, 8), (0.5,) * 3, (0.2,) * 3, domains=2)
    expected = run_graph(open_graph(model.SerializeToString()), probe)
    equalise(model, [{"image": probe.images, "domain": probe.domains}])
    got = run_graph(open_graph(model.SerializeToString()), probe)
    assert max(relative_errors(expected, got, probe.domains, ["a", "b"], "x").values()) < 1e-5
    convolution = next(n for n in model.graph.node if n.op_type == "Conv")
    kind = onnx.TensorProto.FLOAT
    info = onnx.helper.make_tensor_value_info(convolution.output[0], kind, None)
    model.graph.output.append(info)
    feeds = {"image": probe.images, "domain": probe.domains}
    (seen,) = open_graph(model.SerializeToString()).run([info.name], feeds)
    np.testing.assert_allclose(np.abs(seen).max((0, 2, 3)), 1, rtol=1e-5)


def test_verify_measures_the_accuracy_again(bundle: Path, tiny: Path, tmp_path: Path) -> None:
    report = verify_bundle(bundle, against=tiny)
    assert not report.problems
    assert [note.split()[:2] for note in report.notes] == [["int8:", "warm"], ["int8:", "cold"]]
    assert "give --against" in verify_bundle(bundle).notes[0]
    changed = Path(shutil.copytree(bundle, tmp_path / "changed.prunion"))
    graph = onnx.load(changed / "model.int8.onnx")
    (weight,) = (i for i in graph.graph.initializer if i.name == "conv1.weight_quantized")
    weight.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(weight), weight.name))
    onnx.save(graph, changed / "model.int8.onnx")
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["files"]["model.int8.onnx"] = sha256_file(changed / "model.int8.onnx")
    (changed / "manifest.json").write_text(json.dumps(manifest))
    problems = verify_bundle(changed, against=tiny).problems
    assert any(
        problem.startswith("int8 graph, domain ") and "accuracy" in problem for problem in problems
    )


def test_verify_goes_on_where_the_int8_graph_is_refused(
    bundle: Path, tiny: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(bundle, tmp_path / "changed.prunion"))
    graph = onnx.load(changed / "model.int8.onnx")
    graph.opset_import.append(onnx.helper.make_opsetid("somebody.else", 1))
    (last,) = (node for node in graph.graph.node if "logits" in node.output)
    last.output[0] = "before"
    odd = onnx.helper.make_node("Unheard", ["before"], ["logits"], domain="somebody.else")
    graph.graph.node.append(odd)
    onnx.save(graph, changed / "model.int8.onnx")
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["files"]["model.int8.onnx"] = sha256_file(changed / "model.int8.onnx")
    (changed / "manifest.json").write_text(json.dumps(manifest))
    report = verify_bundle(changed, against=tiny)
    (problem,) = report.problems
    assert problem.startswith("int8 graph: ") and "somebody.else.Unheard" in problem
    assert {x.graph for x in report.compared} == {"fp32", "fp32-uint8", "int8-uint8"}


def test_verify_says_so_when_the_images_are_gone(bundle: Path, tiny: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny, tmp_path / "run"))
    path = run / "checkpoint" / "checkpoint.json"
    folder = str(tiny.parent)
    assert folder in path.read_text()
    path.write_text(path.read_text().replace(folder, str(tmp_path / "elsewhere")))
    report = verify_bundle(bundle, against=run)
    assert not report.problems
    (note,) = report.notes
    assert note.startswith("int8: accuracy not measured again, the run's images are not there: [")
