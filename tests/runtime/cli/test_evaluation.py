"""The progress of `prunion eval`, and where its answers go."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from prunion.runtime import measure
from prunion.runtime.base import machine
from prunion.runtime.batching.decode import Decoder
from prunion.runtime.bundle import open_bundle, write_pack
from prunion.runtime.cli import evaluation
from prunion.runtime.errors import InputError
from prunion.runtime.images import open_labelled
from prunion.runtime.measure import evaluate
from prunion.runtime.model import load
from tests.runtime.cli.command_line import invoke, one_error_line


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for stream, lines in ((_Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(evaluation, "BETWEEN_LINES", -1.0)
        with evaluation.told_progress() as progress:
            progress(0, 1200)
            progress(640, 1200)
        assert ("640 of 1,200 images\n" in stream.getvalue()) == lines
        assert ("[##" in stream.getvalue()) != lines


@pytest.fixture
def table(picture: Path) -> Path:
    """Of one image of the domain `digits`."""
    path = picture.with_name("x.csv")
    path.write_text(f"image,label\n{picture.name},zero\n", "utf-8")
    return path


def test_figures_and_answers_do_not_cost_each_other(
    bundle_path: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "e.json"
    arguments = ("eval", bundle_path, "-d", "digits", table, "-o", output, "--force")

    def broken(text: str, **options: object) -> None:
        raise BrokenPipeError

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:  # as behind `| head`
        patch.setattr(click, "echo", broken)
        assert invoke(*arguments).exit_code
    assert json.loads(output.read_text("utf-8"))["images"] == 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = invoke(*arguments)
    assert result.exit_code == 1 and "e.json cannot be written (No space left" in result.stderr
    assert "digits: 1 images" in result.stdout


def test_what_only_speaks_of_evaluations_is_none(
    bundle_path: Path, table: Path, tmp_path: Path
) -> None:
    notes = tmp_path / "notes.md"
    for text in ("What a prunion evaluation said", '{"kind": "notes", "of": "prunion evaluation"}'):
        notes.write_text(text, "utf-8")
        result = invoke("eval", bundle_path, "-d", "digits", table, "-o", notes, "--force")
        assert result.exit_code == 1 and "is no file of `prunion eval`" in result.stderr
        assert notes.read_text("utf-8") == text


def test_what_came_meanwhile_is_not_replaced(
    bundle_path: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, plain = tmp_path / "e.json", measure.evaluate

    def slow(*arguments: Any, **options: Any) -> Any:
        output.write_text("another's", "utf-8")
        return plain(*arguments, **options)

    monkeypatch.setattr(measure, "evaluate", slow)
    result = invoke("eval", bundle_path, "-d", "digits", table, "-o", output)
    assert result.exit_code == 1 and "was written by somebody else" in result.stderr
    assert "digits: 1 images" in result.stdout
    assert output.read_text("utf-8") == "another's"


def test_nothing_is_written_into_the_bundle(own_bundle: Path, table: Path) -> None:
    before = set(own_bundle.rglob("*"))
    for command in (
        ("eval", own_bundle, "-d", "digits", table, "-o", own_bundle / "e.json"),
        ("bench", own_bundle, "--csv", own_bundle / "domains/b.csv"),
        ("profile", own_bundle, "-o", own_bundle / "p.json"),
    ):
        assert "is inside the bundle" in one_error_line(invoke(*command))
    assert set(own_bundle.rglob("*")) == before


def test_columns_of_class_folders_are_a_usage_error(
    bundle_path: Path, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "set/zero").mkdir(parents=True)
    picture.rename(tmp_path / "set/zero/x.png")
    for option in ("--image-column", "--label-column"):
        result = invoke("eval", bundle_path, "-d", "digits", tmp_path / "set", option, "species")
        assert result.exit_code == 2 and f"{option} is for Parquet, tars and" in result.stderr
    with pytest.raises(InputError, match="holds class folders, without columns"):
        open_labelled(tmp_path / "set", "digits", ("zero",), "exif", ("image", "species"))
    assert invoke("eval", bundle_path, "-d", "digits", tmp_path / "set").exit_code == 0


def test_images_are_decoded_within_the_quota(
    bundle_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, count: int | None = None, **options: object) -> None:
            asked.append(count)
            super().__init__(count)

    monkeypatch.setattr(machine, "cpu_quota", lambda root=None: 1.5)
    for module in ("measure.evaluation", "images.image_check", "batching.decode"):
        monkeypatch.setattr(f"prunion.runtime.{module}.ThreadPoolExecutor", Pool)
    evaluate(bundle_path, table, "digits")
    Decoder().close()
    assert asked == [1, 1, 1]


def test_a_loaded_model_is_left_as_it_was(bundle_path: Path, table: Path, tmp_path: Path) -> None:
    """Its packs stayed in it, and the same call once more ended in a name that was taken."""
    model, pack = load(bundle_path, "cpu", threads=1), open_bundle(bundle_path).pack("digits")
    write_pack(tmp_path / "more.safetensors", replace(pack, name="more"))
    before = model.domains
    for _ in range(2):
        found = evaluate(model, table, "more", packs=[tmp_path / "more.safetensors"])
        assert found.figures.domain == "more"
        assert model.domains == before
