"""Providers that compile: what they are told, and sessions within a profile, run on the CPU."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prunion.runtime.backends import SessionOptions, make_ort_session, open_provider
from prunion.runtime.backends.onnxruntime import PROVIDERS, _tell_once
from prunion.runtime.backends.tensorrt_provider import open_compiled, provider_options
from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import BackendError, BundleError, InputError, MissingDependencyError
from prunion.runtime.model import Model, load
from prunion.runtime.tensorrt import EngineKey, engine_key, write_engine
from prunion.runtime.tensorrt.files import key_place

ort = pytest.importorskip("onnxruntime")


@pytest.fixture
def model(bundle_path: Path) -> Model:
    """A model whose one session is the CPU's, within the profile a compiling provider is told."""
    made = load(bundle_path, "cpu", threads=1, slicing=False)
    pool = made.sessions
    pool.pins = False
    pool._open_mixed = partial(open_provider, made.bundle, pool.options)
    return made


def test_tables_are_fed_within_the_profile(
    model: Model, toy: ModuleType, batch: np.ndarray
) -> None:
    rows = np.array([2, 0, 1, 1, 0, 2])
    expected = toy.reference(toy.make_tables(), batch, rows)
    np.testing.assert_allclose(model.logits(batch, rows), expected, rtol=1e-4, atol=1e-5)
    assert model.explain().provider == "CPUExecutionProvider"
    assert model.sessions.mixed().batches == (1, 32)
    with pytest.raises(InputError, match=r"image is \[36, .*smaller batches"):
        model.logits(np.repeat(batch, 6, axis=0), "signs")
    pack, before = model.bundle.pack("signs"), model.logits(batch, "signs")
    for number in range(61):
        model.add_domain(dataclasses.replace(pack, name=f"more{number}"))
    with pytest.raises(InputError, match=r"bank is .*more room for domains"):
        model.add_domain(dataclasses.replace(pack, name="one too many"))
    assert len(model.domains) == 64
    for name in ("signs", "more60"):
        np.testing.assert_allclose(model.logits(batch, name), before, rtol=1e-5)


def test_what_a_provider_is_told() -> None:
    profiles = {"image": ((1, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8)), "domain": ((1,), (8,), (32,))}
    told = provider_options("tensorrt-ep", "int8", profiles)
    assert told["trt_profile_min_shapes"] == "image:1x3x8x8,domain:1"
    assert told["trt_profile_max_shapes"] == "image:32x3x8x8,domain:32"
    assert (told["trt_fp16_enable"], told["trt_int8_enable"]) == ("1", "1")
    assert provider_options("tensorrt-ep", "fp32", profiles)["trt_fp16_enable"] == "0"
    assert list(provider_options("tensorrt-rtx-ep", "fp16", profiles)) == [
        f"nv_profile_{name}_shapes" for name in ("min", "opt", "max")
    ]


@pytest.mark.parametrize("backend", ["tensorrt-ep", "tensorrt-rtx-ep"])
def test_a_provider_that_is_not_there_is_one_line(
    bundle_path: Path, batch: np.ndarray, backend: str
) -> None:
    if PROVIDERS[backend] in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    with pytest.raises(MissingDependencyError, match=f"has no {PROVIDERS[backend]}: "):
        load(bundle_path, backend).logits(batch, "signs")
    with pytest.raises(InputError, match="runs no engine"):
        load(bundle_path, backend, engine="x.engine")


def test_a_context_is_kept_and_one_that_does_not_load_is_made_again(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path))
    key, opened = engine_key(open_bundle(bundle_path), "tensorrt-ep", "1.0"), list[str]()

    def make(model: str | bytes, entries: dict[str, str]) -> Any:
        opened.append("graph" if isinstance(model, bytes) else "context")
        if entries:  # what a provider that compiles would write
            Path(entries["ep.context_file_path"]).write_bytes(graph)
        return make_ort_session(model, SessionOptions("cpu", 1))

    def again(key: EngineKey) -> list[str]:
        opened.clear()
        _, digest = open_compiled(make, graph, key)
        assert digest == hashlib.sha256(graph).hexdigest(), "of what was compiled"
        return list(opened)

    graph = (bundle_path / "model.onnx").read_bytes()
    assert again(key) == ["graph"]
    (context,) = (x for x in (tmp_path / "contexts").iterdir() if x.suffix == ".onnx")
    assert key_place(context).is_file()
    assert again(key) == ["context"]
    assert again(dataclasses.replace(key, sms=(86,))) == ["graph"], "another GPU"
    write_engine(context, key, b"whole, and no model")
    assert again(key) == ["context", "graph"]
    context.write_bytes(b"cut off")
    assert again(key) == ["graph"]
    with pytest.raises(BundleError, match="does not load"):
        open_compiled(make, b"no graph", dataclasses.replace(key, sms=(99,)))


def test_fallbacks_of_onnxruntime_are_off(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = make_ort_session(bundle_path / "model.onnx", SessionOptions("cpu", 1))
    assert session.raw._enable_fallback is False, "a failing run would go on with the CPU"
    # A build that names a provider it cannot start, as one with CUDA and no driver does.
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(PROVIDERS.values()))
    with pytest.warns(UserWarning, match="not in available provider names"):
        with pytest.raises(BackendError, match=r"CUDAExecutionProvider did not start.*fell back"):
            make_ort_session(bundle_path / "model.onnx", SessionOptions("cuda"))
        _tell_once.cache_clear()
        for _ in range(2):
            found = make_ort_session(bundle_path / "model.onnx", SessionOptions("auto"))
    assert found.get_providers() == ["CPUExecutionProvider"]
    assert caplog.text.count("auto goes on without cuda: CUDAExecutionProvider did not start") == 1
