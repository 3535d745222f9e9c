"""`prunion train`: from a run file to a checkpoint."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunion.trainer.config import RunConfig
from prunion.trainer.cost import make_budget, make_pricer
from prunion.trainer.data import Domain, JointBatches, open_domains
from prunion.trainer.network import build_network, evaluate, save_checkpoint
from prunion.trainer.processes import Processes, device_named, joined_processes, prepare_torch
from prunion.trainer.run.epochs import STATE, Log, open_log, restore, run_epochs
from prunion.trainer.run.folder import check_folder, make_folder
from prunion.trainer.run.interrupt import stop_signals
from prunion.trainer.run.result import RunResult, run_result
from prunion.trainer.run.training import Training

__all__ = ["RunResult", "train_run"]


def train_run(
    config: RunConfig,
    folder: Path,
    *,
    force: bool = False,
    resume: bool = False,
    run_file: Path | None = None,
) -> RunResult:
    """Train one run and write its folder: metrics, a snapshot each epoch, the checkpoint.

    Raises:
        PrunionError: the folder exists and neither `force` nor `resume` is given, a domain or
            backbone cannot be read, the budget cannot be met, or the loss stops being finite.
        StoppedError: SIGTERM or SIGINT came; `resume` goes on from that very step.
    """
    started = time.perf_counter()
    device = device_named(config.device)
    with joined_processes(len(config.domains), config.train.order, device) as processes:
        processes.on_first(lambda: check_folder(folder, force=force, resume=resume))
        orientation = config.input.orientation
        domains = open_domains(config.domains, config.seed, processes, orientation)
        training = _prepare(config, domains, device, processes)
        processes.on_first(lambda: make_folder(folder, force=force, resume=resume))
        facts: dict[str, Any] = {}
        if resume and (folder / STATE).is_file():
            facts = restore(training, folder)
        else:
            processes.on_first(lambda: _keep_run_file(run_file, folder / "run.toml"))
        with stop_signals() as stop, open_log(folder, training) as log:

            def measure() -> None:
                _measure_before(training, domains, log, facts)

            run_epochs(training, folder, log, stop, facts, measure)
            accuracy = _accuracy(training, domains)
            seconds = time.perf_counter() - started
            before = facts.get("before", {})
            data = {d.name: dict(d.found) for d in domains}
            result = run_result(training, accuracy, before, folder, seconds, data)
            log(training.step, accuracy=accuracy, score=result.scores, budget=result.budget)
        processes.on_first(lambda: _save(training, domains, result, force=force or resume))
    return result


def _save(training: Training, domains: Sequence[Domain], result: RunResult, *, force: bool) -> None:
    facts = {
        "domains": [
            {
                "name": d.name,
                "classes": list(d.classes),
                "accuracy": result.accuracy[d.name],
                "accuracy_before": result.accuracy_before.get(d.name),
            }
            for d in domains
        ],
        "budget": result.budget,
        "phase": training.phase,
        "epoch": training.epoch,
    }
    folder = result.folder / "checkpoint"
    # As it was read at the start: the run's own file may have been measured again since.
    profile = training.budget.pricer.profile
    save_checkpoint(folder, training.net, training.config, facts, force=force, profile=profile)


def _keep_run_file(run_file: Path | None, copy: Path) -> None:
    if run_file is not None and not (copy.exists() and copy.samefile(run_file)):
        shutil.copyfile(run_file, copy)


def _prepare(
    config: RunConfig, domains: Sequence[Domain], device: str, processes: Processes
) -> Training:
    prepare_torch(config, device)
    classes = [len(d.classes) for d in domains]
    net = build_network(config.backbone, config.input.size, classes).to(device)
    budget = make_budget(config.budget, make_pricer(config.budget, net), config.backbone.keep)
    batches = JointBatches(domains, config, processes=processes, pin=device == "cuda")
    return Training(config, net, batches, budget, processes)


def _measure_before(
    training: Training, domains: Sequence[Domain], log: Log, facts: dict[str, Any]
) -> None:
    """Accuracy with every channel on, once warm-up is over; a run without one has none."""
    if not training.schedule.warmup or "before" in facts:
        return
    if training.epoch < training.config.train.warmup:
        return
    facts["before"] = _accuracy(training, domains, gated=False)
    log(training.step, accuracy_before=facts["before"])


def _accuracy(
    training: Training, domains: Sequence[Domain], *, gated: bool = True
) -> dict[str, float]:
    config = training.config
    return evaluate(
        training.net,
        domains,
        config.input,
        gated=gated,
        processes=training.processes,
        workers=config.train.workers,
    )
