"""`prunion check`: all that a run needs, opened and tried, and nothing trained or written."""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prunion.runtime.base import asked_text, peak_rss_bytes
from prunion.trainer.config import RunConfig
from prunion.trainer.cost import least_limit, shown_cost
from prunion.trainer.data import Domain, HandedSets, kinds_line
from prunion.trainer.learning import StopRequest, Training, images_to_fit
from prunion.trainer.processes import device_named, joined_processes
from prunion.trainer.run.folder import snapshot_bytes
from prunion.trainer.run.record import watched_images
from prunion.trainer.run.start import ExportCheck, begin, found_in, least_of_run

__all__ = ["RunCheck", "check_run", "check_table"]

SIZED = 32  # images of a domain whose sizes are looked at
STEPS, MOST_SECONDS = 3, 10.0  # that are timed, after one that warms up
ANSWER = 1 / 3  # of the time that a training step spends on an image
MOST_LAYERS, MOST_KINDS = 8, 4  # in the table


@dataclass(frozen=True)
class RunCheck:
    """What a run would train on, with what, and how long it would take.

    Attributes:
        domains: by name: classes, images, what was skipped or changed, remarks, `sizes` of some
            training images as the smallest, middle and largest `[width, height]`, and `batch`.
        input: the run file's table: the size that the network sees, and the normalisation.
        budget: kind, what was `asked`, what that allows, the whole network's cost, and the
            smallest limit that could be met.
        layers: the trunk's layers in order, each with name, shape, params and macs.
        steps, seconds: of the run; `seconds` of a step and about of the whole.
        memory: the most bytes that this process held, and of a GPU's memory; `disk` of the folder.
    """

    domains: dict[str, dict[str, Any]]
    input: dict[str, Any]
    budget: dict[str, Any]
    layers: list[dict[str, Any]]
    device: str
    epochs: int
    steps: int
    seconds: dict[str, float]
    memory: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dict(vars(self))


def check_run(
    config: RunConfig,
    *,
    model: nn.Module | None = None,
    check: ExportCheck | None = None,
    datasets: HandedSets | None = None,
) -> RunCheck:
    """Open and try what `train_run` would, time a few steps, and forget them.

    Arguments as of `train_run`, which raises the same before its first step.
    """
    device = device_named(config.device, config.train)
    with joined_processes(len(config.domains), config.train, device) as processes:
        training, domains = begin(
            config,
            Path("run"),
            device,
            processes,
            model=model,
            check=check,
            datasets=datasets,
        )
        step = _seconds_a_step(training)
    found = found_in(domains)
    for index, domain in enumerate(domains):
        found[domain.name] |= {"sizes": _sizes(domain), "batch": training.batches.own_sizes[index]}
    units, train = training.net.units.table, config.train
    steps = training.schedule.total + train.own_epochs * training.batches.steps_per_epoch
    fitted = sum(images_to_fit(training.net, training.batches)) if train.fits_heads else 0
    unlearned = _answered(training, domains) + fitted  # images that no gradient passes
    passes = unlearned * ANSWER * step / _images_a_step(training)
    state, net = snapshot_bytes(training)
    return RunCheck(
        domains=found,
        input=config.to_json()["input"],
        budget=_budget(training),
        layers=[
            {
                "name": layer.weight.removesuffix(".weight"),
                "shape": list(layer.shape),
                "params": math.prod(layer.shape),
                "macs": layer.positions * math.prod(layer.shape),
            }
            for layer in units.layers
        ],
        device=device,
        epochs=train.epochs + train.own_epochs,
        steps=steps,
        seconds={"step": step, "run": steps * step + passes},
        memory={
            "process": peak_rss_bytes(),
            "gpu": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
            "disk": 2 * state + net,
        },
    )


def check_table(found: RunCheck) -> str:
    """What `prunion check` prints, lines of text."""
    budget, seconds, memory = found.budget, found.seconds, found.memory
    kind, shape = budget["kind"], found.input
    height, width = shape["size"]
    mean, std = (", ".join(f"{x:g}" for x in shape[key]) for key in ("mean", "std"))
    gpu = f", {_megabytes(memory['gpu'])} of the GPU's" if memory["gpu"] else ""
    return "\n".join(
        [
            *_domain_lines(found.domains),
            f"input {width}×{height}, shorter side {shape['resize'] or max(height, width)}; "
            f"normalised by mean {mean} and std {std}",
            f"budget {kind} {asked_text(budget['asked'])}: {shown_cost(kind, budget['allowed'])} "
            f"of {shown_cost(kind, budget['full'])}; the smallest that can be met is "
            f"{budget['least']}",
            *_layer_lines(found.layers),
            f"{found.epochs} epochs, {found.steps:,} steps of {seconds['step']:.3g} s on "
            f"{found.device}: about {_duration(seconds['run'])} with the testing",
            f"memory {_megabytes(memory['process'])}{gpu}; "
            f"disk {_megabytes(memory['disk'])} for the run folder",
        ]
    )


def _domain_lines(domains: Mapping[str, Mapping[str, Any]]) -> list[str]:
    width = max(20, *(len(name) for name in domains))
    parts = list(dict.fromkeys(part for found in domains.values() for part in found["images"]))
    lines = [
        f"{'domain':<{width}} {'classes':>8}"
        + "".join(f" {part:>10}" for part in parts)
        + "  sizes of some (width×height)"
    ]
    for name, found in domains.items():
        sizes = " … ".join(dict.fromkeys(f"{w}×{h}" for w, h in found["sizes"]))
        counts = (f"{found['images'][x]:>10,}" if x in found["images"] else "" for x in parts)
        each = "".join(f" {count:>10}" for count in counts)
        lines.append(f"{name:<{width}} {found['classes']:>8,}{each}  {sizes}")
        for key in ("skipped", "changed"):
            kinds: Counter[str] = Counter()
            for counted in found[key].values():
                kinds.update(counted)
            if told := kinds_line(kinds, MOST_KINDS):
                lines.append(f"  {key}: {told}")
        lines += [f"  {remark}" for remark in found["remarks"]]
    return lines


def _layer_lines(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """The layers with the most parameters, in the network's order, and all together."""
    params, macs = (sum(layer[key] for layer in layers) for key in ("params", "macs"))
    largest = sorted(layers, key=lambda layer: -layer["params"])[:MOST_LAYERS]
    rest = [layer for layer in layers if layer not in largest]
    rows = [(x["name"], x["params"], x["macs"]) for x in layers if x in largest]
    if rest:
        sums = (sum(layer[key] for layer in rest) for key in ("params", "macs"))
        rows.append((f"{len(rest)} smaller layers", *sums))
    rows.append((f"all {len(layers)} layers", params, macs))
    width = max(20, *(len(name) for name, _, _ in rows))
    lines = [f"{'layer':<{width}} {'parameters':>14} {'':>6} {'MACs':>18} {'':>6}"]
    for name, p, m in rows:
        lines.append(f"{name:<{width}} {p:>14,} {p / params:>6.1%} {m:>18,} {m / macs:>6.1%}")
    return [line.rstrip() for line in lines]


def _seconds_a_step(training: Training) -> float:
    """The middle of a few steps' times; the first, which warms caches up, is left out."""
    seconds: list[float] = []
    stop, last = StopRequest(), time.perf_counter()

    def report(figures: dict[str, float]) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds.append(now - last)
        last = now
        if len(seconds) > STEPS or (len(seconds) > 1 and sum(seconds) > MOST_SECONDS):
            stop.signal = signal.SIGTERM

    training.run_epoch(report, stop)
    return float(np.median(seconds[1:] or seconds))


def _answered(training: Training, domains: Sequence[Domain]) -> int:
    """Images that the run answers: some after each epoch, more after warm-up and in the end."""
    train, warm = training.config.train, bool(training.schedule.common_warmup)
    tests = 2 if train.own_epochs else 1  # before thinning and after it
    return sum(
        train.epochs * watched_images(d) + warm * len(d.watched) + tests * len(d.test)
        for d in domains
    )


def _images_a_step(training: Training) -> float:
    sizes = training.batches.own_sizes
    return sum(sizes) if training.config.train.order == "joint" else sum(sizes) / len(sizes)


def _budget(training: Training) -> dict[str, Any]:
    config, budget = training.config.budget, training.budget
    least = least_of_run(training.config, training.net, budget)
    return {
        "kind": config.kind,
        "asked": config.limit,
        "round_to": config.round_to,
        "allowed": budget.allowed,
        "full": budget.full,
        "least": least_limit(config, least, budget.pricer.backbone),
    }


def _sizes(domain: Domain) -> list[list[int]]:
    """The smallest, middle and largest of some training images, `[width, height]`."""
    some = np.linspace(0, len(domain.train) - 1, min(SIZED, len(domain.train))).round()
    sizes = [domain.train.image(int(index)).size for index in some]
    sizes.sort(key=lambda size: (size[0] * size[1], size))
    return [list(sizes[place]) for place in (0, len(sizes) // 2, -1)]


def _megabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
