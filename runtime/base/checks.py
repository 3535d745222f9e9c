"""Small typed readers for untrusted JSON: each error names the key and the fix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from prunion.runtime.errors import BundleError

__all__ = ["Fields", "safe_relative_path"]

MISSING = object()
FIX = "export the bundle again"


class Fields:
    """A JSON object read key by key; `where` is its place in the file, for the messages."""

    def __init__(self, value: Any, where: str, source: str) -> None:
        self.where = where
        self.source = source
        if not isinstance(value, Mapping):
            raise BundleError(f"{source}: {where or 'the file'} must be an object: {FIX}")
        self.value = value

    def fail(self, key: str, problem: str) -> BundleError:
        """The error for `key`, to be raised by the caller."""
        name = f"{self.where}.{key}" if self.where else key
        return BundleError(f"{self.source}: {name} {problem}: {FIX}")

    def get(self, key: str, default: Any = MISSING) -> Any:
        """The value of `key`. Raises BundleError if it is missing and has no default."""
        if key not in self.value:
            if default is MISSING:
                raise self.fail(key, "is missing")
            return default
        return self.value[key]

    def text(self, key: str, limit: int = 1000) -> str:
        """A non-empty string without control characters."""
        return check_text(self.get(key), limit, lambda problem: self.fail(key, problem))

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer in `[low, high]`."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, "must be an integer")
        if not low <= value <= high:
            raise self.fail(key, f"is {value}, outside {low}..{high}")
        return value

    def number(self, key: str, default: Any = MISSING) -> float:
        """A finite number."""
        value = self.get(key, default)
        if not is_number(value):
            raise self.fail(key, "must be a finite number")
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.get(key)
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
        where = f"{self.where}.{key}" if self.where else key
        return Fields(self.get(key), where, self.source)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite JSON number (a boolean is not)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < float("inf")


def check_text(value: Any, limit: int, fail: Any) -> str:
    """`value` if it is a non-empty string that cannot garble a terminal; else raise `fail`."""
    if not isinstance(value, str) or not value:
        raise fail("must be a non-empty string")
    if len(value) > limit:
        raise fail(f"is longer than {limit} characters")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value):
        raise fail("holds control characters")
    return value


def safe_relative_path(value: Any) -> bool:
    """Whether `value` is a plain relative path with forward slashes that stays below its root."""
    if not isinstance(value, str) or not value or len(value) > 1000:
        return False
    if any(c in value for c in "\\:\0") or value != str(PurePosixPath(value)):
        return False
    return not value.startswith("/") and ".." not in value.split("/") and value != "."
