"""The runtime beside a hand-folded graph: `python -m prunion.benchmarks.cost.runtime_latency`.

Every ratio comes from one interleaved run. Weights are random, shapes are real.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np

from prunion.benchmarks.cost.folded import fold_by_hand
from prunion.benchmarks.random_bundle import random_bundle
from prunion.runtime.backends import SessionOptions, make_ort_session, run
from prunion.runtime.base import Timing, default_round_to, machine_facts, time_interleaved
from prunion.runtime.bundle import Pack
from prunion.runtime.cli import FiniteRange, OneLineCommand, seconds_option
from prunion.runtime.graph import pin_pack
from prunion.runtime.model import Model, Plan, load, open_blocked

__all__ = ["main", "measure", "ratios"]

DOMAINS = 4
MANY = 100
Cases = dict[str, Callable[[], object]]


def measure(bundle: Path, batches: list[int], threads: int, seconds: float) -> dict[str, Timing]:
    """Milliseconds of every case `NAME@BATCH`, all of them interleaved."""
    few, many = (load(bundle, "cpu", threads=threads, tune=True) for _ in range(2))
    crowd(many, MANY)
    cases: Cases = {}
    for batch in batches:
        cases |= {f"{k}@{batch}": call for k, call in _single_cases(few, many, batch).items()}
    cases |= {f"{k}@8": call for k, call in _mixed_cases(few, many).items()}
    return time_interleaved(cases, seconds=seconds)


def ratios(timings: dict[str, Timing]) -> dict[str, float]:
    """The figures that matter, each a quotient of least times: other load only adds to a time."""
    best = {name: timing.min_ms for name, timing in timings.items()}
    found = {}
    for batch in sorted({int(name.split("@")[1]) for name in best}):
        for name, against in (
            ("pinned to the union", "folded union"),
            ("sliced to the domain", "folded domain"),
            ("sliced to the domain", "folded union"),
            ("runtime, one domain", "folded domain"),
            ("runtime, one of 100 domains", "runtime, one domain"),
            ("mixed session as exported", "folded union"),
            ("mixed session in blocks", "folded union"),
            ("runtime, 4 domains in the batch", "folded union"),
            ("runtime, 4 of 100 domains in the batch", "runtime, 4 domains in the batch"),
        ):
            if f"{name}@{batch}" in best:
                key = f"{name} / {against}, batch {batch}"
                found[key] = best[f"{name}@{batch}"] / best[f"{against}@{batch}"]
    return found


def crowd(model: Model, count: int) -> None:
    """Add copies of the first domain's pack, with numbers of their own, up to `count` domains."""
    random, pack = np.random.default_rng(0), model.bundle.pack(model.domains[0])
    for number in range(len(model.domains), count):
        bank = pack.bank * random.uniform(0.9, 1.1, len(pack.bank)).astype(np.float32)
        model.add_domain(dataclasses.replace(pack, name=f"more{number}", bank=bank))


def _single_cases(few: Model, many: Model, batch: int) -> Cases:
    image, pack = _noise(few, batch), few.bundle.pack(few.domains[0])
    union, own = _graphs(few, pack)
    options = SessionOptions("cpu", few.sessions.options.threads)
    graphs = {
        "folded union": fold_by_hand(union),
        "pinned to the union": union,
        "folded domain": fold_by_hand(own),
        "sliced to the domain": own,
    }
    sessions = {name: make_ort_session(graph, options) for name, graph in graphs.items()}
    outputs = {name: run(session, {"image": image}) for name, session in sessions.items()}
    for name, output in outputs.items():
        error = np.abs(output - outputs["folded union"]).max() / np.abs(output).max()
        assert error < 1e-4, f"{name} differs by {error:.1e}"
    cases: Cases = {
        name: partial(run, session, {"image": image}) for name, session in sessions.items()
    }
    rows = np.zeros(batch, np.int64)
    cases["runtime, one domain"] = partial(few.logits, image, rows)
    cases["runtime, one of 100 domains"] = partial(many.logits, image, rows)
    return cases


def _mixed_cases(few: Model, many: Model) -> Cases:
    image, rows = _noise(few, 8), np.arange(8) % DOMAINS
    feeds = {"image": image, "domain": rows}
    packs = [domain.pack for domain in few.snapshot.domains]
    cases: Cases = {"mixed session as exported": partial(run, few.sessions.make_mixed(), feeds)}
    blocked = open_blocked(few.sessions, packs)
    if not isinstance(blocked, str):
        cases["mixed session in blocks"] = partial(run, blocked, feeds | few.snapshot.feeds)
    return cases | {
        "runtime, 4 domains in the batch": partial(few.logits, image, rows),
        "runtime, 4 of 100 domains in the batch": partial(many.logits, image, rows),
    }


def split_in_two(plan: Plan) -> float:
    """The most that it could save, by the plan's times, to answer a batch's largest groups alone
    and the rest mixed: its time over that of the faster of all mixed and all split, the least over
    all ways to make up a batch of 8 of at most 4 domains."""
    best = 1.0
    for counts in _made_up(8, DOMAINS):
        alone = [plan.alone(count) for count in counts]
        known = min(sum(alone), plan.together(8))
        for few in range(1, len(counts) - 1):
            both = sum(alone[:few]) + plan.together(sum(counts[few:]))
            best = min(best, both / known)
    return best


def _made_up(count: int, most: int, largest: int | None = None) -> Iterator[list[int]]:
    """`count` as sums of at most `most` whole numbers, the largest first."""
    if count == 0:
        yield []
    elif most:
        for first in range(min(count, largest or count), 0, -1):
            for rest in _made_up(count - first, most - 1, first):
                yield [first, *rest]


def _graphs(model: Model, pack: Pack) -> tuple[bytes, bytes]:
    table, graph = model.bundle.unit_table(), model.sessions.graph.read()
    alive = table.round_up(pack.switches, default_round_to())
    return pin_pack(graph, pack), pin_pack(graph, pack, table, alive)


def _noise(model: Model, batch: int) -> np.ndarray:
    shape = (batch, 3, *model.sessions.size)
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _pack_bytes(model: Model) -> dict[str, int]:
    pack = model.bundle.pack(model.domains[0])
    row = pack.bank.nbytes + pack.head_weight.nbytes + pack.head_bias.nbytes
    place = model.bundle.file(model.bundle.domain(pack.name).pack)
    return {"pack file": place.stat().st_size, "bank row + head": row}


@click.command(cls=OneLineCommand)
@click.option("--backbone", default="resnet18,mobilenet_v2", show_default=True)
@click.option("--size", default="96,224", show_default=True, help="Image sides in pixels.")
@click.option("--batch", default="1,8", show_default=True)
@click.option("--threads", default=1, show_default=True)
@seconds_option(1.0, "For each case.")
@click.option(
    "--density",
    type=FiniteRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of widths in the union.",
)
@click.option(
    "--own",
    type=FiniteRange(0, 1),
    default=0.75,
    show_default=True,
    help="Share of the union a domain uses.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    backbone: str,
    size: str,
    batch: str,
    threads: int,
    seconds: float,
    density: float,
    own: float,
    as_json: bool,
) -> None:
    """Measure every backbone at every size and print times and ratios."""
    batches = sorted({8, *map(int, batch.split(","))})
    report: dict[str, object] = {"machine": machine_facts(threads)}
    for name in backbone.split(","):
        for side in map(int, size.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                # A plan that is remembered was measured under another load.
                os.environ["PRUNION_CACHE"] = f"{folder}/cache"
                bundle = random_bundle(
                    Path(folder) / f"{name}.prunion", name, DOMAINS, density, size=side, own=own
                )
                timings = measure(bundle, batches, threads, seconds)
                model = load(bundle, "cpu", threads=threads)
                plan = model.tune()
                report[f"{name} at {side} px"] = entry = {
                    "ms, least and median": {
                        k: [round(t.min_ms, 3), round(t.p50_ms, 3)] for k, t in timings.items()
                    },
                    "ratios": {k: round(v, 3) for k, v in ratios(timings).items()},
                    "bytes": _pack_bytes(model),
                    "plan": {**plan.to_json(), "splits": plan.splits([2] * DOMAINS)},
                    "split in two over the better of both": round(split_in_two(plan), 3),
                }
            if not as_json:
                click.echo(f"{name} at {side} px\n{json.dumps(entry, indent=1)}")
    click.echo(json.dumps(report if as_json else report["machine"], indent=1))


if __name__ == "__main__":
    main()
