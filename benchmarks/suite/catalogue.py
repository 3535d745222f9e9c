"""The tables of the pages, and the command that measures each again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunion.runtime.base import shown
from prunion.runtime.errors import InputError

__all__ = ["TABLES", "Table", "find_tables"]


@dataclass(frozen=True)
class Table:
    """One table of the documentation.

    Attributes:
        page: where its figures stand.
        command: as the page has it, behind `python -m`; words in capitals stand for what is given
            with `--set`.
        minutes: about how long it takes on two quiet cores, or on one GPU where it needs one.
        needs: what a plain `prunion[bench]` lacks; empty if nothing.
        adds_to: files of rows that the command adds to, leaving out those it has.
    """

    name: str
    page: str
    command: str
    minutes: float
    needs: str = ""
    adds_to: tuple[str, ...] = ()

    @property
    def placeholders(self) -> list[str]:
        """The command's words in capitals."""
        return [word for word in self.command.split() if word.isupper()]


TAKES = "docs/training-cost.md"
COST = "prunion.benchmarks.cost"
GPU = "prunion.benchmarks.gpu"
LEARNING, DATA = "prunion.benchmarks.learning", "--data DATA --weights WEIGHTS"
LEARNT = "benchmarks/learning/results"
RANDOM = f"{LEARNT}/random-heads"  # rows of before heads were fitted
ADAMW = "precision-bf16.trunk_optimiser-adamw"  # how keys of those rows end
TABLES = (
    Table("latency", "docs/benchmarks.md", f"{COST}.runtime_latency --seconds 0.6", 2),
    Table(
        "against",
        "docs/benchmarks/against.md",
        f"{COST}.against -o against.jsonl",
        20,
        adds_to=("against.jsonl",),
    ),
    Table("agreement", "docs/benchmarks/against.md", f"{COST}.agreement", 2, "mlcommons-loadgen"),
    Table(
        "mixed-batch",
        "docs/benchmarks/shapes.md",
        f"{COST}.runtime_latency --own 1 --size 96 --seconds 1",
        2,
    ),
    Table("memory", "docs/benchmarks.md", f"{COST}.runtime_memory", 5),
    Table(
        "widths",
        "docs/benchmarks/shapes.md",
        f"{COST}.round_to --seconds 2",
        15,
        "openvino, for its rows",
    ),
    Table(
        "backbones",
        "docs/backbones.md",
        "prunion.benchmarks.backbones --json rows.json --exported 0.6",
        240,
        adds_to=("rows.json",),
    ),
    Table(
        "torch-pruning",
        "docs/backbones.md",
        "prunion.benchmarks.peers.torch_pruning --seconds 2",
        5,
    ),
    Table("slim-latency", "docs/backbones.md", f"{COST}.slim_latency --seconds 2", 10),
    Table("export", "docs/backbones.md", f"{COST}.export_cost", 3),
    Table("latency-budget", "docs/latency.md", f"{COST}.latency_budget", 30),
    Table("train-step", TAKES, f"{COST}.train_step --threads 1", 2),
    Table(
        "train-step-lite0",
        TAKES,
        f"{COST}.train_step --threads 1 --backbone lite0 --size 96",
        2,
    ),
    Table(
        "learning",
        "docs/results/methods.md",
        f"{LEARNING} {DATA} -o rows.jsonl tuned-050",
        60,
        "images",
        ("rows.jsonl",),
    ),
    Table(
        "learning-table",
        "docs/learning-table.md",
        f"{LEARNING}.table {RANDOM}/learning.jsonl",
        0.1,
        "a checkout",
    ),
    Table(
        "paired",
        "docs/learning-table.md",
        f"{LEARNING}.paired {LEARNT}/eight.jsonl tuned-025.all.{ADAMW} one-shot-025.all.{ADAMW}",
        0.1,
        "a checkout",
    ),
    Table(
        "frontier",
        "docs/results/eight-domains.md",
        f"{LEARNING}.frontier {LEARNT}/eight.jsonl --like all.{ADAMW} "
        f"--latency {LEARNT}/eight-latency.jsonl -o docs/img/frontier.svg",
        0.1,
        "a checkout",
    ),
    Table(
        "screen",
        "docs/results/rivals.md",
        f"{LEARNING}.table {LEARNT}/screen.jsonl",
        0.1,
        "a checkout",
    ),
    Table(
        "likeness",
        "docs/results/rivals.md",
        f"{LEARNING}.likeness {LEARNT}/pairs.jsonl --like precision-bf16",
        0.1,
        "a checkout",
    ),
    Table(
        "likeness-float32",
        "docs/results/rivals.md",
        f"{LEARNING}.likeness {LEARNT}/eight.jsonl",
        0.1,
        "a checkout",
    ),
    Table(
        "likeness-eight",
        "docs/results/rivals.md",
        f"{LEARNING}.likeness {LEARNT}/eight.jsonl --like {ADAMW}",
        0.1,
        "a checkout",
    ),
    Table(
        "methods",
        "docs/results/methods.md",
        f"{LEARNING}.table {LEARNT}/methods.jsonl",
        0.1,
        "a checkout",
    ),
    Table(
        "methods-latency",
        "docs/results/methods.md",
        f"{LEARNING}.latency runs/learning -o latency.jsonl",
        10,
        "the runs of methods",
    ),
    Table(
        "eight-domains",
        "docs/gpu.md",
        f"{GPU} learning {DATA} -o {LEARNT}",
        60,
        "a GPU, images",
        tuple(f"{LEARNT}/{rows}.jsonl" for rows in ("eight", "methods", "pairs", "lite0")),
    ),
    Table(
        "widths-accuracy",
        "docs/settings.md",
        f"{LEARNING} {DATA} --holdout --share 0.25 --set precision=bf16 "
        "--set head_start=random --set trunk_optimiser=adamw "
        f"-o {RANDOM}/holdout25.jsonl --round-to 8 tuned-macs-050 tuned-025",
        240,
        "images",
        (f"{RANDOM}/holdout25.jsonl",),
    ),
    Table(
        "shared-ramp",
        TAKES,
        f"{LEARNING}.shared_ramp {DATA} --set head_start=random "
        "--set trunk_optimiser=adamw -o shared.jsonl",
        900,
        "images",
        ("shared.jsonl",),
    ),
    Table("loader", TAKES, f"{COST}.loader --images 1024 --side 400", 5),
    Table("params", "docs/methods.md", "prunion.benchmarks.reproduce.ratios", 3),
    Table(
        "serving",
        "docs/serving/measured.md",
        "prunion.benchmarks.serving -o serving.jsonl",
        60,
        adds_to=("serving.jsonl",),
    ),
    Table("engines", "docs/desktop.md", f"{GPU}.engines", 5, "TensorRT"),
    Table(
        "gpu-training", "docs/gpu.md", f"{GPU} training -o gpu.jsonl", 15, "a GPU", ("gpu.jsonl",)
    ),
    Table(
        "gpu-inference", "docs/gpu.md", f"{GPU} inference -o gpu.jsonl", 15, "a GPU", ("gpu.jsonl",)
    ),
    Table("gpu-runtime", "docs/gpu.md", f"{GPU} runtime -o gpu.jsonl", 5, "a GPU", ("gpu.jsonl",)),
)


def find_tables(names: Sequence[str]) -> list[Table]:
    """The tables of these names, in their order. Raises InputError for one that is none."""
    known = {table.name: table for table in TABLES}
    for name in names:
        if name not in known:
            raise InputError(
                f"no table is called {shown(name)}: `python -m prunion.benchmarks list` names them"
            )
    return [known[name] for name in dict.fromkeys(names)]
