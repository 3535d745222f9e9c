"""What a bundle is compared with answers the same images, and what cannot be made is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from prunion.runtime.bundle import open_bundle
from prunion.runtime.cli import cli
from prunion.runtime.errors import InputError
from prunion.runtime.graph import pin_domain
from prunion.runtime.measure import asked_text, bench, format_report
from prunion.runtime.measure.benchmark import contenders, measure, together
from prunion.runtime.measure.benchmark.contenders import (
    Contender,
    Opened,
    Setup,
    domain_rows,
    pairs_of,
)
from prunion.runtime.measure.benchmark.rivals import all_contenders
from prunion.runtime.model import load

onnx = pytest.importorskip("onnx")


def rival(bundle: Path, against: str, **options: object) -> Opened:
    setup = replace(Setup(str(bundle), threads=1, against=(against,)), **options)
    _, (found,) = all_contenders(setup)
    return found.open()


def test_rivals_give_the_bundles_own_answers(bundle_path: Path, toy: ModuleType) -> None:
    """The toy's graph has every channel: it is its own unpruned network."""
    graph = bundle_path / "model.onnx"
    form = load(bundle_path, "cpu").sessions.form
    count = len(open_bundle(bundle_path).domains)
    rows = np.resize(np.arange(count), 5)
    expected = load(bundle_path, "cpu").logits(form.noise(5), rows)
    (mixed,) = rival(bundle_path, str(graph)).call(5)()
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-5)
    backbone = rival(bundle_path, "backbone", unpruned=str(graph))
    np.testing.assert_allclose(backbone.call(5)(), expected, rtol=1e-4, atol=1e-5)
    separate = rival(bundle_path, "separate", unpruned=str(graph))
    for row, part in enumerate(separate.call(5)()):
        np.testing.assert_allclose(part, expected[rows == row], rtol=1e-4, atol=1e-5)
    size = graph.stat().st_size
    assert size < separate.file_bytes < count * size, "tables of other domains are not its own"


def test_a_rival_is_timed_beside_the_bundle(bundle_path: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(pin_domain(bundle_path / "model.onnx", 0))
    against = (str(alone), "specialised", "separate")
    report = bench(
        bundle_path,
        batches=(2,),
        seconds=0.02,
        against=against,
        unpruned=bundle_path / "model.onnx",
        fresh=False,
    )
    assert {row.session for row in report.rows} == {
        *("mixed", "blocked", "pinned:flowers", str(alone), "specialised:flowers", "separate")
    }
    compared = {(x.session, x.against) for x in report.comparisons}
    assert ("mixed", "separate") in compared
    assert ("pinned:flowers", "separate") not in compared, "its images are of one domain"
    assert ("mixed", "specialised:flowers") not in compared
    assert ("pinned:flowers", "specialised:flowers") in compared
    assert report.rival_bytes[str(alone)] == alone.stat().st_size


def test_another_bundle_is_timed_beside_it(
    bundle_path: Path, toy: ModuleType, tmp_path: Path
) -> None:
    other = str(toy.make_bundle(tmp_path))
    arguments = ["bench", str(bundle_path), other, "--batch", "2", "--duration", "10ms", "--json"]
    done = CliRunner().invoke(cli, [*arguments, "--threads", "1"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    sessions = {row["session"] for row in report["rows"]}
    assert {"mixed", f"{other} mixed", f"{other} pinned:flowers"} < sessions
    compared = {(x["session"], x["against"]) for x in report["comparisons"]}
    assert ("mixed", f"{other} mixed") in compared
    assert ("mixed", f"{other} pinned:flowers") not in compared
    assert report["rival_bytes"][f"{other} mixed"] == sum(report["file_bytes"].values())
    assert {x["session"] for x in report["fresh"]} == sessions
    for wrong, told in (
        ([str(bundle_path)], "is the bundle itself"),
        (["nowhere.prunion"], "nowhere.prunion does not exist"),
        ([other, "--scenario", "single"], "--scenario asks one bundle"),
    ):
        done = CliRunner().invoke(cli, ["bench", str(bundle_path), *wrong, "--duration", "10ms"])
        assert done.exit_code != 0
        assert told in done.output


def test_a_layout_that_is_not_there_is_a_note(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "open_blocked", lambda *_: "no such operator")
    report = bench(bundle_path, batches=(1,), seconds=0.01, threads=1, fresh=False)
    assert {row.session for row in report.rows} == {"mixed", "pinned:flowers"}
    assert report.notes == ("blocked: not in ONNX Runtime's blocked layout: no such operator",)


def test_widths_off_the_fast_path_are_timed_beside_those_below(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toy.make_bundle(tmp_path)
    # Of the toy's 8 channels 6 are left, then: the multiples of 3 below 8.
    monkeypatch.setattr(measure, "block_of", lambda *_: 3)
    report = bench(path, batches=(1, 2), seconds=0.02, threads=1, fresh=False)
    cut = "pinned:flowers cut to multiples of 3"
    beside = [x for x in report.comparisons if x.against == cut]
    assert [x.batch for x in beside] == [1, 2]
    assert cut not in {row.session for row in report.rows}, "it answers nobody"
    share, *_ = re.findall(r"would do ([0-9.]+) of its multiplications", report.widths_cost)
    assert share == "0.75"
    assert re.search(
        r" \([0-9.]+ … [0-9.]+\) of its time at batch 2 \(measured", report.widths_cost
    )
    assert f"note: {report.widths_cost}" in format_report(report)
    few = [replace(x, low=None, high=None) for x in beside]
    entered = (contenders.Contender(cut, lambda: pytest.fail("it is timed already")), 0.75)
    told = contenders.widths_cost(entered, few)
    assert told.endswith("0.75 of its multiplications and was timed too briefly to compare")
    assert "(measured)" in contenders.widths_cost(entered, [few[0], beside[1]])
    monkeypatch.setattr(measure, "block_of", lambda *_: 16)
    assert not bench(path, batches=(1,), seconds=0.01, fresh=False).widths_cost, "nothing to cut"


def test_a_graph_of_another_kind_is_fed_by_its_own_shape(bundle_path: Path, tmp_path: Path) -> None:
    pixels = onnx.helper.make_tensor_value_info("px", onnx.TensorProto.UINT8, [2, 9, "w", 3])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [2, 9, "w", 3])
    node = onnx.helper.make_node("Identity", ["px"], ["y"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [pixels], [out]),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "x.onnx")
    opened = rival(bundle_path, str(tmp_path / "x.onnx"))
    (answer,) = opened.call(2)()
    assert answer.shape[:2] == (2, 9)
    assert len(np.unique(answer)) > 50, "random, not zeros"
    with pytest.raises(InputError, match="batches of 2 only: give --batch 2"):
        opened.call(3)


def graph_of(path: Path, shape: list[object], *, layout: str = "first") -> str:
    """A graph of pictures of three channels, of which its input's shape may tell nothing."""
    weight = np.ones((2, 3, 1, 1), np.float32)
    turn = [onnx.helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])]
    last = layout == "last"
    node = onnx.helper.make_node("Conv", ["t" if last else "x", "w"], ["y"])
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [*(turn if last else []), node],
        "g",
        [onnx.helper.make_tensor_value_info("x", kind, shape)],
        [onnx.helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return str(path)


@pytest.mark.parametrize("shape", [["N", "C", "H", "W"], [None] * 4, ["N", 3, "H", "W"]])
@pytest.mark.parametrize("layout", ["first", "last"])
def test_a_graph_that_tells_no_shape_is_fed_what_it_takes(
    bundle_path: Path, toy: ModuleType, tmp_path: Path, shape: list[object], layout: str
) -> None:
    """The first open axis was taken for the height."""
    shape = [*shape[:1], *shape[2:], 3] if (layout == "last" and 3 in shape) else shape
    opened = rival(bundle_path, graph_of(tmp_path / "x.onnx", shape, layout=layout))
    (answer,) = opened.call(2)()
    assert answer.shape == (2, 2, toy.HEIGHT, toy.SIDE_WIDTH)


def test_what_a_graph_fails_with_is_one_line_before_anything_is_measured(
    bundle_path: Path, toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "_time", lambda *_: pytest.fail("measured already"))
    one = graph_of(tmp_path / "one.onnx", [1, 3, "H", "W"])
    thin = graph_of(tmp_path / "thin.onnx", ["N", 5, "H", "W"])
    tables = toy.make_tables()
    fewer = replace(
        tables, **{x: getattr(tables, x)[:1] for x in ("bank", "head_weight", "head_bias")}
    )
    onnx.save(toy.make_graph(fewer), tmp_path / "fewer.onnx")
    for path, told in (
        (one, "takes batches of 1 only: give --batch 1"),
        (thin, "fails at x [1, 5, "),
        (str(tmp_path / "fewer.onnx"), "], domains 0 to 1 ("),
    ):
        with pytest.raises(InputError) as raised:
            bench(bundle_path, batches=(1, 2), seconds=0.01, against=[path], fresh=False)
        assert str(raised.value).startswith(path) and told in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["one row", "the first to all", "a constant"])
def test_a_rival_answers_each_of_its_images(bundle_path: Path, tmp_path: Path, kind: str) -> None:
    """A batch's time was divided by images that it did not look at."""
    path = graph_of(tmp_path / "x.onnx", ["N", 3, "H", "W"])
    opened = rival(bundle_path, path)
    assert opened.check
    opened.check(1)
    opened.check(3)
    model, node = onnx.load(path), onnx.helper.make_node
    zero = onnx.numpy_helper.from_array(np.array([0]), "zero")
    model.graph.initializer.append(zero)
    model.graph.node[0].output[0] = "own"
    model.graph.node.append(node("Gather", ["own", "zero"], ["y" if kind == "one row" else "f"]))
    if kind != "one row":
        made = node("Mul" if kind == "a constant" else "Sub", ["own", "none"], ["nothing"])
        none = onnx.numpy_helper.from_array(np.array(0, np.float32), "none")
        model.graph.initializer.append(none)
        model.graph.node.append(made)
        if kind == "a constant":
            model.graph.node.append(node("Identity", ["nothing"], ["y"]))
        else:
            model.graph.node.append(node("Sub", ["nothing", "own"], ["zeros"]))
            model.graph.node.append(node("Add", ["zeros", "f"], ["y"]))
    onnx.save(model, path)
    check = rival(bundle_path, path).check
    assert check
    with pytest.raises(InputError, match="does not answer each of 3 images"):
        check(3)


def test_bundles_of_one_and_of_several_domains() -> None:
    """A session of one domain stood beside batches of several, and another domain's."""

    def of(domains: tuple[str, ...], *sessions: str) -> list[Contender]:
        return [
            Contender(
                name,
                lambda: pytest.fail("not opened"),
                one_domain=name.startswith(("pinned", "single")),
                one_each=name == "split",
                domains=domains,
            )
            for name in sessions
        ]

    both = of(("a", "b"), "mixed", "pinned:a")
    apart = of(("a", "b"), "split", "pinned:a")
    for own, theirs, expected in (
        (of(("b",), "single"), apart, set()),
        (of(("b",), "mixed", "pinned:b"), both, set()),
        (of(("a",), "single"), both, {("single", "its pinned:a")}),
        (both, of(("b",), "mixed", "pinned:b"), set()),
        (both, of(("a",), "single"), {("pinned:a", "its single")}),
        (both, apart, {("mixed", "its split"), ("pinned:a", "its pinned:a")}),
        (of(("b",), "single"), of(("c",), "single"), {("single", "its single")}),
    ):
        rivals = [replace(x, name=f"its {x.name}") for x in theirs]
        pairs = pairs_of(own, rivals)
        assert {(x.name, y.name) for x, y in pairs if y in rivals} == expected


def test_mixed_is_all_domains_whatever_they_are_called(bundle_path: Path) -> None:
    """A domain called mixed was measured alone, under the name of all of them."""
    bundle = open_bundle(bundle_path)
    first, *others = bundle.manifest.domains
    called = replace(bundle.manifest, domains=(*others, replace(first, name="mixed")))
    assert domain_rows(replace(bundle, manifest=called), "mixed") == [0, 1, 2]


def test_the_domains_that_were_measured_are_told(bundle_path: Path) -> None:
    several = bench(bundle_path, batches=(1,), seconds=0.01, threads=1, fresh=False)
    assert "of all domains, by" in format_report(several)
    only = {**several.asked, "batches_of": ["flowers"]}
    assert "of flowers, by" in asked_text(only), "of a bundle of one domain"
    older = {key: value for key, value in only.items() if key != "batches_of"}
    assert "of all domains, by" in asked_text(older)


def test_openvino_runs_the_same_graph(bundle_path: Path) -> None:
    pytest.importorskip("openvino")
    setup = Setup(str(bundle_path), threads=1, against=("openvino",))
    own, rivals = all_contenders(setup)
    assert [x.name for x in rivals] == [f"openvino {x.name}" for x in own]
    for ours, theirs in zip(own, rivals, strict=True):
        answers = ours.open().call(3)(), theirs.open().call(3)()
        np.testing.assert_allclose(*answers, rtol=1e-3, atol=1e-4)
