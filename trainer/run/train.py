"""`prunion train`: from a run file to a checkpoint."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prunion.runtime.base import check_space, read_json, write_json
from prunion.runtime.errors import CheckpointError, OutputError
from prunion.trainer.config import RunConfig
from prunion.trainer.cost import make_budget, make_pricer
from prunion.trainer.data import Domain, HandedSets, JointBatches, open_domains
from prunion.trainer.network import GRAPH, build_network, evaluate, rebuild_network, save_checkpoint
from prunion.trainer.processes import Processes, device_named, joined_processes, prepare_torch
from prunion.trainer.run.epochs import (
    STATE,
    UNWATCHED,
    Log,
    Watch,
    open_log,
    restore,
    run_epochs,
)
from prunion.trainer.run.folder import check_folder, make_folder
from prunion.trainer.run.interrupt import stop_signals
from prunion.trainer.run.result import RunResult, run_result
from prunion.trainer.run.snapshot import snapshot_bytes
from prunion.trainer.run.training import Training

__all__ = ["RunResult", "train_run"]


def train_run(
    config: RunConfig,
    folder: Path,
    *,
    force: bool = False,
    resume: bool = False,
    run_file: Path | None = None,
    model: nn.Module | None = None,
    datasets: HandedSets | None = None,
    watch: Watch = UNWATCHED,
) -> RunResult:
    """Train one run and write its folder: metrics, a snapshot each epoch, the checkpoint.

    Args:
        model: the network itself, in place of the one that `config` names; it is left as it is.
        datasets: training and test images of the domains of `source = "python"`.
        watch: functions that are told of every step and epoch.

    Raises:
        PrunionError: the folder exists and neither `force` nor `resume` is given, a domain or
            backbone cannot be read, the budget cannot be met, or the loss stops being finite.
        StoppedError: SIGTERM or SIGINT came; `resume` goes on from that very step.
    """
    started = time.perf_counter()
    device = device_named(config.device)
    with joined_processes(len(config.domains), config.train.order, device) as processes:
        read = _inputs(config, run_file)
        processes.on_first(lambda: check_folder(folder, force=force, resume=resume, inputs=read))
        orientation = config.input.orientation
        domains = open_domains(config.domains, config.seed, processes, orientation, datasets)
        resumes = resume and (folder / STATE).is_file()
        graph = _graph(folder) if resumes else None
        training = _prepare(config, domains, device, processes, graph, model)
        _rehearse_end(training, domains, folder)
        processes.on_first(lambda: make_folder(folder, force=force, resume=resume))
        processes.on_first(lambda: _check_space(folder, training))
        facts: dict[str, Any] = {}
        if resumes:
            facts = restore(training, folder)
        else:
            processes.on_first(lambda: _keep_run_file(run_file, folder / "run.toml"))
            processes.on_first(lambda: write_json(folder / GRAPH, training.net.graph))
        with stop_signals() as stop, open_log(folder, training) as log:

            def measure() -> None:
                _measure_before(training, domains, log, facts)

            run_epochs(training, folder, log, stop, facts, measure, watch)
            accuracy = _accuracy(training, domains)
            seconds = time.perf_counter() - started
            before = facts.get("before", {})
            found = _found(domains)
            result = run_result(training, accuracy, before, folder, seconds, found)
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
    try:
        save_checkpoint(folder, training.net, training.config, facts, force=force, profile=profile)
    except OutputError as exc:
        raise OutputError(f"{exc}: training is done, finish it with --resume") from None


def _inputs(config: RunConfig, run_file: Path | None) -> list[Path | str]:
    """What the run reads of the user's disk."""
    paths = [config.train.teacher, config.budget.profile if config.budget.kind == "latency" else ""]
    paths += [config.backbone.weights] if config.backbone.weights_are_a_file else []
    for domain in config.domains:
        paths += [*domain.train, *domain.test]
    return [*filter(None, paths), *([run_file] if run_file else [])]


def _rehearse_end(training: Training, domains: Sequence[Domain], folder: Path) -> None:
    """What only the end of a run computes, before its first step: a key that breaks it shows now.

    The figures mean nothing yet.
    """
    guess = {domain.name: 0.5 for domain in domains}
    before = guess if training.schedule.warmup else {}
    result = run_result(training, guess, before, folder, 0.0, _found(domains))
    json.dumps(result.to_json()).encode()


def _found(domains: Sequence[Domain]) -> dict[str, dict[str, Any]]:
    return {domain.name: dict(domain.found) for domain in domains}


def _check_space(folder: Path, training: Training) -> None:
    """Refuse to begin what would not fit: the state, twice while it is replaced, and the result."""
    state, net = snapshot_bytes(training)
    there = (folder / STATE).stat().st_size if (folder / STATE).is_file() else 0
    check_space(folder, 2 * state + net - there, "choose another place with -o")


def _keep_run_file(run_file: Path | None, copy: Path) -> None:
    if run_file is not None and not (copy.exists() and copy.samefile(run_file)):
        shutil.copyfile(run_file, copy)


def _graph(folder: Path) -> Any:
    """The traced network of a run that goes on, so that what made it is not needed again."""
    path = folder / GRAPH
    return read_json(path, CheckpointError) if path.is_file() else None


def _prepare(
    config: RunConfig,
    domains: Sequence[Domain],
    device: str,
    processes: Processes,
    graph: Any,
    model: nn.Module | None,
) -> Training:
    prepare_torch(config, device)
    backbone, size, classes = config.backbone, config.input.size, [len(d.classes) for d in domains]
    if graph is None:
        net = build_network(backbone, size, classes, model=model)
    else:
        net = rebuild_network(backbone, size, classes, graph, GRAPH)
    net = net.to(device)
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
