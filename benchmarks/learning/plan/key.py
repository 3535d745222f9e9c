"""What tells a row that was run from all others: its key, `resnet18.tuned-025.seed0.all`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RowKey", "is_key", "row_of"]


@dataclass(frozen=True)
class RowKey:
    """`BACKBONE.ROW.SEED[.EXTRA]`.

    Attributes:
        row: its name, as in `catalogue.ROWS`.
        seed: with its word, `seed0`.
        extra: what was set for it, in parts that dots divide; a number in one may have a dot too.
    """

    backbone: str
    row: str
    seed: str
    extra: str = ""

    @classmethod
    def parse(cls, text: str) -> RowKey:
        """What `str` wrote. Raises ValueError for a text that is no key."""
        backbone, row, seed, *extra = text.split(".")
        return cls(backbone, row, seed, ".".join(extra))

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> RowKey:
        """Of a line of the table, as `read_rows` gives it."""
        return cls.parse(line["key"])

    def __str__(self) -> str:
        return f"{self.backbone}.{self.row}.{self.seed}" + (f".{self.extra}" if self.extra else "")

    @property
    def label(self) -> str:
        """Without backbone and seed: the row, and what was set for it."""
        return f"{self.row}.{self.extra}" if self.extra else self.row


def row_of(name: str) -> str:
    """The row that a bundle is of, which is called by its key or by the row's name alone."""
    return RowKey.parse(name).row if is_key(name) else name


def is_key(name: str) -> bool:
    """Whether a bundle is called by its key."""
    return name.count(".") >= 2
