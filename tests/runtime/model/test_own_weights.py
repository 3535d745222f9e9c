"""Domains with weights of their own: a session each, and a batch is taken apart by domain."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from prunion.runtime.bundle import open_bundle, own_weights, pack_bits, write_pack
from prunion.runtime.cli.main import cli
from prunion.runtime.errors import BundleError, InputError
from prunion.runtime.measure.benchmark.contenders import Setup, contenders
from prunion.runtime.model import Model, load

pytest.importorskip("onnxruntime")

NAME = "conv.weight"
ROWS = np.array([2, 0, 1, 1, 0, 2])


def parts_of(toy: ModuleType) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """One domain has a mask, one adapters of which a part is shared, one the trunk as it is."""
    random = np.random.default_rng(5)
    mask = random.random((toy.WIDTH, 3, 3, 3)) < 0.5
    own = {
        "flowers": {f"mask:{NAME}": pack_bits(mask)},
        "signs": {f"centre_down:{NAME}": random.normal(size=(2, 3)).astype(np.float32)},
    }
    return own, {f"centre_up:{NAME}": random.normal(size=(toy.WIDTH, 2)).astype(np.float32)}


@pytest.fixture
def path(toy: ModuleType, tmp_path: Path) -> Path:
    own, shared = parts_of(toy)
    return toy.make_bundle(tmp_path, own=own, shared=shared)


def expected(toy: ModuleType, path: Path, batch: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Plain numpy with each domain's W_d."""
    found, tables = [], toy.make_tables()
    for image, row in zip(batch, rows, strict=True):
        pack = open_bundle(path).pack(list(toy.CLASSES)[row])
        own = own_weights(pack.own, lambda name: tables.weight)
        one = dataclasses.replace(tables, weight=own.get(NAME, tables.weight))
        found.append(toy.reference(one, image[None], np.array([row])))
    return np.concatenate(found)


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
@pytest.mark.parametrize("limit", [None, 0])
def test_every_domain_answers_with_its_own(
    toy: ModuleType, path: Path, batch: np.ndarray, backend: str, limit: int | None
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="pip install 'prunion[openvino]'")
    model = load(path, backend, threads=1, memory_limit=limit)  # type: ignore[arg-type]
    for rows in (ROWS, np.full(6, 1), ROWS[::-1].copy()):
        got = model.logits(batch, rows)
        np.testing.assert_allclose(got, expected(toy, path, batch, rows), rtol=1e-3, atol=1e-4)
    assert len(model.explain().sessions) == (3 if limit is None else 1)
    plain = toy.reference(toy.make_tables(), batch, ROWS)
    differs = np.abs(model.logits(batch, ROWS)[:, :2] - plain[:, :2]).max(1) > 1e-2
    assert differs.tolist() == [False, True, True, True, True, False]


def test_it_says_how_batches_are_answered(path: Path) -> None:
    model = load(path, "cpu", threads=1, tune=True)
    assert "split by domain, each has weights of its own" in str(model.explain())
    assert model.explain().splits
    with pytest.raises(InputError, match="a mixed session needs one graph for all domains"):
        model.sessions.mixed()
    found = contenders(Setup(str(path), threads=1))
    assert [x.name for x in found] == ["split", "pinned:flowers"]
    for contender in found:
        contender.open().call(5)()
    shown = CliRunner().invoke(cli, ["inspect", str(path)])
    assert "a graph for each domain, with weights of its own" in shown.output


def test_domains_come_and_go(toy: ModuleType, path: Path, batch: np.ndarray) -> None:
    model = load(path, "cpu", threads=1)
    pack = open_bundle(path).pack("flowers")
    write_pack(path.parent / "late.safetensors", dataclasses.replace(pack, name="late"))
    assert model.add_domain(path.parent / "late.safetensors") == "late"
    got = model.logits(batch, ["late"] * 6)[:, :3]
    np.testing.assert_array_equal(got, model.logits(batch, ["flowers"] * 6)[:, :3])
    domain = model.snapshot.domains[model.domain_index("late")]
    model.remove_domain("late")
    answered = model.answer(batch, [domain] * 6)  # accepted before it went
    np.testing.assert_array_equal(answered, got)
    assert "late" not in model.explain().sessions
    bad = dataclasses.replace(pack, name="bad", own={f"mask:{NAME}": np.zeros(3, np.uint8)})
    with pytest.raises(BundleError, match="3 bytes of bits for 216 weights"):
        model.add_domain(bad)
    lost = dataclasses.replace(pack, name="bad", own={"value:gone": np.zeros(3, np.float32)})
    with pytest.raises(BundleError, match="own weight 'gone', which the graph does not hold"):
        model.add_domain(lost)


def test_a_bundle_of_one_trunk_takes_no_own_weights(bundle_path: Path, path: Path) -> None:
    pack = dataclasses.replace(open_bundle(path).pack("flowers"), name="late")
    with pytest.raises(BundleError, match="has weights of its own, and this bundle's domains"):
        load(bundle_path, "cpu").add_domain(pack)
    # The other way round W_d is W.
    plain = dataclasses.replace(open_bundle(bundle_path).pack("flowers"), name="late")
    assert load(path, "cpu").add_domain(plain) == "late"


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx", "tensorrt-rtx-ep"])
def test_what_needs_one_graph_is_refused(path: Path, backend: str) -> None:
    with pytest.raises(InputError, match="export one of them with --specialise"):
        load(path, backend)  # type: ignore[arg-type]


def test_parts_that_fit_nothing_are_named() -> None:
    weight = np.ones((4, 2, 3, 3), np.float32)

    def made(**parts: np.ndarray) -> np.ndarray:
        return own_weights({f"{k}:w": v for k, v in parts.items()}, lambda name: weight)["w"]

    with pytest.raises(BundleError, match="own weight 'w' cannot be made of down"):
        made(down=np.zeros((2, 18), np.float32))
    with pytest.raises(BundleError, match="own weight 'w'"):
        made(up=np.zeros((4, 3), np.float32), down=np.zeros((2, 18), np.float32))
    with pytest.raises(BundleError, match=r"own weight 'w' is \[2\], the trunk's \[4, 2, 3, 3\]"):
        made(value=np.zeros(2, np.float32))
    assert made(centre=np.ones((4, 2), np.float32))[0, 0].tolist() == [
        [1, 1, 1],
        [1, 2, 1],
        [1] * 3,
    ]


def test_an_earlier_prunion_would_refuse_the_files(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    assert manifest["format_version"] == 2
    header = (path / "domains" / "flowers.safetensors").read_bytes()[:2000]
    assert b'"format_version":"2"' in header
    plain = (path / "domains" / "digits.safetensors").read_bytes()[:2000]
    assert b'"format_version":"1"' in plain


def test_a_full_pool_lets_the_oldest_go(path: Path, batch: np.ndarray) -> None:
    probe = load(path, "cpu", threads=1)
    probe.logits(batch, ["signs"] * 6)
    limit = int(2.5 * probe.explain().pinned_bytes)
    model: Model = load(path, "cpu", threads=1, memory_limit=limit)
    for name in ("signs", "flowers", "digits"):
        model.logits(batch, [name] * 6)
    assert list(model.explain().sessions) == ["flowers", "digits"]
