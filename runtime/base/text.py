"""How values, amounts and other libraries' errors are written in a message of one line."""

from __future__ import annotations

__all__ = ["amount_text", "reason_of", "shown"]

MOST_SHOWN = 60


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
    """The first line of an error of another library; its type where it says nothing."""
    return next((line for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
