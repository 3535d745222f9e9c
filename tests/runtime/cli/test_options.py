"""Numbers and paths that commands take."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import prunion.benchmarks
import prunion.exporter
import prunion.runtime
import prunion.trainer
from prunion.runtime.cli import FilePath, FiniteRange
from prunion.runtime.cli.options import numbers

STAGES = (prunion.trainer, prunion.exporter, prunion.runtime, prunion.benchmarks)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "-1", "many"])
def test_a_number_that_is_none_of_its_range_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        FiniteRange(0).convert(text, None, None)


def test_a_number_of_the_range_is_itself() -> None:
    assert FiniteRange(0, 2).convert("1.5", None, None) == 1.5


def test_every_command_takes_finite_numbers_alone() -> None:
    """NaN is neither below nor above a bound, so click's own range lets it in.

    `score` takes any number, and refuses those itself by their name.
    """
    commands = [command for stage in STAGES for command in _commands(stage)]
    loose = {
        (command.name, option.name)
        for command in commands
        for option in command.params
        if isinstance(option.type, click.types.FloatParamType)
        and not isinstance(option.type, FiniteRange)
    }
    assert len(commands) > 50
    assert loose == {("score", "flop"), ("score", "params")}


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("batch", "0", "numbers must be 1 or more"),
        ("batch", "8,1,0", "numbers must be 1 or more"),
        ("batch", "one", "give whole numbers with commas"),
        ("profile", "8,1,32", "give three numbers, MIN,OPT,MAX in this order"),
        ("profile", "1,8", "give three numbers, MIN,OPT,MAX in this order"),
        ("profile", "0,8,32", "numbers must be 1 or more"),
    ],
)
def test_a_list_of_numbers_is_refused_by_the_rule_of_its_own_option(
    option: str, text: str, said: str
) -> None:
    """Sizes of batches come in any order, and were told that they must rise."""
    with pytest.raises(click.BadParameter) as raised:
        numbers(click.Context(click.Command("x")), click.Option([f"--{option}"]), text)
    assert raised.value.message.startswith(said)


def test_no_command_takes_an_empty_path() -> None:
    """It is what an unset variable of the shell gives, and would mean the working folder."""
    with pytest.raises(click.BadParameter, match="empty"):
        FilePath().convert("", None, None)
    assert FilePath(path_type=Path).convert("a b", None, None) == Path("a b")
    loose = {
        (command.name, option.name)
        for stage in STAGES
        for command in _commands(stage)
        for option in command.params
        if isinstance(option.type, click.Path) and not isinstance(option.type, FilePath)
    }
    assert not loose


def _commands(stage: ModuleType) -> Iterator[click.Command]:
    """Every command that a file of the stage makes."""
    folder = Path(stage.__path__[0])
    for path in sorted(folder.rglob("*.py")):
        if "@click." in path.read_text("utf-8"):
            inner = path.relative_to(folder).with_suffix("").parts
            module = importlib.import_module(".".join([stage.__name__, *inner]))
            yield from (x for x in vars(module).values() if isinstance(x, click.Command))
