"""A run's folder: begun once, gone on with, never overwritten silently."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunion.runtime.base import check_output, json_of, lock_folder, replace_file, strangers
from prunion.runtime.errors import OutputError, PrunionError
from prunion.trainer.config import (
    BASELINE,
    CHECKPOINT,
    GRAPH,
    LOG,
    OWN_STATE,
    RECORD,
    RUN_FILE,
    STATE,
    TENSORBOARD,
)
from prunion.trainer.network import foreign_to_checkpoint
from prunion.trainer.processes import restarted
from prunion.trainer.run.progress import RUNS

__all__ = [
    "SWEPT",
    "Claim",
    "check_folder",
    "check_resumes",
    "drop_lines_after",
    "foreign_to_run",
    "is_begun",
    "make_folder",
]

FILES = (LOG, STATE, OWN_STATE, GRAPH, RECORD, RUNS)
FOLDERS = (TENSORBOARD, CHECKPOINT, BASELINE)
SWEPT = "seed-*-budget-*"  # runs' folders in a sweep's
KEPT = ("wandb",)  # other programs' runs may lie there too, perhaps not sent yet
PATIENCE = 10.0  # seconds, that processes which read images outlive a run that was killed
MARKS = frozenset(("cost", "target", "phase", "mean_sparsity", "budget/kind"))  # of a log's lines
MOST_LINE = 1 << 20
HALF = re.compile(r"\.(" + "|".join(map(re.escape, (*FILES, *FOLDERS))) + r")\..+")


@dataclass
class Claim:
    """A run's folder, or one around runs', in which no other process may train meanwhile.

    Use it with `with`.
    """

    folder: Path
    handle: int | None = None

    def take(self) -> None:
        """Take the folder if it is there and not taken. Raises PrunionError if another has it."""
        end = time.monotonic() + PATIENCE
        while self.handle is None and self.folder.is_dir():
            try:
                self.handle = lock_folder(self.folder)
            except FileNotFoundError:
                continue  # it has just gone
            except PermissionError as exc:
                raise PrunionError(
                    f"{self.folder} cannot be opened ({exc.strerror}): choose another place with -o"
                ) from None
            except BlockingIOError:
                if time.monotonic() > end:
                    raise PrunionError(
                        f"another process trains in {self.folder}: wait until it is done, or "
                        "choose another place with -o"
                    ) from None
                time.sleep(0.2)

    def make(self) -> None:
        """Make the folder if it is not there, and take it.

        Raises PrunionError if it cannot be made, or another process has it.
        """
        _make(self.folder)
        self.take()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.handle is not None and self.handle >= 0:
            os.close(self.handle)
        self.handle = None


def check_folder(
    folder: Path,
    *,
    force: bool,
    resume: bool,
    inputs: Sequence[Path | str] = (),
    again: str = "use --force",
) -> None:
    """Check that a run may use the folder; nothing is changed.

    Args:
        again: how to train what cannot be resumed from its first step.
        inputs: what the run reads; none of it may be what `force` removes.

    Raises:
        PrunionError: it is a file, it holds a run and neither `force` nor `resume` is given,
            `force` is given for a folder that holds anything but a run, or `resume` for one that
            holds none.
        OutputError: it cannot be written.
    """
    if force and resume:
        raise PrunionError("force starts anew and resume goes on: give one of them")
    if folder.exists() and not folder.is_dir():
        raise PrunionError(f"{folder} is a file: give -o a folder")
    if resume and folder.exists():
        _check_resumable(folder, again)
    elif folder.exists() and any(folder.iterdir()) and not force:
        raise PrunionError(_why_taken(folder))
    # The run file in a run's folder is a copy that stays.
    read = [] if resume else [x for x in inputs if Path(x) != folder / RUN_FILE]
    check_output(folder, force=True, wrote=_nothing if resume else foreign_to_run, inputs=read)
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} may not be written: choose another place with -o")


def check_resumes(folder: Path) -> None:
    """Raise PrunionError if there is nothing to resume, which would train from the first step.

    Not for lists of runs, of which some may be new. torchrun gives a run that it starts anew the
    same options.
    """
    if not folder.exists() and not restarted():
        raise PrunionError(
            f"{folder} holds no run to resume: correct -o, or leave out --resume to begin one"
        )


def is_begun(folder: Path) -> bool:
    """Whether a folder is that of a run, or of a sweep's runs, that was begun."""
    # A program's tables leave no run file, and a run that is stopped early leaves no state.
    places, names = ("", f"{SWEPT}/"), (RUN_FILE, STATE)
    return any(any(folder.glob(place + name)) for place in places for name in names)


def _why_taken(folder: Path) -> str:
    """Why a run may not begin in a folder that is not empty, and what may be done there."""
    foreign, log = foreign_to_run(folder), folder / LOG
    if not foreign:
        return (
            f"{folder} already holds a run: pass --resume to go on with it, --force to start "
            "again, or -o for another place"
        )
    if (folder / STATE).is_file() or (log.is_file() and _is_own(log)):
        return (
            f"{folder} already holds a run, and {foreign} beside it: pass --resume to go on with "
            "it, or -o for another place"
        )
    return f"{folder} holds no run and is not empty (it {foreign}): choose another place with -o"


def foreign_to_run(folder: Path) -> str:
    """What in a folder no training wrote; "" if nothing."""
    if not folder.is_dir():
        return strangers(folder)
    half = [x.name for x in folder.iterdir() if HALF.fullmatch(x.name)]
    log = folder / LOG  # beside a run file that is no copy there is none
    if log.exists() and not _is_own(log):
        return "holds a metrics.jsonl of another program"
    known = (RUN_FILE, *FILES, *FOLDERS) if log.exists() else ()
    found = strangers(folder, (*known, *KEPT, *half))
    checkpoint, board = folder / CHECKPOINT, folder / TENSORBOARD
    if not found and checkpoint.exists() and (found := foreign_to_checkpoint(checkpoint)):
        found += " in checkpoint"
    if not found and board.exists():
        events = [x.name for x in board.glob("events.out.tfevents.*")]
        found = f"{inside} in tensorboard" if (inside := strangers(board, events)) else ""
    if not found and (folder / BASELINE).exists():
        inside = foreign_to_run(folder / BASELINE)
        found = f"{inside} in baseline" if inside else ""
    return found


def _is_own(log: Path) -> bool:
    """Whether a log is a run's, by its first line, of which a run that was killed has a part."""
    with log.open("rb") as file:
        line = file.readline(MOST_LINE)
    try:
        value = json_of(line)
    except ValueError:
        return not line.endswith(b"\n") and line.startswith(b'{"step": '[: len(line)])
    return isinstance(value, dict) and "step" in value and bool(MARKS & value.keys())


def _nothing(folder: Path) -> str:
    """That nothing in a folder is foreign: a run that goes on removes nothing of it."""
    return ""


def make_folder(folder: Path, *, force: bool, resume: bool, claim: Claim | None = None) -> None:
    """Make the folder, without what an earlier run left unless `resume` goes on with it.

    Args:
        claim: takes the folder before anything in it is changed.

    Raises:
        PrunionError: as `check_folder`, or the folder cannot be made, or another process has it.
    """
    check_folder(folder, force=force, resume=resume)
    _make(folder)
    if claim is not None:
        claim.take()
    try:
        (folder / LOG).touch()  # from now on it is known as a run's
        if not resume:
            _remove_run(folder)
        _remove_half_written(folder)
    except OSError as exc:  # what is left would pass for this run's
        raise OutputError(
            f"{exc.filename} of the run before cannot be removed ({exc.strerror}): remove it "
            "yourself, or choose another place with -o"
        ) from None


def _remove_run(folder: Path) -> None:
    """Remove what an earlier run left. Stopped at any moment, it still is a run's folder.

    That is known by its log, which is there to the end; a half-removed folder has a name of those
    that a killed run left half written. The state goes first, so that nothing goes on with a part.
    """
    for leftover in (STATE, *(name for name in FILES if name not in (STATE, LOG))):
        (folder / leftover).unlink(missing_ok=True)
    for leftover in FOLDERS:
        if os.path.lexists(folder / leftover):
            (folder / leftover).replace(folder / f".{leftover}.{secrets.token_hex(8)}")
    (folder / LOG).write_bytes(b"")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise PrunionError(
            f"{folder} cannot be made ({exc.strerror or exc}): choose another place with -o"
        ) from None


def drop_lines_after(metrics: Path, step: int) -> None:
    """Drop the steps that were logged after the state was saved: they are taken again."""
    if not metrics.is_file():
        return
    kept = []
    for line in metrics.read_text("utf-8", errors="replace").splitlines():
        try:
            value = json_of(line)
        except ValueError:  # half a line of a run that was killed
            continue
        if any(key.startswith(("budget/kind", "own/")) for key in value):  # they come again
            continue
        # A line of a step has its cost; what is measured between steps carries the next number.
        if value.get("step", 0) < step + ("cost" not in value):
            kept.append(line + "\n")
    with replace_file(metrics) as temporary:
        temporary.write_text("".join(kept), "utf-8")


def _check_resumable(folder: Path, again: str) -> None:
    """Refuse what holds no state, unless it looks like a run killed before its first state."""
    if not (folder / STATE).is_file():
        known = (*FILES, *FOLDERS, *KEPT, RUN_FILE)
        others = [p.name for p in folder.iterdir() if p.name not in known]
        if swept := sorted(path.name for path in folder.glob(SWEPT) if path.is_dir()):
            raise PrunionError(
                f"{folder} holds the runs of a sweep, such as {swept[0]}: give the --seed and "
                f"--budget that it was begun with, or -o {folder / swept[0]} to go on with one"
            )
        if any(not name.startswith(".") for name in others) or (folder / CHECKPOINT).exists():
            # Advised only where it is not refused in its turn.
            fix = "choose another place with -o" if foreign_to_run(folder) else again
            raise PrunionError(f"{folder} holds no state.safetensors to resume from: {fix}")


def _remove_half_written(folder: Path) -> None:
    for prefix in (*FILES, *FOLDERS):
        for leftover in folder.glob(f".{prefix}.*"):
            whole = leftover.is_dir() and not leftover.is_symlink()
            try:
                shutil.rmtree(leftover) if whole else leftover.unlink()
            except OSError as exc:  # it may name a file in there without its folder
                raise OSError(exc.errno, exc.strerror, str(leftover)) from None
