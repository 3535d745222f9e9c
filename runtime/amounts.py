"""Amounts as people read them."""

from __future__ import annotations

__all__ = ["amount_text"]


def amount_text(value: float) -> str:
    """A share with four decimals, a count with thousands separated, rounded down never up."""
    if 0 < value <= 1:
        return f"{int(value * 10_000) / 10_000:.4f}"
    return f"{int(value):,}"
