"""Several runs, one after the other: for each seed and budget, or one without pruning beside it.

A seed's warm-up is trained once.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from prunion.runtime.base import asked_text, read_json, replace_file
from prunion.runtime.errors import OutputError, PrunionError
from prunion.trainer.config import BudgetConfig, RunConfig
from prunion.trainer.cost import make_budget
from prunion.trainer.data import HandedSets
from prunion.trainer.processes import device_named, joined_processes, restarted
from prunion.trainer.run.epochs import STATE, UNWATCHED, Progress, Watch
from prunion.trainer.run.folder import check_folder
from prunion.trainer.run.record import RECORD
from prunion.trainer.run.result import RunResult
from prunion.trainer.run.start import ExportCheck, begin
from prunion.trainer.run.train import train_run
from prunion.trainer.score import read_verdict

__all__ = ["SweepResult", "sweep_table", "train_sweep", "train_with_baseline"]

METRICS = "metrics.jsonl"
BASELINE = "baseline"  # the folder of the unpruned run in the pruned one's


@dataclass(frozen=True)
class SweepResult:
    """What the runs of a sweep end with.

    Attributes:
        runs: each run's result as plain JSON values, with its `seed` and `folder`.
        budgets: for each budget `asked`, its `seeds`, and of them mean and spread (the sample
            standard deviation, None of one seed) of each domain's `accuracy`, and of the domains'
            `mean`.
    """

    folder: Path
    runs: list[dict[str, Any]]
    budgets: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**vars(self), "folder": str(self.folder)}


def train_sweep(
    configs: Sequence[RunConfig],
    folder: Path,
    *,
    force: bool = False,
    resume: bool = False,
    run_file: Path | None = None,
    check: ExportCheck | None = None,
    track: Sequence[str] = (),
) -> SweepResult:
    """Train every run into a folder of its own below `folder`, in order.

    Each is the run that `train_run` would make of it alone, to the byte: before the ramp a budget
    changes nothing, so runs that differ only in its limit start from one state after warm-up.

    Args:
        configs: of the same network and data; in them only `seed` and the budget's limit differ.
        resume: leave runs that are finished as they are, and go on with the others.

    Raises what `train_run` raises; the folders and every budget are looked at before the first run.
    """
    if restarted():
        force, resume = False, True
    folders = [folder / _name(config) for config in configs]
    if (folder / METRICS).exists():
        raise OutputError(f"{folder} holds a single run: choose another place with -o")
    if len(set(folders)) < len(folders):
        raise PrunionError("two of the runs have the same seed and budget: leave one out")
    for place in folders:
        check_folder(place, force=force, resume=resume)
    open_runs = [
        (config, place)
        for config, place in zip(configs, folders, strict=True)
        if not (resume and _is_finished(place, config))
    ]
    warm_ups = {config.seed: folder / f"warm-up.{config.seed}.safetensors" for config in configs}
    if not resume:
        _remove(warm_ups.values())
    if open_runs:
        _try(open_runs, check)
    for number, (config, place) in enumerate(open_runs):
        warm = warm_ups[config.seed] if _shares(config) else None
        train_run(
            config,
            place,
            force=force,
            resume=resume,
            run_file=run_file,
            warm_up=warm if warm is not None and warm.is_file() else None,
            watch=Watch(on_epoch=_keeper(config, place, warm)),
            track=track,
        )
        if config.seed not in [later.seed for later, _ in open_runs[number + 1 :]]:
            _remove([warm_ups[config.seed]])
    runs = [
        {**read_json(place / RECORD)["result"], "seed": config.seed, "folder": str(place)}
        for config, place in zip(configs, folders, strict=True)
    ]
    return SweepResult(folder, runs, _by_budget(configs, runs))


def train_with_baseline(
    config: RunConfig,
    folder: Path,
    *,
    force: bool = False,
    resume: bool = False,
    run_file: Path | None = None,
    model: nn.Module | None = None,
    check: ExportCheck | None = None,
    datasets: HandedSets | None = None,
    watch: Watch = UNWATCHED,
    track: Sequence[str] = (),
) -> RunResult:
    """Train a run, then the same without pruning in `folder/baseline`: a run's folder like any.

    Both see the same batches for as many epochs; `watch` is told of the first. `resume` goes on
    with whichever was stopped, and adds a baseline to a run that has none. Raises what `train_run`
    raises.
    """
    result = train_run(
        config,
        folder,
        force=force,
        resume=resume,
        run_file=run_file,
        model=model,
        check=check,
        datasets=datasets,
        watch=watch,
        track=track,
    )
    whole = replace(config, budget=BudgetConfig(1.0))
    baseline = train_run(
        whole,
        folder / BASELINE,
        force=force,
        resume=resume,
        model=model,
        datasets=datasets,
        track=track,
    )
    verdict = read_verdict(folder, folder / BASELINE)
    return replace(result, baseline=baseline.accuracy, verdict=verdict)


def sweep_table(result: SweepResult) -> str:
    """What a sweep prints at its end, lines of text: accuracy by budget, mean ± spread."""
    names = list(result.runs[0]["accuracy"])
    columns = [*names, *(["mean"] if len(names) > 1 else [])]
    width = max(15, *(len(name) + 2 for name in columns))
    head = f"{'budget':<12} {'seeds':>5} {'params':>7}"
    lines = [head + "".join(f"{name:>{width}}" for name in columns)]
    for row in result.budgets:
        figures = [*(row["accuracy"][name] for name in names), row["mean"]][: len(columns)]
        asked = asked_text(row["asked"])
        lines.append(
            f"{asked:<12} {len(row['seeds']):>5} {row['params']:>7.1%}"
            + "".join(f"{_figure(x):>{width}}" for x in figures)
        )
    if any(len(row["seeds"]) > 1 for row in result.budgets):
        lines.append("mean ± sample standard deviation over the seeds, in percent")
    missed = [run["folder"] for run in result.runs if not run["budget"]["met"]]
    lines += [f"budget NOT met: {', '.join(missed)}"] if missed else []
    seconds = sum(run["seconds"] for run in result.runs)
    return "\n".join([*lines, f"{seconds:.0f} s; {len(result.runs)} runs in {result.folder}"])


def _figure(value: dict[str, Any]) -> str:
    spread = "" if value["spread"] is None else f" ± {100 * value['spread']:.2f}"
    return f"{100 * value['mean']:.2f}{spread}"


def _name(config: RunConfig) -> str:
    budget = re.sub(r"[^A-Za-z0-9.]", "_", str(config.budget.limit))
    return f"seed-{config.seed}-budget-{budget}"


def _shares(config: RunConfig) -> bool:
    """Whether runs with other budgets begin alike; the paper's recipe has no warm-up."""
    return config.train.warmup > 0 and config.train.recipe != "paper"


def _try(runs: Sequence[tuple[RunConfig, Path]], check: ExportCheck | None) -> None:
    """Everything that the runs need, before the first one: a budget that cannot be met shows now.

    They share network and data, so the others' budgets are priced for the first one's network.
    """
    config, folder = runs[0]
    device = device_named(config.device)
    with joined_processes(len(config.domains), config.train, device) as processes:
        training, _ = begin(config, folder, device, processes, check=check)
        for other, _ in runs[1:]:
            make_budget(other.budget, training.budget.pricer, other.backbone.keep)


def _keeper(config: RunConfig, folder: Path, warm: Path | None) -> Any:
    """After the last epoch of warm-up: keep the state, and the log to it, for the other budgets."""

    def keep(progress: Progress) -> None:
        if warm is None or warm.is_file() or progress.epoch != config.train.warmup:
            return
        for name, copy in ((METRICS, warm.with_suffix(".jsonl")), (STATE, warm)):
            with replace_file(copy) as temporary:
                shutil.copyfile(folder / name, temporary)

    return keep


def _remove(warm_ups: Iterable[Path]) -> None:
    for state in warm_ups:
        for file in (state, state.with_suffix(".jsonl")):
            file.unlink(missing_ok=True)


def _is_finished(folder: Path, config: RunConfig) -> bool:
    """Whether a folder holds the end of this very run; of another one `train_run` tells."""
    checkpoint = folder / "checkpoint" / "checkpoint.json"
    if not (folder / RECORD).is_file() or not checkpoint.is_file():
        return False
    stored = RunConfig.from_checkpoint(read_json(checkpoint).get("config"))
    same = replace(stored, device=config.device, threads=config.threads)
    workers = replace(config.train, workers=stored.train.workers)
    return same == replace(config, train=workers)


def _by_budget(
    configs: Sequence[RunConfig], runs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    budgets = []
    for asked in dict.fromkeys(config.budget.limit for config in configs):
        pairs = zip(configs, runs, strict=True)
        own = [run for config, run in pairs if config.budget.limit == asked]
        names = list(own[0]["accuracy"])
        table = np.array([[run["accuracy"][name] for name in names] for run in own])
        each = {name: _spread(table[:, index]) for index, name in enumerate(names)}
        budgets.append(
            {
                "asked": asked,
                "seeds": [run["seed"] for run in own],
                "params": float(np.mean([run["params"][1] / run["params"][0] for run in own])),
                "accuracy": each,
                "mean": _spread(table.mean(1)),
            }
        )
    return budgets


def _spread(values: np.ndarray) -> dict[str, float | None]:
    spread = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "spread": spread}
