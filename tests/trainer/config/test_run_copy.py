"""The copy of the run file in a run's folder says what run it was."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from prunion.trainer.config import keep_run_file, load_config
from tests.support.tiny_run import tiny_run

CHANGES = ["seed=7", "train.lr=0.25", 'train.sharing="jaccard"', "train.augment.mixup=0.5"]


def options(copy: Path) -> list[str]:
    lines = copy.read_text("utf-8").splitlines()
    found = [shlex.split(line[1:]) for line in lines if line.startswith("#   --set ")]
    assert all(words[0] == "--set" and len(words) == 2 for words in found)
    return [words[1] for words in found]


def test_the_copy_and_its_first_lines_are_the_run(tmp_path: Path) -> None:
    run_file, copy = tiny_run(tmp_path), tmp_path / "copy.toml"
    config = load_config(run_file, CHANGES)
    keep_run_file(run_file, config, copy)
    assert copy.read_text("utf-8").endswith(run_file.read_text("utf-8"))
    assert len(options(copy)) == len(CHANGES)
    assert load_config(copy, options(copy)) == config


def test_relative_paths_are_told_where_the_copy_lies(tmp_path: Path) -> None:
    run_file, copy = tiny_run(tmp_path), tmp_path / "a folder" / "copy.toml"
    copy.parent.mkdir()
    keep_run_file(run_file, load_config(run_file), copy)
    assert load_config(copy, options(copy)) == load_config(run_file)


def test_a_file_that_is_right_by_a_change_alone(tmp_path: Path) -> None:
    run_file, copy = tiny_run(tmp_path), tmp_path / "copy.toml"
    run_file.write_text(run_file.read_text("utf-8").replace("seed = 3", 'seed = "three"'))
    config = load_config(run_file, ["seed=3"])
    keep_run_file(run_file, config, copy)
    assert load_config(copy, options(copy)) == config


def test_without_a_change_the_copy_is_the_file(tmp_path: Path) -> None:
    run_file, copy = tiny_run(tmp_path), tmp_path / "copy.toml"
    keep_run_file(run_file, load_config(run_file), copy)
    assert copy.read_bytes() == run_file.read_bytes()


def test_a_run_started_from_a_copy_says_its_own_changes_alone(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path)
    text = run_file.read_text("utf-8")
    keep_run_file(run_file, load_config(run_file, ["seed=7"]), run_file)  # its own place
    assert "seed=7" in run_file.read_text("utf-8")
    keep_run_file(run_file, load_config(run_file, ["seed=8"]), run_file)
    assert "seed=7" not in run_file.read_text("utf-8")
    assert "seed=8" in run_file.read_text("utf-8")
    keep_run_file(run_file, load_config(run_file), run_file)
    assert run_file.read_text("utf-8") == text


@pytest.mark.parametrize(
    ("train", "change"),
    [
        ({"head_optimiser": '"sgd"'}, ["train.head_optimiser=adamw"]),
        ({"method": '"norms"'}, ["train.method=bap"]),
        ({"drops": "[1]"}, ["train.drops=auto"]),
        ({"augment": "{ mixup = 0.2 }"}, ["train.augment={}"]),
        ({"augment": "{ mixup = 0.2 }"}, ["train.augment={erasing=0.25}"]),
        ({"method": '"ba2"'}, ["train.method=bap", "domains.cold.limit=6", "domains.cold.limit=0"]),
    ],
)
def test_what_goes_back_to_its_default_is_told(
    tmp_path: Path, train: dict[str, str], change: list[str]
) -> None:
    """What a run leaves out at its default could not be seen to have changed."""
    run_file, copy = tiny_run(tmp_path, **train), tmp_path / "copy.toml"
    config = load_config(run_file, change)
    keep_run_file(run_file, config, copy)
    assert copy.read_text("utf-8").endswith(run_file.read_text("utf-8"))
    assert options(copy)
    assert load_config(copy, options(copy)) == config


def test_a_domain_goes_back_to_its_defaults(tmp_path: Path) -> None:
    run_file, copy = tiny_run(tmp_path), tmp_path / "copy.toml"
    more = "drop_untrained = true\nvalidation_holdout = 0.2\naugment = { randaugment = 9 }\n"
    run_file.write_text(run_file.read_text("utf-8") + more, "utf-8")
    for change in ("drop_untrained=false", "validation_holdout=0", "augment={colour=0.5}"):
        config = load_config(run_file, [f"domains.cold.{change}"])
        keep_run_file(run_file, config, copy)
        assert load_config(copy, options(copy)) == config != load_config(run_file)


def test_a_byte_order_mark_does_not_end_up_behind_the_first_lines(tmp_path: Path) -> None:
    run_file, copy = tiny_run(tmp_path), tmp_path / "copy.toml"
    run_file.write_bytes(b"\xef\xbb\xbf" + run_file.read_bytes())
    keep_run_file(run_file, load_config(run_file), copy)
    assert copy.read_bytes() == run_file.read_bytes()
    config = load_config(run_file, CHANGES)
    keep_run_file(run_file, config, copy)
    assert load_config(copy, options(copy)) == config


def test_paths_hold_any_character(tmp_path: Path) -> None:
    folder = tmp_path / '\U00020bb7 a\'s "b" \u00a0\\'
    folder.mkdir()
    run_file, copy = tiny_run(folder), tmp_path / "copy.toml"
    config = load_config(run_file, ["backbone.weights=none", "domains.warm.test=\U0001f41d.tar"])
    assert config.domains[0].test == (str(folder / "\U0001f41d.tar"),)
    keep_run_file(run_file, config, copy)
    assert load_config(copy, options(copy)) == config


def test_what_options_cannot_say_is_written_as_a_whole(tmp_path: Path) -> None:
    """A program may leave out or reorder what its file says."""
    run_file, copy = tiny_run(tmp_path), tmp_path / "copy.toml"
    config = load_config(run_file)
    turned = replace(config, domains=config.domains[::-1])
    uncut = replace(config, backbone=replace(config.backbone, cut=None))
    for changed in (turned, uncut, replace(config, domains=config.domains[1:])):
        keep_run_file(run_file, changed, copy)
        assert load_config(copy, options(copy)) == changed
    keep_run_file(run_file, turned, copy)
    assert copy.read_text("utf-8").startswith("# The whole run")
    keep_run_file(copy, turned, copy)
    assert load_config(copy) == turned
