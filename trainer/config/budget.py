"""The table of a run file that says what the union may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import get_args

from prunion.runtime.base import shown
from prunion.runtime.errors import ConfigError
from prunion.trainer.config.checks import (
    BudgetKind,
    check_choice,
    check_int,
    check_number,
    check_text,
)

__all__ = ["BudgetConfig"]

MULTIPLIERS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
TIMES = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
TIME = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|µs|ms|s)\s*", re.ASCII)
AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kMG%]?)\s*", re.ASCII)


@dataclass(frozen=True)
class BudgetConfig:
    """What the union may cost. `limit` is kept as written; `amount` and `allowed` read it.

    `profile` is the file that `prunion profile` wrote; `latency` needs it, nothing else takes it.
    `round_to` is a multiple that blocked kernels take without a remainder: a network cut to widths
    such as 50 is hardly faster than the whole one. A run file that names a profile and no
    `round_to` has the profile's.
    `floor` is the share of every width that the union keeps before anything else. `own` is the most
    that a single domain may use of the union's MACs.
    """

    limit: float | str
    kind: BudgetKind = "params"
    round_to: int = 8
    profile: str = ""
    floor: float = 0.0
    own: float = 1.0

    def __post_init__(self) -> None:
        check_choice("budget", "kind", self.kind, get_args(BudgetKind))
        check_int("budget", "round_to", self.round_to, 1, 1024)
        check_text("budget", "profile", self.profile, empty=True)
        check_number("budget", "floor", self.floor, 0, 1)
        check_number("budget", "own", self.own, 0, 1, open_low=True)
        if self.kind == "latency" and not self.profile:
            raise ConfigError(
                "[budget] profile is missing: measure the device with `prunion profile` and give "
                'the file, profile = "device.json"'
            )
        if self.profile and self.kind != "latency":
            raise ConfigError(
                f'[budget] profile is for kind "latency", this is "{self.kind}": leave it out'
            )
        if not self.amount > 0:
            raise ConfigError(f"[budget] limit is {shown(self.limit)}: give more than zero")

    @property
    def amount(self) -> float:
        """The limit as a number: a share of the backbone's cost up to 1, beyond it a count.

        For latency a share, or milliseconds where the limit is a time.
        """
        if self.kind == "latency":
            return self._latency()
        if not isinstance(self.limit, str):
            return check_number("budget", "limit", self.limit, 0, 1e18, open_low=True)
        found = AMOUNT.fullmatch(self.limit)
        if found is None:
            raise ConfigError(
                f"[budget] limit is {shown(self.limit)}: give a share such as 0.5 or "
                '"50%", or an amount such as 1200000, "1.2M", "300k" or "0.4G"'
            )
        number, unit = float(found[1]), found[2]
        if unit == "%":
            if number > 100:
                raise ConfigError(f"[budget] limit is {shown(self.limit)}: give at most 100%")
            return number / 100
        return number * MULTIPLIERS[unit]

    @property
    def is_fraction(self) -> bool:
        """Whether the limit is a share of the backbone's cost rather than a count."""
        if self.kind == "latency":
            return not (isinstance(self.limit, str) and TIME.fullmatch(self.limit))
        return self.amount <= 1

    def _latency(self) -> float:
        limit = self.limit
        if isinstance(limit, str):
            if time := TIME.fullmatch(limit):
                return float(time[1]) * TIMES[time[2]]
            share = AMOUNT.fullmatch(limit)
            units = {"": 1.0, "%": 0.01}
            value = float(share[1]) * units[share[2]] if share and share[2] in units else 2.0
        else:
            value = check_number("budget", "limit", limit, 0, 1e18, open_low=True)
        if value > 1:
            raise ConfigError(
                f"[budget] limit is {shown(limit)}: of latency give a share such as 0.5 or "
                '"50%", or a time such as "5ms" or "800us"'
            )
        return value

    def allowed(self, backbone: float) -> float:
        """The absolute amount the union may cost, for a backbone that costs `backbone`."""
        return self.amount * backbone if self.is_fraction else self.amount
