"""The demo's data sets are real, repeatable, and open like a user's own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from prunion.benchmarks.demo.images import faces, photos, write_demo_domains
from prunion.trainer.config import DomainConfig
from prunion.trainer.data import Domain, open_domain

PACKAGES = ("sklearn", "skimage", "matplotlib")  # looked for: to import them takes two seconds
if not all(importlib.util.find_spec(package) for package in PACKAGES):
    pytest.skip("needs prunion[demo]", allow_module_level=True)


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Domain]:
    paths = write_demo_domains(tmp_path_factory.mktemp("demo"), 32)
    return {
        name: open_domain(DomainConfig(name, train=(str(train),), test=(str(test),)), 0)
        for name, (train, test) in paths.items()
    }


@pytest.mark.thorough  # with the next, which shares the images: seconds to make them
def test_there_are_five_domains_of_a_useful_size(domains: dict[str, Domain]) -> None:
    shape = {
        name: (len(d.classes), len(d.train.labels), len(d.test.labels))
        for name, d in domains.items()
    }
    assert shape == {
        "digits": (10, 1198, 599),
        "letters": (26, 1352, 312),
        "textures": (7, 840, 280),
        "photos": (7, 840, 280),
        "faces": (2, 140, 60),
    }


@pytest.mark.thorough
def test_no_test_image_is_a_training_image(domains: dict[str, Domain]) -> None:
    for name, domain in domains.items():
        train, test = (
            {part.image(index).tobytes() for index in range(len(part))}
            for part in (domain.train, domain.test)
        )
        assert not train & test, name
        assert domain.test.image(0).size == (32, 32)


def test_the_same_images_come_every_time() -> None:
    for make in (faces, photos):
        first, again = ([(e.image.tobytes(), e.label, e.test) for e in make(16)] for _ in "ab")
        assert first == again


def test_both_layouts_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunion.benchmarks.demo import images as demo_images

    monkeypatch.setattr(demo_images, "DEMO_IMAGES", {"faces": faces, "letters": faces})
    paths = write_demo_domains(tmp_path, 16)
    assert paths["faces"] == (tmp_path / "faces" / "train", tmp_path / "faces" / "test")
    assert paths["letters"][0].suffix == ".parquet"
    assert sorted(p.name for p in paths["faces"][0].iterdir()) == ["background", "face"]
