"""The errors a user can cause. Each says what is wrong, where, and how to fix it."""

from __future__ import annotations

import re

__all__ = [
    "BackendError",
    "BudgetError",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DomainError",
    "EngineError",
    "InputError",
    "MissingDependencyError",
    "PrunionError",
    "StoppedError",
    "UnsupportedGraphError",
    "VerificationError",
    "amount_text",
    "reason_of",
    "shown",
]

MOST_SHOWN, MOST_REASON = 60, 160  # characters
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class PrunionError(Exception):
    """Base of everything prunion raises on purpose; the command line prints it as one line."""


class ConfigError(PrunionError):
    """A key of the run file is missing, unknown or out of range."""


class DataError(PrunionError):
    """A dataset or one of its images cannot be read."""


class BudgetError(PrunionError):
    """The budget cannot be met, or an option would break it."""


class UnsupportedGraphError(PrunionError):
    """The backbone holds an operation whose channels cannot be decided."""


class CheckpointError(PrunionError):
    """A checkpoint is missing, truncated, altered or of another version."""


class BundleError(PrunionError):
    """A bundle is missing, incomplete, altered or of another version."""


class VerificationError(PrunionError):
    """Two forms of the same network disagree."""


class DomainError(PrunionError):
    """A domain is not one of the bundle's."""


class InputError(PrunionError):
    """An image or array has the wrong shape, type or content."""


class MissingDependencyError(PrunionError):
    """An optional package is needed and not installed."""


class BackendError(PrunionError):
    """A backend is unknown, or did not start on this machine."""


class EngineError(PrunionError):
    """An engine file is corrupt, stale, or made for another GPU or library."""


class StoppedError(PrunionError):
    """A signal ended a run, whose state is saved: what was asked for, and yet no result.

    Attributes:
        code: exit code that tells so: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def shown(value: object) -> str:
    """A value as a message quotes it: printable, and never longer than a line should be."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # Python refuses to write more than 4300 digits
        return f"a value too large to show ({type(value).__name__})"
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def amount_text(value: float) -> str:
    """A share with four decimals, a count with thousands separated, rounded down never up."""
    if 0 < value <= 1:
        return f"{int(value * 10_000) / 10_000:.4f}"
    return f"{int(value):,}"


def reason_of(exc: BaseException) -> str:
    """Another library's error as part of a line: its first one, without colours, in whole words.

    Its type where it says nothing.
    """
    lines = [line.strip() for line in ANSI.sub("", str(exc)).splitlines()]
    text = next((line for line in lines if line), type(exc).__name__).rstrip(".:")
    return text if len(text) <= MOST_REASON else text[:MOST_REASON].rsplit(" ", 1)[0] + " …"
