"""Messages name the command line's options; to a program they name the arguments of its call."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prunion.runtime.errors import PrunionError

__all__ = ["spelled_for_programs"]

P = ParamSpec("P")
T = TypeVar("T")

QUOTED = re.compile(r"(`[^`]*`)")  # a whole command, which is meant as it stands
OPTION = re.compile(r"(?<!\S)(\(?)(--[a-z][a-z0-9-]*|-o)(?![\w-]|/)")
SET = re.compile(r"(?<!\S)(\(?)--set (?=[a-z])")  # a key of the run file, which needs no option


def spelled_for_programs(
    flags: Iterable[str] = (), others: Iterable[str] = ()
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Have a function's errors name its arguments: `force=True` in place of `--force`.

    An option that is none of its arguments stays as it is.

    Args:
        flags: what `**options` takes beside the arguments that are named, if it is True or False.
        others: what else it takes.
    """

    def around(function: Callable[P, T]) -> Callable[P, T]:
        given = inspect.signature(function).parameters
        words = dict.fromkeys(others, "") | dict.fromkeys(flags, "=True")
        words |= {x.name: "=True" * isinstance(x.default, bool) for x in given.values()}

        def spelled(found: re.Match[str]) -> str:
            name = found[2].lstrip("-").replace("-", "_")
            name = "output" if name == "o" else name
            name = next((x for x in (name, f"{name}s") if x in words), "")
            return f"{found[1]}{name}{words[name]}" if name else found[0]

        def told(text: Any) -> Any:
            if not isinstance(text, str):
                return text
            parts = QUOTED.split(text)  # every second one is quoted
            parts[::2] = [OPTION.sub(spelled, SET.sub(r"\1", x)) for x in parts[::2]]
            return "".join(parts)

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except PrunionError as exc:
                exc.args = tuple(map(told, exc.args))
                raise

        return called

    return around
