"""The errors a user can cause. Each says what is wrong, where, and how to fix it."""

from __future__ import annotations

import unicodedata

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
    "OutputError",
    "OverloadError",
    "PrunionError",
    "StoppedError",
    "UnsupportedGraphError",
    "VerificationError",
]

# Control characters, line and paragraph separators, halves of surrogate pairs: a terminal would
# obey them or garble the line.
UNFIT = frozenset(("Cc", "Cs", "Zl", "Zp"))
# What turns the direction of a text: a name could show as another one.
TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
BREAKS = frozenset("\n\r\t\v\f\x1c\x1d\x1e\x85\u2028\u2029")


def printable(text: str) -> str:
    """`text` as one line that no terminal obeys: breaks are spaces, the rest of it is escaped."""
    if text.isprintable():
        return text
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if character in BREAKS:
        return " "
    unfit = unicodedata.category(character) in UNFIT or character in TURNS
    return ascii(character)[1:-1] if unfit else character


def why_not_imported(error: BaseException | None) -> str:
    """What is wrong with a package that is there and cannot be imported; empty of any other."""
    if not isinstance(error, ImportError) or isinstance(error, ModuleNotFoundError):
        return ""
    return printable(f" (it is installed, and importing it fails: {' '.join(str(error).split())})")


class PrunionError(Exception):
    """Base of everything prunion raises on purpose; the command line prints it as one line.

    Its message may quote files and other libraries, and is still one printable line.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


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
    """An optional package is needed and not installed, or does not fit what else is."""

    def __str__(self) -> str:
        return super().__str__() + why_not_imported(self.__context__)


class BackendError(PrunionError):
    """A backend is unknown, or did not start on this machine."""


class EngineError(PrunionError):
    """An engine file is corrupt, stale, or made for another GPU or library."""


class OutputError(PrunionError, OSError):
    """A file or folder cannot be written: a full disk, no permission. What was there stays."""


class OverloadError(PrunionError):
    """A server refuses a request that it could not answer in time: nothing is wrong with it.

    Attributes:
        reason: `queue`, `requests`, `client`, `memory`, `deadline` or `draining`.
        retry_after: seconds after which another try is worth while.
    """

    def __init__(self, message: str, reason: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after = retry_after


class StoppedError(PrunionError):
    """A signal ended a run, whose state is saved: what was asked for, and yet no result.

    Attributes:
        code: exit code that tells so: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
