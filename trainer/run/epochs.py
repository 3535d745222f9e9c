"""The epochs of a run: figures are logged, the state is saved, a signal ends it without loss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prunion.runtime.errors import OutputError
from prunion.trainer.run.folder import drop_lines_after
from prunion.trainer.run.interrupt import StopRequest
from prunion.trainer.run.metrics import MetricsLog
from prunion.trainer.run.result import usage_figures
from prunion.trainer.run.snapshot import load_snapshot, save_snapshot
from prunion.trainer.run.training import Training

__all__ = ["STATE", "Log", "open_log", "restore", "run_epochs"]

STATE = "state.safetensors"
Log = Callable[..., None]  # of a step's number and its figures, as `MetricsLog.log`


def restore(training: Training, folder: Path) -> dict[str, Any]:
    """Put a run back to where its folder's state left it; returns the facts kept with it.

    Raises CheckpointError if the state is of another run.
    """
    facts = load_snapshot(folder / STATE, training)
    training.saved = _saved(folder, training)
    return facts


@contextmanager
def open_log(folder: Path | None, training: Training) -> Iterator[Log]:
    """Where figures go: the folder's log, cut back to the state's step, or nowhere without one.

    Of several processes only the first writes.
    """
    if folder is None or not training.processes.first:
        yield lambda step, **figures: None
        return
    drop_lines_after(folder / "metrics.jsonl", training.step)
    with MetricsLog(folder, after=training.step) as log:
        yield log.log


def run_epochs(
    training: Training,
    folder: Path | None,
    log: Log,
    stop: StopRequest,
    facts: dict[str, Any],
    measure: Callable[[], None] = lambda: None,
) -> None:
    """Train from where the run is to its end, saving its state after each epoch.

    Args:
        folder: where the state is saved; None saves nothing.
        facts: kept with the state.
        measure: called after each epoch, before its state is saved; it may change `facts`.

    Raises:
        PrunionError: a loss or the network stopped being finite.
        StoppedError: a signal came, and the state is saved.
    """
    total, processes = training.schedule.total, training.processes
    bar = tqdm(
        total=total,
        initial=training.step,
        desc="train",
        unit="step",
        disable=not (processes.first and sys.stderr.isatty()),
    )
    with bar:

        def report(figures: dict[str, float]) -> None:
            log(training.step, **figures)
            bar.set_postfix_str(f"{training.phase} cost {figures['cost']:.2f}", refresh=False)
            bar.update()

        while training.epoch < training.config.train.epochs:
            training.run_epoch(report, stop)
            measure()  # now, or a resumed run would measure it again
            log(training.step, **usage_figures(training))
            if folder is not None:
                _save(folder, training, facts)
            if processes.any(bool(stop)):
                raise stop.stopped(
                    f"after {training.step} of {total} steps, all saved: go on with --resume"
                )
    stop.now = "after the last step; the state is saved: finish with --resume"


def _save(folder: Path, training: Training, facts: dict[str, Any]) -> None:
    def save() -> None:
        try:
            save_snapshot(folder / STATE, training, facts)
        except OutputError as exc:
            raise OutputError(f"{exc}: {training.saved}, go on from there with --resume") from None

    training.processes.on_first(save)
    training.saved = _saved(folder, training)


def _saved(folder: Path, training: Training) -> str:
    return f"the last good state is {folder / STATE}, after {training.step} steps"
