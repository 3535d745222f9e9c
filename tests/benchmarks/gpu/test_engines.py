"""TensorRT-RTX builds every exported variant for every GPU generation it knows; no GPU needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs prunion[tensorrt-rtx]")

from prunion.benchmarks.gpu.engines import BACKBONES, PRECISIONS, EngineRow, build_all, export_all
from prunion.benchmarks.random_bundle import random_checkpoint
from prunion.exporter.bundle import export_bundle
from prunion.exporter.graph import make_probe, open_graph, relative_errors, run_graph
from prunion.exporter.options import ExportOptions
from prunion.runtime.bundle import open_bundle
from prunion.runtime.tensorrt import BuildOptions, build_engine
from prunion.runtime.tensorrt.graph import without_products


def check(rows: list[EngineRow]) -> None:
    assert not [row for row in rows if row.refused]
    for row in rows:
        assert row.engine_bytes > 1000
        # Strongly typed: what the graph asks for is what is built.
        precision = row.variant.split()[-1]
        assert set(row.convolutions or {}) == {precision}, row
    variants = {row.variant for row in rows}
    assert variants == {f"{x}{p}" for x in ("", "subset ", "specialised ") for p in PRECISIONS}
    assert {sm for row in rows for sm in row.sms} == {75, 80, 86, 89, 120}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return export_all(tmp_path_factory.mktemp("engines"), "resnet18", 32, cut="layer1")


@pytest.mark.slow
def test_a_small_network_in_every_variant(bundles: dict[str, Path]) -> None:
    check(list(build_all("resnet18", bundles, batch=(1, 2, 4))))


@pytest.mark.parametrize("form", ["", "specialised"])
def test_turings_graph_is_the_same_function(tmp_path: Path, form: str) -> None:
    checkpoint = random_checkpoint(
        tmp_path / "checkpoint", "resnet18", 4, 0.5, 16, size=32, classes=10, cut="layer1"
    )
    export_bundle(
        checkpoint, tmp_path / "x.prunion", ExportOptions(specialise="d1" if form else None)
    )
    bundle = open_bundle(tmp_path / "x.prunion")
    graph = bundle.graph("fp32").read_bytes()
    probe = make_probe(8, (32, 32), (0.4,) * 3, (0.2,) * 3, domains=len(bundle.domains))
    expected, got = (run_graph(open_graph(g), probe) for g in (graph, without_products(graph)))
    errors = relative_errors(expected, got, probe.domains, bundle.domains, "Turing's graph")
    assert 0 <= max(errors.values()) < 1e-5
    assert b"MatMul" not in without_products(graph) and b"Gemm" not in without_products(graph)
    assert np.isfinite(got).all()


@pytest.mark.slow
def test_raw_pixels_and_concatenated_heads_build_too(bundles: dict[str, Path]) -> None:
    folder = bundles[""].parent
    options = ExportOptions(fp16=True, fp16_image="float16", uint8=True, heads="concatenated")
    export_bundle(folder / "checkpoint", folder / "joined.prunion", options)
    bundle, output = open_bundle(folder / "joined.prunion"), folder / "x.engine"
    for precision in bundle.manifest.graphs:
        for sms in ([75], [86]):
            made = build_engine(
                bundle,
                sms=sms,
                precision=precision,
                options=BuildOptions((1, 2, 4), max_domains=8, max_classes=20),
                output=output,
                force=True,
            )
            assert set(made.convolutions) == {precision.split("-")[0]}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_in_every_variant(backbone: str, tmp_path: Path) -> None:
    check(list(build_all(backbone, export_all(tmp_path, backbone, 224))))
