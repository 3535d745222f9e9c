"""Running engines: what is refused before a GPU is asked for, and what a GPU must show."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunion.runtime.backends import run
from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import BackendError, EngineError, InputError, MissingDependencyError
from prunion.runtime.model import load
from prunion.runtime.tensorrt import BuildOptions, build_engine, check_shape, cuda, engine_key
from prunion.runtime.tensorrt.files import key_place
from prunion.runtime.tensorrt.layers import EngineLayer, layers_note, parse_layers, wrong_layers
from prunion.runtime.tensorrt.session import deserialise

pytest.importorskip("onnx")


def rtx_knows(sm: int | None) -> bool:
    """TensorRT-RTX runs from Turing on, but not on data centres' or Jetsons' GPUs."""
    try:
        import tensorrt_rtx
    except ImportError:
        return True  # the fixture skips
    return hasattr(tensorrt_rtx.ComputeCapability, f"SM{sm}")


HAS_GPU = cuda.device_sm() is not None
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="running an engine needs an NVIDIA GPU")
needs_rtx_gpu = pytest.mark.skipif(
    not (HAS_GPU and rtx_knows(cuda.device_sm())), reason="needs a GPU that TensorRT-RTX knows"
)
without_gpu = pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    return pytest.importorskip("tensorrt_rtx", reason="needs prunion[tensorrt-rtx]")


@pytest.fixture(scope="module")
def engine(bundle_path: Path, rtx: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "toy.engine"
    build_engine(open_bundle(bundle_path), sms=[86], output=path)
    return path


def test_a_stale_engine_is_refused_with_or_without_a_gpu(
    bundle_path: Path, engine: Path, batch: np.ndarray
) -> None:
    def answer() -> None:
        load(bundle_path, "tensorrt-rtx", engine=engine).logits(batch, "signs")

    place, data = key_place(engine), engine.read_bytes()
    key = json.loads(place.read_text("utf-8"))
    for name, value in [("graph_sha256", "0" * 64), ("library_version", "1.0"), ("target", "x")]:
        place.write_text(json.dumps({**key, name: value}))
        with pytest.raises(EngineError, match=rf"{name} was.*prunion build"):
            answer()
    without = {k: v for k, v in key.items() if k != "batch"}
    for damaged in (without, {**key, "sms": "86"}, {**key, "sms": 86}):
        place.write_text(json.dumps(damaged))
        with pytest.raises(EngineError, match="incomplete"):
            answer()
    place.write_text(json.dumps(key))
    engine.write_bytes(data[:-9])
    with pytest.raises(EngineError, match="truncated or altered"):
        answer()
    engine.write_bytes(data)
    with pytest.raises(EngineError, match="does not exist"):
        load(bundle_path, "tensorrt-rtx", engine=engine.with_name("no.engine")).logits(batch, 0)


@without_gpu
def test_without_a_gpu_one_line_says_so(
    bundle_path: Path, engine: Path, batch: np.ndarray, rtx: ModuleType
) -> None:
    for options in ({"engine": engine}, {}):
        model = load(bundle_path, "tensorrt-rtx", **options)  # type: ignore[arg-type]
        with pytest.raises(BackendError, match="runs engines on an NVIDIA GPU and there is none"):
            model.logits(batch, "signs")
    assert "takes new domains without a new engine" in str(model.tune().reason)
    with pytest.raises(BackendError, match="no GPU here to build for: name GPUs with --sm"):
        build_engine(open_bundle(bundle_path))


def test_an_engine_needs_its_backend(bundle_path: Path, engine: Path) -> None:
    with pytest.raises(InputError, match="runs no engine: use tensorrt-rtx or tensorrt"):
        load(bundle_path, "cpu", engine=engine)


def test_bytes_that_are_no_engine(rtx: ModuleType) -> None:
    with pytest.raises(EngineError, match="refuses the engine"):
        deserialise(rtx, b"not an engine" * 100)


@pytest.mark.parametrize(
    ("name", "shape", "fix"),
    [
        ("image", (9, 3, 12, 10), "smaller batches"),
        ("image", (2, 3, 12, 11), "smaller batches"),
        ("image", (2, 3, 12), "smaller batches"),
        ("bank", (65, 16), "more room for domains"),
    ],
)
def test_a_batch_over_the_profile(name: str, shape: tuple[int, ...], fix: str) -> None:
    low, high = ((1, 3, 12, 10), (8, 3, 12, 10)) if name == "image" else ((1, 16), (64, 16))
    check_shape(name, low, low, high)
    check_shape(name, high, low, high)
    with pytest.raises(InputError, match=fix):
        check_shape(name, shape, low, high)


def test_options_are_part_of_the_key(bundle_path: Path, rtx: ModuleType, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    options = BuildOptions(workspace=64 << 20, timing_cache=cache)
    first = build_engine(
        open_bundle(bundle_path), sms=[86], options=options, output=tmp_path / "a.engine"
    )
    assert first.key.options == ("workspace=67108864",)
    assert cache.is_file()
    build_engine(open_bundle(bundle_path), sms=[86], options=options, output=tmp_path / "b.engine")
    cache.write_bytes(b"not a timing cache")
    build_engine(open_bundle(bundle_path), sms=[86], options=options, output=tmp_path / "c.engine")
    assert cache.read_bytes() == b"not a timing cache", "it replaces only what it wrote itself"
    on_dla = BuildOptions((8, 8, 8), dla=0)
    with pytest.raises(InputError, match="only a Jetson has a DLA"):
        build_engine(open_bundle(bundle_path), sms=[86], options=on_dla, force=True)
    with pytest.raises(InputError, match="float16 and INT8 only"):
        engine_key(open_bundle(bundle_path), "tensorrt", "10.3.0", options=on_dla)
    for wrong in ({"batch": (8, 1, 32)}, {"workspace": 5}, {"dla": -1}, {"dla": 0}):
        with pytest.raises(InputError):
            BuildOptions(**wrong)  # type: ignore[arg-type]


def test_the_precision_of_an_engine_is_read_from_its_inspector() -> None:
    def layer(name: str, kind: str, form: str) -> dict:
        inputs = [{"Name": "x", "Dimensions": [1, 8], "Format/Datatype": form}]
        return {"Name": name, "ParameterType": kind, "Inputs": inputs}

    text = json.dumps(
        {
            "Layers": [
                layer("conv1", "Convolution", "Row major linear FP32"),
                layer("conv2", "Convolution", "Channel major FP16 format where channel % 8 == 0"),
                layer("conv3", "Convolution", "Thirty-two wide channel vectorized row major Int8"),
                layer("pool", "Pooling", "Half"),
                "a name alone",
            ]
        }
    )
    layers = parse_layers(text)
    assert [x.precision for x in layers] == ["fp32", "fp16", "int8", "fp16", ""]
    assert [x.name for x in wrong_layers(layers, "fp16-uint8")] == ["conv1", "conv3"]
    unknown = [EngineLayer("x", "Convolution", "")]
    assert wrong_layers(unknown, "fp16") == []
    assert layers_note(layers, "fp16-uint8") == (
        "2 of 3 convolutions do NOT run in fp16: conv1 (fp32), conv3 (int8)"
    )
    assert layers_note(layers[1:2], "fp16") == "all 1 convolutions run in fp16"
    assert "does not tell" in layers_note(unknown, "fp16")
    for broken in ("", "[]", "{}"):
        with pytest.raises(EngineError, match="no list of layers"):
            parse_layers(broken)


def test_a_sessions_own_errors_stay_what_they_are() -> None:
    class Refusing:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def run(self, outputs: list[str], feeds: dict[str, np.ndarray]) -> None:
            raise self.error

    for own in (BackendError("CUDA answers"), InputError("smaller batches")):
        with pytest.raises(type(own), match=f"^{own}$"):
            run(Refusing(own), {})
    with pytest.raises(InputError, match=r"refused the batch.*\[2, 3\].*: RuntimeError"):
        run(Refusing(RuntimeError()), {"image": np.zeros((2, 3))})


@without_gpu
def test_cuda_errors_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    with pytest.raises(BackendError, match="CUDA answers cudaError"):
        cuda.Stream()
    monkeypatch.setattr(cuda, "import_module", lambda name: __import__("no_such_module"))
    with pytest.raises(MissingDependencyError, match="pip install cuda-python"):
        cuda.cudart()
    assert cuda.device_sm() is None


@pytest.mark.gpu
@needs_rtx_gpu
def test_an_engine_answers_like_numpy(
    bundle_path: Path, toy: ModuleType, batch: np.ndarray, rtx: ModuleType
) -> None:
    model = load(bundle_path, "tensorrt-rtx")
    for rows in ([2, 0, 1, 1, 0, 2], [0] * 6, [1, 2]):
        expected = toy.reference(toy.make_tables(), batch[: len(rows)], np.array(rows))
        for _ in range(4):  # plain, recorded, replayed twice
            got = model.logits(batch[: len(rows)], rows)
            np.testing.assert_allclose(got, expected, rtol=2e-2, atol=2e-2)
    session = model.sessions.mixed()
    assert session.memory_bytes >= 0
    assert not wrong_layers(session.layers(), "fp32")
    assert f"engine: {session.note()}" in str(model.explain())


@pytest.mark.gpu
@needs_rtx_gpu
def test_new_domains_need_no_new_engine(
    bundle_path: Path, batch: np.ndarray, rtx: ModuleType
) -> None:
    model = load(bundle_path, "tensorrt-rtx")
    before, session = model.logits(batch, "signs"), model.sessions.mixed()
    pack = dataclasses.replace(model.bundle.pack("signs"), name="more")
    for _ in range(3):
        model.add_domain(pack)
        np.testing.assert_allclose(model.logits(batch, "more"), before, rtol=1e-3, atol=1e-3)
        model.remove_domain("more")
    assert model.sessions.mixed() is session
    with pytest.raises(InputError, match="smaller batches"):
        model.logits(np.repeat(batch, 6, axis=0), "signs")


@pytest.mark.gpu
@needs_rtx_gpu
def test_a_domain_past_the_profile_leaves_the_others_alone(
    bundle_path: Path, batch: np.ndarray, rtx: ModuleType
) -> None:
    model = load(bundle_path, "tensorrt-rtx")
    before, pack = model.logits(batch, "signs"), model.bundle.pack("signs")
    for number in range(BuildOptions().max_domains - 3):
        model.add_domain(dataclasses.replace(pack, name=f"more{number}"))
    with pytest.raises(InputError, match="more room for domains"):
        model.add_domain(dataclasses.replace(pack, name="too many"))
    np.testing.assert_allclose(model.logits(batch, "signs"), before, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@needs_gpu
def test_a_stream_outlives_what_cannot_be_recorded() -> None:
    stream, buffer = cuda.Stream(), cuda.Buffer(64)
    with pytest.raises(BackendError):
        stream.record(lambda: cuda.call(stream.rt.cudaStreamSynchronize, stream.handle))
    stream.launch(stream.record(lambda: buffer.upload(64, stream)))
    stream.wait()


@pytest.mark.gpu
@needs_gpu
def test_an_engine_of_another_gpu_is_refused(
    bundle_path: Path, engine: Path, batch: np.ndarray
) -> None:
    key = json.loads(key_place(engine).read_text("utf-8"))
    key_place(engine).write_text(json.dumps({**key, "sms": [10]}))
    with pytest.raises(EngineError, match="was built for sm 10"):
        load(bundle_path, "tensorrt-rtx", engine=engine).logits(batch, 0)
