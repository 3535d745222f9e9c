"""The copy of the run file in a run's folder says what run it was."""

from __future__ import annotations

import shlex
from pathlib import Path

from prunion.trainer.config import keep_run_file, load_config
from tests.trainer.tiny_run import tiny_run

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
