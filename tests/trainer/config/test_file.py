"""Values as TOML, and values put in place of a run file's."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import load_config, read_change
from prunion.trainer.config.file import read_toml, set_option, toml_key, toml_text
from tests.support.tiny_run import tiny_run

VALUES = [
    *(True, 7, -1.5, 1e-30, 1e22, float("inf"), [], [1, [2.0]], {}, {"a b": {"\U0001f41d": [""]}}),
    *(
        "",
        "plain",
        "0.5",
        "true",
        "nan",
        "inf",
        "1e3",
        "1979-05-27",
        "07:32:00",
        "a=b # c",
        "'",
        "\\",
    ),
    *("\U00020bb7/\u00e4", 'a "b"', "\x7f\x85\u2028\x00", "line\nline", "\ufeff", "\u202e"),
]


@pytest.mark.parametrize("value", VALUES)
def test_what_is_written_is_read_again(tmp_path: Path, value: Any) -> None:
    text = f"{toml_key('x', 'y.z')} = {toml_text(value)}"
    assert len(text.splitlines()) == 1
    (tmp_path / "x.toml").write_text(text, "utf-8")
    assert read_toml(tmp_path / "x.toml") == {"x": {"y.z": value}}
    path = ("train", "v1.0", "\U0001f41d")
    assert read_change(*shlex.split(set_option(path, value))) == (list(path), value)


def test_a_key_that_is_left_out_has_no_text() -> None:
    assert toml_text({"a": None, "b": (1,)}) == "{b = [1]}"


@pytest.mark.parametrize("text", ["lr", "=3", "[train]=3", "a.=3", "a=1\nb", "a b=1", "x=\udcff"])
def test_a_change_that_says_no_key_and_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"give TABLE\.KEY=VALUE"):
        read_change(text)


def test_a_table_takes_the_place_of_the_file_s(tmp_path: Path) -> None:
    """It was merged into it, so that an empty one changed nothing."""
    run_file = tiny_run(tmp_path, augment="{ randaugment = 9 }")
    assert load_config(run_file, ["train.augment={}"]).train.augment.randaugment == 0
    augment = load_config(run_file, ["train.augment={erasing=0.25}"]).train.augment
    assert (augment.randaugment, augment.erasing) == (0, 0.25)
    augment = load_config(run_file, ["train.augment.erasing=0.25"]).train.augment
    assert (augment.randaugment, augment.erasing) == (9, 0.25)
    with pytest.raises(ConfigError, match=r"\[budget\] limit is missing"):
        load_config(run_file, ["budget={round_to=4}"])
