"""One bundle for domains with weights of their own: what it takes, refuses, and hands on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.exporter.bundle import export_bundle, export_pack
from prunion.exporter.options import ExportOptions
from prunion.exporter.verify import verify_bundle
from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import ConfigError, VerificationError
from prunion.runtime.model import load
from prunion.runtime.tensorrt import build_engine
from prunion.trainer.network import load_checkpoint
from tests.support.networks.drawn import drawn_checkpoint

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_checkpoint(tmp_path_factory.mktemp("masked"), "piggyback")


@pytest.fixture(scope="module")
def bundle(masked: Path) -> Path:
    export_bundle(masked, masked.parent / "both.prunion", ExportOptions(uint8=True))
    return masked.parent / "both.prunion"


def answers(path: Path, rows: list[str], precision: Any = "fp32") -> np.ndarray:
    model = load(path, "cpu", threads=1, precision=precision)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    return np.array(
        [[c.probability for c in x.top] for x in model.predict(list(pixels), rows, top_k=2)]
    )


ROWS = ["cold", "warm", "warm", "cold"]


def test_raw_pixels_and_packs_answer_alike(masked: Path, bundle: Path, tmp_path: Path) -> None:
    expected = answers(bundle, ROWS)
    np.testing.assert_allclose(answers(bundle, ROWS, "fp32-uint8"), expected, atol=1e-4)
    report = verify_bundle(bundle, against=masked)
    assert report.problems == ()
    assert {x.against for x in report.compared} == {
        "masked torch",
        "the fp32 graph",
        "the same images alone",
    }
    pack = export_pack(masked, "cold", tmp_path / "cold.safetensors")
    assert pack.trunk_hash == open_bundle(bundle).manifest.trunk_hash
    model = load(bundle, "cpu", threads=1)
    model.remove_domain("cold")
    model.add_domain(tmp_path / "cold.safetensors")
    assert model.domains == ("warm", "cold")
    assert set(pack.own) == set(open_bundle(bundle).pack("cold").own)


def test_some_of_the_domains(masked: Path, bundle: Path, tmp_path: Path) -> None:
    expected = answers(bundle, ["cold"] * 4)
    alone = export_bundle(masked, tmp_path / "a", ExportOptions(specialise="cold", fp16=True))
    one = export_bundle(masked, tmp_path / "b", ExportOptions(domains=("cold",)))
    assert (alone["format_version"], one["format_version"]) == (1, 1)
    assert one["paper"]["params"] == pytest.approx(1.0)
    for name in ("a", "b"):
        np.testing.assert_allclose(answers(tmp_path / name, ["cold"] * 4), expected, atol=1e-4)
    turned = export_bundle(masked, tmp_path / "c", ExportOptions(domains=("cold", "warm")))
    assert turned["format_version"] == 2
    np.testing.assert_allclose(answers(tmp_path / "c", ROWS), answers(bundle, ROWS), atol=1e-4)


def test_a_domain_alone_is_an_engine_like_any_other(masked: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'prunion[tensorrt-rtx]'")
    export_bundle(masked, tmp_path / "x", ExportOptions(specialise="cold", fp16=True))
    build_engine(open_bundle(tmp_path / "x"), sms=[86], output=tmp_path / "x.engine")
    assert (tmp_path / "x.engine").stat().st_size


@pytest.mark.parametrize("option", ["fp16", "int8", "torch"])
def test_what_holds_one_trunk_is_refused(masked: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=f"--{option} writes one trunk for all domains"):
        export_bundle(masked, tmp_path / "out", ExportOptions(**{option: True}))
    assert not (tmp_path / "out").exists()


def test_what_domains_share_is_part_of_the_trunk(tmp_path: Path) -> None:
    checkpoint = drawn_checkpoint(tmp_path, "packnet")
    export_bundle(checkpoint, tmp_path / "out")
    shared = open_bundle(tmp_path / "out").shared_parts()
    assert {key.partition(":")[0] for key in shared} == {"turns"}
    assert verify_bundle(tmp_path / "out", against=checkpoint).problems == ()
    assert load_checkpoint(checkpoint).net.adapter is not None


def test_a_pack_that_answers_otherwise_is_never_written(
    masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunion.exporter.bundle import parts

    def flipped(net: Any, row: int, pack: Any, slim: Any) -> Any:
        bits = {k: ~v for k, v in net.adapter.stored(row).items()}
        return dataclasses.replace(pack, own=bits)

    monkeypatch.setattr(parts, "own_pack", flipped)
    with pytest.raises(VerificationError, match="ONNX Runtime differs from the trained network"):
        export_bundle(masked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
