"""Checks of values that come from elsewhere: JSON read key by key, names, numbers, paths.

Whatever the file holds, the reader gets one line that names the key and the fix.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard, TypeVar

from prunion.runtime.base.text import MOST_SHOWN, shown
from prunion.runtime.errors import BundleError, InputError, PrunionError, printable

__all__ = [
    "Fields",
    "check_text",
    "given_twice",
    "is_number",
    "is_whole",
    "path_argument",
    "safe_relative_path",
    "whole_argument",
]

MISSING = object()
T = TypeVar("T", bound=Hashable)
FIX = "export the bundle again"


class Fields:
    """A JSON object read key by key.

    Attributes:
        where: its place in the file, for the messages; empty for the file itself.
        source: the file's name.
        error: the type of every error; `fix` is what ends its message.
    """

    def __init__(
        self,
        value: Any,
        where: str,
        source: str,
        error: type[PrunionError] = BundleError,
        fix: str = FIX,
    ) -> None:
        self.where = where
        self.source = source
        self.error = error
        self.fix = fix
        if not isinstance(value, Mapping):
            raise error(f"{source}: {where or 'the file'} must be an object: {fix}")
        self.value = value

    def fail(self, key: str, problem: str) -> PrunionError:
        """The error for `key`, to be raised by the caller."""
        return self.error(f"{self.source}: {self._place(key)} {problem}: {self.fix}")

    def get(self, key: str, default: Any = MISSING) -> Any:
        """The value of `key`. Raises `error` if it is missing and has no default."""
        if key not in self.value:
            if default is MISSING:
                raise self.fail(key, "is missing")
            return default
        return self.value[key]

    def text(self, key: str, limit: int = 1000) -> str:
        """A non-empty string that can be printed in one line."""
        return check_text(self.get(key), limit, lambda problem: self.fail(key, problem))

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in `[low, high]`."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, "must be an integer")
        if not low <= value <= high:
            raise self.fail(key, f"is {shown(value)}, outside {low}..{high}")
        return value

    def number(self, key: str, default: Any = MISSING) -> float:
        """A finite number; whole ones stay integers."""
        value = self.get(key, default)
        if not is_number(value):
            raise self.fail(key, "must be a finite number")
        return value

    def flag(self, key: str, default: Any = MISSING) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "must be true or false")
        return value

    def items(self, key: str, limit: int) -> list[Any]:
        """A list of at most `limit` values."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.fail(key, "must be a list")
        if len(value) > limit:
            raise self.fail(key, f"holds {len(value)} entries, more than {limit}")
        return value

    def fields(self, key: str) -> Fields:
        """The object under `key`."""
        return self._inside(self.get(key), self._place(key))

    def each(self, key: str, limit: int) -> Iterator[Fields]:
        """The objects of the list under `key`, at most `limit` of them, one after the other."""
        for index, item in enumerate(self.items(key, limit)):
            yield self._inside(item, f"{self._place(key)}[{index}]")

    def _inside(self, value: Any, where: str) -> Fields:
        return Fields(value, where, self.source, self.error, self.fix)

    def _place(self, key: str) -> str:
        # A key may come from the file, so it may hold anything.
        name = key if key.isprintable() and len(key) <= MOST_SHOWN else shown(key)
        return f"{self.where}.{name}" if self.where else name


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number that a float can hold: no boolean, NaN, infinity or 10**400."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    # Python compares whole numbers with floats exactly, so nothing overflows here.
    return abs(value) <= sys.float_info.max


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether `value` is a whole number in `low … high`; true and false are not numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def whole_argument(name: str, value: Any, most: int = sys.maxsize, *, least: int = 1) -> int:
    """A whole number of `least` … `most` that a function was given, NumPy's too.

    InputError for another: one that counts on its type would end with the interpreter's own error,
    somewhere inside.
    """
    below = least - 1
    try:
        number = below if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = below
    if not least <= number <= most:
        above = "or more" if most == sys.maxsize else f"to {most:,}"
        raise InputError(f"{name} is {shown(value)}: give a whole number, {least} {above}")
    return number


def path_argument(name: str, value: Any) -> Path:
    """The path of a file or folder that a function was given; InputError for what is none.

    So is the empty text, an unset variable's, which pathlib takes for the working folder.
    """
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{name} is {shown(value)}: give the path of a file or folder")
    return Path(text)


def check_text(value: Any, limit: int, fail: Callable[..., PrunionError]) -> str:
    """`value` if it is a non-empty string that can be printed in one line; else raise `fail`."""
    if not isinstance(value, str) or not value:
        raise fail("must be a non-empty string")
    if len(value) > limit:
        raise fail(f"is longer than {limit} characters")
    if any("\ud800" <= character <= "\udfff" for character in value):  # of a file's name, say
        raise fail("is no UTF-8 text")
    if printable(value) != value:
        raise fail("holds control characters")
    return value


def given_twice(names: Iterable[T]) -> T | None:
    """The first name that came before; None if each is given once.

    Whoever makes keys of names would else take the last of two for both.
    """
    seen: set[T] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def safe_relative_path(value: Any) -> bool:
    """Whether `value` is a plain relative path with forward slashes that stays below its root."""
    if not isinstance(value, str) or not value or len(value) > 1000:
        return False
    if any(c in value for c in "\\:") or printable(value) != value:
        return False
    if value != str(PurePosixPath(value)):
        return False
    return not value.startswith("/") and ".." not in value.split("/") and value != "."
