"""`prunion train`: from a run file to a checkpoint."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from prunion.trainer.config.run import RunConfig
from prunion.trainer.cost.budget import make_budget
from prunion.trainer.cost.prices import make_pricer
from prunion.trainer.data.batches import JointBatches
from prunion.trainer.data.domains import Domain, open_domains
from prunion.trainer.network.checkpoint import save_checkpoint
from prunion.trainer.network.evaluate import evaluate
from prunion.trainer.network.masked import build_network
from prunion.trainer.ranks import Ranks, joined_ranks
from prunion.trainer.run.device import device_named, prepare_device
from prunion.trainer.run.folder import check_folder, drop_lines_after, make_folder
from prunion.trainer.run.interrupt import StopRequest, stop_signals
from prunion.trainer.run.metrics import MetricsLog
from prunion.trainer.run.result import RunResult, run_result, usage_figures
from prunion.trainer.run.snapshot import load_snapshot, save_snapshot
from prunion.trainer.run.training import Training

__all__ = ["RunResult", "train_run"]

Log = Callable[..., None]


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
    with joined_ranks(len(config.domains), config.train.order, device) as ranks:
        ranks.on_first(lambda: check_folder(folder, force=force, resume=resume))
        domains = open_domains(config.domains, config.seed, ranks)
        training = _prepare(config, domains, device, ranks)
        ranks.on_first(lambda: make_folder(folder, force=force, resume=resume))
        facts: dict[str, Any] = {}
        if resume and (folder / "state.safetensors").is_file():
            facts = load_snapshot(folder / "state.safetensors", training)
            training.saved = _saved(folder / "state.safetensors", training)
        else:
            ranks.on_first(lambda: _keep_run_file(run_file, folder / "run.toml"))
        with stop_signals() as stop, _open_log(folder, training) as log:
            facts = _epochs(training, domains, log, folder / "state.safetensors", facts, stop)
            workers = config.train.workers
            accuracy = evaluate(training.net, domains, config.input, ranks=ranks, workers=workers)
            seconds = time.perf_counter() - started
            before = facts.get("before", {})
            result = run_result(training, accuracy, before, folder, seconds)
            log(training.step, accuracy=accuracy, score=result.scores, budget=result.budget)
        ranks.on_first(lambda: _save(training, domains, result, force=force or resume))
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


def _saved(path: Path, training: Training) -> str:
    return f"the last good state is {path}, after {training.step} steps"


def _keep_run_file(run_file: Path | None, copy: Path) -> None:
    if run_file is not None and not (copy.exists() and copy.samefile(run_file)):
        shutil.copyfile(run_file, copy)


def _prepare(config: RunConfig, domains: Sequence[Domain], device: str, ranks: Ranks) -> Training:
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    prepare_device(device)
    classes = [len(d.classes) for d in domains]
    net = build_network(config.backbone, config.input.size, classes).to(device)
    budget = make_budget(config.budget, make_pricer(config.budget, net), config.backbone.keep)
    batches = JointBatches(domains, config, ranks=ranks, pin=device == "cuda")
    return Training(config, net, batches, budget, ranks)


@contextmanager
def _open_log(folder: Path, training: Training) -> Iterator[Log]:
    """Where figures go: the run's log, cut back to the state's step; nowhere on other ranks."""
    if not training.ranks.first:
        yield lambda step, **figures: None
        return
    drop_lines_after(folder / "metrics.jsonl", training.step)
    with MetricsLog(folder, after=training.step) as log:
        yield log.log


def _epochs(
    training: Training,
    domains: Sequence[Domain],
    log: Log,
    snapshot: Path,
    facts: dict[str, Any],
    stop: StopRequest,
) -> dict[str, Any]:
    config, schedule, ranks = training.config, training.schedule, training.ranks
    bar = tqdm(
        total=schedule.total,
        initial=training.step,
        desc="train",
        unit="step",
        disable=not (ranks.first and sys.stderr.isatty()),
    )
    with bar:

        def report(figures: dict[str, float]) -> None:
            log(training.step, **figures)
            bar.set_postfix_str(f"{training.phase} cost {figures['cost']:.2f}", refresh=False)
            bar.update()

        while training.epoch < config.train.epochs:
            training.run_epoch(report, stop)
            _measure_before(training, domains, log, facts)  # or a resumed run measures it again
            log(training.step, **usage_figures(training))
            ranks.on_first(lambda: save_snapshot(snapshot, training, facts))
            training.saved = _saved(snapshot, training)
            if ranks.any(bool(stop)):
                raise stop.stopped(
                    f"after {training.step} of {schedule.total} steps, all saved: go on with "
                    "--resume"
                )
    stop.now = "after the last step; the state is saved: finish with --resume"
    return facts


def _measure_before(
    training: Training, domains: Sequence[Domain], log: Log, facts: dict[str, Any]
) -> None:
    """Accuracy with every channel on, once warm-up is over; a run without one has none."""
    if not training.schedule.warmup or "before" in facts:
        return
    if training.epoch < training.config.train.warmup:
        return
    facts["before"] = evaluate(
        training.net,
        domains,
        training.config.input,
        gated=False,
        ranks=training.ranks,
        workers=training.config.train.workers,
    )
    log(training.step, accuracy_before=facts["before"])
