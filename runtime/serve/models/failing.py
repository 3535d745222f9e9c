"""Which domains of a bundle have no answer to give, whoever asks; of one event loop, so no lock."""

from __future__ import annotations

from collections.abc import Collection

from prunion.runtime.errors import PrunionError

__all__ = ["Failing"]


class Failing:
    """By the domains that were asked, not by the model's name that a request used for them.

    Under the bundle's name all domains are asked, so one that failed would be forgotten with the
    next answer of another.

    Attributes:
        alone: domains that failed, each when it was asked by itself, and why.
        together: domains of which one failed, nobody knows which, that have not answered since.
        reason: why, of the last that failed together.
    """

    def __init__(self) -> None:
        self.alone: dict[str, PrunionError] = {}
        self.together: set[str] = set()
        self.reason: PrunionError | None = None

    def note(self, domains: Collection[str], error: PrunionError) -> bool:
        """Note that these failed when they were asked together; whether that is news."""
        text, asked = str(error), set(domains)
        if len(asked) == 1:
            (name,) = asked
            if name in self.together:  # it was this one
                self.together.clear()
            news = text != str(self.alone.get(name, ""))
            self.alone[name] = error
            return news
        if any(text == str(self.alone.get(name, "")) for name in asked):
            return False
        news = not self.together or text != str(self.reason)
        self.together |= asked
        self.reason = error
        return news

    def clear(self, domains: Collection[str]) -> None:
        """Note that these have answered."""
        if self.alone or self.together:
            for name in set(domains):
                self.alone.pop(name, None)
                self.together.discard(name)
