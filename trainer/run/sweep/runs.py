"""Several runs, one after the other: for each seed and budget, or one without pruning beside it.

The runs of one seed share what they can: warm-up, and the ramp down to the lowest budget.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from prunion.runtime.base import read_json, shown
from prunion.runtime.errors import OutputError, PrunionError
from prunion.trainer.config import BASELINE, GRAPH, LOG, STATE, RunConfig
from prunion.trainer.cost import make_budget
from prunion.trainer.data import HandedSets, open_domains
from prunion.trainer.learning import Training
from prunion.trainer.processes import device_named, is_first_process, joined_processes, restarted
from prunion.trainer.run.folder import (
    SHARING,
    Claim,
    Fork,
    check_folder,
    check_same_network,
    snapshot_facts,
)
from prunion.trainer.run.progress import UNWATCHED, Watch
from prunion.trainer.run.record import made_by
from prunion.trainer.run.result import RunResult
from prunion.trainer.run.start import ExportCheck, begin, check_budget
from prunion.trainer.run.sweep.branches import SHORTER, Shared, fork_of, leading_run, sharing_facts
from prunion.trainer.run.sweep.checks import asked_once, check_different, check_pruned, check_shared
from prunion.trainer.run.sweep.finished import check_alike, draw_all, draw_of, ended, is_finished
from prunion.trainer.run.sweep.sweep_run import SweepRun
from prunion.trainer.run.sweep.table import SweepResult, sweep_result
from prunion.trainer.run.train import train_run
from prunion.trainer.score import (
    MadeBy,
    baseline_of,
    check_baseline,
    read_made_by,
    read_verdict,
)

__all__ = ["train_sweep", "train_with_baseline"]

FORK = "fork."  # how the file of a kept state begins
# With --force all the others would go too.
AGAIN = "remove that folder to train it again"


def train_sweep(
    configs: Sequence[RunConfig],
    folder: Path,
    *,
    force: bool = False,
    resume: bool = False,
    run_file: Path | None = None,
    check: ExportCheck | None = None,
    track: Sequence[str] = (),
    shared: Shared = "ramp",
    shorter: float = SHORTER,
    given: str = "budgets",
) -> SweepResult:
    """Train every run into a folder of its own below `folder`, and draw the frontier there.

    Each seed's lowest budget is trained first, and is the run that `train_run` would make of it
    alone: to the byte, or to rounding where each of several processes has statistics of its own
    (`sync_norms = false`), which are averaged once more wherever another run leaves. A higher one
    goes on from where the ramp passed its limit (`branched_from`); from the end of warm-up where
    there is no ramp, and then it too is what it would be alone.

    Args:
        configs: of the same network and data; in them only `seed` and the budget's limit differ.
        resume: leave runs that are finished as they are, and go on with the others. A budget that
            is new, whose state nobody kept, is trained from its first step. What the runs share is
            decided when they are begun: PrunionError if `shared` or `shorter` was another, and if a
            finished one is of other images, classes or another teacher than the others.
        shared: `ramp`, or `warm-up` alone.
        shorter: share of settling that a run skips which leaves the ramp at its beginning, 0 … 1.
        given: what the caller's user gives several budgets as, for messages.

    Raises what `train_run` raises, and PrunionError if another process trains in `folder`; the
    folders and every budget are looked at before the first run.
    """
    if restarted():
        force, resume = False, True
    runs = [SweepRun(config, folder / _name(config)) for config in configs]
    _refuse(runs, folder, given, shared, force=force, resume=resume)
    sharing = sharing_facts(shared, shorter)
    with Claim(folder) as claim:
        if is_first_process():
            claim.take()
        finished = [run for run in runs if resume and is_finished(*run)]
        waiting = [run for run in runs if run not in finished]
        if resume:
            _check_sharing(folder, runs, sharing)
        else:
            _remove_forks(folder, "seed-*")
        check = check and asked_once(check, [run.folder for run in runs] if resume else [])
        if waiting:
            shares = _price(runs, waiting, finished, check, resume=resume)
        else:
            places = {draw_of(config): place for config, place in reversed(finished)}
            check_alike(finished, lambda config: read_made_by(places[draw_of(config)]))
            shares = []
        if is_first_process():
            claim.make()
        go = partial(
            train_run, force=force, resume=resume, run_file=run_file, check=check, track=track
        )
        for seed in dict.fromkeys(run.config.seed for run in waiting):
            own = [i for i, run in enumerate(runs) if run.config.seed == seed]
            leader = leading_run([runs[i] for i in own], [shares[i] for i in own], shared)
            order = [leader, *(runs[i] for i in own if runs[i] is not leader)]
            left = [run for run in order if run in waiting]
            begun = [run for run in left if resume and run.begun]
            _train_seed(left, begun, leader, folder, go, shared, shorter)
            _remove_forks(folder, f"seed-{seed}-*")  # of a sweep of other budgets
        result = sweep_result(folder, configs, [ended(run) for run in runs])
        if not is_first_process():
            return result
        return replace(result, pictures=draw_all(folder, runs, sharing))


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

    Both train for as many epochs, and see the same batches until domains are thinned after
    settling; `watch` is told of the first. `resume` goes on with whichever was stopped, and adds a
    baseline to a run that has none.

    Raises what `train_run` raises, ConfigError for a run that prunes nothing, and CheckpointError
    if one of the two began with other weights than `model`'s, with which the other would begin.
    """
    check_baseline(config)
    if model is not None and (resume or restarted()):
        check_same_network(model, folder, folder / BASELINE)
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
    with Claim(folder) as claim:
        # Or another run with --force in it would remove the baseline under way.
        if is_first_process():
            claim.take()
        baseline = train_run(
            baseline_of(config),
            folder / BASELINE,
            force=force,
            resume=resume,
            model=model,
            datasets=datasets,
            track=track,
        )
    verdict = read_verdict(folder, folder / BASELINE)
    return replace(result, baseline=baseline.accuracy, verdict=verdict)


def _train_seed(
    waiting: Sequence[SweepRun],
    begun: Sequence[SweepRun],
    leader: SweepRun,
    folder: Path,
    go: Callable[..., RunResult],
    shared: Shared,
    shorter: float,
) -> None:
    """Train those runs of a seed that are not finished, first the `leader`, which others leave.

    Args:
        begun: those of them that go on from a state of their own.
    """
    name = leader.folder.name

    def state(run: SweepRun) -> Path:
        return folder / f"{FORK}{name}.{run.folder.name}.safetensors"

    def forks(training: Training) -> list[Fork]:
        others = [run for run in waiting if run != leader and run not in begun]
        made = [fork_of(training, run.config, state(run), name, shared, shorter) for run in others]
        return [fork for fork in made if fork is not None]

    for run in waiting:
        kept = state(run)
        go(
            *run,
            start=kept if kept.is_file() else None,
            start_of=leader.folder,
            forks=forks if run == leader else lambda training: (),
        )
        for file in (kept, kept.with_suffix(".jsonl")):
            file.unlink(missing_ok=True)


def _name(config: RunConfig) -> str:
    budget = re.sub(r"[^A-Za-z0-9.]", "_", str(config.budget.limit))
    return f"seed-{config.seed}-budget-{budget}"


def _refuse(
    runs: Sequence[SweepRun], folder: Path, given: str, shared: str, *, force: bool, resume: bool
) -> None:
    """Refuse what cannot be a sweep, or not in this folder."""
    if (folder / LOG).exists():
        raise OutputError(f"{folder} holds a single run: choose another place with -o")
    check_different(runs)
    configs = [run.config for run in runs]
    check_pruned(configs, given)
    check_shared(shared, configs, given)
    for run in runs:
        check_folder(run.folder, force=force, resume=resume, again=AGAIN)


def _remove_forks(folder: Path, runs: str) -> None:
    """Remove the states that were kept on the way of those runs, a pattern, for others."""
    for leftover in folder.glob(FORK + runs):
        leftover.unlink(missing_ok=True)


def _price(
    runs: Sequence[SweepRun],
    waiting: Sequence[SweepRun],
    finished: Sequence[SweepRun],
    check: ExportCheck | None,
    *,
    resume: bool,
) -> list[float]:
    """Everything that the runs need, before the first one: a budget that cannot be met shows now.

    They share network and data, so all budgets are priced for the network of one that is `waiting`,
    and those that are `finished` are held against its images. Of one that goes on, what made the
    network is not needed again. Returns what share of its cost each run allows.
    """
    begun = [run for run in waiting if resume and run.begun]
    config, folder = (begun or waiting)[0]
    graph = read_json(folder / GRAPH) if begun and (folder / GRAPH).is_file() else None
    device = device_named(config.device, config.train)
    with joined_processes(len(config.domains), config.train, device) as processes:
        training, domains = begin(config, folder, device, processes, graph=graph, check=check)
        opened = {draw_of(config): domains}

        def today(run: RunConfig) -> MadeBy:
            if draw_of(run) not in opened:
                shape = run.input.orientation
                opened[draw_of(run)] = open_domains(run.domains, run.seed, processes, shape)
            return made_by(training, opened[draw_of(run)])

        check_alike(finished, today)
        pricer, cuts = training.budget.pricer, config.train.traits.prunes
        budgets = [make_budget(c.budget, pricer, c.backbone.keep, cuts=cuts) for c, _ in runs]
    for run, budget in zip(runs, budgets, strict=True):
        goes_on = resume and (run.begun or run in finished)
        check_budget(run.config, training.net, budget, begun=goes_on)
    return [budget.share for budget in budgets]


def _check_sharing(folder: Path, runs: Sequence[SweepRun], now: Mapping[str, str | float]) -> None:
    """Refuse to go on from states that were kept for a sweep whose runs part elsewhere."""
    kept = [*sorted(folder.glob(f"{FORK}*.safetensors")), *(place / STATE for _, place in runs)]
    for path in kept:
        before = snapshot_facts(path).get(SHARING, now)  # none where it left nobody
        for key, value in now.items():
            if before.get(key) != value:
                raise PrunionError(
                    f"{path} is of a sweep with {key} = {shown(before.get(key))}, and this one has "
                    f"{shown(value)}: resume with what it was started with, or start again with "
                    "--force"
                )
