"""A run file made from a folder, names listed, values set on the command line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.runtime.cli.main import cli
from prunion.runtime.errors import ConfigError, DataError
from prunion.trainer.config import found_domains, load_config, said_twice
from tests.support.images import write_folders
from tests.support.tiny_run import tiny_run


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def test_init_writes_a_run_file_for_what_it_finds(tmp_path: Path) -> None:
    data = tmp_path / "data"
    counts = {"a": 1, "b": 1}
    write_folders(data / "birds" / "train", counts)
    write_folders(data / "birds" / "val", counts)
    write_folders(data / "my signs.2", counts)
    (data / "digits").mkdir()
    for part in ("train", "test"):
        (data / "digits" / f"{part}.parquet").touch()
    (data / "notes").mkdir()
    (tmp_path / "runs").mkdir()
    output = tmp_path / "runs" / "run.toml"
    assert "3 domains, birds, digits, my_signs.2" in run("init", data, "-o", output)
    assert 'train = "../data/birds/train"' in output.read_text()
    birds, digits, signs = load_config(output).domains
    assert birds.test == (str(data / "birds" / "val"),)
    assert digits.train == (str(data / "digits" / "train.parquet"),)
    assert (signs.train, signs.test, signs.holdout) == ((str(data / "my signs.2"),), (), 0.2)


def test_init_finds_shards(tmp_path: Path) -> None:
    fish = tmp_path / "fish"
    for place in (fish / "train" / "0.tar", fish / "test.tar"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    write_folders(tmp_path / "__MACOSX" / "train", {"a": 1, "b": 1})  # of an archive, no domain
    assert found_domains(tmp_path) == {"fish": {"train": fish / "train", "test": fish / "test.tar"}}


def test_init_takes_validation_images_beside_test_images(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        write_folders(tmp_path / "birds" / part, {"a": 1, "b": 1})
    run("init", tmp_path, "-o", tmp_path / "run.toml")
    (birds,) = load_config(tmp_path / "run.toml").domains
    assert birds.test == (str(tmp_path / "birds" / "test"),)
    assert birds.validation == (str(tmp_path / "birds" / "val"),)


def test_init_writes_names_of_any_characters(tmp_path: Path) -> None:
    data = tmp_path / '\U00020bb7 "a" \u00a0\\'
    write_folders(data / "b\U0001f41d", {"a": 1, "b": 1})
    run("init", data, "-o", tmp_path / "run.toml")
    (domain,) = load_config(tmp_path / "run.toml").domains
    assert domain.train == (str(data / "b\U0001f41d"),)


@pytest.mark.parametrize("name", ["a\nb", os.fsdecode(b"\xff")])
def test_init_refuses_names_that_no_run_file_can_hold(tmp_path: Path, name: str) -> None:
    """The file was there all the same, and no command could read it."""
    write_folders(tmp_path / name, {"a": 1, "b": 1})
    assert "rename it" in run("init", tmp_path, "-o", tmp_path / "run.toml", code=1)
    assert not (tmp_path / "run.toml").exists()


def test_init_leaves_out_what_it_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk's root holds such a folder, `lost+found`."""
    write_folders(tmp_path / "birds", {"a": 1, "b": 1})
    lost = write_folders(tmp_path / "lost+found", {"a": 1})
    plain = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:  # a mode would not stop root
        if path.is_relative_to(lost):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    said = run("init", tmp_path, "-o", tmp_path / "run.toml")
    assert f"{lost} is left out: {lost} cannot be read (Permission denied)" in said
    assert "1 domain, birds" in said
    refused = run("init", lost, "-o", tmp_path / "other.toml", code=1)
    assert "lost+found/train" not in refused and "cannot be read (Permission denied)" in refused


def test_init_takes_a_folder_that_is_one_domain(tmp_path: Path) -> None:
    one = write_folders(tmp_path / "birds", {"a": 1, "b": 1})
    assert found_domains(one) == {"birds": {"train": one}}
    with pytest.raises(DataError, match="holds no images in class folders: give DATA/DOMAIN"):
        found_domains(one / "a")
    with pytest.raises(DataError, match="is no folder"):
        found_domains(tmp_path / "nothing")


def test_init_asks_where_a_folder_may_be_one_domain_or_several(tmp_path: Path) -> None:
    """Else the domains would be classes of one, and test images among its training images."""
    write_folders(tmp_path / "birds" / "train", {"a": 1, "b": 1})
    write_folders(tmp_path, {"notes": 1})
    with pytest.raises(DataError, match=r"notes holds images, as a class does, and .*birds holds"):
        found_domains(tmp_path)


def test_init_leaves_out_no_folder_without_a_word(tmp_path: Path) -> None:
    for name in ("my signs", "my_signs", "my+signs"):
        write_folders(tmp_path / name, {"a": 1, "b": 1})
    write_folders(tmp_path / "deep" / "a" / "b", {"c": 1})
    output = tmp_path / "run.toml"
    said = run("init", tmp_path, "-o", output)
    assert "3 domains, my_signs, my_signs_2, my_signs_3" in said
    assert "deep is left out: it holds no images in class folders" in said
    assert len({domain.train for domain in load_config(output).domains}) == 3


def test_init_replaces_only_its_own(tmp_path: Path) -> None:
    write_folders(tmp_path / "birds", {"a": 1, "b": 1})
    output = tmp_path / "run.toml"
    output.write_text("seed = 3\n")
    assert "already exists" in run("init", tmp_path / "birds", "-o", output, code=1)
    refused = run("init", tmp_path / "birds", "-o", output, "--force", code=1)
    assert "was not written by `prunion init`" in refused
    assert output.read_text() == "seed = 3\n"
    output.unlink()
    run("init", tmp_path / "birds", "-o", output)
    run("init", tmp_path / "birds", "-o", output, "--force")
    load_config(output)
    mine = output.read_text("utf-8").replace("resnet18", "resnet34")
    output.write_text(mine, "utf-8")
    refused = run("init", tmp_path / "birds", "-o", output, "--force", code=1)
    assert "was edited since `prunion init` wrote it" in refused
    assert output.read_text("utf-8") == mine


def test_backbones_are_listed_by_source() -> None:
    lines = run("list", "backbones", "resnet26*").splitlines()
    assert "prunion resnet26" in lines
    assert "timm resnet26t" in lines
    assert "torchvision resnet18" in run("list", "backbones", "resnet18").splitlines()
    none = CliRunner().invoke(cli, ["list", "backbones", "nope"])
    assert (none.exit_code, none.stdout) == (1, "")
    assert none.stderr.startswith("error: no backbone matches 'nope': give a pattern")


def test_values_are_set_on_the_command_line(tmp_path: Path) -> None:
    path = tiny_run(tmp_path)
    changes = ["train.lr=3e-4", "seed = 7", "backbone.name=resnet34", 'budget.limit="50%"']
    config = load_config(path, [*changes, "domains.warm.mirror=true", "input.size=[16, 24]"])
    assert (config.train.lr, config.seed, config.backbone.name) == (3e-4, 7, "resnet34")
    assert (config.budget.limit, config.input.size) == ("50%", (16, 24))
    assert [domain.mirror for domain in config.domains] == [True, True]
    assert config.train.warmup == load_config(path).train.warmup


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "train.lr=1", "--set", "train.lr = 2"], "--set gives train.lr twice"),
        (["--set", "train.lr=1", "--set", "train={warmup=1}"], "--set gives train twice"),
        (["--set", "train={lr=1}", "--set", "train.lr=2"], "--set gives train.lr twice"),
        (["--seed", "1", "--set", "seed=2"], "--set gives seed and so does --seed: give it once"),
        (["--set", "budget={limit=1}", "--budget", "0.5,0.7"], "budget.limit and so does --budget"),
    ],
)
def test_a_value_that_another_would_replace_is_a_usage_error(
    tmp_path: Path, options: list[str], message: str
) -> None:
    """The later one won, without a word."""
    assert message in run("train", tiny_run(tmp_path), *options, code=2)


def test_a_key_of_a_table_that_is_set_may_be_set_beside(tmp_path: Path) -> None:
    assert said_twice(["train={warmup=1}", "train.lr=2", "seed=1", "seed"]) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.lr", r"--set 'train.lr': give TABLE.KEY=VALUE"),
        ("=3", r"--set '=3': give TABLE.KEY=VALUE"),
        ("train.lrr=3", r"\[train\] lrr is not a key of a run file: did you mean 'lr'"),
        ("train.lr=fast", r"\[train\] lr is 'fast': give a number"),
        ("train=3", r"\[train\] is 3: make it a table"),
    ],
)
def test_a_value_that_cannot_be_set_is_named(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(tiny_run(tmp_path), [change])
