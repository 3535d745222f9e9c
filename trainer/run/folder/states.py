"""When a run's state is written: after an epoch, and where another run leaves it on its way."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prunion.runtime.base import replace_file
from prunion.runtime.errors import OutputError
from prunion.trainer.config import LOG, STATE
from prunion.trainer.learning import Training
from prunion.trainer.run.folder.facts import SECONDS
from prunion.trainer.run.folder.snapshot import save_snapshot

__all__ = ["Fork", "Forks", "keep_forks", "save_state", "saved_words", "spent"]


@dataclass(frozen=True)
class Fork:
    """Where a run's state is kept for a run of another budget, which goes on from it.

    Attributes:
        path: of the state; beside it lies the log up to it, NAME.jsonl.
        step: steps that are then done.
        goes_on: the step that the other run takes next; None for this very one.
        facts: kept with the state beside the run's own.
    """

    path: Path
    step: int
    goes_on: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


Forks = Callable[[Training], Sequence[Fork]]  # of a run before its first step


def save_state(path: Path, training: Training, facts: dict[str, Any], began: float | None) -> None:
    """Save a run's state after a step, and note in it that it did.

    Args:
        facts: kept with the state.
        began: when this process did, of `time.perf_counter`; None keeps no seconds.

    Raises OutputError, with what the run can go on from.
    """
    if began is not None:
        facts = {**facts, SECONDS: spent(facts, began)}

    def save() -> None:
        try:
            save_snapshot(path, training, facts)
        except OutputError as exc:
            fix = "go on from there with --resume"
            if not (path.parent / STATE).is_file():
                fix = "so the run starts again from its first step"
            raise OutputError(f"{exc}: {training.saved}, {fix}") from None

    training.processes.on_first(save)
    training.saved = saved_words(path, training)


def spent(facts: Mapping[str, Any], began: float) -> float:
    """Seconds that went into a run: in earlier processes, of its state's facts, and in this one."""
    return float(facts.get(SECONDS, 0)) + time.perf_counter() - began


def keep_forks(forks: Sequence[Fork], folder: Path | None, training: Training, facts: Any) -> None:
    """The state, and the log up to it, for whoever goes on from this step."""

    def save(fork: Fork) -> None:
        assert folder is not None
        with replace_file(fork.path.with_suffix(".jsonl")) as temporary:
            shutil.copyfile(folder / LOG, temporary)
        own = {key: fact for key, fact in facts.items() if key != SECONDS}  # of this run alone
        save_snapshot(fork.path, training, {**own, **fork.facts}, fork.goes_on)

    for fork in forks:
        if fork.step == training.step:
            training.processes.on_first(partial(save, fork))


def saved_words(path: Path, training: Training) -> str:
    """Where a run's last state lies, for messages."""
    return f"the last good state is {path}, after {training.behind[0] + training.step} steps"
