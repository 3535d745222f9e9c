"""The rows of the learning table: what is trained, and to which budget.

A name is the method's and the budget's: `one-shot-macs-025` is the method `one-shot` at a quarter
of the MACs, `one-shot-025` at a quarter of the parameters, `one-shot-latency-025` at a quarter of
the time that a profile foretells. Those that keep every channel have no budget in their name; nor
have `bap-slice` and `ba2-slice`, at half of the parameters. `paper-slice` is the paper's own
switches under its own recipe; with `none` it is BA².

Methods called `paper`, `intersection` and `jaccard` follow dos Santos et al., "Budget-Aware
Pruning: Handling Multiple Domains with Less Parameters", 2023, arXiv 2309.11464; `ba2` follows
Berriel et al., "Budget-Aware Adapters for Multi-Domain Learning", 2019, arXiv 1905.06242.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prunion.benchmarks.learning.plan.key import RowKey
from prunion.benchmarks.learning.plan.slim_first import SlimFirst
from prunion.trainer.config import RAMPED, STEEP, BudgetKind

__all__ = ["DECIDING", "LATENCY", "POINTS", "ROWS", "LearningRow", "profile_of", "settings_of"]

PARAMS = ("075", "050", "025", "010", "005")
MACS = ("macs-050", "macs-025", "macs-010")
POINTS = (*PARAMS, *MACS)
LATENCY = ("latency-050", "latency-025")  # of the device whose profile is given
KINDS: Mapping[str, BudgetKind] = {"macs": "macs", "latency": "latency"}


@dataclass(frozen=True)
class LearningRow:
    """One line of the table.

    Attributes:
        train: keys of `[train]`.
        slim_first: what ranks the channels before any domain is seen; None: the run itself does.
        separate: a network for each domain, each with the whole budget (`each`) or all of them with
            it together (`total`).
        floor, own: of `[budget]`: the share of every width that stays, and what a single domain may
            use of the union.
    """

    what: str
    limit: float = 0.5
    kind: BudgetKind = "params"
    train: Mapping[str, Any] = field(default_factory=dict)
    slim_first: SlimFirst | None = None
    separate: Literal["", "each", "total"] = ""
    floor: float = 0.0
    own: float = 1.0


FROZEN, TUNED = {"trunk": "frozen"}, {"trunk": "tuned"}
ONCE = {**TUNED, "recipe": "once", "ranking": "importance-per-cost"}
GREEDY = {**ONCE, "recipe": "greedy"}
PAPER = {**FROZEN, "recipe": "paper"}
BA2 = {**FROZEN, "sharing": "none", "cut": "domains"}

IMPORTANCES: tuple[Literal["magnitude", "taylor", "batchnorm"], ...] = (
    "magnitude",
    "taylor",
    "batchnorm",
)
SEPARATE: tuple[tuple[str, Literal["each", "total"], str], ...] = (
    ("separate", "total", "a network for each domain, the budget for all of them"),
    ("separate-each", "each", "a network for each domain, the budget for each of them"),
)
SCOPES: tuple[Literal["global", "uniform"], ...] = ("global", "uniform")

# Methods that keep every channel, and their keys of `[train]`: docs/methods.md has their papers.
UNCUT: dict[str, tuple[str, Mapping[str, Any]]] = {
    "feature": ("a head on the frozen backbone", {**FROZEN, "method": "feature"}),
    "norms": ("own BatchNorm alone", {**FROZEN, "method": "norms"}),
    "finetune": ("a network for each domain", {**TUNED, "method": "finetune"}),
    "piggyback": ("Piggyback", {**FROZEN, "method": "piggyback"}),
    "piggyback-norms": (
        "Piggyback, own BatchNorm",
        {**FROZEN, "method": "piggyback", "norms": "own"},
    ),
    "affine": ("affine masks, full", {**FROZEN, "method": "affine"}),
    "affine-simple": (
        "affine masks, simple",
        {**FROZEN, "method": "affine", "affine": "simple"},
    ),
    "affine-filter": (
        "affine masks, numbers of each filter",
        {**FROZEN, "method": "affine", "affine_numbers": "filter"},
    ),
    "affine-sigmoid": (
        "affine masks, a sigmoid's gradient",
        {**FROZEN, "method": "affine", "affine_gradient": "sigmoid"},
    ),
    "series": ("series residual adapters", {**FROZEN, "method": "series"}),
    "parallel": ("parallel residual adapters", {**FROZEN, "method": "parallel"}),
    "parallel-lora": (
        "parallel adapters of rank 4",
        {**FROZEN, "method": "parallel", "adapter_rank": 4},
    ),
    "svd": ("joint SVD of parallel adapters", {**FROZEN, "method": "svd"}),
    "packnet": ("PackNet", {**FROZEN, "method": "packnet"}),
    "packnet-reversed": (
        "PackNet, the last domain first",
        {**FROZEN, "method": "packnet", "packnet_order": "reversed"},
    ),
    "taps": ("TAPS", {**FROZEN, "method": "taps"}),
    "lora": ("low-rank convolution adapters", {**FROZEN, "method": "lora"}),
}
SLICES = {**FROZEN, "granularity": "slice"}
BA2_SLICES = {**SLICES, "method": "ba2"}
PAPER_SLICES = {**SLICES, "recipe": "paper"}
BETAS = ("100", "075", "050", "025")  # of its tables

# Method: in words, its keys of `[train]`, the budgets it is run at.
METHODS: dict[str, tuple[str, Mapping[str, Any], tuple[str, ...]]] = {
    "ba2": ("BA² (budget loss only)", BA2, POINTS),
    "ba2-tuned": ("BA², tuned", {**BA2, **TUNED}, POINTS),
    "paper": ("union, paper recipe", PAPER, ("050",)),
    "paper-epoch": ("the same, domains by epoch", {**PAPER, "order": "epoch"}, ("050",)),
    "frozen": ("union, frozen", FROZEN, (*POINTS, *LATENCY)),
    "tuned": ("union, tuned", TUNED, (*POINTS, *LATENCY)),
    "frozen-lora": ("union, frozen, adapters of rank 4", {**FROZEN, "adapter_rank": 4}, POINTS),
    "one-shot": ("cut once by importance per cost", ONCE, (*POINTS, *LATENCY)),
    "one-shot-undivided": ("cut once by importance", {**ONCE, "ranking": "importance"}, POINTS),
    "one-shot-fisher": (
        "cut once by expected loss per cost",
        {**ONCE, "ranking": "fisher-per-cost"},
        POINTS,
    ),
    "greedy": ("a ramp of cuts by importance per cost", GREEDY, POINTS),
    "greedy-undivided": (
        "a ramp of cuts by importance",
        {**GREEDY, "ranking": "importance"},
        POINTS,
    ),
    "greedy-fisher": (
        "a ramp of cuts by expected loss per cost",
        {**GREEDY, "ranking": "fisher-per-cost"},
        POINTS,
    ),
    "one-shot-random": ("cut once at random", {**ONCE, "ranking": "random"}, POINTS),
    "frozen-random": ("union, frozen, random ranking", {**FROZEN, "ranking": "random"}, PARAMS),
    "tuned-random": ("union, tuned, random ranking", {**TUNED, "ranking": "random"}, PARAMS),
    "intersection": ("intersection", {**TUNED, "sharing": "intersection"}, POINTS),
    "jaccard": ("jaccard", {**TUNED, "sharing": "jaccard"}, POINTS),
    "bap-slice": ("slice switches, union loss", SLICES, ("075", "025")),
    "ba2-slice": ("slice switches, BA²", BA2_SLICES, ("075", "025")),
    "paper-slice": ("slice switches, paper recipe", PAPER_SLICES, BETAS),
    "paper-slice-epoch": (
        "the same, domains by epoch",
        {**PAPER_SLICES, "order": "epoch"},
        BETAS,
    ),
    "paper-slice-intersection": (
        "slice switches, paper recipe, intersection",
        {**PAPER_SLICES, "sharing": "intersection"},
        ("050",),
    ),
    "paper-slice-jaccard": (
        "slice switches, paper recipe, jaccard",
        {**PAPER_SLICES, "sharing": "jaccard"},
        ("050",),
    ),
    "paper-slice-none": (
        "slice switches, paper recipe, BA²",
        {**PAPER_SLICES, "method": "ba2"},
        ("050",),
    ),
}


def _rows() -> dict[str, LearningRow]:
    rows = {
        "frozen-all": LearningRow("all switches on, frozen", 1.0, train=FROZEN),
        "tuned-all": LearningRow("all switches on, tuned", 1.0, train=TUNED),
    }
    for name, (what, train) in UNCUT.items():
        rows[name] = LearningRow(what, 1.0, train=train)
    rows["bap-slice"] = LearningRow("slice switches, union loss, a half", train=SLICES)
    rows["ba2-slice"] = LearningRow("slice switches, BA², a half", train=BA2_SLICES)
    for method, (what, train, points) in METHODS.items():
        for point in points:
            *kind, share = point.split("-")
            budget = KINDS[kind[0]] if kind else "params"
            rows[f"{method}-{point}"] = LearningRow(what, int(share) / 100, budget, train)
    for point in POINTS:  # at a tenth one cut leaves a layer a single channel; with this it cannot
        row = rows[f"one-shot-{point}"]
        rows[f"one-shot-floor-{point}"] = replace(
            row, what=f"{row.what}, a twentieth of every layer stays", floor=0.05
        )
    for point in POINTS:
        row = rows[f"tuned-{point}"]
        rows[f"own-{point}"] = replace(
            row, what="union, each domain thinned to 0.7 of it at the cut", own=0.7
        )
    for name, how, what in SEPARATE:
        for point in POINTS:
            rows[f"{name}-{point}"] = replace(rows[f"tuned-{point}"], what=what, separate=how)
    for importance in IMPORTANCES:
        for scope in SCOPES:
            what = f"cut before any domain: Torch-Pruning's {importance}, {scope}"
            for point in POINTS:
                rows[f"slim-first-{importance}-{scope}-{point}"] = replace(
                    rows[f"one-shot-undivided-{point}"],
                    what=what,
                    slim_first=SlimFirst(importance, scope),
                )
    for trunk in ("frozen", "tuned"):  # older names, the budget's kind in their middle
        rows[f"{trunk}-macs-random-050"] = replace(rows[f"{trunk}-random-050"], kind="macs")
    return rows


def _ramp_of_before(row: LearningRow) -> LearningRow:
    """A row whose limit is steep, with the ramp that it had before its shape could be said.

    Rows in files keep their names; `--set ramp_shape=geometric` gives it what is usual now.
    """
    steep = row.limit < STEEP or (row.separate == "total" and row.limit < 1)
    if not steep or row.slim_first or row.train.get("recipe", "prunion") not in RAMPED:
        return row
    return replace(row, train={**row.train, "ramp_shape": "linear"})


ROWS = {name: _ramp_of_before(row) for name, row in _rows().items()}
# What is to be known first: whether learning the switches beats one cut, and what either loses.
DECIDING = ("tuned-all", "tuned-025", "one-shot-025", "tuned-macs-050", "one-shot-macs-050")


PROFILED = ("profile-", "round-")  # parts of a key that rows of latency have, and no others need


def settings_of(key: str) -> str:
    """What was set for a row, as its key ends: `all.precision-bf16`.

    Without the profile and the multiple of a row of latency (`profile_of`): it is to stand beside
    rows that have none.
    """
    told = RowKey.parse(key)
    if told.row not in ROWS or ROWS[told.row].kind != "latency":
        return told.extra
    return ".".join(part for part in told.extra.split(".") if not part.startswith(PROFILED))


def profile_of(key: str) -> str:
    """What `settings_of` leaves out."""
    whole = RowKey.parse(key).extra
    return "" if whole == settings_of(key) else whole
