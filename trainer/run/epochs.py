"""The epochs of a run: figures are logged, the state is saved, a signal ends it without loss."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunion.runtime.errors import StoppedError
from prunion.trainer.config import LOG, STATE
from prunion.trainer.learning import StopRequest, Training, fit_heads
from prunion.trainer.run.folder import (
    SECONDS,
    Fork,
    drop_lines_after,
    keep_forks,
    save_state,
)
from prunion.trainer.run.progress import (
    UNWATCHED,
    Log,
    Measured,
    MetricsLog,
    Watch,
    open_teller,
    open_trackers,
    whole,
)
from prunion.trainer.run.result import usage_figures

__all__ = ["SAVED", "open_log", "run_epochs"]

log = logging.getLogger(__name__)

SAVED = "after the last step; the state is saved: finish with --resume"


@contextmanager
def open_log(
    folder: Path | None, training: Training, more: int = 0, track: Sequence[str] = ()
) -> Iterator[Log]:
    """Where figures go: the folder's log, cut back to the state's step, or nowhere without one.

    `more` steps were taken after the last of `training`. The tools named in `track` are told too.
    Of several processes only the first writes.
    """
    if folder is None or not training.processes.first:
        yield lambda step, **figures: None
        return
    drop_lines_after(folder / LOG, training.step + more)
    trackers = open_trackers(track, folder, training.config)
    with MetricsLog(folder, after=training.step + more, trackers=trackers) as log:
        yield log.log


def run_epochs(
    training: Training,
    folder: Path | None,
    record: Log,
    stop: StopRequest,
    facts: dict[str, Any],
    measure: Callable[[], Measured] = dict,
    watch: Watch = UNWATCHED,
    state: str = STATE,
    forks: Sequence[Fork] = (),
    began: float | None = None,
) -> None:
    """Train from where the run is to its end, saving its state after each epoch.

    Every epoch is told in a line: above the progress bar where there is one, else to the log.

    Args:
        folder: where the state is saved; None saves nothing.
        stop: a signal ends the step it comes in; what one does after the last step is up to the
            caller, who knows whether there is more to train.
        facts: kept with the state.
        measure: called after each epoch, before its state is saved; it may change `facts`, and
            returns the accuracies that the epoch's line has.
        watch: the caller's own functions, in the first process; what they raise ends the run.
        state: the file in `folder` that the state is saved to.
        forks: states on the way that are kept beside; they need a folder with a log.
        began: when this process did, of `time.perf_counter`, for the seconds kept with the state.

    Raises:
        PrunionError: a loss or the network stopped being finite.
        StoppedError: a signal came, and the state is saved.
    """

    def save() -> None:
        if folder is not None:
            save_state(folder / state, training, facts, began)

    stop.now = ""  # there is more to save than when the caller set it
    if training.step == 0 and training.config.train.fits_heads:
        _fit_heads(training)
    with open_teller(training, record, watch) as teller:
        while training.epoch < training.config.train.epochs:
            epoch = training.epoch
            until = min((f.step for f in forks if f.step > training.step), default=None)
            training.run_epoch(teller.step, stop, until)
            if training.epoch == epoch:  # amid it: nothing is measured where a whole run would not
                keep_forks(forks, folder, training, facts)
                if training.processes.any(bool(stop)):
                    save()
                    raise _stopped(training, stop)
                continue
            measured = measure()  # now, or a resumed run would measure it again
            usage = usage_figures(training)
            record(training.step, **usage)
            teller.epoch(measured)
            # Before the run's own state, or a run that is killed between the two lacks them.
            keep_forks(forks, folder, training, facts)
            save()
            if training.processes.any(bool(stop)):
                raise _stopped(training, stop)
            own = {key: fact for key, fact in facts.items() if key != SECONDS}
            teller.saved({**usage, **measured, **own})


def _stopped(training: Training, stop: StopRequest) -> StoppedError:
    done, (total, _) = training.behind[0] + training.step, whole(training)
    return stop.stopped(f"after {done} of {total} steps, all saved: go on with --resume")


def _fit_heads(training: Training) -> None:
    right = fit_heads(training.net, training.batches, training.config.train.precision)
    each = zip(training.names, right, strict=True)
    told = ", ".join(f"{name} {share:.1%}" for name, share in each if share is not None)
    if told and training.processes.first:
        log.info(f"heads start fitted to the backbone: accuracy {told}")
