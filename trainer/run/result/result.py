"""What a run ends with, as an object, as JSON and as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import amount_text, asked_text
from prunion.runtime.bundle import cost_text, mean_share
from prunion.trainer.cost import budget_account, floor_account, used_cost
from prunion.trainer.learning import Training
from prunion.trainer.run.result.closing import (
    accuracy_lines,
    branch_lines,
    floor_lines,
    own_lines,
    score_lines,
    stored_lines,
)
from prunion.trainer.run.result.pictures import Frontier, Point, Sharing
from prunion.trainer.run.result.usage import (
    layer_sparsity,
    named_matrix,
    shared_by_all,
    sharing_lines,
    sparsity_lines,
)
from prunion.trainer.score import Score, Verdict, run_score

__all__ = ["RunResult", "closing_table", "run_result"]


@dataclass(frozen=True, repr=False)
class RunResult:
    """What a run ends with.

    Attributes:
        accuracy: per domain on the test images, pruned.
        accuracy_before: the same after warm-up, with every channel on; empty without warm-up, and
            where domains learn in turns. Of a domain with validation images on those.
        budget: kind, what was asked, what the union costs in the same unit, and whether it is met.
        uncut: share of the backbone's cost that learning left, before the last cut; as in `budget`,
            of slices those in use.
        params: parameters of the backbone's trunk and of the union's.
        stored: of domains with weights of their own, as multiples of the backbone's and as the
            papers count: `params`, `params_whole` with every channel, `flop` of a domain and
            `flop_union` (`stored_account`). None without, and of an earlier prunion's run.
        macs: multiply-accumulates of the backbone and of the union.
        sparsity: share of unused filters by layer.
        shared: share of the kept channels that every domain chose for itself, at last where they
            were thinned; with single slices of those that any domain uses.
        sharing_matrix: of the channels, or slices, that one domain chose, the share that another
            chose.
        returned: how often a switch that was off came back on.
        score: S, S_O, S_P and S_E of eqs. 10 to 13, if every domain has a `reference`; operations
            are those of each domain's own channels, averaged, and the union's beside.
        data: per domain what its images are: how many, of how many classes, and what was skipped.
        epochs: of warm-up, and of the whole run, thinning after settling included.
        steps: of an epoch, and of the whole run.
        baseline: accuracy of the same network with every channel, trained as long; None where
            nobody trained it.
        verdict: what pruning cost, how sure that is, and what to try next; None until the run is
            saved.
        own: with a budget for each domain within the union: the share that was `asked`, whether it
            is `met`, and by domain `macs`, as a share of the union's that is exported. Where they
            were thinned after settling also `macs_of_settled`, of the union that they settled with,
            and `accuracy_with_union`, what each answered with all of it, of those whose test images
            are still the same. None without.
        floor: with a share of every width that stays: what was `asked`, whether it is `met`, and
            the `least` share of a width that the file keeps, that of `layer`. None without.
        branched_from: the run of a sweep that has its first steps too: `run`, `limit`, the `steps`
            in common, and how many steps were then `skipped`. None of a run of its own.
        model_sha256: of the network that `folder` was given, which another run may replace there;
            "" until the run is saved.
    """

    folder: Path
    accuracy: dict[str, float]
    accuracy_before: dict[str, float]
    budget: dict[str, Any]
    uncut: float
    params: tuple[int, int]
    macs: tuple[int, int]
    sparsity: dict[str, float]
    shared: float
    sharing_matrix: dict[str, dict[str, float]]
    returned: int
    seconds: float
    score: Score | None
    data: dict[str, dict[str, Any]]
    epochs: tuple[int, int] = (0, 0)
    steps: tuple[int, int] = (0, 0)
    baseline: dict[str, float] | None = None
    verdict: Verdict | None = None
    own: dict[str, Any] | None = None
    floor: dict[str, Any] | None = None
    stored: dict[str, float] | None = None
    branched_from: dict[str, Any] | None = None
    model_sha256: str = ""

    @property
    def scores(self) -> dict[str, float]:
        """What there is of S, S_O, S_P, S_E, S_O_union and S_E_union, by name."""
        values = self.score.to_json() if self.score else {}
        return {k: v for k, v in values.items() if k != "terms" and v is not None}

    @property
    def validated(self) -> bool:
        """Whether any domain has validation images, on which the run was watched."""
        return any("validation" in found.get("images", {}) for found in self.data.values())

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        score = self.score and self.score.to_json()
        value = {"sharing" if k == "shared" else k: v for k, v in vars(self).items()}
        del value["model_sha256"]  # the record has it beside the result
        verdict = self.verdict and self.verdict.to_json()
        return {**value, "folder": str(self.folder), "score": score, "verdict": verdict}

    def __repr__(self) -> str:
        each = ", ".join(f"{name} {value:.1%}" for name, value in self.accuracy.items())
        kind, cost = self.budget["kind"], amount_text(self.budget["value"])
        met = "met" if self.budget["met"] else "NOT met"
        return f"RunResult({self.folder}: {each}; {kind} {cost} of {self.budget['asked']}, {met})"

    def __str__(self) -> str:
        return closing_table(self)

    def sharing(self) -> Sharing:
        """Who uses whose channels, to look at and to plot."""
        names = tuple(self.sharing_matrix)
        matrix = tuple(tuple(self.sharing_matrix[a][b] for b in names) for a in names)
        return Sharing(
            names, matrix, self.shared, "slices" if self.budget.get("slices") else "channels"
        )

    def frontier(self) -> Frontier:
        """Accuracy against cost: with every channel, where that was measured, and pruned.

        With every channel trained as long where there is a `baseline`; else after warm-up.
        """
        label, whole = "every channel", self.baseline
        if whole is None:
            whole = self.accuracy_before
            label = "every channel, validation" if self.validated else "every channel"
        params, every, macs = self.params[1] / self.params[0], 1.0, self.macs[1] / self.macs[0]
        if self.stored:
            params, every = self.stored["params"], self.stored["params_whole"]
        pruned = Point(str(self.budget["asked"]), params, macs, dict(self.accuracy))
        points = [Point(label, every, 1.0, dict(whole))] if whole else []
        return Frontier((*points, pruned), own_weights=self.stored is not None)


def closing_table(result: RunResult) -> str:
    """What a run prints at its end, lines of text."""
    lines = accuracy_lines(
        result.accuracy,
        result.accuracy_before,
        result.baseline,
        result.epochs,
        validated=result.validated,
    )
    budget, (p0, p1), (m0, m1) = result.budget, result.params, result.macs
    met = "met" if budget["met"] else "NOT met"
    names = list(result.accuracy)
    kept, of = (
        ("slices in use", "slices") if budget.get("slices") else ("kept channels", "channels")
    )
    matrix = np.array([[result.sharing_matrix[a][b] for b in names] for a in names])
    lines += [
        *stored_lines(result.stored),
        f"{'the trunk alone: ' if result.stored else ''}parameters {p0:,} → {p1:,} "
        f"({p1 / p0:.1%}), MACs {m0:,} → {m1:,} ({m1 / m0:.1%})",
        f"budget {budget['kind']} {asked_text(budget['asked'])}: {cost_text(budget)} {met} "
        f"({result.uncut:.1%} before the last cut); "
        f"{result.shared:.0%} of the {kept} were chosen by every domain; "
        f"{result.returned} switches came back on while learning",
        *floor_lines(result.floor),
        *own_lines(result.own, result.accuracy),
        *branch_lines(result.branched_from),
        *sparsity_lines(result.sparsity),
        *sharing_lines(names, matrix, of),
        *score_lines(result.scores),
        *(f"verdict: {line}" for line in (result.verdict.lines if result.verdict else ())),
        f"{result.seconds:.0f} s; checkpoint in {result.folder / 'checkpoint'}",
    ]
    return "\n".join(lines)


def run_result(
    training: Training,
    accuracy: dict[str, float],
    before: dict[str, float],
    folder: Path,
    seconds: float,
    data: dict[str, dict[str, Any]],
    stored: dict[str, float] | None = None,
) -> RunResult:
    """Account for a finished run.

    Args:
        stored: what domains with weights of their own cost (`stored_account`).
        accuracy: share of right answers by domain, at the end and `before` the ramp.
    """
    table, budget = training.net.units.table, training.budget
    train, each = training.config.train, training.batches.steps_per_epoch
    floor = training.config.budget.floor
    # What export keeps; the cut has rounded already unless each domain was cut alone.
    alive = table.round_up(training.alive(), budget.round_to)
    everything = np.ones_like(alive)
    adapter, slices = training.net.adapter, train.granularity == "slice"
    value = used_cost(budget.pricer, alive, adapter)
    params, macs = ((f(everything), f(alive)) for f in (table.params, table.macs))
    own = [table.macs(row) for row in (training.net.switches > 0).cpu().numpy()]
    return RunResult(
        folder=folder,
        accuracy=accuracy,
        accuracy_before=before,
        budget=budget_account(training.config.budget, budget, value, slices=slices).to_json(),
        uncut=training.uncut,
        params=params,
        macs=macs,
        sparsity=layer_sparsity(table, alive),
        shared=shared_by_all(training, alive),
        sharing_matrix=named_matrix(training),
        returned=training.learner.returned,
        seconds=seconds,
        score=run_score(
            training.config.domains,
            accuracy,
            macs=stored["flop"] if stored else mean_share(own, macs[0]),
            union_macs=stored["flop_union"] if stored else macs[1] / macs[0],
            params=stored["params"] if stored else params[1] / params[0],
        ),
        stored=stored,
        data=data,
        floor=floor_account(table, floor, alive) if floor and train.traits.prunes else None,
        epochs=(train.warmup, train.epochs + train.own_epochs),
        steps=(each, training.schedule.total + train.own_epochs * each),
    )
