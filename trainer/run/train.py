"""`prunion train`: from a run file to a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from prunion.runtime.base import write_json
from prunion.runtime.errors import OutputError
from prunion.runtime.measure import Answers
from prunion.trainer.config import CHECKPOINT, RECORD, RunConfig
from prunion.trainer.data import Domain, HandedSets
from prunion.trainer.learning import Training, own_account, stop_signals, thins_at_the_cut
from prunion.trainer.network import (
    accuracy_of,
    answer_domains,
    checkpoint_sha256,
    evaluate,
    save_checkpoint,
)
from prunion.trainer.processes import device_named, joined_processes, restarted
from prunion.trainer.run.epochs import SAVED, open_log, run_epochs
from prunion.trainer.run.folder import (
    BEFORE,
    BRANCHED,
    HANDED,
    Claim,
    Forks,
    beginning_of,
    check_folder,
    check_network,
    check_run_space,
    make_folder,
    network_note,
    set_out,
    spent,
)
from prunion.trainer.run.progress import UNWATCHED, Log, Watch, check_trackers
from prunion.trainer.run.record import (
    answer_records,
    check_answers,
    image_digests,
    run_record,
    seen_shares,
    tell_alike,
    tell_other_images,
    watch_accuracy,
    watched_part,
)
from prunion.trainer.run.result import RunResult, run_result, stored_account
from prunion.trainer.run.start import ExportCheck, begin, found_in
from prunion.trainer.run.thinning import own_steps, train_thinning
from prunion.trainer.score import read_verdict

__all__ = ["ExportCheck", "RunResult", "train_run"]


def train_run(
    config: RunConfig,
    folder: Path,
    *,
    force: bool = False,
    resume: bool = False,
    run_file: Path | None = None,
    model: nn.Module | None = None,
    check: ExportCheck | None = None,
    importance: np.ndarray | None = None,
    datasets: HandedSets | None = None,
    start: Path | None = None,
    start_of: Path | None = None,
    forks: Forks = lambda training: (),
    watch: Watch = UNWATCHED,
    track: Sequence[str] = (),
) -> RunResult:
    """Train one run and write its folder: metrics, a snapshot each epoch, the checkpoint.

    Args:
        model: the network itself, in place of the one that `config` names; it is left as it is.
            A run that goes on has its own, and this is only compared with it.
        check: asked before the first step, but not again by a run that goes on.
        importance: what ranks the units, not negative, `[U]`, the same for every domain; without
            it the run measures each domain's own.
        datasets: training and test images of the domains of `source = "python"`.
        start: a state that another run's `forks` kept, to go on from; beside it lies its log. The
            runs differ in their budget's limit at most.
        start_of: that run's folder, whose network this one goes on with.
        forks: the states on this run's way to keep for others.
        watch: functions that are told of every step and epoch.
        track: tools that are told of the figures too: wandb, mlflow.

    Raises:
        PrunionError: the folder exists and neither `force` nor `resume` is given, a domain or
            backbone cannot be read, the budget cannot be met, or the loss stops being finite, or
            in the end a domain's every answer.
        UnsupportedGraphError: the network could not be exported.
        CheckpointError: `model` is another network than the one that the run began with.
        StoppedError: SIGTERM or SIGINT came; `resume` goes on from that very step.
    """
    started = time.perf_counter()
    check_trackers(track)
    if restarted():
        force, resume = False, True
    device = device_named(config.device, config.train)
    with (
        Claim(folder) as claim,
        joined_processes(len(config.domains), config.train, device) as processes,
    ):
        read = _inputs(config, run_file)
        processes.on_first(lambda: check_folder(folder, force=force, resume=resume, inputs=read))
        processes.on_first(claim.take)
        beginning = beginning_of(folder, resume=resume, fork=start, begun=start_of)
        if model is not None and beginning.resumes:
            processes.on_first(lambda: check_network(model, folder, beginning))
        training, domains = begin(
            config,
            folder,
            device,
            processes,
            graph=beginning.graph(),
            model=model,
            check=None if beginning.resumes else check,
            importance=importance,
            datasets=datasets,
        )
        processes.on_first(lambda: make_folder(folder, force=force, resume=resume, claim=claim))
        kept = forks(training)
        processes.on_first(lambda: check_run_space(folder, training, kept, beginning))
        facts = set_out(training, folder, beginning, run_file)
        if model is not None and not beginning.resumes:
            facts[HANDED] = network_note(model)
        tell_other_images(training, domains, folder, facts)
        few = watched_part(training, domains)
        thinned_steps = own_steps(folder) if beginning.resumes and config.budget.own < 1 else 0
        with stop_signals() as stop, open_log(folder, training, thinned_steps, track) as log:

            def measure() -> dict[str, dict[str, float]]:
                _measure_before(training, domains, log, facts)
                found = watch_accuracy(training, few)
                log(training.step, **found, phase=training.phase)
                return found

            run_epochs(
                training, folder, log, stop, facts, measure, watch, forks=kept, began=started
            )
            own: dict[str, Any] | None = None
            if thins_at_the_cut(config):
                own = own_account(config, training.net)
                log(training.step, own=own)
            elif config.budget.own < 1:
                own = train_thinning(
                    training,
                    domains,
                    folder,
                    log,
                    stop,
                    resumes=beginning.resumes,
                    watch=watch,
                    run=facts,
                    began=started,
                )
            stop.at_once(SAVED)
            answers = _answers(training, domains)
            check_answers(training, answers, domains)
            tell_alike(answers, domains, config)
            result = replace(_result(training, domains, answers, folder, facts, started), own=own)
            records = answer_records(training, domains, answers)
            seen = seen_shares(training, domains)
            log(training.step, accuracy=result.accuracy, score=result.scores, budget=result.budget)
        processes.on_first(
            lambda: _save(training, domains, result, records, seen, force=force or resume)
        )
    return replace(result, verdict=read_verdict(folder), model_sha256=checkpoint_sha256(folder))


def _save(
    training: Training,
    domains: Sequence[Domain],
    result: RunResult,
    records: dict[str, dict[str, Any]],
    seen: dict[str, dict[str, float]],
    *,
    force: bool,
) -> None:
    facts = {
        "domains": [
            {
                "name": d.name,
                "classes": list(d.classes),
                "accuracy": result.accuracy[d.name],
                "accuracy_before": result.accuracy_before.get(d.name),
                "digests": image_digests(d),
            }
            for d in domains
        ],
        "budget": result.budget,
        "phase": training.phase,
        "epoch": training.epoch,
        **({BRANCHED: result.branched_from} if result.branched_from else {}),
    }
    folder = result.folder / CHECKPOINT
    # As it was read at the start: the run's own file may have been measured again since.
    profile = training.budget.pricer.profile
    try:
        save_checkpoint(folder, training.net, training.config, facts, force=force, profile=profile)
        model = checkpoint_sha256(result.folder)
        write_json(
            result.folder / RECORD, run_record(training, domains, result, records, model, seen)
        )
    except OutputError as exc:
        raise OutputError(f"{exc}: training is done, finish it with --resume") from None


def _inputs(config: RunConfig, run_file: Path | None) -> list[Path | str]:
    """What the run reads of the user's disk."""
    paths = [config.train.teacher, config.budget.profile if config.budget.kind == "latency" else ""]
    paths += [config.backbone.weights] if config.backbone.weights_are_a_file else []
    for domain in config.domains:
        paths += [*domain.train, *domain.test, *domain.validation]
    return [*filter(None, paths), *([run_file] if run_file else [])]


def _measure_before(
    training: Training, domains: Sequence[Domain], log: Log, facts: dict[str, Any]
) -> None:
    """Accuracy with every channel on, once warm-up is over; without one, or by turns, none.

    On validation images where there are some: test images wait for the end.
    """
    if not training.schedule.common_warmup or BEFORE in facts:
        return
    if training.epoch != training.config.train.warmup:  # later it would be of other weights
        return
    config = training.config
    with training.fitted_norms(gated=False):
        facts[BEFORE] = evaluate(
            training.net,
            [replace(domain, test=domain.watched) for domain in domains],
            config.input,
            gated=False,
            processes=training.processes,
            workers=config.train.workers,
        )
    log(training.step, accuracy_before=facts[BEFORE])


def _result(
    training: Training,
    domains: Sequence[Domain],
    answers: dict[int, Answers],
    folder: Path,
    facts: dict[str, Any],
    started: float,
) -> RunResult:
    accuracy = accuracy_of(answers, domains, training.processes)
    before = facts.get(BEFORE, {}) if training.schedule.common_warmup else {}
    seconds = spent(facts, started)
    found, stored = found_in(domains), stored_account(training)
    result = run_result(training, accuracy, before, folder, seconds, found, stored)
    return replace(result, branched_from=facts.get(BRANCHED))


def _answers(training: Training, domains: Sequence[Domain]) -> dict[int, Answers]:
    config = training.config
    return answer_domains(
        training.net,
        domains,
        config.input,
        processes=training.processes,
        workers=config.train.workers,
    )
