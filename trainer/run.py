"""`prunion train`: from a run file to a checkpoint."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from prunion.runtime.amounts import amount_text
from prunion.runtime.errors import PrunionError
from prunion.trainer.backbones import load_backbone
from prunion.trainer.batches import JointBatches
from prunion.trainer.budget import cost_of, make_budget
from prunion.trainer.checkpoint import save_checkpoint
from prunion.trainer.config import RunConfig, load_config
from prunion.trainer.domains import Domain, open_domain
from prunion.trainer.evaluate import evaluate
from prunion.trainer.interrupt import StoppedError, StopRequest, stop_signals
from prunion.trainer.memory import keep_freed_memory
from prunion.trainer.metrics_log import MetricsLog
from prunion.trainer.network import DomainNet
from prunion.trainer.priced_table import priced_table
from prunion.trainer.run_folder import drop_lines_after, make_folder
from prunion.trainer.snapshot import load_snapshot, save_snapshot
from prunion.trainer.training import Training

__all__ = ["RunResult", "train_command", "train_run"]


@dataclass(frozen=True)
class RunResult:
    """What a run ends with.

    Attributes:
        accuracy: per domain on the test images, pruned.
        accuracy_before: the same after warm-up, with every channel on.
        cost: share of the backbone's cost that the union takes.
    """

    folder: Path
    accuracy: dict[str, float]
    accuracy_before: dict[str, float]
    budget: dict[str, Any]
    params: tuple[int, int]
    macs: tuple[int, int]
    sharing: float
    returned: int
    seconds: float


def train_command(
    config_path: str, output: str | None, force: bool, resume: bool, as_json: bool
) -> None:
    """The command line's `train`."""
    config = load_config(config_path)
    folder = Path(output) if output else Path("runs") / Path(config_path).stem
    try:
        result = train_run(config, folder, force=force, resume=resume, run_file=Path(config_path))
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(stop.code) from None
    if as_json:
        print(json.dumps(_as_json(result), indent=1))
    else:
        print(table(result))


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
    domains = [open_domain(d, config.seed) for d in config.domains]
    training = _prepare(config, domains)
    snapshot = folder / "state.safetensors"
    make_folder(folder, force=force, resume=resume)
    if run_file is not None:
        shutil.copyfile(run_file, folder / "run.toml")
    facts: dict[str, Any] = {}
    if resume and snapshot.is_file():
        facts = load_snapshot(snapshot, training)
    drop_lines_after(folder / "metrics.jsonl", training.step)
    with stop_signals() as stop, MetricsLog(folder) as log:
        facts = _epochs(training, domains, log, snapshot, facts, stop)
        accuracy = evaluate(training.net, domains, config.input)
        log.log(training.step, accuracy=accuracy)
    result = _finish(training, accuracy, facts, folder, time.perf_counter() - started)
    checkpoint_facts = {
        "domains": [
            {
                "name": d.name,
                "classes": list(d.classes),
                "accuracy": accuracy[d.name],
                "accuracy_before": facts["before"][d.name],
            }
            for d in domains
        ],
        "budget": result.budget,
        "phase": training.phase,
        "epoch": training.epoch,
    }
    save_checkpoint(
        folder / "checkpoint", training.net, config, checkpoint_facts, force=force or resume
    )
    return result


def table(result: RunResult) -> str:
    """The closing table of a run."""
    lines = [f"{'domain':<20} {'all channels':>13} {'pruned':>8}"]
    for name, value in result.accuracy.items():
        lines.append(f"{name:<20} {result.accuracy_before[name]:>12.1%} {value:>8.1%}")
    budget, (p0, p1), (m0, m1) = result.budget, result.params, result.macs
    met = "met" if budget["met"] else "NOT met"
    lines += [
        f"parameters {p0:,} → {p1:,} ({p1 / p0:.1%}), MACs {m0:,} → {m1:,} ({m1 / m0:.1%})",
        f"budget {budget['kind']} {budget['asked']}: {amount_text(budget['value'])} {met}; "
        f"{result.sharing:.0%} of the kept channels are used by every domain; "
        f"{result.returned} switches came back on while learning",
        f"{result.seconds:.0f} s; checkpoint in {result.folder / 'checkpoint'}",
    ]
    return "\n".join(lines)


def _prepare(config: RunConfig, domains: Sequence[Domain]) -> Training:
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise PrunionError('device = "cuda", but torch sees no CUDA GPU: use "auto" or "cpu"')
    if device == "cpu":
        keep_freed_memory()
    backbone = load_backbone(config.backbone, *config.input.size)
    net = DomainNet(backbone, [len(d.classes) for d in domains]).to(device)
    priced = priced_table(config.budget.kind, net)
    budget = make_budget(config.budget, priced, net.units.group)
    return Training(config, net, JointBatches(domains, config), budget)


def _epochs(
    training: Training,
    domains: Sequence[Domain],
    log: MetricsLog,
    snapshot: Path,
    facts: dict[str, Any],
    stop: StopRequest,
) -> dict[str, Any]:
    config, schedule = training.config, training.schedule
    bar = tqdm(
        total=schedule.total,
        initial=training.step,
        desc="train",
        unit="step",
        disable=not sys.stderr.isatty(),
    )
    with bar:

        def report(figures: dict[str, float]) -> None:
            log.log(training.step, **figures)
            bar.set_postfix_str(f"{training.phase} cost {figures['cost']:.2f}", refresh=False)
            bar.update()

        while training.epoch < config.train.epochs:
            _measure_before(training, domains, log, facts)
            training.run_epoch(report, stop)
            save_snapshot(snapshot, training, facts)
            if stop:
                raise stop.stopped(
                    f"after {training.step} of {schedule.total} steps, all saved: go on with "
                    "--resume"
                )
    stop.now = "after the last step; the state is saved: finish with --resume"
    _measure_before(training, domains, log, facts)
    return facts


def _measure_before(
    training: Training, domains: Sequence[Domain], log: MetricsLog, facts: dict[str, Any]
) -> None:
    """Accuracy with every channel on, once warm-up is over."""
    if "before" in facts or training.epoch < max(1, training.config.train.warmup):
        return
    facts["before"] = evaluate(training.net, domains, training.config.input, gated=False)
    log.log(training.step, accuracy_before=facts["before"])


def _finish(
    training: Training,
    accuracy: dict[str, float],
    facts: dict[str, Any],
    folder: Path,
    seconds: float,
) -> RunResult:
    table, budget = training.net.units.table, training.budget
    alive = training.alive()
    everything = alive | True
    value = cost_of(training.priced, budget.kind, alive)
    kept = training.net.switches[:, torch.from_numpy(alive).to(training.net.switches.device)]
    return RunResult(
        folder=folder,
        accuracy=accuracy,
        accuracy_before=facts["before"],
        budget={
            "kind": budget.kind,
            "asked": training.config.budget.limit,
            "value": value / budget.full if training.config.budget.is_fraction else value,
            "met": value <= budget.allowed,
        },
        params=(table.params(everything), table.params(alive)),
        macs=(table.macs(everything), table.macs(alive)),
        sharing=float(kept.min(0).values.mean()),
        returned=training.learner.returned,
        seconds=seconds,
    )


def _as_json(result: RunResult) -> dict[str, Any]:
    return {**vars(result), "folder": str(result.folder)}
