"""What a run tells as it goes: a bar, a line for each epoch, and functions of the caller's."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prunion.runtime.base import shown
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import Phase
from prunion.trainer.learning import Training

with warnings.catch_warnings():
    # A notebook without ipywidgets gets a bar of text; which packages it has is not ours to say.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

__all__ = [
    "UNWATCHED",
    "Log",
    "Measured",
    "OnProgress",
    "Progress",
    "Teller",
    "Watch",
    "open_teller",
    "whole",
]

log = logging.getLogger(__name__)

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


class Teller:
    """Tells of a run's steps and epochs; of several processes only the first does.

    Args:
        record: where a step's figures are written.
        watch: the caller's own functions; what they raise ends the run.
    """

    def __init__(self, training: Training, record: Log, watch: Watch, bar: Any) -> None:
        self.training, self.record, self.watch, self.bar = training, record, watch, bar
        self._losses: dict[str, list[float]] = defaultdict(list)

    def step(self, figures: dict[str, float]) -> None:
        """Of a step that was just taken."""
        training = self.training
        self.record(training.step, **figures)
        for name in training.names:
            if (loss := f"loss/{name}") in figures:
                self._losses[name].append(figures[loss])
        self.bar.set_postfix_str(f"{training.phase} cost {figures['cost']:.2f}", refresh=False)
        self.bar.update()
        self._call(self.watch.on_step, training.step + 1, figures)

    def epoch(self, measured: Measured) -> None:
        """Of an epoch in a line: above the bar where there is one, else to the log."""
        if self.training.processes.first:
            line = _epoch_line(self.training, self._losses, measured)
            if self.bar.disable:
                log.info(line)
            else:
                self.bar.write(line, file=sys.stderr)
            self._losses.clear()

    def saved(self, figures: Mapping[str, Any]) -> None:
        """Of an epoch whose state is saved, to the caller."""
        self._call(self.watch.on_epoch, self.training.step, figures)

    def _call(self, told: OnProgress | None, step: int, figures: Mapping[str, Any]) -> None:
        training = self.training
        if told is not None and training.processes.first:
            steps, epochs = training.behind
            total, _ = whole(training)
            epoch = epochs + training.epoch
            told(Progress(steps + step, total, epoch, training.phase, figures))


@contextmanager
def open_teller(training: Training, record: Log, watch: Watch) -> Iterator[Teller]:
    """A teller whose bar begins where the run does, and is taken away with it."""
    bar = tqdm(
        total=whole(training)[0],
        initial=training.behind[0] + training.step,
        desc="train",
        unit="step",
        disable=not (training.processes.first and _someone_looks()),
    )
    with bar:
        yield Teller(training, record, watch, bar)


def whole(training: Training) -> tuple[int, int]:
    """Steps and epochs of the whole run: of what is behind this part, and of thinning to come."""
    steps, epochs = training.behind
    train, own = training.config.train, training.config.train.own_epochs
    steps += training.schedule.total + own * training.batches.steps_per_epoch
    return steps, epochs + train.epochs + own


def _epoch_line(
    training: Training, losses: Mapping[str, Sequence[float]], measured: Measured
) -> str:
    """An epoch in a line: mean loss, and what accuracy there is, by domain."""
    means = {name: sum(losses[name]) / len(losses[name]) for name in training.names if losses[name]}
    parts = ["loss " + ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())]
    for kind, found in measured.items():
        each = ", ".join(f"{name} {value:.1%}" for name, value in found.items())
        parts.append(f"{kind.replace('_', ' ')} {each}")
    epoch, (_, epochs) = training.behind[1] + training.epoch, whole(training)
    return f"epoch {epoch} of {epochs}, {training.phase}: {'; '.join(parts)}"


def _someone_looks() -> bool:
    """Whether a progress bar is seen: on a terminal, or under a notebook's cell."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or hasattr(shell, "kernel")
