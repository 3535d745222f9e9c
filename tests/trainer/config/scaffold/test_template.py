"""What `prunion init` finds is a run file that can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.trainer.config import found_domains, load_config, run_file_text
from prunion.trainer.config.scaffold.found import free_name


@pytest.mark.parametrize(
    ("name", "taken", "free"),
    [
        ("a", (), "a"),
        ("a", ("A",), "a_2"),
        ("A", ("a", "A_2"), "A_3"),
        ("a_2", ("A_2", "a"), "a_2_2"),
        ("x" * 64, ("X" * 64,), "x" * 60 + "_2"),
    ],
)
def test_names_that_differ_in_case_alone_get_a_number(
    name: str, taken: tuple[str, ...], free: str
) -> None:
    assert free_name(name, dict.fromkeys(taken)) == free


def test_folders_that_differ_in_case_alone_are_two_domains(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for domain in ("Signs", "signs"):
        for name in ("x", "y"):
            (data / domain / name).mkdir(parents=True, exist_ok=True)
            (data / domain / name / "1.png").touch()
    if len(list(data.iterdir())) < 2:
        pytest.skip("this file system does not tell them apart")
    domains = found_domains(data)
    assert domains == {"Signs": {"train": data / "Signs"}, "signs_2": {"train": data / "signs"}}
    file = tmp_path / "run.toml"
    file.write_text(run_file_text(data, file, domains), "utf-8")
    assert [x.name for x in load_config(file).domains] == ["Signs", "signs_2"]
