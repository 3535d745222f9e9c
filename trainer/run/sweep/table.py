"""What a sweep ends with: one table, and the picture of accuracy against cost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import asked_text
from prunion.runtime.errors import MissingDependencyError
from prunion.trainer.config import RunConfig
from prunion.trainer.run.result import COSTS, COUNTED, Frontier, Point, params_share, save_picture

__all__ = ["SweepResult", "draw_frontier", "sweep_result", "sweep_table"]

log = logging.getLogger(__name__)

PICTURE = "frontier"  # .png and .svg


@dataclass(frozen=True, repr=False)
class SweepResult:
    """What the runs of a sweep end with.

    Attributes:
        runs: each run's result as plain JSON values, with its `seed` and `folder`.
        budgets: for each budget `asked`, its `seeds`, mean shares of `params` (`params_share`: None
            where one is not known) and of the union's `macs`, and mean and spread (the sample
            standard deviation, None of one seed) of each domain's `accuracy`, and of the domains'
            `mean`.
        pictures: files of the frontier; none without matplotlib.
    """

    folder: Path
    runs: list[dict[str, Any]]
    budgets: list[dict[str, Any]]
    pictures: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        pictures = [str(path) for path in self.pictures]
        return {**vars(self), "folder": str(self.folder), "pictures": pictures}

    def __repr__(self) -> str:
        asked = ", ".join(asked_text(row["asked"]) for row in self.budgets)
        return f"SweepResult({self.folder}: {len(self.runs)} runs, budgets {asked})"

    def __str__(self) -> str:
        return sweep_table(self)

    def frontier(self) -> Frontier:
        """Accuracy against cost, a point for each budget: means over the seeds."""
        return Frontier(
            tuple(
                Point(
                    asked_text(row["asked"]),
                    row["params"],
                    row["macs"],
                    {name: value["mean"] for name, value in row["accuracy"].items()},
                    row["mean"]["spread"],
                )
                for row in self.budgets
                if row["params"] is not None
            ),
            own_weights=any(run.get("stored") for run in self.runs),
        )


def sweep_result(
    folder: Path, configs: Sequence[RunConfig], runs: Sequence[dict[str, Any]]
) -> SweepResult:
    """Account for finished runs: their configurations and results, in the same order."""
    return SweepResult(folder, list(runs), _by_budget(configs, runs))


def draw_frontier(result: SweepResult) -> tuple[Path, ...]:
    """Draw the frontier into the sweep's folder, PNG and SVG; without matplotlib say so."""
    if not result.frontier().points:
        log.warning("no picture: runs of an earlier prunion did not count domains' own weights")
        return ()
    kind = str(result.runs[0]["budget"]["kind"])
    cost = kind if kind in COSTS else COSTS[0]
    try:
        return save_picture(result.frontier(), result.folder / PICTURE, cost=cost)
    except MissingDependencyError as exc:
        log.warning("no picture: %s", exc)
        return ()


def sweep_table(result: SweepResult) -> str:
    """What a sweep prints at its end, lines of text: accuracy by budget, mean ± spread."""
    names = list(result.runs[0]["accuracy"])
    columns = [*names, *(["mean"] if len(names) > 1 else [])]
    width = max(15, *(len(name) + 2 for name in columns))
    head = f"{'budget':<12} {'seeds':>5} {'params':>7}"
    lines = [head + "".join(f"{name:>{width}}" for name in columns)]
    for row in result.budgets:
        figures = [*(row["accuracy"][name] for name in names), row["mean"]][: len(columns)]
        asked = asked_text(row["asked"])
        params = "-" if row["params"] is None else f"{row['params']:.1%}"
        lines.append(
            f"{asked:<12} {len(row['seeds']):>5} {params:>7}"
            + "".join(f"{_figure(x):>{width}}" for x in figures)
        )
    if any(len(row["seeds"]) > 1 for row in result.budgets):
        lines.append("mean ± sample standard deviation over the seeds, in percent")
    if any(run.get("stored") for run in result.runs):
        lines.append(f"params: {COUNTED}")
    missed = [run["folder"] for run in result.runs if not run["budget"]["met"]]
    lines += [f"budget NOT met: {', '.join(missed)}"] if missed else []
    branched = [run["branched_from"] for run in result.runs if run.get("branched_from")]
    if branched:
        leaders = ", ".join(dict.fromkeys(found["run"] for found in branched))
        many = "1 run" if len(branched) == 1 else f"{len(branched)} runs"
        lines.append(f"{many} left the ramp of {leaders} on its way down")
    lines += [f"picture: {', '.join(map(str, result.pictures))}"] if result.pictures else []
    seconds = sum(run["seconds"] for run in result.runs)
    return "\n".join([*lines, f"{seconds:.0f} s; {len(result.runs)} runs in {result.folder}"])


def _figure(value: dict[str, Any]) -> str:
    spread = "" if value["spread"] is None else f" ± {100 * value['spread']:.2f}"
    return f"{100 * value['mean']:.2f}{spread}"


def _by_budget(
    configs: Sequence[RunConfig], runs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    budgets = []
    for asked in dict.fromkeys(config.budget.limit for config in configs):
        pairs = zip(configs, runs, strict=True)
        own = [run for config, run in pairs if config.budget.limit == asked]
        names = list(own[0]["accuracy"])
        table = np.array([[run["accuracy"][name] for name in names] for run in own])
        each = {name: _spread(table[:, index]) for index, name in enumerate(names)}
        macs = float(np.mean([run["macs"][1] / run["macs"][0] for run in own]))
        each_share = [params_share(configs[0].train, run) for run in own]
        known = [share for share in each_share if share is not None]
        params = float(np.mean(known)) if len(known) == len(own) else None
        budgets.append(
            {
                "asked": asked,
                "seeds": [run["seed"] for run in own],
                "params": params,
                "macs": macs,
                "accuracy": each,
                "mean": _spread(table.mean(1)),
            }
        )
    return budgets


def _spread(values: np.ndarray) -> dict[str, float | None]:
    spread = float(values.std(ddof=1)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "spread": spread}
