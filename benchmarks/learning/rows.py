"""The learning table: one row a run, each on its own, resumable.

    python -m prunion.benchmarks.learning --data DATA --weights WEIGHTS -o rows.jsonl ROW …

Every row trains the same epochs on the same images, exports the bundle, counts the budget in the
exported file and tests the network that was exported once, at the end (every run also tests
after warm-up, for its closing table, and after every epoch up to 256 images of each domain, which
are test images where there are no others; nothing is chosen by either). A row that is in the output
already is skipped, whatever the defaults were then: begin a new file when they change. A row that
was interrupted goes on from its last epoch.

Of `separate-…` each network sees as many images of its domain as the joint one does, in batches as
large, and has as many steps; full passes are rounded up.

A line has the bits of the test images, in the files' order, that say which were answered right: so
`paired.py` can compare two rows image by image. Its `account` is what the bundle costs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from prunion.benchmarks.learning.latency import bundle_account, together
from prunion.benchmarks.learning.likeness import chosen_by
from prunion.benchmarks.learning.paired import packed, read_rows
from prunion.benchmarks.learning.plan.catalogue import DECIDING, ROWS, LearningRow
from prunion.benchmarks.learning.plan.row_config import DOMAINS, key_of, make_config, trained_alone
from prunion.benchmarks.learning.plan.slim_first import slim_worth
from prunion.exporter.bundle import export_bundle
from prunion.exporter.verify import verify_bundle
from prunion.runtime.cli import FilePath, FiniteRange, OneLineCommand
from prunion.runtime.errors import VerificationError
from prunion.trainer.config import RunConfig
from prunion.trainer.data import open_domains
from prunion.trainer.network import answer_domains, load_checkpoint
from prunion.trainer.run import RunResult, train_run

__all__ = ["main", "right_answers", "run_row"]


@click.command(cls=OneLineCommand)
@click.argument("rows", nargs=-1)
@click.option("--data", required=True, type=FilePath(exists=True), help="Folder of domains.")
@click.option("--weights", required=True, type=FilePath(exists=True), help="Folder of trunks.")
@click.option("--domains", default=DOMAINS, show_default=True, help="Folders, or all: eight.")
@click.option("--backbone", default="resnet18", show_default=True, help="resnet18 | lite0")
@click.option("--epochs", default="2,4,6", show_default=True, help="Warm-up, ramp, settle.")
@click.option("--seed", "seeds", multiple=True, type=int, default=[0], help="Any number of them.")
@click.option("--threads", default=1, show_default=True)
@click.option("--set", "settings", multiple=True, help="A [train] key: --set switch_travel=1.5")
@click.option("--keep", multiple=True, help="A layer that stays whole, as [backbone] keep.")
@click.option("--teacher", default="", help="Folder of a finished run whose network teaches.")
@click.option("--round-to", default=1, show_default=True, help="Of [budget].")
@click.option(
    "--profile",
    type=FilePath(exists=True, dir_okay=False),
    help="Of [budget], for rows of latency: `prunion profile`.",
)
@click.option("--holdout", is_flag=True, help="Measure on held-out training images instead.")
@click.option(
    "--share",
    type=FiniteRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="What --holdout holds out.",
)
@click.option("--folder", default="runs/learning", show_default=True, help="Where runs are kept.")
@click.option("-o", "--output", required=True, type=FilePath(), help="JSONL, one row a line.")
def main(rows: tuple[str, ...], output: str, seeds: tuple[int, ...], **options: Any) -> None:
    """Run the named rows one after the other, every seed of them.

    Without a name all rows are run, those that decide first; those of latency with a profile.
    """
    path = Path(output)
    done = {line["key"] for line in read_rows(path)} if path.exists() else set()
    for name in rows:
        if name not in ROWS:
            raise click.UsageError(f"no row {name}: choose from {', '.join(ROWS)}")
    timed = [name for name, row in ROWS.items() if row.kind == "latency"]
    if set(rows) & set(timed) and not options["profile"]:
        raise click.UsageError(
            f"{', '.join(name for name in rows if name in timed)}: give --profile, the file that "
            "`prunion profile` wrote on the device, of the network of these rows"
        )
    without = {*DECIDING, *(() if options["profile"] else timed)}
    groups = [rows] if rows else [DECIDING, [name for name in ROWS if name not in without]]
    for name in dict.fromkeys(name for group in groups for name in group):  # before any is trained
        make_config(ROWS[name], {**options, "seed": seeds[0]})
    for name, seed in ((name, seed) for group in groups for seed in seeds for name in group):
        options["seed"] = seed
        key = key_of(name, options)
        if key in done:
            continue
        line = json.dumps({"key": key, **run_row(name, options)})
        done.add(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        click.echo(line)


def run_row(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train, export and verify one row; the figures of its line."""
    row, folder = ROWS[name], Path(options["folder"]) / key_of(name, options)
    config = make_config(row, options)
    if not row.separate:
        return _run(row, config, folder)
    share = row.limit / len(config.domains) if row.separate == "total" else row.limit
    alone = [
        replace(one, budget=replace(config.budget, limit=share)) for one in trained_alone(config)
    ]
    return _together(row, [_run(row, one, folder / one.domains[0].name) for one in alone])


def _run(row: LearningRow, config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train, export and verify one network."""
    worth = None
    if row.slim_first:
        worth = slim_worth(row.slim_first, config.backbone, config.input)
    result = train_run(config, folder, resume=folder.exists(), importance=worth)
    bundle = folder / "model.prunion"
    manifest = export_bundle(folder, bundle, force=True)
    report = verify_bundle(bundle, against=folder)  # counts the file itself
    if report.problems:
        raise VerificationError(f"{bundle}: {'; '.join(report.problems)}")
    own_norms = not config.train.freezes_norms
    account = bundle_account(bundle, report, config.threads, own_norms=own_norms)
    figures = {**_figures(row, result, manifest), "account": account}
    return {**figures, "chosen_by": chosen_by(folder), **right_answers(config, folder)}


def _together(row: LearningRow, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line of several domains' own networks: their files add up, an image runs through one."""
    merged = {
        key: {name: value for line in lines for name, value in line[key].items()}
        for key in ("accuracy", "before", "images", "digests", "right")
    }
    accuracy = merged["accuracy"]
    return {
        **lines[0],
        "what": row.what,
        "mean": sum(accuracy.values()) / len(accuracy),
        **merged,
        "budget": [line["budget"] for line in lines],
        "params": sum(line["params"] for line in lines),
        "macs": sum(line["macs"] for line in lines) / len(lines),
        "uncut": sum(line["uncut"] for line in lines) / len(lines),
        "sharing": 0.0,
        "chosen_by": [],
        "returned": sum(line["returned"] for line in lines),
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "account": together([line["account"] for line in lines]),
    }


def right_answers(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Per domain how many test images there are, a digest of them, and which are right."""
    net = load_checkpoint(folder).net
    domains = open_domains(config.domains, config.seed, orientation=config.input.orientation)
    answers = answer_domains(net, domains, config.input)
    right = {
        domain.name: answers[index].answers == answers[index].labels
        for index, domain in enumerate(domains)
    }
    return {
        "images": {name: len(bits) for name, bits in right.items()},
        "digests": {domain.name: domain.test.digest for domain in domains},
        "right": {name: packed(bits) for name, bits in right.items()},
    }


def _figures(row: LearningRow, result: RunResult, manifest: dict[str, Any]) -> dict[str, Any]:
    accuracy = result.accuracy
    return {
        "what": row.what,
        "mean": sum(accuracy.values()) / len(accuracy),
        "accuracy": accuracy,
        "before": result.accuracy_before,
        "budget": manifest["budget"],
        "params": manifest["params"]["exported"] / manifest["params"]["backbone"],
        "macs": manifest["macs"]["exported"] / manifest["macs"]["backbone"],
        "uncut": result.uncut,
        "sharing": result.shared,
        "returned": result.returned,
        "seconds": round(result.seconds, 1),
        "torch": manifest["provenance"]["versions"]["torch"],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **({"own": result.own} if result.own else {}),
    }


if __name__ == "__main__":
    main()
