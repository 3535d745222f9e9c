"""Where a run's figures go: one JSON object a line, TensorBoard, and the tools that are asked for.

Weights & Biases and MLflow say themselves where they put them (project, server, offline): by
WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and their other variables.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from prunion.runtime.base import install_hint, json_of, read_json, reason_of, shown, write_json
from prunion.runtime.errors import ConfigError, DataError, OutputError, PrunionError
from prunion.trainer.config import LOG, TENSORBOARD, RunConfig

__all__ = ["RUNS", "MetricsLog", "Tracker", "check_trackers", "open_trackers"]

log = logging.getLogger(__name__)

RUNS = "trackers.json"  # which of a tool's runs a folder's is, so that one that resumes goes on
PROJECT = "prunion"  # where the user names none
MOST_METRICS, MOST_PARAMS = 1000, 100  # of one request to MLflow
WAIT_S = 5.0


class Tracker(Protocol):
    """A tool that is told of figures as `metrics.jsonl` is."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures by name, of a step."""

    def close(self, *, failed: bool) -> None:
        """The run has ended, or stopped before its end."""


class MetricsLog:
    """Appends to `metrics.jsonl` and `tensorboard/` in a run folder; use it with `with`."""

    def __init__(
        self, folder: Path | str, after: int = 0, trackers: Sequence[Tracker] = ()
    ) -> None:
        """Open both, making `folder` if need be. Raises DataError if it cannot be written to.

        `after` is how many steps a resumed run has behind it: what TensorBoard has of later ones
        is taken again, and the log was cut back (`drop_lines_after`). `trackers` are told of every
        finite number, and closed with it.
        """
        self._trackers = trackers
        path = Path(folder) / LOG
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _end_broken_line(path)
            self._lines = path.open("a", encoding="utf-8")
        except OSError as exc:
            raise DataError(
                f"{path} cannot be written ({exc.strerror or exc}): choose another run folder"
            ) from None
        self._board = _tensorboard(path.parent / TENSORBOARD, after)
        self._tell_again(path, after)

    def _tell_again(self, path: Path, after: int) -> None:
        """What was measured behind the last step has the next one's number, and went with it."""
        if self._board is None or not after:
            return
        for line in path.read_text("utf-8", errors="replace").splitlines():
            value = json_of(line)
            if value.get("step") == after:
                for name, number in value.items():
                    if name != "step" and isinstance(number, int | float):
                        self._board.add_scalar(name, float(number), after)

    def log(self, step: int, **scalars: Any) -> None:
        """Write one line: `step` and every scalar.

        Values are numbers or text; a mapping (one value per domain, say) becomes
        `name/key`. What is not finite is written as null, since JSON has no NaN.
        """
        flat = dict(_flattened(scalars))
        line = {"step": step, **{name: _json_value(value) for name, value in flat.items()}}
        try:
            self._lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            self._lines.flush()
            numbers = {k: float(v) for k, v in flat.items() if not isinstance(v, str | None)}
            for name, value in numbers.items():
                if self._board is not None:
                    self._board.add_scalar(name, value, step)
        except OSError as exc:
            raise self._failed(exc) from None
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        for tracker in self._trackers:
            tracker.log(step, finite)

    def _failed(self, exc: OSError) -> OutputError:
        return OutputError(
            f"{self._lines.name} cannot be written ({exc.strerror or exc}): make room, then go on "
            "with --resume from the state of the last epoch"
        )

    def close(self) -> None:
        """Close both files."""
        try:
            self._lines.close()
            if self._board is not None:
                self._board.close()
        except OSError as exc:
            raise self._failed(exc) from None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for tracker in self._trackers:
            tracker.close(failed=kind is not None)
        self.close()


def _end_broken_line(path: Path) -> None:
    """A run that was killed may have left half a line: end it, so that the next one is whole."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as stream:
            stream.seek(-1, 2)
            if stream.read(1) != b"\n":
                stream.write(b"\n")


def _tensorboard(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # From a run's first step too: one that was killed before its first state left figures.
    return SummaryWriter(str(folder), purge_step=after)


def _flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flattened(value, f"{prefix}{name}/")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError if a name is none, or its package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f'track is {shown(name)}: give "wandb" or "mlflow"')
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"track is {name}, which is not installed: {install_hint(name)}")


def open_trackers(names: Sequence[str], folder: Path, config: RunConfig) -> list[Tracker]:
    """A run in each tool, or the one that this folder's run began before.

    One that cannot be opened is told of and left out: the run needs none of them.
    """
    opened: list[Tracker] = []
    if not names:
        return opened
    known = _known(folder / RUNS)
    for name in dict.fromkeys(names):
        try:
            tracker, known[name] = TRACKERS[name](folder, config, known.get(name))
        except Exception as exc:  # network, login, version: the tools' errors share no base
            log.warning("%s: %s; the run goes on without it", name, reason_of(exc))
            continue
        opened.append(_Careful(name, tracker))
    if opened:
        write_json(folder / RUNS, known)
    return opened


class _Careful:
    """A tracker whose failure is told of once and ends no run."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self.name = name
        self.tracker: Tracker | None = tracker

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._try("log", step, figures)

    def close(self, *, failed: bool) -> None:
        self._try("close", failed=failed)

    def _try(self, what: str, *args: object, **options: object) -> None:
        if self.tracker is None:
            return
        try:
            getattr(self.tracker, what)(*args, **options)
        except Exception as exc:
            self.tracker = None
            log.warning(
                "%s: %s; the run goes on without it, metrics.jsonl has every figure",
                self.name,
                reason_of(exc),
            )


class _Wandb:
    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=step)

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def _open_wandb(folder: Path, config: RunConfig, known: str | None) -> tuple[Tracker, str]:
    wandb = importlib.import_module("wandb")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=folder.name,
        id=known,
        resume="allow" if known else None,
        dir=str(folder),
        config=config.to_json(),
        reinit="create_new",  # a notebook's own run stays the notebook's
    )
    return _Wandb(run), str(run.id)


class _MLflow:
    def __init__(self, client: Any, run: str) -> None:
        self.client, self.run = client, run
        self.metric = importlib.import_module("mlflow.entities").Metric
        self.waiting: list[Any] = []
        self.sent = time.monotonic()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.waiting += [self.metric(name, value, now, step) for name, value in figures.items()]
        # Each request takes as long as a small network's step.
        if len(self.waiting) >= MOST_METRICS or time.monotonic() - self.sent > WAIT_S:
            self._send()

    def close(self, *, failed: bool) -> None:
        self._send()
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")

    def _send(self) -> None:
        for start in range(0, len(self.waiting), MOST_METRICS):
            self.client.log_batch(self.run, metrics=self.waiting[start : start + MOST_METRICS])
        self.waiting, self.sent = [], time.monotonic()


def _open_mlflow(folder: Path, config: RunConfig, known: str | None) -> tuple[Tracker, str]:
    mlflow = importlib.import_module("mlflow")
    client = mlflow.MlflowClient()
    if known is not None:
        client.update_run(known, status="RUNNING")
        return _MLflow(client, known), known
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = client.get_experiment_by_name(name)
    experiment = client.create_experiment(name) if found is None else found.experiment_id
    run = client.create_run(experiment, run_name=folder.name).info.run_id
    param = importlib.import_module("mlflow.entities").Param
    keys = [param(key, str(value)[:500]) for key, value in _flattened(config.to_json())]
    for start in range(0, len(keys), MOST_PARAMS):
        client.log_batch(run, params=keys[start : start + MOST_PARAMS])
    return _MLflow(client, run), run


TRACKERS = {"wandb": _open_wandb, "mlflow": _open_mlflow}


def _known(path: Path) -> dict[str, str]:
    try:
        value = read_json(path) if path.is_file() else {}
    except PrunionError:  # a note of ours that was damaged: the tools begin a run anew
        return {}
    return {k: v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}
