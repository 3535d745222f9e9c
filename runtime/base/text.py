"""How values, amounts and other libraries' errors are written in a message of one line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from prunion.runtime.errors import printable

__all__ = ["amount_text", "asked_text", "listed", "one_line", "reason_of", "shown"]

MOST_SHOWN, MOST_REASON = 60, 160  # characters
MOST_LISTED = 20  # names
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}")  # of an object in memory, another in every run
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def shown(value: object) -> str:
    """A value as a message quotes it: printable, and never longer than a line should be."""
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # Python refuses to write more than 4300 digits
        return f"a value too large to show ({type(value).__name__})"
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def listed(names: Sequence[str], most: int = MOST_LISTED, *, open_end: bool = False) -> str:
    """The first `most` names, for a bundle may have thousands of domains: "a, b and 3 more".

    `open_end`: there are others that `names` lacks, nobody knows how many: "a, b and more".
    """
    left = len(names) - most
    more = " and more" if open_end else f" and {left:,} more" if left > 0 else ""
    return ", ".join(names[:most]) + more


def amount_text(value: float) -> str:
    """A share with four decimals, a count with thousands separated, rounded down never up.

    What is above 1 and no whole number is a share too: adapters may cost more than is left out.
    """
    if 0 < value <= 1 or value != int(value):
        return f"{int(value * 10_000) / 10_000:.4f}"
    return f"{int(value):,}"


def asked_text(value: float | str) -> str:
    """A budget as it was asked: a share to four digits, an amount with thousands separated.

    A text, such as "2.5ms", is one already.
    """
    if isinstance(value, str):
        return value
    if value <= 1:
        return f"{value:.4g}"
    return f"{value:,.4f}".rstrip("0").rstrip(".")


def one_line(exc: BaseException) -> str:
    """All that an error says, as part of a line; with its type where that is one word or none."""
    return _with_type(exc, " ".join(str(exc).split()))


def reason_of(exc: BaseException, *, typed: bool = False) -> str:
    """Another library's error as part of a line: its first one, in whole words.

    Without colours and addresses in memory; with its type where it is `typed`, or says one word or
    nothing: all that a KeyError says is the key.
    """
    plain = ADDRESS.sub("", ANSI.sub("", str(exc)))
    lines = [line.strip() for line in plain.splitlines()]
    text = next((line for line in lines if line), "").rstrip(".:")
    text = printable(_with_type(exc, text, always=typed))
    return text if len(text) <= MOST_REASON else text[:MOST_REASON].rsplit(" ", 1)[0] + " …"


def _with_type(exc: BaseException, text: str, *, always: bool = False) -> str:
    kind = type(exc).__name__
    if not text or text == kind:
        return kind
    return f"{kind}: {text}" if always or " " not in text else text
