"""The second part of a run whose domains have budgets of their own: its epochs and its state."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunion.trainer.config import OWN_STATE
from prunion.trainer.data import Domain
from prunion.trainer.learning import StopRequest, Training, make_thinning, own_account
from prunion.trainer.network import evaluate
from prunion.trainer.run.epochs import run_epochs
from prunion.trainer.run.folder import SECONDS, TESTED, WITH_UNION, restore, snapshot_step
from prunion.trainer.run.progress import Log, Watch
from prunion.trainer.run.record import other_than_noted
from prunion.trainer.score import read_made_by

__all__ = ["own_steps", "train_thinning"]

SETTLED = "after settling; the state is saved: go on with --resume"


def own_steps(folder: Path) -> int:
    """How many steps of thinning a run has behind it."""
    path = folder / OWN_STATE
    return snapshot_step(path) if path.is_file() else 0


def train_thinning(
    training: Training,
    domains: Sequence[Domain],
    folder: Path,
    log: Log,
    stop: StopRequest,
    *,
    resumes: bool,
    watch: Watch,
    run: dict[str, Any],
    began: float,
) -> dict[str, Any]:
    """Thin each domain to its own budget: what it then uses, and what it answered before.

    Without what it answered before where its test images are others now.

    Args:
        run: the facts of the run, whose seconds are then those of its thinning too.

    Raises what `run_epochs` raises.
    """
    stop.at_once(SETTLED)
    settled = training.net.units.table.macs(training.alive())
    second = make_thinning(training)
    second.saved = training.saved
    second.behind = training.schedule.total, training.config.train.epochs
    facts: dict[str, Any] = {}
    if resumes and (folder / OWN_STATE).is_file():
        facts = restore(second, folder, OWN_STATE)
        facts.setdefault(TESTED, _tested(folder))  # an earlier prunion's state has none
    else:
        workers, shape = training.config.train.workers, training.config.input
        facts[WITH_UNION] = evaluate(
            training.net, domains, shape, processes=training.processes, workers=workers
        )
    for name in other_than_noted(facts, TESTED, {d.name: d.test.digest for d in domains}):
        facts[WITH_UNION].pop(name, None)  # it cannot be measured again

    def later(step: int, **figures: Any) -> None:
        log(training.schedule.total + step, **figures)

    run[SECONDS] = facts.setdefault(SECONDS, run.get(SECONDS, 0.0))
    run_epochs(second, folder, later, stop, facts, watch=watch, state=OWN_STATE, began=began)
    second.shared.release()
    training.learner.returned += second.learner.returned
    account = own_account(training.config, second.net, settled)
    own = {**account, "accuracy_with_union": facts[WITH_UNION]}
    later(second.step, own=own)
    return own


def _tested(folder: Path) -> dict[str, str]:
    """The digests of the test images of a finished run's record, as far as it has them."""
    domains = read_made_by(folder).get("domains", {})
    return {name: str(x.get("digests", {}).get("test", "")) for name, x in domains.items()}
