"""Options that several commands share."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from prunion.runtime.base import BACKENDS, PRECISIONS, json_of

__all__ = [
    "FilePath",
    "FiniteRange",
    "as_json",
    "backends",
    "bundle_argument",
    "echo_json",
    "force",
    "numbers",
    "packs",
    "precision",
    "precisions",
    "seconds_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])


class FilePath(click.Path):
    """A file or folder by its name; the empty name, an unset variable's, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path. Raises: BadParameter where it is empty, or not of the kind asked for."""
        if not os.fspath(value):
            self.fail("the name is empty: give a file or folder.", param, ctx)
        return super().convert(value, param, ctx)


class FiniteRange(click.FloatRange):
    """Numbers of a range; "nan", which is neither below nor above any bound, and "inf" are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Raises: BadParameter where it is none of the range, NaN or infinite."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


backends, precisions = click.Choice(list(BACKENDS)), click.Choice(list(PRECISIONS))

force = click.option("--force", is_flag=True, help="Replace what is there already.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
bundle_argument = click.argument("bundle", type=FilePath())
packs = click.option(
    "--pack",
    "packs",
    multiple=True,
    type=FilePath(),
    metavar="FILE",
    help="A domain that `add-domain` or `pack` wrote, beside the bundle's; can be repeated.",
)
precision = click.option(
    "--precision", default="fp32", show_default=True, type=precisions, help="Graph variant."
)


def seconds_option(default: float, what: str | None = None) -> Callable[[Command], Command]:
    """How long to measure `what`: `--seconds`, up to a day."""
    kind = FiniteRange(0, 86400, min_open=True)
    return click.option("--seconds", type=kind, default=default, show_default=True, help=what)


def echo_json(value: Any) -> None:
    """Print a value as JSON, or JSON's own text as it is."""
    text = value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")  # it may be closed: None
    except UnicodeEncodeError:
        # A code page without the letters of a class, a file name that is no UTF-8: a question mark
        # in their place would be another name, and JSON can write them in ASCII.
        text = json.dumps(json_of(text), indent=1)
    click.echo(text.removesuffix("\n"))


def numbers(_: click.Context, option: click.Parameter, value: str | None) -> list[int] | None:
    """A click callback: whole numbers with commas; `profile` is three of them, rising."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.removeprefix("-").isdigit() for part in parts):
        # Python's own reading takes 1_0 for ten, too.
        raise click.BadParameter("give whole numbers with commas, such as 1,8")
    numbers = [int(part) for part in parts]
    if option.name == "profile" and (len(numbers) != 3 or numbers != sorted(numbers)):
        raise click.BadParameter("give three numbers, MIN,OPT,MAX in this order")
    if min(numbers) < 1:
        raise click.BadParameter("numbers must be 1 or more")
    return numbers
