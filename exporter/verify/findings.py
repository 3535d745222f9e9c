"""What a check of a bundle found."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Disagreement", "Findings"]


@dataclass(frozen=True)
class Disagreement:
    """Two forms of one network compared on one domain: `error` is `max |Δ| / max |reference|`."""

    graph: str
    domain: str
    against: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance (NaN is not)."""
        return self.error <= self.tolerance


@dataclass
class Findings:
    """Of one check, or of several that are added up.

    Attributes:
        compared: also those that passed.
        problems: a line for each claim that does not hold, or could not be found out.
        notes: lines for the reader, of what is none the worse.
    """

    compared: list[Disagreement] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: Findings) -> Findings:
        return Findings(
            self.compared + other.compared,
            self.problems + other.problems,
            self.notes + other.notes,
        )
