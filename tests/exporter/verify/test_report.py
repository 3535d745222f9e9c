"""`prunion verify` finds what was changed in a bundle, and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from prunion.exporter.graph import open_graph, relative_errors
from prunion.exporter.graph.agreement import check_errors
from prunion.exporter.verify import verify_bundle
from prunion.exporter.verify.compare import Disagreement
from prunion.exporter.verify.variants import tensors_of
from prunion.runtime.base import sha256_file
from prunion.runtime.bundle import read_pack, write_pack
from prunion.runtime.cli import cli
from prunion.runtime.errors import VerificationError


def rehash(bundle: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """Make the hashes fit again, so that only the deeper checks can find the change."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = {name: sha256_file(bundle / name) for name in manifest["files"]}
    change(manifest)
    path.write_text(json.dumps(manifest))


def edit_tensor(path: Path, name: str, change: Callable[[np.ndarray], Any]) -> None:
    model = onnx.load(path)
    (tensor,) = (i for i in model.graph.initializer if i.name == name)
    value = numpy_helper.to_array(tensor).copy()
    change(value)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    onnx.save(model, path)


def test_a_good_bundle_holds_and_says_where_the_largest_error_is(good: Path, tiny: Path) -> None:
    result = CliRunner().invoke(cli, ["verify", str(good), "--against", str(tiny)])
    assert result.exit_code == 0, result.output
    assert "everything holds" in result.output
    assert "largest error" in result.output and "fp16 graph against" in result.output
    report = verify_bundle(good, against=tiny)
    assert {x.against for x in report.compared} == {
        "the same images alone", "the fp32 graph", "masked torch", "the graph that it is cut from"
    }  # fmt: skip
    assert report.worst is not None and report.worst.domain in ("warm", "cold")


def test_a_changed_file_is_found(copy: Path) -> None:
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"x")
    result = CliRunner().invoke(cli, ["verify", str(copy), "--json"])
    assert result.exit_code == 1
    assert "differs from the manifest" in result.stdout


def test_a_file_nobody_listed_is_found(copy: Path) -> None:
    (copy / "extra.bin").write_bytes(b"x")
    assert any("extra.bin" in problem for problem in verify_bundle(copy).problems)


def test_a_changed_weight_is_found_and_against_the_checkpoint(copy: Path, tiny: Path) -> None:
    doubled = tensors_of(onnx.load(copy / "model.onnx"))["layer1.0.conv1.weight"] * 2

    for name in ("model.onnx", "model.fp16.onnx"):  # in float16 that, rounded
        edit_tensor(
            copy / name, "layer1.0.conv1.weight", lambda x: np.copyto(x, doubled, "same_kind")
        )
    rehash(copy)
    (only,) = verify_bundle(copy).problems  # the two graphs still agree with each other
    assert only.startswith("fp32 graph: its weights hash to trunk ")
    problems = verify_bundle(copy, against=tiny).problems
    assert any("domain warm: differs from masked torch" in p for p in problems)


def test_a_variant_that_drifted_is_found(copy: Path) -> None:
    def double(value: np.ndarray) -> None:
        value[:] = 2 * value

    edit_tensor(copy / "model.fp16.onnx", "layer1.1.conv2.weight", double)
    rehash(copy)
    (first, *_) = verify_bundle(copy).problems
    assert first.startswith("fp16 graph, domain") and "differs from the fp32 graph" in first


def test_a_pack_that_is_not_the_graphs_row_is_found(copy: Path) -> None:
    path = copy / "domains" / "cold.safetensors"
    pack = read_pack(path)
    bank = pack.bank.copy()
    bank[np.flatnonzero(bank)[0]] += 1
    write_pack(path, replace(pack, bank=bank))
    rehash(copy)
    problems = verify_bundle(copy).problems
    assert any("domain cold: its pack's bank is not row 1" in p for p in problems)


def test_switches_that_contradict_the_bank_are_found(copy: Path) -> None:
    path = copy / "domains" / "warm.safetensors"
    pack = read_pack(path)
    write_pack(path, replace(pack, switches=np.zeros_like(pack.switches)))
    rehash(copy)
    problems = verify_bundle(copy).problems
    assert any(
        "domain warm: its bank is not zero where its switches are off" in p for p in problems
    )


@pytest.mark.parametrize("key", ["params", "macs"])
def test_counts_are_counted_again(copy: Path, key: str) -> None:
    def claim_less(manifest: dict[str, Any]) -> None:
        manifest[key]["exported"] -= 1

    rehash(copy, claim_less)
    problems = verify_bundle(copy).problems
    assert any(f"{key} in the file, the manifest says" in problem for problem in problems)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("value", 0.1, "the manifest's budget says 0.1"), ("met", False, "says the budget is not met"),
     ("asked", 0.05, "says the budget is met"), ("asked", "much", "its budget is no budget"),
     ("kind", "bytes", "its bytes are")],
)  # fmt: skip
def test_the_budget_is_worked_out_again(copy: Path, key: str, value: Any, said: str) -> None:
    rehash(copy, lambda manifest: manifest["budget"].update({key: value}))
    assert any(said in problem for problem in verify_bundle(copy).problems)


def test_widths_are_counted_again(copy: Path) -> None:
    def claim_less(manifest: dict[str, Any]) -> None:
        manifest["widths"]["conv1"][1] -= 8

    rehash(copy, claim_less)
    assert any("conv1 is" in problem for problem in verify_bundle(copy).problems)


def test_a_graph_that_onnx_runtime_refuses_is_one_problem_and_the_rest_is_compared(
    copy: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = verify_bundle(copy, against=tiny).compared
    refused = (copy / "model.fp16.onnx").read_bytes()

    def opened(graph: bytes) -> object:
        if graph == refused:
            raise RuntimeError("no kernel")
        return open_graph(graph)

    monkeypatch.setattr("prunion.exporter.verify.compare.open_graph", opened)
    report = verify_bundle(copy, against=tiny)
    (problem,) = report.problems
    assert problem == "fp16 graph: ONNX Runtime refuses it: no kernel"
    assert report.compared == tuple(x for x in every if x.graph == "fp32") != ()


def test_a_graph_of_foreign_operators_is_never_run_and_the_rest_is_compared(
    copy: Path, tiny: Path
) -> None:
    every = verify_bundle(copy, against=tiny).compared
    model = onnx.load(copy / "model.fp16.onnx")
    model.opset_import.append(onnx.helper.make_opsetid("somebody.else", 1))
    (last,) = (node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "before"
    odd = onnx.helper.make_node("Unheard", ["before"], ["logits"], domain="somebody.else")
    model.graph.node.append(odd)
    onnx.save(model, copy / "model.fp16.onnx")
    rehash(copy)
    report = verify_bundle(copy, against=tiny)
    (problem,) = report.problems
    assert problem.startswith("fp16 graph: ")
    assert "is a 'somebody.else.Unheard', which no bundle's graph may hold" in problem
    assert report.compared == tuple(x for x in every if x.graph == "fp32") != ()


def test_a_checkpoint_without_the_domain_is_one_problem_and_the_rest_is_compared(
    copy: Path, tiny: Path
) -> None:
    every = verify_bundle(copy).compared
    pack = read_pack(copy / "domains" / "warm.safetensors")
    write_pack(copy / "domains" / "warm.safetensors", replace(pack, name="hot"))
    rehash(copy, lambda manifest: manifest["domains"][0].update(name="hot"))
    report = verify_bundle(copy, against=tiny)
    assert report.problems == ("the checkpoint has no domain 'hot': it has warm, cold",)
    assert len(report.compared) == len(every)


def test_logits_past_a_domains_classes_are_found(copy: Path) -> None:
    def open_class(bias: np.ndarray) -> None:
        assert np.isneginf(bias[0, 2])
        bias[0, 2] = 0

    for name in ("model.onnx", "model.fp16.onnx"):
        edit_tensor(copy / name, "head_bias", open_class)
    rehash(copy)
    assert [x for x in verify_bundle(copy).problems if "-inf" in x] == [
        f"{variant} graph: domain warm: head_bias is not -inf past its 2 classes"
        for variant in ("fp32", "fp16")
    ]


def test_nan_is_no_answer_even_where_both_forms_give_it() -> None:
    """It is not finite, as -inf past the classes is not: it must not pass for that."""
    logits = np.array([[1, 2, -np.inf], [3, np.nan, 4]], np.float32)
    rows = np.array([0, 1])
    assert relative_errors(logits[:1], logits[:1], rows[:1], ["a"], "x") == {"a": 0.0}
    with pytest.raises(VerificationError, match="domain b: x has other classes"):
        relative_errors(logits, logits, rows, ["a", "b"], "x")
    nothing = np.full((1, 3), -np.inf, np.float32)
    with pytest.raises(VerificationError, match="domain a: x has other classes"):
        relative_errors(nothing, nothing, rows[:1], ["a"], "x")
    assert not Disagreement("fp32", "a", "masked torch", float("nan"), 1.0).passed
    with pytest.raises(VerificationError, match="differs from fp32 by nan"):
        check_errors({"a": float("nan")}, 1.0, "x", "fp32")


@pytest.mark.parametrize("graph", ["fp32", "fp16"])
@pytest.mark.parametrize("tolerance", [1e30, float("inf"), float("nan"), 0.5])
def test_no_manifest_widens_a_tolerance(copy: Path, graph: str, tolerance: float) -> None:
    def widen(manifest: dict[str, Any]) -> None:
        place = manifest["verified"]
        (place if graph == "fp32" else place["variants"][graph])["tolerance"] = tolerance

    rehash(copy, widen)
    (problem,) = verify_bundle(copy).problems
    assert "tolerance" in problem and (graph in problem or "must be a finite" in problem)


def test_a_unit_table_that_does_not_fit_is_found(copy: Path) -> None:
    table = json.loads((copy / "units.json").read_text())
    table["slots"][0]["units"].append(0)
    (copy / "units.json").write_text(json.dumps(table))
    rehash(copy)
    assert any("the unit table has" in problem for problem in verify_bundle(copy).problems)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["params"].update(bank=1), "its packs' banks hold"),
        (lambda m: m["rounding"]["added"].update(conv1=5), "channels that no domain uses"),
        (lambda m: m["budget"].update(backbone=1), "its budget is of a backbone of 1 params"),
        (lambda m: (m["budget"].pop("backbone"), m["budget"].update(value=0.1)), "says 0.1"),
        (lambda m: m["widths"]["layer1.0.conv1"].__setitem__(1, 3), "layer1.0.conv1 is"),
    ],
)
def test_what_the_files_tell_is_compared(copy: Path, change: Any, said: str) -> None:
    rehash(copy, change)
    assert any(said in problem for problem in verify_bundle(copy).problems)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["params"].update(backbone=1), "params.backbone is 1 "),
        (lambda m: m["macs"].update(backbone=1), "macs.backbone is 1 "),
        (lambda m: m["params"].update(heads=1), "params.heads is 1 "),
        (lambda m: m["rounding"].update(multiple=99), "rounding.multiple is 99 "),
        (lambda m: m["widths"]["conv1"].__setitem__(0, 3), "widths['conv1'], before, is 3 "),
        (lambda m: m["domains"][0].update(accuracy=0.123), "the accuracy of warm is 0.123 "),
        (lambda m: m["domains"][0].update(accuracy_views=5), "accuracy_views of warm is 5 "),
        (lambda m: m["provenance"].update(model_sha256="0" * 64), "provenance.model_sha256 is 0"),
    ],
)
def test_what_the_checkpoint_tells_is_compared(
    copy: Path, tiny: Path, change: Any, said: str
) -> None:
    rehash(copy, change)
    assert any(said in problem for problem in verify_bundle(copy, against=tiny).problems)


def test_what_a_file_manager_leaves_is_nothing(copy: Path) -> None:
    (copy / "domains" / ".DS_Store").write_bytes(b"x")
    assert verify_bundle(copy).problems == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["domains"][1]["classes"].__setitem__(0, "xx"), "disagree on the classes"),
        (lambda m: m["input"]["normalisation"]["mean"].__setitem__(0, 0.25), "was made for images"),
    ],
)
def test_packs_that_are_not_what_the_manifest_says_are_problems_and_json(
    copy: Path, change: Any, said: str
) -> None:
    """It ended with an error, and nothing on standard output."""
    rehash(copy, change)
    result = CliRunner().invoke(cli, ["verify", str(copy), "--json"])
    assert result.exit_code == 1
    value = json.loads(result.stdout)
    assert not value["passed"] and any(said in problem for problem in value["problems"])
