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
        mixed: whether it is their batch that fails: each has answered alone since, and together
            they failed again for the same reason. Until several answer together.
    """

    def __init__(self) -> None:
        self.alone: dict[str, PrunionError] = {}
        self.together: set[str] = set()
        self.reason: PrunionError | None = None
        self.mixed = False
        self._parted = ""  # the reason of what was taken back because each answered alone

    def note(self, domains: Collection[str], error: PrunionError) -> bool:
        """Note that these failed when they were asked together; whether that is news."""
        text, asked = str(error), set(domains)
        if len(asked) == 1:
            (name,) = asked
            if name in self.together:  # it was this one
                self.together.clear()
                self.mixed = False
            news = text != str(self.alone.get(name, ""))
            self.alone[name] = error
            return news
        if any(text == str(self.alone.get(name, "")) for name in asked):
            return False
        news = not self.together or text != str(self.reason)
        self.mixed = self.mixed or text == self._parted
        self.together |= asked
        self.reason = error
        return news

    def clear(self, domains: Collection[str]) -> None:
        """Note that these have answered, together."""
        if not self.alone and not self.together and not self._parted:
            return
        answered = set(domains)
        for name in answered:
            self.alone.pop(name, None)
        if len(answered) > 1:  # so batches do not fail as such, or no more
            self.mixed, self._parted = False, ""
        if self.together and not self.mixed:
            self.together -= answered
            if not self.together and len(answered) == 1:
                self._parted = str(self.reason)
