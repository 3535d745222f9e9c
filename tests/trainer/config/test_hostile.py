"""Run files as people and others write them: refused in one line that helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import RunConfig, load_added_domain, load_config

RUN = '[backbone]\nname = "resnet18"\n[budget]\nlimit = 0.5\n[domains.a]\n'
FILES = 'train = "a"\ntest = "b"\n'


def refused(folder: Path, text: str) -> str:
    path = folder / "run.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as told:
        load_config(path)
    message = str(told.value)
    assert message.isprintable(), message
    return message


def test_a_table_is_missing_as_a_table(tmp_path: Path) -> None:
    assert "add it as a table, a line [backbone]" in refused(tmp_path, "seed = 1\n")
    text = RUN.partition("[domains")[0]
    assert "add it as a table, a line [domains.NAME]" in refused(tmp_path, text)


@pytest.mark.parametrize("path", [r"C:\Users\me\data", r"C:\data", r"D:\x"])
def test_a_windows_path_in_double_quotes(tmp_path: Path, path: str) -> None:
    message = refused(tmp_path, f'{RUN}train = "{path}"\n')
    assert "single quotes" in message
    assert "forward slashes" in message


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ('source = "huggingface"\nname = "x"\nroot = "d"\n', "root"),
        ('source = "huggingface"\nname = "x"\ndownload = true\n', "download"),
        (f'{FILES}root = "d"\n', "root"),
        (f'{FILES}train_split = "train"\n', "train_split"),
    ],
)
def test_a_key_that_the_source_would_ignore(tmp_path: Path, lines: str, key: str) -> None:
    message = refused(tmp_path, RUN + lines)
    assert f"[domains.a] {key} means nothing" in message
    (tmp_path / "late.toml").write_text(f"[domains.a]\n{lines}", "utf-8")
    with pytest.raises(ConfigError, match=f"{key} means nothing"):
        load_added_domain(tmp_path / "late.toml")


@pytest.mark.parametrize("source", ["huggingface", "torchvision"])
def test_a_test_split_that_is_named_beside_a_holdout(tmp_path: Path, source: str) -> None:
    """Its images were never read, and those of training tested."""
    named = f'source = "{source}"\nname = "x"\nholdout = 0.5\n'
    message = refused(tmp_path, f'{RUN}{named}test_split = "test"\n')
    assert "[domains.a] test_split is 'test', but holdout is 0.5" in message
    path = tmp_path / "run.toml"
    path.write_text(RUN + named, "utf-8")
    assert RunConfig.from_checkpoint(load_config(path).to_json()) == load_config(path)


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"source": "python", "image_column": "picture"}, "image_column"),
        ({"source": "python", "test_split": "dev"}, "test_split"),
        ({"source": "huggingface", "name": "x", "root": "d"}, "root"),
        ({"train": "a", "test": "b", "download": True}, "download"),
    ],
)
def test_a_program_hears_of_a_key_that_the_source_would_ignore(
    table: dict[str, object], key: str
) -> None:
    """What a checkpoint of an earlier prunion holds of it goes: it changed nothing there."""
    run = {"backbone": {"name": "resnet18"}, "budget": {"limit": 0.5}, "domains": {"a": table}}
    with pytest.raises(ConfigError, match=rf"\[domains\.a\] {key} means nothing"):
        RunConfig.from_json(run)
    config = RunConfig.from_checkpoint(run)
    assert RunConfig.from_checkpoint(config.to_json()) == config
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "line",
    [
        f"seed = {'1' * 5001}",
        f"seed = {'[' * 3000}",
        f"seed = 0x{'f' * 5000}",
        'name = "a\\u0000b"',
        'name = "\\u001b[2J"',
        "source = 0x" + "f" * 5000,
    ],
)
def test_values_that_no_reader_expects(tmp_path: Path, line: str) -> None:
    refused(tmp_path, f"{line}\n{RUN}{FILES}")
    refused(tmp_path, f"{RUN}{FILES}{line}\n")
    refused(tmp_path, RUN.replace('name = "resnet18"', line) + FILES)


@pytest.mark.parametrize(
    "path", ["x\\u0000y", "x" * 5000, "~nobody_of_this_name/w.pth", "\\u001b[2J"]
)
def test_paths_of_weights_that_lead_nowhere(tmp_path: Path, path: str) -> None:
    refused(tmp_path, RUN.replace('"resnet18"', f'"resnet18"\nweights = "{path}"') + FILES)
