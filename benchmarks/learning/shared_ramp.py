"""Several budgets that share a ramp, beside a run of its own for each: time and accuracy.

    python -m prunion.benchmarks.learning.shared_ramp --data DATA --weights WEIGHTS -o shared.jsonl

For every seed each budget is trained alone, then all as `prunion train --budget A,B,…` does. A line
of the output is one run; what is there already is skipped, and what was interrupted goes on from
its last epoch, but then its time says nothing and the table leaves it out. Lines that were made
with other options are refused: begin a new file for these. Images and epochs are
the learning table's, and so is the comparison (`paired.py`): by images, within seeds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from prunion.benchmarks.cost import check_asked
from prunion.benchmarks.learning.paired import compare, read_rows, seed_of
from prunion.benchmarks.learning.plan.catalogue import ROWS
from prunion.benchmarks.learning.plan.row_config import DOMAINS, make_config
from prunion.benchmarks.learning.rows import right_answers
from prunion.runtime.base import read_json
from prunion.runtime.cli import FilePath, FiniteRange, OneLineCommand
from prunion.trainer.config import CHECKPOINT, CHECKPOINT_FILE, RunConfig
from prunion.trainer.run import train_run, train_sweep

__all__ = ["main", "shared_table"]

ROW = "tuned-050"  # whose keys of [train] these runs have
GOAL = 0.6  # of the time of separate runs
ASKED = ("backbone", "domains", "epochs", "settings")  # of which a line's key says nothing
Line = dict[str, Any]


@click.command(cls=OneLineCommand)
@click.option("--data", required=True, type=FilePath(exists=True), help="Folder of domains.")
@click.option("--weights", required=True, type=FilePath(exists=True), help="Folder of trunks.")
@click.option("--domains", default=DOMAINS, show_default=True, help="Folders, or all: eight.")
@click.option("--backbone", default="resnet18", show_default=True, help="resnet18 | lite0")
@click.option("--epochs", default="2,4,6", show_default=True, help="Warm-up, ramp, settle.")
@click.option("--budgets", default="0.75,0.5,0.25", show_default=True, help="Of the parameters.")
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1, 2], show_default=True)
@click.option(
    "--shorter", type=FiniteRange(0, 1), default=0.0, show_default=True, help="As of `train_sweep`."
)
@click.option("--threads", default=1, show_default=True)
@click.option("--set", "settings", multiple=True, help="A [train] key: --set switch_travel=1.5")
@click.option("--folder", default="runs/shared", show_default=True, help="Where runs are kept.")
@click.option("-o", "--output", required=True, type=FilePath(), help="JSONL, one run a line.")
def main(
    output: str, seeds: tuple[int, ...], budgets: str, shorter: float, folder: str, **options: Any
) -> None:
    """Train what is missing, then print the table."""
    path = Path(output)
    lines = read_rows(path) if path.exists() else []
    asked = json.loads(json.dumps({name: options[name] for name in ASKED}))
    check_asked(lines, asked, path, other="another file and --folder")
    limits = list(dict.fromkeys(float(limit) for limit in budgets.split(",")))
    options |= {
        "keep": (),
        "teacher": "",
        "round_to": 1,
        "profile": "",
        "holdout": False,
        "share": 0.1,
    }
    for seed in seeds:
        row = make_config(ROWS[ROW], {**options, "seed": seed})
        configs = [replace(row, budget=replace(row.budget, limit=limit)) for limit in limits]
        made = Path(folder) / _kind(shorter)
        done = {line["key"] for line in lines}
        for config in configs:
            key = _key("separate", config)
            if key not in done:
                lines.append({**_separate(key, config, Path(folder) / key), "asked": asked})
                _append(path, lines[-1:])
        keys = [_key(_kind(shorter), config) for config in configs]
        if not done.issuperset(keys):
            new = _shared(keys, configs, made / f"seed-{seed}", shorter)
            # With a budget more a sweep tells of all of the seed's again: lines that are there stay
            # the only ones of their key, and the time of so mixed a sweep says nothing.
            mixed = not done.isdisjoint(keys)
            new = [
                {**line, "asked": asked, "resumed": line["resumed"] or mixed}
                for line in new
                if line["key"] not in done
            ]
            lines += new
            _append(path, new)
    click.echo(shared_table(lines, shorter, limits))


def shared_table(lines: Sequence[Line], shorter: float, limits: Sequence[float]) -> str:
    """Accuracy by budget both ways, and the time of the shared runs as a share of the others'."""
    out = [
        "| budget | seeds | separate | shared | points | 95 % interval | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for limit in limits:
        alone, shared = _of(lines, "separate", limit), _of(lines, _kind(shorter), limit)
        found = compare(shared, alone)
        if found is None:
            continue
        both = {seed_of(x) for x in alone} & {seed_of(x) for x in shared}
        means = [
            statistics.mean(x["mean"] for x in group if seed_of(x) in both)
            for group in (alone, shared)
        ]
        cells = [f"{limit:g}", str(found.seeds), *(f"{100 * mean:.2f}" for mean in means)]
        cells += [f"{100 * found.mean:+.2f}", found.interval, found.verdict]
        out.append(f"| {' | '.join(cells)} |")
    asked = {_plain(limit) for limit in limits}
    timed: dict[str, dict[str, list[Line]]] = {}
    for line in lines:
        kind, _, seed = line["key"].split(".")[:3]
        timed.setdefault(seed, {}).setdefault(kind, []).append(line)
    ratios = []
    for kinds in timed.values():
        # A part of a sweep's time is not that of a sweep of the part: it has to be all of it.
        shared, alone = kinds.get(_kind(shorter), []), kinds.get("separate", [])
        alone = [x for x in alone if _budget(x) in asked]
        whole = {*map(_budget, shared)} == {*map(_budget, alone)} == asked
        if whole and _timed_alike(shared + alone):
            ratios.append([sum(x[k] for x in shared) / sum(x[k] for x in alone) for k in TIMES])
    if ratios:
        wall, cpu = (sum(column) / len(column) for column in zip(*ratios, strict=True))
        out += ["", f"time {wall:.2f} of the separate runs', CPU time {cpu:.2f} (goal {GOAL:g})"]
    return "\n".join(out)


def _budget(line: Line) -> str:
    return str(line["key"].split(".")[1])


TIMES = ("seconds", "cpu_seconds")


def _timed_alike(lines: Sequence[Line]) -> bool:
    """Whether no run was interrupted, and all had the same processor."""
    devices = {line.get("device", "cpu") for line in lines}
    return len(devices) == 1 and not any(line["resumed"] for line in lines)


def _separate(key: str, config: RunConfig, folder: Path) -> Line:
    begun, clock, cpu = folder.exists(), time.perf_counter(), time.process_time()
    result = train_run(config, folder, resume=begun)
    seconds = (time.perf_counter() - clock, time.process_time() - cpu)
    return _line(key, config, folder, result.to_json(), seconds, resumed=begun)


def _shared(
    keys: Sequence[str], configs: Sequence[RunConfig], folder: Path, shorter: float
) -> list[Line]:
    """The lines of a seed's runs; each has an equal part of the time, whose sum alone counts."""
    begun, clock, cpu = folder.exists(), time.perf_counter(), time.process_time()
    result = train_sweep(configs, folder, resume=begun, shorter=shorter)
    whole = (time.perf_counter() - clock, time.process_time() - cpu)
    seconds = (whole[0] / len(keys), whole[1] / len(keys))
    return [
        _line(key, config, Path(run["folder"]), run, seconds, resumed=begun)
        for key, config, run in zip(keys, configs, result.runs, strict=True)
    ]


def _line(
    key: str,
    config: RunConfig,
    folder: Path,
    result: Line,
    seconds: tuple[float, float],
    *,
    resumed: bool,
) -> Line:
    accuracy = result["accuracy"]
    return {
        "key": key,
        "mean": sum(accuracy.values()) / len(accuracy),
        "accuracy": accuracy,
        "params": result["params"][1] / result["params"][0],
        "branched_from": result["branched_from"],
        "torch": read_json(folder / CHECKPOINT / CHECKPOINT_FILE)["versions"]["torch"],
        **dict(zip(TIMES, (round(value, 1) for value in seconds), strict=True)),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "resumed": resumed,
        **right_answers(config, folder),
    }


def _kind(shorter: float) -> str:
    return f"shared-{100 * shorter:.10g}".replace(".", "_")  # a dot parts a key


def _key(kind: str, config: RunConfig) -> str:
    """`separate.075.seed0`, as `paired.py` reads the seed of a line."""
    return f"{kind}.{_plain(float(config.budget.limit))}.seed{config.seed}"


def _of(lines: Sequence[Line], kind: str, limit: float) -> list[Line]:
    name = f"{kind}.{_plain(limit)}."
    return [line for line in lines if line["key"].startswith(name)]


def _plain(limit: float) -> str:
    return f"{limit:.10g}".replace(".", "")


def _append(path: Path, lines: Sequence[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        for line in lines:
            stream.write(json.dumps(line) + "\n")
            click.echo(json.dumps({k: v for k, v in line.items() if k != "right"}))


if __name__ == "__main__":
    main()
