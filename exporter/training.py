"""What `import prunion` gives of training: `train`, `sweep`, and `prune` for a network in hand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from prunion.exporter.graph import rehearse_export
from prunion.exporter.tables import check_handed, domain_table, handed_sets, plain, sees, values_of
from prunion.runtime.base import path_argument, shown, spelled_for_programs
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import BudgetConfig, RunConfig, asked_config, load_config
from prunion.trainer.processes import torch_as_it_was
from prunion.trainer.run import (
    OnProgress,
    RunResult,
    Shared,
    SweepResult,
    Watch,
    check_resumes,
    is_begun,
    train_run,
    train_sweep,
    train_with_baseline,
)
from prunion.trainer.score import check_baseline

__all__ = ["prune", "sweep", "train"]


@spelled_for_programs()
@torch_as_it_was()
def train(
    config: RunConfig | Mapping[str, Any] | Path | str,
    output: Path | str | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    model: nn.Module | None = None,
    datasets: Mapping[str, Any] | None = None,
    baseline: bool = False,
    track: Sequence[str] = (),
    on_step: OnProgress | None = None,
    on_epoch: OnProgress | None = None,
) -> RunResult:
    """Train and prune a network, as `prunion train` does.

    Before the first step a random cut of the network is exported and compared, so that what
    cannot be exported is not trained.

    Args:
        config: a run file's path, its tables as a mapping, or a `RunConfig`. Relative paths in a
            file count from its folder, those of a mapping from the working folder.
        output: the run folder; `runs/NAME` for a file NAME.toml, else `runs/run`.
        force: replace a run folder that is there.
        resume: go on from the state that the folder holds.
        model: a network in place of the one that `[backbone]` names; it is left as it is.
        datasets: by name, for domains of `source = "python"`: a `torch.utils.data.Dataset`, or
            `(train, test)`, or `(train, test, validation)`.
        baseline: also train it with every channel, for as long, to compare: `result.baseline` has
            that run's accuracies, `baseline` in the run folder is its folder. Callbacks are told of
            the pruned run alone.
        track: tools that are told of the figures as `metrics.jsonl` is: `"wandb"`, `"mlflow"`.
        on_step: called with a `Progress` after each step; what it raises ends the run.
        on_epoch: the same after each epoch, once its state is saved.

    Raises:
        ConfigError: a key is missing, unknown or out of range.
        PrunionError: the folder exists, a domain or backbone cannot be read, the budget cannot be
            met, the network could not be exported, or the loss stops being finite.
    """
    config, run_file, folder = _asked(config, output, resume)
    check_handed(config, datasets or {})
    if resume:
        check_resumes(folder)
    if baseline:
        check_baseline(config)
    go = train_with_baseline if baseline else train_run
    return go(
        config,
        folder,
        force=force,
        resume=resume,
        run_file=run_file,
        model=model,
        datasets={name: handed_sets(value) for name, value in (datasets or {}).items()},
        check=rehearse_export,
        watch=Watch(on_step, on_epoch),
        track=values_of(track),
    )


@spelled_for_programs()
@torch_as_it_was()
def sweep(
    config: RunConfig | Mapping[str, Any] | Path | str,
    output: Path | str | None = None,
    *,
    seeds: Sequence[int] = (),
    budgets: Sequence[float | str] = (),
    share: Shared = "ramp",
    force: bool = False,
    resume: bool = False,
    track: Sequence[str] = (),
) -> SweepResult:
    """Train a run for each seed and budget, as `prunion train --seed A,B --budget C,D` does.

    Args:
        config: as for `train`.
        output: the folder that holds a run folder for each; as for `train` without one.
        seeds: in place of the run's own.
        budgets: limits in place of the run's own.
        share: what the budgets of a seed have in common: `"ramp"`, down to the lowest, or
            `"warm-up"` alone, so that every run is what it would be alone.
        force: replace run folders that are there.
        resume: leave finished runs as they are, and go on with the others.
        track: as for `train`.

    Raises what `train` raises.
    """
    config, run_file, folder = _asked(config, output, resume)
    runs = [
        replace(config, seed=seed, budget=replace(config.budget, limit=limit))
        for seed in values_of(seeds) or [config.seed]
        for limit in values_of(budgets) or [config.budget.limit]
    ]
    return train_sweep(
        runs,
        folder,
        force=force,
        resume=resume,
        run_file=run_file,
        check=rehearse_export,
        track=values_of(track),
        shared=share,
    )


def prune(
    model: nn.Module,
    domains: Mapping[str, Any],
    budget: float | str | Mapping[str, Any] = 0.5,
    output: Path | str | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    force: bool = False,
    resume: bool = False,
    baseline: bool = False,
    track: Sequence[str] = (),
    on_step: OnProgress | None = None,
    on_epoch: OnProgress | None = None,
    **tables: Any,
) -> RunResult:
    """Prune a network in hand for a few domains; `model` itself is left as it is.

    A linear layer at its very end is taken for the classifier and dropped, a map `[N, C, H, W]` is
    pooled, anything else is features.

    Args:
        model: from images `[N, 3, H, W]` to one tensor.
        domains: each one's images by its name: a folder of class folders, or of `train` and `test`
            (or `val`) with class folders in them, as `prunion init` reads it; a Parquet file; a
            `torch.utils.data.Dataset`; two of these, `(train, test)`; or the keys of
            `[domains.NAME]` as a dict. Without test images a tenth of the others is held out.
        budget: a share of the network's parameters; else one kind and its limit, such as
            `{"macs": 0.5}`, or the keys of `[budget]`.
        output: the run folder; `runs/NAME`, of the model's class, without one.
        size: of the images in pixels; what the network says of itself, else 224.
        tables: what else a run file may hold, such as `train={"settle": 3}`, `seed=1`, or
            `backbone={"cut": "layer3"}`.
        force: as for `train`.
        resume: as for `train`.
        baseline: as for `train`.
        track: as for `train`.
        on_step: as for `train`.
        on_epoch: as for `train`.

    Raises:
        ConfigError: a key is missing, unknown or out of range.
        UnsupportedGraphError: the network cannot be traced, or its channels not be followed.
        PrunionError: as `train`.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}: give a torch.nn.Module")
    if not isinstance(domains, Mapping) or not domains:
        raise ConfigError(
            f'domains is {shown(domains)}: give images by name, such as {{"birds": "data/birds"}}'
        )
    kind = type(model)
    described = {name: domain_table(name, value) for name, value in domains.items()}
    backbone = {
        "source": "python",
        "name": f"{kind.__module__}:{kind.__name__}",
        **_keys("backbone", tables.pop("backbone", {})),
    }
    given = _keys("input", tables.pop("input", {}))
    if size is not None and "size" in given:
        raise ConfigError(f"size is {shown(size)}, and input has a size too: give one of them")
    config = {
        **tables,
        "backbone": backbone,
        "input": {**sees(model), **({} if size is None else {"size": size}), **given},
        "budget": _budget(budget),
        "domains": {name: table for name, (table, _) in described.items()},
    }
    return train(
        config,
        Path("runs") / kind.__name__.lower() if output is None else output,
        force=force,
        resume=resume,
        model=model,
        datasets={name: sets for name, (_, sets) in described.items() if sets is not None},
        baseline=baseline,
        track=track,
        on_step=on_step,
        on_epoch=on_epoch,
    )


def _asked(
    config: RunConfig | Mapping[str, Any] | Path | str, output: Path | str | None, resume: bool
) -> tuple[RunConfig, Path | None, Path]:
    """The run, the file that it was read from, and its folder."""
    named = isinstance(config, (str, os.PathLike))
    run_file = path_argument("config", config) if named else None
    folder = Path("runs") / (run_file or Path("run")).stem
    if output is not None:
        folder = path_argument("output", output)
    folder = Path(os.path.abspath(folder))  # a result leads there from any working folder
    begun = resume and is_begun(folder)
    if run_file is not None:
        return load_config(run_file, begun=begun), run_file, folder
    if not isinstance(config, (Mapping, RunConfig)):
        raise ConfigError(f"config is {shown(config)}: give a run file's path, or its tables")
    return asked_config(plain(config), begun=begun), None, folder


def _keys(table: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise ConfigError(f"{table} is {shown(value)}: give its keys as a dict")


def _budget(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {"kind": "params", "limit": value}
    if "limit" in value or len(value) != 1:
        return dict(value)
    ((kind, limit),) = value.items()
    if kind in vars(BudgetConfig(1.0)):
        return dict(value)  # its limit is missing, which is told
    return {"kind": kind, "limit": limit}
