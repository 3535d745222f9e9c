"""With a validation split a run sees its test images once, at its end."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from prunion.runtime.errors import ConfigError, DataError
from prunion.trainer.config import DomainConfig, RunConfig, load_config
from prunion.trainer.data import open_domain
from prunion.trainer.run import closing_table, train_run
from prunion.trainer.run.progress import telling
from tests.support.images import pixels, write_folders
from tests.support.tiny_run import tiny_run


def domain(root: Path, **options: Any) -> DomainConfig:
    return DomainConfig("d", train=(str(root / "train"),), **options)


def test_three_sets_share_no_image(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", {"a": 10, "b": 10})
    opened = open_domain(domain(tmp_path, holdout=0.2, validation_holdout=0.3), 0)
    assert opened.validation is not None
    sets = [pixels(x) for x in (opened.train, opened.validation, opened.test)]
    assert list(map(len, sets)) == [12, 4, 4]
    assert len({image for images in sets for image in images}) == 20
    assert opened.found["images"] == {"train": 12, "validation": 4, "test": 4}
    # The test images are those of a run without validation.
    assert pixels(open_domain(domain(tmp_path, holdout=0.2), 0).test) == sets[2]


def test_its_classes_are_the_training_images(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", {"a": 4, "b": 4})
    write_folders(tmp_path / "seen", {"b": 2})
    config = domain(tmp_path, holdout=0.2, validation=(str(tmp_path / "seen"),))
    opened = open_domain(config, 0)
    assert opened.validation is not None and opened.validation.labels.tolist() == [1, 1]
    write_folders(tmp_path / "seen2", {"c": 2})
    config = domain(tmp_path, holdout=0.2, validation=(str(tmp_path / "seen2"),))
    with pytest.raises(DataError, match="train and validation have different classes"):
        open_domain(config, 0)
    with pytest.raises(ConfigError, match=r"validation_holdout is 0\.1, but validation is given"):
        domain(tmp_path, holdout=0.2, validation=("x",), validation_holdout=0.1)


def test_the_test_images_are_read_once_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prunion.trainer.network import evaluation

    answered: list[int] = []
    batches = evaluation.eval_batches

    def counted(images: Any, *rest: Any, **named: Any) -> Any:
        answered.append(len(images))
        return batches(images, *rest, **named)

    monkeypatch.setattr(evaluation, "eval_batches", counted)
    run_file = tiny_run(tmp_path)
    changes = [f"domains.{name}.validation_holdout=0.25" for name in ("warm", "cold")]
    config = load_config(run_file, changes)
    assert RunConfig.from_json(config.to_json()) == config
    with caplog.at_level(logging.INFO):
        result = train_run(config, tmp_path / "out")
    # Of 16 and 24 training images 4 and 6 are set aside; there are as many test images as before.
    # Last come the training images, which tell what the finished network answers of them.
    assert answered == [4, 6] * 5 + [16, 24] + [12, 18]
    lines = [json.loads(x) for x in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum("validation_accuracy/warm" in line for line in lines) == 4
    assert not any(key.startswith("test_part") for line in lines for key in line)
    assert "after warm-up, on validation images" in closing_table(result)
    told = [x.getMessage() for x in caplog.records if x.getMessage().startswith("epoch ")]
    taken = [line for line in lines if "cost" in line]
    each = len(taken) // 4  # steps of an epoch
    phases = ("warmup", "ramp", "ramp", "settle")
    for number, (line, phase) in enumerate(zip(told, phases, strict=True)):
        own = taken[number * each : (number + 1) * each]
        warm, cold = (sum(x[f"loss/{name}"] for x in own) / each for name in ("warm", "cold"))
        assert line.startswith(
            f"epoch {number + 1} of 4, {phase}: loss warm {warm:.3f}, cold {cold:.3f}; "
            "validation accuracy warm "
        )
    assert "validation" not in load_config(run_file).to_json()["domains"]["warm"]


def test_a_bar_is_drawn_under_a_notebooks_cell_and_not_because_somebody_imported_its_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert not telling._someone_looks()
    shell = ModuleType("IPython")
    shell.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert telling._someone_looks()
