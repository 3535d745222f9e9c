"""An engine is found, checked and opened; no GPU, a stand-in takes the engine's bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prunion.runtime.bundle import Bundle, open_bundle
from prunion.runtime.errors import EngineError
from prunion.runtime.tensorrt import engine_key, open_engine, write_engine
from prunion.runtime.tensorrt import open as opening

ENGINE = b"engine" * 1000


@pytest.fixture
def bundle(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle on a machine with TensorRT 10.3 and a GPU of compute capability 8.7."""
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(opening, "library", lambda _: SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(opening, "running_sm", lambda _: 87)
    monkeypatch.setattr(opening, "engine_bytes", lambda *_: (ENGINE, {}))
    monkeypatch.setattr(opening, "TensorRtSession", lambda _, engine, precision: engine)
    return open_bundle(bundle_path)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often as much as a whole engine was hashed."""
    found: list[int] = []
    real = hashlib.sha256

    class Counting:
        """SHA-256 that counts its bytes."""

        def __init__(self, data: bytes = b"") -> None:
            self.inner = real()
            self.update(data)

        def update(self, data: bytes) -> None:
            self.inner.update(data)
            if len(data) >= len(ENGINE):
                found.append(len(data))

        def hexdigest(self) -> str:
            return self.inner.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Counting)
    return found


def test_an_engine_is_hashed_once_a_load(bundle: Bundle, hashed: list[int]) -> None:
    assert open_engine(bundle, "tensorrt") == ENGINE, "built"
    assert len(hashed) == 1, "for the key beside it"
    hashed.clear()
    assert open_engine(bundle, "tensorrt") == ENGINE, "from the cache"
    assert len(hashed) == 1


def test_a_given_engine_is_hashed_once(bundle: Bundle, hashed: list[int], tmp_path: Path) -> None:
    given = tmp_path / "given.engine"
    write_engine(given, engine_key(bundle, "tensorrt", "10.3.0", sms=[86, 87]), ENGINE)
    hashed.clear()
    assert open_engine(bundle, "tensorrt", engine=given) == ENGINE
    assert len(hashed) == 1


def test_a_damaged_engine_of_the_cache_is_built_again(bundle: Bundle, tmp_path: Path) -> None:
    open_engine(bundle, "tensorrt")
    (engine,) = (tmp_path / "cache" / "engines").glob("*.engine")
    engine.write_bytes(b"cut off")
    assert open_engine(bundle, "tensorrt") == ENGINE
    assert engine.read_bytes() == ENGINE


@pytest.mark.parametrize(
    ("version", "sms", "message"),
    [
        ("10.4.0", [87], "library_version was '10.4.0', is '10.3.0'"),
        ("10.3.0", [86], "was built for sm 86, this GPU is sm 87"),
    ],
)
def test_a_given_engine_of_elsewhere_is_refused(
    bundle: Bundle, tmp_path: Path, version: str, sms: list[int], message: str
) -> None:
    given = tmp_path / "given.engine"
    write_engine(given, engine_key(bundle, "tensorrt", version, sms=sms), ENGINE)
    with pytest.raises(EngineError, match=message):
        open_engine(bundle, "tensorrt", engine=given)


def test_what_is_wrong_with_the_file_comes_before_the_gpu(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_gpu(target: Any) -> int:
        raise AssertionError("the file is looked at first")

    monkeypatch.setattr(opening, "running_sm", no_gpu)
    given = tmp_path / "given.engine"
    write_engine(given, engine_key(bundle, "tensorrt", "10.3.0", sms=[87]), ENGINE)
    given.write_bytes(ENGINE[:-1])
    with pytest.raises(EngineError, match="truncated or altered"):
        open_engine(bundle, "tensorrt", engine=given)
