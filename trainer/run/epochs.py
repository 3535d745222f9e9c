"""The epochs of a run: figures are logged, the state is saved, a signal ends it without loss."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunion.runtime.base import shown
from prunion.runtime.errors import ConfigError, StoppedError
from prunion.trainer.config import LOG, STATE, Phase
from prunion.trainer.learning import StopRequest, Training, fit_heads
from prunion.trainer.run.folder import (
    SECONDS,
    Fork,
    drop_lines_after,
    keep_forks,
    save_state,
)
from prunion.trainer.run.metrics import MetricsLog, open_trackers
from prunion.trainer.run.result import usage_figures

with warnings.catch_warnings():
    # A notebook without ipywidgets gets a bar of text; which packages it has is not ours to say.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

__all__ = [
    "SAVED",
    "UNWATCHED",
    "Log",
    "OnProgress",
    "Progress",
    "Watch",
    "open_log",
    "run_epochs",
]

log = logging.getLogger(__name__)

SAVED = "after the last step; the state is saved: finish with --resume"
Log = Callable[..., None]  # of a step's number and its figures, as `MetricsLog.log`
Measured = Mapping[str, Mapping[str, float]]  # accuracies by domain, by what they are called


@dataclass(frozen=True)
class Progress:
    """Where a run is, as its callbacks are told.

    Attributes:
        step, total: steps that are done, and that there are, of thinning too (`own_epochs`).
        epoch: epochs that are done, of both.
        phase: warmup, ramp or settle.
        figures: after a step what `metrics.jsonl` has of it: `loss/NAME`, `train_accuracy/NAME`,
            `cost`, `target`, `lambda`; after an epoch how the channels are used, and `before`, the
            accuracies after warm-up, once they are measured.
    """

    step: int
    total: int
    epoch: int
    phase: Phase
    figures: Mapping[str, Any]


OnProgress = Callable[[Progress], object]


@dataclass(frozen=True)
class Watch:
    """Functions of the caller's: after every step, and after every epoch once its state is saved.

    What they return is ignored, and what they raise ends the run. Raises ConfigError where one is
    no function, which would show after hours, and after `force` has removed the earlier run.
    """

    on_step: OnProgress | None = None
    on_epoch: OnProgress | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not callable(value):
                raise ConfigError(f"{name} is {shown(value)}: give a function of one argument")


UNWATCHED = Watch()


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
    total, _ = _whole(training)
    behind, epochs_behind = training.behind
    processes = training.processes
    stop.now = ""  # there is more to save than when the caller set it
    if training.step == 0 and training.config.train.fits_heads:
        _fit_heads(training)
    losses: dict[str, list[float]] = defaultdict(list)
    named = {f"loss/{name}": name for name in training.names}
    bar = tqdm(
        total=total,
        initial=behind + training.step,
        desc="train",
        unit="step",
        disable=not (processes.first and _someone_looks()),
    )
    with bar:

        def report(figures: dict[str, float]) -> None:
            record(training.step, **figures)
            for name in figures.keys() & named:
                losses[named[name]].append(figures[name])
            bar.set_postfix_str(f"{training.phase} cost {figures['cost']:.2f}", refresh=False)
            bar.update()
            tell(watch.on_step, training.step + 1, figures)

        def tell(told: OnProgress | None, step: int, figures: Mapping[str, Any]) -> None:
            if told is not None and processes.first:
                epoch = epochs_behind + training.epoch
                told(Progress(behind + step, total, epoch, training.phase, figures))

        def stopped() -> StoppedError:
            return stop.stopped(
                f"after {behind + training.step} of {total} steps, all saved: go on with --resume"
            )

        while training.epoch < training.config.train.epochs:
            epoch = training.epoch
            until = min((f.step for f in forks if f.step > training.step), default=None)
            training.run_epoch(report, stop, until)
            if training.epoch == epoch:  # amid it
                keep_forks(forks, folder, training, facts)
                if processes.any(bool(stop)):  # nothing is measured where a whole run would not
                    if folder is not None:
                        save_state(folder / state, training, facts, began)
                    raise stopped()
                continue
            measured = measure()  # now, or a resumed run would measure it again
            usage = usage_figures(training)
            record(training.step, **usage)
            if processes.first:
                _tell(bar, _epoch_line(training, losses, measured))
                losses.clear()
            # Before the run's own state, or a run that is killed between the two lacks them.
            keep_forks(forks, folder, training, facts)
            if folder is not None:
                save_state(folder / state, training, facts, began)
            if processes.any(bool(stop)):
                raise stopped()
            own = {key: fact for key, fact in facts.items() if key != SECONDS}
            tell(watch.on_epoch, training.step, {**usage, **measured, **own})


def _fit_heads(training: Training) -> None:
    right = fit_heads(training.net, training.batches, training.config.train.precision)
    each = zip(training.names, right, strict=True)
    told = ", ".join(f"{name} {share:.1%}" for name, share in each if share is not None)
    if told and training.processes.first:
        log.info(f"heads start fitted to the backbone: accuracy {told}")


def _epoch_line(
    training: Training, losses: Mapping[str, Sequence[float]], measured: Measured
) -> str:
    """An epoch in a line: mean loss, and what accuracy there is, by domain."""
    means = {name: sum(losses[name]) / len(losses[name]) for name in training.names if losses[name]}
    parts = ["loss " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())]
    for kind, found in measured.items():
        each = ", ".join(f"{name} {value:.1%}" for name, value in found.items())
        parts.append(f"{kind.replace('_', ' ')} {each}")
    epoch, (_, epochs) = training.behind[1] + training.epoch, _whole(training)
    return f"epoch {epoch} of {epochs}, {training.phase}: {'; '.join(parts)}"


def _whole(training: Training) -> tuple[int, int]:
    """Steps and epochs of the whole run: of what is behind this part, and of thinning to come."""
    steps, epochs = training.behind
    train, own = training.config.train, training.config.train.own_epochs
    steps += training.schedule.total + own * training.batches.steps_per_epoch
    return steps, epochs + train.epochs + own


def _tell(bar: Any, line: str) -> None:
    if bar.disable:
        log.info(line)
    else:
        bar.write(line, file=sys.stderr)


def _someone_looks() -> bool:
    """Whether a progress bar is seen: on a terminal, or under a notebook's cell."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or hasattr(shell, "kernel")
