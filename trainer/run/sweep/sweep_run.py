"""One run of a sweep: its configuration and its folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from prunion.trainer.config import STATE, RunConfig

__all__ = ["SweepRun"]


class SweepRun(NamedTuple):
    """One of the runs that a sweep trains, each into a folder of its own."""

    config: RunConfig
    folder: Path

    @property
    def begun(self) -> bool:
        """Whether its folder holds a state that it may go on from."""
        return (self.folder / STATE).is_file()
